"""How likely the prior finds the codes of training and of held-out images (the paper's table 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from vqvae2.codes import Geometry
from vqvae2.evaluate.code_likelihood import likelihood
from vqvae2.evaluate.context import Context
from vqvae2.evaluate.parts.base import Part, PartResult
from vqvae2.evaluate.sets import NamedImages


def likelihoods(
    log_probs: Mapping[str, Tensor], geometry: Geometry, image: tuple[int, int, int]
) -> PartResult:
    """The negative log-likelihood of each set's codes, per level given the coarser levels.

    Args:
        log_probs: [n, L] of training and of held-out images, by name; `gap` is the relative difference of the second from the
            first, None at a level whose codes are certain.
        geometry: of the codes.
        image: (C, H, W).
    """
    figures: dict[str, Any] = {}
    for name, log_prob in log_probs.items():
        figures[name] = {"n": len(log_prob), **asdict(likelihood(log_prob, geometry, image))}
    if len(log_probs) == 2:
        first, second = (figures[name]["nats_per_code"] for name in log_probs)
        figures["gap"] = [b / a - 1 if a else None for a, b in zip(first, second, strict=True)]
    return PartResult({**figures, "uniform_nats_per_code": [math.log(k) for k in geometry.vocabulary]})


def _sets(context: Context) -> list[NamedImages]:
    """All held-out images, and as many training images or `n` of them if that is more."""
    limit = max(len(context.heldout), context.options.most)
    return [context.training.first(limit), context.heldout]


def _hindered(context: Context) -> str | None:
    """The held-out images have no classes, and a prior never learned "no label"."""
    assert context.run is not None
    return None if context.heldout.labels is not None else context.run.config.prior.lacks_unlabelled()


def prepare(context: Context) -> None:
    """The probabilities, by all processes."""
    for images in _sets(context):
        context.log_prob(images)


def measure(context: Context) -> PartResult:
    """Of `_sets`."""
    assert context.run is not None
    image = (context.data.channels, *context.data.shape)
    log_probs = {images.name: context.log_prob(images) for images in _sets(context)}
    return likelihoods(log_probs, context.run.prior.geometry, image)


PART = Part(
    "nll", "Likelihood of the codes", measure, needs=("run", "priors"), prepare=prepare, hindered=_hindered
)
