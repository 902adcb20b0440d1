"""Random access to the images of a data set: decoded once and kept, or decoded when they are requested.

    data --sources--> encoded images --cache or decoding--> uint8 or int16 --> ImageSet

Shapes: B batch, C channels, H W the configured shape, PH PW = that times scale, rounded, n images.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.config.models import DataConfig
from vqvae2.data.augmentation import centre
from vqvae2.data.cache import WORKERS_FROM, Progress, fill_cache, load_pixels
from vqvae2.data.colours import background
from vqvae2.data.decoding import decode_many, stored_shape, stored_type
from vqvae2.data.errors import DataError
from vqvae2.data.holdout import split_images
from vqvae2.data.index import ImageIndex, index_key
from vqvae2.data.listing import Listing, Payload, Stream
from vqvae2.data.pixels import Pixels
from vqvae2.data.skipped import SkippedFile, report_skipped
from vqvae2.data.sources import list_images, locate
from vqvae2.data.workers import Decoder
from vqvae2.errors import UserError, printable
from vqvae2.files import atomic


class ImageSet:
    """Random access to images by index, from a memory-mapped array or by decoding them when they are requested.

    Attributes:
        classes: class names; () = no labels.
        labels: int64 [n], -1 = unlabelled; None = no labels.
        names: where each image came from: its path in the folder, or its name or row in a table.
        config: the options with which they were opened.
        fingerprint: sha256 of the data and of the options that change pixels; 64 hexadecimal digits.
        train, heldout: sorted int64 indices of the training and of the held-out images; no index is in both.
        skipped: number of images that cannot be used; `skipped.txt` lists them with the reasons.
    """

    def __init__(
        self,
        index: ImageIndex,
        stored: Pixels | Listing,
        config: DataConfig,
        skipped: SkippedFile,
        both: bool = True,
    ) -> None:
        self.names, self.classes, self.fingerprint = index.names, index.classes, index.fingerprint
        self.labels = None if index.labels is None else np.array(index.labels, np.int64)
        self.train, self.heldout = split_images(index.names, self.labels, index.held, config.holdout, both)
        self.skipped = len(index.skipped)
        self.config, self._stored, self._shape, self._skipped_file = config, stored, config.shape, skipped
        self._decoder = Decoder(config, skipped.say)
        self._broken: set[int] = set()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def kept(self) -> bool:
        """Whether the decoded images are kept, without the broken ones, which are otherwise replaced when they are requested."""
        return isinstance(self._stored, np.ndarray)

    def pixels(self, indices: Sequence[int] | NDArray[Any] | Tensor) -> Tensor:
        """The centre crops of some images without augmentation, as evaluation uses them: [B, H, W, C] of the stored type."""
        raw, _ = next(self.raw([np.asarray(indices, np.int64).reshape(-1)]))
        return torch.from_numpy(centre(raw, self._shape))

    def raw(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[tuple[Pixels, NDArray[np.int64]]]:
        """The stored pixels of several batches of images, decoded ahead of the caller where they are not kept.

        Args:
            batches: the indices [B] of each batch.

        Yields:
            For each batch the pixels, uint8 or, where `data.range` is set, int16 [B, PH, PW, C], and the indices of the images
            that they show. These differ from the requested indices only where an image turns out to be broken when it is
            decoded: the next usable image of the same split is used instead.
        """
        if isinstance(self._stored, np.ndarray):
            for chosen in batches:
                yield np.asarray(self._stored[chosen]), chosen
            return
        if len(self) >= WORKERS_FROM:
            self._decoder.start()
        requested: deque[NDArray[np.int64]] = deque()
        for pixels, reasons, _ in self._decoder.map(self._tasks(self._stored, batches, requested)):
            chosen = requested.popleft()
            yield self._decode_again(self._stored, chosen, reasons) if any(reasons) else (pixels, chosen)

    def labels_of(self, indices: NDArray[np.int64]) -> Tensor:
        """The labels of some images, int64 [B]; zeros without labels."""
        if self.labels is None:
            return torch.zeros(len(indices), dtype=torch.int64)
        return torch.from_numpy(self.labels[indices])

    def class_counts(self) -> list[int]:
        """How many training images each class has; [] without classes."""
        if self.labels is None:
            return []
        return np.bincount(self.labels[self.train], minlength=len(self.classes)).tolist()  # type: ignore[no-any-return]

    def close(self) -> None:
        """Release the pixels and end the worker processes."""
        self._decoder.close()
        self._stored = np.empty((0, 0, 0, 0), np.uint8)

    def _tasks(
        self,
        listing: Listing,
        batches: Iterable[NDArray[np.int64]],
        requested: deque[NDArray[np.int64]],
    ) -> Iterator[list[Payload | None]]:
        """The encoded images of each batch; the indices that they are of are appended to `requested`."""
        for chosen in batches:
            requested.append(self._without_broken(chosen))
            yield listing.payloads(requested[-1].tolist())

    def _decode_again(
        self, listing: Listing, chosen: NDArray[np.int64], reasons: list[str | None]
    ) -> tuple[Pixels, NDArray[np.int64]]:
        """Decode a batch again with each broken image replaced by the next usable one of its split."""
        while True:
            for index, reason in zip(chosen.tolist(), reasons, strict=True):
                if reason and index not in self._broken:
                    self._broken.add(index)
                    self.skipped += 1
                    self._skipped_file.add(self.names[index], reason)
            chosen = self._without_broken(chosen)  # continues after the replacements of the last attempt
            pixels, reasons, _ = decode_many(listing.payloads(chosen.tolist()), self._decoder.config)
            if not any(reasons):
                return pixels, chosen

    def _without_broken(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self._broken:
            return chosen
        return np.array([self._next_usable(index) for index in chosen.tolist()], np.int64)

    def _next_usable(self, index: int) -> int:
        """The index itself, or if that image is broken, the next usable one of its split."""
        if index not in self._broken:
            return index
        position = int(np.searchsorted(self.train, index))
        in_train = position < len(self.train) and self.train[position] == index
        split = self.train if in_train else self.heldout
        position = int(np.searchsorted(split, index))
        for step in range(1, len(split)):
            candidate = int(split[(position + step) % len(split)])
            if candidate not in self._broken:
                return candidate
        raise DataError(f"no usable image is left: see {self._skipped_file.path}")


def open_images(
    data: str,
    config: DataConfig,
    folder: Path,
    *,
    seed: int = 0,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
    check: Callable[[str], None] | None = None,
    both: bool = True,
) -> ImageSet:
    """Open a data set; its decoded images are kept in `folder` while they fit in `config.cache_gb`.

    A larger data set is decoded each time that its images are requested, by worker processes that work ahead of
    the caller; batches are the same either way. When several processes share `folder`, let one of them call this
    first: the others then use the images that it decoded.

    Args:
        data: a folder, .parquet or .tar files (a file, a folder or a pattern), a Hub id, "emoji64", or what a
            source of `register_source` recognises.
        config: every option of the data.
        folder: RUN/data, for the decoded images, `index.json` and `skipped.txt`; created when missing.
        seed: decides which images are used, not which are held out, when `config.limit` is smaller than their number.
        say: called with lines of text: what was understood, what looks odd, the speed of decoding, the skipped images.
        progress: see `Progress`.
        check: called with the fingerprint before anything is decoded or written; it may raise to refuse the images.
        both: whether there have to be training images and held-out ones; without it one image is enough, of either kind.

    Raises:
        DataError: no image is usable, none is left to hold out, or the data cannot be read; one line.
    """
    background(config)
    run = folder.parent.resolve()
    source = locate(data, folder if run == Path(os.path.realpath(data)) else run)
    key = index_key(source.identity, config, seed)
    kept = _reuse(folder, key, config, both)
    if kept is not None:
        if check is not None:
            check(kept.fingerprint)
        return kept
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {atomic.reason(error)}") from error
    try:
        listed = list_images(source, config, folder / "table", seed)
        index = ImageIndex.new(source.identity, config, seed, listed.revision)
        if check is not None:
            check(index.fingerprint)
    except UserError:
        shutil.rmtree(folder / "table", ignore_errors=True)
        raise
    size = math.prod(stored_shape(config)) * config.channels * stored_type(config).itemsize
    if isinstance(listed, Listing) and len(listed) * size > config.cache_gb * 1e9:
        return _open_uncached(listed, index, config, folder, say, both)
    try:
        return _fill(listed, index, config, folder, say, progress, both)
    finally:
        shutil.rmtree(folder / "table", ignore_errors=True)


def _fill(
    listed: Listing | Stream,
    index: ImageIndex,
    config: DataConfig,
    folder: Path,
    say: Callable[[str], None],
    progress: Progress | None,
    both: bool,
) -> ImageSet:
    """Decode all images and keep them in `folder`."""
    began = time.perf_counter()
    try:
        remarks = fill_cache(listed, index, config, folder, progress, say)
    except (OSError, atomic.FileError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot write the decoded images to {folder}: {reason}") from error
    images = _open_cached(folder, index, config, both)
    _say_notes(listed, say)
    seconds = time.perf_counter() - began
    say(f"decoded {len(images)} images in {seconds:.1f} s ({len(images) / seconds:.0f} images/s)")
    for remark, count in remarks.items():
        say(f"{remark}: {count} of {len(images)} images")
    report_skipped(index.skipped, folder / "skipped.txt", say)
    return images


def open_kept(folder: Path, config: DataConfig, fingerprint: str) -> ImageSet | None:
    """The decoded images that `folder` holds, without looking for the data; None if it does not hold those.

    Args:
        folder: RUN/data.
        config: every option of the data.
        fingerprint: of the images.
    """
    try:
        index = ImageIndex.load(folder / "index.json")
        return (
            _open_cached(folder, index, config) if index.pixels and index.fingerprint == fingerprint else None
        )
    except (OSError, EOFError, ValueError, TypeError, AttributeError):
        return None


def _reuse(folder: Path, key: str, config: DataConfig, both: bool) -> ImageSet | None:
    """The images in the cache if it is undamaged and has this key, else None."""
    try:
        index = ImageIndex.load(folder / "index.json")
        return _open_cached(folder, index, config, both) if index.key == key else None
    except DataError:
        raise
    except (OSError, EOFError, ValueError, TypeError, AttributeError):
        return None


def _open_cached(folder: Path, index: ImageIndex, config: DataConfig, both: bool = True) -> ImageSet:
    skipped = SkippedFile(folder / "skipped.txt")
    return ImageSet(index, load_pixels(folder, index, config), config, skipped, both)


def _say_notes(listed: Listing | Stream, say: Callable[[str], None]) -> None:
    """Say what was understood of folders and names. Only when the images are usable: a mistake is told in one line."""
    for note in listed.notes if isinstance(listed, Listing) else ():
        say(printable(note))


def _open_uncached(
    listed: Listing,
    index: ImageIndex,
    config: DataConfig,
    folder: Path,
    say: Callable[[str], None],
    both: bool,
) -> ImageSet:
    """Images that are too large to be kept; one of each split is decoded as a check that there are usable ones."""
    skipped = SkippedFile(folder / "skipped.txt", say, index.fingerprint)
    index.fill(listed, [], [None] * len(listed), skipped)
    images = ImageSet(index, listed, config, skipped, both)
    for indices in filter(len, (images.train, images.heldout)):
        images.pixels(indices[:1])  # raises DataError if no image of the split is usable
    _say_notes(listed, say)
    report_skipped(index.skipped, skipped.path, say)
    say(f"{len(images)} images exceed cache_gb = {config.cache_gb:g}: they are decoded while training")
    return images
