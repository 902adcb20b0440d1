"""The range of values of a data set: `data.range` as a word becomes two numbers before a training begins.

The numbers stand in RUN/config.yaml afterwards, so that images which are read later are scaled in the same way.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqvae2.config.models import DataConfig
from vqvae2.data.decoding import raw_values
from vqvae2.data.errors import DataError, ImageError
from vqvae2.data.listing import Listing
from vqvae2.data.skipped import one_line
from vqvae2.data.sources import list_images, locate

PERCENTILES = (0.1, 99.9)  # of the values of the training images
_IMAGES = 256  # images that are read, spread over the data
_VALUES = 20_000  # values of each image that are pooled


def with_range(data: str, config: DataConfig, run: Path, say: Callable[[str], None]) -> DataConfig:
    """The settings with numbers for `range`: as given, of the values' type, or percentiles of training images.

    Args:
        data: as for `open_images`.
        config: `range` and every other option of the data.
        run: the run folder, whose files are not data.
        say: called with one line of text about the numbers.

    Raises:
        DataError: the images cannot be read, or all values are the same.
    """
    if config.range is None or isinstance(config.range, tuple):
        return config
    arrays = _samples(data, config, run)
    if config.range == "dtype":
        low, high = _of_type(arrays[0])
    else:
        pooled = np.concatenate([_some(values) for values in arrays])
        low, high = (float(value) for value in np.percentile(pooled, PERCENTILES))
        if all(values.dtype.kind in "bui" for values in arrays):
            low, high = float(np.floor(low)), float(np.ceil(high))
    if not low < high:
        raise DataError(f"data.range: all values are {low:g}, so there is no range")
    what = f"of the type {arrays[0].dtype}" if config.range == "dtype" else "0.1 and 99.9 % of the values"
    say(f"values from {low:g} to {high:g} ({what}, {len(arrays)} images read): data.range={[low, high]}")
    return config.replace_range((low, high))


def _samples(data: str, config: DataConfig, run: Path) -> list[NDArray[Any]]:
    """The values of some images, of the training split where the data names one."""
    reasons = []
    with tempfile.TemporaryDirectory() as scratch:
        listed = list_images(locate(data, run), config, Path(scratch) / "table", 0)
        if not isinstance(listed, Listing):
            raise DataError(
                "data.range of a stream: expected two numbers, because a stream is read only once"
            )
        usable = np.arange(len(listed)) if listed.held is None else np.flatnonzero(listed.held == 0)
        chosen = [int(usable[number * len(usable) // _IMAGES]) for number in range(min(_IMAGES, len(usable)))]
        chosen = chosen if len(usable) > _IMAGES else usable.tolist()
        arrays = []
        for index in chosen:
            try:
                arrays.append(raw_values(listed.payloads([index])[0], config))
            except ImageError as error:
                reasons.append(one_line(listed.names[index], str(error), ": "))
    if not arrays:
        raise DataError(f"no usable image{f' (the first: {reasons[0]})' if reasons else ''}")
    return arrays


def _of_type(values: NDArray[Any]) -> tuple[float, float]:
    if values.dtype.kind in "ui":
        limits = np.iinfo(values.dtype)
        return float(limits.min), float(limits.max)
    return 0.0, 1.0


def _some(values: NDArray[Any]) -> NDArray[np.float64]:
    flat = values.reshape(-1)
    some = flat[:: -(-flat.size // _VALUES)].astype(np.float64)
    return some[np.isfinite(some)]
