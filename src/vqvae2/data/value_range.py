"""The range of values of a data set: `data.range` as a word becomes two numbers before a training begins.

The numbers stand in RUN/config.yaml afterwards, so that images which are read later are scaled in the same way.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqvae2.config.models import DataConfig
from vqvae2.data.batches import spread
from vqvae2.data.decoding import raw_values
from vqvae2.data.errors import DataError, ImageError
from vqvae2.data.listing import Listing, contents
from vqvae2.data.skipped import listed_line
from vqvae2.data.sources import list_images, locate

PERCENTILES = (0.1, 99.9)  # of the values of the training images
_IMAGES = 256  # images that are read, spread over the data
_VALUES = 20_000  # values of each image that are pooled


def with_range(
    data: str, config: DataConfig, run: Path, say: Callable[[str], None], seed: int = 0
) -> DataConfig:
    """The settings with numbers for `range`: as given, of the values' type, or percentiles of training images.

    Args:
        data: as for `open_images`.
        config: `range` and every other option of the data.
        run: the run folder, whose files are not data.
        say: called with one line of text about the numbers.
        seed: as for `open_images`.

    Raises:
        DataError: the images cannot be read, no value is finite, or all values are the same.
    """
    if config.range is None or isinstance(config.range, tuple):
        return config
    samples = _samples(data, config, run, seed)
    if config.range == "dtype":
        low, high = _of_type(samples[0].dtype)
    else:
        pooled = np.concatenate([sample.values for sample in samples])
        if not len(pooled):
            raise DataError("data.range: no value of the images is finite")
        low, high = (float(value) for value in np.percentile(pooled, PERCENTILES))
        if all(sample.dtype.kind in "bui" for sample in samples):
            low, high = float(np.floor(low)), float(np.ceil(high))
    if not low < high:
        raise DataError(f"data.range: all values are {low:g}, so there is no range")
    what = f"of the type {samples[0].dtype}" if config.range == "dtype" else "0.1 and 99.9 % of the values"
    read = f"{len(samples)} image{'s' * (len(samples) > 1)} read"
    say(f"values from {low:g} to {high:g} ({what}, {read}): data.range={[low, high]}")
    return config.model_copy(update={"range": (low, high)})


class _Sample(NamedTuple):
    """Of an image the type of its values, and some of them that are finite."""

    dtype: np.dtype[Any]
    values: NDArray[np.float64]


def _samples(data: str, config: DataConfig, run: Path, seed: int) -> list[_Sample]:
    """Some images, of the training split where the data names one; for the type alone the first that can be read."""
    reasons = []
    with tempfile.TemporaryDirectory() as scratch:
        listed = list_images(locate(data, run), config, Path(scratch) / "table", seed)
        if not isinstance(listed, Listing):
            raise DataError(
                "data.range of a stream: expected two numbers, because a stream is read only once"
            )
        usable = np.arange(len(listed)) if listed.held is None else np.flatnonzero(listed.held == 0)
        samples: list[_Sample] = []
        for index in spread(usable, _IMAGES).tolist():
            try:
                values = raw_values(contents(listed.payloads([index]))[0], config)
                samples.append(_Sample(values.dtype, _some(values)))
                if config.range == "dtype":
                    break
            except ImageError as error:
                reasons.append(listed_line(listed.names[index], str(error), ": "))
    if not samples:
        raise DataError(f"no usable image{f' (the first: {reasons[0]})' if reasons else ''}")
    return samples


def _of_type(dtype: np.dtype[Any]) -> tuple[float, float]:
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        return float(limits.min), float(limits.max)
    return 0.0, 1.0


def _some(values: NDArray[Any]) -> NDArray[np.float64]:
    flat = values.reshape(-1)
    some = flat[:: -(-flat.size // _VALUES)].astype(np.float64)
    return some[np.isfinite(some)]
