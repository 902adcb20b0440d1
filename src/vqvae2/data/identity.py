"""What data is the same: digests of contents, which do not depend on where the data is or when it was written.

A digest of every byte would read a large data set once more before anything begins. So sizes count in full, and bytes are
sampled: what is replaced by something of the same size in every sampled place is not noticed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from vqvae2.data.errors import DataError, ImageError, reading_failed
from vqvae2.data.folder_files import FolderFiles

_FILES = 4096  # files of a folder whose bytes are sampled
_ENDS = 4096  # bytes at each end of such a file
_HASHED_WHOLE = 256_000_000  # bytes: larger single files are sampled
_BLOCK = 1 << 20  # bytes per sample of a larger file
_BLOCKS = 16  # samples of a larger file, spread evenly from its beginning to its end


def folder_digest(found: FolderFiles, whole: Sequence[Path] = ()) -> str:
    """sha256 of the paths below the folder and the sizes of all images, and of both ends of up to 4,096 of them.

    Args:
        found: the files of the folder.
        whole: further files, whose paths and contents count in full.

    Raises:
        DataError: a file cannot be read for a reason that is not its own.
    """
    total = hashlib.sha256(b"folder 2")
    for file in found.files:
        total.update(f"{found.name(file)}\0{found.sizes[file]}\n".encode("utf-8", "surrogateescape"))
    for file in _spread(found.files):
        total.update(_ends(file))
    for file in whole:
        try:
            total.update(found.name(file).encode("utf-8", "surrogateescape") + sampled_digest(file))
        except OSError as error:
            raise DataError(f"cannot read {file}: {reading_failed(error)}") from error
    return total.hexdigest()


def sampled_digest(path: Path) -> bytes:
    """sha256 of a file's content; of a large file of its size and of sixteen parts of it.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _HASHED_WHOLE:
            return hashlib.file_digest(file, "sha256").digest()
        total = hashlib.sha256(f"sampled {size}".encode())
        for number in range(_BLOCKS):
            file.seek((size - _BLOCK) * number // (_BLOCKS - 1))
            total.update(file.read(_BLOCK))
        return total.digest()


def _spread(files: Sequence[Path]) -> Sequence[Path]:
    """At most `_FILES` of the files, spread evenly."""
    if len(files) <= _FILES:
        return files
    return [files[number * len(files) // _FILES] for number in range(_FILES)]


def _ends(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(_ENDS)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(_ENDS, size - _ENDS))
            return hashlib.sha256(head + file.read(_ENDS)).digest()
    except OSError as error:
        reason = reading_failed(error)
        if isinstance(reason, ImageError):
            return b"unread"
        raise reason from error
