"""How worker processes hand pixels to the process that asked for them: through shared memory, or else through the pipe.

A pipe takes three times as much time of the receiving process, which has one such pipe for all its workers
(`benchmarks/decoding.py`). Where shared memory is missing or too small, as in containers that have 64 MB of it, the pipe serves.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np

from vqvae2.data.pixels import Pixels

_SHARED = Path("/dev/shm")  # where Linux has its shared memory
_LEAST = 2**20  # bytes from which on shared memory is used (our decision)


@dataclass(frozen=True)
class Parcel:
    """Pixels in shared memory, which belongs to whoever opens or drops the parcel.

    Attributes:
        name: of the shared memory.
        shape: of the pixels.
        kind: their type, as numpy spells it.
    """

    name: str
    shape: tuple[int, ...]
    kind: str


def packed(pixels: Pixels) -> Pixels | Parcel:
    """What a worker sends: a parcel if there is room for one, else the pixels themselves."""
    if pixels.nbytes < _LEAST or not _SHARED.is_dir():
        return pixels
    try:
        memory = SharedMemory(create=True, size=pixels.nbytes)
    except OSError:
        return pixels
    try:
        _reserve(memory, pixels.nbytes)
        np.ndarray(pixels.shape, pixels.dtype, memory.buf)[:] = pixels
        return Parcel(memory.name, pixels.shape, pixels.dtype.str)
    except OSError:
        memory.unlink()
        return pixels
    finally:
        memory.close()


def opened(sent: Pixels | Parcel) -> Pixels:
    """The pixels that a worker sent; the shared memory is given back."""
    if not isinstance(sent, Parcel):
        return sent
    memory = SharedMemory(sent.name)
    try:
        pixels: Pixels = np.ndarray(sent.shape, sent.kind, memory.buf).copy()
        return pixels
    finally:
        memory.close()
        memory.unlink()


def dropped(sent: Pixels | Parcel) -> None:
    """Give back the shared memory of pixels that nobody needs."""
    if isinstance(sent, Parcel):
        memory = SharedMemory(sent.name)
        memory.close()
        memory.unlink()


def _reserve(memory: SharedMemory, size: int) -> None:
    """Make sure that the memory is there; writing to memory that is not would kill the process.

    Raises:
        OSError: there is too little, or this system cannot say.
    """
    file = os.open(_SHARED / memory.name, os.O_RDWR)
    try:
        os.posix_fallocate(file, 0, size)
    finally:
        os.close(file)
