"""Extraction: every image once, in the order of the store, after a kill too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_helpers import Killed, changed, image_set, tiny

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes
from vqvae2.data.pixels import to_float
from vqvae2.data.store import open_store
from vqvae2.data.store_writer import StoreWriter
from vqvae2.files.atomic import FileError
from vqvae2.files.progress import Reporter
from vqvae2.train import extract as module
from vqvae2.train.device import make_accelerator
from vqvae2.train.extract import extract, image_count, passes


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
    order = np.concatenate([indices for indices, _ in passes(images, settings)])
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
    """The store is that of an extraction that ran through; parts of other weights are not used.

    Settings that may change at will may change in between.
    """
    monkeypatch.setattr(module, "_BATCH", 2)
    monkeypatch.setattr(module, "_PART", 2)
    settings = tiny(train={}, train_prior=[{"copies": 2}, {}])
    images = image_set(tmp_path, settings)
    model = VQVAE(settings.autoencoder)
    encoded: list[int] = []

    def run(name: str, digest: str = "digest", limit: int = 1000, **data: Any) -> None:
        encoded.clear()

        def encode(pixels: torch.Tensor) -> Codes:
            if sum(encoded) + len(pixels) > limit:
                raise Killed
            encoded.append(len(pixels))
            return usual(pixels)

        model.encode = encode  # type: ignore[method-assign]
        config = changed(settings, data=data)
        extract(model, images, config, tmp_path / name, digest, make_accelerator(), Reporter(quiet=True))

    usual = model.encode
    run("whole")
    total = image_count(images, settings)
    assert sum(encoded) == total
    with pytest.raises(Killed):
        run("killed", limit=11)
    run("killed", cache_gb=1.0, labels="elsewhere.csv")
    assert sum(encoded) == total - 10, "parts of 4, 2 and 4 images were complete"
    for name in ("level-0.npy", "level-1.npy", "labels.npy", "split.npy", "manifest.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "killed" / "parts").exists()
    with pytest.raises(Killed):
        run("other", limit=11)
    run("other", "another digest")
    assert sum(encoded) == total


@pytest.mark.parametrize("at", range(7))
def test_a_kill_while_parts_are_joined(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that are in the store are gone, so no code is on the disk twice, and none is computed again."""
    for name, value in (("_BATCH", 2), ("_PART", 1), ("_REMOVED", 1)):
        monkeypatch.setattr(module, name, value)
    settings = tiny(train={}, train_prior=[{"copies": 2}, {}])
    images = image_set(tmp_path, settings)
    model = VQVAE(settings.autoencoder)

    def run(name: str) -> None:
        extract(model, images, settings, tmp_path / name, "digest", make_accelerator(), Reporter(quiet=True))

    usual, waiting, step = StoreWriter.keep, [], 0

    def killed_at(writer: StoreWriter) -> None:
        nonlocal step
        waiting.append(len([*(tmp_path / "killed" / "parts").glob("*.safetensors")]))
        if step == at:
            (writer._writers[0]._file).write(b"half")  # lost when the process ends
            raise Killed
        usual(writer)
        step += 1

    run("whole")
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "keep", killed_at)
        with pytest.raises(Killed):
            run("killed")
    assert waiting == list(range(waiting[0], waiting[0] - at - 1, -1)), (
        "one part fewer with each that is joined"
    )
    monkeypatch.setattr(model, "encode", lambda _: pytest.fail("encoded again"))
    run("killed")
    for name in ("level-0.npy", "level-1.npy", "labels.npy", "split.npy", "manifest.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "killed" / "parts").exists()


@pytest.mark.parametrize("damage", ["shorter", "link", "other rows", "no record"])
def test_what_was_joined_is_looked_at_before_it_is_used(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with it, the codes are computed anew, and no file outside is touched."""
    for name, value in (("_BATCH", 2), ("_PART", 1), ("_REMOVED", 2)):
        monkeypatch.setattr(module, name, value)
    settings = tiny(train={})
    images = image_set(tmp_path, settings)
    model = VQVAE(settings.autoencoder)

    def run(name: str) -> None:
        extract(model, images, settings, tmp_path / name, "digest", make_accelerator(), Reporter(quiet=True))

    run("whole")
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "_finish", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("killed")
    parts, outside = tmp_path / "killed" / "parts", tmp_path / "outside"
    level = parts / "level-0.npy"
    if damage == "shorter":
        level.write_bytes(level.read_bytes()[:140])
    elif damage == "link":
        level.rename(outside)
        level.symlink_to(outside)
        before = outside.read_bytes()
    elif damage == "other rows":
        record = json.loads((parts / "joined.json").read_text())
        (parts / "joined.json").write_text(json.dumps({**record, "rows": record["rows"] - 1}))
    else:
        (parts / "joined.json").unlink()
    run("killed")
    for name in ("level-0.npy", "level-1.npy", "labels.npy", "split.npy", "manifest.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    if damage == "link":
        assert outside.read_bytes() == before


def test_a_linked_folder_of_parts_is_refused(tmp_path: Path) -> None:
    """A run folder of a stranger could have weights of the user removed, as parts of another extraction."""
    settings = tiny(train={})
    images = image_set(tmp_path, settings)
    mine, codes = tmp_path / "mine", tmp_path / "codes"
    for folder in (mine, codes):
        folder.mkdir()
    (mine / "a.safetensors").write_text("mine")
    (codes / "parts").symlink_to(mine)
    with pytest.raises(FileError, match="is a link"):
        extract(
            VQVAE(settings.autoencoder),
            images,
            settings,
            codes,
            "d",
            make_accelerator(),
            Reporter(quiet=True),
        )
    assert (mine / "a.safetensors").read_text() == "mine"
