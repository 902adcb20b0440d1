"""Long work on many rows, cut into parts: any process computes a part and keeps it as a file until all are there.

    FOLDER/KEY-00000000-00001024.safetensors ...     the tensors of rows 0 .. 1023, [1024, ...] each

A part is the same whoever computes it, because the cuts do not depend on the number of processes. After a kill the same
work goes on with the parts that are missing, with any number of processes.

Shapes: n rows in all, b rows of a part.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vqvae2.files import tensor_file
from vqvae2.files.atomic import FileError, open_regular, write_json
from vqvae2.files.records import Record
from vqvae2.files.seen import await_seen
from vqvae2.processes import Group


@dataclass
class Parts:
    """The parts of one piece of work.

    Attributes:
        folder: for the files of this work alone; all processes must see the same one.
        key: identifies what is computed of which rows, letters and digits; parts under another key are removed.
        ranges: the rows of each part, ascending and without gaps.
        group: the processes that share the work.
        mine: what this process has still to compute.
    """

    folder: Path
    key: str
    ranges: Sequence[range]
    group: Group = field(default_factory=Group)
    mine: list[range] = field(default_factory=list)

    def begin(self) -> None:
        """Look for what is there, and share out the rest; a collective.

        Raises:
            FileError: the folder is a link.
        """
        _refuse_link(self.folder)
        missing: list[range] = []
        if self.group.main:
            own = {self._file(rows) for rows in self.ranges}
            for old in self.folder.glob("*.safetensors"):
                if old not in own:
                    with suppress(OSError):
                        old.unlink()
            missing = [rows for rows in self.ranges if not self._usable(rows)]
        self.mine = self.group.share(self.group.agreed(missing))

    def write(self, rows: range, tensors: Mapping[str, Tensor]) -> None:
        """Keep a part that this process has computed.

        Raises:
            FileError: it cannot be written.
        """
        tensor_file.save_tensors(self._file(rows), tensors, {"rows": len(rows)})

    def compute(
        self,
        work: Callable[[range], Mapping[str, Tensor]],
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Compute and keep this process's parts, then wait for the others; a collective.

        Args:
            work: returns the tensors [b, ...] of some rows.
            progress: called with the number of rows that this process has done.
        """
        done = 0
        for rows in self.mine:
            self.write(rows, work(rows))
            done += len(rows)
            progress(done)
        self.group.wait()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The tensors of each part, in order; all are there.

        Raises:
            FileError: a part is damaged.
            NotSeen: another process wrote one that this process does not see.
        """
        for rows in self.ranges:
            if self.group.count > 1:
                await_seen([self._file(rows)])
            yield tensor_file.load_tensors(self._file(rows))[0]

    def joined(self) -> dict[str, Tensor]:
        """The tensors [n, ...] of all rows."""
        parts = list(self)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def forget(self, ranges: Sequence[range]) -> None:
        """Remove the files of some parts, whose rows are kept elsewhere by now."""
        for rows in ranges:
            self._file(rows).unlink(missing_ok=True)

    def remove(self) -> None:
        """When every process has read what it needs: remove the files; a collective."""
        self.group.wait()
        if self.group.main:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, rows: range) -> Path:
        return self.folder / f"{self.key[:16]}-{rows.start:08d}-{rows.stop:08d}.safetensors"

    def _usable(self, rows: range) -> bool:
        try:
            tensors, _ = tensor_file.load_tensors(self._file(rows))
        except FileError:
            return False
        return all(len(tensor) == len(rows) for tensor in tensors.values())


class _Finished(Record):
    """What `Kept` knows of one finished result."""

    figures: dict[str, list[float]]
    files: dict[str, str]  # sha256 by path


class Kept:
    """The results of a command that writes some files and a few figures per image, kept as `FOLDER/KEY.json` until all are there.

    Unlike those of `Parts`, each process makes results of images that it has already read; after a kill another one may find them.

    Args:
        folder: for these files alone, the same for all processes; None keeps nothing.
        keys: one per result of this process; a key identifies all that a result is made from.
        group: the processes that share the work; making a `Kept` is a collective.

    Raises:
        FileError: the folder is a link.
    """

    def __init__(self, folder: Path | None, keys: Sequence[str], group: Group) -> None:
        self.folder, self.group = folder, group
        own = {f"{key}.json" for part in group.gathered(list(keys)) for key in part}
        if folder is not None:
            _refuse_link(folder)
        if folder is not None and group.main:
            for old in folder.glob("*.json"):
                if old.name not in own:
                    with suppress(OSError):
                        old.unlink()

    def result(
        self, key: str, make: Callable[[], tuple[dict[str, list[float]], list[Path]]]
    ) -> tuple[dict[str, list[float]], list[Path]]:
        """The figures and the files of one result: those that are kept if the files are as they were, or new ones.

        Args:
            make: writes the files; returns figures by name, and the files.

        Raises:
            FileError: the result cannot be kept.
        """
        if self.folder is None:
            return make()
        place = self.folder / f"{key}.json"
        try:
            kept = _Finished.read(place)
            if all(file_digest(Path(file)) == digest for file, digest in kept.files.items()):
                return kept.figures, [Path(file) for file in kept.files]
        except (OSError, FileError):
            pass  # not there, damaged, or one of its files is gone
        figures, files = make()
        write_json(place, {"figures": figures, "files": {str(file): file_digest(file) for file in files}})
        return figures, files

    def remove(self) -> None:
        """When all results are there: forget them; a collective."""
        self.group.wait()
        if self.folder is not None and self.group.main:
            shutil.rmtree(self.folder, ignore_errors=True)


def _refuse_link(folder: Path) -> None:
    """A link in a folder of a stranger could have files removed anywhere."""
    if folder.is_symlink():
        raise FileError(f"{folder} is a link, so nothing is written or removed there; delete it")


def file_digest(file: Path) -> str:
    """sha256 of the bytes of a file; 64 hexadecimal digits.

    Raises:
        OSError, FileError: it cannot be read, or is no regular file.
    """
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def cut(count: int, size: int, begin: int = 0) -> list[range]:
    """The rows `begin` .. `begin` + count - 1 in ranges of `size`, of which the last may be shorter."""
    return [range(begin + at, begin + min(at + size, count)) for at in range(0, count, size)]
