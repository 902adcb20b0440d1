"""What the folders of a data set mean: splits, classes, or neither; from the paths of its images alone.

    paths --wrapping folders--> --split folders--> --class folders--> Layout

The same rules hold for a folder on the disk and for the folders inside a tar.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from vqvae2.data.labels import count_of, find_splits, no_split, some_of
from vqvae2.data.split_names import HELD, TRAIN, UNUSED, choose_pair, first, folder_roles, words_of

_STRAY = (
    0.05  # a smaller share of images beside folders with classes or splits is left out; a larger one is not
)
_PARTS = 20  # folders with evenly spaced numbers of four and more digits; more of them seem parts of one set, as FFHQ's are
_FEW = 3  # folders of which one that is named like a mask is odd
_BESIDE = {  # words in the names of folders of what belongs to images
    *("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "segmentations"),
    *("groundtruth", "gt", "depth", "thumbnails", "thumbs"),
}

Parts = tuple[str, ...]
"""The folders of one image, outermost first, and its file name."""


@dataclass
class Layout:
    """What was understood.

    Attributes:
        keep: indices of the images that are used, in order.
        held: per kept image 1 = held out, 0 = training; None = the folders tell no split.
        classes: per kept image the name of its class; None = no classes.
        skipped: (index, reason) of the images that are not used.
        notes: sentences for the user.
    """

    keep: list[int] = field(default_factory=list)
    held: list[int] | None = None
    classes: list[str] | None = None
    skipped: list[tuple[int, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def understand(
    paths: Sequence[Parts], split: str | None, data: str, classes: bool = True, splits: bool = True
) -> Layout:
    """Find out what the folders mean.

    Args:
        paths: of all images.
        split: the only split to read; None = a training split together with one that is held out.
        data: DATA as the user wrote it, for messages.
        classes: False = the folders below the splits are no classes.
        splits: False = what is held out is said elsewhere; the folders of all splits are stepped into.

    Raises:
        DataError: `split` does not exist.
    """
    layout = Layout(keep=list(range(len(paths))))
    rest = [list(path) for path in paths]  # what is still to be understood
    _unwrap(rest, layout, split)
    _find_splits(rest, layout, split, data, splits)
    if splits and split is None and layout.held is None:
        _find_splits_in_classes(rest, layout)
    if classes:
        _find_classes(rest, layout)
    layout.notes.insert(0, summary(layout))
    return layout


def _groups(rest: list[list[str]], keep: Sequence[int]) -> dict[str, list[int]]:
    """The images by their outermost folder; "" for those that are in none."""
    groups: dict[str, list[int]] = {}
    for index in keep:
        path = rest[index]
        groups.setdefault(path[0] if len(path) > 1 else "", []).append(index)
    return groups


def _unwrap(rest: list[list[str]], layout: Layout, split: str | None) -> None:
    """Step into a folder that holds everything, as unpacked archives have it."""
    while True:
        groups = _groups(rest, layout.keep)
        if len(groups) != 1 or "" in groups:
            return
        (name,) = groups
        if split is not None and split.lower() in (name.lower(), folder_roles([name]).get(name)):
            return
        layout.notes.append(f"all images are in the folder {name!r}, which is not taken for a class")
        for index in layout.keep:
            del rest[index][0]


def _find_splits(
    rest: list[list[str]], layout: Layout, split: str | None, data: str, choose: bool = True
) -> None:
    """Keep the images of the splits, or without `choose` those of all folders like them, and step into these folders."""
    groups = _groups(rest, layout.keep)
    folders = [name for name in groups if name]
    if split is None:
        chosen = _choose(rest, groups, layout)
    else:
        chosen = dict.fromkeys(find_splits(folders, split), 0)
        if not chosen:
            below = sorted({rest[index][1] for index in layout.keep if len(rest[index]) > 2})
            named = find_splits(below, split)
            if not named:
                roles = folder_roles(folders)
                raise no_split(roles or folders, split, data, "found" if roles else "its folders are")
            _keep_below(rest, layout, named)
    if not chosen:
        return
    if not choose:
        chosen |= {name: 0 for name in folders if _nested(rest, groups[name])}
    layout.skipped += [(index, "beside the folders of the splits") for index in groups.get("", ())]
    layout.keep = sorted(index for name in chosen for index in groups[name])
    if 1 in chosen.values():
        splits = {index: held for name, held in chosen.items() for index in groups[name]}
        layout.held = [splits[index] for index in layout.keep]
    for index in layout.keep:
        del rest[index][0]
    _unwrap_each(rest, [groups[name] for name in chosen])


def _find_splits_in_classes(rest: list[list[str]], layout: Layout) -> None:
    """Keep the images of splits that are below each class, as in `bottle/train/1.png` and `bottle/test/2.png`."""
    if any(len(rest[index]) < 3 for index in layout.keep):
        return
    below = {name: {rest[index][1] for index in group} for name, group in _groups(rest, layout.keep).items()}
    pair = choose_pair(folder_roles(sorted(set().union(*below.values()))))
    chosen = {name: [split for split in splits if split in pair] for name, splits in below.items()}
    if len(below) < 2 or any({pair[split] for split in splits} != {0, 1} for splits in chosen.values()):
        return
    unused = [index for index in layout.keep if rest[index][1] not in pair]
    if unused:
        layout.notes.append(
            f"{count_of(len(unused), 'image')} not used, in {some_of(sorted({rest[i][1] for i in unused}))}"
        )
    layout.held = [pair[rest[index][1]] for index in layout.keep if rest[index][1] in pair]
    _keep_below(rest, layout, pair)


def _keep_below(rest: list[list[str]], layout: Layout, splits: Collection[str]) -> None:
    """Keep the images of splits that are below the classes, and step past the folders of the splits."""
    layout.keep = [index for index in layout.keep if len(rest[index]) > 2 and rest[index][1] in splits]
    for index in layout.keep:
        del rest[index][1]


def _choose(rest: list[list[str]], groups: dict[str, list[int]], layout: Layout) -> dict[str, int]:
    """The folders that are splits, with 1 = held out and 0 = training; {} = there are none."""
    folders = [name for name in groups if name]
    roles = folder_roles(folders)
    loose = len(groups.get("", ()))
    nested = {name: _nested(rest, groups[name]) for name in folders}
    trains = [name for name, word in roles.items() if word in TRAIN]
    flat = [name for name in folders if not nested[name]]
    pair = choose_pair(roles, flat if any(nested[name] for name in trains) else ())
    if not pair and trains:
        others = [name for name in folders if name not in trains]
        alone = all(roles.get(name) in UNUSED or name in choose_pair(roles) for name in others)
        if any(nested[name] for name in trains) and (alone or not any(nested[name] for name in others)):
            pair = {name: 0 for name in trains if roles[name] == first(TRAIN, roles.values())}
            without = [name for name in others if name in choose_pair(roles)]
            if without:
                layout.notes.append(
                    f"warning: {without[0]!r} has no folders of classes, so it is not held out"
                )
    if pair and loose:
        layout.notes.append(f"warning: {count_of(loose, 'image')} beside the folders of the splits not used")
    left = sorted(set(folders) - set(pair)) if pair else []
    if left:
        count = sum(len(groups[name]) for name in left)
        layout.notes.append(f"{count_of(count, 'image')} not used, in {some_of(left)}")
    return pair


def _nested(rest: list[list[str]], group: Sequence[int]) -> bool:
    """Whether images of a folder are in folders inside it."""
    return any(len(rest[index]) > 2 for index in group)


def _unwrap_each(rest: list[list[str]], splits: list[list[int]]) -> None:
    """Step into a folder that holds a whole split, if that is so in every split and classes may be below it."""
    while True:
        tops = [{rest[index][0] if len(rest[index]) > 2 else "" for index in split} for split in splits]
        if any(len(top) != 1 or "" in top for top in tops):
            return
        for split in splits:
            for index in split:
                del rest[index][0]


def _find_classes(rest: list[list[str]], layout: Layout) -> None:
    groups = _groups(rest, layout.keep)
    loose = groups.pop("", [])
    if not groups:
        return
    if loose and (len(groups) < 2 or len(loose) > _STRAY * len(layout.keep)):
        layout.notes.append(
            f"warning: {count_of(len(loose), 'image')} of {len(layout.keep)} in no folder, so the folders "
            f"{some_of(sorted(groups))} are not taken for classes"
        )
        return
    if loose:
        layout.notes.append(
            f"warning: {count_of(len(loose), 'image')} beside the folders of the classes not used"
        )
        layout.skipped += [(index, "beside the folders of the classes") for index in loose]
        drop = set(loose)
        if layout.held is not None:
            pairs = zip(layout.keep, layout.held, strict=True)
            layout.held = [held for index, held in pairs if index not in drop]
        layout.keep = [index for index in layout.keep if index not in drop]
    if len(groups) == 1:
        layout.notes.append(
            f"all images are in the folder {next(iter(groups))!r}, which is not taken for a class"
        )
        return
    named = len({re.sub("=.*", "=", name) for name in groups}) == 1  # label=cat, label=dog
    layout.classes = [rest[index][0].split("=", 1)[-1] if named else rest[index][0] for index in layout.keep]
    _warn_of_odd_classes(layout)


def _warn_of_odd_classes(layout: Layout) -> None:
    assert layout.classes is not None
    counts = Counter(layout.classes)
    if len(counts) > len(layout.classes) / 2:
        layout.notes.append(
            f"warning: {len(counts)} folders for {len(layout.classes)} images are taken for classes; "
            "data.label_column=none ignores them"
        )
    if _numbered_parts(counts):
        layout.notes.append(
            f"warning: the folders {some_of(sorted(counts))} are taken for classes, though their names are evenly spaced numbers: "
            "if they only divide the images into parts, as FFHQ's do, set data.label_column=none"
        )
    words = {name: {*words_of(name)} for name in counts}
    in_train, in_held = ([name for name in words if words[name] & {*known}] for known in (TRAIN, HELD))
    if in_train and in_held:
        layout.notes.append(
            f"warning: folders such as {in_train[0]} and {in_held[0]} are taken for classes, though their names have words "
            "for splits: put them below folders named train and test if they are"
        )
    if odd := [name for name in words if words[name] & _BESIDE] if len(counts) <= _FEW else []:
        layout.notes.append(
            f"warning: the folder {odd[0]} is taken for a class; if its images belong to those of another folder, name that "
            "folder as DATA"
        )
    if len(counts) <= _FEW and len(in_train) > 1:
        layout.notes.append(
            f"warning: the folders {some_of(in_train)} are taken for classes, though their names have a word for a split: name "
            "one of them as DATA if it is the data"
        )
    if layout.held is None:
        return
    sides: list[set[str]] = [set(), set()]
    for name, held in zip(layout.classes, layout.held, strict=True):
        sides[held].add(name)
    for here, there, where in ((0, 1, "training"), (1, 0, "held-out")):
        if only := sorted(sides[here] - sides[there]):
            layout.notes.append(f"warning: only the {where} split has {some_of(only)}")


def _numbered_parts(names: Collection[str]) -> bool:
    """Whether many folders have evenly spaced numbers of at least four digits as names: 00000, 01000, 02000, ..."""
    if len(names) <= _PARTS or not all(re.fullmatch(r"[0-9]{4,}", name) for name in names):
        return False
    numbers = sorted(map(int, names))
    return len({b - a for a, b in itertools.pairwise(numbers)}) == 1


def summary(layout: Layout) -> str:
    """What was understood in one line: the classes, the split and the counts."""
    parts = [count_of(len(layout.keep), "image")]
    if layout.classes is None:
        parts.append("no classes")
    else:
        counts = Counter(layout.classes)
        low, high = min(counts.values()), max(counts.values())
        each = f"{low}" if low == high else f"{low} to {high}"
        parts.append(f"{len(counts)} classes ({some_of(sorted(counts))}; {each} images each)")
    if layout.held is None:
        parts.append("no split")
    else:
        parts.append(f"split of the data: {layout.held.count(0)} to train, {layout.held.count(1)} held out")
    return "understood as " + ", ".join(parts)
