"""Whether samples are nearer to training images than held-out real images are, in pixels and in features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae2.config.models import DataConfig
from vqvae2.data.images import ImageSet
from vqvae2.evaluate.context import Context
from vqvae2.evaluate.features import Features
from vqvae2.evaluate.manifolds import nearest
from vqvae2.evaluate.metrics import two_sample
from vqvae2.evaluate.neighbours import nearest_images
from vqvae2.evaluate.parts.base import Part, PartResult
from vqvae2.evaluate.parts.drawing import SHOWN, distribution, sheet
from vqvae2.evaluate.sets import NamedImages

_PIXELS = 1000  # images whose nearest neighbour in pixels is searched, at most
_COLUMNS = SHOWN // 2


def in_pixels(samples: Tensor, heldout: Tensor, images: ImageSet, data: DataConfig) -> PartResult:
    """Distances in pixels of samples and held-out images [B, C, H, W] from all training images.

    Training images count mirrored too, if training mirrored them.
    """
    neighbours, ours = nearest_images(samples, images, data)
    _, theirs = nearest_images(heldout, images, data)
    result = PartResult(_compare(ours.double(), theirs.double(), len(samples)))
    pairs = torch.cat([samples[:_COLUMNS], neighbours[:_COLUMNS]])
    result.pictures.append(
        ("samples, and below them their nearest training images in pixels", sheet(pairs, _COLUMNS))
    )
    caption = (
        "distance to the nearest training image in pixels (root mean square, range 2): share of images below"
    )
    result.plots.append((caption, {"samples": distribution(ours), "held out": distribution(theirs)}))
    return result


def in_features(
    samples: NamedImages, training: NamedImages, features: tuple[Features, Features, Features]
) -> PartResult:
    """Distances in features of samples and of as many held-out images from some training images.

    Args:
        training: those training images.
        features: of the samples, of the held-out images, of `training`.
    """
    ours, theirs, reference = (each.pooled for each in features)
    n = min(len(ours), len(theirs))
    near, index = nearest(ours[:n], reference)
    far, _ = nearest(theirs[:n], reference)
    result = PartResult({"training_n": len(reference), **_compare(near[:, 0], far[:, 0], n)})
    order = near[:, 0].argsort()[:_COLUMNS]
    shown = [samples.images(int(i), int(i) + 1) for i in order]
    shown += [training.images(int(index[i, 0]), int(index[i, 0]) + 1) for i in order]
    caption = "the samples that are nearest to a training image in features, and below them that image"
    result.pictures.append((caption, sheet(torch.cat(shown), _COLUMNS)))
    caption = "distance to the nearest training image in features: share of images below"
    curves = {"samples": distribution(near[:, 0]), "held out": distribution(far[:, 0])}
    result.plots.append((caption, curves))
    return result


def _compare(samples: Tensor, heldout: Tensor, n: int) -> dict[str, Any]:
    """Medians of two sets of distances, and a test of their difference."""
    return {
        "n": n,
        "samples_median": float(samples.median()),
        "heldout_median": float(heldout.median()),
        "nearer_than_any_heldout": float((samples < heldout.min()).double().mean()),
        **two_sample(samples, heldout)._asdict(),
    }


def measure(context: Context) -> PartResult:
    """Samples and as many held-out images."""
    samples, heldout = context.compared["samples"], context.compared["held out"]
    few = min(len(samples), len(heldout), _PIXELS)
    pixels = in_pixels(samples.images(0, few), heldout.images(0, few), context.images, context.data)
    reference = context.reference
    features = in_features(
        samples,
        reference,
        (context.features(samples), context.features(heldout), context.features(reference)),
    )
    return PartResult(
        {"pixels": pixels.figures, "features": features.figures},
        pixels.pictures + features.pictures,
        pixels.plots + features.plots,
    )


PART = Part(
    "memorisation",
    "Nearest training images",
    measure,
    needs=("samples", "sets", "network"),
    prepare=Context.compare,
)
