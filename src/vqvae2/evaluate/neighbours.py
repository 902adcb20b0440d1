"""Nearest training images, which show whether a prior merely memorises. Shapes: B samples, C channels, H W px."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vqvae2.config.models import DataConfig
from vqvae2.data.batches import sequential
from vqvae2.data.images import ImageSet

_VALUES = 2**27  # values of the training images that are compared at a time: half a GiB


def _pixels(images: Tensor) -> Tensor:
    return images.flatten(1)


def nearest_images(
    samples: Tensor, images: ImageSet, config: DataConfig, embed: Callable[[Tensor], Tensor] = _pixels
) -> tuple[Tensor, Tensor]:
    """For each sample, the training image (or its mirror image, if training mirrored) with the least squared error.

    Args:
        samples: [B, C, H, W] in [-1, 1].
        embed: images [B, C, H, W] to vectors [B, D], whose errors count; the default takes the pixels.

    Returns:
        Those images [B, C, H, W]; their root-mean-square distances [B], of pixels in [0, 2].
    """
    best = torch.full((len(samples),), float("inf"))
    nearest = torch.zeros_like(samples)
    flat = embed(samples)
    batch = max(1, min(512, _VALUES // samples.shape[1:].numel()))
    for originals, _ in sequential(images, images.train, config, batch=batch):
        for candidates in (originals, originals.flip(3)) if config.flip else (originals,):
            distance = torch.cdist(flat, embed(candidates)) / flat.shape[1] ** 0.5
            value, index = distance.min(1)
            closer = value < best
            best = torch.where(closer, value, best)
            nearest[closer] = candidates[index[closer]]
    return nearest, best
