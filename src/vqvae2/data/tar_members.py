"""The members of tars with images, such as WebDataset shards: which belong together, and what their classes are.

The tars may be on this machine (`tar_files`) or anywhere (`shards`); the rules are the same. A member `a/0001.jpg` is an
image; `a/0001.cls`, `.json` and `.txt` beside it tell its class. Without any of these, folders inside the tar are understood as
folders on the disk are (`folder_layout`).
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, Self

import numpy as np

from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError
from vqvae2.data.folder_layout import summary, understand
from vqvae2.data.formats import IMAGE_SUFFIXES, is_image, unread
from vqvae2.data.labels import LABEL_COLUMNS, as_numbers, resolve_labels
from vqvae2.data.listing import Listing, Payload, different
from vqvae2.data.tar_splits import Chosen
from vqvae2.errors import printable
from vqvae2.files import atomic

_BESIDE = ("cls", "json", "txt")  # endings of members that may tell a class; the first that does counts
_LARGEST_LABEL = 1 << 20  # bytes of such a member
_TWICE = "another image of the same name comes before it"
_HEAD = 512
_READERS = 16  # tars whose headers are read at a time
_INDEX = 2**32  # bytes of an index, at most; a million images take about 100 MB
_BEHIND = (
    2**17
)  # bytes behind the end of a tar in which another one would begin; programs fill 10 KB, seldom more


class Member(NamedTuple):
    """One file inside a tar.

    Attributes:
        shard: number of the tar.
        name: its path inside the tar.
        offset, size: where its bytes are, in bytes.
    """

    shard: int
    name: str
    offset: int
    size: int


class Tars(Protocol):
    """Tars, wherever they are, by number."""

    @property
    def names(self) -> Sequence[str]:
        """Below the place where they were found."""

    def place(self, number: int) -> str:
        """The whole name of a tar, for messages."""

    def size(self, number: int) -> int:
        """Bytes of a tar."""

    def open(self, number: int) -> IO[bytes]:
        """A tar, with random access."""

    def read(self, members: Sequence[Member]) -> list[Payload | None]:
        """The members, in order: their bytes, or where these are."""


@dataclass
class Members:
    """What tars hold.

    Attributes:
        images: the members that are images.
        labels: (shard, path without ending) to the place in `_BESIDE` of what tells its class, and the class.
        columns: names by which a class could be asked for.
        skipped: (name, reason) of the other members.
    """

    images: list[Member] = field(default_factory=list)
    labels: dict[tuple[int, str], tuple[int, Any]] = field(default_factory=dict)
    columns: set[str] = field(default_factory=set)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For a JSON file."""
        labels = [[*place, *found] for place, found in self.labels.items()]
        return {**vars(self), "labels": labels, "columns": sorted(self.columns)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """What `to_json` returned."""
        return cls(
            [Member(*item) for item in value["images"]],
            {(shard, key): (rank, label) for shard, key, rank, label in value["labels"]},
            {*value["columns"]},
            [(name, reason) for name, reason in value["skipped"]],
        )

    def add(self, other: Members) -> None:
        """Take in the members of further tars."""
        self.images += other.images
        self.labels |= other.labels
        self.columns |= other.columns
        self.skipped += other.skipped


def list_members(data: str, tars: Tars, members: Members, chosen: Chosen, config: DataConfig) -> Listing:
    """The images among the members of tars.

    Raises:
        DataError: there are none, or a chosen column or split does not exist.
    """
    if not members.images:
        skipped = members.skipped
        first = f" (the first, {skipped[0][0]}: {skipped[0][1]})" if skipped else ""
        raise DataError(f"no images in {data!r}{first}")
    images, keys, more = _one_per_sample(members, config)
    labels = _labels_beside(members, images, keys, config)
    layout = understand(
        [tuple(image.name.split("/")) for image in images],
        chosen.split,
        data,
        classes=labels is None and config.label_column != "none",
    )
    kept = [images[index] for index in layout.keep]
    raw: Sequence[Any] | None = [labels[index] for index in layout.keep] if labels else layout.classes
    classes, numbers = resolve_labels(raw, None) if raw else ((), None)
    if any(chosen.held):
        layout.held = [chosen.held[image.shard] for image in kept]
        layout.notes[0] = f"{summary(layout)} by the names of the files"
    if labels:
        beside = f"{len(classes)} classes from the members beside the images"
        layout.notes[0] = layout.notes[0].replace("no classes", beside)
    places = np.array([(image.shard, image.offset, image.size) for image in kept], np.int64).reshape(-1, 3)

    def payloads(indices: Sequence[int]) -> list[Payload | None]:
        chosen = places[list(indices)].tolist()
        return tars.read([Member(shard, "", offset, size) for shard, offset, size in chosen])

    return Listing(
        different([keys[index] for index in layout.keep]),
        payloads,
        classes,
        numbers,
        None if layout.held is None else np.array(layout.held, np.int8),
        skipped=[*members.skipped, *((images[index].name, reason) for index, reason in layout.skipped)],
        notes=[*layout.notes, *chosen.notes, *more],
    )


def indexed(file: Path, key: str, tars: Tars, label_column: str | None) -> Members:
    """The members of all tars, from an index that is made once: their headers are as many as there are images, all over the tars.

    Args:
        file: of the index.
        key: of tars that have not changed, and of `label_column`.
        label_column: see `members_of`.

    Raises:
        DataError: see `members_of`.
    """
    members = _kept(file, key)
    if members is None:
        members = Members()
        with ThreadPoolExecutor(_READERS) as readers:
            numbers = range(len(tars.names))
            for part in readers.map(lambda number: members_of(tars, number, label_column), numbers):
                members.add(part)
        with suppress(OSError, RecursionError, atomic.FileError):  # then the next start makes it
            atomic.write_text(file, json.dumps({"key": key, **members.to_json()}))
    return members


def _kept(file: Path, key: str) -> Members | None:
    """The index that a file holds; None if there is none, it is of something else, or it is damaged."""
    if not file.exists():
        return None
    try:
        value = atomic.read_object(file, limit=_INDEX)
        return Members.from_json(value) if value["key"] == key else None
    except (atomic.FileError, KeyError, TypeError, ValueError, AttributeError):
        return None


def members_of(tars: Tars, shard: int, label_column: str | None) -> Members:
    """The members of one tar.

    Args:
        label_column: see `DataConfig.label_column`.

    Raises:
        DataError: it is no tar, or cannot be read.
    """
    members, name = Members(), tars.names[shard]
    try:
        with tars.open(shard) as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
            size, seen = tars.size(shard), set[str]()
            while (info := _next(tar)) is not None:
                _add(members, info, shard, size, opened, label_column, seen)
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
            opened.seek(tar.offset)  # of the block that ended the loop
            end = opened.read(tarfile.BLOCKSIZE)
            behind = opened.read(_BEHIND)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"cannot read {printable(tars.place(shard))}: {atomic.reason(error)}") from error
    if len(end) < tarfile.BLOCKSIZE:
        members.skipped.insert(0, (name, "cut off: the images at its end are missing"))
    elif any(end):
        members.skipped.insert(0, (name, "damaged: the images behind the damage are missing"))
    elif any(behind[at + 257 : at + 262] == b"ustar" for at in range(0, len(behind), tarfile.BLOCKSIZE)):
        members.skipped.insert(0, (name, "several tars in one file: only the images of the first are read"))
    return members


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member; None at the end, and where the tar is damaged."""
    try:
        return tar.next()
    except (tarfile.TarError, ValueError, OverflowError, EOFError):
        return None


def _add(
    members: Members,
    info: tarfile.TarInfo,
    shard: int,
    size: int,
    opened: IO[bytes],
    label_column: str | None,
    seen: set[str],
) -> None:
    """Take in one member; `seen` has the names of those before it, and gets its own."""
    name = info.name.removeprefix("./")
    if info.isdir() or any(part.startswith(".") for part in name.split("/")):
        return
    if not info.isreg() or info.issparse():
        members.skipped.append((name, "a link, or not a regular file, inside a tar"))
        return
    member = Member(shard, name, info.offset_data, info.size)
    if member.offset + member.size > size:
        return  # cut off, which is said of the whole tar
    again = name in seen
    seen.add(name)
    stem, _, ending = name.rpartition(".")
    if ending.lower() in _BESIDE and stem:
        if label_column != "none":
            opened.seek(member.offset)
            data = opened.read(min(member.size, _LARGEST_LABEL))
            _add_label(members, member, _label(data, name, label_column, members), again)
        return
    if again:
        members.skipped.append((name, _TWICE))
        return
    if f".{ending.lower()}" in IMAGE_SUFFIXES:
        members.images.append(member)
        return
    opened.seek(member.offset)
    head = opened.read(min(_HEAD, member.size))
    if is_image(head):
        members.images.append(member)
    else:
        members.skipped.append((name, unread(head)))


def _add_label(members: Members, member: Member, label: Any, again: bool) -> None:
    """Note what a member tells of the class of the images beside it.

    Args:
        label: None tells nothing.
        again: whether a member of the same name came before it. If their classes differ, both tell nothing.
    """
    stem, _, ending = member.name.rpartition(".")
    if label is None:
        return
    rank = _BESIDE.index(ending.lower())
    before = members.labels.get((member.shard, stem), (rank, label))
    if again and before[0] == rank and before[1] != label:
        members.skipped.append((member.name, "members of this name tell different classes, so none is taken"))
        label = None
    for key in {stem, _first_dot(member.name)[0]}:
        if rank <= members.labels.get((member.shard, key), (rank, None))[0]:
            members.labels[member.shard, key] = (rank, label)


def _first_dot(name: str) -> tuple[str, str]:
    """The key and the field of a member as WebDataset has them: before and after the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    key, _, ending = file.partition(".")
    return folder + slash + key, ending.lower()


def _last_dot(name: str) -> str:
    return name.rpartition(".")[0] or name


def _one_per_sample(members: Members, config: DataConfig) -> tuple[list[Member], list[str], list[str]]:
    """One image per sample, the samples' keys, and notes; a further one with the same ending is noted as skipped.

    WebDataset cuts a name at its first dot, so that `1.jpg` and `1.mask.png` are two fields of sample 1. Names such as
    `scan.v2.001.jpg` have dots of another kind: then it is the last dot that counts, and each image is a sample.
    """
    parts = [_first_dot(image.name) for image in members.images]
    samples = [(image.shard, key) for image, (key, _) in zip(members.images, parts, strict=True)]
    if len(set(samples)) == len(samples):
        return members.images, [key for key, _ in parts], []
    fields = {ending for _, ending in parts}
    if not all(re.fullmatch(r"([a-z_]+\.)*[a-z0-9]+", ending) for ending in fields) or len(fields) > 8:
        return members.images, [_last_dot(image.name) for image in members.images], []
    wanted = (config.image_column or "").lower()
    order = sorted(
        fields, key=lambda ending: (ending != wanted, ending.count("."), ending not in ("jpg", "png"), ending)
    )
    best: dict[tuple[int, str], int] = {}
    for index, (sample, (_, ending)) in enumerate(zip(samples, parts, strict=True)):
        if sample not in best or order.index(ending) < order.index(parts[best[sample]][1]):
            best[sample] = index
        elif ending == parts[best[sample]][1]:
            members.skipped.append((members.images[index].name, _TWICE))
    chosen = sorted(best.values())
    used = sorted({parts[index][1] for index in chosen})
    left = sorted(fields - set(used))
    notes = [
        f"each sample has several images: {', '.join(used)} is used, {', '.join(left)} is not (data.image_column)"
    ]
    return (
        [members.images[index] for index in chosen],
        [parts[index][0] for index in chosen],
        notes if left else [],
    )


def _labels_beside(
    members: Members, images: Sequence[Member], keys: Sequence[str], config: DataConfig
) -> list[Any] | None:
    """Per image its class as a member beside it tells it; None if there is no such member.

    Raises:
        DataError: `config.label_column` is in no member.
    """
    wanted = config.label_column
    if wanted == "none":
        return None
    labels: list[Any] = []
    for image, key in zip(images, keys, strict=True):
        found = members.labels.get((image.shard, key))
        found = found or members.labels.get((image.shard, _last_dot(image.name)))
        labels.append(None if found is None else found[1])
    if all(label is None for label in labels):
        if wanted is not None:
            raise DataError(
                f"no column {wanted!r}: the members beside the images have {', '.join(sorted(members.columns)) or 'none'}"
            )
        return None
    return as_numbers(labels)


def _label(data: bytes, name: str, wanted: str | None, members: Members) -> Any:
    """The class that a member beside an image tells, or None; what else could be asked for is noted, and JSON that is damaged."""
    ending = name.rpartition(".")[2].lower()
    if ending != "json":
        members.columns.add(ending)
        chosen = ending == (wanted or "cls")
        return (data.decode("utf-8", "replace").strip() or None) if chosen else None
    try:
        facts = json.loads(data)
    except (ValueError, RecursionError):
        if len(data) < _LARGEST_LABEL:  # of a larger one the end was not read
            members.skipped.append((name, "damaged: it is no JSON, so it tells no class"))
        return None
    if not isinstance(facts, dict):
        return None  # captions or boxes, for example
    members.columns |= {str(key) for key in facts}
    key = next((name for name in (LABEL_COLUMNS if wanted is None else (wanted,)) if name in facts), None)
    return None if key is None else facts[key]
