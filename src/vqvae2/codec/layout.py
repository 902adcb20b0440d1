"""How an image of any size is covered by grids of codes, and by tiles as large as the images that a prior knows.

    image H x W --edge pixels repeated--> a multiple of the strides --> the grids that are stored
                                                                       --> tiles, each coded by the prior on its own

A prior has positional embeddings and knows images of one size only, so the grids are cut into tiles of that size. The
tiles at the right and lower edge reach beyond the image; codes out there are not stored.

Shapes: T tiles, h w the stored grid of a level, N = positions of a tile's grid of a level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from vqvae2.codes import Geometry

_Key = TypeVar("_Key")


def alike(keys: Sequence[_Key], most: Callable[[_Key], int]) -> Iterator[slice]:
    """Runs of images with equal keys, in order.

    Args:
        keys: of each image.
        most: how many images of this key may be in one run; one may always.
    """
    begin = 0
    for end in range(1, len(keys) + 1):
        if end == len(keys) or keys[end] != keys[begin] or end - begin == max(1, most(keys[begin])):
            yield slice(begin, end)
            begin = end


@dataclass(frozen=True)
class Layout:
    """The grids and tiles of one image.

    Attributes:
        height, width: of the image in px.
        shape: (height, width) of the model's own images in px.
        tile: the geometry of a tile, that is of an image of this shape.
    """

    height: int
    width: int
    shape: tuple[int, int]
    tile: Geometry

    @property
    def pixels(self) -> int:
        """H x W."""
        return self.height * self.width

    @property
    def stride(self) -> int:
        """Pixels of a cell of the coarsest grid."""
        return self.shape[0] // self.tile.grids[0][0]

    @property
    def padded(self) -> tuple[int, int]:
        """(height, width) in px up to the next multiple of the stride."""
        return -(-self.height // self.stride) * self.stride, -(-self.width // self.stride) * self.stride

    @property
    def tiles(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return -(-self.padded[0] // self.shape[0]), -(-self.padded[1] // self.shape[1])

    @property
    def count(self) -> int:
        """T, the number of tiles, numbered in raster order."""
        return self.tiles[0] * self.tiles[1]

    @property
    def covered(self) -> int:
        """Pixels that the tiles cover together; of a thin image far more than H x W."""
        return self.count * self.shape[0] * self.shape[1]

    def grid(self, level: int) -> tuple[int, int]:
        """(h, w): the stored grid."""
        pixels = self.shape[0] // self.tile.grids[level][0]
        return self.padded[0] // pixels, self.padded[1] // pixels

    def stored(self, level: int) -> int:
        """h x w."""
        height, width = self.grid(level)
        return height * width

    def split(self, codes: NDArray[np.int64], level: int) -> NDArray[np.int64]:
        """A stored grid [h, w] as tiles [T, N], -1 where nothing is stored."""
        (rows, columns), (gh, gw) = self.tiles, self.tile.grids[level]
        whole = np.full((rows * gh, columns * gw), -1, np.int64)
        whole[: codes.shape[0], : codes.shape[1]] = codes
        return whole.reshape(rows, gh, columns, gw).swapaxes(1, 2).reshape(self.count, gh * gw)

    def join(self, tiles: NDArray[np.int64], level: int) -> NDArray[np.int64]:
        """The stored grid [h, w] of tiles [T, N]."""
        (rows, columns), (gh, gw), (h, w) = self.tiles, self.tile.grids[level], self.grid(level)
        whole = tiles.reshape(rows, columns, gh, gw).swapaxes(1, 2).reshape(rows * gh, columns * gw)
        return np.ascontiguousarray(whole[:h, :w])

    def wanted(self, level: int) -> NDArray[np.bool_]:
        """bool [T, N]: the positions of the tiles that are stored."""
        inside: NDArray[np.bool_] = self.split(np.zeros(self.grid(level), np.int64), level) >= 0
        return inside


def pad(image: torch.Tensor, layout: Layout) -> torch.Tensor:
    """An image [C, H, W] with its last row and column repeated up to the layout's multiple of the stride."""
    height, width = layout.padded
    rows = torch.arange(height, device=image.device).clamp(max=image.shape[1] - 1)
    columns = torch.arange(width, device=image.device).clamp(max=image.shape[2] - 1)
    return image[:, rows][:, :, columns]
