"""Images with more than 8 bits, other ranges and other numbers of channels: what is read, stored and written."""

from __future__ import annotations

import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import config, dicom, encoded, noise, opened
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_decoding import png

from vqvae2.config.models import ConfigError, DataConfig
from vqvae2.data import deep, value_range
from vqvae2.data.decoding import decode, load_image
from vqvae2.data.deep import CLIPPED, save_values, to_values
from vqvae2.data.errors import DataError, ImageError
from vqvae2.data.pixels import to_float
from vqvae2.data.value_range import with_range


def array(values: Any) -> bytes:
    """The bytes of a .npy file."""
    stream = BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def ct(size: int = 8, channels: int = 1) -> Any:
    """Whole numbers from -1024 to 3071."""
    return (
        np.linspace(-1024, 3071, size * size * channels)
        .round()
        .astype(np.int16)
        .reshape(size, size, channels)
    )


def floats(pixels: Any) -> Any:
    return to_float(torch.from_numpy(pixels[None]))[0]


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 16])
def test_values_return_in_their_range_and_type(channels: int) -> None:
    values = ct(channels=channels)
    options = config(range=(-1024, 3071), channels=channels)
    pixels = load_image(array(values), options)
    assert (pixels.dtype, pixels.shape) == (np.int16, (8, 8, channels))
    assert (pixels.min(), pixels.max()) == (-32768, 32767)
    back = to_values(floats(pixels), options)
    assert back.dtype == np.int16
    assert np.array_equal(back, values)


@settings(max_examples=60)
@given(st.integers(-30_000, 30_000), st.integers(2, 60_000), st.integers(0, 2**32 - 1))
def test_whole_numbers_come_back_exactly(low: int, span: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(low, low + span, (4, 4, 1), endpoint=True).astype(np.int32)
    options = config(size=4, channels=1, range=(low, low + span))
    assert np.array_equal(to_values(floats(load_image(array(values), options)), options), values)


def test_floating_point_comes_back_as_such() -> None:
    values = np.random.default_rng(0).random((8, 8, 2), np.float32) * 0.5 - 0.1
    options = config(channels=2, range=(-0.1, 0.4))
    back = to_values(floats(load_image(array(values), options)), options)
    assert back.dtype == np.float32
    assert np.abs(back - values).max() < 0.5 / 65535 + 1e-6


def test_what_is_clipped_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    decode(array(ct()), config(range=(0, 3071), channels=1), remarks=said)
    assert said == [CLIPPED]
    root = tmp_path / "in"
    root.mkdir()
    for number in range(4):
        np.save(root / f"{number}.npy", ct() if number else ct().clip(0))
    says: list[str] = []
    images = opened(root, tmp_path / "run", says, range=(0, 3071), channels=1)
    assert images.pixels([0]).dtype == torch.int16
    assert f"{CLIPPED}: 3 of 4 images" in says
    assert (
        opened(root, tmp_path / "run2", says, range=(-1024, 3071), channels=1, cache_gb=0).pixels([1]).min()
        == -32768
    )


def test_16_bit_png_and_tiff_keep_their_levels() -> None:
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    options = config(size=64, channels=1, range=(0, 4095))
    for kind in ("PNG", "TIFF"):
        back = to_values(floats(load_image(encoded(Image.fromarray(ramp), kind), options)), options)
        assert np.array_equal(back[..., 0], ramp), kind
    wide = np.arange(64 * 64 * 3).reshape(64, 64, 3).astype(np.uint16) * 5
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    colours = config(size=64, channels=3, range=(0, 65535))
    texts = (b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * (3 << 20)))  # more than Pillow unpacks
    for chunks in ((), (texts,)):
        back = to_values(floats(load_image(png(64, 64, 16, 2, rows, *chunks), colours)), colours)
        assert np.array_equal(back, wide)


def test_8_bit_images_are_read_with_a_range_too() -> None:
    options = config(range=(0, 255))
    back = to_values(floats(load_image(encoded(noise(3)), options)), options)
    assert back.dtype == np.uint8
    assert np.array_equal(back, np.asarray(noise(3)))
    assert load_image(encoded(noise(3, channels=1)), options).shape == (8, 8, 3)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiff_of_many_channels(planar: str, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = ct(channels=5)
    stored = values if planar == "contig" else np.moveaxis(values, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=planar)
    options = config(channels=5, range=(-1024, 3071))
    assert np.array_equal(to_values(floats(load_image(tmp_path / "a.tif", options)), options), values)


@pytest.mark.parametrize("channels", [1, 3, 6])
@pytest.mark.parametrize("bounds", [(-1024, 3071), (0, 4095), (0.0, 0.5)])
@pytest.mark.parametrize("library", [True, False])
def test_written_files_are_read_again(
    channels: int, bounds: Any, library: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library:
        pytest.importorskip("tifffile")
    else:
        monkeypatch.setattr(deep, "optional", lambda name: None)
    options = config(channels=channels, range=bounds)
    image = torch.rand(channels, 8, 8) * 2 - 1
    path = save_values(image, tmp_path / "a.b", options)
    assert path.name in ("a.b.tif", "a.b.npy")
    assert (floats(load_image(path, options)) - image).abs().max() < 2 / (
        bounds[1] - bounds[0] if bounds[1] > 1 else 60_000
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(4), "expected an array"),
        (np.zeros((2, 2, 2, 2)), "expected an array"),
        (np.zeros((2, 2, 17)), "expected an array"),
        (np.zeros((0, 2)), "expected an array"),
        (np.zeros((2, 2), complex), "expected real numbers"),
        (np.full((2, 2), np.inf), "infinite or no numbers"),
        (np.zeros((2, 2, 5)), "5 channels, where data.channels is 1"),
    ],
)
def test_arrays_that_are_no_images(values: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(array(values), config(range=(0, 1), channels=1))


@pytest.mark.parametrize("seed", range(3))
def test_damaged_arrays_are_errors_or_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = array(ct())
    for _ in range(60):
        data = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for position in rng.integers(0, min(len(data), 140), 3):
            data[position] = rng.integers(256)
        try:
            assert load_image(bytes(data), config(range=(-1024, 3071), channels=1)).shape == (8, 8, 1)
        except ImageError:
            continue


def test_arrays_need_a_range_and_objects_are_refused() -> None:
    with pytest.raises(ImageError, match=r"read with data\.range set"):
        load_image(array(ct()), config())
    stream = BytesIO()
    np.save(stream, np.array([[{}]], object), allow_pickle=True)
    with pytest.raises(ImageError, match="Python objects"):
        load_image(stream.getvalue(), config(range=(0, 1), channels=1))
    huge = array(np.zeros((2, 2))).replace(b"(2, 2)", b"(99999, 99999)").replace(b"        \n", b"\n")
    with pytest.raises(ImageError):
        load_image(huge, config(range=(0, 1), channels=1))


def test_settings_that_cannot_work() -> None:
    for options in (
        {"channels": 2},
        {"channels": 17, "range": (0, 1)},
        {"range": (1, 1)},
        {"range": (0, float("nan"))},
        {"range": "all"},
    ):
        with pytest.raises(ConfigError):
            DataConfig(**options)  # type: ignore[arg-type]


# --- a range in words ---


def test_the_range_of_the_type_and_percentiles(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for number in range(6):
        np.save(root / f"{number}.npy", ct(32))
    says: list[str] = []
    found = with_range(str(root), config(range="dtype", channels=1), tmp_path / "run", says.append)
    assert found.range == (-32768, 32767)
    found = with_range(str(root), config(range="percentiles", channels=1), tmp_path / "run", says.append)
    assert isinstance(found.range, tuple)
    assert np.allclose(found.range, (-1024 + 4, 3071 - 4), atol=3)
    assert "data.range=[" in says[-1]
    assert with_range("nowhere", found, tmp_path, says.append) is found
    with pytest.raises(DataError, match="expected two numbers"):
        load_image(array(ct()), config(range="dtype", channels=1))


def test_values_that_are_no_numbers_have_no_range(tmp_path: Path) -> None:
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", np.full((8, 8), np.nan, np.float32))
    with pytest.raises(DataError, match=r"data\.range: no value of the images is finite"):
        with_range(
            str(tmp_path), config(range="percentiles", channels=1), tmp_path / "run", lambda text: None
        )


@pytest.mark.parametrize("word", ["percentiles", "dtype"])
def test_a_range_takes_the_memory_of_few_images(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(value_range, "_VALUES", 1000)
    for number in range(30):
        np.save(tmp_path / f"{number}.npy", np.arange(200_000.0).reshape(200, 1000))
    tracemalloc.start()
    try:
        with_range(str(tmp_path), config(range=word, channels=1), tmp_path / "run", lambda text: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * 1.6e6


def test_a_range_is_that_of_the_images_that_the_seed_chooses(tmp_path: Path) -> None:
    for number in range(8):
        np.save(tmp_path / f"{number}.npy", np.array([[number, number + 1]]))
    chosen = config(range="percentiles", channels=1, limit=1)
    ranges = {
        with_range(str(tmp_path), chosen, tmp_path / "run", lambda text: None, seed).range
        for seed in range(5)
    }
    assert len(ranges) > 1


def test_only_training_images_decide(tmp_path: Path) -> None:
    for split, value in (("train", 100), ("test", 30_000)):
        (tmp_path / "in" / split).mkdir(parents=True)
        for number in range(3):
            np.save(tmp_path / "in" / split / f"{number}.npy", np.arange(64).reshape(8, 8) + value)
    found = with_range(
        str(tmp_path / "in"), config(range="percentiles", channels=1), tmp_path / "run", lambda text: None
    )
    assert found.range == (100, 163)


def test_dicom(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 60
    dicom(tmp_path / "a.dcm", values, RescaleSlope=1, RescaleIntercept=-1024)
    options = config(channels=1, range=(-1024, 3071))
    back = to_values(floats(load_image(tmp_path / "a.dcm", options)), options)
    assert np.array_equal(back[..., 0], values.astype(int) - 1024)
    with pytest.raises(ImageError):
        load_image((tmp_path / "a.dcm").read_bytes()[:200], options)


@pytest.mark.parametrize(("largest", "dark"), [(65535, False), (9000, False), (4095, True)])
def test_a_depth_that_is_lost_is_said(largest: int, dark: bool) -> None:
    """Values of 12 bits in a file of 16 are nearly black where 65535 is white."""
    ramp = np.linspace(0, largest, 64).astype(np.uint16).reshape(8, 8)
    said: list[str] = []
    decode(encoded(Image.fromarray(ramp)), config(channels=1), remarks=said)
    (line,) = said
    assert line.startswith("more than 8 bits reduced to 8")
    assert ("nearly black" in line) == dark
    said.clear()
    decode(encoded(Image.fromarray(ramp)), config(channels=1, range=(0, 65535)), remarks=said)
    assert said == []
