"""Which images are held out: those of the data's own test split, or a share chosen by a hash of their names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vqvae2.data.errors import DataError
from vqvae2.data.frames import file_of

Indices = NDArray[np.int64]


def split_images(
    names: Sequence[str],
    labels: Indices | None,
    held: Sequence[int] | None,
    share: float,
    both: bool = True,
) -> tuple[Indices, Indices]:
    """Divide images into training and held-out ones.

    Without a split in the data, an image is held out when a hash of its name falls below `share`. The decision
    depends on the name alone, so the same images stay held out when others are added. At least one image is held
    out and at least one is left for training. The images of one file, such as the slices of a volume, stay together, unless there is
    only one file.

    Args:
        names: of all images, n of them.
        labels: [n], -1 = unlabelled; None = no labels. Unlabelled images among labelled ones are in neither set.
        held: the data's own split, [n], 1 = held out, 0 = training; None = the data names none.
        share: of the images to hold out, between 0 and 1; not used with `held`.
        both: whether both sets are needed; without it either may be empty, and no image changes its set.

    Returns:
        Sorted indices of the training images and of the held-out images.

    Raises:
        DataError: both sets are needed, and there are fewer than two images or one of the sets is empty.
    """
    usable = np.arange(len(names)) if labels is None else np.flatnonzero(labels >= 0)
    if both and len(usable) < 2:
        raise DataError(
            f"found {len(usable)} usable image{'s' * (len(usable) != 1)}: "
            "at least 2 are needed, one of them to hold out"
        )
    if held is not None:
        heldout = np.array(held, np.int8)[usable] == 1
        if both and (heldout.all() or not heldout.any()):
            raise DataError(f"the {'training' if heldout.all() else 'held-out'} split has no usable image")
    else:
        chosen = [names[index] for index in usable.tolist()]
        files = [file_of(name) for name in chosen]
        fractions = np.array([_hash_fraction(name) for name in (files if len(set(files)) > 1 else chosen)])
        heldout = fractions < share
        if both:
            heldout |= fractions == fractions.min()
        if both and heldout.all():
            heldout[fractions == fractions.max()] = False
    return usable[~heldout].astype(np.int64), usable[heldout].astype(np.int64)


def _hash_fraction(name: str) -> float:
    """A number in [0, 1) that depends on the name alone: the first 48 bits of its sha256."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:6]) / 2**48
