"""Left-right mirror error of each set of images.

The paper claims that samples keep the structure that real images have over hundreds of pixels. Where real images are symmetric,
samples should therefore be equally symmetric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vqvae2.evaluate.context import Context
from vqvae2.evaluate.image_metrics import mirror_error
from vqvae2.evaluate.metrics import two_sample
from vqvae2.evaluate.parts.base import Part, PartResult, Plot
from vqvae2.evaluate.parts.drawing import distribution
from vqvae2.evaluate.sets import NamedImages


def symmetry(sets: Sequence[NamedImages], real: NamedImages, classes: Sequence[str]) -> PartResult:
    """The relative error (0 for symmetric images, about 0.71 for noise) of each set beside real images, and per class."""
    every = [real, *(images for images in sets if images.name != real.name)]
    errors = {
        images.name: torch.cat([mirror_error(batch, relative=True) for batch in images.batches()])
        for images in every
    }
    result = PartResult({"against": real.name, "sets": {}})
    for images in every:
        own = errors[images.name]
        figures: dict[str, Any] = {"n": len(own), "median": float(own.median()), "mean": float(own.mean())}
        if images is not real:
            figures |= two_sample(own, errors[real.name])._asdict()
        if images.labels is not None and real.labels is not None:
            figures["classes"] = {
                name: _of_class(own[images.labels == label], errors[real.name][real.labels == label])
                for label, name in enumerate(classes)
                if bool((images.labels == label).any()) and bool((real.labels == label).any())
            }
        result.figures["sets"][images.name] = figures
    curves = {name: distribution(own) for name, own in errors.items()}
    caption = (
        "how symmetric the images of each set are: a curve further to the left means more symmetric images"
    )
    result.plots.append(Plot(caption, curves, "relative mirror error", "share of images below"))
    return result


def _of_class(own: Tensor, real: Tensor) -> dict[str, Any]:
    return {
        "n": len(own),
        "median": float(own.median()),
        "real_median": float(real.median()),
        **two_sample(own, real)._asdict(),
    }


def measure(context: Context) -> PartResult:
    """All compared sets against the held-out images."""
    sets = context.compared
    return symmetry(list(sets.values()), sets["held out"], context.images.classes)


def prepare(context: Context) -> None:
    """The samples, by all processes."""
    context.compared  # noqa: B018 - makes them


PART = Part("symmetry", "Left-right symmetry", measure, needs=("sets",), prepare=prepare)
