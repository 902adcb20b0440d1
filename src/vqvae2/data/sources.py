"""Data sources: what the argument DATA may be, and how a new kind of data is added.

    locate(data) -> DataSource (fast: names and sizes of files only) -> list_images -> Listing or Stream

Each kind of data has one file with a class that is a `DataSource` and a function that recognises DATA of this kind;
`_RECOGNISERS` has one entry for each function. User code adds a kind with `register_source`, without any change
here. No source decodes an image: a listing returns encoded bytes or files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from vqvae2.config.models import DataConfig
from vqvae2.data.embedded import recognise_embedded
from vqvae2.data.errors import DataError, LabelsError
from vqvae2.data.hub import recognise_hub
from vqvae2.data.image_folder import ImageFolder, recognise_folder
from vqvae2.data.listing import Listing, Stream
from vqvae2.data.shards import recognise_shards
from vqvae2.data.table_files import recognise_files


class DataSource(Protocol):
    """Data that was located but not read yet."""

    @property
    def identity(self) -> str:
        """Text that changes when the images change: decoded images are reused while it stays the same."""

    def list_images(self, config: DataConfig, scratch: Path) -> Listing | Stream:
        """List all images of the data.

        Args:
            config: `split`, `streaming`, `image_column` and `label_column` are for the sources that have such a thing.
            scratch: a folder for working copies, not created yet; it is removed when all images are decoded.

        Raises:
            DataError: the data cannot be read; one line.
        """


Recogniser = Callable[[str, Path], DataSource | None]
"""Called with DATA as the user wrote it and with the run folder, whose files are never data.

Returns the source, or None for data of another kind. Raises `DataError` for data of its kind that cannot be used.
"""

_RECOGNISERS: list[Recogniser] = [
    recognise_embedded,
    recognise_shards,
    recognise_folder,
    recognise_files,
    recognise_hub,
]


def register_source(recognise: Recogniser) -> Recogniser:
    """Add a kind of data in this process, before all kinds that are already known; usable as a decorator."""
    _RECOGNISERS.insert(0, recognise)
    return recognise


def locate(data: str, run: Path) -> DataSource:
    """Find out what kind of data DATA is, without decoding an image and without the network.

    Args:
        data: as the user wrote it.
        run: the run folder; its files are not data, even when it is inside the data's folder.

    Raises:
        DataError: nothing is there, or it is of no known kind.
    """
    if not data.strip():  # a path of no characters would be the current folder
        raise DataError("expected a folder, a file or a data set of the Hub, found an empty text")
    for recognise in _RECOGNISERS:
        source = recognise(data, run)
        if source is not None:
            return source
    raise DataError(f"no such folder or file: {data!r} (a data set of the Hub would be owner/name)")


def list_images(source: DataSource, config: DataConfig, scratch: Path, seed: int) -> Listing | Stream:
    """List the images of a source, at most `config.limit` of them.

    A limited listing holds images chosen by the seed; a limited stream holds its first ones.

    Raises:
        DataError: the data cannot be read; one line.
    """
    if config.labels is not None and not isinstance(source, ImageFolder):
        raise LabelsError("data.labels is for a folder of image files; a table has its classes in a column")
    listed = source.list_images(config, scratch)
    if isinstance(listed, Listing) and config.limit is not None and config.limit < len(listed):
        return _limited(listed, config.limit, seed)
    return listed


def _limited(listing: Listing, limit: int, seed: int) -> Listing:
    """`limit` of the images, in their order; at least one of each split where the data names one."""
    order = np.random.default_rng(seed).permutation(len(listing))
    chosen = order[:limit]
    if listing.held is not None and limit > 1 and len(set(listing.held[chosen].tolist())) == 1:
        other = order[listing.held[order] != listing.held[chosen[0]]]
        chosen = np.concatenate([chosen[: limit - len(other[:1])], other[:1]])
    return listing.select(np.sort(chosen))
