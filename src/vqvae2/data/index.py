"""What is known about the images of a data set besides their pixels: `index.json` beside the decoded images."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError, LabelsError, reading_failed
from vqvae2.data.identity import sampled_digest
from vqvae2.data.listing import Listing, Row, Stream
from vqvae2.data.skipped import SkippedFile, listed_line
from vqvae2.errors import printable
from vqvae2.files import atomic
from vqvae2.files.records import Record

_PIXEL_OPTIONS = (
    *("size", "scale", "channels", "background", "crop", "max_pixels"),
    *("limit", "split", "image_column", "label_column"),
)
# These count where they are changed, so that older keys stay valid.
_LATER_OPTIONS = ("max_memory", "image_root", "fit", "range")


_LIMIT = 2**29  # bytes of an index, at most: the names of some million images


class _IndexRecord(Record):
    """The fields of `ImageIndex` as JSON has them."""

    key: str
    fingerprint: str
    names: list[str]
    classes: list[str]
    labels: list[int] | None
    held: list[int] | None
    skipped: list[Annotated[list[str], Field(min_length=2, max_length=2)]]
    pixels: Annotated[str, Field(pattern=r"^(pixels-[0-9a-f]{16}\.npy)?$")]


@dataclass
class ImageIndex:
    """The content of `index.json`.

    Attributes:
        key: sha256 of the data source's identity and of the options that change pixels (`index_key`).
        fingerprint: sha256 of the key without `image_root` and of the revision that the Hub served; 64 hexadecimal digits.
        names: of the usable images, n of them.
        classes: class names; () = no labels.
        labels: [n], -1 = unlabelled; None = no labels.
        held: [n], 1 = held out, 0 = training; None = the data names no split.
        skipped: (name, reason) of the images that are not used.
        pixels: name of the file with the decoded images; "" = they are not kept.
    """

    key: str
    fingerprint: str
    names: list[str] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    labels: list[int] | None = None
    held: list[int] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    pixels: str = ""

    @classmethod
    def new(cls, identity: str, config: DataConfig, seed: int, revision: str) -> ImageIndex:
        """The index of images that are not listed yet; the place of `image_root` is no part of their fingerprint."""
        known = index_key(identity, config.model_copy(update={"image_root": None}), seed)
        fingerprint = hashlib.sha256(f"{known} {revision}".encode()).hexdigest()
        return cls(index_key(identity, config, seed), fingerprint)

    @classmethod
    def load(cls, path: Path) -> ImageIndex:
        """The index in a file.

        Raises:
            FileError: the file is missing or damaged, or names a file outside of its folder.
        """
        record = _IndexRecord.of(atomic.read_json(path, _LIMIT), path)
        n, classes = len(record.names), len(record.classes)
        for column in (record.labels, record.held):
            if column is not None and len(column) != n:
                raise atomic.FileError(
                    f"{path} is damaged: expected {n} labels and splits, found {len(column)}"
                )
        if record.labels is not None and not all(-1 <= label < classes for label in record.labels):
            raise atomic.FileError(f"{path} is damaged: a label is no class")
        if record.held is not None and not all(held in (0, 1) for held in record.held):
            raise atomic.FileError(f"{path} is damaged: a split is neither 0 nor 1")
        skipped = [(name, reason) for name, reason in record.skipped]
        return cls(
            **{**dict(record), "classes": tuple(record.classes), "skipped": skipped},
        )

    def save(self, path: Path) -> None:
        """Write the index, atomically."""
        atomic.write_text(path, json.dumps(asdict(self)))

    def fill(
        self,
        listed: Listing | Stream,
        rows: Sequence[Row],
        outcome: Sequence[str | None],
        skipped: SkippedFile,
    ) -> None:
        """Take over names, labels and split of the usable images, and write the others to `skipped`.

        Args:
            listed: the images.
            rows: what a stream said about each image; not used with a `Listing`.
            outcome: per image None, or the reason why it cannot be used.
            skipped: the file that lists the images that are not used.

        Raises:
            DataError: no image is usable.
        """
        if isinstance(listed, Stream):
            listed = listed.finish(rows)
        good = np.array([reason is None for reason in outcome], bool)
        self.names = list(itertools.compress(listed.names, good))
        self.classes = listed.classes
        self.labels = None if listed.labels is None else listed.labels[good].tolist()
        self.held = None if listed.held is None else listed.held[good].tolist()
        broken = [(name, why) for name, why in zip(listed.names, outcome, strict=True) if why is not None]
        self.skipped = [*listed.skipped, *broken]
        self.skipped += [
            (name, "it has no label")
            for name, label in zip(self.names, self.labels or (), strict=False)
            if label < 0
        ]
        skipped.write(self.skipped)
        if not good.any():
            first = f", the first because: {listed_line(*self.skipped[0], ': ')}" if self.skipped else ""
            raise DataError(f"no usable image: {len(self.skipped)} were skipped{first}")


def index_key(identity: str, config: DataConfig, seed: int) -> str:
    """sha256 of the data source's identity and of every option that changes which pixels are kept."""
    chosen: dict[str, Any] = {name: getattr(config, name) for name in _PIXEL_OPTIONS}
    defaults = DataConfig()
    later = {name: getattr(config, name) for name in _LATER_OPTIONS}
    chosen |= {name: value for name, value in later.items() if value != getattr(defaults, name)}
    if config.labels is not None:
        chosen["labels"] = _digest(Path(config.labels))
    if config.limit and config.streaming:  # then the first images are taken
        chosen["streaming"] = True
    chosen |= {"seed": seed if config.limit else 0, "format": 1}
    return hashlib.sha256((identity + json.dumps(chosen)).encode()).hexdigest()


def _digest(labels: Path) -> str:
    """sha256 of a file of labels; where it is does not matter."""
    try:
        return sampled_digest(labels).hex()
    except OSError as error:
        raise LabelsError(f"cannot read {printable(str(labels))}: {reading_failed(error)}") from error
