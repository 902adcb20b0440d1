"""Files with the classes of images beside a folder: CSV, JSON or JSON lines.

    a,b.csv with a header (file_name,label,split)       [{"file_name": ..., "label": ...}, ...]       one object per line
    two columns without a header                        {"images/1.png": "cat", ...}                  {"labels": [["1.png", 3], ...]}

A folder may hold such files itself, named `metadata.csv`, `metadata.jsonl` or `metadata.json`, whose paths are relative to
the file (the convention of Hugging Face's image folders).
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError, LabelsError, reading_failed
from vqvae2.data.frames import file_of
from vqvae2.data.labels import LABEL_COLUMNS, as_numbers
from vqvae2.errors import listed, printable
from vqvae2.files.atomic import reason

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.json")
NAMES = ("file_name", "filename", "file", "path", "image_path", "image", "img", "name", "image_id", "id")
"""Columns that hold the names of image files; the first that exists is taken."""

_LARGEST = 500_000_000  # bytes
_SHOWN = 8  # columns in a message

_Rows = dict[tuple[int, ...], list[tuple[Any, str | None]]]
"""By the images that they name, what rows say: a class and a split, each None = none."""


@dataclass
class FileLabels:
    """What files of labels say about the images of a folder.

    Attributes:
        labels: per image its class, None = none; None = the files hold no classes.
        splits: per image the name of its split, None = none; None = the files hold no splits.
        notes: sentences for the user.
    """

    labels: list[Any] | None = None
    splits: list[str | None] | None = None
    notes: list[str] = field(default_factory=list)


def labels_of(path: Path, names: Sequence[str], config: DataConfig, root: Path) -> FileLabels:
    """The classes of the images in a folder, from the file that `data.labels` names.

    Args:
        path: the file.
        names: of the images, below the folder.
        root: the folder.
        config: `label_column` is used; with `none`, only the splits are read.

    Raises:
        DataError: the file cannot be read, holds neither classes nor splits, or knows none of the images.
    """
    rows = read_rows(path, config.label_column)
    column = _column(rows, config.label_column, path)
    if column is None and not _has_splits(rows):
        if config.label_column == "none":
            return FileLabels()
        raise DataError(
            f"which column of {printable(path.name)} holds the classes? It has {_columns(rows)}; name one with data.label_column"
        )
    return _matched(names, {"": rows}, column, path.name, root)


def metadata_of(
    files: Sequence[tuple[str, Path]], names: Sequence[str], config: DataConfig, root: Path
) -> FileLabels:
    """As `labels_of`, from the files of metadata inside the folder; without classes and splits only a note is made.

    Args:
        files: the path of each file below the folder, and the file.
        root: the folder.
    """
    tables = {
        PurePosixPath(name).parent.as_posix().removeprefix("."): read_rows(path, config.label_column)
        for name, path in files
    }
    rows = [row for table in tables.values() for row in table]
    shown = files[0][0]
    column = _column(rows, config.label_column, files[0][1], alone=False)
    if column is None and not _has_splits(rows):
        if config.label_column == "none":
            return FileLabels()
        return FileLabels(
            notes=[f"{shown} has {_columns(rows)}: none of them is read; data.label_column names the classes"]
        )
    return _matched(names, tables, column, shown, root)


def read_rows(path: Path, wanted: str | None = None) -> list[dict[str, Any]]:
    """The rows of a file of labels, with its columns as keys; `file_name` and `label` where it names none.

    Args:
        path: the file.
        wanted: the name of a column, by which a header of two columns is known, too.

    Raises:
        DataError: it cannot be read.
    """
    shown = printable(str(path))
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"{shown} is larger than {_LARGEST / 1e6:.0f} MB: too large for a file of labels")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {shown}: {reading_failed(error)}") from error
    except UnicodeDecodeError:
        raise DataError(f"cannot read {shown}: it is no text in UTF-8") from None
    try:
        rows = _from_json(text) if path.suffix.lower() in (".json", ".jsonl") else _from_csv(text, wanted)
    except (ValueError, csv.Error, RecursionError) as error:
        raise DataError(f"cannot read {shown}: {reason(error)}") from error
    if not rows:
        raise DataError(f"{shown} holds no rows")
    return rows


def _from_csv(text: str, wanted: str | None) -> list[dict[str, Any]]:
    line = text.partition("\n")[0]
    separator = max(",;\t", key=line.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    rows = [[cell.strip() for cell in row] for row in lines if row]
    if not rows:
        return []
    header = rows[0]
    lowered = [cell.lower() for cell in header]
    if len(header) == 2 and wanted not in header and not {*NAMES, *LABEL_COLUMNS, "split"} & {*lowered}:
        return [{"file_name": row[0], "label": row[1]} for row in rows if len(row) == 2]
    return [dict(zip(header, row, strict=False)) for row in rows[1:]]


def _from_json(text: str) -> list[dict[str, Any]]:
    try:
        value = json.loads(text)
    except ValueError:
        value = [json.loads(line) for line in text.splitlines() if line.strip()]
    if isinstance(value, dict) and isinstance(value.get("labels"), list | dict):
        value = value["labels"]
    if isinstance(value, dict):
        value = list(value.items()) if "file_name" not in value else [value]
    if not isinstance(value, list):
        raise ValueError("expected a list or an object")
    rows = [
        {"file_name": row[0], "label": row[1]} if isinstance(row, list | tuple) and len(row) == 2 else row
        for row in value
    ]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected objects, or pairs of a file name and a class")
    return rows


def _column(
    rows: Sequence[Mapping[str, Any]], wanted: str | None, path: Path, alone: bool = True
) -> str | None:
    """The column of the classes; None = it cannot be told, or none is wanted.

    Args:
        alone: whether the only column besides the names counts as the classes.

    Raises:
        DataError: `wanted` does not exist.
    """
    columns = list(dict.fromkeys(key for row in rows[:1000] for key in row))
    if wanted == "none":
        return None
    if wanted is not None:
        if wanted not in columns:
            raise DataError(f"no column {wanted!r} in {printable(path.name)}: it has {_columns(rows)}")
        return wanted
    named = next((name for name in LABEL_COLUMNS for column in columns if column.lower() == name), None)
    if named is not None:
        return next(column for column in columns if column.lower() == named)
    name = _name_column(columns)
    others = [column for column in columns if column != name and column.lower() != "split"]
    return others[0] if alone and len(others) == 1 else None


def _has_splits(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(_split_of(row) for row in rows)


def _split_of(row: Mapping[str, Any]) -> str | None:
    """The split that a row names in its column `split`, in any case; None = none."""
    return next((str(value) for key, value in row.items() if value and key.lower() == "split"), None)


def _name_column(columns: Sequence[str]) -> str | None:
    lowered = {column.lower(): column for column in reversed(columns)}
    return next((lowered[name] for name in NAMES if name in lowered), columns[0] if columns else None)


def _columns(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(str(key) for row in rows[:1000] for key in row))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"the columns {printable(listed(names[:_SHOWN]))}{more}"


def _spellings(
    names: Sequence[str], files: Sequence[str]
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """The images by all that may stand in a row for their path, and for their file name alone."""
    by_path: dict[str, list[int]] = {}
    by_name: dict[str, list[int]] = {}
    for index, (name, file) in enumerate(zip(names, files, strict=True)):
        paths = {name, file, PurePosixPath(file.removesuffix(".gz")).with_suffix("").as_posix()}
        for key in paths:
            by_path.setdefault(key, []).append(index)
        for key in {PurePosixPath(path).name for path in paths}:
            by_name.setdefault(key, []).append(index)
    return by_path, by_name


def _below(path: PurePosixPath, starts: Sequence[PurePosixPath]) -> str:
    """The path without the first of the starts that it has; "" if it has none."""
    start = next((start for start in starts if path.is_relative_to(start)), None)
    return "" if start is None else path.relative_to(start).as_posix()


def _starts(root: Path) -> list[PurePosixPath]:
    """What paths may begin with that are not relative to the folder: its own path, absolute or as it is written, or its name."""
    ways = (os.path.realpath(root), root.absolute(), root, root.absolute().name)
    return [start for way in ways if (start := PurePosixPath(Path(way).as_posix())).name]


def _said(by_rows: Sequence[_Rows]) -> tuple[dict[int, tuple[Any, str | None]], int, int]:
    """What is said of each image, how many rows are of images that rows with a path name, and how many contradict others.

    Args:
        by_rows: the rows with a path, and those with a file name alone.
    """
    said: dict[int, tuple[Any, str | None]] = {}
    named: set[int] = set()
    passed_over = contradicting = 0
    for several_rows in by_rows:
        for images, several in several_rows.items():
            rest = [index for index in images if index not in named]
            if not rest:
                passed_over += len(several)
            elif any(other != several[0] for other in several):
                contradicting += len(several)
            else:
                said.update(dict.fromkeys(rest, several[0]))
        named = {index for images in several_rows for index in images}
    return said, passed_over, contradicting


def _matched(
    names: Sequence[str],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    column: str | None,
    shown: str,
    root: Path,
) -> FileLabels:
    """The rows of the images. A row names an image, or a file of several, by its path, else by its file name alone; each also without the
    ending. A path is relative to the folder (or to the file of metadata), else absolute or one that begins with the folder's name.

    Rows that say different things of an image tell nothing of it, and a file name alone tells nothing of an image that a path
    names or that shares the name.
    """
    files = [file_of(name) for name in names]
    by_path, by_name = _spellings(names, files)
    # of rows with a path, and of rows with a file name alone
    by_rows: tuple[_Rows, _Rows] = ({}, {})
    unknown = unclear = 0
    starts, astray = _starts(root), ""
    for folder, rows in tables.items():
        for row in rows:
            column_of_names = _name_column(list(row))
            text = str(row.get(column_of_names) if column_of_names else "")
            path = PurePosixPath(text.replace("\\", "/").removeprefix("./"))
            whole = (PurePosixPath(folder) / path).as_posix() if folder else path.as_posix()
            whole = whole if whole in by_path else _below(path, starts)
            found = by_path.get(whole) or by_name.get(path.name) or []
            if len({files[index] for index in found}) != 1:
                unknown, unclear = unknown + (not found), unclear + bool(found)
                astray = astray or (text if found and path.name != str(path) else "")
                continue
            value = row.get(column) if column else None
            here = (None if value == "" else value, _split_of(row))
            by_rows[whole not in by_path].setdefault(tuple(found), []).append(here)
    said, passed_over, contradicting = _said(by_rows)
    unknown, unclear = unknown + passed_over, unclear + contradicting
    if not said and unclear:
        raise LabelsError(
            f"each name in {printable(shown)} fits several images or stands in rows that differ, such as "
            f"{printable(names[0])}: give their paths below {printable(str(root))}"
        )
    if not said:
        raise LabelsError(
            f"{printable(shown)} names none of the {len(names)} images, the first of which is {printable(names[0])}"
        )
    read = "splits" if column is None else "classes"
    notes = [
        f"{read} from the column {column or 'split'!r} of {shown}: {len(said)} of {len(names)} images are in it"
    ]
    if unknown or unclear:
        why = f" (paths are relative to {root}, where {astray!r} is none)" if astray else ""
        notes.append(
            f"warning: {shown} has {unknown} rows without an image and {unclear} that fit several images or contradict others{why}"
        )
    labels, splits = zip(*(said.get(index, (None, None)) for index in range(len(names))), strict=True)
    return FileLabels(as_numbers(labels) if column else None, list(splits) if any(splits) else None, notes)
