"""Tar files with images on this machine, such as WebDataset shards, also compressed ones."""

from __future__ import annotations

import functools
import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError
from vqvae2.data.listing import Listing, Payload, Span
from vqvae2.data.tar_members import Member, indexed, list_members
from vqvae2.data.tar_splits import Chosen
from vqvae2.errors import printable
from vqvae2.files import atomic
from vqvae2.files.temporary import sweep

_BOMB = 200  # a compressed tar that unpacks to more than this many times its size and to more than a GB is refused
_BLOCK = 1 << 20


@dataclass(frozen=True)
class LocalTars:
    """Tars on a disk of this machine.

    Attributes:
        names: below the folder in which they were found.
        files: their places.
    """

    names: Sequence[str]
    files: Sequence[Path]

    def place(self, number: int) -> str:
        """The path of a tar."""
        return str(self.files[number])

    def size(self, number: int) -> int:
        """Bytes of a tar."""
        return self.files[number].stat().st_size

    def open(self, number: int) -> IO[bytes]:
        """A tar, with random access."""
        return self.files[number].open("rb")

    def read(self, members: Sequence[Member]) -> list[Payload | None]:
        """Where members are, in order: their bytes are read where they are decoded."""
        places = [str(file.absolute()) for file in self.files]
        return [Span(places[member.shard], member.offset, member.size) for member in members]


@dataclass(frozen=True)
class TarFiles:
    """Tars, one or several.

    Attributes:
        data: DATA as the user wrote it, for messages.
        names: of the files, below the folder in which they were found, or below the one that holds all of them.
        files: the files, in order.
        identity: sha256 of their paths below the latter, and of their contents.
    """

    data: str
    names: tuple[str, ...]
    files: tuple[Path, ...]
    identity: str

    def list_images(self, config: DataConfig, scratch: Path) -> Listing:
        """The images of all files; compressed ones are unpacked in `scratch`, once, and the index of their members is kept there."""
        chosen = Chosen.of(self.names, config.split)
        tars = LocalTars(
            [self.names[number] for number in chosen.numbers],
            [self._plain(number, scratch) for number in chosen.numbers],
        )
        facts = [file.stat() for file in tars.files]
        stamps = [(fact.st_size, fact.st_mtime_ns) for fact in facts]
        key = json.dumps([self.identity, chosen.numbers, config.label_column, stamps])
        members = indexed(scratch / "tars.json", key, tars, config.label_column)
        return list_members(self.data, tars, members, chosen, config)

    def _plain(self, number: int, scratch: Path) -> Path:
        file = self.files[number]
        if file.suffix.lower() not in (".gz", ".tgz"):
            return file
        plain = scratch / f"{number}-{self.identity[:16]}.tar"  # other commands may be reading it
        if not plain.exists():
            sweep(scratch)
            for old in scratch.glob(f"{number}[-.]*"):  # of other data
                old.unlink(missing_ok=True)
            atomic.write_atomic(plain, functools.partial(_unpack, file))
        return plain


def _unpack(file: Path, target: Path) -> None:
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
        raise DataError(f"cannot unpack {printable(str(file))}: {atomic.reason(error)}") from error
