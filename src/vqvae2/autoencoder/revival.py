"""Random draws of input vectors for a codebook: its first codes, and new places for codes that fell out of use.

Shapes are fixed and nothing is read on the host, so the draws can be compiled and captured. The random numbers are a
hash of the step and of a row's number in the global batch. They therefore need no generator, and do not depend on the
device or on how many processes share the batch. Every process must hold the same number of rows.

Shapes: N vectors of one process, D dimension, K codes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

from vqvae2.autoencoder.base import summed, world

_MASK = 0xFFFFFFFF


def hashed_uniform(step: Tensor, start: int, count: int) -> Tensor:
    """[count] float32, uniform in (0, 1], for rows `start` to `start + count` in step `step`.

    Args:
        step: scalar int64.
    """
    rows = torch.arange(start, start + count, device=step.device)
    mixed = _mix(_mix(rows) ^ _mix(step + 0x9E3779B9))
    return (mixed.to(torch.float32) + 0.5) * 2.0**-32


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers (held in int64) in which every input bit changes about half of the output bits.

    The constants are those of Chris Wellons' `lowbias32` (2018, public domain).
    """
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def spread_rows(flat: Tensor, count: int) -> Tensor:
    """[count, D]: one vector at random from each of `count` equal stretches of the global batch.

    A batch of fewer rows gives all of them, repeated. A collective; `flat` [N, D] must have at least one row.
    """
    rank, processes = world()
    own = flat.shape[0]
    every = own * processes
    stretches = min(count, every)
    stretch = torch.arange(count, device=flat.device) % stretches
    first = (stretch * every + stretches - 1) // stretches
    after = ((stretch + 1) * every + stretches - 1) // stretches
    uniform = hashed_uniform(torch.zeros((), dtype=torch.int64, device=flat.device), 0, count)
    within = torch.minimum((uniform * (after - first)).long(), after - first - 1)  # a product may round up
    rows = first + within - rank * own
    drawn = flat.index_select(0, rows.clamp(0, own - 1))
    if processes == 1:
        return drawn
    return summed(torch.where(((rows >= 0) & (rows < own))[:, None], drawn, 0))


def draw_by_error(flat: Tensor, error: Tensor, count: int, step: Tensor) -> tuple[Tensor, Tensor]:
    """Draw distinct vectors of the global batch in proportion to `error`, as k-means++ does; alike on every process.

    The draw adds Gumbel noise to log(error) and takes the largest. A vector of error 0 is already a code and is never
    drawn; neither is one whose error is not finite. A collective.

    Args:
        flat: [N, D], at least one row.
        error: [N], at least 0.
        count: how many to draw at most.
        step: scalar int64, chooses the noise.

    Returns:
        [C, D] with C the smaller of `count` and the rows of the global batch, and how many of them, from the first
        on, were drawn (scalar int64); the others mean nothing.
    """
    rank, processes = world()
    own = flat.shape[0]
    exponential = -torch.log1p(-hashed_uniform(step, rank * own, own))
    score = torch.where((error > 0) & error.isfinite(), error.log() - exponential.log(), -torch.inf)
    best, rows = score.topk(min(count, own))
    vectors = flat.index_select(0, rows)
    if processes > 1:
        mine = torch.cat([vectors, best[:, None]], 1)
        parts = [torch.empty_like(mine) for _ in range(processes)]
        dist.all_gather(parts, mine)
        every = torch.cat(parts)
        best, rows = every[:, -1].topk(min(count, len(every)))
        vectors = every[:, :-1].index_select(0, rows)
    return vectors, (best > -torch.inf).sum()
