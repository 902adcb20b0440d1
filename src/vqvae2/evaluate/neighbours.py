"""Nearest training pictures, to see whether a prior merely memorises. Shapes: B samples, N training pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae2.config.models import DataConfig
from vqvae2.data.batches import sequential
from vqvae2.data.images import ImageSet


def nearest_pictures(samples: Tensor, images: ImageSet, config: DataConfig) -> tuple[Tensor, Tensor]:
    """For each sample, the training picture (or its mirror image, if training mirrored) with the least squared error.

    Args:
        samples: [B, C, H, W] in [-1, 1].

    Returns:
        The pictures [B, C, H, W]; the root-mean-square pixel distances [B] in [0, 2].
    """
    best = torch.full((len(samples),), float("inf"))
    found = torch.zeros_like(samples)
    flat = samples.flatten(1)
    for pictures, _ in sequential(images, images.train, config, batch=512):
        for candidates in (pictures, pictures.flip(3)) if config.flip else (pictures,):
            distance = torch.cdist(flat, candidates.flatten(1)) / flat.shape[1] ** 0.5
            value, index = distance.min(1)
            closer = value < best
            best = torch.where(closer, value, best)
            found[closer] = candidates[index[closer]]
    return found, best
