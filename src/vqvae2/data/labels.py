"""Classes and splits, from the names that folders and tables use for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqvae2.data.errors import DataError
from vqvae2.data.split_names import choose_pair, folder_roles
from vqvae2.errors import listed, printable
from vqvae2.files.names import as_one_name

LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label")
"""Names of columns that hold classes; the first that exists is taken."""

_SHOWN = 5  # names in a line


def resolve_labels(
    raw: Sequence[Any], names: Sequence[str] | None
) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """Class names and integer labels from the values in a column or the names of folders.

    Args:
        raw: per image a whole number, also as a float, a string, or None or NaN (unlabelled).
        names: class names of a numbered column; None = the sorted distinct values are the classes.

    Returns:
        (classes, int64 [n] with -1 = unlabelled), or ((), None) when no image is labelled.

    Raises:
        DataError: two classes have the same name, or a value is neither text nor a whole number.
    """
    raw = [_whole(value) for value in raw]
    if names is not None:
        numbers = np.array([-1 if value is None else int(value) for value in raw], np.int64)
        numbers[(numbers < 0) | (numbers >= len(names))] = -1
        check_classes(names)
        return (tuple(names), numbers) if (numbers >= 0).any() else ((), None)
    odd = next((value for value in raw if not isinstance(value, str | int | np.integer | None)), None)
    if odd is not None:
        raise DataError(f"expected labels that are names or whole numbers, found {repr(odd)[:80]}")
    known = {value for value in raw if value is not None and value != ""}
    if not known:
        return (), None
    order = sorted(known) if all(not isinstance(value, str) for value in known) else sorted(known, key=str)
    if isinstance(order[0], int) and order[0] < 0:
        order = [value for value in order if value >= 0]
    classes = tuple(str(value) for value in order)
    check_classes(classes)
    numbers_of = {value: index for index, value in enumerate(order)}
    return classes, np.array([numbers_of.get(value, -1) for value in raw], np.int64)


def _whole(value: Any) -> Any:
    """A whole number that is stored as a float, which programs make of whole numbers with gaps, as an integer; NaN, which they fill
    the gaps with, as None."""
    if not isinstance(value, float | np.floating):
        return value
    if np.isnan(value):
        return None
    return int(value) if float(value).is_integer() else value


def as_numbers(labels: Sequence[Any]) -> list[Any]:
    """Texts that are all whole numbers, as numbers, so that class 10 comes after class 9."""
    texts = [label for label in labels if label is not None]
    if all(isinstance(text, str) and re.fullmatch(r"-?\d{1,18}", text) for text in texts):
        return [None if label is None else int(label) for label in labels]
    return list(labels)


def plain_name(name: str) -> str:
    """The name of a class without what two of them may not differ in alone: case, spaces at the ends and Unicode form."""
    return as_one_name(name).strip()


def check_classes(classes: Sequence[str]) -> None:
    """Raise `DataError` when two names differ only in case, spaces at the ends or Unicode form."""
    seen: dict[str, str] = {}
    for name in classes:
        plain = plain_name(name)
        if plain in seen:
            raise DataError(
                f"two classes have the same name: {seen[plain]!r} and {name!r}; rename or merge them"
            )
        seen[plain] = name


def assign_splits(names: Mapping[str, str], split: str | None, data: str) -> dict[str, int]:
    """Which of the data's splits are read, each with 1 = held out or 0 = training.

    Args:
        names: what may be the name of a split, to the same name as the data writes it.
        split: the one split to read; None = a training split together with one that is held out.
        data: DATA as the user wrote it, for messages.

    Returns:
        Names as the data writes them, all that mean these splits, such as `train2014` and `train2017`; {} = the data has
        no pair of a training and a held-out split.

    Raises:
        DataError: `split` does not exist.
    """
    if split is None:
        return {names[name]: held for name, held in choose_pair(folder_roles(list(names))).items()}
    found = find_splits(list(names), split)
    if not found:
        raise no_split(names, split, data)
    return {names[name]: 0 for name in found}


def find_splits(names: Sequence[str], split: str) -> list[str]:
    """The names that mean the split that the user asked for: that very name in any case, or those that stand for it."""
    same = [name for name in names if name.lower() == split.lower()]
    return same or [name for name, word in folder_roles(list(names)).items() if word == split.lower()]


def no_split(names: Iterable[str], split: str, data: str, what: str = "found") -> DataError:
    """The error that none of the names means the split that the user asked for; `what` says what they are."""
    found = some_of(sorted(names))
    return DataError(f"no split {split!r} in {data!r}{f': {what} {printable(found)}' if found else ''}")


def held_of(values: Sequence[str | None], split: str | None, data: str) -> tuple[list[int | None], list[str]]:
    """The split of each image, from the names in a column.

    Args:
        values: per image the name of its split; None = none.
        split, data: see `assign_splits`.

    Returns:
        Per image 1 = held out, 0 = training, None = not used; all 0 means that the names tell no split. And notes for
        the user.

    Raises:
        DataError: `split` does not exist.
    """
    names = sorted({value for value in values if value})
    chosen = assign_splits(dict(zip(names, names, strict=True)), split, data)
    if not chosen:
        return [0] * len(values), []
    held = [chosen.get(value) if value else None for value in values]
    left = {value or "no split" for value, own in zip(values, held, strict=True) if own is None}
    if not left or split is not None:
        return held, []
    return held, [f"{count_of(held.count(None), 'image')} not used, in {some_of(sorted(left))}"]


def count_of(number: int, noun: str) -> str:
    """A number of things in words: `1 image`, `2 images`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def some_of(names: Sequence[str]) -> str:
    """The first of several names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return listed(names[:_SHOWN]) + more
