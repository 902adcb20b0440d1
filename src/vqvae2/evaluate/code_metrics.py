"""Pure measures of codes: how likely a prior finds them, in every customary unit, and how evenly they are used.

Shapes: B pictures, L levels (coarsest first), K codes, C H W the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vqvae2.autoencoder.base import perplexity
from vqvae2.codes import Geometry
from vqvae2.evaluate.metrics import MetricError


@dataclass(frozen=True)
class Likelihood:
    """Mean negative log-likelihood of pictures' codes; less is better.

    It is what a lossless coder of the codes would need. It says nothing of the pixels that the codes lose, so the last two
    figures are rates, not the likelihoods of pixels that other models report.

    Attributes:
        nats_per_code: per level, the unit of the paper's table 1 (most likely: it names none).
        bits_per_code: per level, nats over ln 2.
        bits_per_image: all levels.
        bits_per_pixel: over H x W places.
        bits_per_dimension: over C x H x W numbers.
    """

    nats_per_code: tuple[float, ...]
    bits_per_code: tuple[float, ...]
    bits_per_image: float
    bits_per_pixel: float
    bits_per_dimension: float


def likelihood(log_prob: Tensor, geometry: Geometry, picture: tuple[int, int, int]) -> Likelihood:
    """The mean over pictures of -log p, in every unit.

    Args:
        log_prob: [B, L], natural log-probability of each level's grid (`HierarchicalPrior.log_prob`).
        geometry: of the codes.
        picture: (C, H, W).

    Raises:
        MetricError: no picture, or other levels.
    """
    if log_prob.ndim != 2 or log_prob.shape[1] != geometry.levels or not len(log_prob):
        raise MetricError(
            f"expected log-probabilities [B, {geometry.levels}], found shape {list(log_prob.shape)}"
        )
    nats = (-log_prob.detach().double().mean(0)).tolist()
    per_code = tuple(level / count for level, count in zip(nats, geometry.positions, strict=True))
    channels, height, width = picture
    bits = sum(nats) / math.log(2)
    return Likelihood(
        per_code,
        tuple(level / math.log(2) for level in per_code),
        bits,
        bits / (height * width),
        bits / (channels * height * width),
    )


@dataclass(frozen=True)
class Usage:
    """How a level's codes are used over a set of pictures.

    Attributes:
        counts: [K] int64, how often each is used.
        perplexity: exp of the entropy of the counts, 1 to K: the number of evenly used codes that would be as uncertain.
        used: the share of the K codes that is used at all.
        order: [K] int64, codes from the most to the least used, the lower number first among equals.
    """

    counts: Tensor
    perplexity: float
    used: float
    order: Tensor


def code_counts(codes: Tensor, size: int) -> Tensor:
    """How often each of `size` codes occurs, [K] int64; counts of batches add up.

    Args:
        codes: integers in 0 .. size - 1, any shape.

    Raises:
        MetricError: a code outside.
    """
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
        raise MetricError(f"expected codes in 0..{size - 1}, found {int(codes.min())}..{int(codes.max())}")
    return torch.bincount(codes.flatten().long(), minlength=size)


def usage(counts: Tensor) -> Usage:
    """What counts [K] say; `perplexity` as the quantizer has it (van den Oord et al. 2017, arXiv 1711.00937)."""
    return Usage(
        counts,
        float(perplexity(counts)),
        float((counts > 0).double().mean()),
        counts.argsort(descending=True, stable=True),
    )
