"""A folder of image files, whose sub-folders may be classes and splits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError
from vqvae2.data.labels import assign_splits, resolve_labels
from vqvae2.data.listing import Listing
from vqvae2.data.table_files import IMAGE_SUFFIXES, TABLE_SUFFIXES, TableFiles, files_by_suffix

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")  # first bytes of image files


@dataclass(frozen=True)
class ImageFolder:
    """A folder of image files.

    Attributes:
        root: the folder.
        files: the image files below it, in order.
        identity: sha256 of their paths, sizes and times of change.
        skipped: (path below the folder, reason) of the other files.
    """

    root: Path
    files: tuple[Path, ...]
    identity: str
    skipped: tuple[tuple[str, str], ...] = ()

    def list_images(self, config: DataConfig, scratch: Path) -> Listing:
        """The images; sub-folders are classes when every image is in one, below `train` and `test` if these exist."""
        files = list(self.files)
        paths = [file.relative_to(self.root).parts for file in files]
        folders = {path[0].lower(): path[0] for path in paths if len(path) > 1}
        splits = {}
        if config.split or all(len(path) > 1 for path in paths):
            splits = assign_splits(folders, config.split, str(self.root))
        held = None
        if splits:  # the sub-folders are splits: the classes are one level further down
            chosen = [index for index, path in enumerate(paths) if len(path) > 1 and path[0] in splits]
            files = [files[index] for index in chosen]
            held = None if config.split else np.array([splits[paths[index][0]] for index in chosen], np.int8)
            paths = [paths[index][1:] for index in chosen]
        classes: tuple[str, ...] = ()
        labels = None
        if all(len(path) > 1 for path in paths):
            classes, labels = resolve_labels([path[0] for path in paths], None)
        names = [file.relative_to(self.root).as_posix() for file in files]
        return Listing(
            names,
            lambda indices: [files[index] for index in indices],
            classes,
            labels,
            held,
            skipped=list(self.skipped),
        )


def recognise_folder(data: str, run: Path) -> ImageFolder | TableFiles | None:
    """The images in a folder, or if it holds none, its parquet or tar files; None if `data` is no folder.

    Raises:
        DataError: the folder holds neither.
    """
    root = Path(data).expanduser()
    if not root.is_dir():
        return None
    images: list[Path] = []
    others: list[Path] = []
    for file in _walk(root, os.path.realpath(run)):
        is_image = file.suffix.lower() in IMAGE_SUFFIXES or _starts_like_image(file)
        (images if is_image else others).append(file)
    if images:
        skipped = tuple((file.relative_to(root).as_posix(), "not an image") for file in others)
        return ImageFolder(root, tuple(images), _identity(root, images), skipped)
    tables = [file for file in others if file.suffix.lower() in TABLE_SUFFIXES]
    if tables:
        return files_by_suffix(str(root), root, tables)
    reason = "it is empty"
    if others:
        reason = f"none of its {len(others)} files is an image, a parquet file or a tar"
    raise DataError(f"no images in {root}: {reason}")


def _identity(root: Path, files: Sequence[Path]) -> str:
    total = hashlib.sha256(b"folder")
    for file in files:
        state = file.stat()
        line = f"{file.relative_to(root).as_posix()}\0{state.st_size}\0{state.st_mtime_ns}\n"
        total.update(line.encode("utf-8", "replace"))
    return total.hexdigest()


def _walk(root: Path, excluded: str) -> list[Path]:
    """All regular files below, sorted, without hidden ones; links are followed, but each folder is read once."""
    files, seen = [], {excluded}
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(file for file in files if file.is_file())


def _starts_like_image(path: Path) -> bool:
    """Whether the first bytes are those of an image file, whatever the file is called."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith(_SIGNATURES) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")
