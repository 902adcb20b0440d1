"""Pictures in tables: parquet files, WebDataset shards and data sets of the Hub, read by `datasets`.

    Place --open--> tables, each with its side --choose columns--> Listing (or Stream, where the Hub streams)

`datasets` is imported when needed; it leaves the pictures encoded.
"""

from __future__ import annotations

import functools
import glob
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError
from vqvae2.data.labels import TRAIN, resolve_labels, split_sides
from vqvae2.data.listing import Listing, Payload, Place, Row, Stream

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp", "jpeg")
LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label")
NAME_COLUMNS = ("name", "file_name", "filename", "__key__", "id")

Table = Any
"""A `datasets.Dataset` or `IterableDataset`."""


@dataclass
class _Tables:
    """What was opened: tables, each with its side (1 = held out, None = unnamed)."""

    tables: list[tuple[Table, int | None]]
    revision: str = ""
    split: str | None = None  # still to be found in a column


def list_table(place: Place, config: DataConfig, folder: Path) -> Listing | Stream:
    try:
        import datasets

        bars = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            opened = (
                _open_hub(place.root, config) if place.kind == "hub" else _open_files(place, config, folder)
            )
            columns = _Columns.find(opened.tables[0][0], place.root, config)
            if place.kind == "hub" and config.streaming:
                return Stream(_stream(opened, columns, config), columns.finish, opened.revision)
            return _random_access(opened, columns, place)
        finally:
            if bars:
                datasets.enable_progress_bars()
    except DataError:
        raise
    except Exception as error:  # whatever its many layers raise becomes one clear line
        raise DataError(f"cannot read {place.root!r}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error  # `datasets` wraps what happened in a general error
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0].strip()}" if lines else type(cause).__name__


def _open_files(place: Place, config: DataConfig, folder: Path) -> _Tables:
    """Local files; `train` and `test` (or its like) in the names of the files are a split."""
    import datasets

    root = Path(place.root)
    inner = [file.relative_to(root) if root.is_dir() else Path(file.name) for file in place.files]
    words = [re.findall(r"[a-z]+", name.as_posix().lower()) for name in inner]
    known = {word: word for inside in words for word in inside}
    here = config.split is not None and config.split.lower() in known
    sides = split_sides(known, config.split if here else None, place.root)
    groups: dict[int | None, list[str]] = {}
    for file, inside in zip(place.files, words, strict=True):
        side = next((sides[word] for word in inside if word in sides), None)
        if side is not None or not sides:
            groups.setdefault(None if here else side, []).append(glob.escape(str(file.absolute())))
    load = functools.partial(datasets.load_dataset, place.kind, split="train", cache_dir=str(folder))
    tables = [(load(data_files={"train": names}), side) for side, names in groups.items()]
    return _Tables(tables, split=None if here else config.split)


def _open_hub(name: str, config: DataConfig) -> _Tables:
    import datasets
    from huggingface_hub import HfApi, constants

    revision = ""
    if not constants.HF_HUB_OFFLINE:
        try:  # one quick question instead of half a minute of retries
            revision = HfApi().dataset_info(name, timeout=10).sha or ""
        except Exception as error:
            raise DataError(
                f"no folder or file {name!r}, and the Hub data set of this name cannot be reached "
                f"({_first_line(error)}); HF_HUB_OFFLINE=1 uses a copy downloaded before"
            ) from error
    found = datasets.load_dataset(name, split=config.split, streaming=config.streaming)
    if config.split:
        return _Tables([(found, None)], revision)
    sides: dict[str, int | None] = {**split_sides({split.lower(): split for split in found}, None, name)}
    if not sides:
        only = [split for split in found if split.lower() in TRAIN] or list(found)
        if len(only) != 1:
            raise DataError(f"{name!r} has the splits {', '.join(only)}: choose one with data.split")
        sides = {only[0]: None}
    return _Tables([(found[split], side) for split, side in sides.items()], revision)


@dataclass(frozen=True)
class _Columns:
    """Which columns of a table hold what."""

    image: str
    label: str | None
    key: str | None  # of the label inside a json column
    classes: tuple[str, ...] | None
    name: str | None
    split: str | None

    @classmethod
    def find(cls, table: Table, root: str, config: DataConfig) -> _Columns:
        """Choose by the options, else by type and name.

        Raises:
            DataError: no pictures, or a chosen column that does not exist; names the columns that do.
        """
        features = table.features or table._resolve_features().features
        here = f"{root!r} has the columns {', '.join(features)}"
        for wanted in (config.image_column, config.label_column):
            if wanted is not None and wanted not in features and wanted != "none":
                raise DataError(f"no column {wanted!r}: {here}")
        typed = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
        named = [name for name in IMAGE_COLUMNS if name in features]
        image = config.image_column or next(
            iter([name for name in named if name in typed] + typed + named), None
        )
        if image is None:
            raise DataError(f"no column of pictures found: {here}; name it with data.image_column")
        label, key = _label_column(features, config, here)
        classes = getattr(features[label], "names", None) if label and not key else None
        texts = [
            name for name in NAME_COLUMNS if name in features and _kind(features[name]).endswith("string")
        ]
        return cls(
            image=image,
            label=label,
            key=key,
            classes=tuple(classes) if classes else None,
            name=next(iter(texts), None),
            split="split" if "split" in features else None,
        )

    def small(self) -> list[str]:
        """The columns beside the picture that are read."""
        return [name for name in dict.fromkeys((self.label, self.name)) if name is not None]

    def row(self, number: int, values: dict[str, Any], side: int | None) -> Row:
        """What a row says; with its picture, where that was read."""
        picture = values.get(self.image) or {}
        name = (values[self.name] if self.name else None) or picture.get("path")
        label = values[self.label] if self.label else None
        label = (label or {}).get(self.key) if self.key else label
        return Row(str(name) if name else f"row {number}", _payload(picture), label, side)

    def finish(self, rows: Sequence[Row]) -> Listing:
        """A listing, without pictures, of all the rows."""
        names = [row.name for row in rows]
        if len(set(names)) < len(names):
            names = [f"{name} (row {number})" for number, name in enumerate(names)]
        classes, labels = (
            resolve_labels([row.label for row in rows], self.classes) if self.label else ((), None)
        )
        sides = [row.side for row in rows if row.side is not None]
        return Listing(names, lambda _: [], classes, labels, np.array(sides, np.int8) if sides else None)


def _payload(picture: dict[str, Any]) -> Payload | None:
    """Of a cell of an image column, as `datasets` gives it undecoded."""
    if picture.get("bytes") is not None:
        return bytes(picture["bytes"])
    return Path(picture["path"]) if picture.get("path") else None


def _label_column(
    features: Mapping[str, Any], config: DataConfig, here: str
) -> tuple[str | None, str | None]:
    """(column, key inside it when it holds json) of the classes; (None, None) = no labels."""
    if config.label_column == "none":
        return None, None
    label = config.label_column or next((name for name in LABEL_COLUMNS if name in features), None)
    if label is None and isinstance(features.get("json"), dict):
        key = next((name for name in LABEL_COLUMNS if name in features["json"]), None)
        return ("json", key) if key else (None, None)
    if label is not None and not re.match(r"ClassLabel|u?int|(large_)?string|bool", _kind(features[label])):
        raise DataError(
            f"column {label!r} holds no names or numbers of classes: {here}; name it with data.label_column, or none"
        )
    return label, None


def _kind(feature: Any) -> str:
    return str(feature.dtype) if type(feature).__name__ == "Value" else type(feature).__name__


def _random_access(opened: _Tables, columns: _Columns, place: Place) -> Listing:
    import datasets

    whole = datasets.concatenate_datasets(
        [_cut(table, columns, *([columns.split] if columns.split else [])) for table, _ in opened.tables]
    )
    sides = [side for table, side in opened.tables for _ in range(len(table))]
    keep = list(range(len(whole)))
    if opened.split or (columns.split and sides.count(None)):
        values = _split_values(whole, columns.split)
        named = split_sides({value.lower(): value for value in set(values)}, opened.split, place.root)
        if named:
            keep = [number for number in keep if values[number] in named]
            sides = [None if opened.split else named.get(value) for value in values]
    texts = {name: whole[name][:] for name in columns.small()}
    paths = [
        path for chunk in whole.data.column(columns.image).chunks for path in chunk.field("path").to_pylist()
    ]
    rows = []
    for number in keep:
        cells = {name: texts[name][number] for name in texts}
        rows.append(columns.row(number, {**cells, columns.image: {"path": paths[number]}}, sides[number]))
    listing = columns.finish(rows)
    listing.payloads = lambda indices: [
        _payload(cell or {}) for cell in whole[[keep[index] for index in indices]][columns.image]
    ]
    listing.revision, listing.skipped = opened.revision, list(place.skipped)
    return listing


def _cut(table: Table, columns: _Columns, *more: str) -> Table:
    """Only what is read, with pictures left encoded."""
    import datasets

    return table.select_columns([columns.image, *columns.small(), *more]).cast_column(
        columns.image, datasets.Image(decode=False)
    )


def _split_values(table: Table, column: str | None) -> list[str]:
    if column is None:
        return []
    values, names = table[column][:], getattr(table.features[column], "names", None)
    return [str(names[value] if names and value is not None else value) for value in values]


def _stream(opened: _Tables, columns: _Columns, config: DataConfig) -> Iterator[Row]:
    number = 0
    for table, side in opened.tables:
        try:
            for values in itertools.islice(_cut(table, columns), _share(config, side)):
                yield columns.row(number, values, side)
                number += 1
        except Exception as error:
            raise DataError(f"the stream broke after {number} pictures: {_first_line(error)}") from error


def _share(config: DataConfig, side: int | None) -> int | None:
    """How many rows of a stream are read: of one side of a named split, or in all."""
    if config.limit is None or side is None:
        return config.limit
    held = max(1, round(config.limit * config.holdout))
    return held if side else max(1, config.limit - held)
