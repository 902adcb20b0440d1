"""A feature network for tests of the evaluation, in place of those of ImageNet."""

from __future__ import annotations

import torch
from torch import Tensor


class Colours:
    """A feature network that takes a moment: the mean colours of the quarters.

    Attributes:
        calls: how many batches it was given.
    """

    name, digest, dimension, size, resize, score_name = "colours", "0" * 64, 12, 2, "mean", "colour score"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, 12] and logits [B, 3] of images [B, 3, H, W]."""
        self.calls += 1
        quarters = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
        return quarters, 4 * quarters[:, :3]
