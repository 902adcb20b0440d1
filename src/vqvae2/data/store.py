"""The code store: what the autoencoder made of every picture, memory-mapped, with its manifest.

    RUN/codes/level-0.npy ...   uint16 [n, h, w], coarsest first
    RUN/codes/labels.npy        int64 [n]; zeros without classes
    RUN/codes/split.npy         int8 [n]; 0 train, 1 held out
    RUN/codes/manifest.json     geometry, digest of the autoencoder's weights, n, classes, fingerprint of the data

All files are written beside under temporary names. When they are complete, `next.json`, the new manifest with the
list of renames, appears; from then on the new store is the store, and whoever finds that file does the renames.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from vqvae2.codes import Codes, Geometry
from vqvae2.errors import UserError
from vqvae2.files import atomic

FORMAT = 1  # a larger number in a manifest was written by a newer version


class StoreError(UserError):
    """A code store that is missing, damaged, cannot be written, or is of another autoencoder."""


class ArrayWriter:
    """Writes an array [n, *tail] row by row to a .npy file that appears under its name only when complete.

    Args:
        path: the file; it is written beside, under a hidden temporary name.
        tail: the shape of one row.
        dtype: of the elements.
    """

    def __init__(self, path: Path, tail: tuple[int, ...], dtype: Any) -> None:
        self.path, self.tail, self.dtype = path, tail, np.dtype(dtype)
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.count = 0
        self._file = self.temporary.open("wb")
        self._header()

    def append(self, rows: NDArray[Any]) -> None:
        """Write some rows [b, *tail]."""
        if rows.shape[1:] != self.tail:
            raise ValueError(f"expected rows of shape {self.tail}, found {rows.shape[1:]}")
        self._file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.count += len(rows)

    def finish(self) -> None:
        """Complete the header and flush to the disk; the name is still the temporary one."""
        self._file.seek(0)
        self._header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def publish(self) -> None:
        """Give the finished file its name."""
        self.temporary.replace(self.path)

    def abandon(self) -> None:
        """Remove the temporary file."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self.temporary.unlink(missing_ok=True)

    def _header(self) -> None:
        """numpy leaves room for a first axis of any length, so that the header keeps its size."""
        shape = (self.count, *self.tail)
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


def sweep(folder: Path) -> None:
    """Remove the temporary files that a killed process left in `folder`: those not written to for ten minutes."""
    for old in folder.glob(".*.npy.*.tmp"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > 600:
                old.unlink()


class CodeStore:
    """Codes of n pictures, read from the disk as they are asked for.

    Attributes:
        geometry: grids and vocabularies.
        digest: of the weights of the autoencoder that made the codes.
        fingerprint: of the data.
        classes: class names; () = no labels.
        labels: int64 [n].
        split: int8 [n], 0 train, 1 held out.
        train, heldout: int64 indices, sorted.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.geometry = Geometry.from_json(manifest["geometry"])
        self.digest, self.fingerprint = str(manifest["digest"]), str(manifest["fingerprint"])
        self.classes = tuple(str(name) for name in manifest["classes"])
        count = int(manifest["n"])
        grids = enumerate(self.geometry.grids)
        self._levels = [
            _mapped(folder / f"level-{index}.npy", (count, *grid), np.uint16) for index, grid in grids
        ]
        self.labels: NDArray[np.int64] = _mapped(folder / "labels.npy", (count,), np.int64)
        self.split: NDArray[np.int8] = _mapped(folder / "split.npy", (count,), np.int8)
        self.train = np.flatnonzero(self.split == 0)
        self.heldout = np.flatnonzero(self.split == 1)

    def __len__(self) -> int:
        return len(self.labels)

    def codes(self, indices: ArrayLike) -> Codes:
        """The codes of some pictures: int64 tensors [b, h, w]."""
        chosen = np.asarray(indices, np.int64).reshape(-1)
        return Codes(tuple(torch.from_numpy(level[chosen].astype(np.int64)) for level in self._levels))


class StoreWriter:
    """Writes a code store; use it as a context manager.

    On leaving without an exception the store takes the place of an older one; otherwise the older one stays.

    Args:
        folder: RUN/codes; created.
        geometry: of the codes to come.
        digest: of the autoencoder's weights.
        n: number of pictures to come.
        classes: class names; () = no labels.
        fingerprint: of the data.
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
    ) -> None:
        if max(geometry.vocabulary) > 65536:
            raise StoreError(
                f"the store keeps 16 bits per code: expected at most 65536 codes, found {geometry.vocabulary}"
            )
        self.folder, self.geometry, self.n = Path(folder), geometry, n
        self.count = 0
        self._manifest = {
            "format": FORMAT,
            "geometry": geometry.to_json(),
            "digest": digest,
            "n": n,
            "classes": list(classes),
            "fingerprint": fingerprint,
            "version": _version(),
        }
        self._writers: list[ArrayWriter] = []

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _settle(self.folder)
            sweep(self.folder)
            for index, grid in enumerate(self.geometry.grids):
                self._writers.append(ArrayWriter(self.folder / f"level-{index}.npy", grid, np.uint16))
            self._writers.append(ArrayWriter(self.folder / "labels.npy", (), np.int64))
            self._writers.append(ArrayWriter(self.folder / "split.npy", (), np.int8))
        except OSError as error:
            self._abandon()
            raise self._failed(error) from error
        return self

    def append(self, codes: Codes, labels: ArrayLike, split: ArrayLike) -> None:
        """Add the codes [b, h, w] of some pictures, their labels [b] and sides [b] (0 train, 1 held out).

        Raises:
            CodesError: they do not fit the geometry.
            StoreError: more pictures than announced, lengths that differ, or a full disk.
        """
        self.geometry.check(codes)
        columns: list[NDArray[Any]] = [
            np.asarray(labels, np.int64).reshape(-1),
            np.asarray(split, np.int8).reshape(-1),
        ]
        if {len(column) for column in columns} != {len(codes)} or self.count + len(codes) > self.n:
            raise StoreError(
                f"expected at most {self.n - self.count} more pictures with a label and a side each, found "
                f"{len(codes)} codes, {len(columns[0])} labels and {len(columns[1])} sides"
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
            raise StoreError(
                f"expected codes of {self.n} pictures, found {self.count}; the old store is kept"
            )
        for writer in self._writers:
            writer.finish()
        renames = {writer.path.name: writer.temporary.name for writer in self._writers}
        try:
            atomic.write_json(self.folder / "next.json", {**self._manifest, "renames": renames})
        except atomic.FileError as error:
            raise StoreError(str(error)) from error
        self._writers = []
        _settle(self.folder)

    def _abandon(self) -> None:
        for writer in self._writers:
            writer.abandon()
        self._writers = []

    def _failed(self, error: OSError) -> StoreError:
        return StoreError(
            f"cannot write codes to {self.folder}: {error.strerror or error}; an older store is kept"
        )


def open_store(folder: str | Path, *, digest: str | None = None) -> CodeStore:
    """Open a code store.

    Args:
        folder: RUN/codes.
        digest: of the autoencoder's weights that the codes must be of; None = any.

    Raises:
        StoreError: missing, incomplete, damaged, of a newer version, or of another autoencoder.
    """
    folder = Path(folder)
    try:
        _settle(folder)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if int(manifest["format"]) > FORMAT:
            raise StoreError(
                f"{folder} was written by a newer vqvae2 ({manifest['version']}, format {manifest['format']})"
            )
        store = CodeStore(folder, manifest)
    except FileNotFoundError as error:
        raise StoreError(
            f"no complete code store in {folder}: {Path(str(error.filename)).name} is missing"
        ) from error
    except StoreError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError) as error:
        raise StoreError(f"the code store in {folder} is damaged: {' '.join(str(error).split())}") from error
    if digest is not None and store.digest != digest:
        raise StoreError(
            f"the codes in {folder} are of another autoencoder: expected weights {digest}, found codes of {store.digest}"
        )
    return store


def _settle(folder: Path) -> None:
    """Do the renames of a finished store that were not done yet."""
    try:
        manifest = json.loads((folder / "next.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    renames = manifest.pop("renames")
    for name, temporary in renames.items():
        with suppress(FileNotFoundError):  # done before
            (folder / temporary).replace(folder / name)
    for old in folder.glob("level-*.npy"):
        if old.name not in renames:
            old.unlink()
    atomic.write_json(folder / "manifest.json", manifest)
    (folder / "next.json").unlink()


def _mapped(path: Path, shape: tuple[int, ...], dtype: Any) -> Any:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise StoreError(
            f"{path} is damaged: expected {np.dtype(dtype)} {list(shape)}, found {array.dtype} {list(array.shape)}"
        )
    return array


def _version() -> str:
    try:
        return metadata.version("vqvae2")
    except metadata.PackageNotFoundError:
        return "unknown"
