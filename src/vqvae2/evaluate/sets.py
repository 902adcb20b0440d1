"""Sets of pictures that are measured, each under a name. Shapes: n pictures, B batch, C channels, S the run's size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.config import DataConfig
from vqvae2.data.batches import sequential
from vqvae2.data.images import ImageSet

Batches = Callable[[slice], Iterator[Tensor]]
"""Pictures of a slice of the set, in order: float32 [B, C, S, S] in [-1, 1], on the CPU."""


@dataclass(frozen=True)
class PictureSet:
    """Some pictures in a fixed order, made or read when they are asked for.

    Attributes:
        name: as tables call it.
        key: sha-256 of what the pictures are; equal keys mean equal pictures.
        n: how many.
        labels: int64 [n], or None.
        source: see `Batches`.
    """

    name: str
    key: str
    n: int
    labels: Tensor | None
    source: Batches

    def __len__(self) -> int:
        return self.n

    def batches(self) -> Iterator[Tensor]:
        """All of them, float32 [B, C, S, S] in [-1, 1]."""
        return self.source(slice(0, self.n))

    def pictures(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Those from `start` to `stop` (all), float32 [b, C, S, S] in [-1, 1], in memory."""
        return torch.cat(list(self.source(slice(start, self.n if stop is None else min(stop, self.n)))))

    def first(self, n: int) -> PictureSet:
        """The first n, or itself."""
        if n >= self.n:
            return self
        labels = None if self.labels is None else self.labels[:n]
        return replace(self, key=digest(self.key, "first", n), n=n, labels=labels)


def digest(*parts: object) -> str:
    """sha-256 of what the parts print."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def real_pictures(
    name: str, images: ImageSet, indices: NDArray[np.int64], config: DataConfig, batch: int = 64
) -> PictureSet:
    """Pictures of a data set, as evaluation sees them: centre crop, no augmentation."""

    def source(part: slice) -> Iterator[Tensor]:
        return (pictures for pictures, _ in sequential(images, indices[part], config, batch=batch))

    labels = images.labels_of(indices) if images.classes else None
    key = digest(images.fingerprint, hashlib.sha256(np.ascontiguousarray(indices)).hexdigest())
    return PictureSet(name, key, len(indices), labels, source)


def reconstructions(name: str, of: PictureSet, autoencoder: VQVAE, weights: str) -> PictureSet:
    """What the autoencoder makes of pictures.

    Args:
        weights: digest of the autoencoder's weights.
    """
    device = next(autoencoder.parameters()).device

    @torch.no_grad()
    def source(part: slice) -> Iterator[Tensor]:
        for pictures in of.source(part):
            yield autoencoder.decode(autoencoder.encode(pictures.to(device))).cpu()

    return replace(of, name=name, key=digest(of.key, "reconstructed", weights), source=source)
