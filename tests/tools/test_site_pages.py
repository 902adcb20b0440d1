"""The page of presets of the documentation site: its numbers, and the commands that it shows."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from vqvae2.autoencoder.model import VQVAE
from vqvae2.commands.options import assigned, resolve
from vqvae2.config.models import Config
from vqvae2.config.overrides import settings
from vqvae2.config.presets import chosen_for, preset, presets
from vqvae2.prior.hierarchy import HierarchicalPrior

sys.path.append(str(Path(__file__).parents[2] / "tools"))

import site_pages


@pytest.fixture(scope="module")
def page() -> str:
    return site_pages.presets_page()


def cells(page: str, name: str) -> list[str]:
    """The cells of the row that begins with a name."""
    (line,) = re.findall(rf"^\| `{re.escape(name)}` \|(.*)\|$", page, re.MULTILINE)
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]


def test_every_preset_is_in_the_table(page: str) -> None:
    for name in presets():
        config = preset(name)
        size, grids, codes, _, weights, steps, chosen = cells(page, name)
        assert size == str(config.data.size)
        assert grids == " + ".join(f"{h}x{w}" for h, w in config.geometry.grids)
        assert codes == f"{sum(config.geometry.positions):,}"
        assert len(weights.split(" + ")) == 1 + config.autoencoder.levels
        assert steps.startswith(f"{config.train_autoencoder.steps:,}; ")
        assert chosen == chosen_for(name)


def test_weights_are_those_of_the_networks() -> None:
    config = preset("tiny")
    prior = HierarchicalPrior(config.prior, config.geometry)
    networks = (VQVAE(config.autoencoder), *prior.levels)
    counts = [sum(p.numel() for p in network.parameters() if p.requires_grad) for network in networks]
    assert site_pages.weights(config) == (counts[0], counts[1:])


def test_settings_are_explained_in_the_words_of_the_configuration(page: str) -> None:
    known = {key: description for key, _, description in settings()}
    for key in site_pages.MAIN:
        default, meaning = cells(page, key)
        assert default != "``"
        assert meaning.replace("\\|", "|") == known[key] != ""


def test_what_the_page_sets_can_be_set(page: str) -> None:
    """Each assignment alone, where it changes no number of levels; and the example that changes it."""
    (example,) = re.findall(r"^--preset small64 .*$", page, re.MULTILINE)
    given = shlex.split(example)
    changed = resolve(preset(given[1]), None, given[3::2])
    assert (changed.autoencoder.strides, changed.autoencoder.codes) == ((4,), (512,))
    assert (changed.prior.levels[0].layers, changed.train_prior[0].steps) == (8, 3000)
    alone = [shlex.split(text) for text in re.findall(r"`(--(?:set|size) [^`]+)`", page)]
    assert len(alone) >= 9

    def set_by(option: str, value: str) -> Config:
        return resolve(
            preset("small64"), None, assigned(*(([value], None) if option == "--set" else ([], value)))
        )

    results = [set_by(*words) for words in alone if "=" not in words[1] or "KEY" not in words[1]]
    assert all(result != preset("small64") for result in results)
    strides = [result.autoencoder.strides for result in results]
    assert strides.count((8, 2)) == 2
    assert [result.data.size for result in results].count((64, 96)) == 2
