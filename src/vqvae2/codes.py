"""`Codes` and `Geometry`: the one thing that flows between the stages.

    images --autoencoder.encode--> Codes --prior--> Codes --autoencoder.decode--> images

An image becomes one grid of integers per level, coarsest first. Every stage shares only these two types.

Shapes: B batch, L level, H W grid, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vqvae2.errors import UserError


class CodesError(UserError):
    """Codes that do not fit the geometry in which they are used."""


@dataclass(frozen=True)
class Geometry:
    """Grid sizes and vocabularies, coarsest level first.

    Attributes:
        grids: (height, width) of each level's grid.
        vocabulary: number of codes K of each level; its codes are 0 .. K-1.
    """

    grids: tuple[tuple[int, int], ...]
    vocabulary: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.grids or len(self.grids) != len(self.vocabulary):
            raise CodesError(
                f"a geometry needs one vocabulary per grid, found {len(self.grids)} grids "
                f"and {len(self.vocabulary)} vocabularies"
            )
        if any(h < 1 or w < 1 for h, w in self.grids) or any(k < 1 for k in self.vocabulary):
            raise CodesError(f"grid sizes and vocabularies are at least 1, found {self}")

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.grids)

    @property
    def positions(self) -> tuple[int, ...]:
        """Number of grid positions of each level."""
        return tuple(h * w for h, w in self.grids)

    @property
    def bits(self) -> float:
        """Bits of one image's codes when each is stored with a fixed length of log2 K bits."""
        return sum(n * math.log2(k) for n, k in zip(self.positions, self.vocabulary, strict=True))

    def check(self, codes: Codes) -> None:
        """Raise `CodesError` unless `codes` has these grids and only codes inside the vocabularies."""
        found = tuple((int(level.shape[1]), int(level.shape[2])) for level in codes.levels)
        if found != self.grids:
            raise CodesError(f"expected grids {self.grids} (coarsest first), found {found}")
        for index, (level, size) in enumerate(zip(codes.levels, self.vocabulary, strict=True)):
            if level.numel() and (int(level.min()) < 0 or int(level.max()) >= size):
                raise CodesError(
                    f"level {index}: expected codes in 0..{size - 1}, "
                    f"found {int(level.min())}..{int(level.max())}"
                )

    def to_json(self) -> dict[str, list[list[int]] | list[int]]:
        """A JSON-ready description; `from_json` is its inverse."""
        return {"grids": [list(grid) for grid in self.grids], "vocabulary": list(self.vocabulary)}

    @classmethod
    def from_json(cls, value: dict[str, list[list[int]] | list[int]]) -> Geometry:
        """The geometry that `to_json` described."""
        grids = tuple((int(grid[0]), int(grid[1])) for grid in value["grids"])  # type: ignore[index]
        return cls(grids, tuple(int(k) for k in value["vocabulary"]))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Codes:
    """The codes of a batch of images, coarsest level first.

    Attributes:
        levels: one integer tensor [B, H, W] per level.
    """

    levels: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if not self.levels:
            raise CodesError("codes need at least one level")
        for index, level in enumerate(self.levels):
            if level.ndim != 3 or level.is_floating_point() or level.is_complex():
                raise CodesError(
                    f"level {index}: expected an integer tensor [B, H, W], "
                    f"found {level.dtype} {tuple(level.shape)}"
                )
        if len({level.shape[0] for level in self.levels}) != 1:
            raise CodesError(f"levels differ in batch size: {[level.shape[0] for level in self.levels]}")

    def __len__(self) -> int:
        return int(self.levels[0].shape[0])

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> Codes:
        """The codes of some of the images; `index` is a slice or a list of positions in the batch."""
        return Codes(tuple(level[index] for level in self.levels))

    def to(self, device: torch.device | str) -> Codes:
        """The same codes on `device`."""
        return Codes(tuple(level.to(device) for level in self.levels))

    @classmethod
    def cat(cls, parts: Sequence[Codes]) -> Codes:
        """Join batches, in order."""
        return cls(tuple(torch.cat(levels) for levels in zip(*(part.levels for part in parts), strict=True)))


def prime_factors(factor: int) -> list[int]:
    """`factor` as a product of primes, smallest first; 1 gives the empty list."""
    primes, divisor = [], 2
    while factor > 1:
        while factor % divisor == 0:
            primes.append(divisor)
            factor //= divisor
        divisor += 1
    return primes
