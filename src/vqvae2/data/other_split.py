"""A split of the data that is measured in place of the held-out images of a run, such as a test split.

Held-out images choose the weights that a training keeps, and where it ends. Images that decided nothing are a fairer measure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqvae2.config.models import DataConfig
from vqvae2.data.batches import sequential_pixels, spread
from vqvae2.data.errors import DataError
from vqvae2.data.images import ImageSet, open_images

_BATCH = 64  # images that are read at a time
_LOOKED = 10_000  # training images, and held-out ones, that are looked for in the split, at most
_MOSTLY = 0.5  # a larger share of the split may not be training images


def open_split(
    name: str, data: str, config: DataConfig, folder: Path, say: Callable[[str], None]
) -> ImageSet:
    """All images of one split of the data, as held-out ones.

    Args:
        name: of the split, see `DataConfig.split`.
        data: see `open_images`.
        config: the options with which the data are opened otherwise. Their split does not count, and neither does their limit.
        folder: for the decoded images.
        say: see `open_images`.

    Raises:
        DataError: there is no such split, or as `open_images`.
    """
    config = config.model_copy(update={"split": name, "limit": None})
    images = open_images(data, config, folder, say=say, both=False)
    images.heldout = np.sort(np.concatenate([images.train, images.heldout]))
    images.train = images.heldout[:0]
    return images


def known_images(images: ImageSet, split: ImageSet, name: str, config: DataConfig) -> list[str]:
    """Whether a split has images, pixel for pixel, that are training images or held-out ones too.

    Of each of the two 10,000 at most are looked for.

    Args:
        images: whose training images and held-out ones are looked for.
        split: of `open_split`, under its name.
        config: how the run sees images.

    Returns:
        How many there are of each kind, as text; [] if there are none.

    Raises:
        DataError: at least half of the split are training images, by what was looked at: it is not held out.
    """
    measured = _digests(split, split.heldout, config)
    remarks = []
    for kind, indices in (("training", images.train), ("held-out", images.heldout)):
        looked = spread(indices, _LOOKED)
        common = len(measured & _digests(images, looked, config))
        if not common:
            continue
        found = f"{common:,} of the {len(looked):,} {kind} images that were looked at are in the split {name!r} too"
        if kind == "held-out":
            found += "; held-out images choose the weights that a training keeps, so the figures are slightly too good"
        elif common * len(indices) >= _MOSTLY * len(measured) * len(looked):
            raise DataError(f"{found}: it is no split that was held out of the training")
        remarks.append(found)
    return remarks


def _digests(images: ImageSet, indices: NDArray[np.int64], config: DataConfig) -> set[bytes]:
    """What identifies the pixels of each of some images."""
    batches = sequential_pixels(images, indices, config, batch=_BATCH)
    return {hashlib.sha256(one.numpy().tobytes()).digest() for pixels, _ in batches for one in pixels}
