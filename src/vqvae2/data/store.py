"""The code store: the codes of all images in memory-mapped arrays, with a manifest that describes them.

    RUN/codes/level-0.npy ...   uint16 [n, h, w], coarsest level first
    RUN/codes/labels.npy        int64 [n]; zeros without classes
    RUN/codes/split.npy         int8 [n]; 0 training, 1 held out
    RUN/codes/manifest.json     geometry, digest of the autoencoder's weights, n, classes, fingerprint of the data, and a
                                checksum of each array

A new store (`data/store_writer.py`) is first written under temporary names in the same folder, or under its own names in
the folder `parts` below. When all its arrays are complete, the file `next.json` is written: the new manifest together with the list of renames that are still to be done. From that
moment the new store counts, even if the process dies: readers find the arrays under either name, and the next training
completes the renames. Reading never changes the folder.

Shapes: n images, b images of a batch, h w the grid of a level.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, field_validator

from vqvae2.codes import Codes, Geometry
from vqvae2.errors import UserError
from vqvae2.files import arrays, atomic
from vqvae2.files.records import Record
from vqvae2.files.temporary import is_temporary_name, sweep

FORMAT = 1  # a larger number in a manifest was written by a newer version
PARTS = "parts"  # the sub-folder in which a store is put together from parts
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
        return file_names(len(self.geometry.grids))


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
        levels = dict(zip(file_names(self.geometry.levels), self._levels, strict=False))
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
    below = not (path.parent / PARTS).is_symlink()  # it may lead anywhere
    own = all(
        is_temporary_name(temporary, name) or (below and temporary == f"{PARTS}/{name}")
        for name, temporary in pairs
    )
    expected = sorted(manifest.files) if path.name == "next.json" else []
    if sorted(manifest.renames) != expected or not own:
        raise StoreError(
            f"the code store in {path.parent} is damaged: {path.name} names files that are not its own"
        )
    return manifest


def file_names(levels: int) -> list[str]:
    """The names of the arrays of a store of so many levels."""
    return [*(f"level-{index}.npy" for index in range(levels)), "labels.npy", "split.npy"]
