"""Where pictures come from: a folder, parquet files, WebDataset shards, or a data set of the Hub.

    locate(data) -> Place (quick: names and sizes only) -> list_place(place) -> Listing or Stream

Nothing here decodes a picture: a listing says what each one is called, its class, its side of the split, and
gives its encoded bytes or its file when asked.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Sequence
from importlib.resources import files as package_files
from pathlib import Path
from typing import Literal

import numpy as np

from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError
from vqvae2.data.labels import resolve_labels, split_sides
from vqvae2.data.listing import Listing, Place, Stream
from vqvae2.data.tables import list_table

EMBEDDED = "emoji64"
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_WHOLE = 256_000_000  # files up to so many bytes are hashed whole
_ENDS = 1 << 20  # of a larger one the first and the last bytes
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


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
        _list_folder(place, config) if place.kind == "folder" else list_table(place, config, folder / "table")
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
        split_sides(tops, config.split, place.root)
        if all(len(part) > 1 for part in parts) or config.split
        else {}
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
