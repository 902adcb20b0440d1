"""Random draws of input vectors for a codebook: its first codes, and replacements for codes that are no longer used.

Shapes are fixed and nothing is read on the host, so the draws can be compiled and captured. The random numbers are a
hash of the step and of a row's number in the global batch. They therefore need no generator, and do not depend on the
device or on how many processes share the batch. Every process must hold the same number of rows.

Shapes: N vectors of one process, D dimension, K codes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

from vqvae2.autoencoder.base import summed
from vqvae2.processes import world

# odd 64-bit numbers, written as int64: those of SplitMix64 (Steele, Lea and Flood 2014) and one more
_ROW, _STEP, _MIX = -0x61C8864680B583EB, -0x24B0F46E8A51DE9B, -0x40A7B892E31B1A47
_HALF = 0xFFFFFFFF


def hashed_uniform(step: Tensor, start: int, count: int) -> Tensor:
    """[count] float32, uniform in (0, 1], for the rows `start` to `start + count - 1` in step `step` (scalar int64).

    A multiplicative hash of 64 bits with one round of mixing, of which the upper 31 bits are used.
    """
    rows = torch.arange(start, start + count, device=step.device)
    # rows x _ROW modulo 2^64, from halves whose products stay below 2^63. Compilers turn a product with `arange` into an index, and
    # one that overflows there is undefined in C++: with _ROW itself, a loop over it never ended
    product = ((rows * (_ROW >> 32) & _HALF) << 32) + rows * (_ROW & _HALF)
    mixed = product + step * _STEP
    mixed = (mixed ^ (mixed >> 32)) * _MIX
    return (((mixed >> 33) & 0x7FFFFFFF).to(torch.float32) + 0.5) * 2.0**-31


def spread_rows(flat: Tensor, jitter: Tensor) -> Tensor:
    """[K, D]: one vector from each of K equal stretches of the global batch, at the position `jitter` [K] (0 to 1) in it.

    A batch of fewer rows gives all of them, repeated. A collective; `flat` [N, D] must have at least one row.
    """
    rank, processes = world()
    own, count = flat.shape[0], jitter.shape[0]
    every = own * processes
    stretches = min(count, every)
    bounds = torch.arange(stretches + 1, device=flat.device) * every + (stretches - 1)
    bounds = bounds // stretches  # the first row of each stretch, rounded up, and the end of the last one
    first, length = bounds[:-1], bounds.diff()
    if stretches < count:
        repeated = torch.arange(count, device=flat.device) % stretches
        first, length = first[repeated], length[repeated]
    rows = first + (jitter.float() * length * 0.999).long()
    if processes == 1:
        return flat.index_select(0, rows)
    rows = rows - rank * own
    drawn = flat.index_select(0, rows.clamp(0, own - 1))
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
    score = torch.where((error > 0) & (error < torch.inf), (error / exponential).log(), -torch.inf)
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
