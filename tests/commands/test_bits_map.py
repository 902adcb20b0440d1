"""`score --bits-map`: a patch that does not belong to an image is where the bits are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2.commands.score import score
from vqvae2.data.pixels import to_pil
from vqvae2.run import Run, load


@pytest.fixture(scope="module")
def emoji() -> Run:
    """The model of the package, on the CPU."""
    return load("emoji64", "cpu")


def test_a_pasted_patch_is_localised(emoji: Run, tmp_path: Path) -> None:
    """In each of 12 images a patch of noise is pasted into one cell of 3x4; the map of the finer level points at it."""
    images = emoji.sample(12, seed=5)
    pasted = images.clone()
    corners = [(16 * (n % 4), 16 * (n // 4)) for n in range(12)]
    noise = 2 * torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) - 1
    for image, (y, x) in zip(pasted, corners, strict=True):
        image[:, y : y + 16, x : x + 16] = noise
    found = inside = outside = 0.0
    for bits, (y, x) in zip(emoji.bits_map(pasted)[1], corners, strict=True):
        patch = bits[y // 4 : y // 4 + 4, x // 4 : x // 4 + 4]
        sums = bits.unfold(0, 4, 1).unfold(1, 4, 1).sum((2, 3))
        top, left = divmod(int(sums.argmax()), sums.shape[1])
        found += abs(top - y // 4) <= 1 and abs(left - x // 4) <= 1
        inside += float(patch.mean())
        outside += float((bits.sum() - patch.sum()) / (bits.numel() - 16))
    assert found >= 10
    assert inside > 2 * outside


def test_the_maps_add_up_to_the_bits(emoji: Run, tmp_path: Path) -> None:
    images = emoji.sample(3, seed=1)
    for number, image in enumerate(to_pil(images)):
        image.save(tmp_path / f"{number}.png")
    files = [tmp_path / f"{number}.png" for number in range(3)]
    items = score(emoji, files, bits_map=tmp_path / "maps")["pictures"]
    maps = emoji.bits_map(emoji.load_images(files))
    for number, item in enumerate(items):
        assert item["bits"] == pytest.approx([float(level[number].sum()) for level in maps], rel=1e-5)
        for level, (name, bits) in enumerate(zip(item["maps"], maps, strict=True)):
            assert Path(name) == tmp_path / "maps" / f"{number}-bits-{level}.png"
            grey = np.array(Image.open(name))
            assert grey.shape == (64, 64)
            side = bits.shape[1]
            cell = grey[:: 64 // side, :: 64 // side].astype(float)
            assert np.abs(cell - 255 * (bits[number] / 9).clamp(max=1).numpy()).max() <= 1
