"""Codes as bytes without a prior: log2 K bits each.

256 codes at a time are the digits of one number to the base K, so a group wastes less than one byte whatever K is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vqvae2.codec.errors import CodecError

_GROUP = 256


def packed_size(count: int, base: int) -> int:
    """The number of bytes of `count` codes out of `base`."""
    whole, rest = divmod(count, _GROUP)
    return whole * _bytes(_GROUP, base) + _bytes(rest, base)


def pack(codes: NDArray[np.int64], base: int) -> bytes:
    """Codes [n], each in 0 .. base - 1, as bytes."""
    result = []
    for begin in range(0, len(codes), _GROUP):
        group = codes[begin : begin + _GROUP].tolist()
        number = 0
        for code in group:
            number = number * base + code
        result.append(number.to_bytes(_bytes(len(group), base)))
    return b"".join(result)


def unpack(data: bytes, count: int, base: int) -> NDArray[np.int64]:
    """The inverse of `pack`: `count` codes.

    Raises:
        CodecError: the bytes are no such codes.
    """
    codes: list[int] = []
    begin = 0
    while len(codes) < count:
        size = min(_GROUP, count - len(codes))
        end = begin + _bytes(size, base)
        number, group = int.from_bytes(data[begin:end]), []
        for _ in range(size):
            number, code = divmod(number, base)
            group.append(code)
        if number:
            raise CodecError("it is damaged: a code is outside the codebook")
        codes += group[::-1]
        begin = end
    return np.array(codes, np.int64)


def _bytes(count: int, base: int) -> int:
    """The bytes of the largest number with `count` digits to the base."""
    largest: int = base**count - 1
    return (largest.bit_length() + 7) // 8
