"""The number and size of the images of a data set, for choosing settings before anything is decoded."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vqvae2.config.models import DataConfig
from vqvae2.data.batches import spread
from vqvae2.data.decoding import image_size
from vqvae2.data.errors import DataError, ImageError
from vqvae2.data.listing import Content, Listing, contents
from vqvae2.data.skipped import listed_line
from vqvae2.data.sources import list_images, locate

_SAMPLE = 64  # images whose size is read
_ALIKE = 1.15  # aspect ratios within this factor of the median are alike
_MOST = 0.75  # the share of images that must be alike for a common aspect ratio


class Preview(NamedTuple):
    """What the headers of some images say of all.

    Attributes:
        images: number of images.
        side: median of their short sides in pixels.
        aspect: median of width / height; 1 if fewer than three quarters of them have about that ratio.
    """

    images: int
    side: int
    aspect: float = 1.0


def peek(data: str, config: DataConfig, run: Path) -> Preview:
    """The number of images, and their usual size and shape, from the headers of up to 64 of them.

    A stream is not read: it counts as a million square images of 256 px.

    Args:
        data: as for `open_images`.
        config: every option of the data.
        run: the run folder, whose files are not data.

    Raises:
        DataError: there is no such data, or none of those 64 images has a readable header.
    """
    with tempfile.TemporaryDirectory() as scratch:
        listed = list_images(locate(data, run), config, Path(scratch) / "table", 0)
        if not isinstance(listed, Listing):
            return Preview(1_000_000, 256)
        indices = spread(np.arange(len(listed)), _SAMPLE).tolist()
        sizes, reasons = [], []
        for index, payload in zip(indices, contents(listed.payloads(indices)), strict=True):
            try:
                sizes.append(_size(payload, config))
            except ImageError as error:
                reasons.append(listed_line(listed.names[index], str(error), ": "))
        if not sizes:
            looked = f"of {len(indices)} looked at" if len(indices) < len(listed) else f"of {len(listed)}"
            first = f" (the first: {reasons[0]})" if reasons else ""
            raise DataError(f"no usable image {looked}{first}")
        aspects = np.array([width / height for height, width in sizes])
        usual = float(np.median(aspects))
        alike = np.abs(np.log(aspects / usual)) <= np.log(_ALIKE)
        side = int(np.median([min(size) for size in sizes]))
        return Preview(len(listed), side, usual if alike.mean() >= _MOST else 1.0)


def _size(payload: Content | None, config: DataConfig) -> tuple[int, int]:
    if payload is None:
        raise ImageError("the row holds no image")
    return image_size(payload, values=config.range is not None)
