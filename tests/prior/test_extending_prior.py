"""The code in docs/extending.md: a kind of prior of one's own works everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import same_codes
from prior_helpers import config, geometry, hierarchy, inputs, level_prior, refused, stepped

from vqvae2.config import models
from vqvae2.config.models import LevelPriorConfig
from vqvae2.prior import kinds

DOCS = Path(__file__).parents[2] / "docs"
GRIDS = ((2, 3), (4, 3))


@pytest.fixture
def namespace() -> Iterator[dict[str, Any]]:
    """What the code of the page defines; the registry is as before afterwards."""
    pages = [DOCS / "extending.md"]
    texts = [page.read_text(encoding="utf-8") for page in pages if page.exists()]
    text = next(text for text in texts if "## A kind of prior of your own" in text)
    section = text.split("## A kind of prior of your own")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    before = dict(kinds._KINDS), set(models.prior_kinds)
    names: dict[str, Any] = {}
    exec(compile(code, "extending", "exec"), names)  # the documentation's own code
    yield names
    kinds._KINDS.clear()
    kinds._KINDS.update(before[0])
    models.prior_kinds.intersection_update(before[1])


@pytest.mark.parametrize("classes", [0, 2])
@pytest.mark.parametrize("level", [0, 1])
def test_its_steps_are_its_whole_grid(namespace: dict[str, Any], classes: int, level: int) -> None:
    prior = level_prior(GRIDS, level, classes, kind="mean")
    assert type(prior) is namespace["MeanPrior"]
    codes, coarser, labels = inputs(prior, GRIDS)
    with torch.no_grad():
        whole = prior(codes, coarser, labels)
        steps = stepped(prior, codes, prior.context(coarser, labels))
    assert whole.std() > 1e-2
    assert torch.allclose(steps, whole, atol=1e-9)


def test_it_samples_and_learns(namespace: dict[str, Any]) -> None:
    prior = hierarchy(GRIDS, 2, kind="mean")
    labels = torch.tensor([0, 1, 2])
    codes = prior.sample(3, labels, seed=1)
    prior.geometry.check(codes)
    assert same_codes(prior.sample([2], labels[2:], seed=1), codes[[2]])
    prior.log_prob(codes, labels).sum().backward()
    assert all(p.grad is not None for p in prior.parameters())


def test_a_name_stands_for_one_class(namespace: dict[str, Any]) -> None:
    kinds.register_kind("mean", namespace["MeanPrior"])
    refused(
        lambda: kinds.register_kind("pixelcnn", namespace["MeanPrior"]),
        "'pixelcnn' exists already, as PixelCNN",
    )


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="among pixelcnn, transformer, found 'mean'"):
        LevelPriorConfig(kind="mean")
    assert (
        type(kinds.make_level(config(kind="transformer"), geometry(((2, 2),)), 0, 0)).__name__
        == "Transformer"
    )
