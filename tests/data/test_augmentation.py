"""What augmentation does to pixels, and that its random numbers are uniform and independent."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import config

from vqvae2.data import augmentation
from vqvae2.data.augmentation import augmented, centre, windows
from vqvae2.data.decoding import stored_shape


def counting(side: int) -> torch.Tensor:
    """[1, side, side, 3]: row, column and a constant as colours."""
    rows, columns = np.indices((side, side))
    return torch.from_numpy(np.stack([rows, columns, rows * 0 + 7], -1)[None].astype(np.uint8))


@pytest.mark.parametrize("seed", [1, 2])
def test_flip_mirrors_about_half_and_changes_nothing_else(seed: int) -> None:
    raw = np.repeat(counting(8).numpy(), 400, 0)
    result = augmented(raw, np.arange(400), seed, config(flip=True))
    mirrored = (result == raw[:, :, ::-1]).all((1, 2, 3))
    untouched = (result == raw).all((1, 2, 3))
    assert (mirrored ^ untouched).all()
    assert 150 < mirrored.sum() < 250
    assert np.array_equal(augmented(raw, np.arange(400), seed, config()), raw)


@pytest.mark.parametrize("seed", [1, 2])
def test_shift_repeats_the_edges(seed: int) -> None:
    raw = np.repeat(counting(8).numpy(), 300, 0)
    result = augmented(raw, np.arange(300), seed, config(shift=2)).astype(int)
    rows, columns = result[:, :, 0, 0], result[:, 0, :, 1]
    offsets = set()
    for image, row, column in zip(result, rows, columns, strict=True):
        shift = (int(row[4]) - 4, int(column[4]) - 4)
        offsets.add(shift)
        expected = [(np.arange(8) + by).clip(0, 7) for by in shift]
        assert (row == expected[0]).all()
        assert (column == expected[1]).all()
        assert (image[..., 0] == row[:, None]).all()
    assert offsets == set(itertools.product(range(-2, 3), repeat=2))


@pytest.mark.parametrize("seed", [1, 2])
def test_random_crop_reaches_every_corner(seed: int) -> None:
    raw = np.repeat(counting(10).numpy(), 300, 0)
    result = augmented(raw, np.arange(300), seed, config(crop="random", scale=1.25))
    corners = {(int(image[0, 0, 0]), int(image[0, 0, 1])) for image in result}
    assert corners == set(itertools.product(range(3), repeat=2))
    still = augmented(raw, np.arange(300), seed, config(scale=1.25))
    assert (still == centre(raw, (8, 8))).all()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_taking_pixels_is_plain_indexing(channels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (5, 6, 6, channels), np.uint8)
    rows, columns = rng.integers(0, 6, (2, 5, 4))
    expected = raw[np.arange(5)[:, None, None], rows[:, :, None], columns[:, None, :]]
    assert np.array_equal(augmentation._take(raw, rows, columns), expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"flip": True},
        {"flip": True, "shift": 2},
        {"crop": "random", "scale": 1.25},
        {"size": (6, 10), "flip": True, "shift": 1, "crop": "random", "scale": 1.5},
    ],
)
def test_windows_say_which_pixels_are_taken(options: dict[str, Any]) -> None:
    settings = config(**options)
    stored = stored_shape(settings)
    raw = np.random.default_rng(0).integers(0, 256, (40, *stored, 3), np.uint8)
    rows, columns = windows(stored, np.arange(40), 1, settings)
    assert (rows.shape, columns.shape) == ((40, settings.shape[0]), (40, settings.shape[1]))
    taken = raw[np.arange(40)[:, None, None], rows[:, :, None], columns[:, None, :]]
    assert np.array_equal(taken, augmented(raw, np.arange(40), 1, settings))


@pytest.mark.parametrize("seed", [5, 8])
def test_random_numbers_are_uniform_and_independent(seed: int) -> None:
    draws = augmentation._uniform(seed, np.arange(20_000), 5)
    assert 0 <= draws.min() < draws.max() < 1
    assert np.abs(np.histogram(draws, 10, (0, 1))[0] / draws.size - 0.1).max() < 0.005
    assert np.abs(np.corrcoef(np.c_[draws[1:], draws[:-1]].T) - np.eye(10)).max() < 0.03
    assert not np.array_equal(draws, augmentation._uniform(seed + 1, np.arange(20_000), 5))
