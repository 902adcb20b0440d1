"""What several parts draw: sheets of images, and distributions."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from vqvae2.data.grid import grid
from vqvae2.evaluate.plot import Curve

SHOWN = 16
"""Images of a set on a sheet."""
_QUANTILES = 64  # points of a drawn distribution


def sheet(images: Tensor, columns: int) -> Image.Image:
    """Images [B, C, H, W] in [-1, 1] in rows of `columns`, small ones enlarged."""
    return grid(images, columns, zoom=max(1, 64 // images.shape[-1]))


def distribution(values: Tensor) -> Curve:
    """The share of values [N] below a number, as a curve over that number."""
    shares = torch.linspace(0, 1, _QUANTILES, dtype=torch.float64)
    return list(zip(values.double().quantile(shares).tolist(), shares.tolist(), strict=True))
