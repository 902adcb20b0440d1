"""NumPy arrays in files that may come from a stranger: a .npy file that is mapped, and the members of an .npz file.

NumPy's own reader evaluates the header as a Python literal, also opens archives, and takes as much memory as the
header says. Here the header is compared with what is expected before anything is allocated, and whatever is wrong with
a file is a `FileError` that names it.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vqvae2.files.atomic import FileError, open_regular, reason

_HEADER = 10_000  # characters of a header, at most; those that are written here have fewer than 200


def map_array(path: Path, shape: tuple[int | None, ...], dtype: Any) -> NDArray[Any]:
    """The array in a .npy file, mapped read-only and not yet read.

    Args:
        path: the file.
        shape: of the array; None accepts any length of an axis.
        dtype: of its elements.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: it is damaged, or holds an array of another shape or type.
    """
    try:
        with open_regular(path) as file:
            found, kind = _header(file)
            offset, size = file.tell(), os.fstat(file.fileno()).st_size
    except (FileNotFoundError, FileError):
        raise
    except Exception as error:  # NumPy's reader of headers raises almost anything
        raise FileError(f"{path} is damaged: {reason(error)}") from error
    fits = len(found) == len(shape) and all(b in (None, a) for a, b in zip(found, shape, strict=False))
    if not fits or kind != np.dtype(dtype):
        expected = ["any" if length is None else length for length in shape]
        raise FileError(
            f"{path} is damaged: expected {np.dtype(dtype)} {expected}, found {kind} {list(found)}"
        )
    needed = offset + kind.itemsize * math.prod(found)
    if size != needed:
        raise FileError(f"{path} is damaged: expected {needed} bytes, found {size}")
    if not math.prod(found):
        return np.empty(found, kind)  # an empty range of a file cannot be mapped
    try:
        return np.memmap(path, kind, "r", offset, found)
    except (OSError, ValueError, OverflowError) as error:
        raise FileError(f"{path} cannot be read: {reason(error)}") from error


class Members:
    """The arrays in an .npz file that is open, each read when it is asked for; `in` and `for` give their names."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, size: int) -> None:
        self._path, self._archive = path, archive
        total = 0
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            total += member.file_size  # together they cannot be larger than the file
            if member.compress_type != zipfile.ZIP_STORED or total > size:
                raise FileError(f"{path} is damaged: the array {name!r} is not stored as it is")
            self._members[name] = member

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The array of this name.

        Raises:
            FileError: it is missing or damaged.
        """
        with self._opened(name) as (opened, shape, kind):
            return _rows(opened, shape, kind).copy()

    def blocks(self, name: str, size: int) -> Iterator[NDArray[Any]]:
        """The array of this name, at most `size` of its rows at a time.

        Raises:
            FileError: it is missing or damaged, or its rows have no bytes, so that any number of them could be claimed.
        """
        with self._opened(name) as (opened, (count, *row), kind):
            if not math.prod(row):
                raise ValueError("its rows are empty")
            for begin in range(0, count, size):
                yield _rows(opened, (min(size, count - begin), *row), kind)

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
        """The data of an array, its shape and its type, where the member has as many bytes as they need."""
        if name not in self._members:
            raise FileError(f"{self._path} is damaged: it has no array {name!r}")
        member = self._members[name]
        try:
            with self._archive.open(member) as opened:
                shape, kind = _header(opened)
                needed = math.prod(shape) * kind.itemsize
                if needed > member.file_size:
                    raise ValueError(f"expected {needed} bytes of data, found less than {member.file_size}")
                yield opened, shape, kind
        except Exception as error:  # readers of archives and of headers raise almost anything
            raise FileError(f"{self._path} is damaged: {name!r}: {reason(error)}") from error


@contextmanager
def open_members(path: Path) -> Iterator[Members]:
    """Open an .npz file that `write_members` (or `numpy.savez`) wrote.

    Raises:
        FileError: the file is missing or damaged, or its arrays are compressed, which could take any amount of memory.
    """
    try:
        file = open_regular(path)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {reason(error)}") from error
    with file:
        try:
            archive = zipfile.ZipFile(file)
            members = Members(path, archive, os.fstat(file.fileno()).st_size)
        except FileError:
            raise
        except Exception as error:  # see `Members`
            raise FileError(f"{path} is damaged: {reason(error)}") from error
        with archive:
            yield members


def write_members(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays to an .npz file, without compression; not atomically."""
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _rows(opened: IO[bytes], shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    """The next elements of an opened array."""
    return np.frombuffer(opened.read(math.prod(shape) * kind.itemsize), kind).reshape(shape)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array whose header begins here, in C order; then the file is at its data.

    Raises:
        Exception: it is no such header.
    """
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, fortran, kind = read(file, max_header_size=_HEADER)
    plain = all(type(length) is int and 0 <= length < 2**62 for length in shape)
    if not plain or kind.hasobject or kind.fields is not None or not kind.itemsize:
        raise ValueError("expected an array of numbers")
    if fortran and len(shape) > 1:
        raise ValueError("expected an array in C order")
    return shape, kind
