"""Pure measures of two sets of feature vectors by nearest neighbours.

Every vector is compared with every other one, tile by tile, in float64. Where a `device` is given, the rows of one tile at a time go
there, or stay on the CPU if it has no float64.

Shapes: B queries, N real vectors, M samples, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vqvae2.evaluate.metrics import MetricError, check
from vqvae2.prior.draw import exact_device

MEMORY = 256 * 2**20
"""Limit in bytes for the comparison of every row of one set with every row of another, not counting the sets themselves."""


def nearest(
    queries: Tensor,
    reference: Tensor,
    k: int = 1,
    itself: bool = False,
    memory: int = MEMORY,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """The k nearest vectors of a reference set, nearest first; on the CPU.

    Args:
        queries: [B, D].
        reference: [N, D].
        itself: both are the same set. A vector is then not its own neighbour, but an equal vector is.
        memory: limit in bytes, not counting both sets.
        device: where they are searched.

    Returns:
        Euclidean distances [B, k] float64, exactly 0 for equal vectors; their indices in the reference set [B, k] int64. Among
        equally near vectors any may be returned.

    Raises:
        MetricError: fewer than k candidates, other shapes, or numbers that are not finite.
    """
    check(queries, reference)
    if not 1 <= k <= len(reference) - itself:
        raise MetricError(
            f"expected 1 to {len(reference) - itself} neighbours of {len(reference)}, found {k}"
        )
    best = torch.full((len(queries), k), torch.inf, dtype=torch.float64, device=exact_device(device))
    indices = torch.zeros_like(best, dtype=torch.int64)
    for rows, columns, squares in _tiles(queries, reference, memory, device):
        if itself:
            squares.diagonal(rows.start - columns.start).fill_(torch.inf)
        values, own = squares.topk(min(k, squares.shape[1]), largest=False)
        values = torch.cat([best[rows], values], 1)
        candidates = torch.cat([indices[rows], own + columns.start], 1)
        best[rows], order = values.topk(k, largest=False)
        indices[rows] = candidates.gather(1, order)
    return best.sqrt().cpu(), indices.cpu()


class Manifolds(NamedTuple):
    """How far the regions that two sets occupy agree. All are shares in [0, 1], except density, which may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifolds(
    real: Tensor,
    samples: Tensor,
    k: int = 3,
    k_coverage: int = 5,
    neighbours: Tensor | None = None,
    memory: int = MEMORY,
    device: torch.device | str = "cpu",
) -> Manifolds:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991); density and coverage (Naeem et al. 2020,
    arXiv 2002.09797).

    Every vector of a set gets a closed ball whose radius is the distance to its k-th nearest neighbour in the set. The union
    of the balls is the manifold of the set.

    - precision: the share of samples in the manifold of the real set; recall: the share of real vectors in that of the samples.
    - density: the mean number of real balls around a sample, over k; coverage: the share of real balls that hold a sample.

    A set against another from the same distribution has density about 1 and coverage about 1 - 2^-k, for N = M.

    Args:
        real: [N, D].
        samples: [M, D].
        k: of precision and recall (the paper's 3).
        k_coverage: of density and coverage (the paper's 5).
        neighbours: `nearest(real, real, max(k, k_coverage), itself=True)[0]`, if it was computed before.
        memory: limit in bytes, not counting both sets.
        device: where they are compared.

    Raises:
        MetricError: a set of k vectors or fewer, other shapes, or numbers that are not finite.
    """
    check(real, samples)
    most = max(k, k_coverage)
    if neighbours is None:
        neighbours = nearest(real, real, most, itself=True, memory=memory, device=device)[0]
    if len(neighbours) != len(real) or not 1 <= min(k, k_coverage) <= most <= neighbours.shape[1]:
        raise MetricError(
            f"expected neighbours {k} and {k_coverage} of {len(real)} vectors, found shape {list(neighbours.shape)}"
        )
    where = exact_device(device)
    others = nearest(samples, samples, k, itself=True, memory=memory, device=device)[0]
    radii = neighbours[:, k - 1], neighbours[:, k_coverage - 1], others[:, -1]
    narrow, wide, other = (_reach(each.to(where)) for each in radii)
    precise = torch.zeros(len(samples), dtype=torch.bool, device=where)
    balls = torch.zeros(len(samples), dtype=torch.int64, device=where)
    recalled, covered = torch.zeros(2, len(real), dtype=torch.bool, device=where)
    for rows, columns, squares in _tiles(real, samples, memory, device):
        precise[columns] |= (squares <= narrow[rows, None]).any(0)
        recalled[rows] |= (squares <= other[columns]).any(1)
        inside = squares <= wide[rows, None]
        balls[columns] += inside.sum(0)
        covered[rows] |= inside.any(1)
    return Manifolds(
        float(precise.double().mean()),
        float(recalled.double().mean()),
        float(balls.double().mean() / k_coverage),
        float(covered.double().mean()),
    )


def _reach(distance: Tensor) -> Tensor:
    """Squared radii with a margin for rounding, so that a neighbour exactly on the edge counts as inside."""
    return distance.square() * (1 + 1e-9)


def _tiles(
    a: Tensor, b: Tensor, memory: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Squared distances of every row of a [A, D] to every row of b [B, D], tile by tile, in at most `memory` bytes of the device.

    Both are centred first, which reduces cancellation in |a|^2 + |b|^2 - 2 a.b. Distances within rounding of 0 are set to 0.
    """
    width = 32 * a.shape[1]  # bytes of a row: two copies in float64 on either side
    # 48 bytes for each pair: this tile, the one before, and masks
    side = max(1, int((math.sqrt(width**2 + 96 * memory) - width) / 48))
    where = exact_device(device)
    centre = b.detach().mean(0).to(where).double()
    for top in range(0, len(a), side):
        left = a[top : top + side].detach().to(where).double() - centre
        lengths = left.square().sum(1)
        for start in range(0, len(b), side):
            right = b[start : start + side].detach().to(where).double() - centre
            squares = lengths[:, None] + right.square().sum(1)
            squares.addmm_(left, right.T, alpha=-2)
            squares.masked_fill_(squares <= 1e-12 * lengths[:, None], 0)
            yield slice(top, top + len(left)), slice(start, start + len(right)), squares
