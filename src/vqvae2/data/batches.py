"""Images to batches: shuffled and endless for training, in order and once for everything else.

    ImageSet --TrainingOrder, augmented--> pixel_batches;  ImageSet --in order--> sequential_pixels
    both uint8, or int16 where `data.range` is set
    sequential: the same as sequential_pixels, as float32 in [-1, 1]

Every batch is a pure function of (seed, step): nothing here keeps a random state. Training ships these integers to the
device and scales there, because they take a quarter of the bytes, or half.

Shapes: B batch, b the part of a batch that one process takes, C channels, H W the configured shape.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.config.models import DataConfig
from vqvae2.data.augmentation import augmented, centre
from vqvae2.data.errors import DataError
from vqvae2.data.images import ImageSet
from vqvae2.data.nearby import NearbyShuffle
from vqvae2.data.pixels import Pixels, to_float


class Shuffle:
    """The endless sequence of seeded permutations of some indices, by position."""

    def __init__(self, indices: NDArray[np.int64], seed: int) -> None:
        self.indices, self.seed = indices, seed
        self.epochs: dict[int, NDArray[np.int64]] = {}

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The indices that stand at these positions of the sequence."""
        epochs, within = np.divmod(positions, len(self.indices))
        chosen = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs).tolist():
            chosen[epochs == epoch] = self._epoch(epoch)[within[epochs == epoch]]
        return chosen

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self.epochs:
            self.epochs = {key: value for key, value in self.epochs.items() if key == epoch - 1}
            self.epochs[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.indices)
        return self.epochs[epoch]


class TrainingOrder:
    """Which images make up each training step.

    The epochs, each a permutation of the indices, are laid end to end and cut into batches. So step s is a pure
    function of (seed, s), and a training that resumes at step s sees what it would have seen.

    Args:
        indices: of the training images.
        batch: images per step over all processes.
        seed: of the permutations.
        rank, world: process `rank` of `world` takes its share of each batch.
        buffer: see `DataConfig.shuffle_buffer`.

    Raises:
        DataError: no indices, or fewer images per step than processes.
    """

    def __init__(
        self,
        indices: Sequence[int] | NDArray[Any],
        batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        buffer: int = 0,
    ) -> None:
        chosen = np.asarray(indices, np.int64).reshape(-1)
        if not len(chosen) or not 0 <= rank < world or batch < world:
            raise DataError(
                f"cannot make batches of {batch} from {len(chosen)} images for process {rank} of {world}"
            )
        self.seed, self.batch = seed, batch
        self.low, self.high = rank * batch // world, (rank + 1) * batch // world
        self.shuffle = NearbyShuffle(chosen, seed, batch, buffer) if buffer else Shuffle(chosen, seed)

    def positions(self, start: int = 0, stop: int | None = None) -> Iterator[NDArray[np.int64]]:
        """For the steps from `start` to `stop` - 1 (None: without end), positions [b] in the sequence of all epochs."""
        for step in itertools.count(start) if stop is None else range(start, stop):
            yield np.arange(step * self.batch + self.low, step * self.batch + self.high)

    def steps(
        self, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Positions [b] as in `positions`, which are the keys of the augmentation, and the indices [b] that stand there."""
        for positions in self.positions(start, stop):
            yield positions, self.shuffle(positions)


def stored_batches(
    images: ImageSet, order: TrainingOrder, start: int = 0, stop: int | None = None
) -> Iterator[tuple[NDArray[np.int64], Pixels, NDArray[np.int64]]]:
    """For the steps from `start` to `stop` - 1 (None: without end): positions [b] as of `TrainingOrder.steps`, the stored pixels
    [b, PH, PW, C] of the images there, and the indices [b] of the images that they show, as of `ImageSet.raw`.
    """
    raws = images.raw(indices for _, indices in order.steps(start, stop))
    for positions, (raw, actual) in zip(order.positions(start, stop), raws, strict=False):
        yield positions, raw, actual


def pixel_batches(
    images: ImageSet,
    order: TrainingOrder,
    config: DataConfig,
    *,
    start: int = 0,
    stop: int | None = None,
    augment: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches of steps start, start + 1, ... (to stop - 1, or without end).

    Args:
        images: the images.
        order: which of them each step takes.
        config: says which augmentations there are.
        augment: flip, shift and random crop as `config` says; otherwise the centre crop.

    Yields:
        uint8, or int16 where `data.range` is set, [b, H, W, C] and int64 labels [b] (zeros without classes).
    """
    for positions, raw, actual in stored_batches(images, order, start, stop):
        pixels = augmented(raw, positions, order.seed, config) if augment else centre(raw, config.shape)
        yield torch.from_numpy(pixels), images.labels_of(actual)


def sequential_pixels(
    images: ImageSet,
    indices: Sequence[int] | NDArray[Any],
    config: DataConfig,
    *,
    batch: int,
    copies_seed: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The images in order, in batches of `batch` (the last may be smaller), once.

    Args:
        copies_seed: None = no augmentation; a number augments each image as a function of it and the index.

    Yields:
        As `pixel_batches`.
    """
    chosen = np.asarray(indices, np.int64).reshape(-1)
    for raw, actual in images.raw(chosen[at : at + batch] for at in range(0, len(chosen), batch)):
        pixels = (
            centre(raw, config.shape) if copies_seed is None else augmented(raw, actual, copies_seed, config)
        )
        yield torch.from_numpy(pixels), images.labels_of(actual)


def sequential(
    images: ImageSet,
    indices: Sequence[int] | NDArray[Any],
    config: DataConfig,
    *,
    batch: int,
    copies_seed: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """`sequential_pixels` as float32 [B, C, H, W] in [-1, 1]."""
    for pixels, labels in sequential_pixels(images, indices, config, batch=batch, copies_seed=copies_seed):
        yield to_float(pixels), labels


def spread(indices: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most `count` of the indices [n], evenly spaced from the first on."""
    count = min(count, len(indices))
    return indices[np.arange(count) * len(indices) // max(1, count)]


def rows_of_eight(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sixteen of the indices [n], evenly spaced, or eight if there are fewer: whole rows of a sheet of pictures."""
    return spread(indices, 16 if len(indices) >= 16 else 8)
