"""Local tables: parquet files and WebDataset shards, as one file, a list from a folder, or a pattern."""

from __future__ import annotations

import functools
import glob
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError
from vqvae2.data.labels import assign_splits
from vqvae2.data.listing import Listing
from vqvae2.data.tables import Tables, list_rows, reading

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif"),
    *(".bmp", ".dib", ".tif", ".tiff"),
)
TABLE_SUFFIXES = (".parquet", ".tar")
_HASHED_WHOLE = 256_000_000  # bytes: larger files are identified by their size, time and both ends
_END = 1 << 20  # bytes at each end of a larger file

Format = Literal["parquet", "webdataset"]
"""The format of table files, in the words of `datasets.load_dataset`."""


@dataclass(frozen=True)
class TableFiles:
    """Parquet files or WebDataset shards.

    Attributes:
        format: the format of all files.
        data: DATA as the user wrote it, for messages.
        root: the folder below which the files were found; None = they were named one by one or by a pattern.
        files: the files, in order.
        identity: sha256 of their names and contents.
        skipped: (name, reason) of shards that are cut off.
    """

    format: Format
    data: str
    root: Path | None
    files: tuple[Path, ...]
    identity: str
    skipped: tuple[tuple[str, str], ...] = ()

    def list_images(self, config: DataConfig, scratch: Path) -> Listing:
        """The rows of all files; `datasets` keeps its working copy in `scratch`."""
        with reading(self.data):
            listing = list_rows(self._open(config, scratch), self.data, config)
        listing.skipped = list(self.skipped)
        return listing

    def _open(self, config: DataConfig, scratch: Path) -> Tables:
        """Open the files; words such as `train` and `test` in their names are a split."""
        import datasets

        inner = [Path(file.name) if self.root is None else file.relative_to(self.root) for file in self.files]
        words = [re.findall(r"[a-z]+", name.as_posix().lower()) for name in inner]
        known = {word: word for inside in words for word in inside}
        in_names = config.split is not None and config.split.lower() in known
        splits = assign_splits(known, config.split if in_names else None, self.data)
        groups: dict[int | None, list[str]] = {}
        for file, inside in zip(self.files, words, strict=True):
            held = next((splits[word] for word in inside if word in splits), None)
            if held is not None or not splits:
                groups.setdefault(None if in_names else held, []).append(glob.escape(str(file.absolute())))
        load = functools.partial(datasets.load_dataset, self.format, split="train", cache_dir=str(scratch))
        tables = [(load(data_files={"train": names}), held) for held, names in groups.items()]
        return Tables(tables, split=None if in_names else config.split)


def recognise_files(data: str, run: Path) -> TableFiles | None:
    """The parquet or tar files that `data` names, one file or a pattern; None if it is neither.

    Raises:
        DataError: no file matches the pattern, or the files have another format.
    """
    path = Path(data).expanduser()
    if path.is_file():
        return files_by_suffix(data, None, [path])
    if not re.search(r"[*?\[{]", data):
        return None
    patterns = expand_braces(str(path))
    names = [name for pattern in patterns for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207 - may be absolute
    if not names:
        raise DataError(f"no file matches {data!r}")
    return files_by_suffix(data, None, sorted({Path(name) for name in names}))


def expand_braces(pattern: str) -> list[str]:
    """The patterns that shell braces stand for: `a-{000..002}.tar` or `{train,test}.parquet`."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if not braces:
        return [pattern]
    inside, numbers = braces.group(1), re.fullmatch(r"(\d+)\.\.(\d+)", braces.group(1))
    if numbers:
        first, last = numbers.groups()
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = inside.split(",")
    head, tail = pattern[: braces.start()], pattern[braces.end() :]
    return [whole for choice in choices for whole in expand_braces(head + choice + tail)]


def files_by_suffix(data: str, root: Path | None, files: Sequence[Path]) -> TableFiles:
    """The table files in the format that their suffix says.

    Raises:
        DataError: another suffix, or several.
    """
    suffixes = {file.suffix.lower() for file in files}
    if suffixes == {".parquet"}:
        return make_table_files("parquet", data, root, files)
    if suffixes == {".tar"}:
        return make_table_files("webdataset", data, root, files)
    if suffixes <= set(IMAGE_SUFFIXES):
        raise DataError(f"{data!r} is an image, not a data set: name the folder that holds the images")
    raise DataError(
        f"cannot read {data!r}: expected a folder of images, .parquet or .tar files, or a Hub id, found {sorted(suffixes)}"
    )


def make_table_files(format: Format, data: str, root: Path | None, files: Sequence[Path]) -> TableFiles:
    """The files as a data source, identified by their names and contents.

    Raises:
        DataError: a file cannot be read.
    """
    total = hashlib.sha256(format.encode())
    for file in files:
        try:
            total.update(f"{file.name}\0".encode("utf-8", "replace") + _file_digest(file))
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    cut_off = [file for file in files if format == "webdataset" and not _has_end_marker(file)]
    skipped = tuple((file.name, "cut off: the images at its end are missing") for file in cut_off)
    return TableFiles(format, data, root, tuple(files), total.hexdigest(), skipped)


def _has_end_marker(path: Path) -> bool:
    """Whether a tar ends with the block of zeros that marks its end.

    Programs that read tars take a missing marker for the end of the data, so a cut-off file raises no error.
    """
    with path.open("rb") as file:
        file.seek(-min(512, path.stat().st_size), os.SEEK_END)
        return file.read() == bytes(512)


def _file_digest(path: Path) -> bytes:
    """sha256 of a file's content; of a large file its size, its time of change, and the bytes at both ends."""
    state = path.stat()
    with path.open("rb") as file:
        if state.st_size <= _HASHED_WHOLE:
            return hashlib.file_digest(file, "sha256").digest()
        head = file.read(_END)
        file.seek(-_END, os.SEEK_END)
        return hashlib.sha256(f"{state.st_size} {state.st_mtime_ns}".encode() + head + file.read()).digest()
