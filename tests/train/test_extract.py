"""Extraction: every image once, in the order of the store, after a kill too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from train_helpers import image_set, tiny

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes
from vqvae2.data.pixels import to_float
from vqvae2.data.store import open_store
from vqvae2.files.progress import Reporter
from vqvae2.train import extract as module
from vqvae2.train.extract import extract, image_count, passes
from vqvae2.train.loop import make_accelerator


@pytest.mark.parametrize("batch", [3, 64])
def test_codes_are_those_of_the_images(batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out images first, then training images as they are, then their augmented copies; labels travel along."""
    monkeypatch.setattr(module, "_BATCH", batch)
    monkeypatch.setattr(module, "_PART", 2)
    settings = tiny(train={}, data={"flip": True, "shift": 2}, train_prior=[{"copies": 3}, {}])
    images = image_set(tmp_path, settings, classes=("a", "b"))
    torch.manual_seed(0)
    model = VQVAE(settings.autoencoder)
    model.train()(to_float(images.pixels(images.train)))
    extract(model, images, settings, tmp_path / "codes", "digest", make_accelerator(), Reporter(quiet=True))
    store = open_store(tmp_path / "codes", digest="digest")
    assert len(store) == image_count(images, settings) == len(images.heldout) + 3 * len(images.train)
    order = np.concatenate([indices for indices, _, _ in passes(images, settings)])
    assert images.labels is not None
    assert store.labels.tolist() == images.labels[order].tolist()
    assert len(store.heldout) == len(images.heldout)
    plain = len(images.heldout) + len(images.train)
    expected = model.eval().encode(to_float(images.pixels(order[:plain])))
    for stored, level in zip(store.codes(range(len(store))).levels, expected.levels, strict=True):
        assert (stored[:plain] == level).double().mean() > 0.99, "equal but for ties that rounding decides"
        copies = stored[plain:].view(2, len(images.train), *level.shape[1:])
        assert not torch.equal(copies[0], copies[1])


def test_after_a_kill_only_what_is_missing_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is that of an extraction that ran through; parts of other weights are not used."""
    monkeypatch.setattr(module, "_BATCH", 2)
    monkeypatch.setattr(module, "_PART", 2)
    settings = tiny(train={}, train_prior=[{"copies": 2}, {}])
    images = image_set(tmp_path, settings)
    model = VQVAE(settings.autoencoder)
    encoded: list[int] = []

    class Killed(BaseException):
        """Stands in for the end of the process."""

    def run(name: str, digest: str = "digest", limit: int = 1000) -> None:
        encoded.clear()

        def encode(pixels: torch.Tensor) -> Codes:
            if sum(encoded) + len(pixels) > limit:
                raise Killed
            encoded.append(len(pixels))
            return usual(pixels)

        model.encode = encode  # type: ignore[method-assign]
        extract(model, images, settings, tmp_path / name, digest, make_accelerator(), Reporter(quiet=True))

    usual = model.encode
    run("whole")
    total = image_count(images, settings)
    assert sum(encoded) == total
    with pytest.raises(Killed):
        run("killed", limit=11)
    run("killed")
    assert sum(encoded) == total - 10, "parts of 4, 2 and 4 images were complete"
    for name in ("level-0.npy", "level-1.npy", "labels.npy", "split.npy", "manifest.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "killed" / "parts").exists()
    with pytest.raises(Killed):
        run("other", limit=11)
    run("other", "another digest")
    assert sum(encoded) == total
