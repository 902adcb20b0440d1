"""The number and size of the images of a data set, for choosing settings before anything is decoded."""

from __future__ import annotations

import io
import itertools
import tempfile
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from vqvae2.config.models import DataConfig
from vqvae2.data.listing import Listing
from vqvae2.data.sources import list_images, locate

_SAMPLE = 64  # images whose size is read


def peek(data: str, config: DataConfig, run: Path) -> tuple[int, int]:
    """The number of images and the median of their short sides in pixels, from the headers of up to 64 of them.

    The size is 0 if none of these is readable. A stream is not read: it counts as a million images of 256 px.

    Args:
        data: as for `open_images`.
        config: every option of the data.
        run: the run folder, whose files are not data.

    Raises:
        DataError: there is no such data.
    """
    with tempfile.TemporaryDirectory() as scratch:
        listed = list_images(locate(data, run), config, Path(scratch) / "table", 0)
        if not isinstance(listed, Listing):
            return 1_000_000, 256
        step = max(1, len(listed) // _SAMPLE)
        indices = list(itertools.islice(range(0, len(listed), step), _SAMPLE))
        sides = [
            side
            for payload in listed.payloads(indices)
            if payload is not None and (side := _short_side(payload))
        ]
        return len(listed), int(np.median(sides)) if sides else 0


def _short_side(payload: bytes | str | Path) -> int:
    """The short side in pixels, from the header; 0 if it cannot be read."""
    source = io.BytesIO(payload) if isinstance(payload, bytes) else payload
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(source) as image:
                return min(image.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0
