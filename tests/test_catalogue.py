"""The presets: all complete, listed in order of cost, and chosen by number and size of the pictures."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqvae2.catalogue import choose, preset, presets
from vqvae2.config import Config, ConfigError, TrainConfig, parse

SIDES = (32, 64, 128, 256)
FEW = 20_000


def work(config: Config) -> int:
    """Pixels seen in stage 1 times its width: a measure of cost."""
    training = config.train_autoencoder
    return config.data.size**2 * training.steps * training.batch * config.autoencoder.hidden


@pytest.mark.parametrize("name", presets())
def test_a_preset_is_a_whole_configuration(name: str) -> None:
    config = preset(name)
    assert parse(config.model_dump(mode="json")) == config
    assert config.autoencoder.levels == len(config.train_prior) == len(config.prior.levels)
    assert [side for grid in config.geometry.grids for side in grid] == sorted(
        side for grid in config.geometry.grids for side in grid
    )


@pytest.mark.parametrize("name", presets())
def test_a_preset_is_trained_sensibly(name: str) -> None:
    """Warm-ups end long before the training does, and there are evaluations among which the best is kept."""
    config = preset(name)
    stages: list[TrainConfig] = [config.train_autoencoder, *config.train_prior]
    for training in stages:
        assert training.warmup * 2 <= training.steps
        assert training.evaluate_every * 2 <= training.steps
        assert training.batch > 1
    for level in config.prior.levels:
        assert not level.attention_every or level.attention_every <= level.layers


def test_names() -> None:
    names = presets()
    assert len(set(names)) == len(names)
    assert {"tiny", "demo"} <= set(names)
    assert {f"{kind}{side}" for kind in ("small", "large") for side in SIDES} <= set(names)


def test_the_size_in_the_name_is_the_pictures() -> None:
    for kind in ("small", "large"):
        for side in SIDES:
            assert preset(f"{kind}{side}").data.size == side


def test_the_dearer_presets_come_later() -> None:
    assert presets()[0] == "tiny"
    costs = {name: work(preset(name)) for name in presets()}
    for kind in ("small", "large"):
        of_kind = [costs[f"{kind}{side}"] for side in SIDES]
        assert of_kind == sorted(of_kind)
    assert costs["tiny"] == min(costs.values())
    assert all(costs[f"small{side}"] < costs[f"large{side}"] for side in SIDES)


def test_presets_are_not_shared() -> None:
    """What one caller does with the dictionary of a preset does not reach the next one."""
    preset("tiny").model_dump()["data"]["size"] = 8
    assert preset("tiny") == preset("tiny")
    assert preset("tiny").data.size == 32


@pytest.mark.parametrize("name", ["", "Tiny", "tiny ", "small48"])
def test_an_unknown_preset_lists_the_others(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        preset(name)
    assert "\n" not in str(caught.value)
    assert repr(name) in str(caught.value)
    assert all(known in str(caught.value) for known in presets())


@pytest.mark.parametrize(("pictures", "pixels", "name"), [
    (1, 0, "small32"),
    (100, 31, "small32"),
    (100, 32, "small32"),
    (100, 63, "small32"),
    (100, 64, "small64"),
    (100, 127, "small64"),
    (100, 128, "small128"),
    (100, 255, "small128"),
    (100, 256, "small256"),
    (100, 5000, "small256"),
    (FEW - 1, 64, "small64"),
    (FEW, 64, "large64"),
    (10**7, 5000, "large256"),
])  # fmt: skip
def test_the_preset_that_is_chosen(pictures: int, pixels: int, name: str) -> None:
    assert choose(pictures, pixels) == name


@given(pictures=st.integers(0, 10**8), pixels=st.integers(0, 10**5))
def test_the_chosen_preset_exists_and_never_enlarges_more_than_it_must(pictures: int, pixels: int) -> None:
    name = choose(pictures, pixels)
    assert name in presets()
    size = preset(name).data.size
    assert size == min(SIDES) or size <= pixels
    assert size == max(SIDES) or pixels < 2 * size
    assert math.log2(size).is_integer()
