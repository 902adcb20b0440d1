"""Training images: shipped batch by batch, or kept on the device. A card does the cropping, shifting and mirroring either way.

    images --once, or batch by batch--> stored pixels [n or b, PH, PW, C] on the device
    TrainingOrder + augmentation --host--> positions, rows, columns --device, one kernel--> pixels [b, H, W, C]

What is gathered equals what `data.batches.pixel_batches` makes on the host, where cutting out a batch takes most of the
time (benchmarks/decoding.py).

Shapes: b this process's part of a batch, C channels, H W the configured shape, PH PW the stored shape, n training images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.config.models import DataConfig
from vqvae2.data.augmentation import windows
from vqvae2.data.batches import TrainingOrder, pixel_batches, stored_batches
from vqvae2.data.decoding import stored_shape
from vqvae2.data.images import ImageSet
from vqvae2.data.pixels import to_float
from vqvae2.train.feed import Batch

_CHUNK = 256  # images copied to the device at once


@dataclass(frozen=True)
class ResidentImages:
    """The training images of a set, on a device.

    Attributes:
        pixels: uint8, or int16 where `data.range` is set, [n, PH, PW, C], as stored, on the device.
        indices: int64 [n], sorted: which images they are.
        config: says which augmentations there are.
    """

    pixels: Tensor
    indices: NDArray[np.int64]
    config: DataConfig

    @classmethod
    def of(cls, images: ImageSet, config: DataConfig, device: torch.device, limit: int) -> Self | None:
        """Copy the training images of `images` to the device; None if they take more than `limit` bytes."""
        indices = images.train
        shape = (len(indices), *stored_shape(config), config.channels)
        kind = torch.uint8 if config.range is None else torch.int16
        if np.prod(shape, dtype=np.int64) * kind.itemsize > limit:
            return None
        pixels = torch.empty(shape, dtype=kind, device=device)
        chunks = [slice(at, at + _CHUNK) for at in range(0, len(indices), _CHUNK)]
        for chunk, (raw, _) in zip(chunks, images.raw(indices[chunk] for chunk in chunks), strict=True):
            pixels[chunk] = torch.from_numpy(np.ascontiguousarray(raw)).to(device)
        return cls(pixels, indices, config)

    def windows_at(self, order: TrainingOrder, start: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each step from `start` on: positions [b] among the resident images, rows [b, H], columns [b, W]; int64."""
        stored = (self.pixels.shape[1], self.pixels.shape[2])
        for keys, indices in order.steps(start):
            rows, columns = windows(stored, keys, order.seed, self.config)
            positions = np.searchsorted(self.indices, indices)
            yield torch.from_numpy(positions), torch.from_numpy(rows.copy()), torch.from_numpy(columns)

    def pixels_at(self, positions: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """The batch that `windows_at` describes, [b, H, W, C] of the stored type."""
        return cut(self.pixels, positions, rows, columns)


def cut(stored: Tensor, positions: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Of the stored images [n, PH, PW, C] at positions [b], the pixels at rows [b, H] and columns [b, W]: [b, H, W, C]."""
    return stored[positions[:, None, None], rows[:, :, None], columns[:, None, :]]


class TrainingImages:
    """The batches of training images of one objective, from the host or, where they fit, from the device itself.

    Attributes:
        cuts_there: whether the device cuts the windows out of the stored images; otherwise the host does.

    Args:
        images: `images.train` are taken.
        config: says which augmentations there are.
        batch: images per step, over all processes.
        seed: of their order and augmentation.
    """

    def __init__(self, images: ImageSet, config: DataConfig, batch: int, seed: int) -> None:
        self.images, self.config, self.batch, self.seed = images, config, batch, seed
        self.resident: ResidentImages | None = None
        self.cuts_there = False

    def keep_on(self, device: torch.device, limit: int) -> int:
        """Keep the stored training images on the device, if they take at most `limit` bytes; returns how many they take."""
        self.cuts_there = device.type == "cuda"
        self.resident = ResidentImages.of(self.images, self.config, device, limit)
        return self.resident.pixels.nbytes if self.resident else 0

    def batches(self, start: int, rank: int, world: int) -> Iterator[Batch]:
        """This process's batches from step `start` on, in host memory; `scaled` makes images of them.

        They are pixels [b, H, W, C] and labels [b]; or, where the device cuts, stored pixels [b, PH, PW, C], rows [b, H] and
        columns [b, W]; or, where the images are on the device, what `ResidentImages.windows_at` yields.
        """
        order = TrainingOrder(
            self.images.train, self.batch, self.seed, rank, world, self.config.shuffle_buffer
        )
        if self.resident is not None:
            return self.resident.windows_at(order, start)
        if self.cuts_there:
            return self._uncut(order, start)
        return pixel_batches(self.images, order, self.config, start=start)

    def scaled(self, batch: Batch, device: torch.device) -> Tensor:
        """A batch of `batches` as images [b, C, H, W] in [-1, 1] on the device."""
        if self.resident is not None:
            return scaled(self.resident.pixels_at(*batch))
        if not self.cuts_there:
            return scaled(batch[0].to(device))
        stored, rows, columns = (part.to(device) for part in batch)
        return scaled(cut(stored, torch.arange(len(stored), device=device), rows, columns))

    def _uncut(self, order: TrainingOrder, start: int) -> Iterator[Batch]:
        """Stored pixels, and the rows and columns that the augmentation takes."""
        for keys, raw, _ in stored_batches(self.images, order, start):
            rows, columns = windows((raw.shape[1], raw.shape[2]), keys, self.seed, self.config)
            yield torch.from_numpy(raw), torch.from_numpy(rows.copy()), torch.from_numpy(columns)


def scaled(pixels: Tensor) -> Tensor:
    """uint8 or int16 [b, H, W, C] to float32 [b, C, H, W] in [-1, 1], the same numbers on every device; on a card channels last."""
    if pixels.device.type == "cpu":
        return to_float(pixels)
    # by a tensor: a card would multiply by the rounded inverse of a number
    half = torch.full((), 127.5 if pixels.dtype == torch.uint8 else 32767.5, device=pixels.device)
    floats = pixels.permute(0, 3, 1, 2).float()
    return floats / half - 1 if pixels.dtype == torch.uint8 else (floats + 0.5) / half
