"""Writing an array to a .npy file row by row, without holding it in memory and without leaving half a file."""

from __future__ import annotations

import hashlib
import io
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vqvae2.files.atomic import publish
from vqvae2.files.temporary import temporary_name

_AT_ONCE = 2**24  # bytes that are read at a time


class ArrayWriter:
    """Writes an array [n, *tail] to a .npy file, of which n need not be known before.

    The file has a temporary name until `publish` renames it, so a killed process leaves no incomplete file under the
    final name. Call `append` for the rows, then `finish`, then `publish`; `abandon` removes what was not published.

    Args:
        path: the file.
        tail: the shape of one row.
        dtype: type of the elements.
        temporary: the name until then, on the same file system; None is a hidden one in the same folder.
        keep: how many rows a killed process has left under this name; they are kept, and what follows them is cut off.

    Raises:
        OSError: the file cannot be written, or holds fewer rows than are to be kept.
    """

    def __init__(
        self, path: Path, tail: tuple[int, ...], dtype: Any, temporary: Path | None = None, keep: int = 0
    ) -> None:
        self.path, self.tail, self.dtype = path, tail, np.dtype(dtype)
        self.temporary = temporary or temporary_name(path)
        self.count = keep
        self._checksum = hashlib.sha256()
        if not keep:
            self.temporary.unlink(missing_ok=True)  # it may be a link
        self._file: IO[bytes] = self.temporary.open("rb+" if keep else "wb")
        self._write_header()
        if keep:
            self._read_kept()

    def append(self, rows: NDArray[Any]) -> None:
        """Write b rows [b, *tail].

        Raises:
            ValueError: rows of another shape.
        """
        if rows.shape[1:] != self.tail:
            raise ValueError(f"expected rows of shape {self.tail}, found {rows.shape[1:]}")
        data = np.ascontiguousarray(rows, self.dtype).data
        self._file.write(data)
        if rows.size:
            self._checksum.update(data)
        self.count += len(rows)

    @property
    def checksum(self) -> str:
        """sha256 of the elements written so far, without the header; 64 hexadecimal digits."""
        return self._checksum.hexdigest()

    def finish(self) -> None:
        """Write the final number of rows into the header and flush to the disk; the name is still temporary."""
        self._file.seek(0)
        self._write_header()
        self.flush()
        self._file.close()

    def flush(self) -> None:
        """Flush the rows to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def publish(self) -> None:
        """Rename the finished file to its final name."""
        publish(self.temporary, self.path)

    def abandon(self, remove: bool = True) -> None:
        """Close the temporary file, and remove it if it still exists."""
        with suppress(OSError):
            self._file.close()
        if remove:
            with suppress(OSError):
                self.temporary.unlink(missing_ok=True)

    def _write_header(self) -> None:
        write_header(self._file, (self.count, *self.tail), self.dtype)

    def _read_kept(self) -> None:
        """Add the rows that are there to the checksum, and cut off what follows."""
        left = self.count * _row_bytes(self.tail, self.dtype)
        while left:
            block = self._file.read(min(left, _AT_ONCE))
            if not block:
                self._file.close()
                raise OSError(f"{self.temporary} has fewer than {self.count} rows")
            self._checksum.update(block)
            left -= len(block)
        self._file.seek(self._file.tell())
        self._file.truncate()


def rows_in(file: Path, tail: tuple[int, ...], dtype: Any) -> int:
    """How many rows of an array a file that an `ArrayWriter` has begun holds, by its size.

    Raises:
        OSError: it is not there.
    """
    header = io.BytesIO()
    write_header(header, (0, *tail), np.dtype(dtype))
    return max(0, file.stat().st_size - header.tell()) // _row_bytes(tail, np.dtype(dtype))


def _row_bytes(tail: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return math.prod(tail) * dtype.itemsize


def write_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Write the header of a .npy file, padded so that a longer first axis fits: its size is the same at the end as at the start."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
