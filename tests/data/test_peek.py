"""The number and size of the images of any kind of data, and that no file is left behind."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import config, encoded, folder_of, noise, parquet_of, plain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vqvae2.data import peek as module
from vqvae2.data.decoding import image_size, load_whole
from vqvae2.data.errors import DataError, ImageError
from vqvae2.data.listing import Row, Stream
from vqvae2.data.peek import peek


def test_count_and_the_median_of_the_short_sides(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for number, size in enumerate([(10, 90), (70, 20), (30, 30), (40, 500), (600, 50)]):
        plain(number, "L", size).save(root / f"{number}.png")
    assert peek(str(root), config(), tmp_path / "run")[:2] == (5, 30)


def test_broken_files_count_but_have_no_size(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 3, size=(12, 9))
    for name in ("a.png", "b.png", "c.png", "d.png"):
        (root / name).write_bytes(b"")
    (root / "e.jpg").write_text("no image")
    assert peek(str(root), config(), tmp_path / "run")[:2] == (8, 9)
    for path in root.glob("0*"):
        path.unlink()
    with pytest.raises(DataError, match=r"no usable image of 5 \(the first: a.png: zero bytes\)"):
        peek(str(root), config(), tmp_path / "run")


def test_a_table(tmp_path: Path) -> None:
    path = parquet_of(tmp_path / "a.parquet", 6)
    assert peek(str(path), config(), tmp_path / "run")[:2] == (6, 8)
    assert peek(str(path), config(limit=4), tmp_path / "run")[:2] == (4, 8)
    assert peek("emoji64", config(limit=10), tmp_path / "run")[:2] == (10, 64)


def of_two_sizes(root: Path, small: int, count: int) -> Path:
    """A folder of images of 5 px, of which the first ones have 3 px."""
    root.mkdir()
    for number in range(count):
        plain(number, "L", (3, 3) if number < small else (5, 5)).save(root / f"{number:02d}.png")
    return root


def test_only_some_images_are_opened_and_they_are_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many images only a few are opened, and these are spread over the whole data set."""
    root = of_two_sizes(tmp_path / "in", small=10, count=40)
    seen: list[Path] = []

    def count(source: Any, **options: Any) -> Any:
        seen.append(source)
        return image_size(source, **options)

    monkeypatch.setattr(module, "_SAMPLE", 8)
    monkeypatch.setattr(module, "image_size", count)
    assert peek(str(root), config(), tmp_path / "run")[:2] == (40, 5)
    assert [path.name for path in seen] == [f"{number:02d}.png" for number in range(0, 40, 5)]


def test_the_last_images_count_where_not_all_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there are fewer than twice as many images as are opened."""
    root = of_two_sizes(tmp_path / "in", small=5, count=15)
    monkeypatch.setattr(module, "_SAMPLE", 8)
    assert peek(str(root), config(), tmp_path / "run")[:2] == (15, 5)


def test_missing_data_and_no_file_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with pytest.raises(DataError, match="no such folder or file"):
        peek(str(tmp_path / "missing"), config(), tmp_path / "run")
    path = parquet_of(tmp_path / "a.parquet", 3)
    peek(str(path), config(), tmp_path / "run")
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "run").exists()


def test_the_run_inside_the_data_is_no_data(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 3)
    folder_of(root / "run", 5)
    assert peek(str(root), config(), root / "run")[:2] == (3, 8)


def test_a_stream_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Any:
        raise AssertionError("it was read")
        yield Row("", None, None, None)

    stream = Stream(rows(), lambda _: pytest.fail("it was read"))
    monkeypatch.setattr(module, "list_images", lambda *_: stream)
    assert peek("owner/name", config(streaming=True), tmp_path / "run")[:2] == (1_000_000, 256)


@pytest.mark.parametrize("limit", [500, 100])
def test_the_limit_of_pillow_does_not_count(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a warning at first and an error at twice as much; only the header is read here."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert image_size(encoded(noise(1, (40, 20)))) == (20, 40)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF"])
def test_an_image_that_lies_on_its_side(kind: str, orientation: int) -> None:
    if kind not in Image.SAVE and kind == "AVIF":
        pytest.skip("this Pillow writes no AVIF")
    exif = Image.Exif()
    exif[0x0112] = orientation
    more = {"save_all": True, "append_images": [noise(2, (40, 20))]} if kind == "MPO" else {}
    data = encoded(noise(1, (40, 20)), kind, exif=exif, **more)
    assert image_size(data) == ((40, 20) if orientation == 6 else (20, 40))
    assert load_whole(data, config()).shape[:2] == image_size(data)


@pytest.mark.parametrize("deep", [False, True])
def test_a_tiff_on_its_side_is_turned_where_its_values_are(deep: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.arange(800, dtype=np.uint16).reshape(20, 40)) if deep else noise(1, (40, 20))
    data = encoded(image, "TIFF", exif=exif)
    assert image_size(data) == load_whole(data, config()).shape[:2] == (40, 20)
    values = config(range=(0, 65535))
    assert image_size(data, values=True) == load_whole(data, values).shape[:2]


def test_the_rotation_of_a_png_behind_its_pixels_is_known_without_decoding_them() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(noise(1, (40, 20)), exif=exif)
    at = data.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    last = len(data) - 12
    late = data[:at] + data[end:last] + data[at:end] + data[last:]
    assert image_size(late) == (40, 20)
    assert load_whole(late, config()).shape[:2] == (40, 20)
    pixels = late.index(b"IDAT") + 4
    assert image_size(late[:pixels] + bytes(8) + late[pixels + 8 :]) == (40, 20)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]), data=st.data())
def test_garbage_is_a_size_or_none_never_a_crash(kind: str, data: st.DataObject) -> None:
    whole = encoded(noise(0, (16, 16)), kind)
    broken = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(min(4, len(broken))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        assert min(image_size(bytes(broken))) >= 0
