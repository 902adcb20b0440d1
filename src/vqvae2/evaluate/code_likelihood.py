"""The likelihood of codes under a prior, in every customary unit.

Shapes: B images, L levels (coarsest first), C channels, H W px.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vqvae2.codes import Codes, Geometry
from vqvae2.evaluate.metrics import MetricError
from vqvae2.modes import eval_mode
from vqvae2.prior.hierarchy import HierarchicalPrior


@dataclass(frozen=True)
class Likelihood:
    """Mean negative log-likelihood of the codes of images; less is better.

    It is the length that a lossless coder of the codes would need. It does not count what the codes lose of the pixels, so the
    last two figures are rates, not the likelihoods of pixels that other models report.

    Attributes:
        nats_per_code: per level; probably the unit of the paper's table 1, which names none.
        bits_per_code: per level, nats over ln 2.
        bits_per_image: all levels.
        bits_per_pixel: divided by H x W.
        bits_per_dimension: divided by C x H x W.
    """

    nats_per_code: tuple[float, ...]
    bits_per_code: tuple[float, ...]
    bits_per_image: float
    bits_per_pixel: float
    bits_per_dimension: float


def likelihood(log_prob: Tensor, geometry: Geometry, image: tuple[int, int, int]) -> Likelihood:
    """The mean of -log p over images, in every unit.

    Args:
        log_prob: [B, L], natural log-probability of each level's grid (`HierarchicalPrior.log_prob`).
        geometry: of the codes.
        image: (C, H, W).

    Raises:
        MetricError: no images, or another number of levels.
    """
    if log_prob.ndim != 2 or log_prob.shape[1] != geometry.levels or not len(log_prob):
        raise MetricError(
            f"expected log-probabilities [B, {geometry.levels}], found shape {list(log_prob.shape)}"
        )
    nats = (-log_prob.detach().double().mean(0)).tolist()
    per_code = tuple(level / count for level, count in zip(nats, geometry.positions, strict=True))
    channels, height, width = image
    bits = sum(nats) / math.log(2)
    return Likelihood(
        per_code,
        tuple(level / math.log(2) for level in per_code),
        bits,
        bits / (height * width),
        bits / (channels * height * width),
    )


@torch.no_grad()
def log_prob_in_batches(prior: HierarchicalPrior, codes: Codes, labels: Tensor | None, batch: int) -> Tensor:
    """`HierarchicalPrior.log_prob` of any number of images, none included, [B, L] on the CPU.

    Args:
        labels: [B], or None for "no label".
        batch: images that are scored at a time.
    """
    scored = []
    with eval_mode(prior):
        for start in range(0, len(codes), batch):
            own = slice(start, start + batch)
            scored.append(prior.log_prob(codes[own], None if labels is None else labels[own]).cpu())
    return torch.cat(scored) if scored else torch.zeros(0, prior.geometry.levels)


@torch.no_grad()
def bits_in_batches(
    prior: HierarchicalPrior, codes: Codes, labels: Tensor | None, batch: int
) -> list[Tensor]:
    """-log2 p of each code of any number of images, none included, [B, h, w] per level on the CPU; arguments as above."""
    scored = [[torch.zeros(0, *grid) for grid in prior.geometry.grids]]
    with eval_mode(prior):
        for start in range(0, len(codes), batch):
            own = slice(start, start + batch)
            maps = prior.log_prob_map(codes[own], None if labels is None else labels[own])
            scored.append([level.cpu() for level in maps])
    return [-torch.cat(level) / math.log(2) for level in zip(*scored, strict=True)]
