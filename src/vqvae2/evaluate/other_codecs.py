"""Files of JPEG, WebP, AVIF and JPEG XL at many qualities, with which compressed images are compared; Pillow writes them.

Shapes: C channels, H W the size.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from vqvae2.data.pixels import to_float, to_pil

_QUALITIES = (0, 1, 2, 4, 6, 8, 11, 14, 17, 20, 24, 28, 32, 37, 42, 48, 54, 60, 66, 72, 78, 84, 90, 95)


@dataclass(frozen=True)
class OtherCodec:
    """A format of image files.

    Attributes:
        name: for tables.
        format: as Pillow calls it.
        settings: of the smallest files, one per variant; of all variants the best is taken.
        channels: the numbers of channels that its files can hold.
    """

    name: str
    format: str
    settings: tuple[dict[str, Any], ...]
    channels: tuple[int, ...] = (1, 3, 4)

    def files(self, image: Tensor, variant: int) -> Iterator[tuple[int, Tensor]]:
        """Bytes of a file, and the image [C, H, W] in [-1, 1] that it shows, for each quality from the lowest.

        Args:
            image: [C, H, W] in [-1, 1].
            variant: which of the settings.
        """
        picture = to_pil(image[None])[0]
        for quality in _QUALITIES:
            buffer = BytesIO()
            picture.save(buffer, self.format, quality=quality, **self.settings[variant])
            buffer.seek(0)
            with Image.open(buffer) as opened:
                shown = np.array(opened.convert(picture.mode))
            pixels = torch.from_numpy(shown if shown.ndim == 3 else shown[..., None])
            yield len(buffer.getvalue()), to_float(pixels[None])[0]


def other_codecs(large: bool = False) -> list[OtherCodec]:
    """Those that are installed: JPEG XL needs the package pillow-jxl-plugin.

    Args:
        large: images of many pixels: AVIF and JPEG XL take settings that are about ten times as fast, with files of about the
            same size, and AVIF always subsamples the chroma.
    """
    found = [
        OtherCodec(
            "JPEG",
            "JPEG",
            tuple({"optimize": True, "subsampling": subsampling} for subsampling in ("4:2:0", "4:4:4")),
            channels=(1, 3),
        )
    ]
    if features.check("webp"):
        found.append(OtherCodec("WebP", "WEBP", ({"method": 6},)))
    if features.check("avif"):
        speed, chroma = (6, ("4:2:0",)) if large else (2, ("4:2:0", "4:4:4"))
        variants = tuple(
            {"speed": speed, "subsampling": subsampling, "max_threads": 1} for subsampling in chroma
        )
        found.append(OtherCodec("AVIF", "AVIF", variants))
    if importlib.util.find_spec("pillow_jxl") is not None:
        import pillow_jxl  # noqa: F401 - registers the format

        found.append(OtherCodec("JPEG XL", "JXL", ({"effort": 7 if large else 9},)))
    return found
