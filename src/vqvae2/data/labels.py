"""Classes and splits, from what folders and tables call them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqvae2.data.errors import DataError

TRAIN = ("train", "training")
HELD = ("validation", "valid", "val", "test", "heldout", "held-out")  # the first that exists is held out


def resolve_labels(
    raw: Sequence[Any], names: Sequence[str] | None
) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """Classes and numbers from what a folder or a column says.

    Args:
        raw: per picture a number, a string, or None.
        names: class names of a numbered column; None = the sorted distinct values are the classes.

    Returns:
        (classes, int64 [n] with -1 = unlabelled), or ((), None) when nothing is labelled.

    Raises:
        DataError: two classes have the same name, or a value is no label.
    """
    if names is not None:
        numbers = np.array([-1 if value is None else int(value) for value in raw], np.int64)
        numbers[(numbers < 0) | (numbers >= len(names))] = -1
        check_classes(names)
        return (tuple(names), numbers) if (numbers >= 0).any() else ((), None)
    known = {value for value in raw if value is not None and value != ""}
    odd = next((value for value in known if not isinstance(value, str | int | np.integer)), None)
    if odd is not None:
        raise DataError(f"expected labels that are names or whole numbers, found {odd!r}")
    if not known:
        return (), None
    order = sorted(known) if all(not isinstance(value, str) for value in known) else sorted(known, key=str)
    if isinstance(order[0], int) and order[0] < 0:
        order = [value for value in order if value >= 0]
    classes = tuple(str(value) for value in order)
    check_classes(classes)
    place = {value: index for index, value in enumerate(order)}
    return classes, np.array([place.get(value, -1) for value in raw], np.int64)


def check_classes(classes: Sequence[str]) -> None:
    """Raise `DataError` when two names differ only in case, spaces at the ends or Unicode form."""
    seen: dict[str, str] = {}
    for name in classes:
        plain = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold().strip())
        if plain in seen:
            raise DataError(
                f"two classes have the same name: {seen[plain]!r} and {name!r}; rename or merge them"
            )
        seen[plain] = name


def split_sides(names: Mapping[str, str], split: str | None, where: str) -> dict[str, int]:
    """The names (lower case -> as written) that are read, each with its side (1 = held out); {} = no split is named.

    Raises:
        DataError: `split` is asked for and not there.
    """
    if split is not None:
        if split.lower() not in names:
            raise DataError(
                f"no split {split!r} in {where!r}" + (f": found {', '.join(sorted(names))}" if names else "")
            )
        return {names[split.lower()]: 0}
    train = next((names[name] for name in TRAIN if name in names), None)
    held = next((names[name] for name in HELD if name in names), None)
    return {train: 0, held: 1} if train and held else {}
