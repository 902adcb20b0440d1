"""Names of files that results get, such that none of them is another one's."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path


def as_one_name(name: str) -> str:
    """What is equal for names that some file systems take for one: whatever their case, and however their accents are spelled."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def names_in(folder: Path, files: Iterable[Path]) -> set[str]:
    """The names, as `as_one_name` spells them, of those files that are in the folder."""
    return {as_one_name(file.name) for file in files if file.resolve().parent == folder.resolve()}


def free_name(stem: str, endings: Sequence[str], taken: set[str]) -> str:
    """`stem`, or `stem` with a number, such that no file STEM + ENDING is in `taken` (see `as_one_name`); all of them are added."""
    for name in itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2))):
        files = {as_one_name(f"{name}{ending}") for ending in endings}
        if not files & taken:
            taken |= files
            return name
    raise AssertionError("the numbers never end")
