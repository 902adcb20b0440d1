"""Small pictures and folders of them for the tests of the data room."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vqvae2.config import DataConfig
from vqvae2.data.images import ImageSet, open_images

RED, GREEN, BLUE = (220, 30, 20), (20, 200, 40), (30, 40, 210)


def config(**options: Any) -> DataConfig:
    """8-px RGB, decoded in this process, nothing random unless asked."""
    return DataConfig(**({"size": 8, "flip": False, "workers": 0} | options))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture in a format."""
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(colour: Any, mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> Image.Image:
    """A picture of one colour."""
    return Image.new(mode, size, colour)


def noise(number: int, size: tuple[int, int] = (8, 8), channels: int = 3) -> Image.Image:
    """The picture of this number: every number has another one."""
    values = np.random.default_rng(number).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values)


def folder_of(root: Path, count: int, classes: tuple[str, ...] = (), **options: Any) -> Path:
    """A folder of `count` PNGs, dealt out to the classes; picture i is `noise(i)`."""
    for number in range(count):
        place = root / classes[number % len(classes)] if classes else root
        place.mkdir(parents=True, exist_ok=True)
        noise(number, **options).save(place / f"{number:03d}.png")
    return root


def opened(data: object, run: Path, says: list[str] | None = None, seed: int = 0, **options: Any) -> ImageSet:
    """`open_images` in silence; what it says is added to `says`."""
    say = (says if says is not None else []).append
    return open_images(str(data), config(**options), run / "data", seed=seed, say=say)
