"""The code store: the codes of all images in memory-mapped arrays, with a manifest that describes them.

    RUN/codes/level-0.npy ...   uint16 [n, h, w], coarsest level first
    RUN/codes/labels.npy        int64 [n]; zeros without classes
    RUN/codes/split.npy         int8 [n]; 0 training, 1 held out
    RUN/codes/manifest.json     geometry, digest of the autoencoder's weights, n, classes, fingerprint of the data, and a
                                checksum of each array

A new store is first written under temporary names in the same folder. When all its arrays are complete, the file
`next.json` is written: the new manifest together with the list of renames that are still to be done. From that
moment the new store counts, even if the process dies: readers find the arrays under either name, and the next training
completes the renames. Reading never changes the folder.

Shapes: n images, b images of a batch, h w the grid of a level.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, field_validator

from vqvae2.codes import Codes, Geometry
from vqvae2.data.array_writer import ArrayWriter
from vqvae2.errors import UserError
from vqvae2.files import arrays, atomic
from vqvae2.files.records import Record
from vqvae2.files.temporary import is_temporary_name, sweep

FORMAT = 1  # a larger number in a manifest was written by a newer version
_AT_ONCE = 2**24  # bytes that are checked at a time
_Side = Annotated[int, Field(ge=1, le=65536)]


class StoreError(UserError):
    """A code store that is missing or damaged, cannot be written, or was made by another autoencoder."""


class _Grids(Record):
    """A `Geometry` in a manifest."""

    grids: list[Annotated[list[_Side], Field(min_length=2, max_length=2)]]
    vocabulary: list[_Side]


class _Manifest(Record):
    """The content of manifest.json, and of next.json, which has `renames` besides."""

    format: int
    version: str = "unknown"
    geometry: _Grids
    digest: str
    fingerprint: str
    n: Annotated[int, Field(ge=0)]
    classes: list[str]
    checksums: dict[str, str] = Field(
        default_factory=dict
    )  # sha256 of each file's elements; former versions wrote none
    renames: dict[str, str] = Field(default_factory=dict)  # temporary names by final ones

    @field_validator("geometry")
    @classmethod
    def _one_vocabulary_per_grid(cls, value: _Grids) -> _Grids:
        if not value.grids or len(value.grids) != len(value.vocabulary):
            raise ValueError("expected one vocabulary per grid")
        return value

    @property
    def files(self) -> list[str]:
        """Names of the arrays."""
        return _file_names(len(self.geometry.grids))


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

    def __init__(self, manifest: _Manifest, files: Mapping[str, Path]) -> None:
        grids = tuple((h, w) for h, w in manifest.geometry.grids)
        self.geometry = Geometry(grids, tuple(manifest.geometry.vocabulary))
        self.digest, self.fingerprint = manifest.digest, manifest.fingerprint
        self.classes = tuple(manifest.classes)
        count, numbered = manifest.n, enumerate(grids)
        self._levels = [
            arrays.map_array(files[f"level-{index}.npy"], (count, *grid), np.uint16)
            for index, grid in numbered
        ]
        self.labels: NDArray[np.int64] = arrays.map_array(files["labels.npy"], (count,), np.int64)
        self.split: NDArray[np.int8] = arrays.map_array(files["split.npy"], (count,), np.int8)
        self.train = np.flatnonzero(self.split == 0)
        self.heldout = np.flatnonzero(self.split == 1)

    def __len__(self) -> int:
        return len(self.labels)

    def codes(self, indices: ArrayLike) -> Codes:
        """The codes of the images with these indices: int64 tensors [b, h, w]."""
        chosen = np.asarray(indices, np.int64).reshape(-1)
        return Codes(tuple(torch.from_numpy(level[chosen].astype(np.int64)) for level in self._levels))

    def check(self, files: Mapping[str, Path], checksums: Mapping[str, str]) -> None:
        """Read everything once: codes, labels and splits are in range, and the checksums are those of the elements.

        Args:
            files: path of each array by its name, for the message.
            checksums: sha256 by name; names that are missing are not compared.

        Raises:
            StoreError: something is not so.
        """
        levels = dict(zip(_file_names(self.geometry.levels), self._levels, strict=False))
        sizes = {f"level-{i}.npy": size for i, size in enumerate(self.geometry.vocabulary)}
        sizes |= {"labels.npy": max(1, len(self.classes)), "split.npy": 2}
        for name, array in {**levels, "labels.npy": self.labels, "split.npy": self.split}.items():
            total = hashlib.sha256()
            rows = max(1, _AT_ONCE // (array.itemsize * math.prod(array.shape[1:])))
            for start in range(0, len(array), rows):
                part = np.ascontiguousarray(array[start : start + rows])
                total.update(part.data)
                least, most = int(part.min()), int(part.max())
                if least < 0 or most >= sizes[name]:
                    raise StoreError(
                        f"{files[name]} is damaged: expected values in 0..{sizes[name] - 1}, found {least}..{most}"
                    )
            if checksums.get(name, total.hexdigest()) != total.hexdigest():
                raise StoreError(
                    f"{files[name]} is damaged: its content does not match the checksum in the manifest"
                )


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
            try:
                complete_renames(self.folder)
            except StoreError:  # what cannot be read is replaced
                (self.folder / "next.json").unlink(missing_ok=True)
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
        self._manifest["checksums"] = {writer.path.name: writer.checksum for writer in self._writers}
        try:
            atomic.write_json(self.folder / "next.json", {**self._manifest, "renames": renames})
        except atomic.FileError as error:
            raise StoreError(str(error)) from error
        self._writers = []
        complete_renames(self.folder)

    def _abandon(self) -> None:
        for writer in self._writers:
            writer.abandon()
        self._writers = []

    def _failed(self, error: OSError) -> StoreError:
        return StoreError(
            f"cannot write codes to {self.folder}: {error.strerror or error}; an older store is kept"
        )


def open_store(folder: str | Path, *, digest: str | None = None, check: bool = True) -> CodeStore:
    """Open a code store; nothing in the folder is changed.

    Args:
        folder: RUN/codes.
        digest: digest of the weights of the autoencoder that must have made the codes; None = any autoencoder.
        check: read everything once and compare it with the checksums (`CodeStore.check`). Without it codes may be out of
            range, so leave it out only where another process has just checked the same store.

    Raises:
        StoreError: the store is missing, incomplete, damaged, of a newer version, or of another autoencoder.
    """
    folder = Path(folder)
    try:
        pending = (folder / "next.json").exists()
        if not pending and not (folder / "manifest.json").exists():
            raise StoreError(f"no complete code store in {folder}: manifest.json is missing")
        manifest = _read_manifest(folder / ("next.json" if pending else "manifest.json"))
        files = {name: folder / name for name in manifest.files}
        for name, temporary in manifest.renames.items():
            if (folder / temporary).exists():  # otherwise it was renamed already
                files[name] = folder / temporary
        store = CodeStore(manifest, files)
        if check:
            store.check(files, manifest.checksums)
    except FileNotFoundError as error:
        raise StoreError(
            f"no complete code store in {folder}: {Path(str(error.filename)).name} is missing"
        ) from error
    except atomic.FileError as error:
        raise StoreError(f"the code store in {folder} cannot be used: {error}") from error
    except OSError as error:
        raise StoreError(f"the code store in {folder} cannot be read: {atomic.reason(error)}") from error
    if digest is not None and store.digest != digest:
        raise StoreError(
            f"the codes in {folder} were made by another autoencoder: expected weights {digest}, found codes of {store.digest}"
        )
    return store


def complete_renames(folder: Path) -> None:
    """Complete the renames of a finished store whose writer was stopped in between, then remove what it left behind.

    Until then `sweep` leaves the folder alone, so a temporary manifest of a killed process may lie there too. Only names of a
    code store's own files are renamed, whatever next.json says.

    Raises:
        StoreError: next.json is damaged.
        OSError: a file cannot be renamed.
    """
    pending = folder / "next.json"
    if not pending.exists():
        return
    manifest = _read_manifest(pending)
    for name, temporary in manifest.renames.items():
        if (folder / temporary).exists():  # otherwise it was renamed already
            (folder / temporary).replace(folder / name)
    for old in folder.glob("level-*.npy"):
        if old.name not in manifest.renames:
            old.unlink()
    try:
        atomic.write_json(folder / "manifest.json", manifest.model_dump(exclude={"renames"}))
    except atomic.FileError as error:
        raise StoreError(str(error)) from error
    pending.unlink()
    sweep(folder)


def _read_manifest(path: Path) -> _Manifest:
    """The manifest in manifest.json or next.json.

    Raises:
        StoreError: damaged, of a newer version, or with names that no store has.
    """
    try:
        value = atomic.read_object(path)
        version = value.get("format")
        if type(version) is int and version > FORMAT:
            raise StoreError(
                f"{path.parent} was written by a newer vqvae2 ({value.get('version')}, format {version})"
            )
        manifest = _Manifest.of(value, path)
    except atomic.FileError as error:
        raise StoreError(f"the code store in {path.parent} is damaged: {error}") from error
    pairs = manifest.renames.items()
    own = all(is_temporary_name(temporary, name) for name, temporary in pairs)
    expected = sorted(manifest.files) if path.name == "next.json" else []
    if sorted(manifest.renames) != expected or not own:
        raise StoreError(
            f"the code store in {path.parent} is damaged: {path.name} names files that are not its own"
        )
    return manifest


def _file_names(levels: int) -> list[str]:
    return [*(f"level-{index}.npy" for index in range(levels)), "labels.npy", "split.npy"]


def _version() -> str:
    try:
        return metadata.version("vqvae2")
    except metadata.PackageNotFoundError:
        return "unknown"
