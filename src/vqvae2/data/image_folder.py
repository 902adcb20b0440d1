"""A folder of image files, whose sub-folders may be classes and splits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vqvae2.config.data import at_home
from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError
from vqvae2.data.folder_files import FolderFiles, list_folder
from vqvae2.data.folder_layout import Layout, understand
from vqvae2.data.formats import TABLE_SUFFIXES
from vqvae2.data.identity import folder_digest
from vqvae2.data.label_files import METADATA, FileLabels, labels_of, metadata_of
from vqvae2.data.labels import count_of, held_of, resolve_labels
from vqvae2.data.listing import Listing
from vqvae2.data.table_files import TableFiles, files_by_suffix
from vqvae2.data.tar_files import TarFiles


@dataclass(frozen=True)
class ImageFolder:
    """A folder of image files.

    Attributes:
        root: the folder.
        files: the images below it, in order; see `FolderFiles.images`.
        identity: sha256 of their paths below the folder, their sizes, and bytes of them.
        skipped: (path below the folder, reason) of the other files.
        metadata: files with the classes of images (`label_files`): their paths below the folder, and the files.
    """

    root: Path
    files: tuple[Path, ...]
    identity: str
    skipped: tuple[tuple[str, str], ...] = ()
    metadata: tuple[tuple[str, Path], ...] = ()

    def list_images(self, config: DataConfig, scratch: Path) -> Listing:
        """The images; `folder_layout` says when sub-folders are splits and classes."""
        names = [file.relative_to(self.root).as_posix() for file in self.files]
        beside = self._beside(names, config)
        own_split = beside.splits is not None
        layout = understand(
            [tuple(name.split("/")) for name in names],
            None if own_split else config.split,
            str(self.root),
            classes=config.label_column != "none" and beside.labels is None,
            splits=not own_split,
        )
        raw = beside.labels
        if layout.classes is not None:
            named = dict(zip(layout.keep, layout.classes, strict=True))
            raw = [named.get(index) for index in range(len(names))]
        left: list[str] = []
        if beside.splits is not None:
            held_out, left = held_of(beside.splits, config.split, str(self.root))
            layout.keep = [index for index, held in enumerate(held_out) if held is not None]
            held = [int(held_out[index] or 0) for index in layout.keep]
            layout.held = held if 1 in held else None
            layout.skipped = []
        files = [self.files[index] for index in layout.keep]
        classes, labels = resolve_labels([raw[index] for index in layout.keep], None) if raw else ((), None)
        return Listing(
            [names[index] for index in layout.keep],
            lambda indices: [files[index] for index in indices],
            classes,
            labels,
            None if layout.held is None else np.array(layout.held, np.int8),
            skipped=[*self._unread(config), *((names[index], reason) for index, reason in layout.skipped)],
            notes=[*_understood(layout, beside, classes), *beside.notes, *left, *self._tables()],
        )

    def _unread(self, config: DataConfig) -> list[tuple[str, str]]:
        """`skipped` without the file of labels, which may be in the folder."""
        if config.labels is None:
            return list(self.skipped)
        labels = os.path.realpath(config.labels)
        own = Path(os.path.relpath(labels, os.path.realpath(self.root))).as_posix()
        return [item for item in self.skipped if item[0] != own]

    def _tables(self) -> list[str]:
        """A note if there are tables or tars beside the images, which may be the data that is meant."""
        tables = [name for name, _ in self.skipped if name.lower().endswith(TABLE_SUFFIXES)]
        if not tables:
            return []
        found = f"{count_of(len(tables), 'parquet or tar file')} beside the images not read"
        return [f"warning: {found}, such as {tables[0]}: name it as DATA if it holds the data"]

    def _beside(self, names: Sequence[str], config: DataConfig) -> FileLabels:
        """Classes and splits from the file that the settings name, or from files of metadata in the folder."""
        if config.labels is not None:
            return labels_of(Path(config.labels), names, config, self.root)
        if self.metadata:
            return metadata_of(self.metadata, names, config, self.root)
        if config.label_column not in (None, "none"):
            raise DataError(
                f"data.label_column is {config.label_column!r}, but {self.root} has no file of labels: name one with --labels, "
                "or set it to null (the sub-folders are the classes) or none (there are no classes)"
            )
        return FileLabels()


def _understood(layout: Layout, beside: FileLabels, classes: Sequence[str]) -> list[str]:
    """The notes about the folders; with classes or splits from a file, the folders do not count."""
    if beside.labels is None and beside.splits is None:
        return layout.notes
    first = f"understood as {len(layout.keep)} images, {len(classes) or 'no'} classes"
    if layout.held is None:
        return [f"{first}, no split"]
    return [f"{first}, split of the data: {layout.held.count(0)} to train, {layout.held.count(1)} held out"]


def recognise_folder(data: str, run: Path) -> ImageFolder | TableFiles | TarFiles | None:
    """The images in a folder, or if it holds none, its parquet or tar files; None if `data` is no folder.

    Raises:
        DataError: the folder holds neither.
    """
    root = Path(at_home(data))
    if not os.path.isdir(root):  # noqa: PTH112 - False for every error, such as a name that is too long
        return None
    found = list_folder(root, run)
    if found.images:
        metadata = tuple(
            (found.name(file), file) for file, _ in found.others if file.name.lower() in METADATA
        )
        skipped = tuple(item for item in found.unread() if item[0] not in dict(metadata))
        identity = folder_digest(found, [file for _, file in metadata])
        return ImageFolder(root, tuple(found.images), identity, skipped, metadata)
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
