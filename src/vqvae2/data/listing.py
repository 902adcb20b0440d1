"""What is known about images before any is decoded: their names, classes and split, and where their bytes are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqvae2.data.errors import DataError
from vqvae2.files.atomic import reason


class Span(NamedTuple):
    """One encoded image inside a file of this machine, such as a tar; whoever decodes it reads it, as with a file of its own.

    Attributes:
        file: the path.
        offset, size: where its bytes are.
    """

    file: str
    offset: int
    size: int


Content = bytes | Path
"""One encoded image (JPEG, PNG, ...): its bytes, or the file that holds it."""
Payload = Content | Span
"""The same, before its bytes are read."""


def contents(payloads: Sequence[Payload | None]) -> list[Content | None]:
    """The payloads with the bytes of spans; of several spans in a row their file is opened once.

    Raises:
        DataError: a file cannot be read.
    """
    found: list[Content | None] = []
    for file, group in itertools.groupby(
        payloads, lambda each: each.file if isinstance(each, Span) else None
    ):
        if file is None:
            found += [each for each in group if not isinstance(each, Span)]
            continue
        try:
            with Path(file).open("rb") as opened:
                for span in group:
                    assert isinstance(span, Span)
                    opened.seek(span.offset)
                    found.append(opened.read(span.size))
        except OSError as error:
            raise DataError(f"cannot read {file}: {reason(error)}") from error
    return found


@dataclass
class Listing:
    """n images with random access.

    Attributes:
        names: one per image, all different.
        payloads: the encoded images at some indices; None where a table's row holds no image.
        classes: class names; () = no labels.
        labels: int64 [n], -1 = unlabelled; None = no labels.
        held: int8 [n], 1 = held out, 0 = training; None = the data names no split.
        revision: the commit that the Hub served; "" for local data.
        skipped: (name, reason) of what is already known to be unusable.
        notes: sentences for the user about what was understood and what looks odd.
    """

    names: list[str]
    payloads: Callable[[Sequence[int]], list[Payload | None]]
    classes: tuple[str, ...] = ()
    labels: NDArray[np.int64] | None = None
    held: NDArray[np.int8] | None = None
    revision: str = ""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def select(self, indices: NDArray[np.int64]) -> Listing:
        """The images at `indices`, in that order."""
        return Listing(
            [self.names[index] for index in indices],
            lambda chosen: self.payloads([int(indices[index]) for index in chosen]),
            self.classes,
            None if self.labels is None else self.labels[indices],
            None if self.held is None else self.held[indices],
            self.revision,
            self.skipped,
            self.notes,
        )


def different(names: Sequence[str]) -> list[str]:
    """The names, each with the number of its row if two are the same."""
    if len(set(names)) == len(names):
        return list(names)
    return [f"{name} (row {number})" for number, name in enumerate(names)]


class Row(NamedTuple):
    """What a table says about one image.

    Attributes:
        name: its name.
        payload: the encoded image; None = the row holds none, or it was not read.
        label: its class as the table writes it, a name or a number.
        held: 1 = held out, 0 = training, None = the data names no split.
    """

    name: str
    payload: Payload | None
    label: Any
    held: int | None


@dataclass
class Stream:
    """Images that can be read only once, in order.

    Attributes:
        rows: one per image.
        finish: turns all rows, once they are read, into a listing (without the encoded images).
        revision: the commit that the Hub served; "" for local data.
    """

    rows: Iterator[Row]
    finish: Callable[[Sequence[Row]], Listing]
    revision: str = ""
