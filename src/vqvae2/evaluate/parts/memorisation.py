"""Whether samples are nearer to training images than held-out real images are, in pixels and in features."""

from __future__ import annotations

from collections.abc import Sequence
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
from vqvae2.evaluate.parts.base import Part, PartResult, Picture, Plot
from vqvae2.evaluate.parts.drawing import SHOWN, distribution, sheet
from vqvae2.evaluate.sets import NamedImages

_PIXELS = 1000  # images whose nearest neighbour in pixels is searched, at most
_VALUES = 2**28  # values of these images, at most: 1 GiB
_SEARCHED = 100_000  # training images among which it is searched, at most; their spread is even
_COLUMNS = SHOWN // 2
_ROWS = ("samples", "nearest training images")


def in_pixels(
    samples: Tensor, heldout: Tensor, images: ImageSet, data: DataConfig, device: torch.device | str = "cpu"
) -> PartResult:
    """Distances in pixels of samples and held-out images [B, C, H, W] from the training images, of which 100,000 are searched at most.

    Training images count mirrored too, if training mirrored them.
    """
    # one pass over the training images, which may have to be decoded for it
    found, distances = nearest_images(torch.cat([samples, heldout]), images, data, device, _SEARCHED)
    neighbours, ours, theirs = found[: len(samples)], distances[: len(samples)], distances[len(samples) :]
    n = min(len(images.train), _SEARCHED)
    result = PartResult({"training_n": n, **_compare(ours.double(), theirs.double(), len(samples))})
    if n < len(images.train):
        result.warnings.append(
            f"the nearest training image in pixels was searched among {n:,} of the {len(images.train):,}, evenly spaced: a copy "
            "of another one is not found"
        )
    chosen = unlike(neighbours.flatten(1).unique(dim=0, return_inverse=True)[1].tolist(), _COLUMNS)
    pairs = torch.cat([samples[chosen], neighbours[chosen]])
    caption = "the first samples, and below each its nearest training image in pixels; a training image is shown once"
    result.pictures.append(Picture(caption, sheet(pairs, len(chosen)), _ROWS))
    curves = {"samples": distribution(ours), "held out": distribution(theirs)}
    caption = "how far images are from the nearest training image; copies would make the curve of the samples start at 0"
    x_title = "distance in pixels (root mean square, values from -1 to 1)"
    result.plots.append(Plot(caption, curves, x_title, "share of images below"))
    return result


def in_features(
    samples: NamedImages,
    training: NamedImages,
    features: tuple[Features, Features, Features],
    device: torch.device | str = "cpu",
) -> PartResult:
    """Distances in features of samples and of as many held-out images from some training images.

    Args:
        training: those training images.
        features: of the samples, of the held-out images, of `training`.
        device: where they are compared.
    """
    ours, theirs, reference = (each.pooled for each in features)
    n = min(len(ours), len(theirs))
    near, index = nearest(ours[:n], reference, device=device)
    far, _ = nearest(theirs[:n], reference, device=device)
    result = PartResult({"training_n": len(reference), **_compare(near[:, 0], far[:, 0], n)})
    order = near[:, 0].argsort()
    order = order[unlike(index[order, 0].tolist(), _COLUMNS)]
    shown = [samples.images(int(i), int(i) + 1) for i in order]
    shown += [training.images(int(index[i, 0]), int(index[i, 0]) + 1) for i in order]
    caption = (
        "the samples nearest to a training image in features, and below each that image; it is shown once"
    )
    result.pictures.append(Picture(caption, sheet(torch.cat(shown), len(order)), _ROWS))
    curves = {"samples": distribution(near[:, 0]), "held out": distribution(far[:, 0])}
    caption = "the same in the features of the network"
    result.plots.append(Plot(caption, curves, "distance in features", "share of images below"))
    return result


def unlike(neighbours: Sequence[int], count: int) -> list[int]:
    """Positions of the first `count` entries that did not occur before them."""
    first = {neighbour: position for position, neighbour in reversed([*enumerate(neighbours)])}
    return sorted(first.values())[:count]


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
    values = samples.images(0, 1).numel()
    few = min(len(samples), len(heldout), _PIXELS, max(1, _VALUES // values))
    shown = samples.images(0, few), heldout.images(0, few)
    pixels = in_pixels(*shown, context.images, context.data, context.device)
    reference = context.reference
    features = in_features(
        samples,
        reference,
        (context.features(samples), context.features(heldout), context.features(reference)),
        context.device,
    )
    return PartResult(
        {"pixels": pixels.figures, "features": features.figures},
        pixels.pictures + features.pictures,
        pixels.plots + features.plots,
        pixels.warnings,
    )


PART = Part(
    "memorisation",
    "Nearest training images",
    measure,
    needs=("samples", "sets", "network"),
    prepare=Context.make_features,
)
