"""Tar shards on any file system that fsspec knows: `s3://bucket/train-{0000..0146}.tar`, `hf://datasets/owner/name/*.tar`.

    shards --headers, once--> shards.json (name, offset and size of every image) --ranges of bytes--> encoded images

Nothing is downloaded as a whole, and no copy is kept: a batch reads the bytes of its images. With the index every image can
be read at random, so the data are split by process, resumed and shuffled as any others. `data.shuffle_buffer` keeps
the images of a batch near each other.

The samples are WebDataset's: `KEY.jpg` with its class in `KEY.cls`, a number or a name. A shard whose name has the word
`val`, `valid`, `validation` or `test` is held out when another has `train`.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError
from vqvae2.data.formats import IMAGE_SUFFIXES
from vqvae2.data.labels import resolve_labels
from vqvae2.data.listing import Listing, Payload
from vqvae2.data.split_names import HELD, TRAIN
from vqvae2.data.table_files import expand_braces
from vqvae2.files import atomic

_READERS = 16  # shards whose headers are read at a time
_HEAD = 4096  # bytes of a shard that identify it together with its size
_LABEL = 1024  # bytes of a .cls member, at most


@dataclass(frozen=True)
class Shards:
    """Shards that were found.

    Attributes:
        data: DATA as the user wrote it.
        files: fsspec's file system.
        paths: of the shards, in order.
        identity: sha256 of their names, sizes and first bytes.
    """

    data: str
    files: Any
    paths: tuple[str, ...]
    identity: str

    def list_images(self, config: DataConfig, scratch: Path) -> Listing:
        """The images of all shards. Their index is made once and kept in `scratch`."""
        index = self._index(scratch / "shards.json")
        shards, names = [int(row[0]) for row in index], [f"{row[0]}/{row[1]}" for row in index]
        if not names:
            raise DataError(f"no images in {self.data!r}")
        starts = np.array([row[2] for row in index], np.int64)
        ends = starts + np.array([row[3] for row in index], np.int64)
        raw = [row[4] for row in index]
        numbers = all(value is None or re.fullmatch(r"\d+", value) for value in raw)
        classes, labels = resolve_labels([int(v) if numbers and v is not None else v for v in raw], None)

        def payloads(indices: Sequence[int]) -> list[Payload | None]:
            paths = [self.paths[shards[i]] for i in indices]
            return self._read(paths, starts[list(indices)].tolist(), ends[list(indices)].tolist())

        held = self._held(config.split)
        split = None if held is None else np.array([held[shard] for shard in shards], np.int8)
        return Listing(names, payloads, classes, labels, split)

    def _read(self, paths: list[str], starts: list[int], ends: list[int]) -> list[Payload | None]:
        """The bytes of several stretches; distant file systems read them at the same time."""
        try:
            found = self.files.cat_ranges(paths, starts, ends, on_error="raise")
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {self.data}: {atomic.reason(error)}") from error
        return list(found)

    def _held(self, split: str | None) -> list[int] | None:
        """Per shard 1 if it is held out; None if the names say nothing."""
        words = [set(re.split(r"[^a-z]+", path.rpartition("/")[2].lower())) for path in self.paths]
        if split is not None:
            raise DataError(
                f"{self.data!r} names its shards itself: leave data.split out and name those of the split"
            )
        held = [int(bool(own & {*HELD})) for own in words]
        return held if any(held) and any(own & {*TRAIN} for own in words) else None

    def _index(self, file: Path) -> list[list[Any]]:
        """Per image its shard, its key, the offset and the size of its bytes, and its class as text or None."""
        if file.exists():
            try:
                kept = atomic.read_json(file)
                if kept["identity"] == self.identity:
                    rows: list[list[Any]] = kept["images"]
                    return rows
            except (atomic.FileError, KeyError, TypeError):
                pass  # damaged, or of something else: it is made again
        with ThreadPoolExecutor(_READERS) as readers:
            parts = list(readers.map(self._members, range(len(self.paths))))
        images = [row for part in parts for row in part]
        atomic.write_json(file, {"identity": self.identity, "images": images})
        return images

    def _members(self, number: int) -> list[list[Any]]:
        """The rows of one shard."""
        images: dict[str, tuple[int, int]] = {}
        labels: dict[str, str] = {}
        path = self.paths[number]
        try:
            with self.files.open(path, "rb") as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
                for info in _regular(tar):
                    folder, slash, name = info.name.removeprefix("./").rpartition("/")
                    stem, _, field = name.partition(".")
                    key, ending = folder + slash + stem, f".{field.lower()}"
                    if ending in IMAGE_SUFFIXES:
                        images.setdefault(key, (info.offset_data, info.size))
                    elif ending == ".cls":
                        opened.seek(info.offset_data)
                        labels[key] = opened.read(min(info.size, _LABEL)).decode("utf-8", "replace").strip()
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"cannot read {path}: {atomic.reason(error)}") from error
        return [[number, key, *place, labels.get(key)] for key, place in images.items()]


def _regular(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members that are files, hidden ones left out."""
    while (info := tar.next()) is not None:
        if info.isreg() and not any(part.startswith(".") for part in info.name.removeprefix("./").split("/")):
            yield info
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all


def recognise_shards(data: str, run: Path) -> Shards | None:
    """The shards that `data` names, if it has the form `PROTOCOL://....tar`, with braces or wildcards or without.

    Raises:
        DataError: no such protocol or file, or they cannot be reached.
    """
    if not re.match(r"[a-z0-9+]+(::[a-z0-9+]+)*://", data) or not data.endswith(".tar"):
        return None
    patterns = expand_braces(data)
    try:
        files, _ = fsspec.core.url_to_fs(patterns[0])
        paths: list[str] = []
        for pattern in patterns:
            path = files._strip_protocol(pattern)
            paths += sorted(files.glob(path)) if re.search(r"[*?\[]", path) else [path]
        if not paths:
            raise DataError(f"no file matches {data!r}")
        sizes = [files.size(path) for path in paths]
        heads = files.cat_ranges(paths, [0] * len(paths), [min(_HEAD, size) for size in sizes])
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"cannot read {data}: {atomic.reason(error)}") from error
    total = hashlib.sha256()
    for path, size, head in zip(paths, sizes, heads, strict=True):
        total.update(json.dumps([path.rpartition("/")[2], size]).encode() + bytes(head))
    return Shards(data, files, tuple(paths), total.hexdigest())
