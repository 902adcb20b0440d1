"""Worker processes: they change no image, start only when that saves time, and may die."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from data_helpers import break_some, config, folder_of, opened, same

from vqvae2.data import cache, workers
from vqvae2.data.batches import sequential


def test_worker_processes_give_the_same(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 80, ("a", "b"))
    break_some(root / "a")
    single = opened(root, tmp_path / "1", max_pixels=2000)
    parallel = opened(root, tmp_path / "2", max_pixels=2000, workers=2)
    assert parallel.names == single.names
    assert parallel.skipped == single.skipped == 4
    assert torch.equal(parallel.pixels(range(80)), single.pixels(range(80)))
    lazy = opened(root, tmp_path / "3", max_pixels=2000, workers=2, cache_gb=0)
    first = [lazy.names.index(single.names[index]) for index in single.train]
    left = list(sequential(lazy, first, config(), batch=16))
    right = list(sequential(single, single.train, config(), batch=16))
    assert same(left, right)
    lazy.close()


def test_without_workers_after_they_died(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_start_worker", os.abort)
    monkeypatch.setattr(cache, "WORKERS_FROM", 1)
    images = opened(folder, tmp_path, workers=1)
    assert len(images) == 30


def test_workers_start_only_when_they_pay(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[bool] = []
    monkeypatch.setattr(workers.Decoder, "start", lambda _: started.append(True))
    monkeypatch.setattr(cache, "WORKERS_FROM", 5)
    opened(folder, tmp_path, workers=-1)
    assert not started
    monkeypatch.setattr(cache, "_WORTHWHILE", 0.0)
    opened(folder, tmp_path, workers=-1, size=9)
    assert started
