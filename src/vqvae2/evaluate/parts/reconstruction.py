"""How near reconstructions are to their originals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.autoencoder.perceptual import PerceptualDistance
from vqvae2.data.pixels import psnr
from vqvae2.evaluate.context import Context
from vqvae2.evaluate.encoding import Encoder
from vqvae2.evaluate.image_metrics import (
    mean_squared_error,
    multiscale_similarity,
    perceptual_distance,
    scales,
    structural_similarity,
)
from vqvae2.evaluate.parts.base import Part, PartResult, Picture
from vqvae2.evaluate.parts.drawing import SHOWN, sheet
from vqvae2.evaluate.sets import NamedImages


@torch.no_grad()
def reconstruction(
    encoders: Mapping[str, Encoder],
    sets: Sequence[NamedImages],
    distance: PerceptualDistance | None,
    plain: VQVAE,
) -> PartResult:
    """The mean of each measure over each set, for each decoder.

    Args:
        encoders: the same encoder with one decoder or several; the keys are appended to the names of the sets.
        plain: the autoencoder with its plain decoder, which shows the coarsest levels alone.
        distance: the perceptual distance, or None if its weights are not available.
    """
    result = PartResult()
    first, *_ = encoders.values()
    for images in sets:
        totals: dict[str, dict[str, float]] = {suffix: {} for suffix in encoders}
        sides = (0, 0)
        for originals, codes in first.with_images(images):
            for suffix, sums in totals.items():
                decoded = encoders[suffix].autoencoder.decode(codes).cpu()
                for name, values in _measures(decoded, originals, distance).items():
                    sums[name] = sums.get(name, 0.0) + float(values.double().sum())
            sides = (originals.shape[2], originals.shape[3])
        for suffix, sums in totals.items():
            figures = {name: total / len(images) for name, total in sums.items()}
            figures["psnr_of_mean"] = -10 * math.log10(max(figures["mse_unit_range"], 1e-12))
            figures |= {"n": len(images), "ms_ssim_scales": scales(*sides)}
            result.figures[images.name + suffix] = figures
    result.pictures.append(_levels(encoders, plain, sets[-1]))
    return result


def _measures(decoded: Tensor, originals: Tensor, distance: PerceptualDistance | None) -> dict[str, Tensor]:
    """[B] of each measure that is defined for these images."""
    measures: dict[str, Tensor | None] = {
        "mse": mean_squared_error(decoded, originals),
        "mse_unit_range": mean_squared_error(decoded, originals, span=1.0),
        "psnr": psnr(decoded, originals).double(),
        "ssim": structural_similarity(decoded, originals),
        "ms_ssim": multiscale_similarity(decoded, originals),
        "perceptual": None if distance is None else perceptual_distance(decoded, originals, distance),
    }
    return {name: values for name, values in measures.items() if values is not None}


def _levels(encoders: Mapping[str, Encoder], plain: VQVAE, images: NamedImages) -> Picture:
    shown = images.images(0, SHOWN // 2)
    codes = plain.encode(shown.to(next(plain.parameters()).device))
    steps = [plain.decode(codes, levels).cpu() for levels in range(1, len(codes.levels))]
    steps += [encoder.autoencoder.decode(codes).cpu() for encoder in encoders.values()]
    kinds = [suffix.removeprefix(", ") or "all levels" for suffix in encoders]
    coarse = [f"{n} coarsest level{'s' * (n > 1)}" for n in range(1, len(codes.levels))]
    caption = f"{images.name}: originals, and decoded from more and more levels"
    return Picture(caption, sheet(torch.cat([shown, *steps]), len(shown)), ("originals", *coarse, *kinds))


def measure(context: Context) -> PartResult:
    """Of all held-out images, and of as many training images or `n` of them if that is more."""
    limit = max(len(context.heldout), context.options.most)
    sets = [context.training.first(limit), context.heldout]
    assert context.run is not None
    return reconstruction(context.encoders, sets, context.perceptual, context.run.autoencoder)


PART = Part("reconstruction", "Reconstruction", measure, needs=("run",))
