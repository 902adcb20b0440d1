"""Local tables: parquet files and tars, as one file, a list from a folder, or a pattern."""

from __future__ import annotations

import functools
import glob
import hashlib
import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqvae2.config.data import at_home
from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError
from vqvae2.data.formats import IMAGE_SUFFIXES, TABLE_SUFFIXES
from vqvae2.data.identity import sampled_digest
from vqvae2.data.labels import LABEL_COLUMNS
from vqvae2.data.listing import Listing
from vqvae2.data.split_names import file_splits, words_of
from vqvae2.data.tables import OpenedTable, Tables, list_rows, reading
from vqvae2.data.tar_files import TarFiles
from vqvae2.files.atomic import reason


@dataclass(frozen=True)
class TableFiles:
    """Parquet files.

    Attributes:
        data: DATA as the user wrote it, for messages.
        root: the folder below which the files were found; None = they were named one by one or by a pattern.
        files: the files, in order.
        identity: sha256 of their paths below the folder that holds all of them, and of their contents.
    """

    data: str
    root: Path | None
    files: tuple[Path, ...]
    identity: str

    def list_images(self, config: DataConfig, scratch: Path) -> Listing:
        """The rows of all files; `datasets` keeps its working copy in `scratch`."""
        with reading(self.data):
            opened, notes = self._open(config, scratch)
            listing = list_rows(opened, self.data, config)
        listing.notes = [*listing.notes, *notes]
        return listing

    def _open(self, config: DataConfig, scratch: Path) -> tuple[Tables, list[str]]:
        """Open the files; words such as `train` and `test` in their names are a split, folders `key=value` columns."""
        import datasets
        import pyarrow.parquet as pq

        filled = [file for file in self.files if pq.read_metadata(file).num_rows]
        if not filled:
            raise DataError(f"{self.data!r} holds no rows")
        inner = [Path(name) for name in _inner(self.root, filled)]
        held, notes = file_splits([name.as_posix() for name in inner])
        split = config.split
        named = [split is not None and split.lower() in words_of(name.as_posix()) for name in inner]
        if any(named):
            held, notes, split = [0 if meant else None for meant in named], [], None
        elif config.split is not None or 1 not in held:
            held = [0] * len(inner)
        known = 1 in held
        groups: dict[tuple[int | None, Path, tuple[tuple[str, str], ...]], list[str]] = {}
        for file, name, own in zip(filled, inner, held, strict=True):
            if own is not None:
                key = (own if known else None, file.absolute().parent, _hive(name, config.label_column))
                groups.setdefault(key, []).append(glob.escape(str(file.absolute())))
        load = functools.partial(datasets.load_dataset, "parquet", split="train", cache_dir=str(scratch))
        tables = [
            OpenedTable(_with_columns(load(data_files={"train": names}), more), own, folder)
            for (own, folder, more), names in groups.items()
        ]
        tables, more = _with_classes(tables, config.label_column)
        return Tables(tables, split=split), notes + more


def _with_classes(tables: list[OpenedTable], wanted: str | None) -> tuple[list[OpenedTable], list[str]]:
    """Without the held-out tables that have no column of classes, if the others have one; and notes.

    A test split is often published so. It is not held out then, as a test folder without folders of classes is not.
    """

    def has_classes(table: Any) -> bool:
        if wanted:
            return wanted in table.column_names
        return any(name.lower() in (*LABEL_COLUMNS, "json") for name in table.column_names)

    kept = [opened for opened in tables if has_classes(opened.table)]
    left = [opened for opened in tables if not has_classes(opened.table)]
    if not kept or not left or not all(opened.held == 1 for opened in left):
        return tables, []
    if not any(opened.held == 1 for opened in kept):
        kept = [opened._replace(held=None) for opened in kept]
    rows = sum(len(opened.table) for opened in left)
    return kept, [f"warning: {rows} rows of the held-out split have no column of classes and are not used"]


def _hive(name: Path, label_column: str | None) -> tuple[tuple[str, str], ...]:
    """The columns that the folders of a file stand for: `label=cat/part-0.parquet` has the column `label`."""
    pairs = [part.split("=", 1) for part in name.parts[:-1] if "=" in part]
    return tuple(
        (key, value)
        for key, value in pairs
        if key == label_column or key.lower() in (*LABEL_COLUMNS, "split")
    )


def _with_columns(table: Any, more: Sequence[tuple[str, str]]) -> Any:
    """The table with a constant column for each pair whose column it does not have."""
    for key, value in more:
        if key not in table.features:
            table = table.add_column(key, [value] * len(table))
    return table


def recognise_files(data: str, run: Path) -> TableFiles | TarFiles | None:
    """The parquet or tar files that `data` names, one file or a pattern; None if it is neither.

    Raises:
        DataError: no file matches the pattern, or the files have another format.
    """
    path = Path(at_home(data))
    if os.path.isfile(path):  # noqa: PTH113 - False for every error, such as a name that is too long
        return files_by_suffix(data, None, [path])
    if not re.search(r"[*?\[{]", data):
        return None
    patterns = expand_braces(str(path))
    names = [name for pattern in patterns for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207 - may be absolute
    if not names:
        raise DataError(f"no file matches {data!r}")
    return files_by_suffix(data, None, sorted({Path(name) for name in names}))


def expand_braces(pattern: str) -> list[str]:
    """The patterns that shell braces stand for: `a-{000..002}.tar` or `{train,test}.parquet`."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if not braces:
        return [pattern]
    inside, numbers = braces.group(1), re.fullmatch(r"(\d+)\.\.(\d+)", braces.group(1))
    if numbers:
        first, last = numbers.groups()
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = inside.split(",")
    head, tail = pattern[: braces.start()], pattern[braces.end() :]
    return [whole for choice in choices for whole in expand_braces(head + choice + tail)]


def below_common(paths: Sequence[str]) -> list[str]:
    """The paths, with `/`, below the folder that holds all of them; of one its name."""
    folder = posixpath.commonpath([posixpath.dirname(path) or "." for path in paths])
    return [posixpath.relpath(path, folder or ".") for path in paths]


def _inner(root: Path | None, files: Sequence[Path]) -> list[str]:
    """The paths of files below a folder, by which splits and classes are told; None = below the one that holds all."""
    if root is None:
        return below_common([file.absolute().as_posix() for file in files])
    return [file.relative_to(root).as_posix() for file in files]


def files_by_suffix(data: str, root: Path | None, files: Sequence[Path]) -> TableFiles | TarFiles:
    """The table files in the format that their suffix says.

    Raises:
        DataError: another suffix, or several; a file cannot be read.
    """
    kinds = {_kind(file) for file in files}
    if kinds == {".parquet"}:
        return parquet_files(data, root, files)
    if kinds <= {*TABLE_SUFFIXES} - {".parquet"}:
        return TarFiles(data, tuple(_inner(root, files)), tuple(files), _identity("webdataset", files))
    if kinds <= set(IMAGE_SUFFIXES):
        raise DataError(f"{data!r} is an image, not a data set: name the folder that holds the images")
    raise DataError(
        f"cannot read {data!r}: expected a folder of images, .parquet, .tar or .tar.gz files, or a Hub id, "
        f"found {sorted(kinds)}"
    )


def parquet_files(data: str, root: Path | None, files: Sequence[Path]) -> TableFiles:
    """Parquet files as a data source.

    Raises:
        DataError: a file cannot be read.
    """
    return TableFiles(data, root, tuple(files), _identity("parquet", files))


def _kind(file: Path) -> str:
    """The ending of a name, `.tar.gz` as one."""
    name = file.name.lower()
    return next((suffix for suffix in TABLE_SUFFIXES if name.endswith(suffix)), file.suffix.lower())


def _identity(kind: str, files: Sequence[Path]) -> str:
    """sha256 of the paths below the folder that holds all files, and of their contents."""
    total = hashlib.sha256(kind.encode())
    for name, file in zip(_inner(None, files), files, strict=True):
        try:
            total.update(f"{name}\0".encode("utf-8", "replace") + sampled_digest(file))
        except OSError as error:
            raise DataError(f"cannot read {file}: {reason(error)}") from error
    return total.hexdigest()
