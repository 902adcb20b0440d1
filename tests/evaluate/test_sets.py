"""Sets of images: a broken image that another one replaces while it is read does not give it its label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vqvae2.config.models import DataConfig
from vqvae2.data.images import open_images
from vqvae2.evaluate import critic
from vqvae2.evaluate.resnet import ClassifierConfig, ResNet, train_classifier
from vqvae2.evaluate.sets import NamedImages, folder_images, real_images

CONFIG = DataConfig(size=8, workers=0, holdout=0.3, cache_gb=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of the classes "dark" and "light"; the last ones of each cannot be read, and those of the other class follow."""
    for name, grey in (("dark", 10), ("light", 240)):
        for number in range(30):
            file = tmp_path / "data" / name / f"{number:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (grey, grey, grey)).save(file)
            if number > 22:
                file.write_bytes(b"")
    return tmp_path / "data"


def light(images: Tensor) -> list[int]:
    """1 for each image that shows the class "light"."""
    return [int(value) for value in images.mean((1, 2, 3)) > 0]


def test_labels_are_those_of_the_images_that_were_read(folder: Path, tmp_path: Path) -> None:
    """Of a data set, of a part of it, and of another folder, whose classes have other numbers here."""
    images = open_images(str(folder), CONFIG, tmp_path / "cache", say=lambda _: None)
    order = np.random.default_rng(0).permutation(images.train)
    whole = real_images("all", images, order, CONFIG)
    other = folder_images("other", folder, ("light", "none", "dark"), CONFIG, tmp_path / "other")
    numbers = {"all": (0, 1), "first": (0, 1), "other": (2, 0)}
    sets: dict[str, NamedImages] = {"first": whole.first(20), "all": whole, "other": other}
    for name, some in sets.items():
        assert some.labels is not None
        before = some.labels.tolist()
        shown = light(torch.cat([some.images(0, 7), some.images(7)]))
        assert some.labels.tolist() == [numbers[name][value] for value in shown]
        assert some.labels.tolist() != before
    assert folder_images("other", folder, ("light",), CONFIG, tmp_path / "other").labels is None


def test_a_critic_learns_the_labels_of_the_images_that_were_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ClassifierConfig(width=8, stages=1, steps=10, batch=8, flip=False, shift=0)
    learned: list[tuple[list[int], list[int]]] = []

    def noted(images: Any, labels: Tensor, *more: Any) -> ResNet:
        pixels = torch.cat([*images])
        made = train_classifier(pixels, labels, *more)
        learned.append((light(pixels), labels.tolist()))
        return made

    monkeypatch.setattr(critic, "classifier_config", lambda n: config)
    monkeypatch.setattr(critic, "train_classifier", noted)
    images = open_images(str(folder), CONFIG, tmp_path / "cache", say=lambda _: None)
    critic.fit_critic(tmp_path / "run", images, CONFIG, critic.CriticKind("resnet"))
    ((shown, labels),) = learned
    assert labels == shown
    assert images.labels_of(images.train).tolist() != shown, "some were replaced by images of the other class"
