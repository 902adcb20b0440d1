"""Faults of the machine are not faults of images: they stop the work, and a later run takes every image."""

from __future__ import annotations

import copy
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import config, encoded, folder_of, noise, opened, shows

from vqvae2.data import decoding
from vqvae2.data.decoding import load_image
from vqvae2.data.errors import DataError, ImageError


def failing(real: Any, name: str, number: int) -> Any:
    """`Path.read_bytes` that fails for one file."""

    def read(path: Path) -> bytes:
        if path.name == name:
            raise OSError(number, os.strerror(number))
        return bytes(real(path))

    return read


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT]
)
def test_a_fault_of_the_machine_stops_and_nothing_is_skipped(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder_of(tmp_path / "in", 6)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", failing(Path.read_bytes, "003.png", number))
        with pytest.raises(DataError, match=os.strerror(number)) as caught:
            opened(root, tmp_path)
        assert not isinstance(caught.value, ImageError)
        assert "cannot write" not in str(caught.value)
    assert not (tmp_path / "data" / "index.json").exists()
    images = opened(root, tmp_path)
    assert (len(images), images.skipped) == (6, 0)
    assert shows(images, 3, 3)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ELOOP])
def test_a_fault_of_the_file_is_skipped(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of(tmp_path / "in", 6)
    monkeypatch.setattr(Path, "read_bytes", failing(Path.read_bytes, "003.png", number))
    images = opened(root, tmp_path)
    assert (len(images), images.skipped) == (5, 1)


@pytest.mark.parametrize("cache_gb", [8, 0])
def test_too_little_memory_stops(cache_gb: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of(tmp_path / "in", 6)

    def none(*_: Any, **__: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "to_channels", none)
        patch.setattr(np, "empty", none)
        with pytest.raises(DataError, match="too little memory to decode images"):
            opened(root, tmp_path, cache_gb=cache_gb)
    assert opened(root, tmp_path, cache_gb=cache_gb).skipped == 0


def test_an_image_that_asks_for_too_much_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is memory for any image within the limits, a MemoryError is the fault of the image."""

    def none(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(decoding, "to_channels", none)
    with pytest.raises(ImageError, match="more memory than its size needs"):
        load_image(encoded(noise(0)), config())


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of(tmp_path / "in", 4, ("a", "b"))
    real = os.listdir

    def fail(path: Any) -> Any:
        if Path(path).name == "b":
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path)

    monkeypatch.setattr(os, "listdir", fail)
    with pytest.raises(DataError, match="Too many open files"):
        opened(root, tmp_path)


def test_errors_cross_processes() -> None:
    """A worker process hands them on as what they are."""
    for error in (ImageError("a"), DataError("b")):
        twin = copy.copy(error)
        assert (type(twin), str(twin)) == (type(error), str(error))


def test_memory_and_time_are_bounded_by_the_header() -> None:
    wide = noise(0, (300, 200))
    with pytest.raises(ImageError, match="more than max_memory = 1"):
        load_image(encoded(wide.convert("RGBA").resize((600, 400))), config(max_memory=1))
    data = encoded(wide, "JPEG", progressive=True)
    assert load_image(data, config()).shape == (8, 8, 3)
    scan = data.index(b"\xff\xda")
    many = data[:scan] + data[scan:-2] * 70 + data[-2:]
    with pytest.raises(ImageError, match="scans would take too long"):
        load_image(many, config())
