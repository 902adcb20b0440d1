"""Which columns of a table hold the images, their classes, names and split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError
from vqvae2.data.labels import LABEL_COLUMNS, resolve_labels
from vqvae2.data.listing import Listing, Payload, Row, different

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp", "jpeg")
NAME_COLUMNS = ("name", "file_name", "filename", "__key__", "id")

Table = Any
"""A `datasets.Dataset` or `IterableDataset`."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what.

    Attributes:
        image: column of the encoded images.
        label: column of the classes; None = no labels.
        key: key of the class in a column of JSON objects; None = the column holds the class itself.
        classes: class names of a numbered column; None = the distinct values are the classes.
        name: column of the images' names; None = a row's number is used.
        split: column that names each image's split; None = there is none.
    """

    image: str
    label: str | None
    key: str | None
    classes: tuple[str, ...] | None
    name: str | None
    split: str | None

    @classmethod
    def choose(cls, table: Table, data: str, config: DataConfig) -> Columns:
        """Choose the columns by `config.image_column` and `config.label_column`, else by their types and names.

        Raises:
            DataError: no column of images, or a chosen column that does not exist; names the columns that do.
        """
        features = table.features or table._resolve_features().features
        existing = f"{data!r} has the columns {', '.join(features)}"
        for wanted in (config.image_column, config.label_column):
            if wanted is not None and wanted not in features and wanted != "none":
                raise DataError(f"no column {wanted!r}: {existing}")
        typed = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
        named = _named(features, IMAGE_COLUMNS)
        image = config.image_column or next(
            iter([name for name in named if name in typed] + typed + named), None
        )
        if image is None:
            raise DataError(f"no column of images: {existing}; name it with data.image_column")
        label, key = _label_column(features, config, existing)
        classes = getattr(features[label], "names", None) if label and not key else None
        texts = [name for name in _named(features, NAME_COLUMNS) if _kind(features[name]).endswith("string")]
        return cls(
            image=image,
            label=label,
            key=key,
            classes=tuple(classes) if classes else None,
            name=next(iter(texts), None),
            split=next(iter(_named(features, ("split",))), None),
        )

    def texts(self) -> list[str]:
        """The columns besides the image that are read for every row."""
        return [name for name in dict.fromkeys((self.label, self.name)) if name is not None]

    def candidates(self, table: Table) -> list[str]:
        """The other columns of texts or of numbered classes, which could be the classes."""
        used = {self.image, self.label, self.name, self.split}
        kinds = {name: _kind(feature) for name, feature in table.features.items() if name not in used}
        return [name for name, kind in kinds.items() if kind.endswith("string") or kind == "ClassLabel"]

    def row(self, number: int, values: dict[str, Any], held: int | None) -> Row:
        """What row `number` says, including its encoded image where that was read."""
        cell = values.get(self.image) or {}
        name = (values[self.name] if self.name else None) or cell.get("path")
        label = values[self.label] if self.label else None
        label = (label or {}).get(self.key) if self.key else label
        return Row(str(name) if name else f"row {number}", payload_of(cell), label, held)

    def listing(self, rows: Sequence[Row]) -> Listing:
        """A listing of all rows, without encoded images; names that occur twice get the number of their row."""
        names = different([row.name for row in rows])
        classes, labels = (
            resolve_labels([row.label for row in rows], self.classes) if self.label else ((), None)
        )
        held = [row.held for row in rows if row.held is not None]
        return Listing(names, lambda _: [], classes, labels, np.array(held, np.int8) if held else None)


def payload_of(cell: dict[str, Any]) -> Payload | None:
    """The encoded image in a cell of an image column, as `datasets` returns it without decoding."""
    if cell.get("bytes") is not None:
        return bytes(cell["bytes"])
    return Path(cell["path"]) if cell.get("path") else None


def _label_column(
    features: Mapping[str, Any], config: DataConfig, existing: str
) -> tuple[str | None, str | None]:
    """(column of the classes, key inside it when it holds JSON); (None, None) = no labels."""
    if config.label_column == "none":
        return None, None
    label = config.label_column or next(iter(_named(features, LABEL_COLUMNS)), None)
    if label is None and isinstance(features.get("json"), dict):
        key = next(iter(_named(features["json"], LABEL_COLUMNS)), None)
        return ("json", key) if key else (None, None)
    if label is not None and not re.match(
        r"ClassLabel|u?int|float|(large_)?string|bool", _kind(features[label])
    ):
        raise DataError(
            f"column {label!r} holds no names or numbers of classes: {existing}; "
            "name another with data.label_column, or none for no labels"
        )
    return label, None


def _named(features: Iterable[str], names: Sequence[str]) -> list[str]:
    """The columns that have one of these names, in any case: first those with the first name, and of these the one in lower case."""
    return [found for name in names for found in sorted(features, reverse=True) if found.lower() == name]


def _kind(feature: Any) -> str:
    return str(feature.dtype) if type(feature).__name__ == "Value" else type(feature).__name__
