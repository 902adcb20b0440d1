"""The range coder of `constriction`, with exact integer frequencies, and a stream that ends at the last byte that is needed.

Shapes: m codes, K codes of a codebook.
"""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from vqvae2.codec.errors import CodecError

_MODEL: Any = constriction.stream.model.Categorical(
    perfect=False
)  # takes integers whose sum is 2^24 - K as they are, and adds 1 to each
_WORD = 32  # bits of a word; the coder's state has two


class Encoder:
    """Codes to bytes."""

    def __init__(self) -> None:
        self._coder: Any = constriction.stream.queue.RangeEncoder()

    def encode(self, codes: NDArray[np.int64], frequencies: NDArray[np.float64]) -> None:
        """Append codes [m] with the frequencies [m, K] of `codec.frequencies`."""
        self._coder.encode(codes.astype(np.int32), _MODEL, frequencies)

    def finish(self) -> bytes:
        """The shortest bytes that decode to what was encoded; the decoder takes what follows them for zeros.

        A range coder may end with any number of an interval; this is the one with the most zero bytes at its end.
        """
        if self._coder.is_empty():
            return b""
        words: list[int] = self._coder.get_compressed().tolist()
        position, (lower, width) = self._coder.pos()
        total = (position + 2) * _WORD  # bits up to the end of the state
        value = int.from_bytes(b"".join(word.to_bytes(4) for word in words)) << (total - _WORD * len(words))
        lowest = value - (value - lower) % (1 << (2 * _WORD))
        for zeros in range(total, -1, -8):
            rounded = -(-lowest >> zeros) << zeros
            if rounded < lowest + width:
                shortest: bytes = (rounded >> zeros).to_bytes((total - zeros) // 8)
                return shortest
        raise AssertionError("a number of the interval has no zeros at its end")


class Decoder:
    """Bytes to codes."""

    def __init__(self, data: bytes) -> None:
        padded = data + bytes(-len(data) % 4 + 8)
        self._coder: Any = constriction.stream.queue.RangeDecoder(
            np.frombuffer(padded, ">u4").astype(np.uint32)
        )

    def decode(self, frequencies: NDArray[np.float64]) -> NDArray[np.int64]:
        """The next codes [m], given the frequencies [m, K] with which they were encoded.

        Raises:
            CodecError: no codes lead to these bytes.
        """
        try:
            decoded: NDArray[np.int64] = self._coder.decode(_MODEL, frequencies).astype(np.int64)
        except (AssertionError, ValueError) as error:
            raise CodecError("it is damaged: its bytes encode nothing") from error
        return decoded
