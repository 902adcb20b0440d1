"""The pictures of docs/concepts.md, drawn with the model `emoji64`: levels, guidance and temperature, and where the bits are.

    python tools/concept_pictures.py docs/images

The emoji are the first held-out one of each class, and the samples are the first nine of seed 0; none are selected.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

import vqvae2
from vqvae2.data.batches import sequential
from vqvae2.data.grid import grid
from vqvae2.data.images import open_images
from vqvae2.run import Run
from vqvae2.web.pictures import palette


def heldout(run: Run) -> Tensor:
    """The first held-out emoji of each class [classes, 3, 64, 64] in [-1, 1]."""
    found: dict[int, Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = open_images("emoji64", run.config.data, Path(folder))
        for batch, labels in sequential(images, images.heldout, run.config.data, batch=64):
            assert labels is not None
            for image, label in zip(batch, labels.tolist(), strict=True):
                found.setdefault(label, image)
    return torch.stack([found[label] for label in range(len(run.classes))])


def coloured(run: Run, codes: Tensor, level: int) -> Tensor:
    """Grids of codes [B, h, w] as images [B, 3, H, W] in [-1, 1], a square of one colour for each code."""
    colours = palette(run.autoencoder.quantizers[level].codebook()).float() / 127.5 - 1
    return interpolate(colours[codes.cpu()].permute(0, 3, 1, 2), run.config.data.shape)


def levels(run: Run) -> Image.Image:
    """Rows: held-out emoji; the coarse codes and what they decode to; the fine codes and what all codes decode to."""
    images = heldout(run)
    codes = run.autoencoder.encode(images)
    rows = [images]
    for level, level_codes in enumerate(codes.levels):
        rows += [coloured(run, level_codes, level), run.reconstruct(images, levels=level + 1)]
    return grid(torch.cat(rows), len(images))


def settings(run: Run) -> Image.Image:
    """Rows: one class from the same seed with guidance 1 and 3, then with temperature .7 and 1.3 without guidance."""
    plain = {"top_p": 1.0, "guidance": 1.0}
    rows = [
        run.sample(9, "Smileys & Emotion", **plain | change)
        for change in ({}, {"guidance": 3.0}, {"temperature": 0.7}, {"temperature": 1.3})
    ]
    return grid(torch.cat(rows), len(rows[0]))


def bits(run: Run) -> Image.Image:
    """Rows: emoji and the bits of their fine codes; the emoji with a patch of noise and the bits of their fine codes."""
    images = heldout(run)
    spoilt = images.clone()
    noise = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    spoilt[:, :, 24:40, 40:56] = noise * 2 - 1
    most = math.log2(run.config.geometry.vocabulary[-1])
    rows = []
    for shown in (images, spoilt):
        fine = 2 * run.bits_map(shown)[-1][:, None] / most - 1
        rows += [shown, interpolate(fine, run.config.data.shape).clamp(-1, 1).expand(-1, 3, -1, -1)]
    return grid(torch.cat(rows), len(images))


def main() -> None:
    """Draw all pictures into a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="folder for concepts-*.webp")
    out: Path = parser.parse_args().out
    run = vqvae2.load("emoji64", "cpu")
    for draw in (levels, settings, bits):
        draw(run).save(out / f"concepts-{draw.__name__}.webp", quality=90)


if __name__ == "__main__":
    main()
