"""A short look at a data set before its settings are chosen: how many pictures, of what size."""

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
from vqvae2.data.sources import list_place, locate

_LOOK = 64  # pictures whose size is read


def peek(data: str, config: DataConfig, run: Path) -> tuple[int, int]:
    """How many pictures there are (a stream: a million), and the median short side of some, in pixels (0 if unreadable).

    Raises:
        DataError: there is nothing there.
    """
    with tempfile.TemporaryDirectory() as scratch:
        listed = list_place(locate(data, run), config, Path(scratch), 0)
        if not isinstance(listed, Listing):
            return 1_000_000, 256
        step = max(1, len(listed) // _LOOK)
        places = list(itertools.islice(range(0, len(listed), step), _LOOK))
        sides = [
            side
            for payload in listed.payloads(places)
            if payload is not None and (side := _short_side(payload))
        ]
        return len(listed), int(np.median(sides)) if sides else 0


def _short_side(payload: bytes | str | Path) -> int:
    source = io.BytesIO(payload) if isinstance(payload, bytes) else payload
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(source) as picture:
                return min(picture.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0
