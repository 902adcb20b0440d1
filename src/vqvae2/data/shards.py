"""Tar shards on any file system that fsspec knows: `s3://bucket/train-{0000..0146}.tar`, `hf://datasets/owner/name/*.tar`.

    shards --headers, once--> shards.json (name, offset and size of every image) --ranges of bytes--> encoded images

No copy is kept. File systems read ahead, often some MB, so the pass over the headers transfers nearly all bytes of images that
are smaller than that; then a batch reads the bytes of its images. With the index every image can be read at random, so the
data are split by process, resumed and shuffled as any others. `data.shuffle_buffer` keeps the images of a batch near each
other.

What the members and the names of the shards mean is understood as for tars on this machine (`tar_members`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec

from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError
from vqvae2.data.listing import Listing, Payload
from vqvae2.data.table_files import below_common, expand_braces
from vqvae2.data.tar_members import Member, indexed, list_members
from vqvae2.data.tar_splits import Chosen
from vqvae2.files import atomic

_HEAD = 4096  # bytes of a shard that identify it together with its size


@dataclass(frozen=True)
class RemoteTars:
    """Tars on a file system of fsspec.

    Attributes:
        files: the file system.
        names: of the tars, below the folder that holds all of them.
        paths: of the tars.
        sizes: in bytes.
    """

    files: Any
    names: Sequence[str]
    paths: Sequence[str]
    sizes: Sequence[int]

    def place(self, number: int) -> str:
        """The path of a tar."""
        return self.paths[number]

    def size(self, number: int) -> int:
        """Bytes of a tar."""
        return self.sizes[number]

    def open(self, number: int) -> IO[bytes]:
        """A tar, with random access."""
        opened: IO[bytes] = self.files.open(self.paths[number], "rb")
        return opened

    def read(self, members: Sequence[Member]) -> list[Payload | None]:
        """The bytes of members, in order; distant file systems read them at the same time.

        Raises:
            DataError: they cannot be read.
        """
        paths = [self.paths[member.shard] for member in members]
        starts = [member.offset for member in members]
        ends = [member.offset + member.size for member in members]
        with _reading(self.paths[members[0].shard]):
            return list(self.files.cat_ranges(paths, starts, ends, on_error="raise"))

    def only(self, numbers: Sequence[int]) -> RemoteTars:
        """Some of the tars."""
        every = zip(self.names, self.paths, self.sizes, strict=True)
        names, paths, sizes = zip(*(item for i, item in enumerate(every) if i in {*numbers}), strict=True)
        return RemoteTars(self.files, names, paths, sizes)


@dataclass(frozen=True)
class Shards:
    """Shards that were found.

    Attributes:
        data: DATA as the user wrote it.
        tars: the shards, in order.
        identity: sha256 of their names as in `RemoteTars`, sizes and first bytes.
    """

    data: str
    tars: RemoteTars
    identity: str

    def list_images(self, config: DataConfig, scratch: Path) -> Listing:
        """The images of all shards. The index of their members is made once and kept in `scratch`."""
        chosen = Chosen.of(self.tars.names, config.split)
        tars = self.tars.only(chosen.numbers)
        key = json.dumps([self.identity, chosen.numbers, config.label_column])
        with _reading(self.data):
            members = indexed(scratch / "shards.json", key, tars, config.label_column)
        return list_members(self.data, tars, members, chosen, config)


@contextmanager
def _reading(place: str) -> Iterator[None]:
    """Turn whatever a file system raises into a `DataError` of one line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # each file system has kinds of its own
        raise DataError(f"cannot read {place}: {atomic.reason(error)}") from error


def recognise_shards(data: str, run: Path) -> Shards | None:
    """The shards that `data` names, if it has the form `PROTOCOL://....tar`, with braces or wildcards or without.

    Raises:
        DataError: another ending, no such protocol or file, or they cannot be reached.
    """
    if not re.match(r"[a-z0-9+]+(::[a-z0-9+]+)*://", data):
        return None
    if not data.endswith(".tar"):
        raise DataError(_refusal(data))
    patterns = expand_braces(data)
    if not patterns:
        raise DataError(f"no file matches {data!r}")
    with _reading(data):
        files, _ = fsspec.core.url_to_fs(patterns[0])
        paths: list[str] = []
        for pattern in patterns:
            path = files._strip_protocol(pattern)
            paths += sorted(files.glob(path)) if re.search(r"[*?\[]", path) else [path]
        if not paths:
            raise DataError(f"no file matches {data!r}")
        sizes = [files.size(path) for path in paths]
        if None in sizes:
            raise DataError(
                f"cannot read {data}: nothing says how many bytes it has, so it has no random access"
            )
        ends = [min(_HEAD, size) for size in sizes]
        heads = files.cat_ranges(paths, [0] * len(paths), ends, on_error="raise")
    total, names = hashlib.sha256(), below_common(paths)
    for name, size, head in zip(names, sizes, heads, strict=True):
        total.update(json.dumps([name, size]).encode() + bytes(head))
    return Shards(data, RemoteTars(files, names, paths, sizes), total.hexdigest())


def _refusal(data: str) -> str:
    """Why DATA of this form is not read, and what to do."""
    if data.endswith(".parquet"):
        return (
            f"cannot read {data!r}: a row of a parquet file cannot be read without the rows around it, so only tar shards are "
            "read from such places; see 'Parquet files as tar shards' on the page On several GPUs and machines"
        )
    if data.endswith((".tar.gz", ".tgz")):
        return f"cannot read {data!r}: a compressed tar has no random access; store it as .tar, images are compressed anyway"
    return f"cannot read {data!r}: expected PROTOCOL://....tar, with braces or wildcards, or a path without a protocol"
