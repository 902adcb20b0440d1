"""Writing an array to a .npy file row by row, without holding it in memory and without leaving half a file."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqvae2.files import arrays
from vqvae2.files.temporary import temporary_name


class ArrayWriter:
    """Writes an array [n, *tail] to a .npy file, of which n need not be known before.

    The file has a hidden temporary name in the same folder until `publish` renames it, so a killed process leaves
    no incomplete file under the final name. Call `append` for the rows, then `finish`, then `publish`; `abandon`
    removes what was not published.

    Args:
        path: the file.
        tail: the shape of one row.
        dtype: type of the elements.
    """

    def __init__(self, path: Path, tail: tuple[int, ...], dtype: Any) -> None:
        self.path, self.tail, self.dtype = path, tail, np.dtype(dtype)
        self.temporary = temporary_name(path)
        self.count = 0
        self._checksum = hashlib.sha256()
        self.temporary.unlink(missing_ok=True)  # it may be a link
        self._file = self.temporary.open("wb")
        self._write_header()

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
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def publish(self) -> None:
        """Rename the finished file to its final name."""
        arrays.publish(self.temporary, self.path)

    def abandon(self) -> None:
        """Remove the temporary file, if it still exists."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self.temporary.unlink(missing_ok=True)

    def _write_header(self) -> None:
        """NumPy pads the header so that a longer first axis fits: its size is the same at the end as at the start."""
        shape = (self.count, *self.tail)
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
