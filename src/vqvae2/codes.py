"""`Codes` and `Geometry`: the data that the stages exchange.

    images --autoencoder.encode--> Codes --prior--> Codes --autoencoder.decode--> images

An image becomes one grid of integers per level, coarsest level first. The stages share these two types and nothing else.

Shapes: B batch, H W grid, K codes in a codebook.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import index

import torch
from torch import Tensor

from vqvae2.errors import UserError

_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
_INTEGERS = (*_SIGNED, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


class CodesError(UserError):
    """Codes that do not fit the geometry with which they are used, or a geometry that cannot exist."""


@dataclass(frozen=True)
class Geometry:
    """Grid sizes and numbers of codes, coarsest level first.

    Attributes:
        grids: (height, width) of each level's grid; any sequences become tuples.
        vocabulary: number of codes K of each level, whose codes are 0 .. K-1.

    Raises:
        CodesError: no level, not one vocabulary per grid, or a size below 1.
    """

    grids: tuple[tuple[int, int], ...]
    vocabulary: tuple[int, ...]

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "grids", tuple((index(h), index(w)) for h, w in self.grids))
            object.__setattr__(self, "vocabulary", tuple(map(index, self.vocabulary)))
        except (TypeError, ValueError):
            raise CodesError(
                f"expected grids as pairs of integers and vocabularies as integers, found {self}"
            ) from None
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
        """Bits of one image's codes when each code takes log2 K bits, the fixed length without a prior."""
        return sum(n * math.log2(k) for n, k in zip(self.positions, self.vocabulary, strict=True))

    def check(self, codes: Codes) -> None:
        """Check that codes fit.

        Raises:
            CodesError: `codes` has other grids, or a code outside 0 .. K-1 of its level.
        """
        grids = tuple((int(level.shape[1]), int(level.shape[2])) for level in codes.levels)
        if grids != self.grids:
            raise CodesError(f"expected grids {self.grids} (coarsest first), found {grids}")
        for number, (level, size) in enumerate(zip(codes.levels, self.vocabulary, strict=True)):
            if level.numel() and (int(level.min()) < 0 or int(level.max()) >= size):
                raise CodesError(
                    f"level {number}: expected codes in 0..{size - 1}, "
                    f"found {int(level.min())}..{int(level.max())}"
                )

    def to_json(self) -> dict[str, list[list[int]] | list[int]]:
        """The geometry as a dictionary for JSON; `from_json` is the inverse."""
        return {"grids": [list(grid) for grid in self.grids], "vocabulary": list(self.vocabulary)}

    @classmethod
    def from_json(cls, value: dict[str, list[list[int]] | list[int]]) -> Geometry:
        """The geometry of a dictionary that `to_json` returned."""
        grids = tuple((int(grid[0]), int(grid[1])) for grid in value["grids"])  # type: ignore[index]
        return cls(grids, tuple(int(k) for k in value["vocabulary"]))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Codes:
    """The codes of a batch of images, coarsest level first.

    Codes are equal if they have the same grids and values, whatever the integer types and the devices; they have no hash.
    `len` is the number of images, and iteration gives the codes of each image as a batch of one. `torch.save` and
    `torch.load` keep them.

    Attributes:
        levels: one integer tensor [B, H, W] per level. Unsigned integers, in which files hold codes, become int64.

    Raises:
        CodesError: no level, a tensor of another type or shape, or levels with different batch sizes.
    """

    levels: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if isinstance(self.levels, Tensor) or not (levels := tuple(self.levels)):
            raise CodesError("expected a tuple of one tensor [B, H, W] per level, with at least one level")
        object.__setattr__(self, "levels", levels)
        for number, level in enumerate(self.levels):
            if not isinstance(level, Tensor):
                raise CodesError(
                    f"level {number}: expected an integer tensor [B, H, W], found {type(level).__name__}"
                )
            if level.ndim != 3 or level.dtype not in _INTEGERS:
                raise CodesError(
                    f"level {number}: expected an integer tensor [B, H, W], "
                    f"found {level.dtype} {tuple(level.shape)}"
                )
        if any(level.shape[0] != self.levels[0].shape[0] for level in self.levels):
            raise CodesError(f"levels differ in batch size: {[level.shape[0] for level in self.levels]}")
        if any(level.dtype not in _SIGNED for level in self.levels):
            # torch finds no minimum of unsigned integers, and that the largest ones equal -1
            object.__setattr__(self, "levels", tuple(level.long() for level in self.levels))

    def __len__(self) -> int:
        return int(self.levels[0].shape[0])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Codes) or len(self.levels) != len(other.levels):
            return False
        pairs = zip(self.levels, other.levels, strict=True)
        return all(torch.equal(own.long(), level.to(own.device).long()) for own, level in pairs)

    __hash__ = None  # type: ignore[assignment]  # the tensors may change

    def __iter__(self) -> Iterator[Codes]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, chosen: int | slice | Tensor | Sequence[int]) -> Codes:
        """The codes of some of the images.

        Args:
            chosen: a slice, a list or tensor of indices, a boolean tensor [B], or one index, which gives a batch of one.

        Raises:
            IndexError: no such image.
        """
        if hasattr(chosen, "__index__") and not getattr(chosen, "ndim", 0):
            chosen = [range(len(self))[index(chosen)]]
        return Codes(tuple(level[chosen] for level in self.levels))

    def to(self, device: torch.device | str) -> Codes:
        """A copy of the codes on `device`, or the same tensors if they are there already."""
        return Codes(tuple(level.to(device) for level in self.levels))

    @classmethod
    def cat(cls, batches: Sequence[Codes]) -> Codes:
        """Concatenate batches of codes, in order.

        Raises:
            CodesError: no batch, or other grids in one than in another.
        """
        grids = {tuple(tuple(level.shape[1:]) for level in codes.levels) for codes in batches}
        if len(grids) > 1:
            raise CodesError(f"expected batches of equal grids, found {sorted(map(list, grids))}")
        levels = zip(*(codes.levels for codes in batches), strict=True)
        return cls(tuple(torch.cat(level) for level in levels))


torch.serialization.add_safe_globals([Codes, Geometry])  # `torch.load` builds only what it knows
