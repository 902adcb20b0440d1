"""The set of images: which are kept and which are skipped, how they are split, and when they are decoded."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import LIVELY, break_some, config, folder_of, noise, opened, parquet_of, same, take
from hypothesis import given
from hypothesis import strategies as st

from vqvae2.data import decoding, skipped
from vqvae2.data.array_writer import ArrayWriter
from vqvae2.data.batches import sequential
from vqvae2.data.errors import DataError
from vqvae2.data.holdout import split_images
from vqvae2.data.images import ImageSet, open_images
from vqvae2.data.pixels import to_float
from vqvae2.files import atomic

# --- split ---


def test_split_is_disjoint_sorted_and_stable(folder: Path, tmp_path: Path) -> None:
    first = opened(folder, tmp_path, holdout=0.3)
    assert sorted([*first.train, *first.heldout]) == list(range(30))
    assert (np.diff(first.train) > 0).all()
    assert (np.diff(first.heldout) > 0).all()
    assert 0 < len(first.heldout) < 15
    held = {first.names[index] for index in first.heldout}
    more = shutil.copytree(folder, tmp_path / "more")
    folder_of(more / "d", 20)
    second = opened(more, tmp_path, holdout=0.3, seed=9)
    assert {second.names[index] for index in second.heldout} >= held
    assert not {second.names[index] for index in second.train} & held


@given(st.integers(2, 30), st.floats(0.001, 0.999))
def test_neither_set_is_ever_empty(count: int, holdout: float) -> None:
    train, held = split_images([f"{number}.png" for number in range(count)], None, None, holdout)
    assert len(train) >= 1
    assert len(held) >= 1
    assert len(train) + len(held) == count


def test_named_split_with_an_empty_side(tmp_path: Path) -> None:
    root = tmp_path / "in"
    folder_of(root / "train", 3)
    (root / "test").mkdir()
    (root / "test" / "broken.png").write_bytes(b"")
    with pytest.raises(DataError, match="the held-out split has no usable image"):
        opened(root, tmp_path)


# --- cache ---


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(decoding, "decode", fail)


def test_cache_is_reused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says: list[str] = []
    first = opened(folder, tmp_path, says)
    assert "understood as 30 images, 3 classes" in says[0]
    assert "images/s" in says[1]
    forbid(monkeypatch)
    second = opened(folder, tmp_path, says)
    assert len(says) == 2
    assert first.fingerprint == second.fingerprint
    assert len(first.fingerprint) == 64
    assert first.names == second.names
    assert first.classes == second.classes == ("a", "b", "c")
    assert torch.equal(first.pixels(range(30)), second.pixels(range(30)))
    assert np.array_equal(first.train, second.train)
    other = opened(folder, tmp_path, holdout=0.5)
    assert len(other.heldout) > len(first.heldout)
    first.close()


@pytest.mark.parametrize(
    "change",
    [
        {"size": 9},
        {"channels": 1},
        {"background": "black"},
        {"scale": 1.1},
        {"limit": 10},
        {"max_pixels": 1000},
    ],
)
def test_options_that_change_pixels_change_the_fingerprint(
    folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    before = opened(folder, tmp_path)
    after = opened(folder, tmp_path, **change)
    assert before.fingerprint != after.fingerprint
    assert len(list((tmp_path / "data").glob("pixels-*.npy"))) == 1
    assert after.pixels([0]).shape == (1, *[change.get("size", 8)] * 2, change.get("channels", 3))


def test_changed_data_is_decoded_again(folder: Path, tmp_path: Path) -> None:
    root = shutil.copytree(folder, tmp_path / "in")
    before = opened(root, tmp_path)
    moved = root.rename(tmp_path / "moved")
    assert opened(moved, tmp_path).fingerprint == before.fingerprint
    noise(99).save(moved / "a" / "000.png")
    after = opened(moved, tmp_path)
    assert after.fingerprint != before.fingerprint
    assert np.array_equal(after.pixels([0])[0].numpy(), np.asarray(noise(99)))


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "garbage", "list", "half"])
def test_a_damaged_cache_is_replaced(folder: Path, tmp_path: Path, damage: str) -> None:
    before = opened(folder, tmp_path).pixels(range(30))
    cache, index = next((tmp_path / "data").glob("pixels-*.npy")), tmp_path / "data" / "index.json"
    if damage == "truncated":
        cache.write_bytes(cache.read_bytes()[:-100])
    elif damage == "empty":
        cache.write_bytes(b"")
    elif damage == "missing":
        cache.unlink()
    elif damage == "half":
        index.write_text(json.dumps(json.loads(index.read_text()) | {"names": ["one"]}))
    else:
        index.write_text("[1]" if damage == "list" else "{")
    assert torch.equal(opened(folder, tmp_path).pixels(range(30)), before)


def test_a_kill_leaves_no_half_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class KillError(BaseException):
        pass

    def kill(*_: Any) -> None:
        raise KillError

    monkeypatch.setattr(ArrayWriter, "publish", kill)
    with pytest.raises(KillError):
        opened(folder, tmp_path)
    assert list((tmp_path / "data").iterdir()) == []
    monkeypatch.undo()
    stale = tmp_path / "data" / ".pixels-x.npy.1.tmp"
    stale.write_bytes(b"left by a killed process")
    os.utime(stale, (0, 0))
    opened(folder, tmp_path)
    assert not stale.exists()


def test_full_disk_and_unwritable_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ArrayWriter, "append", full)
    with pytest.raises(DataError, match=r"cannot write the decoded images to .*: No space left on device"):
        opened(folder, tmp_path)
    monkeypatch.undo()

    def refuse(*_: Any) -> None:
        raise atomic.FileError("cannot write index.json: No space left on device")

    monkeypatch.setattr(atomic, "write_text", refuse)
    with pytest.raises(DataError, match=r"cannot write .*index\.json: No space left"):
        opened(folder, tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write .*: "):
        opened(folder, tmp_path / "file")


def test_a_wrong_background_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="background"):
        opened("nowhere", tmp_path, background="#12")


def test_progress(folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    says: list[str] = []
    open_images(
        str(folder),
        config(),
        tmp_path / "data",
        say=says.append,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (30, 30)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# --- images that cannot be used ---


def test_skipped_are_counted_listed_and_mentioned_once(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 5)
    break_some(root)
    says: list[str] = []
    images = opened(root, tmp_path, says, max_pixels=2000)
    assert (len(images), images.skipped) == (5, 4)
    listed = dict(line.split("\t") for line in (tmp_path / "data" / "skipped.txt").read_text().splitlines())
    assert listed.keys() == {"zero.png", "text.jpg", "cut?.png", "bomb.png"}
    assert listed["bomb.png"] == "50x50 pixels, more than max_pixels = 2000"
    assert [line for line in says if "skipped" in line] == [
        f"skipped 4 that cannot be used (bomb.png: {listed['bomb.png']}); all are listed in {tmp_path / 'data' / 'skipped.txt'}"
    ]
    assert opened(root, tmp_path, max_pixels=2000).skipped == 4
    for name in root.glob("[!0]*"):
        name.unlink()
    assert opened(root, tmp_path).skipped == 0
    assert not (tmp_path / "data" / "skipped.txt").exists()


@pytest.mark.parametrize("cache_gb", [8, 0])
def test_nothing_usable(tmp_path: Path, cache_gb: float) -> None:
    root = tmp_path / "in"
    root.mkdir()
    break_some(root)
    with pytest.raises(DataError, match="no usable image"):
        opened(root, tmp_path, max_pixels=2000, cache_gb=cache_gb)
    assert len((tmp_path / "data" / "skipped.txt").read_text().splitlines()) >= 3


# --- decoding while training ---


@pytest.mark.parametrize("seed", [3, 4])
def test_images_decoded_on_request_equal_cached_ones(folder: Path, tmp_path: Path, seed: int) -> None:
    says: list[str] = []
    cached = opened(folder, tmp_path / "1", **LIVELY)
    lazy = opened(folder, tmp_path / "2", says, cache_gb=0, **LIVELY)
    assert "exceed cache_gb = 0" in says[-1]
    assert not list((tmp_path / "2" / "data").glob("pixels*"))
    assert lazy.fingerprint == cached.fingerprint
    assert np.array_equal(lazy.heldout, cached.heldout)
    assert same(take(lazy, seed=seed), take(cached, seed=seed))
    whole = [list(sequential(which, which.heldout, config(), batch=4)) for which in (lazy, cached)]
    assert same(*whole)
    assert torch.equal(lazy.pixels([3, 1]), cached.pixels([3, 1]))


def test_broken_images_are_replaced_when_decoded_on_request(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 40, ("a", "b"))
    good = opened(root, tmp_path / "1", holdout=0.3)
    assert good.labels is not None
    broken = [*good.train[[0, 3, 4, -1]].tolist(), int(good.heldout[-1])]
    for index in broken:
        (root / good.names[index]).write_bytes(b"")
    says: list[str] = []
    lazy = opened(root, tmp_path / "2", says, cache_gb=0, holdout=0.3)
    assert np.array_equal(lazy.train, good.train)
    batches = list(sequential(lazy, lazy.train, config(), batch=6))
    train = good.train.tolist()
    expected = [train[1], *train[1:3], train[5], train[5], *train[5:-1], train[1]]
    assert torch.equal(torch.cat([x for x, _ in batches]), to_float(good.pixels(expected)))
    assert torch.cat([y for _, y in batches]).tolist() == good.labels[expected].tolist()
    assert same(take(lazy), take(lazy))
    held = torch.cat([x for x, _ in sequential(lazy, lazy.heldout, config(), batch=6)])
    assert torch.equal(held[-1], to_float(good.pixels(good.heldout[:1]))[0])
    assert lazy.skipped == len(broken)
    assert len((tmp_path / "2" / "data" / "skipped.txt").read_text().splitlines()) == len(broken)
    assert sum("cannot be used" in line for line in says) == 1


def test_what_is_found_broken_stays_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start forgot what the last one had found, and each process listed the same images again."""
    root, file = folder_of(tmp_path / "in", 40, ("a", "b")), tmp_path / "data" / "skipped.txt"
    for path in sorted(root.rglob("*.png"))[::10]:
        path.write_bytes(b"")
    (root / "notes.txt").write_text("no image")

    def trained(rank: int = 0) -> ImageSet:
        monkeypatch.setattr(skipped, "launched", lambda: (rank, 2))
        images = opened(root, tmp_path, cache_gb=0)
        for indices in (images.train, images.heldout):
            list(sequential(images, indices, config(), batch=6))
        return images

    trained()
    found = sorted(file.read_text().splitlines())
    assert len(found) == 5
    monkeypatch.setattr(skipped, "launched", lambda: (0, 2))
    opened(root, tmp_path, cache_gb=0)
    assert sorted(file.read_text().splitlines()) == found, "before anything is decoded"
    file.write_text("".join(f"{line}\n" for line in found[1:]))
    before = trained(1)
    assert sorted(file.read_text().splitlines()) == found, "what another process found is not listed again"
    assert before.skipped == 5
    for path in sorted(root.rglob("*.png"))[::10]:
        path.unlink()
    monkeypatch.setattr(skipped, "launched", lambda: (0, 2))
    opened(root, tmp_path, cache_gb=0)
    assert file.read_text() == "notes.txt\tnot an image\n", "of other images"


def test_a_table_decoded_on_request(tmp_path: Path) -> None:
    path = parquet_of(tmp_path / "a.parquet", 12, label=list("xyz") * 4)
    lazy, cached = (opened(path, tmp_path / str(size), cache_gb=size) for size in (0, 1))
    assert lazy.fingerprint == cached.fingerprint
    assert same(
        list(sequential(lazy, range(12), config(), batch=5)),
        list(sequential(cached, range(12), config(), batch=5)),
    )
