"""Images of any shape: what is cut out or padded, and the shape that is chosen for images of one aspect ratio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import BLUE, GREEN, RED, config, encoded, noise, opened, plain
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vqvae2.commands.train import fitting
from vqvae2.config.models import ConfigError, DataConfig
from vqvae2.config.overrides import override
from vqvae2.config.presets import preset
from vqvae2.data.decoding import load_image, load_mask
from vqvae2.data.peek import peek


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (64, 64),
        ("64", 64),
        ("64x96", (64, 96)),
        ("64,96", (64, 96)),
        ([64, 96], (64, 96)),
        ((32, 32), 32),
        ([7], 7),
    ],
)
def test_ways_to_write_a_size(given: Any, size: Any) -> None:
    data = DataConfig(size=given)
    assert data.size == size
    assert DataConfig.model_validate(data.model_dump(mode="json")) == data
    assert data.shape == (size if isinstance(size, tuple) else (size, size))


@pytest.mark.parametrize("given", [0, -1, 8193, "big", "64x", "1x2x3", [0, 4], [1.5, 2], True, None, "x"])
def test_sizes_that_are_none(given: Any) -> None:
    with pytest.raises(ConfigError, match="expected an integer from 1 to 8192, or two"):
        DataConfig(size=given)


def test_a_size_on_the_command_line() -> None:
    value = preset("tiny").model_dump(mode="json")
    assert override(value, ["data.size=64x96"])["data"]["size"] in ("64x96", [64, 96])


def stripes(width: int, height: int) -> Image.Image:
    """Red on the left, green in the middle, blue on the right, each a third."""
    image = Image.new("RGB", (width, height), GREEN)
    image.paste(RED, (0, 0, width // 3, height))
    image.paste(BLUE, (width - width // 3, 0, width, height))
    return image


def test_crop_takes_the_largest_part_of_the_shape() -> None:
    data = encoded(stripes(90, 30))
    assert np.all(load_image(data, config(size=(30, 30))) == GREEN)
    whole = load_image(data, config(size=(10, 30)))
    assert whole.shape == (10, 30, 3)
    assert np.array_equal(whole[5, [1, 15, 28]], [RED, GREEN, BLUE])
    tall = load_image(encoded(stripes(90, 30).rotate(90, expand=True)), config(size=(30, 10)))
    assert tall.shape == (30, 10, 3)
    assert np.array_equal(tall[[1, 15, 28], 5], [BLUE, GREEN, RED])


@pytest.mark.parametrize(("channels", "bar"), [(1, [76]), (3, [255, 0, 0]), (4, [255, 0, 0, 0])])
def test_pad_keeps_the_whole_image(channels: int, bar: list[int]) -> None:
    settings = config(size=(30, 30), fit="pad", background="red", channels=channels)
    pixels = load_image(encoded(stripes(90, 30)), settings)
    assert pixels.shape == (30, 30, channels)
    assert np.all(pixels[:10] == bar)
    assert np.all(pixels[20:] == bar)
    if channels == 3:
        assert np.array_equal(pixels[15, [1, 15, 28]], [RED, GREEN, BLUE])
    turned = load_image(encoded(stripes(90, 30).rotate(90, expand=True)), settings)
    assert np.all(turned[:, :10] == bar)


@settings(max_examples=60)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from(["crop", "pad"]),
)
def test_any_image_becomes_the_shape(width: int, height: int, down: int, across: int, fit: str) -> None:
    pixels = load_image(
        encoded(plain(RED, size=(width, height))), config(size=(down, across), fit=fit, background="#dc1e14")
    )
    assert pixels.shape == (down, across, 3)
    assert np.all(pixels == RED)  # nothing from outside the image


def test_a_mask_is_cut_out_like_its_image() -> None:
    mask = Image.new("L", (90, 30))
    mask.paste(255, (30, 0, 60, 30))
    for fit in ("crop", "pad"):
        found = load_mask(encoded(mask), config(size=(30, 45), fit=fit))
        green = np.all(load_image(encoded(stripes(90, 30)), config(size=(30, 45), fit=fit)) == GREEN, -1)
        assert found.shape == (30, 45)
        assert (found != green).mean() < 0.1  # but for the smoothed edges


def folder(root: Path, sizes: list[tuple[int, int]]) -> Path:
    root.mkdir()
    for number, size in enumerate(sizes):
        noise(number, size).save(root / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ([(96, 64)] * 9, (64, 96)),
        ([(64, 96)] * 9, (96, 64)),
        ([(64, 64)] * 9, ()),
        ([(85, 64)] * 9, (64, 88)),
        ([(76, 64)] * 9, ()),
        ([(96, 64), (64, 96)] * 5, ()),
        ([(96, 64)] * 8 + [(64, 64)], (64, 96)),
        ([(1000, 64)] * 9, (64, 256)),
    ],
)
def test_the_shape_follows_most_images(sizes: Any, shape: Any, tmp_path: Path) -> None:
    preview = peek(str(folder(tmp_path / "in", sizes)), config(), tmp_path / "run")
    assert fitting(preset("small64"), preview.aspect) == shape


def test_a_set_of_another_shape(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", [(40, 20)] * 6)
    images = opened(root, tmp_path / "run", size=(8, 16))
    assert images.pixels([0, 1]).shape == (2, 8, 16, 3)
    lazy = opened(root, tmp_path / "run2", size=(8, 16), cache_gb=0)
    assert np.array_equal(lazy.pixels([0, 1]), images.pixels([0, 1]))
    assert opened(root, tmp_path / "run3", size=(8, 16), fit="pad").fingerprint != images.fingerprint
