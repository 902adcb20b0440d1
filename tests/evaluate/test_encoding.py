"""Codes from the code store: the rows of images without augmentation, and no rows where the store is of something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2.codes import Codes, Geometry
from vqvae2.config.models import DataConfig
from vqvae2.data.images import ImageSet, open_images
from vqvae2.data.store import CodeStore, open_store
from vqvae2.data.store_writer import StoreWriter
from vqvae2.evaluate.encoding import stored_rows

GEOMETRY = Geometry(((1, 1),), (1000,))


@pytest.fixture(params=[0, 1])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> ImageSet:
    """20 images of noise in two classes, about a third of them held out; two seeds."""
    for number in range(20):
        values = np.random.default_rng((request.param, number)).integers(0, 256, (8, 8, 3), np.uint8)
        file = tmp_path / "data" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(file)
    config = DataConfig(size=8, workers=0, holdout=0.3)
    return open_images(str(tmp_path / "data"), config, tmp_path / "cache", say=lambda _: None)


def stored(images: ImageSet, folder: Path, copies: int = 1, fingerprint: str | None = None) -> CodeStore:
    """A store whose code of an image is its index, or 100, 200 ... more for an augmented copy."""
    passes = [(images.heldout, 1, 0), *((images.train, 0, 100 * copy) for copy in range(copies))]
    count = sum(len(indices) for indices, _, _ in passes)
    said = images.fingerprint if fingerprint is None else fingerprint
    with StoreWriter(folder, GEOMETRY, "d", count, classes=images.classes, fingerprint=said) as writer:
        for indices, side, more in passes:
            codes = Codes((torch.from_numpy(indices + more).view(-1, 1, 1),))
            writer.append(codes, images.labels_of(indices).numpy(), np.full(len(indices), side))
    return open_store(folder)


@pytest.mark.parametrize("copies", [1, 3])
def test_every_image_has_the_row_of_its_plain_codes(images: ImageSet, copies: int, tmp_path: Path) -> None:
    store = stored(images, tmp_path / "codes", copies)
    rows = stored_rows(store, images)
    assert rows is not None
    assert store.codes(rows).levels[0].flatten().tolist() == list(range(len(images)))


def test_a_store_of_other_images_is_not_used(images: ImageSet, tmp_path: Path) -> None:
    assert stored_rows(stored(images, tmp_path / "a", fingerprint="other"), images) is None
    other = stored(images, tmp_path / "b")
    other.heldout = other.heldout[1:]
    assert stored_rows(other, images) is None
    swapped = stored(images, tmp_path / "c")
    swapped.labels = 1 - swapped.labels
    assert stored_rows(swapped, images) is None
    partial = stored(images, tmp_path / "d", copies=2)
    partial.train = partial.train[:-1]
    assert stored_rows(partial, images) is None
