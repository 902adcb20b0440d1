"""How near reconstructions are to their originals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from vqvae2.autoencoder.perceptual import PerceptualDistance
from vqvae2.data.pixels import psnr
from vqvae2.evaluate.context import Context
from vqvae2.evaluate.encoding import Encoder
from vqvae2.evaluate.image_metrics import (
    mean_squared_error,
    multiscale_similarity,
    scales,
    structural_similarity,
)
from vqvae2.evaluate.parts.base import Part, PartResult
from vqvae2.evaluate.parts.drawing import SHOWN, sheet
from vqvae2.evaluate.sets import NamedImages


@torch.no_grad()
def reconstruction(
    encoder: Encoder, sets: Sequence[NamedImages], distance: PerceptualDistance | None
) -> PartResult:
    """The mean of each measure over each set.

    Args:
        distance: the perceptual distance, or None if its weights are not available.
    """
    result = PartResult()
    for images in sets:
        totals: dict[str, float] = {}
        side = 0
        for originals, codes in encoder.with_images(images):
            decoded = encoder.autoencoder.decode(codes).cpu()
            for name, values in _measures(decoded, originals, distance).items():
                totals[name] = totals.get(name, 0.0) + float(values.double().sum())
            side = originals.shape[2]
        figures = {name: total / len(images) for name, total in totals.items()}
        figures["psnr_of_mean"] = -10 * math.log10(max(figures["mse_unit_range"], 1e-12))
        result.figures[images.name] = {"n": len(images), **figures, "ms_ssim_scales": scales(side, side)}
    result.pictures.append(_levels(encoder, sets[-1]))
    return result


def _measures(decoded: Tensor, originals: Tensor, distance: PerceptualDistance | None) -> dict[str, Tensor]:
    """[B] of each measure that is defined for these images."""
    measures: dict[str, Tensor | None] = {
        "mse": mean_squared_error(decoded, originals),
        "mse_unit_range": mean_squared_error(decoded, originals, span=1.0),
        "psnr": psnr(decoded, originals).double(),
        "ssim": structural_similarity(decoded, originals),
        "ms_ssim": multiscale_similarity(decoded, originals),
        "perceptual": None if distance is None else distance(decoded, originals).double(),
    }
    return {name: values for name, values in measures.items() if values is not None}


def _levels(encoder: Encoder, images: NamedImages) -> tuple[str, Image.Image]:
    shown = images.images(0, SHOWN // 2)
    codes = encoder.autoencoder.encode(shown.to(encoder.device))
    steps = [encoder.autoencoder.decode(codes, levels).cpu() for levels in range(1, len(codes.levels) + 1)]
    caption = (
        f"{images.name}: originals in the first row; below them decoded from the coarsest level alone, then with one "
        "more level in each row"
    )
    return caption, sheet(torch.cat([shown, *steps]), len(shown))


def measure(context: Context) -> PartResult:
    """Of all held-out images, and of as many training images or `n` of them if that is more."""
    weights = context.options.perceptual
    distance = None if weights is None else PerceptualDistance.read(weights)
    limit = max(len(context.heldout), context.options.n)
    return reconstruction(context.encoder, [context.training.first(limit), context.heldout], distance)


PART = Part("reconstruction", "Reconstruction", measure, needs=("run",))
