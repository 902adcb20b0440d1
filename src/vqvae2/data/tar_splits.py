"""Which of several tars are read, and which of them are held out, by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from vqvae2.data.split_names import file_splits, words_of


@dataclass(frozen=True)
class Chosen:
    """Which of several tars are read, by their names.

    Attributes:
        numbers: of those that are read.
        held: of each of these 1 = held out, 0 = training; all 0 means that the names tell no split.
        split: the split to look for among the folders in the tars.
        notes: sentences for the user.
    """

    numbers: list[int]
    held: list[int]
    split: str | None
    notes: list[str]

    @classmethod
    def of(cls, names: Sequence[str], split: str | None) -> Self:
        """Choose by words for splits in the names (see `file_splits`), or by that of the one split to read."""
        splits: list[int | None] = [0] * len(names)
        notes: list[str] = []
        if split is None:
            splits, notes = file_splits(names)
        elif any(named := [split.lower() in words_of(name) for name in names]):
            splits, split = [0 if meant else None for meant in named], None
        numbers = [number for number, held in enumerate(splits) if held is not None]
        return cls(numbers, [splits[number] or 0 for number in numbers], split, notes)
