"""Sets of images that are measured, each under a name. Shapes: n images, B batch, C channels, S the run's size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.config.models import DataConfig
from vqvae2.data.batches import sequential
from vqvae2.data.errors import DataError
from vqvae2.data.images import ImageSet
from vqvae2.data.recorded import open_other
from vqvae2.generate.sample_folder import holds_arrays, listed_samples, read_samples

BATCH = 64
"""Images in one batch on a CPU."""
_PIXELS = 2**23  # of the images in one batch on a card
_MOST = 1024  # of the images in one batch on a card

Source = Callable[[slice], Iterator[Tensor]]
"""Reads or makes a slice of a set, in order, in batches: float32 [B, C, S, S] in [-1, 1], on the CPU."""


@dataclass(frozen=True)
class NamedImages:
    """Some images in a fixed order, read or made each time they are needed.

    Attributes:
        name: as tables call the set.
        key: sha-256 that identifies the images; equal keys mean equal images.
        n: number of images.
        labels: int64 [n], or None. A broken image is found when it is read, and another of the data set takes its place: from then on
            the label is that of the other one.
        source: see `Source`.
        rows: int64 [n], the rows of the run's code store that hold the codes of these images; None if it does not hold them.
        batch: images in one batch, where the files of the set do not say it.
    """

    name: str
    key: str
    n: int
    labels: Tensor | None
    source: Source
    rows: NDArray[np.int64] | None = None
    batch: int = BATCH

    def __len__(self) -> int:
        return self.n

    def batches(self) -> Iterator[Tensor]:
        """All of them, float32 [B, C, S, S] in [-1, 1]."""
        return self.source(slice(0, self.n))

    def images(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Those from `start` to `stop` (default: all), float32 [b, C, S, S] in [-1, 1], in memory."""
        return torch.cat(list(self.source(slice(start, self.n if stop is None else min(stop, self.n)))))

    def first(self, n: int) -> NamedImages:
        """The first n images, or the set itself if it has no more."""
        if n >= self.n:
            return self
        labels = None if self.labels is None else self.labels[:n]
        rows = None if self.rows is None else self.rows[:n]
        return replace(self, key=digest(self.key, "first", n), n=n, labels=labels, rows=rows)


def digest(*values: object) -> str:
    """sha-256 of the printed form of some values."""
    return hashlib.sha256("\0".join(map(str, values)).encode()).hexdigest()


def batch_size(config: DataConfig, device: torch.device, least: int = BATCH) -> int:
    """Images in one batch: the least on a CPU, on a card as many as have 2^23 pixels, but at most 1,024 and not fewer than the least."""
    return least if device.type == "cpu" else max(least, min(_MOST, _PIXELS // config.area))


def shuffled(indices: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The indices in the random order of a seed."""
    return np.random.default_rng(seed).permutation(indices)


def real_images(
    name: str, images: ImageSet, indices: NDArray[np.int64], config: DataConfig, batch: int = BATCH
) -> NamedImages:
    """Images of a data set with the centre crop and without augmentation."""
    labels = images.labels_of(indices) if images.classes else None

    def source(wanted: slice) -> Iterator[Tensor]:
        at = wanted.start
        for pixels, shown in sequential(images, indices[wanted], config, batch=batch):
            if labels is not None:
                labels[at : at + len(shown)] = shown
            at += len(shown)
            yield pixels

    key = digest(images.fingerprint, hashlib.sha256(indices.tobytes()).hexdigest())
    return NamedImages(name, key, len(indices), labels, source, batch=batch)


def drawn_samples(name: str, folder: Path, most: int | None = None) -> NamedImages:
    """The samples that `vqvae2 sample --pictures npz` wrote, from number 0 up to the first missing number.

    Args:
        most: how many, at most; None is all. The key is the same however many more there are.

    Raises:
        UserError: the folder holds none.
    """
    samples = read_samples(folder)
    n = samples.n if most is None else min(samples.n, most)
    labels = None if samples.labels is None else samples.labels[:n]

    def source(wanted: slice) -> Iterator[Tensor]:
        return samples.images(wanted.start, wanted.stop)

    return NamedImages(name, digest(samples.about, n), n, labels, source)


def folder_images(
    name: str, folder: Path, classes: Sequence[str], config: DataConfig, cache: Path, batch: int = BATCH
) -> NamedImages:
    """All images of a folder. Their classes are the names of its sub-folders, or those in its samples.json.

    Args:
        classes: names of the classes; the set has labels only if all its images are of these.
        cache: folder for the decoded images.
        batch: images in one batch.

    Raises:
        DataError: the folder holds nothing usable.
    """
    known = {label: number for number, label in enumerate(classes)}
    if holds_arrays(folder):
        drawn = drawn_samples(name, folder)
        expected, found = (config.channels, *config.shape), tuple(drawn.images(0, 1).shape[1:])
        if found != expected:
            raise DataError(f"{folder} holds images of {_shape(found)}, expected {_shape(expected)}")
        named = [label for _, label in listed_samples(folder)][: drawn.n]
        return replace(drawn, labels=_numbers(named, known) if len(named) == drawn.n else None)
    images = open_other(str(folder), config, cache, seed=0, say=lambda text: None, both=False)
    listed = dict(listed_samples(folder))
    order = np.sort(np.concatenate([images.train, images.heldout]))
    if listed:  # the folder also holds sheets, which are no samples
        order = np.array([index for index in order if Path(images.names[index]).name in listed], np.int64)
    if images.labels is not None:
        images.labels = np.array([*(known.get(name, -1) for name in images.classes), -1])[images.labels]
    elif listed:
        images.labels = np.array([known.get(listed.get(Path(name).name, ""), -1) for name in images.names])
    if not len(order) or images.labels is None or (images.labels[order] < 0).any():
        images.classes, images.labels = (), None
    else:
        images.classes = tuple(classes)
    return real_images(name, images, order, config, batch)


def _numbers(named: Sequence[str], known: Mapping[str, int]) -> Tensor | None:
    """The numbers of classes, int64; None if there are none, or if one is not known."""
    labels = torch.tensor([known.get(label, -1) for label in named])
    return labels if len(labels) and bool((labels >= 0).all()) else None


def _shape(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[2]} px with {shape[0]} channel{'s' * (shape[0] != 1)}"
