"""Classes that are mirror images of each other: no classifier may mirror its training images where the run does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqvae2.config.models import DataConfig
from vqvae2.data.images import ImageSet, open_images
from vqvae2.evaluate import critic
from vqvae2.evaluate.classifier_file import load_classifier
from vqvae2.evaluate.context import Context
from vqvae2.evaluate.critic import CriticKind, critic_file, fit_critic
from vqvae2.evaluate.options import EvaluateOptions
from vqvae2.evaluate.parts import classification
from vqvae2.evaluate.resnet import ClassifierConfig, ResNet
from vqvae2.files.progress import Reporter

SMALL = ClassifierConfig(width=8, stages=2, steps=40, batch=16, lr=2e-2)  # it would flip and shift
FACING = DataConfig(size=12, channels=1, flip=False, shift=0, holdout=0.3, workers=0)


@pytest.fixture
def images(tmp_path: Path) -> Iterator[ImageSet]:
    """60 noisy images whose left or right half is bright, which is their class."""
    random = np.random.default_rng(0)
    for number in range(60):
        folder = tmp_path / "images" / ("left", "right")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 120, (12, 12), np.uint8)
        pixels[:, :6] += np.uint8(130 * (folder.name == "left"))
        pixels[:, 6:] += np.uint8(130 * (folder.name == "right"))
        Image.fromarray(pixels).save(folder / f"{number}.png")
    opened = open_images(str(tmp_path / "images"), FACING, tmp_path / "data", say=lambda text: None)
    yield opened
    opened.close()


def test_the_accuracy_score_is_that_of_the_runs_own_augmentation(images: ImageSet, tmp_path: Path) -> None:
    options = EvaluateOptions(only=("classification",), classifier=SMALL)
    context = Context(None, images, FACING, options, tmp_path / "cache", Reporter(quiet=True))
    figures = classification.measure(context).figures
    assert figures["rows"][0]["top_1"] == 1
    assert (figures["classifier"]["flip"], figures["classifier"]["shift"]) == (False, 0)


def test_the_critic_is_fitted_with_the_runs_own_augmentation(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(critic, "classifier_config", lambda n: SMALL)
    fitted = fit_critic(tmp_path / "run", images, FACING, CriticKind("resnet"))
    assert fitted.accuracy == 1
    saved = load_classifier(critic_file(tmp_path / "run").with_name("model.safetensors"))
    assert isinstance(saved, ResNet)
    assert (saved.config.flip, saved.config.shift) == (False, 0)


def test_a_classifier_augments_no_more_than_the_data_or_its_own_settings() -> None:
    more = FACING.model_copy(update={"flip": True, "shift": 6})
    assert SMALL.within(more) == SMALL
    still = SMALL.model_copy(update={"flip": False, "shift": 0})
    assert still.within(more) == SMALL.within(FACING) == still
