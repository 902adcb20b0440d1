"""The code store: what was written is read again, and an incomplete or foreign store never is."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqvae2.codes import Codes, CodesError, Geometry
from vqvae2.data.array_writer import ArrayWriter
from vqvae2.data.store import CodeStore, StoreError, complete_renames, open_store
from vqvae2.data.store_writer import StoreWriter
from vqvae2.files import atomic
from vqvae2.files.process import host

GEOMETRY = Geometry(((2, 3), (4, 6)), (16, 65536))
DIGEST, OTHER = "a" * 64, "b" * 64


def some_codes(count: int, seed: int = 0, geometry: Geometry = GEOMETRY) -> Codes:
    torch.manual_seed(seed)
    return Codes(
        tuple(
            torch.randint(0, size, (count, *grid))
            for grid, size in zip(geometry.grids, geometry.vocabulary, strict=True)
        )
    )


def write(folder: Path, count: int = 10, seed: int = 0, digest: str = DIGEST, step: int = 4) -> Codes:
    codes = some_codes(count, seed)
    labels, split = torch.arange(count) % 3, (np.arange(count) % 5 == 0).astype(np.int8)
    with StoreWriter(folder, GEOMETRY, digest, count, classes=("x", "y", "z"), fingerprint="f") as writer:
        for start in range(0, count, step):
            rows = slice(start, start + step)
            writer.append(codes[rows], labels[rows], split[rows])
    return codes


def holds(store: CodeStore, codes: Codes) -> bool:
    codes_read = store.codes(range(len(store)))
    return len(store) == len(codes) and all(map(torch.equal, codes_read.levels, codes.levels))


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 9))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, count: int, step: int, seed: int) -> None:
    folder = tmp_path_factory.mktemp("codes")
    codes = write(folder, count, seed, step=step)
    store = open_store(folder, digest=DIGEST)
    assert holds(store, codes)
    assert store.geometry == GEOMETRY
    assert (store.digest, store.fingerprint, store.classes) == (DIGEST, "f", ("x", "y", "z"))
    assert store.labels.tolist() == [number % 3 for number in range(count)]
    assert store.labels.dtype == np.int64
    assert store.split.dtype == np.int8
    assert store.heldout.tolist() == list(range(0, count, 5))
    assert sorted([*store.train, *store.heldout]) == list(range(count))
    assert {path.name for path in folder.iterdir()} == {
        "level-0.npy", "level-1.npy", "labels.npy", "split.npy", "manifest.json"
    }  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
def test_random_access(tmp_path: Path, seed: int) -> None:
    codes = write(tmp_path, seed=seed)
    store = open_store(tmp_path)
    codes_read = store.codes(torch.tensor([7, 0, 7]))
    assert all(level.dtype == torch.int64 for level in codes_read.levels)
    assert all(map(torch.equal, codes_read.levels, codes[[7, 0, 7]].levels))
    assert len(store.codes([])) == 0
    assert np.load(tmp_path / "level-1.npy").dtype == np.uint16


def test_every_code_of_16_bits_fits(tmp_path: Path) -> None:
    geometry = Geometry(((256, 256),), (65536,))
    codes = Codes((torch.arange(65536).reshape(1, 256, 256),))
    with StoreWriter(tmp_path, geometry, DIGEST, 1) as writer:
        writer.append(codes, [0], [0])
    assert torch.equal(open_store(tmp_path).codes([0]).levels[0], codes.levels[0])
    with pytest.raises(StoreError, match="at most 65536 codes"):
        StoreWriter(tmp_path, Geometry(((1, 1),), (65537,)), DIGEST, 1)


def test_another_autoencoder_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(
        StoreError, match=f"another autoencoder: expected weights {OTHER}, found codes of {DIGEST}"
    ):
        open_store(tmp_path, digest=OTHER)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no complete code store in .*manifest\.json is missing"):
        open_store(tmp_path / "none")
    write(tmp_path)
    (tmp_path / "level-1.npy").unlink()
    with pytest.raises(StoreError, match=r"level-1\.npy is missing"):
        open_store(tmp_path)


@pytest.mark.parametrize("name", ["level-0.npy", "level-1.npy", "labels.npy", "split.npy", "manifest.json"])
def test_truncated(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    for keep in (-5, 40, 0):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(StoreError, match="damaged") as caught:
            open_store(tmp_path)
        assert "\n" not in str(caught.value)


def test_files_of_another_shape_or_version(tmp_path: Path) -> None:
    write(tmp_path)
    np.save(tmp_path / "split.npy", np.zeros(9, np.int8))
    with pytest.raises(StoreError, match=r"split\.npy is damaged: expected int8 \[10\], found int8 \[9\]"):
        open_store(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(StoreError, match="newer vqvae2"):
        open_store(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(StoreError, match="damaged"):
        open_store(tmp_path)


class KillError(BaseException):
    """Not an Exception: like Ctrl-C."""


@pytest.mark.parametrize("error", [KillError, ValueError])
def test_an_exception_leaves_the_old_store(tmp_path: Path, error: type[BaseException]) -> None:
    old = write(tmp_path)

    def interrupted() -> None:
        with StoreWriter(tmp_path, GEOMETRY, OTHER, 5) as writer:
            writer.append(some_codes(3), [0] * 3, [0] * 3)
            raise error

    with pytest.raises(error):
        interrupted()
    assert holds(open_store(tmp_path, digest=DIGEST), old)
    assert not list(tmp_path.glob(".*"))


def test_too_few_and_too_many(tmp_path: Path) -> None:
    old = write(tmp_path)
    with (
        pytest.raises(StoreError, match="expected codes of 5 images, found 3"),
        StoreWriter(tmp_path, GEOMETRY, OTHER, 5) as writer,
    ):
        writer.append(some_codes(3), [0] * 3, [0] * 3)
    with (
        pytest.raises(StoreError, match="expected at most 2 more"),
        StoreWriter(tmp_path, GEOMETRY, OTHER, 2) as writer,
    ):
        writer.append(some_codes(3), [0] * 3, [0] * 3)
    with (
        pytest.raises(StoreError, match="3 codes, 2 labels and 3 splits"),
        StoreWriter(tmp_path, GEOMETRY, OTHER, 5) as writer,
    ):
        writer.append(some_codes(3), [0] * 2, [0] * 3)
    with pytest.raises(CodesError), StoreWriter(tmp_path, GEOMETRY, OTHER, 5) as writer:
        writer.append(Codes((torch.full((1, 2, 3), 16), torch.zeros(1, 4, 6, dtype=torch.long))), [0], [0])
    assert holds(open_store(tmp_path), old)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("where", ["append", "finish"])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    old = write(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ArrayWriter, where, full)
    with pytest.raises(
        StoreError, match=r"cannot write codes to .*: No space left on device; an older store is kept"
    ):
        write(tmp_path, seed=1, digest=OTHER)
    monkeypatch.undo()
    assert holds(open_store(tmp_path), old)
    assert not list(tmp_path.glob(".*"))


def test_full_disk_at_the_manifest_and_unwritable_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = write(tmp_path)

    def refuse(*_: Any) -> None:
        raise atomic.FileError("cannot write next.json: No space left on device")

    monkeypatch.setattr(atomic, "write_json", refuse)
    with pytest.raises(StoreError, match="No space left"):
        write(tmp_path, seed=1)
    monkeypatch.undo()
    assert holds(open_store(tmp_path), old)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write codes to"):
        write(tmp_path / "file")


@pytest.mark.parametrize("done", range(5))
def test_renames_that_a_kill_interrupted_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    """Once the new store is complete it counts, whenever the process dies."""
    write(tmp_path)
    real, count = Path.replace, iter(range(100))

    def replace(self: Path, target: Path) -> Path:
        if next(count) > done:
            os_kill()
        return real(self, target)

    def os_kill() -> None:
        raise KillError

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KillError):
        write(tmp_path, 7, seed=1, digest=OTHER)
    monkeypatch.undo()
    store = open_store(tmp_path)
    assert holds(store, some_codes(7, 1))
    assert store.digest == OTHER
    assert (tmp_path / "next.json").exists(), "reading changes nothing"
    killed = subprocess.Popen(["true"])
    killed.wait()
    (tmp_path / f".manifest.json.{host()}-{killed.pid}.tmp").write_text("half of a manifest")
    complete_renames(tmp_path)
    assert [*tmp_path.glob("*.tmp"), *tmp_path.glob(".*.tmp")] == []
    store = open_store(tmp_path)
    assert holds(store, some_codes(7, 1))
    assert store.digest == OTHER
    assert not (tmp_path / "next.json").exists()


def test_a_smaller_store_leaves_no_level_behind(tmp_path: Path) -> None:
    write(tmp_path)
    geometry = Geometry(((2, 3),), (16,))
    with StoreWriter(tmp_path, geometry, DIGEST, 1) as writer:
        writer.append(some_codes(1, geometry=geometry), [0], [0])
    assert not (tmp_path / "level-1.npy").exists()
    assert open_store(tmp_path).geometry == geometry


def test_old_temporary_files_are_removed(tmp_path: Path) -> None:
    stale, fresh = tmp_path / ".level-0.npy.1.tmp", tmp_path / ".level-0.npy.elsewhere-2.tmp"
    for path in (stale, fresh):
        path.write_bytes(b"x")
    os.utime(stale, (0, 0))
    write(tmp_path)
    assert not stale.exists()
    assert fresh.exists()


def test_array_writer(tmp_path: Path) -> None:
    writer = ArrayWriter(tmp_path / "a.npy", (2,), np.int32)
    with pytest.raises(ValueError, match="expected rows of shape"):
        writer.append(np.zeros((1, 3)))
    for start in range(0, 300, 100):
        writer.append(np.arange(start, start + 100).reshape(50, 2))
    assert not (tmp_path / "a.npy").exists()
    writer.finish()
    writer.publish()
    assert np.load(tmp_path / "a.npy").tolist() == np.arange(300).reshape(150, 2).tolist()


def test_version_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "1.2.3")
    write(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["version"] == "1.2.3"
