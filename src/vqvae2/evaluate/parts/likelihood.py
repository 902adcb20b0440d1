"""How likely the prior finds the codes of training and of held-out images (the paper's table 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from vqvae2.evaluate.code_likelihood import likelihood
from vqvae2.evaluate.context import Context
from vqvae2.evaluate.encoding import Encoder
from vqvae2.evaluate.parts.base import Part, PartResult
from vqvae2.evaluate.sets import NamedImages
from vqvae2.prior.hierarchy import HierarchicalPrior


@torch.no_grad()
def likelihoods(
    encoder: Encoder,
    prior: HierarchicalPrior,
    sets: Sequence[NamedImages],
    labelled: bool,
    image: tuple[int, int, int],
) -> PartResult:
    """The negative log-likelihood of each set's codes, per level given the coarser levels.

    Args:
        sets: training and held-out images; `gap` is the relative difference of the second from the first.
        labelled: each image is scored with its class, otherwise without one.
        image: (C, H, W).
    """
    figures: dict[str, Any] = {}
    for images in sets:
        log_prob = torch.cat(list(_log_prob(encoder, prior, images, labelled)))
        figures[images.name] = {"n": len(images), **asdict(likelihood(log_prob, prior.geometry, image))}
    names = [images.name for images in sets]
    if len(names) == 2:
        first, second = (figures[name]["nats_per_code"] for name in names)
        figures["gap"] = [b / a - 1 for a, b in zip(first, second, strict=True)]
    return PartResult({**figures, "uniform_nats_per_code": [math.log(k) for k in prior.geometry.vocabulary]})


def _log_prob(
    encoder: Encoder, prior: HierarchicalPrior, images: NamedImages, labelled: bool
) -> Iterator[Tensor]:
    """[B, L] of each batch."""
    start = 0
    for codes in encoder.codes(images):
        labels = images.labels[start : start + len(codes)] if labelled and images.labels is not None else None
        yield prior.log_prob(codes, None if labels is None else labels.to(encoder.device)).cpu()
        start += len(codes)


def measure(context: Context) -> PartResult:
    """Of all held-out images, and of as many training images or `n` of them if that is more."""
    assert context.run is not None
    limit = max(len(context.heldout), context.options.n)
    sets = [context.training.first(limit), context.heldout]
    labelled = bool(context.run.config.prior.classes)
    image = (context.data.channels, *context.data.shape)
    return likelihoods(context.encoder, context.run.prior, sets, labelled, image)


PART = Part("nll", "Likelihood of the codes", measure, needs=("run", "priors"))
