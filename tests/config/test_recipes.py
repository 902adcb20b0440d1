"""The recipes for one GPU: each resolves with the preset that its header names, and keeps to its minutes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vqvae2.config.models import parse
from vqvae2.config.overrides import complete, merge, read_yaml
from vqvae2.config.presets import preset

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*-gpu.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_for_a_gpu(path: Path) -> None:
    header = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    command = re.search(r"vqvae2 train .* --preset (\w+) --config recipes/(.*)", header)
    assert command is not None
    assert command[2] == path.name
    base = preset(command[1]).model_dump(mode="json")
    config = parse(complete(merge(base, read_yaml(path))))
    sharpened = [config.sharpen] if config.sharpen.steps else []
    assert sharpened or "not sharpened" in header
    trainings = [config.train_autoencoder, *sharpened, *config.train_prior]
    minutes = [training.minutes for training in trainings]
    assert min(minutes) > 0
    assert sum(minutes) <= 7, "what is left of nine minutes is for starting, decoding, encoding and drawing"
    assert f"{sum(minutes):.1f} in all" in header
    assert all(f" {limit:.1f}" in header for limit in minutes)
    assert all(training.warmup * 10 <= training.steps for training in trainings)
