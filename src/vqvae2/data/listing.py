"""What is known of pictures before any is decoded: how many, their names, classes and sides of the split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Payload = bytes | Path
"""One encoded picture: its bytes, or the file that holds it."""


@dataclass(frozen=True)
class Place:
    """Data that was found but not yet read.

    Attributes:
        kind: how it is read.
        identity: sha256 of names, sizes and times (folder) or of the content (files); the id for the Hub.
        files: the files, in order (not for the Hub).
        root: the folder, the pattern or the Hub id, as given.
        skipped: (name, reason) of files that are no pictures.
    """

    kind: Literal["folder", "parquet", "webdataset", "hub"]
    identity: str
    root: str
    files: tuple[Path, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass
class Listing:
    """Pictures with random access.

    Attributes:
        names: one per picture.
        payloads: the encoded pictures at some positions; None where a row holds none.
        classes: class names; () = no labels.
        labels: int64 [n], -1 = unlabelled; None = no labels.
        held: int8 [n], 1 = held out, 0 = train; None = the data names no split.
        revision: what the Hub served; "" for local data.
        skipped: (name, reason) of what is known to be unusable.
    """

    names: list[str]
    payloads: Callable[[Sequence[int]], list[Payload | None]]
    classes: tuple[str, ...] = ()
    labels: NDArray[np.int64] | None = None
    held: NDArray[np.int8] | None = None
    revision: str = ""
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)


class Row(NamedTuple):
    """What a table says about one picture: the label as written there, and the side (1 = held out, None = unnamed)."""

    name: str
    payload: Payload | None
    label: Any
    side: int | None


@dataclass
class Stream:
    """Pictures that can be read only once, in order.

    Attributes:
        rows: one per picture.
        finish: turns all the rows, read, into a listing (without pictures).
        revision: what the Hub served.
    """

    rows: Iterator[Row]
    finish: Callable[[Sequence[Row]], Listing]
    revision: str = ""
