"""Logits to integer frequencies, such that the encoder and the decoder find the same ones on different machines.

    logits, float64 --round to multiples of 1/16--> integers --table of exp in integer arithmetic--> frequencies, sum 2^24

Only the rounding depends on floating-point numbers that differ between machines. Our decision: a coarse grid. Rounding costs about
(1/16)^2 / 24 nats per code, which is 0.00023 bits, and the chance that a difference crosses an edge is proportional to 16. A logit that
is nearer to an edge than `EDGE` is reported, so that the encoder can avoid the prior at that position.

Shapes: B lanes, K codes.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

STEPS = 16  # of the grid per unit of the logits
EDGE = 1e-9
"""Logits nearer to a rounding edge are reported: over 1,000 times the largest difference that was measured between machines,
thread counts, batch sizes and instruction sets (results/codec-portability.json)."""
BITS = 24  # the frequencies of a position add up to 2^24, as `constriction` has it
_ONE = 30  # bits of the table's first entry
_LOWEST = 334  # steps below the largest logit at which the table is 0: exp(-334 / 16) < 2^-30
_SCALE = 128  # bits of the integers in which the table is computed
_RATIO = 319665700530617779809390163992561606014  # floor(exp(-1/16) x 2^128)


@cache
def _table() -> NDArray[np.int64]:
    """floor(2^30 exp(-d / 16)) for d = 0, 1, ...; computed with integers alone, so it is the same everywhere."""
    values, value = [], 1 << _SCALE
    for _ in range(_LOWEST):
        values.append(value >> (_SCALE - _ONE))
        value = (value * _RATIO) >> _SCALE
    return np.array([*values, 0], np.int64)


def on_grid(logits: Tensor) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """How far the logits are below the largest one, and whether rounding was unsafe.

    Args:
        logits: [B, K] float64, on any device.

    Returns:
        Integers [B, K], in sixteenths, at most `_LOWEST`; bool [B], whether a logit that matters is nearer than `EDGE` to the edge
        between two multiples.
    """
    scaled = logits.double().cpu().numpy() * STEPS
    rounded = np.rint(scaled)
    below = rounded.max(1, keepdims=True) - rounded
    unsafe = np.abs(np.abs(scaled - rounded) - 0.5) < EDGE * STEPS
    near = (unsafe & (below <= _LOWEST + 1)).any(1)
    finite = np.nan_to_num(below, nan=_LOWEST, posinf=_LOWEST, neginf=_LOWEST)
    return finite.clip(0, _LOWEST).astype(np.int64), near


def frequencies(below: NDArray[np.int64]) -> NDArray[np.float64]:
    """The frequency of each code, less the 1 that every code has.

    Args:
        below: [B, K], of `on_grid`.

    Returns:
        Integers in float64 [B, K], at least 0, whose sum is 2^24 - K: what `constriction` takes as exact probabilities.
    """
    weights = _table()[below]
    free = (1 << BITS) - below.shape[1]
    shares = weights * free // weights.sum(1, keepdims=True)
    rows = np.arange(len(shares))
    shares[rows, below.argmin(1)] += free - shares.sum(1)
    result: NDArray[np.float64] = shares.astype(np.float64)
    return result


def uniform(codes: int) -> NDArray[np.float64]:
    """As `frequencies`, [K], without a prior: all codes are equally frequent, up to rounding."""
    free = (1 << BITS) - codes
    shares = np.full(codes, free // codes, np.float64)
    shares[0] += free - shares.sum()
    return shares
