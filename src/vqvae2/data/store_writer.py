"""Writing a code store (`data/store.py`): from memory, or from parts that are removed as soon as they are in it.

Parts and store together would need twice the disk space. So what was joined is flushed and noted in `parts/joined.json`
from time to time, and the parts that it came from are removed. After a kill, joining goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from vqvae2.codes import Codes, Geometry
from vqvae2.data.array_writer import ArrayWriter, rows_in
from vqvae2.data.store import FORMAT, PARTS, StoreError, complete_renames, file_names
from vqvae2.files import atomic
from vqvae2.files.records import Record
from vqvae2.files.temporary import sweep

_RECORD = "joined.json"


class _Joined(Record):
    """The content of parts/joined.json."""

    key: str
    rows: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Joining:
    """How far the joining of parts is.

    Attributes:
        key: identifies the content of the parts.
        rows: how many images a process that was killed has joined and noted.
    """

    key: str
    rows: int = 0

    @classmethod
    def of(cls, folder: Path, key: str, geometry: Geometry) -> Self:
        """What a killed process has left in RUN/codes; 0 rows if nothing, other content, or it is damaged."""
        place = folder / PARTS
        try:
            record = _Joined.read(place / _RECORD)
            columns = [(place / name, tail, kind) for name, tail, kind in _columns(geometry)]
            linked = any(path.is_symlink() for path in (place, *(file for file, _, _ in columns)))
            whole = all(rows_in(*column) >= record.rows for column in columns)
        except (atomic.FileError, OSError):
            return cls(key)
        return cls(key, record.rows if record.key == key and whole and not linked else 0)


def _columns(geometry: Geometry) -> list[tuple[str, tuple[int, ...], Any]]:
    """Name, shape of a row and type of each array."""
    grids = [(grid, np.uint16) for grid in geometry.grids]
    kinds: list[tuple[tuple[int, ...], Any]] = [*grids, ((), np.int64), ((), np.int8)]
    return [(name, *kind) for name, kind in zip(file_names(geometry.levels), kinds, strict=True)]


class StoreWriter:
    """Writes a code store; use it as a context manager.

    When the block ends without an exception, the new store replaces an older one in the same folder. When it ends
    with an exception, the older one stays as it was.

    Args:
        folder: RUN/codes; created when missing.
        geometry: grid sizes and numbers of codes of the levels; at most 65536 codes per level.
        digest: digest of the weights of the autoencoder that makes the codes.
        n: number of images that will be appended.
        classes: class names; () = no labels.
        fingerprint: fingerprint of the data (`ImageSet.fingerprint`).
        joining: the store is put together from parts that are removed meanwhile; None writes it at one go.

    Attributes:
        count: images appended so far, by a process that was killed too (`joining.rows`).

    Raises:
        StoreError: too many codes per level, fewer than n images when the block ends, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        geometry: Geometry,
        digest: str,
        n: int,
        *,
        classes: Sequence[str] = (),
        fingerprint: str = "",
        joining: Joining | None = None,
    ) -> None:
        if max(geometry.vocabulary) > 65536:
            raise StoreError(
                f"the store keeps 16 bits per code: expected at most 65536 codes, found {geometry.vocabulary}"
            )
        self.folder, self.geometry, self.n = Path(folder), geometry, n
        self.joining, self.count = joining, joining.rows if joining else 0
        self._manifest = {
            "format": FORMAT,
            "geometry": geometry.to_json(),
            "digest": digest,
            "n": n,
            "classes": list(classes),
            "fingerprint": fingerprint,
            "version": metadata.version("vqvae2"),
        }
        self._writers: list[ArrayWriter] = []

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                complete_renames(self.folder)
            except StoreError:  # what cannot be read is replaced
                (self.folder / "next.json").unlink(missing_ok=True)
            sweep(self.folder)
            if self.joining:
                (self.folder / PARTS).mkdir(exist_ok=True)
            for name, tail, kind in _columns(self.geometry):
                place = self.folder / PARTS / name if self.joining else None
                self._writers.append(ArrayWriter(self.folder / name, tail, kind, place, self.count))
        except OSError as error:
            self._abandon()
            raise self._failed(error) from error
        return self

    def append(self, codes: Codes, labels: ArrayLike, split: ArrayLike) -> None:
        """Add the codes [b, h, w] of b images, their labels [b] and their split [b] (0 training, 1 held out).

        Raises:
            CodesError: the codes do not fit the geometry.
            StoreError: more images than announced, lengths that differ, or the disk is full.
        """
        self.geometry.check(codes)
        columns: list[NDArray[Any]] = [
            np.asarray(labels, np.int64).reshape(-1),
            np.asarray(split, np.int8).reshape(-1),
        ]
        if {len(column) for column in columns} != {len(codes)} or self.count + len(codes) > self.n:
            raise StoreError(
                f"expected at most {self.n - self.count} more images with a label and a split each, found "
                f"{len(codes)} codes, {len(columns[0])} labels and {len(columns[1])} splits"
            )
        rows: list[NDArray[Any]] = [
            *(level.cpu().numpy().astype(np.uint16) for level in codes.levels),
            *columns,
        ]
        try:
            for writer, row in zip(self._writers, rows, strict=True):
                writer.append(row)
        except OSError as error:
            raise self._failed(error) from error
        self.count += len(codes)

    def keep(self) -> None:
        """Flush what was appended to the disk and note it, so that the parts it came from may be removed.

        Raises:
            StoreError: the disk is full.
        """
        assert self.joining is not None
        try:
            for writer in self._writers:
                writer.flush()
            atomic.write_json(self.folder / PARTS / _RECORD, {"key": self.joining.key, "rows": self.count})
        except atomic.FileError as error:
            raise StoreError(str(error)) from error
        except OSError as error:
            raise self._failed(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as problem:
            raise self._failed(problem) from problem
        finally:
            self._abandon()

    def _finish(self) -> None:
        if self.count != self.n:
            raise StoreError(f"expected codes of {self.n} images, found {self.count}; the old store is kept")
        for writer in self._writers:
            writer.finish()
        renames = {
            writer.path.name: writer.temporary.relative_to(self.folder).as_posix() for writer in self._writers
        }
        self._manifest["checksums"] = {writer.path.name: writer.checksum for writer in self._writers}
        try:
            atomic.write_json(self.folder / "next.json", {**self._manifest, "renames": renames})
        except atomic.FileError as error:
            raise StoreError(str(error)) from error
        self._writers = []
        complete_renames(self.folder)

    def _abandon(self) -> None:
        for writer in self._writers:
            writer.abandon(remove=self.joining is None)
        self._writers = []

    def _failed(self, error: OSError) -> StoreError:
        return StoreError(
            f"cannot write codes to {self.folder}: {atomic.reason(error)}; an older store is kept"
        )
