"""A folder of image files, whose sub-folders may be classes and splits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError
from vqvae2.data.folder_files import FolderFiles, list_folder
from vqvae2.data.folder_layout import understand
from vqvae2.data.formats import TABLE_SUFFIXES
from vqvae2.data.identity import folder_digest
from vqvae2.data.labels import resolve_labels
from vqvae2.data.listing import Listing
from vqvae2.data.table_files import TableFiles, files_by_suffix
from vqvae2.data.tar_files import TarFiles


@dataclass(frozen=True)
class ImageFolder:
    """A folder of image files.

    Attributes:
        root: the folder.
        files: the image files below it, in order.
        identity: sha256 of their paths below the folder, their sizes, and bytes of them.
        skipped: (path below the folder, reason) of the other files.
    """

    root: Path
    files: tuple[Path, ...]
    identity: str
    skipped: tuple[tuple[str, str], ...] = ()

    def list_images(self, config: DataConfig, scratch: Path) -> Listing:
        """The images; `folder_layout` says when sub-folders are splits and classes."""
        names = [file.relative_to(self.root).as_posix() for file in self.files]
        layout = understand(
            [tuple(name.split("/")) for name in names],
            config.split,
            str(self.root),
            classes=config.label_column != "none",
        )
        files = [self.files[index] for index in layout.keep]
        classes, labels = resolve_labels(layout.classes, None) if layout.classes else ((), None)
        return Listing(
            [names[index] for index in layout.keep],
            lambda indices: [files[index] for index in indices],
            classes,
            labels,
            None if layout.held is None else np.array(layout.held, np.int8),
            skipped=[*self.skipped, *((names[index], reason) for index, reason in layout.skipped)],
            notes=layout.notes,
        )


def recognise_folder(data: str, run: Path) -> ImageFolder | TableFiles | TarFiles | None:
    """The images in a folder, or if it holds none, its parquet or tar files; None if `data` is no folder.

    Raises:
        DataError: the folder holds neither.
    """
    root = Path(data).expanduser()
    if not os.path.isdir(root):  # noqa: PTH112 - False for every error, such as a name that is too long
        return None
    found = list_folder(root, run)
    if found.images:
        return ImageFolder(root, tuple(found.images), folder_digest(found), tuple(found.unread()))
    tables = [file for file, _ in found.others if file.name.lower().endswith(TABLE_SUFFIXES)]
    if tables:
        return files_by_suffix(str(root), root, tables)
    raise DataError(f"no images in {root}: {_why(found)}")


def _why(found: FolderFiles) -> str:
    unread: Sequence[tuple[str, str]] = found.unread()
    if not unread:
        return "it is empty"
    name, reason = unread[0]
    return (
        f"none of its {len(unread)} files is an image, a parquet file or a tar (the first, {name}: {reason})"
    )
