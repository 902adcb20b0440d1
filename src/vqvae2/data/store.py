"""The code store: the codes of all images in memory-mapped arrays, with a manifest that describes them.

    RUN/codes/level-0.npy ...   uint16 [n, h, w], coarsest level first
    RUN/codes/labels.npy        int64 [n]; zeros without classes
    RUN/codes/split.npy         int8 [n]; 0 training, 1 held out
    RUN/codes/manifest.json     geometry, digest of the autoencoder's weights, n, classes, fingerprint of the data

A new store is first written under temporary names in the same folder. When all its arrays are complete, the file
`next.json` is written: the new manifest together with the list of renames that are still to be done. From that
moment the new store counts, even if the process dies: whoever opens the folder next completes the renames.

Shapes: n images, b images of a batch, h w the grid of a level.
"""

from __future__ import annotations

import json
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
from vqvae2.data.array_writer import ArrayWriter
from vqvae2.errors import UserError
from vqvae2.files import atomic
from vqvae2.files.temporary import sweep

FORMAT = 1  # a larger number in a manifest was written by a newer version


class StoreError(UserError):
    """A code store that is missing or damaged, cannot be written, or was made by another autoencoder."""


class CodeStore:
    """The codes of n images, read from the disk when they are requested.

    Attributes:
        geometry: grid sizes and numbers of codes of the levels.
        digest: digest of the weights of the autoencoder that made the codes.
        fingerprint: fingerprint of the data (`ImageSet.fingerprint`).
        classes: class names; () = no labels.
        labels: int64 [n]; zeros without classes.
        split: int8 [n], 0 training, 1 held out.
        train, heldout: sorted int64 indices of the training and of the held-out images.
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
        """The codes of the images with these indices: int64 tensors [b, h, w]."""
        chosen = np.asarray(indices, np.int64).reshape(-1)
        return Codes(tuple(torch.from_numpy(level[chosen].astype(np.int64)) for level in self._levels))


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
            _complete_renames(self.folder)
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
        renames = {writer.path.name: writer.temporary.name for writer in self._writers}
        try:
            atomic.write_json(self.folder / "next.json", {**self._manifest, "renames": renames})
        except atomic.FileError as error:
            raise StoreError(str(error)) from error
        self._writers = []
        _complete_renames(self.folder)

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
        digest: digest of the weights of the autoencoder that must have made the codes; None = any autoencoder.

    Raises:
        StoreError: the store is missing, incomplete, damaged, of a newer version, or of another autoencoder.
    """
    folder = Path(folder)
    try:
        _complete_renames(folder)
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
            f"the codes in {folder} were made by another autoencoder: expected weights {digest}, found codes of {store.digest}"
        )
    return store


def _complete_renames(folder: Path) -> None:
    """Complete the renames of a finished store whose writer was stopped in between."""
    try:
        manifest = json.loads((folder / "next.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    renames = manifest.pop("renames")
    for name, temporary in renames.items():
        with suppress(FileNotFoundError):  # was renamed already
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
