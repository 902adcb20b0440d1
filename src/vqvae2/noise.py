"""Random numbers of a training step that belong to the global batch, however many processes share it.

The training loop seeds torch's generators alike on all processes. Each process then draws the numbers of the whole batch
and takes those of its own images, so an image meets the same noise whether one process or several train. One process alone
draws with torch's own functions and pays nothing.

Dropout on a CUDA device is the exception: there every process draws for its own images only, from a seed of its own.
Drawing for the global batch would take several times the memory and the time of the layer itself, and torch's fused
attention makes its noise inside the kernel.

Shapes: b images of this process, B of the global batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vqvae2.processes import world

_generators: dict[
    torch.device, tuple[int, torch.Generator]
] = {}  # with the seed of the step that they are in


def uniform(count: int, device: torch.device) -> Tensor:
    """[b] in [0, 1), for b = `count` images of this process, or positions of its images, one image after the other."""
    rank, processes = world()
    if processes == 1:
        return torch.rand(count, device=device)
    whole = torch.rand(count * processes, device=device, generator=_generator(device))
    return whole[rank * count : (rank + 1) * count]


def integers(low: int, high: int, count: int, device: torch.device) -> Tensor:
    """[b] int64, `low` to `high` - 1, for b = `count` as in `uniform`."""
    rank, processes = world()
    if processes == 1:
        return torch.randint(low, high, (count,), device=device)
    whole = torch.randint(low, high, (count * processes,), device=device, generator=_generator(device))
    return whole[rank * count : (rank + 1) * count]


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """`functional.dropout` of [b, ...]."""
    rank, processes = world()
    if processes == 1 or not rate or not training or x.device.type != "cpu":
        return functional.dropout(x, rate, training)
    channels_last = (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    )
    order = (
        torch.channels_last if channels_last else torch.contiguous_format
    )  # in which the numbers are drawn
    count = len(x)
    whole = torch.empty((count * processes, *x.shape[1:]), dtype=x.dtype, memory_format=order).bernoulli_(
        1 - rate
    )
    return x * (whole[rank * count : (rank + 1) * count] / (1 - rate))


def replaced(codes: Tensor, share: float, vocabulary: int) -> Tensor:
    """Codes [b, h, w], of which each is replaced with probability `share` by one drawn uniformly from 0 .. vocabulary - 1."""
    if not share:
        return codes
    chosen = uniform(codes.numel(), codes.device).view_as(codes) < share
    drawn = integers(0, vocabulary, codes.numel(), codes.device).view_as(codes)
    return torch.where(chosen, drawn, codes)


def _generator(device: torch.device) -> torch.Generator | None:
    """Of numbers that all processes draw alike: on a CPU the usual one, elsewhere one with the seed of the CPU's."""
    if device.type == "cpu":
        return None
    seed = torch.initial_seed()
    known = _generators.get(device)
    if known is None or known[0] != seed:
        known = _generators[device] = seed, torch.Generator(device).manual_seed(seed)
    return known[1]
