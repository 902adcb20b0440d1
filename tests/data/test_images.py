"""The set of pictures: what is kept, what is skipped, how it is split, and the laws of its batches."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import config, encoded, folder_of, noise, opened
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vqvae2 import checkpoint
from vqvae2.data import images as module
from vqvae2.data.images import DataError, ImageSet, Shuffle, batches, open_images, sequential, to_float
from vqvae2.data.store import ArrayWriter

Batch = tuple[Tensor, Tensor]
LIVELY: dict[str, Any] = {"flip": True, "shift": 2, "crop": "random", "scale": 1.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures in 3 classes."""
    return folder_of(tmp_path_factory.mktemp("pictures"), 30, ("a", "b", "c"), size=(14, 12))


@pytest.fixture(scope="module")
def images(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageSet]:
    """They, opened with a margin to crop from."""
    found = opened(folder, tmp_path_factory.mktemp("run"), **LIVELY)
    yield found
    found.close()


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(left, right, strict=True)
    )


# --- laws of the batches ---


def take(images: ImageSet, **options: Any) -> list[Batch]:
    options = {"batch": 8, "seed": 3, "stop": 9} | options
    return list(batches(images, images.train, config(**LIVELY), **options))


def test_shape_range_and_type(images: ImageSet) -> None:
    for pictures, labels in take(images):
        assert pictures.shape == (8, 3, 8, 8)
        assert pictures.dtype == torch.float32
        assert pictures.is_contiguous()
        assert pictures.abs().max() <= 1
        assert labels.shape == (8,)
        assert labels.dtype == torch.int64


@settings(deadline=None, max_examples=20)
@given(start=st.integers(0, 9), batch=st.integers(1, 50), seed=st.integers(0, 2**63 - 1))
def test_any_start_gives_the_same_steps(images: ImageSet, start: int, batch: int, seed: int) -> None:
    whole = take(images, batch=batch, seed=seed)
    assert same(whole[start:], take(images, batch=batch, seed=seed, start=start))


@pytest.mark.parametrize(("batch", "world"), [(8, 2), (8, 3), (7, 4), (4, 4)])
def test_ranks_join_to_the_whole(images: ImageSet, batch: int, world: int) -> None:
    ranks = [take(images, batch=batch, rank=rank, world=world) for rank in range(world)]
    joined = [
        (torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))
        for parts in zip(*ranks, strict=True)
    ]
    assert same(joined, take(images, batch=batch))


def test_seeds_differ_and_repeat(images: ImageSet) -> None:
    assert same(take(images), take(images))
    assert not same(take(images), take(images, seed=4))


def test_endless(images: ImageSet) -> None:
    stream = batches(images, images.train, config(**LIVELY), batch=8, seed=3, start=2)
    assert same(list(itertools.islice(stream, 7)), take(images, start=2))


@settings(deadline=None)
@given(count=st.integers(1, 40), batch=st.integers(1, 100), seed=st.integers(0, 2**40))
def test_epochs_are_permutations_laid_end_to_end(count: int, batch: int, seed: int) -> None:
    indices = np.arange(count) * 3
    shuffle = Shuffle(indices, seed)
    steps = -(-3 * count // batch)
    order = np.concatenate([shuffle(np.arange(step * batch, (step + 1) * batch)) for step in range(steps)])
    for epoch in range(3):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == indices.tolist()
    if count > 20:
        assert order[:count].tolist() != order[count : 2 * count].tolist()


def test_without_augmentation_batches_are_the_pictures(images: ImageSet) -> None:
    shuffle = Shuffle(images.train, 3)
    for step, (pictures, labels) in enumerate(take(images, augment=False)):
        chosen = shuffle(np.arange(step * 8, step * 8 + 8))
        assert torch.equal(pictures, to_float(images.pixels(chosen)))
        assert images.labels is not None
        assert labels.tolist() == images.labels[chosen].tolist()


def test_nothing_to_make_batches_of(images: ImageSet) -> None:
    for options in ({"batch": 2, "world": 3}, {"rank": 2, "world": 2}, {"batch": 0}):
        with pytest.raises(DataError, match="cannot make batches"):
            take(images, **options)
    with pytest.raises(DataError, match="from 0 pictures"):
        next(batches(images, [], config(), batch=2, seed=0))


def test_psnr_of_a_known_error() -> None:
    white = torch.ones(2, 3, 4, 4)
    found = module.psnr(torch.stack([white[0] * 3, white[0] - 0.02]), white)  # clipped; 1 % of the range of 2
    assert found.tolist() == pytest.approx([100 + 10 * np.log10(4), 40], abs=1e-3)


# --- augmentation ---


def counting(side: int) -> torch.Tensor:
    """[1, side, side, 3]: row, column and a constant as colours."""
    rows, columns = np.indices((side, side))
    return torch.from_numpy(np.stack([rows, columns, rows * 0 + 7], -1)[None].astype(np.uint8))


def test_flip_mirrors_about_half_and_nothing_else() -> None:
    raw = np.repeat(counting(8).numpy(), 400, 0)
    found = module._augment(raw, np.arange(400), 1, config(flip=True))
    mirrored = (found == raw[:, :, ::-1]).all((1, 2, 3))
    untouched = (found == raw).all((1, 2, 3))
    assert (mirrored ^ untouched).all()
    assert 150 < mirrored.sum() < 250
    assert np.array_equal(module._augment(raw, np.arange(400), 1, config()), raw)


def test_shift_repeats_the_edges() -> None:
    raw = np.repeat(counting(8).numpy(), 300, 0)
    found = module._augment(raw, np.arange(300), 1, config(shift=2)).astype(int)
    rows, columns = found[:, :, 0, 0], found[:, 0, :, 1]
    offsets = set()
    for picture, row, column in zip(found, rows, columns, strict=True):
        shift = (int(row[4]) - 4, int(column[4]) - 4)
        offsets.add(shift)
        expected = [(np.arange(8) + by).clip(0, 7) for by in shift]
        assert (row == expected[0]).all()
        assert (column == expected[1]).all()
        assert (picture[..., 0] == row[:, None]).all()
    assert offsets == set(itertools.product(range(-2, 3), repeat=2))


def test_random_crop_reaches_every_corner() -> None:
    raw = np.repeat(counting(10).numpy(), 300, 0)
    found = module._augment(raw, np.arange(300), 1, config(crop="random", scale=1.25))
    corners = {(int(picture[0, 0, 0]), int(picture[0, 0, 1])) for picture in found}
    assert corners == set(itertools.product(range(3), repeat=2))
    centre = module._augment(raw, np.arange(300), 1, config(scale=1.25))
    assert (centre == module._centre(raw, 8)).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_taking_pixels_is_plain_indexing(channels: int) -> None:
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (5, 6, 6, channels), np.uint8)
    rows, columns = rng.integers(0, 6, (2, 5, 4))
    expected = raw[np.arange(5)[:, None, None], rows[:, :, None], columns[:, None, :]]
    assert np.array_equal(module._take(raw, rows, columns), expected)


def test_draws_are_uniform_and_independent() -> None:
    draws = module._uniform(5, np.arange(20_000), 5)
    assert 0 <= draws.min() < draws.max() < 1
    assert np.abs(np.histogram(draws, 10, (0, 1))[0] / draws.size - 0.1).max() < 0.005
    assert np.abs(np.corrcoef(np.c_[draws[1:], draws[:-1]].T) - np.eye(10)).max() < 0.03
    assert not np.array_equal(draws, module._uniform(6, np.arange(20_000), 5))


def test_sequential_is_in_order_and_complete(images: ImageSet) -> None:
    found = list(sequential(images, images.train, config(**LIVELY), batch=7))
    assert torch.equal(torch.cat([x for x, _ in found]), to_float(images.pixels(images.train)))
    assert images.labels is not None
    assert torch.cat([y for _, y in found]).tolist() == images.labels[images.train].tolist()
    assert list(sequential(images, [], config(), batch=7)) == []


def test_copies_are_functions_of_seed_and_index(images: ImageSet) -> None:
    def copies(seed: int, indices: Any, batch: int) -> Tensor:
        found = sequential(images, indices, config(**LIVELY), batch=batch, copies_seed=seed)
        return torch.cat([pictures for pictures, _ in found])

    whole = copies(1, images.train, 7)
    assert torch.equal(whole, copies(1, images.train, 3))
    assert torch.equal(whole[5:9], copies(1, images.train[5:9], 2))
    assert not torch.equal(whole, copies(2, images.train, 7))


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


@settings(deadline=None)
@given(st.integers(2, 30), st.floats(0.001, 0.999))
def test_never_none_and_never_all(count: int, holdout: float) -> None:
    index = module._Index("", "", [f"{number}.png" for number in range(count)])
    train, held = module._split(index, None, config(holdout=holdout))
    assert len(train) >= 1
    assert len(held) >= 1
    assert len(train) + len(held) == count


def test_named_split_with_an_empty_side(tmp_path: Path) -> None:
    root = tmp_path / "in"
    folder_of(root / "train", 3)
    (root / "test").mkdir()
    (root / "test" / "broken.png").write_bytes(b"")
    with pytest.raises(DataError, match="the held-out split has no usable picture"):
        opened(root, tmp_path)


# --- cache ---


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(module, "_decode", fail)


def test_cache_is_reused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says: list[str] = []
    first = opened(folder, tmp_path, says)
    assert "images/s" in says[0]
    forbid(monkeypatch)
    second = opened(folder, tmp_path, says)
    assert len(says) == 1
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


def test_changed_data_is_decoded_anew(folder: Path, tmp_path: Path) -> None:
    root = shutil.copytree(folder, tmp_path / "in")
    before = opened(root, tmp_path)
    moved = root.rename(tmp_path / "moved")
    assert opened(moved, tmp_path).fingerprint == before.fingerprint
    noise(99).save(moved / "a" / "000.png")
    after = opened(moved, tmp_path)
    assert after.fingerprint != before.fingerprint
    assert np.array_equal(after.pixels([0])[0].numpy(), np.asarray(noise(99)))


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "garbage", "list", "half"])
def test_a_damaged_cache_is_made_anew(folder: Path, tmp_path: Path, damage: str) -> None:
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
    with pytest.raises(DataError, match=r"cannot write the decoded pictures to .*: No space left on device"):
        opened(folder, tmp_path)
    monkeypatch.undo()

    def refuse(*_: Any) -> None:
        raise checkpoint.CheckpointError("cannot write index.json: No space left on device")

    monkeypatch.setattr(checkpoint, "write_text", refuse)
    with pytest.raises(DataError, match=r"cannot write .*index\.json: No space left"):
        opened(folder, tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write .*: "):
        opened(folder, tmp_path / "file")


def test_wrong_background_ends_before_anything(tmp_path: Path) -> None:
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


# --- pictures that cannot be used ---


def break_some(root: Path) -> None:
    (root / "zero.png").write_bytes(b"")
    (root / "text.jpg").write_text("hello")
    (root / "cut\n.png").write_bytes(encoded(noise(1, (64, 64)))[:300])
    noise(1, (50, 50)).save(root / "bomb.png")


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
    with pytest.raises(DataError, match="no usable picture"):
        opened(root, tmp_path, max_pixels=2000, cache_gb=cache_gb)
    assert len((tmp_path / "data" / "skipped.txt").read_text().splitlines()) >= 3


# --- decoding while training ---


def test_lazy_equals_cached(folder: Path, tmp_path: Path) -> None:
    says: list[str] = []
    cached = opened(folder, tmp_path / "1", **LIVELY)
    lazy = opened(folder, tmp_path / "2", says, cache_gb=0, **LIVELY)
    assert "exceed cache_gb = 0" in says[-1]
    assert not list((tmp_path / "2" / "data").glob("pixels*"))
    assert lazy.fingerprint == cached.fingerprint
    assert np.array_equal(lazy.heldout, cached.heldout)
    assert same(take(lazy), take(cached))
    whole = [list(sequential(which, which.heldout, config(), batch=4)) for which in (lazy, cached)]
    assert same(*whole)
    assert torch.equal(lazy.pixels([3, 1]), cached.pixels([3, 1]))


def test_lazy_replaces_what_is_broken(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 40, ("a", "b"))
    good = opened(root, tmp_path / "1", holdout=0.3)
    assert good.labels is not None
    broken = [*good.train[[0, 3, 4, -1]].tolist(), int(good.heldout[-1])]
    for index in broken:
        (root / good.names[index]).write_bytes(b"")
    says: list[str] = []
    lazy = opened(root, tmp_path / "2", says, cache_gb=0, holdout=0.3)
    assert np.array_equal(lazy.train, good.train)
    found = list(sequential(lazy, lazy.train, config(), batch=6))
    train = good.train.tolist()
    expected = [train[1], *train[1:3], train[5], train[5], *train[5:-1], train[1]]
    assert torch.equal(torch.cat([x for x, _ in found]), to_float(good.pixels(expected)))
    assert torch.cat([y for _, y in found]).tolist() == good.labels[expected].tolist()
    assert same(take(lazy), take(lazy))
    held = torch.cat([x for x, _ in sequential(lazy, lazy.heldout, config(), batch=6)])
    assert torch.equal(held[-1], to_float(good.pixels(good.heldout[:1]))[0])
    assert lazy.skipped == len(broken)
    assert len((tmp_path / "2" / "data" / "skipped.txt").read_text().splitlines()) == len(broken)
    assert sum("cannot be used" in line for line in says) == 1


def test_lazy_table(tmp_path: Path) -> None:
    from test_sources import parquet_of

    path = parquet_of(tmp_path / "a.parquet", 12, label=list("xyz") * 4)
    lazy, cached = (opened(path, tmp_path / str(size), cache_gb=size) for size in (0, 1))
    assert lazy.fingerprint == cached.fingerprint
    assert same(
        list(sequential(lazy, range(12), config(), batch=5)),
        list(sequential(cached, range(12), config(), batch=5)),
    )


# --- worker processes ---


def test_worker_processes_give_the_same(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 80, ("a", "b"))
    break_some(root / "a")
    here = opened(root, tmp_path / "1", max_pixels=2000)
    there = opened(root, tmp_path / "2", max_pixels=2000, workers=2)
    assert there.names == here.names
    assert there.skipped == here.skipped == 4
    assert torch.equal(there.pixels(range(80)), here.pixels(range(80)))
    lazy = opened(root, tmp_path / "3", max_pixels=2000, workers=2, cache_gb=0)
    first = [lazy.names.index(here.names[index]) for index in here.train]
    left = list(sequential(lazy, first, config(), batch=16))
    right = list(sequential(here, here.train, config(), batch=16))
    assert same(left, right)
    lazy.close()


def test_workers_that_die_are_done_without(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_start_worker", os.abort)
    monkeypatch.setattr(module, "_TRIAL", 1)
    images = opened(folder, tmp_path, workers=1)
    assert len(images) == 30


def test_workers_start_only_when_they_pay(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[bool] = []
    monkeypatch.setattr(module.Decoder, "start", lambda _: started.append(True))
    monkeypatch.setattr(module, "_TRIAL", 5)
    opened(folder, tmp_path, workers=-1)
    assert not started
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    opened(folder, tmp_path, workers=-1, size=9)
    assert started
