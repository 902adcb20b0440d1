"""Tar files with images, such as WebDataset shards: which members belong together, and random access to their bytes.

A member `a/0001.jpg` is an image; `a/0001.cls`, `.json` and `.txt` beside it tell its class. Without any of these, folders
inside the tar are understood as folders on the disk are (`folder_layout`).
"""

from __future__ import annotations

import gzip
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError
from vqvae2.data.folder_layout import Layout, understand
from vqvae2.data.formats import IMAGE_SUFFIXES, is_image, unread
from vqvae2.data.labels import LABEL_COLUMNS, as_numbers, resolve_labels
from vqvae2.data.listing import Listing, Payload, different
from vqvae2.data.split_names import file_splits, words_of
from vqvae2.errors import printable

_BESIDE = ("cls", "json", "txt")  # endings of members that may tell a class
_LARGEST_LABEL = 1 << 20  # bytes of such a member
_HEAD = 512
_BOMB = 200  # a compressed tar that unpacks to more than this many times its size and to more than a GB is refused
_BLOCK = 1 << 20


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


@dataclass
class Members:
    """What the tars hold.

    Attributes:
        files: the tars.
        images: the members that are images.
        beside: (shard, path without ending) to ending to member, for `_BESIDE`.
        skipped: (name, reason) of the other members.
    """

    files: Sequence[Path]
    images: list[Member] = field(default_factory=list)
    beside: dict[tuple[int, str], dict[str, Member]] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def read(self, members: Sequence[Member]) -> Iterator[bytes]:
        """The bytes of members, in order."""
        shard, opened = -1, None
        try:
            for member in members:
                if member.shard != shard:
                    if opened is not None:
                        opened.close()
                    shard, opened = member.shard, self.files[member.shard].open("rb")
                assert opened is not None
                opened.seek(member.offset)
                yield opened.read(member.size)
        except OSError as error:
            raise DataError(f"cannot read {self.files[shard]}: {error.strerror or error}") from error
        finally:
            if opened is not None:
                opened.close()


@dataclass(frozen=True)
class TarFiles:
    """Tars, one or several.

    Attributes:
        data: DATA as the user wrote it, for messages.
        names: of the files, below the folder in which they were found.
        files: the files, in order.
        identity: sha256 of their names and contents.
    """

    data: str
    names: tuple[str, ...]
    files: tuple[Path, ...]
    identity: str

    def list_images(self, config: DataConfig, scratch: Path) -> Listing:
        """The images of all files; compressed ones are unpacked in `scratch`."""
        chosen, notes, split = self._choose(config.split)
        numbers = [number for number, held in enumerate(chosen) if held is not None]
        members = Members([self._plain(number, scratch) for number in numbers])
        for place, number in enumerate(numbers):
            _index(members, place, self.names[number])
        if not members.images:
            first = (
                f" (the first, {members.skipped[0][0]}: {members.skipped[0][1]})" if members.skipped else ""
            )
            raise DataError(f"no images in {self.data!r}{first}")
        images, keys, more = _one_per_sample(members, config)
        labels = _labels_beside(members, images, keys, config)
        layout = understand(
            [tuple(image.name.split("/")) for image in images],
            split,
            self.data,
            classes=labels is None and config.label_column != "none",
        )
        return self._listing(
            members, images, keys, labels, layout, [chosen[n] or 0 for n in numbers], notes + more
        )

    def _choose(self, split: str | None) -> tuple[list[int | None], list[str], str | None]:
        """Per file its split (see `file_splits`), notes, and the split to look for among the folders in the tars."""
        if split is None:
            return *file_splits(self.names), None
        named = [split.lower() in words_of(name) for name in self.names]
        if any(named):
            return [0 if meant else None for meant in named], [], None
        return [0] * len(self.names), [], split

    def _plain(self, number: int, scratch: Path) -> Path:
        file = self.files[number]
        if file.suffix.lower() not in (".gz", ".tgz"):
            return file
        scratch.mkdir(parents=True, exist_ok=True)
        return _unpack(file, scratch / f"{number}.tar")

    def _listing(
        self,
        members: Members,
        images: list[Member],
        keys: list[str],
        labels: list[Any] | None,
        layout: Layout,
        held: list[int],
        notes: list[str],
    ) -> Listing:
        kept = [images[index] for index in layout.keep]
        raw: Sequence[Any] | None = [labels[index] for index in layout.keep] if labels else layout.classes
        classes, numbers = resolve_labels(raw, None) if raw else ((), None)
        split = [held[image.shard] for image in kept] if any(held) else layout.held
        if labels:
            layout.notes[0] += f" ({len(classes)} classes from the members beside the images)"
        if any(held) and split is not None:
            layout.notes[0] += (
                f" ({split.count(0)} to train, {split.count(1)} held out by the names of the files)"
            )

        def payloads(indices: Sequence[int]) -> list[Payload | None]:
            return list(members.read([kept[index] for index in indices]))

        return Listing(
            different([keys[index] for index in layout.keep]),
            payloads,
            classes,
            numbers,
            None if split is None else np.array(split, np.int8),
            skipped=[*members.skipped, *((images[index].name, reason) for index, reason in layout.skipped)],
            notes=[*layout.notes, *notes],
        )


def _unpack(file: Path, target: Path) -> Path:
    """Unpack a compressed tar; one that is cut off is unpacked as far as it goes."""
    most = max(10**9, _BOMB * file.stat().st_size)
    try:
        with gzip.open(file, "rb") as packed, target.open("wb") as plain:
            try:
                while block := packed.read1(_BLOCK):
                    plain.write(block)
                    if plain.tell() > most:
                        raise DataError(f"{file} unpacks to more than {_BOMB} times its size")
            except (EOFError, zlib.error, gzip.BadGzipFile):
                if not plain.tell():
                    raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"cannot read {printable(str(file))}: {error}") from error
    except OSError as error:
        raise DataError(f"cannot unpack {printable(str(file))}: {error.strerror or error}") from error
    return target


def _index(members: Members, shard: int, label: str) -> None:
    """Add the members of one tar.

    Raises:
        DataError: it is no tar.
    """
    file = members.files[shard]
    try:
        with tarfile.open(file, "r:") as tar, file.open("rb") as opened:
            size = file.stat().st_size
            while (info := _next(tar)) is not None:
                _add(members, info, shard, size, opened)
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
            opened.seek(tar.offset)  # of the block that ended the loop
            end = opened.read(tarfile.BLOCKSIZE)
    except tarfile.TarError as error:
        raise DataError(f"cannot read {printable(str(file))}: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise DataError(f"cannot read {printable(str(file))}: {error.strerror or error}") from error
    if len(end) < tarfile.BLOCKSIZE:
        members.skipped.insert(0, (label, "cut off: the images at its end are missing"))
    elif any(end):
        members.skipped.insert(0, (label, "damaged: the images behind the damage are missing"))


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member; None at the end, and where the tar is damaged."""
    try:
        return tar.next()
    except (tarfile.TarError, ValueError, OverflowError, EOFError):
        return None


def _add(members: Members, info: tarfile.TarInfo, shard: int, size: int, opened: IO[bytes]) -> None:
    name = info.name.removeprefix("./")
    if info.isdir() or any(part.startswith(".") for part in name.split("/")):
        return
    if not info.isreg() or info.issparse():
        members.skipped.append((name, "a link, or not a regular file, inside a tar"))
        return
    member = Member(shard, name, info.offset_data, info.size)
    if member.offset + member.size > size:
        return  # cut off, which is said of the whole tar
    stem, _, ending = name.rpartition(".")
    if ending.lower() in _BESIDE and stem:
        for key in {stem, _first_dot(name)[0]}:
            members.beside.setdefault((shard, key), {})[ending.lower()] = member
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


def _first_dot(name: str) -> tuple[str, str]:
    """The key and the field of a member as WebDataset has them: before and after the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    key, _, ending = file.partition(".")
    return folder + slash + key, ending.lower()


def _last_dot(name: str) -> str:
    return name.rpartition(".")[0] or name


def _one_per_sample(members: Members, config: DataConfig) -> tuple[list[Member], list[str], list[str]]:
    """One image per sample, the samples' keys, and notes.

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
    seen: set[str] = set()
    for image, key in zip(images, keys, strict=True):
        beside = members.beside.get((image.shard, key)) or members.beside.get(
            (image.shard, _last_dot(image.name)), {}
        )
        labels.append(_label(members, beside, wanted, seen))
    if all(label is None for label in labels):
        if wanted is not None:
            raise DataError(
                f"no column {wanted!r}: the members beside the images have {', '.join(sorted(seen)) or 'none'}"
            )
        return None
    return as_numbers(labels)


def _label(members: Members, beside: Mapping[str, Member], wanted: str | None, seen: set[str]) -> Any:
    for ending in ("cls", "txt"):
        if ending in beside:
            seen.add(ending)
            if wanted == ending or (wanted is None and ending == "cls"):
                return next(members.read([_cut(beside[ending])])).decode("utf-8", "replace").strip() or None
    if "json" in beside:
        try:
            facts = json.loads(next(members.read([_cut(beside["json"])])))
        except (ValueError, RecursionError):
            return None
        if isinstance(facts, dict):
            seen |= {str(key) for key in facts}
            key = next(
                (name for name in (LABEL_COLUMNS if wanted is None else (wanted,)) if name in facts), None
            )
            return None if key is None else facts[key]
    return None


def _cut(member: Member) -> Member:
    return member._replace(size=min(member.size, _LARGEST_LABEL))
