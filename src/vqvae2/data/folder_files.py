"""The one rule by which files are taken from a folder, for training and for every other verb.

- Sub-folders are read, and links are followed; each folder is read once, by its own name rather than that of a link.
- Files and folders whose name begins with a dot are left out without a word.
- Images are recognised by the ending of their name or by their first bytes; a file may hold several (`frames`).
- Everything else is listed with the reason why it is not read.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from vqvae2.data.errors import DataError, ImageError, reading_failed
from vqvae2.data.formats import IMAGE_SUFFIXES, RAW_SUFFIXES, is_image, unread
from vqvae2.data.frames import frames_of
from vqvae2.data.medical import NIFTI_SUFFIXES, is_dicom, is_nifti

_HEAD = 512  # bytes of a file that are looked at


@dataclass
class FolderFiles:
    """The files of a folder.

    Attributes:
        root: the folder.
        files: the image files, sorted.
        images: the images in them, in the same order: `a.png`, `scan.nii#0`, `scan.nii#1`.
        others: the other regular files, sorted, each with the reason why it is no image.
        skipped: (path below the folder, reason) of what is no file or cannot be read.
        sizes: of all files, in bytes.
    """

    root: Path
    files: list[Path] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    others: list[tuple[Path, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    sizes: dict[Path, int] = field(default_factory=dict)

    def name(self, file: Path) -> str:
        """The path of a file below the folder, with `/`."""
        return file.relative_to(self.root).as_posix()

    def unread(self) -> list[tuple[str, str]]:
        """(path below the folder, reason) of everything that is no image."""
        return [*((self.name(file), reason) for file, reason in self.others), *self.skipped]


def list_folder(root: Path, excluded: Path | None = None) -> FolderFiles:
    """List a folder by the rule above.

    Args:
        root: the folder.
        excluded: a folder that is not read even if it is inside `root`.

    Raises:
        DataError: the folder, or what is in it, cannot be read for a reason that is not its own (`reading_failed`).
    """
    found = FolderFiles(root)
    seen = {os.path.realpath(excluded)} if excluded is not None else set()
    files: list[Path] = []
    folders, links = [root], list[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        for path in _entries(folder, found):
            kind = _kind(path, found)
            if kind == "folder":
                (links if path.is_symlink() else folders).append(path)
            elif kind == "file":
                files.append(path)
    for file in sorted(files):
        _sort_in(file, found)
    found.skipped.sort()
    return found


def _entries(folder: Path, found: FolderFiles) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names alone
        return [folder / name for name in names if not name.startswith(".")]
    except OSError as error:
        _skip(folder, error, found)
        return []


def _kind(path: Path, found: FolderFiles) -> str:
    try:
        state = path.stat()
    except OSError as error:
        _skip(path, error, found)
        return ""
    if stat.S_ISDIR(state.st_mode):
        return "folder"
    if stat.S_ISREG(state.st_mode):
        found.sizes[path] = state.st_size
        return "file"
    found.skipped.append((found.name(path), "not a regular file"))
    return ""


def _sort_in(file: Path, found: FolderFiles) -> None:
    """Put a file among the images or among the others."""
    if file.name.lower().endswith(IMAGE_SUFFIXES):
        _add(file, file.name.lower().endswith((*NIFTI_SUFFIXES, ".dcm")), found)
        return
    if file.suffix.lower() in RAW_SUFFIXES:
        found.others.append((file, "camera raw: a known format that is not read"))
        return
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD)
    except OSError as error:
        _skip(file, error, found)
        return
    if is_image(head):
        _add(file, is_dicom(head) or is_nifti(head), found)
    else:
        found.others.append((file, unread(head)))


def _add(file: Path, several: bool, found: FolderFiles) -> None:
    """Add an image file; `several` says whether it is of a kind that may hold several images."""
    found.files.append(file)
    found.images += frames_of(file) if several else [file]


def _skip(path: Path, error: OSError, found: FolderFiles) -> None:
    """List what cannot be read.

    Raises:
        DataError: the reason is not its own.
    """
    reason = reading_failed(error)
    if not isinstance(reason, ImageError) or path == found.root:
        raise DataError(f"cannot read {path}: {reason}") from error
    dangling = path.is_symlink() and not path.exists()
    found.skipped.append((found.name(path), "a link to nothing" if dangling else str(reason)))
