"""Nearest training images: the result of a plain search over all of them, mirror images included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vqvae2.config.models import DataConfig
from vqvae2.data.images import ImageSet, open_images
from vqvae2.data.pixels import to_float
from vqvae2.evaluate import neighbours
from vqvae2.evaluate.neighbours import nearest_images
from vqvae2.evaluate.parts import memorisation


def config(flip: bool) -> DataConfig:
    """Small images, decoded in this process; a third is held out."""
    return DataConfig(size=6, flip=flip, workers=0, holdout=0.3)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """40 images of noise."""
    root = tmp_path_factory.mktemp("images")
    for number in range(40):
        values = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(values).save(root / f"{number:02d}.png")
    return open_images(str(root), config(True), tmp_path_factory.mktemp("run") / "data", say=lambda _: None)


@pytest.fixture(params=[512, 7, 1])
def batch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many training images are compared at once."""

    monkeypatch.setattr(neighbours, "_VALUES", request.param * 3 * 6 * 6)
    return int(request.param)


def samples(count: int, seed: int = 5) -> Tensor:
    """Noise in [-1, 1]."""
    return torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def searched(samples: Tensor, images: ImageSet, flip: bool) -> tuple[Tensor, Tensor]:
    """`nearest_images`, one comparison after the other."""
    candidates = [*to_float(images.pixels(images.train))]
    candidates += [image.flip(2) for image in candidates] if flip else []
    nearest, distances = [], []
    for sample in samples:
        errors = torch.stack([(sample.double() - other.double()).square().mean() for other in candidates])
        nearest.append(candidates[int(errors.argmin())])
        distances.append(errors.min().sqrt())
    return torch.stack(nearest), torch.stack(distances)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("count", [1, 30])
def test_equal_to_a_plain_search(images: ImageSet, batch: int, flip: bool, count: int, seed: int) -> None:
    found, distance = nearest_images(samples(count, seed), images, config(flip))
    expected, error = searched(samples(count, seed), images, flip)
    assert torch.equal(found, expected)
    assert torch.allclose(distance.double(), error, atol=1e-5)
    assert ((distance >= 0) & (distance <= 2)).all()


def test_a_memorised_image_is_found(images: ImageSet, batch: int) -> None:
    copies = to_float(images.pixels(images.train))
    found, distance = nearest_images(copies, images, config(False))
    assert torch.equal(found, copies)
    assert distance.max() < 1e-3


def test_a_mirror_image_counts_only_if_training_mirrored(images: ImageSet, batch: int) -> None:
    mirrored = to_float(images.pixels(images.train)).flip(3)
    found, distance = nearest_images(mirrored, images, config(True))
    assert torch.equal(found, mirrored)
    assert distance.max() < 1e-3
    _, distance = nearest_images(mirrored, images, config(False))
    assert distance.min() > 0.1


def test_held_out_images_are_no_candidates(images: ImageSet) -> None:
    _, distance = nearest_images(to_float(images.pixels(images.heldout)), images, config(True))
    assert distance.min() > 0.1


def test_distances_are_root_mean_squares(images: ImageSet) -> None:
    """Of two constant images: the difference of their values, the whole range being 2."""
    inside = to_float(images.pixels(images.train[:1]))
    for by in (0.25, 0.01):
        _, distance = nearest_images(inside + by, images, config(False))
        assert float(distance) == pytest.approx(by, abs=1e-5)


def test_no_samples(images: ImageSet) -> None:
    found, distance = nearest_images(samples(0), images, config(True))
    assert found.shape == (0, 3, 6, 6)
    assert distance.shape == (0,)


def test_a_spread_of_the_training_images_is_searched_if_there_are_too_many(images: ImageSet) -> None:
    """A million images were searched, and decoded, twice. A copy is found if its original is among those that are searched."""
    copies = to_float(images.pixels(images.train))
    _, distance = nearest_images(copies, images, config(False), most=7)
    assert int((distance < 1e-3).sum()) == 7
    places = torch.nonzero(distance < 1e-3)[:, 0]
    assert int(places.diff().max()) <= -(-len(copies) // 7), "evenly spaced"
    _, distance = nearest_images(copies, images, config(False), most=len(copies))
    assert distance.max() < 1e-3


def test_the_report_says_how_many_were_searched(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    n, heldout = len(images.train), to_float(images.pixels(images.heldout))
    whole = memorisation.in_pixels(samples(5), heldout, images, config(True))
    assert (whole.figures["training_n"], whole.warnings) == (n, [])
    monkeypatch.setattr(memorisation, "_SEARCHED", 10)
    some = memorisation.in_pixels(samples(5), heldout, images, config(True))
    assert some.figures["training_n"] == 10
    assert f"among 10 of the {n}" in some.warnings[0]
    assert some.figures["samples_median"] >= whole.figures["samples_median"]
