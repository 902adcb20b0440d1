"""Where pictures come from: a folder, parquet files, WebDataset shards, or a data set of the Hub.

    locate(data) -> Place (quick: names and sizes only) -> list_place(place) -> Listing or Stream

Nothing here decodes a picture: a listing says what each one is called, its class, its side of the split, and
gives its encoded bytes or its file when asked. Tables and the Hub are read by `datasets`, imported when needed.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vqvae2.config import DataConfig


class DataError(ValueError):
    """Data that cannot be used, in one clear line."""


Payload = bytes | Path
"""One encoded picture: its bytes, or the file that holds it."""

EMBEDDED = "emoji64"
TRAIN = ("train", "training")
HELD = ("validation", "valid", "val", "test", "heldout", "held-out")  # the first that exists is held out
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp", "jpeg")
LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label")
NAME_COLUMNS = ("name", "file_name", "filename", "__key__", "id")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_WHOLE = 256_000_000  # files up to so many bytes are hashed whole
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


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


@dataclass
class Stream:
    """Pictures that can only be read once, in order.

    Attributes:
        rows: (name, encoded picture or None, raw label, raw split) of each picture.
        finish: turns all the raw labels and splits into classes, labels and held, as in `Listing`.
        revision: what the Hub served.
    """

    rows: Iterator[tuple[str, Payload | None, Any, Any]]
    finish: Callable[[list[Any], list[Any]], tuple[tuple[str, ...], NDArray[np.int64] | None, NDArray[np.int8] | None]]
    revision: str = ""


def locate(data: str, config: DataConfig) -> Place:
    """Find what `data` means, without reading a picture and without the network.

    Raises:
        DataError: nothing is there, or it is of an unknown kind.
    """
    if data == EMBEDDED:
        return _archives("parquet", data, [Path(str(package_files("vqvae2.data") / "emoji64.parquet"))])
    path = Path(data).expanduser()
    if path.is_dir():
        return _locate_folder(path)
    if path.is_file():
        return _locate_files(data, [path])
    if re.search(r"[*?\[{]", data):
        found = sorted({Path(name) for part in expand_braces(str(path)) for name in glob.glob(part, recursive=True)})
        if not found:
            raise DataError(f"no file matches {data!r}")
        return _locate_files(data, found)
    if _HUB_ID.fullmatch(data):
        return Place("hub", f"hub {data}", data)
    raise DataError(f"no such folder or file: {data!r}")


def expand_braces(pattern: str) -> list[str]:
    """Shell braces: `a-{000..002}.tar` and `{train,test}.parquet` to the list of patterns."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    inside, span = found.group(1), re.fullmatch(r"(\d+)\.\.(\d+)", found.group(1))
    if span:
        width = len(span.group(1))
        parts = [f"{number:0{width}d}" for number in range(int(span.group(1)), int(span.group(2)) + 1)]
    else:
        parts = inside.split(",")
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [whole for part in parts for whole in expand_braces(head + part + tail)]


def list_place(place: Place, config: DataConfig, folder: Path) -> Listing | Stream:
    """List the pictures of a place. `folder` may be used for a table's working copy (`folder/table`).

    Raises:
        DataError: one clear line.
    """
    if place.kind == "folder":
        return _list_folder(place, config)
    return _list_table(place, config, folder / "table")


# --- folders and files ---------------------------------------------------------------------------------------


def _locate_folder(path: Path) -> Place:
    found, others = [], []
    for file in _walk(path):
        (found if file.suffix.lower() in SUFFIXES or _looks_like_picture(file) else others).append(file)
    if not found:
        tables = [file for file in others if file.suffix.lower() in (".parquet", ".tar")]
        if tables:
            return _locate_files(str(path), tables)
        raise DataError(
            f"no pictures in {path}"
            + (f": none of its {len(others)} files is a picture, a parquet file or a tar" if others else ": it is empty")
        )
    total = hashlib.sha256(b"folder")
    for file in found:
        state = file.stat()
        total.update(f"{file.relative_to(path).as_posix()}\0{state.st_size}\0{state.st_mtime_ns}\n".encode("utf-8", "replace"))
    skipped = tuple((file.relative_to(path).as_posix(), "not a picture") for file in others)
    return Place("folder", total.hexdigest(), str(path), tuple(found), skipped)


def _walk(path: Path) -> list[Path]:
    """All regular files below, sorted, without hidden ones; links are followed, each folder once."""
    found, seen = [], set()
    for top, folders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(top, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.is_file())


def _looks_like_picture(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def _locate_files(data: str, found: list[Path]) -> Place:
    suffixes = {file.suffix.lower() for file in found}
    if suffixes == {".parquet"}:
        return _archives("parquet", data, found)
    if suffixes == {".tar"}:
        return _archives("webdataset", data, found)
    if suffixes <= set(SUFFIXES):
        raise DataError(f"{data!r} is a picture, not a data set: give the folder that holds the pictures")
    raise DataError(f"cannot read {data!r}: expected a folder of pictures, .parquet or .tar files, or a Hub id, found {sorted(suffixes)}")


def _archives(kind: Literal["parquet", "webdataset"], data: str, found: Sequence[Path]) -> Place:
    total = hashlib.sha256(kind.encode())
    for file in found:
        try:
            total.update(f"{file.name}\0".encode("utf-8", "replace") + _file_digest(file))
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    return Place(kind, total.hexdigest(), data, tuple(found))


def _file_digest(path: Path) -> bytes:
    """sha256 of a file's content; of a large one its size, time, head and tail."""
    state = path.stat()
    with path.open("rb") as file:
        if state.st_size <= _WHOLE:
            return hashlib.file_digest(file, "sha256").digest()
        head = file.read(1 << 20)
        file.seek(-(1 << 20), os.SEEK_END)
        return hashlib.sha256(f"{state.st_size} {state.st_mtime_ns}".encode() + head + file.read()).digest()


def _list_folder(place: Place, config: DataConfig) -> Listing:
    root = Path(place.root)
    parts = [file.relative_to(root).parts for file in place.files]
    tops = {part[0] for part in parts if len(part) > 1}
    sides = _sides({name.lower(): name for name in tops}, config.split)
    held = None
    keep = list(range(len(parts)))
    if sides and all(len(part) > 1 for part in parts):
        keep = [index for index, part in enumerate(parts) if part[0] in sides]
        held = np.array([sides[parts[index][0]] for index in keep], np.int8)
        held = None if config.split else held
        below = [parts[index][1:] for index in keep]
    else:
        below = parts
    files = [place.files[index] for index in keep]
    classes, labels = (), None
    if all(len(part) > 1 for part in below):
        classes, labels = resolve_labels([part[0] for part in below], None)
    names = [file.relative_to(root).as_posix() for file in files]
    payloads: Callable[[Sequence[int]], list[Payload | None]] = _Files(files)
    return Listing(names, payloads, classes, labels, held, skipped=list(place.skipped))


@dataclass
class _Files:
    files: list[Path]

    def __call__(self, indices: Sequence[int]) -> list[Payload | None]:
        return [self.files[index] for index in indices]


def _sides(names: dict[str, str], split: str | None) -> dict[str, int]:
    """Which of the names (lower case -> as written) are read and on which side (1 = held out); {} = no split named."""
    if split is not None:
        found = names.get(split.lower())
        return {found: 0} if found else {}
    train = next((names[name] for name in TRAIN if name in names), None)
    held = next((names[name] for name in HELD if name in names), None)
    return {train: 0, held: 1} if train and held else {}


# --- labels and splits ---------------------------------------------------------------------------------------


def resolve_labels(raw: Sequence[Any], names: Sequence[str] | None) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
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
            raise DataError(f"two classes have the same name: {seen[plain]!r} and {name!r}; rename or merge them")
        seen[plain] = name


def resolve_split(raw: Sequence[Any]) -> NDArray[np.int8] | None:
    """int8 [n], 1 = held out, from the values of a split column; None when it names no two sides."""
    values = {str(value).lower() for value in raw}
    strange = sorted(values - set(TRAIN) - set(HELD))
    if strange:
        raise DataError(f"the split column has {strange[0]!r}: expected one of {', '.join((*TRAIN, *HELD))}")
    if not values & set(TRAIN) or not values & set(HELD):
        return None
    return np.array([str(value).lower() in HELD for value in raw], np.int8)


# --- tables and the Hub --------------------------------------------------------------------------------------


def _list_table(place: Place, config: DataConfig, folder: Path) -> Listing | Stream:
    raise DataError("tables come in a moment")
