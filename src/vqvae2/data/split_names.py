"""Words for splits in the names of folders, files and tables: `train`, `training_set`, `val2017`, `seg_test`, ...

A name says which split it is when, without filling words such as `set` or `images`, it consists of one word for a split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

TRAIN = ("train", "training", "trainset", "trainval")
# The first of these that exists is held out.
HELD = (
    *("validation", "valid", "val", "dev", "test", "testing", "testset"),
    *("heldout", "holdout", "eval", "evaluation"),
)
UNUSED = ("unlabeled", "unlabelled", "unsup", "pred", "predict", "prediction", "extra")

_FILLING = {
    *("set", "sets", "split", "image", "images", "img", "imgs", "data", "dataset", "folder"),
    *("photos", "pictures", "files", "shard", "shards", "part", "of"),
}


def words_of(name: str) -> list[str]:
    """The words of a name in lower case; `trainSet`, `train_set` and `train2017` have the word `train`."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.findall(r"[a-z]+", re.sub(r"held[-_ ]?out", "heldout", apart.lower()))


def split_words(names: Sequence[str]) -> list[list[str]]:
    """Per name its words without filling words and, of several names, without the words that all of them share."""
    words = [[word for word in words_of(name) if word not in _FILLING] for name in names]
    if len(set(names)) > 1:
        shared = set.intersection(*(set(inside) for inside in words))
        words = [[word for word in inside if word not in shared] for inside in words]
    return words


def folder_roles(names: Sequence[str]) -> dict[str, str]:
    """Per name of a folder the word for its split; names that are none are left out."""
    known = {*TRAIN, *HELD, *UNUSED}
    pairs = zip(names, split_words(names), strict=True)
    return {name: words[0] for name, words in pairs if len(words) == 1 and words[0] in known}


def first(words: Sequence[str], present: Iterable[str]) -> str | None:
    """The first of the words that is present."""
    there = set(present)
    return next((word for word in words if word in there), None)


def choose_pair(roles: Mapping[str, str], without: Iterable[str] = ()) -> dict[str, int]:
    """From names with their words: the training split (0) and the held-out split (1); {} without a pair.

    Args:
        roles: as `folder_roles` returns them.
        without: names that may not be held out.
    """
    train = first(TRAIN, roles.values())
    held = first(HELD, (word for name, word in roles.items() if name not in set(without)))
    if train is None or held is None:
        return {}
    chosen = {name: 0 for name, word in roles.items() if word == train}
    return chosen | {name: 1 for name, word in roles.items() if word == held and name not in set(without)}


def file_splits(names: Sequence[str]) -> tuple[list[int | None], list[str]]:
    """The split of each of several files, from the words in their paths.

    A file whose name has words for both splits, such as `train_val-000.tar`, is a training file where other files
    are held out, and says nothing otherwise.

    Returns:
        Per file 0 = training, 1 = held out, None = it is not used; all 0 and no held-out file means that the
        names tell no split. And notes for the user.
    """
    words = [set(inside) for inside in split_words(list(names))]
    train = [not {*TRAIN}.isdisjoint(inside) for inside in words]
    held = [first(HELD, inside) for inside in words]
    only_held = [word for word, trains in zip(held, train, strict=True) if word and not trains]
    kind = first(HELD, only_held)
    if kind is None or not any(train):
        mixed = [name for name, trains, word in zip(names, train, held, strict=True) if trains and word]
        notes = [f"{mixed[0]}: its name holds words for both splits, so it tells none"] if mixed else []
        return [0] * len(names), notes
    pure = any(trains and not word for trains, word in zip(train, held, strict=True))
    chosen: list[int | None] = []
    for trains, word in zip(train, held, strict=True):
        if trains:
            chosen.append(0 if not (pure and word) else None)
        else:
            chosen.append(1 if word == kind else None)
    left = [name for name, split in zip(names, chosen, strict=True) if split is None]
    return chosen, [f"{len(left)} files are in neither split and not used, such as {left[0]}"] if left else []
