"""Nearest training images, which show whether a prior merely memorises. Shapes: B samples, C channels, H W px."""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae2.config.models import DataConfig
from vqvae2.data.batches import sequential, spread
from vqvae2.data.images import ImageSet
from vqvae2.tf32 import without_tf32

_VALUES = 2**27  # values of the training images that are compared at a time: half a GiB


def nearest_images(
    samples: Tensor,
    images: ImageSet,
    config: DataConfig,
    device: torch.device | str = "cpu",
    most: int | None = None,
) -> tuple[Tensor, Tensor]:
    """For each sample, the training image (or its mirror image, if training mirrored) with the least squared error.

    Args:
        samples: [B, C, H, W] in [-1, 1].
        device: where they are compared.
        most: training images among which it is searched, evenly spaced; None is all.

    Returns:
        Those images [B, C, H, W]; their root-mean-square distances [B], of pixels in [0, 2]. Both on the CPU.
    """
    flat = samples.flatten(1).to(device)
    best = torch.full((len(samples),), float("inf"), device=device)
    nearest = torch.zeros_like(samples)
    batch = max(1, min(512, _VALUES // samples.shape[1:].numel()))
    searched = images.train if most is None else spread(images.train, most)
    for originals, _ in sequential(images, searched, config, batch=batch):
        there = originals.to(device)
        for mirrored in (False, True) if config.flip else (False,):
            candidates = there.flip(3) if mirrored else there
            with without_tf32(flat.device):
                distance = torch.cdist(flat, candidates.flatten(1)) / flat.shape[1] ** 0.5
            value, index = distance.min(1)
            closer = value < best
            best = torch.where(closer, value, best)
            chosen = closer.cpu()
            found = originals[index.cpu()[chosen]]  # which are on the host, where they are wanted
            nearest[chosen] = found.flip(3) if mirrored else found
    return nearest, best.cpu()
