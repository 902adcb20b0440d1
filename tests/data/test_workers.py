"""Worker processes: they change no image, start only when that saves time, and may die."""

from __future__ import annotations

import errno
import os
import signal
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import break_some, config, folder_of, opened, same
from PIL import Image

from vqvae2.data import cache, handover, workers
from vqvae2.data.batches import sequential
from vqvae2.data.handover import Parcel, dropped, packed
from vqvae2.data.workers import Decoder

linux = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs the shared memory of Linux")


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


def gone(parcel: Parcel) -> bool:
    """Whether the shared memory of a parcel was given back."""
    try:
        memory = SharedMemory(parcel.name)
    except FileNotFoundError:
        return True
    memory.close()
    memory.unlink()
    return False


@linux
@pytest.mark.parametrize("kind", [np.uint8, np.int16])
def test_pixels_pass_through_shared_memory_unchanged(kind: type) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 300, 301, 3)).astype(kind)
    sent = packed(pixels)
    assert isinstance(sent, Parcel)
    found = handover.opened(sent)
    assert found.dtype == pixels.dtype
    assert np.array_equal(found, pixels)
    assert found.flags.writeable
    assert gone(sent)
    sent = packed(pixels)
    assert isinstance(sent, Parcel)
    dropped(sent)
    assert gone(sent)
    few = pixels[:1, :9]
    assert packed(few) is few, "not worth it"
    assert handover.opened(few) is few


@linux
def test_without_room_in_shared_memory_the_pipe_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.zeros((5, 300, 301, 3), np.uint8)
    made: list[str] = []

    def full(file: int, begin: int, size: int) -> None:
        made.append(str(Path(f"/proc/self/fd/{file}").readlink()))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert packed(pixels) is pixels
    assert len(made) == 1
    assert not Path(made[0]).exists()
    monkeypatch.setattr(
        handover, "SharedMemory", lambda **_: (_ for _ in ()).throw(OSError(errno.EMFILE, "too many files"))
    )
    assert packed(pixels) is pixels


@linux
def test_workers_hand_over_batches_in_shared_memory_and_give_back_what_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a caller that stops early too: nothing is left behind."""
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        noise = np.random.default_rng(number).integers(0, 256, (512, 512, 3), np.uint8)
        Image.fromarray(noise).save(file)
    parcels: dict[str, list[Parcel]] = {"opened": [], "dropped": []}
    for name in parcels:

        def noted(sent: Parcel, name: str = name, usual: object = getattr(workers, name)) -> object:
            parcels[name].append(sent)
            return usual(sent)  # type: ignore[operator]

        monkeypatch.setattr(workers, name, noted)
    settings = config(size=512, workers=2)
    decoder, alone = Decoder(settings), Decoder(settings)
    decoder.start()
    tasks = [[str(file) for file in (files[i % 4], files[(i + 1) % 4])] for i in range(9)]
    few = decoder.map(tasks)
    expected = alone.map(tasks)
    for _ in range(3):
        assert np.array_equal(next(few).pixels, next(expected).pixels)
    few.close()  # type: ignore[attr-defined]
    decoder.close()
    assert len(parcels["opened"]) == 3
    assert parcels["dropped"], "the tasks that were under way"
    assert all(isinstance(sent, Parcel) and gone(sent) for sent in parcels["opened"] + parcels["dropped"])


def encoded(folder: Path) -> list[bytes]:
    """The images of a folder, as bytes."""
    return [file.read_bytes() for file in sorted(folder.rglob("*.png"))]


def pids(decoder: Decoder) -> set[int]:
    """The worker processes that there are now."""
    assert decoder.pool is not None
    return {*decoder.pool._processes}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_workers_that_die_are_replaced_by_fewer_which_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one kill a process decoded alone for the rest of a training, without a word. The images stay the same."""
    monkeypatch.setattr(workers, "_RESTARTS", 1)
    tasks = [[each] for each in encoded(folder)]
    expected = [found.pixels for found in Decoder(config(workers=0)).map(tasks)]
    said: list[str] = []
    decoder = Decoder(config(workers=2), said.append)
    decoder.start()
    try:
        for number in (1, 2):
            found = decoder.map(iter(tasks))
            first = next(found)
            os.kill(min(pids(decoder)), signal.SIGKILL)
            pixels = [first.pixels, *(each.pixels for each in found)]
            assert all(map(np.array_equal, pixels, expected)), "the order and the images are the same"
            until = time.monotonic() + 30
            while len(said) < number and not decoder.pool._broken and time.monotonic() < until:
                time.sleep(0.01)  # a pool takes the answers that it has before it looks for deaths
            pixels = [
                each.pixels for each in decoder.map(tasks)
            ]  # where the first had all answers before the kill
            assert all(map(np.array_equal, pixels, expected))
            assert len(said) == number
            assert decoder.count == (1 if number < 2 else 0)
        assert decoder.pool is None
        assert "1 take their place" in said[0]
        assert "decodes alone" in said[1]
    finally:
        decoder.close()


def test_workers_of_another_process_than_the_first_are_missed_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 32 processes any one holds up all, and the reporters of 31 are quiet."""
    monkeypatch.setattr(workers, "_start_worker", os.abort)
    monkeypatch.setattr(workers, "launched", lambda: (3, 32))
    decoder = Decoder(config(workers=1), pytest.fail)
    decoder.start()
    assert len(list(decoder.map([[each] for each in encoded(folder)]))) == 30
    assert "process 3: processes that decode images died" in capsys.readouterr().err
    assert decoder.count == 0, "those that never decoded anything are not replaced"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_the_end_of_a_group_is_left_to_the_parent(folder: Path) -> None:
    """`torchrun` sends SIGTERM to all processes: the workers go on while the training saves its state."""
    tasks = [[each] for each in encoded(folder)]
    said: list[str] = []
    decoder = Decoder(config(workers=1), said.append)
    decoder.start()
    try:
        assert len(list(decoder.map(tasks))) == 30
        before = pids(decoder)
        for pid in before:
            os.kill(pid, signal.SIGTERM)
        assert len(list(decoder.map(tasks))) == 30
        assert pids(decoder) == before
        assert not said
    finally:
        decoder.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in before)
