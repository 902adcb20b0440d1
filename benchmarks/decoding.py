"""How many pictures a second reach the trainer: decoded from JPEG files by 0, 1 and 2 worker processes, and from the cache.

    python benchmarks/decoding.py [--count 400] [--side 512]

The files are smooth random pictures of `side` px (JPEG quality 90), read as the trainer would read a set that is too large
for the cache: whole epochs of batches of 32, augmented. Rates are images per second, medians of interleaved repetitions.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _common import interleaved, keep, summary
from PIL import Image

from vqvae2.config.models import DataConfig
from vqvae2.data.batches import TrainingOrder, pixel_batches
from vqvae2.data.images import ImageSet, open_images
from vqvae2.train.resident import TrainingImages

BATCH = 32


def make_pictures(folder: Path, count: int, side: int) -> None:
    """Smooth colours with a little noise: about as heavy for a JPEG decoder as a photo."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
        noisy = (smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:05d}.jpg", quality=90)


def epoch(images: ImageSet, config: DataConfig) -> Callable[[], None]:
    """One pass over the training pictures."""

    def read() -> None:
        order = TrainingOrder(images.train, BATCH, 0, buffer=config.shuffle_buffer)
        for _ in pixel_batches(images, order, config, stop=max(1, len(images.train) // BATCH)):
            pass

    return read


def uncut(images: ImageSet, config: DataConfig) -> Callable[[], None]:
    """One pass over the stored training pictures and their windows, which a card cuts out itself."""
    training = TrainingImages(images, config, BATCH, 0)
    training.cuts_there = True

    def read() -> None:
        for _ in itertools.islice(training.batches(0, 0, 1), max(1, len(images.train) // BATCH)):
            pass

    return read


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=400, help="pictures (default 400)")
    parser.add_argument("--side", type=int, default=512, help="their height and width in px (default 512)")
    parser.add_argument("--repeats", type=int, default=5, help="counted repetitions (default 5)")
    options = parser.parse_args()
    figures: dict[str, Any] = {"count": options.count, "side": options.side, "unit": "images/s"}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_pictures(root / "pictures", options.count, options.side)
        for size in (64, 256):
            cases, opened = {}, []
            for name, cache_gb, workers in (
                ("0 workers", 0, 0),
                ("1 worker", 0, 1),
                ("2 workers", 0, 2),
                ("cache", 1, 0),
            ):
                config = DataConfig(size=size, shift=2, cache_gb=cache_gb, workers=workers)
                images = open_images(
                    str(root / "pictures"), config, root / f"{size} {name}", say=lambda _: None
                )
                opened.append(images)
                cases[name] = epoch(images, config)
            cases["cache, for a card to cut"] = uncut(images, config)
            served = len(opened[0].train) // BATCH * BATCH
            seconds = interleaved(cases, options.repeats)
            figures[f"to {size} px"] = {name: summary(values, served) for name, values in seconds.items()}
            for images in opened:
                images.close()
    keep("decoding", figures)


if __name__ == "__main__":
    main()
