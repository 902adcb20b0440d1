"""Extraction: every image once, in the order of the store, whatever the number of processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from train_helpers import image_set, tiny

from vqvae2.autoencoder.model import VQVAE
from vqvae2.data.pixels import to_float
from vqvae2.data.store import open_store
from vqvae2.files.progress import Reporter
from vqvae2.train import extract as module
from vqvae2.train.extract import extract, image_count, passes
from vqvae2.train.loop import make_accelerator


@given(count=st.integers(1, 60), size=st.integers(1, 9), world=st.integers(1, 5))
def test_the_shares_join_to_the_whole(count: int, size: int, world: int) -> None:
    """Gathered chunk by chunk and cut to their number, they are the indices in order; all encode as many."""
    indices = np.arange(count) * 2 + 1
    shares = [module._shares(indices, size, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    joined: list[int] = []
    for at in range(0, len(shares[0]), size):
        joined += [int(i) for share in shares for i in share[at : at + size]]
    assert joined[:count] == indices.tolist()
    assert len(joined) - count < size * world


@pytest.mark.parametrize("batch", [3, 64])
def test_codes_are_those_of_the_images(batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out images first, then training images as they are, then their augmented copies; labels travel along."""
    monkeypatch.setattr(module, "_BATCH", batch)
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
