"""Pictures to batches: shuffled and endless for training, in order and once for everything else.

    ImageSet --Shuffle, augmented--> batches;  ImageSet --in order--> sequential;  both float in [-1, 1]

Every batch is a pure function of (seed, step): nothing here keeps a random state.

Shapes: B batch, C channels, S the configured size.
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
from vqvae2.data.pixels import to_float


def batches(  # noqa: PLR0913 - what a step is, in one place
    images: ImageSet,
    indices: Sequence[int] | NDArray[Any],
    config: DataConfig,
    *,
    batch: int,
    seed: int,
    start: int = 0,
    stop: int | None = None,
    augment: bool = True,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches of steps start, start + 1, ... (to stop - 1, or without end).

    Step s is a pure function of (seed, s): the epochs, each a permutation of `indices`, are laid end to end and
    cut into batches, and what augmentation does depends on the seed and the place in that sequence. So a
    training that resumes at step s sees what it would have seen.

    Args:
        batch: pictures per step over all processes; process `rank` of `world` gets its share of each.
        augment: flip, shift and random crop as `config` says; otherwise the centre crop.

    Yields:
        float32 [b, C, S, S] in [-1, 1] and int64 labels [b] (zeros without classes).

    Raises:
        DataError: no indices, or fewer pictures per step than processes.
    """
    chosen = np.asarray(indices, np.int64).reshape(-1)
    if not len(chosen) or not 0 <= rank < world or batch < world:
        raise DataError(
            f"cannot make batches of {batch} from {len(chosen)} pictures for process {rank} of {world}"
        )
    low, high = rank * batch // world, (rank + 1) * batch // world

    def places() -> Iterator[NDArray[np.int64]]:
        for step in itertools.count(start) if stop is None else range(start, stop):
            yield np.arange(step * batch + low, step * batch + high)

    shuffle = Shuffle(chosen, seed)
    raws = images.raw(shuffle(place) for place in places())
    for place, (raw, actual) in zip(places(), raws, strict=False):
        pixels = augmented(raw, place, seed, config) if augment else centre(raw, config.size)
        yield to_float(torch.from_numpy(pixels)), images.labels_of(actual)


def sequential(
    images: ImageSet,
    indices: Sequence[int] | NDArray[Any],
    config: DataConfig,
    *,
    batch: int,
    copies_seed: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The pictures in order, in batches of `batch` (the last may be smaller), once.

    Args:
        copies_seed: None = no augmentation; a number augments each picture as a function of it and the index.

    Yields:
        As `batches`.
    """
    chosen = np.asarray(indices, np.int64).reshape(-1)
    for raw, actual in images.raw(chosen[at : at + batch] for at in range(0, len(chosen), batch)):
        pixels = (
            centre(raw, config.size) if copies_seed is None else augmented(raw, actual, copies_seed, config)
        )
        yield to_float(torch.from_numpy(pixels)), images.labels_of(actual)


class Shuffle:
    """The endless sequence of seeded permutations of some indices, by place."""

    def __init__(self, indices: NDArray[np.int64], seed: int) -> None:
        self.indices, self.seed = indices, seed
        self.epochs: dict[int, NDArray[np.int64]] = {}

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        epochs, within = np.divmod(places, len(self.indices))
        found = np.empty(len(places), np.int64)
        for epoch in np.unique(epochs).tolist():
            found[epochs == epoch] = self._epoch(epoch)[within[epochs == epoch]]
        return found

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self.epochs:
            self.epochs = {key: value for key, value in self.epochs.items() if key == epoch - 1}
            self.epochs[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.indices)
        return self.epochs[epoch]
