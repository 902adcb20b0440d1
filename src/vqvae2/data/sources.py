"""Where pictures come from: a folder, parquet files, WebDataset shards, or a data set of the Hub.

    locate(data) -> Place (quick: names and sizes only) -> list_place(place) -> Listing or Stream

Nothing here decodes a picture: a listing says what each one is called, its class, its side of the split, and
gives its encoded bytes or its file when asked. Tables and the Hub are read by `datasets`, imported when needed.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqvae2.config import DataConfig
from vqvae2.errors import UserError


class DataError(UserError):
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
_ENDS = 1 << 20  # of a larger one the first and the last bytes
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


class Row(NamedTuple):
    """What a table says about one picture: the label as written there, and the side (1 = held out, None = unnamed)."""

    name: str
    payload: Payload | None
    label: Any
    side: int | None


@dataclass
class Stream:
    """Pictures that can be read only once, in order.

    Attributes:
        rows: one per picture.
        finish: turns all the rows, read, into a listing (without pictures).
        revision: what the Hub served.
    """

    rows: Iterator[Row]
    finish: Callable[[Sequence[Row]], Listing]
    revision: str = ""


def locate(data: str, run: Path) -> Place:
    """Find what `data` means, without reading a picture and without the network.

    What lies in the folder `run` is no data, even when it is inside the data's folder.

    Raises:
        DataError: nothing is there, or it is of an unknown kind.
    """
    if data == EMBEDDED:
        return _archives("parquet", data, [Path(str(package_files("vqvae2.data") / "emoji64.parquet"))])
    path = Path(data).expanduser()
    if path.is_dir():
        return _locate_folder(path, run)
    if path.is_file():
        return _locate_files(data, [path])
    if re.search(r"[*?\[{]", data):
        parts = [glob.glob(part, recursive=True) for part in expand_braces(str(path))]  # noqa: PTH207 - may be absolute
        found = sorted({Path(name) for part in parts for name in part})
        if not found:
            raise DataError(f"no file matches {data!r}")
        return _locate_files(data, found)
    if _HUB_ID.fullmatch(data):
        return Place("hub", f"hub {data}", data)
    raise DataError(f"no such folder or file: {data!r} (and a Hub id would be owner/name)")


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


def list_place(place: Place, config: DataConfig, folder: Path, seed: int) -> Listing | Stream:
    """List the pictures of a place, at most `config.limit` of them (chosen by the seed; of a stream the first).

    `folder/table` may be used for a table's working copy.

    Raises:
        DataError: one clear line.
    """
    listed = (
        _list_folder(place, config)
        if place.kind == "folder"
        else _list_table(place, config, folder / "table")
    )
    if isinstance(listed, Listing) and config.limit is not None and config.limit < len(listed):
        return _limited(listed, config.limit, seed)
    return listed


def _limited(listing: Listing, limit: int, seed: int) -> Listing:
    """Some of the pictures, in order; of a named split at least one of each side."""
    order = np.random.default_rng(seed).permutation(len(listing))
    chosen = order[:limit]
    if listing.held is not None and limit > 1 and len(set(listing.held[chosen].tolist())) == 1:
        other = order[listing.held[order] != listing.held[chosen[0]]]
        chosen = np.concatenate([chosen[: limit - len(other[:1])], other[:1]])
    chosen = np.sort(chosen)
    return Listing(
        [listing.names[index] for index in chosen],
        lambda indices: listing.payloads([int(chosen[index]) for index in indices]),
        listing.classes,
        None if listing.labels is None else listing.labels[chosen],
        None if listing.held is None else listing.held[chosen],
        listing.revision,
        listing.skipped,
    )


# --- folders and files ---------------------------------------------------------------------------------------


def _locate_folder(path: Path, run: Path) -> Place:
    found: list[Path] = []
    others: list[Path] = []
    for file in _walk(path, os.path.realpath(run)):
        (found if file.suffix.lower() in SUFFIXES or _looks_like_picture(file) else others).append(file)
    if not found:
        tables = [file for file in others if file.suffix.lower() in (".parquet", ".tar")]
        if tables:
            return _locate_files(str(path), tables)
        raise DataError(
            f"no pictures in {path}"
            + (
                f": none of its {len(others)} files is a picture, a parquet file or a tar"
                if others
                else ": it is empty"
            )
        )
    total = hashlib.sha256(b"folder")
    for file in found:
        state = file.stat()
        total.update(
            f"{file.relative_to(path).as_posix()}\0{state.st_size}\0{state.st_mtime_ns}\n".encode(
                "utf-8", "replace"
            )
        )
    skipped = tuple((file.relative_to(path).as_posix(), "not a picture") for file in others)
    return Place("folder", total.hexdigest(), str(path), tuple(found), skipped)


def _walk(path: Path, without: str) -> list[Path]:
    """All regular files below, sorted, without hidden ones; links are followed, each folder once."""
    found, seen = [], {without}
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
    raise DataError(
        f"cannot read {data!r}: expected a folder of pictures, .parquet or .tar files, or a Hub id, found {sorted(suffixes)}"
    )


def _archives(kind: Literal["parquet", "webdataset"], data: str, found: Sequence[Path]) -> Place:
    total = hashlib.sha256(kind.encode())
    for file in found:
        try:
            total.update(f"{file.name}\0".encode("utf-8", "replace") + _file_digest(file))
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    cut = [file for file in found if kind == "webdataset" and not _ends_well(file)]
    skipped = tuple((file.name, "cut off: the pictures at its end are missing") for file in cut)
    return Place(kind, total.hexdigest(), data, tuple(found), skipped)


def _ends_well(path: Path) -> bool:
    """Whether a tar has the block of zeros at its end; readers take a missing one for the end of the data."""
    with path.open("rb") as file:
        file.seek(-min(512, path.stat().st_size), os.SEEK_END)
        return file.read() == bytes(512)


def _file_digest(path: Path) -> bytes:
    """sha256 of a file's content; of a large one its size, time, head and tail."""
    state = path.stat()
    with path.open("rb") as file:
        if state.st_size <= _WHOLE:
            return hashlib.file_digest(file, "sha256").digest()
        head = file.read(_ENDS)
        file.seek(-_ENDS, os.SEEK_END)
        return hashlib.sha256(f"{state.st_size} {state.st_mtime_ns}".encode() + head + file.read()).digest()


def _list_folder(place: Place, config: DataConfig) -> Listing:
    root, files = Path(place.root), list(place.files)
    parts = [file.relative_to(root).parts for file in files]
    tops = {part[0].lower(): part[0] for part in parts if len(part) > 1}
    sides = (
        _sides(tops, config.split, place.root) if all(len(part) > 1 for part in parts) or config.split else {}
    )
    held = None
    if sides:  # sub-folders are splits: the classes are one below
        chosen = [index for index, part in enumerate(parts) if len(part) > 1 and part[0] in sides]
        files = [files[index] for index in chosen]
        held = None if config.split else np.array([sides[parts[index][0]] for index in chosen], np.int8)
        parts = [parts[index][1:] for index in chosen]
    classes: tuple[str, ...] = ()
    labels = None
    if all(len(part) > 1 for part in parts):
        classes, labels = resolve_labels([part[0] for part in parts], None)
    names = [file.relative_to(root).as_posix() for file in files]
    return Listing(
        names,
        lambda indices: [files[index] for index in indices],
        classes,
        labels,
        held,
        skipped=list(place.skipped),
    )


def _sides(names: Mapping[str, str], split: str | None, where: str) -> dict[str, int]:
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


# --- labels --------------------------------------------------------------------------------------------------


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


# --- tables and the Hub --------------------------------------------------------------------------------------

Table = Any
"""A `datasets.Dataset` or `IterableDataset`."""


@dataclass
class _Tables:
    """What was opened: tables, each with its side (1 = held out, None = unnamed)."""

    tables: list[tuple[Table, int | None]]
    revision: str = ""
    split: str | None = None  # still to be found in a column


def _list_table(place: Place, config: DataConfig, folder: Path) -> Listing | Stream:
    try:
        import datasets

        bars = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            opened = (
                _open_hub(place.root, config) if place.kind == "hub" else _open_files(place, config, folder)
            )
            columns = _Columns.find(opened.tables[0][0], place.root, config)
            if place.kind == "hub" and config.streaming:
                return Stream(_stream(opened, columns, config), columns.finish, opened.revision)
            return _random_access(opened, columns, place)
        finally:
            if bars:
                datasets.enable_progress_bars()
    except DataError:
        raise
    except Exception as error:  # whatever its many layers raise becomes one clear line
        raise DataError(f"cannot read {place.root!r}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error  # `datasets` wraps what happened in a general error
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0].strip()}" if lines else type(cause).__name__


def _open_files(place: Place, config: DataConfig, folder: Path) -> _Tables:
    """Local files; `train` and `test` (or its like) in the names of the files are a split."""
    import datasets

    root = Path(place.root)
    inner = [file.relative_to(root) if root.is_dir() else Path(file.name) for file in place.files]
    words = [re.findall(r"[a-z]+", name.as_posix().lower()) for name in inner]
    known = {word: word for inside in words for word in inside}
    here = config.split is not None and config.split.lower() in known
    sides = _sides(known, config.split if here else None, place.root)
    groups: dict[int | None, list[str]] = {}
    for file, inside in zip(place.files, words, strict=True):
        side = next((sides[word] for word in inside if word in sides), None)
        if side is not None or not sides:
            groups.setdefault(None if here else side, []).append(glob.escape(str(file.absolute())))
    load = functools.partial(datasets.load_dataset, place.kind, split="train", cache_dir=str(folder))
    tables = [(load(data_files={"train": names}), side) for side, names in groups.items()]
    return _Tables(tables, split=None if here else config.split)


def _open_hub(name: str, config: DataConfig) -> _Tables:
    import datasets
    from huggingface_hub import HfApi, constants

    revision = ""
    if not constants.HF_HUB_OFFLINE:
        try:  # one quick question instead of half a minute of retries
            revision = HfApi().dataset_info(name, timeout=10).sha or ""
        except Exception as error:
            raise DataError(
                f"no folder or file {name!r}, and the Hub data set of this name cannot be reached "
                f"({_first_line(error)}); HF_HUB_OFFLINE=1 uses a copy downloaded before"
            ) from error
    found = datasets.load_dataset(name, split=config.split, streaming=config.streaming)
    if config.split:
        return _Tables([(found, None)], revision)
    sides: dict[str, int | None] = {**_sides({split.lower(): split for split in found}, None, name)}
    if not sides:
        only = [split for split in found if split.lower() in TRAIN] or list(found)
        if len(only) != 1:
            raise DataError(f"{name!r} has the splits {', '.join(only)}: choose one with data.split")
        sides = {only[0]: None}
    return _Tables([(found[split], side) for split, side in sides.items()], revision)


@dataclass(frozen=True)
class _Columns:
    """Which columns of a table hold what."""

    image: str
    label: str | None
    key: str | None  # of the label inside a json column
    classes: tuple[str, ...] | None
    name: str | None
    split: str | None

    @classmethod
    def find(cls, table: Table, root: str, config: DataConfig) -> _Columns:
        """Choose by the options, else by type and name.

        Raises:
            DataError: no pictures, or a chosen column that does not exist; names the columns that do.
        """
        features = table.features or table._resolve_features().features
        here = f"{root!r} has the columns {', '.join(features)}"
        for wanted in (config.image_column, config.label_column):
            if wanted is not None and wanted not in features and wanted != "none":
                raise DataError(f"no column {wanted!r}: {here}")
        typed = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
        named = [name for name in IMAGE_COLUMNS if name in features]
        image = config.image_column or next(
            iter([name for name in named if name in typed] + typed + named), None
        )
        if image is None:
            raise DataError(f"no column of pictures found: {here}; name it with data.image_column")
        label, key = _label_column(features, config, here)
        classes = getattr(features[label], "names", None) if label and not key else None
        texts = [
            name for name in NAME_COLUMNS if name in features and _kind(features[name]).endswith("string")
        ]
        return cls(
            image=image,
            label=label,
            key=key,
            classes=tuple(classes) if classes else None,
            name=next(iter(texts), None),
            split="split" if "split" in features else None,
        )

    def small(self) -> list[str]:
        """The columns beside the picture that are read."""
        return [name for name in dict.fromkeys((self.label, self.name)) if name is not None]

    def row(self, number: int, values: dict[str, Any], side: int | None) -> Row:
        """What a row says; with its picture, where that was read."""
        picture = values.get(self.image) or {}
        name = (values[self.name] if self.name else None) or picture.get("path")
        label = values[self.label] if self.label else None
        label = (label or {}).get(self.key) if self.key else label
        return Row(str(name) if name else f"row {number}", _payload(picture), label, side)

    def finish(self, rows: Sequence[Row]) -> Listing:
        """A listing, without pictures, of all the rows."""
        names = [row.name for row in rows]
        if len(set(names)) < len(names):
            names = [f"{name} (row {number})" for number, name in enumerate(names)]
        classes, labels = (
            resolve_labels([row.label for row in rows], self.classes) if self.label else ((), None)
        )
        sides = [row.side for row in rows if row.side is not None]
        return Listing(names, lambda _: [], classes, labels, np.array(sides, np.int8) if sides else None)


def _payload(picture: dict[str, Any]) -> Payload | None:
    """Of a cell of an image column, as `datasets` gives it undecoded."""
    if picture.get("bytes") is not None:
        return bytes(picture["bytes"])
    return Path(picture["path"]) if picture.get("path") else None


def _label_column(
    features: Mapping[str, Any], config: DataConfig, here: str
) -> tuple[str | None, str | None]:
    """(column, key inside it when it holds json) of the classes; (None, None) = no labels."""
    if config.label_column == "none":
        return None, None
    label = config.label_column or next((name for name in LABEL_COLUMNS if name in features), None)
    if label is None and isinstance(features.get("json"), dict):
        key = next((name for name in LABEL_COLUMNS if name in features["json"]), None)
        return ("json", key) if key else (None, None)
    if label is not None and not re.match(r"ClassLabel|u?int|(large_)?string|bool", _kind(features[label])):
        raise DataError(
            f"column {label!r} holds no names or numbers of classes: {here}; name it with data.label_column, or none"
        )
    return label, None


def _kind(feature: Any) -> str:
    return str(feature.dtype) if type(feature).__name__ == "Value" else type(feature).__name__


def _random_access(opened: _Tables, columns: _Columns, place: Place) -> Listing:
    import datasets

    whole = datasets.concatenate_datasets(
        [_cut(table, columns, *([columns.split] if columns.split else [])) for table, _ in opened.tables]
    )
    sides = [side for table, side in opened.tables for _ in range(len(table))]
    keep = list(range(len(whole)))
    if opened.split or (columns.split and sides.count(None)):
        values = _split_values(whole, columns.split)
        named = _sides({value.lower(): value for value in set(values)}, opened.split, place.root)
        if named:
            keep = [number for number in keep if values[number] in named]
            sides = [None if opened.split else named.get(value) for value in values]
    texts = {name: whole[name][:] for name in columns.small()}
    paths = [
        path for chunk in whole.data.column(columns.image).chunks for path in chunk.field("path").to_pylist()
    ]
    rows = []
    for number in keep:
        cells = {name: texts[name][number] for name in texts}
        rows.append(columns.row(number, {**cells, columns.image: {"path": paths[number]}}, sides[number]))
    listing = columns.finish(rows)
    listing.payloads = lambda indices: [
        _payload(cell or {}) for cell in whole[[keep[index] for index in indices]][columns.image]
    ]
    listing.revision, listing.skipped = opened.revision, list(place.skipped)
    return listing


def _cut(table: Table, columns: _Columns, *more: str) -> Table:
    """Only what is read, with pictures left encoded."""
    import datasets

    return table.select_columns([columns.image, *columns.small(), *more]).cast_column(
        columns.image, datasets.Image(decode=False)
    )


def _split_values(table: Table, column: str | None) -> list[str]:
    if column is None:
        return []
    values, names = table[column][:], getattr(table.features[column], "names", None)
    return [str(names[value] if names and value is not None else value) for value in values]


def _stream(opened: _Tables, columns: _Columns, config: DataConfig) -> Iterator[Row]:
    number = 0
    for table, side in opened.tables:
        try:
            for values in itertools.islice(_cut(table, columns), _share(config, side)):
                yield columns.row(number, values, side)
                number += 1
        except Exception as error:
            raise DataError(f"the stream broke after {number} pictures: {_first_line(error)}") from error


def _share(config: DataConfig, side: int | None) -> int | None:
    """How many rows of a stream are read: of one side of a named split, or in all."""
    if config.limit is None or side is None:
        return config.limit
    held = max(1, round(config.limit * config.holdout))
    return held if side else max(1, config.limit - held)
