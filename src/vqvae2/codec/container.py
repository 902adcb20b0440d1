"""The header of a compressed image, and its checks.

    bytes 0-1   "VQ"
    byte 2      format version x 16 + flags: 1 = coded by the prior, 2 = has a size, 4 = has a class, 8 = has a list
    bytes 3-6   the model's digest, shortened
    varints     height and width in px, if they are not the model's own; the class, if there is one
    varints     per level the bytes of its stream, coarsest first (only with the prior; without it they follow from the size)
    varints     if there is a list, per level the number of positions that are coded without the prior, and their gaps
    3 bytes     per level but the finest: a check of the codes up to this level
    4 bytes     the check of all codes (CRC-32)
    1 byte      a check of the header
    then the streams of the levels, coarsest first

The checks of the codes cover mode, size and class too. A file of the model's own size with one or two levels has a header of at most
24 bytes (sides below 16,384 px), usually 17 to 20. A file may end after the stream of any level: it then holds the coarser levels alone.

A varint has 7 bits in each byte, the low ones first; all bytes but the last have their highest bit set.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vqvae2.codec.errors import CodecError

Mode = Literal["packed", "prior"]

VERSION = 1
DIGEST = 4  # bytes
CODES_PER_BYTE = 512
"""A stream has at least one byte for so many codes, so that a short file cannot stand for a huge image."""
_MAGIC = b"VQ"
_PRIOR, _SIZE, _CLASS, _LIST = 1, 2, 4, 8
_CHECK, _COARSE_CHECK = 4, 3  # bytes


def least_bytes(codes: int) -> int:
    """The fewest bytes of a stream of so many codes."""
    return -(-codes // CODES_PER_BYTE)


@dataclass(frozen=True)
class Header:
    """What a file says before its streams.

    Attributes:
        mode: "prior" or "packed".
        digest: the first 4 bytes of the model's digest.
        size: (height, width) of the image in px; None is the model's own size.
        label: the class number, None without one.
        lengths: bytes of each level's stream, coarsest first; () in a packed file.
        listed: per level the positions that are coded without the prior, ascending; () without a list.
        checks: per level the check of the codes up to it (`code_checks`); of all but the last, only the low 24 bits are stored.
    """

    mode: Mode
    digest: bytes
    size: tuple[int, int] | None
    label: int | None
    lengths: tuple[int, ...] = ()
    listed: tuple[tuple[int, ...], ...] = ()
    checks: tuple[int, ...] = ()

    def pack(self) -> bytes:
        """The bytes of the header."""
        listed = self.listed if any(self.listed) else ()
        flags = _PRIOR * (self.mode == "prior") + _SIZE * (self.size is not None)
        flags += _CLASS * (self.label is not None) + _LIST * bool(listed)
        data = bytearray(_MAGIC + bytes([VERSION * 16 + flags]) + self.digest)
        numbers = [*(self.size or ()), *(() if self.label is None else (self.label,)), *self.lengths]
        for positions in listed:
            numbers.append(len(positions))
            numbers += np.diff(positions, prepend=0).tolist()
        for number in numbers:
            data += _varint(number)
        for check in self.checks[:-1]:
            data += (check & 0xFFFFFF).to_bytes(_COARSE_CHECK)
        data += self.checks[-1].to_bytes(_CHECK)
        return bytes(data) + _checksum(data)


def read_header(data: bytes, levels: int, digest: Callable[[Mode], bytes]) -> tuple[Header, int]:
    """The header, and the number of its bytes.

    Args:
        data: the whole file, or what is left of it.
        levels: of the model.
        digest: the model's for a mode. It is compared first, because only a header for as many levels can be read.

    Raises:
        CodecError: no compressed image of ours, of a newer version, of another model, damaged, or cut off within the header.
    """
    if data[:2] != _MAGIC:
        raise CodecError("it is no compressed image of vqvae2" if len(data) > 1 else "it is empty")
    if len(data) < 3 + DIGEST:
        raise CodecError("it is cut off within its header")
    version, flags = divmod(data[2], 16)
    if version != VERSION:
        raise CodecError(f"it is of format {version}, this vqvae2 reads format {VERSION}")
    prior = bool(flags & _PRIOR)
    mode: Mode = "prior" if prior else "packed"
    found, expected = data[3 : 3 + DIGEST], digest(mode)
    if found != expected:
        raise CodecError(
            f"it was compressed with another model: expected {expected.hex()}, found {found.hex()}"
        )
    reader = _Reader(data, 3 + DIGEST)
    size = (reader.number(), reader.number()) if flags & _SIZE else None
    label = reader.number() if flags & _CLASS else None
    lengths = tuple(reader.number() for _ in range(levels if prior else 0))
    listed = []
    for _ in range(levels if flags & _LIST else 0):
        gaps = [reader.number() for _ in range(reader.count())]
        listed.append(tuple(np.cumsum(gaps, dtype=np.int64).tolist()))
    checks = [int.from_bytes(reader.take(_COARSE_CHECK)) for _ in range(levels - 1)]
    checks.append(int.from_bytes(reader.take(_CHECK)))
    if _checksum(data[: reader.position]) != reader.take(1):
        raise CodecError("its header is damaged")
    if size is not None and min(size) < 1:
        raise CodecError("its header is damaged: a side of 0 px")
    header = Header(mode, found, size, label, lengths, tuple(listed), tuple(checks))
    return header, reader.position


def code_checks(
    levels: Sequence[NDArray[np.int64]], mode: Mode, size: tuple[int, int], label: int | None
) -> tuple[int, ...]:
    """Per level the CRC-32 of the codes up to it; `levels` [h, w] each, coarsest first, of an image of this size."""
    check = zlib.crc32(f"{mode} {size} {label}".encode())
    checks = []
    for level in levels:
        check = zlib.crc32(np.ascontiguousarray(level, "<u4").tobytes(), check)
        checks.append(check)
    return tuple(checks)


def agree(found: Sequence[int], header: Header) -> bool:
    """Whether the checks of the levels that were decoded are those of the header, as far as it stores them."""
    last = len(header.checks) - 1
    return all(
        (own ^ stored) & (0xFFFFFFFF if level == last else 0xFFFFFF) == 0
        for level, (own, stored) in enumerate(zip(found, header.checks, strict=False))
    )


class _Reader:
    def __init__(self, data: bytes, position: int) -> None:
        self.data, self.position = data, position

    def take(self, count: int) -> bytes:
        taken = self.data[self.position : self.position + count]
        if len(taken) < count:
            raise CodecError("it is cut off within its header")
        self.position += count
        return taken

    def number(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise CodecError("its header is damaged: a number without end")

    def count(self) -> int:
        """A number of items that follow, each of at least one byte."""
        value = self.number()
        if value > len(self.data) - self.position:
            raise CodecError("it is cut off within its header")
        return value


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes([*data, number])


def _checksum(data: bytes | bytearray) -> bytes:
    return bytes([zlib.crc32(data) & 255])
