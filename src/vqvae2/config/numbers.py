"""Numbers of any library, because a NumPy or PyTorch scalar is accepted wherever a Python number is; prime factors."""

from __future__ import annotations

import operator
from typing import Any, SupportsIndex

from vqvae2.errors import UserError

Whole = SupportsIndex
"""An integer of Python, NumPy or PyTorch."""


def whole(value: Any, name: str) -> int:
    """An integer as Python's.

    Args:
        name: what it is, for the message.

    Raises:
        UserError: it is none; a float is none either.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise UserError(f"expected an integer for {name}, found {_shown(value)}") from None


def real(value: Any, name: str) -> float:
    """A number as Python's float.

    Args:
        name: what it is, for the message.

    Raises:
        UserError: it is none.
    """
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise UserError(f"expected a number for {name}, found {_shown(value)}") from None


def plain(value: Any) -> Any:
    """A value in which scalars of other libraries are Python's, also inside lists, tuples and dictionaries."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else value
    if hasattr(value, "tolist") and getattr(value, "ndim", None) in (0, 1):  # arrays and tensors have it
        return plain(value.tolist())
    return value


def prime_factors(factor: int) -> list[int]:
    """The prime factors of `factor` (at least 1), smallest first; 1 has none."""
    primes, divisor = [], 2
    while factor > 1:
        while factor % divisor == 0:
            primes.append(divisor)
            factor //= divisor
        divisor += 1
    return primes


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
