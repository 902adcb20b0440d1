"""Finite scalar quantization: a fixed lattice instead of a learned codebook.

    z [..., D] --linear--> [..., d] --bound, round--> lattice point --linear--> q [..., D]

Source: Mentzer, Minnen, Agustsson, Tschannen 2023 (arXiv 2309.15505), section 3. There is no codebook to collapse,
no commitment loss and nothing to revive: the codes are the points of a lattice of L_1 x ... x L_d, and the gradient
passes the rounding unchanged. The two linear maps to and from the lattice belong to the quantiser (our decision), so
that it can replace a `VectorQuantizer` with the same K and D.

Shapes: N vectors, D code dimension, d lattice dimension, K codes.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqvae2.autoencoder.base import Quantized, Quantizer, check_vectors, without_autocast
from vqvae2.config.models import AutoencoderConfig
from vqvae2.tf32 import without_tf32

_MOST = 8  # levels of a dimension; the paper recommends at least 5 (section 4.1)
_EPSILON = 1e-3  # bounded values extend this share beyond the outermost points, as in the paper's listing


def lattice(size: int) -> tuple[int, ...]:
    """The sides of a lattice of exactly `size` points: as few dimensions of 2 to 8 levels as possible, as even as possible.

    512 gives 8 x 8 x 8, 1000 gives 8 x 5 x 5 x 5, 1024 gives 8 x 8 x 4 x 4.

    Raises:
        ValueError: `size` is below 2 or has a prime factor above 8.
    """

    def splits(rest: int, most: int) -> list[tuple[int, ...]]:
        if rest == 1:
            return [()]
        sides = (side for side in range(min(most, rest), 1, -1) if rest % side == 0)
        return [(side, *others) for side in sides for others in splits(rest // side, side)]

    possible = splits(size, _MOST) if size >= 2 else []
    if not possible:
        raise ValueError(f"expected a number of codes that is a product of factors of 2 to 8, found {size}")
    return min(possible, key=lambda sides: (len(sides), max(sides) - min(sides)))


def _exactly(linear: nn.Linear, x: Tensor) -> Tensor:
    """A linear map in float32 without TF32, or in float64 if its weights are; half the digits would move points of the lattice.

    torch.compile cannot trace the switches of TF32, so a compiled training computes as they are set.
    """
    dtype = torch.promote_types(linear.weight.dtype, torch.float32)
    with nullcontext() if torch.compiler.is_compiling() else without_tf32(x.device):
        return functional.linear(x.to(dtype), linear.weight.to(dtype), linear.bias.to(dtype))


class FiniteScalarQuantizer(Quantizer):
    """Each vector is mapped to a few bounded numbers, and each of these is rounded.

    A vector that is not finite has the code of the lattice's middle and is not counted; its result is not finite.

    Args:
        num_embeddings: K, a product of factors of 2 to 8; see `lattice`.
        embedding_dim: D.
        decay: of the running frequencies of the codes, which only `mean_code` needs.

    Raises:
        ValueError: K has a prime factor above 8, or a decay out of range.
    """

    sides: Tensor
    basis: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, decay: float = 0.99) -> None:
        sides = lattice(num_embeddings)  # raises
        super().__init__(num_embeddings, embedding_dim, decay)
        self.inward = nn.Linear(embedding_dim, len(sides))
        self.outward = nn.Linear(len(sides), embedding_dim)

    def first_values(self) -> dict[str, Tensor]:
        """As the base class; also the lattice's sides, and the products by which its points are numbered."""
        sides = lattice(self.num_embeddings)
        basis = [math.prod(sides[:i]) for i in range(len(sides))]
        return {**super().first_values(), "sides": torch.tensor(sides), "basis": torch.tensor(basis)}

    @classmethod
    def from_config(cls, config: AutoencoderConfig, size: int) -> FiniteScalarQuantizer:
        """The quantiser of a level with `size` codes, as the configuration of the autoencoder describes it."""
        return cls(size, config.code_dim, config.decay)

    def forward(self, z: Tensor) -> Quantized:
        """Quantise the last axis of `z` [..., D]; the loss is 0.

        Raises:
            ValueError: the last axis is not D, or the numbers are no floating-point ones.
        """
        check_vectors(z, self.embedding_dim)
        with without_autocast(z.device):
            inner = _exactly(self.inward, z)
            finite = inner.detach().isfinite().all(-1)
            bounded = self._bound(torch.where(finite[..., None], inner, torch.nan))
            steps = bounded + (bounded.round() - bounded).detach()
            half = self.sides // 2
            quantized = _exactly(self.outward, steps / half)
            points = torch.where(finite[..., None], steps.detach().round(), 0).long()
            indices = ((points + half) * self.basis).sum(-1)
        return self.result(quantized.to(z.dtype), quantized.new_zeros(()), indices, finite)

    def lookup(self, indices: Tensor) -> Tensor:
        """The codes [..., D] of integer `indices` [...]."""
        half = self.sides // 2
        points = (indices.long()[..., None] // self.basis) % self.sides - half
        return _exactly(self.outward, points / half).to(self.outward.weight.dtype)

    def _bound(self, x: Tensor) -> Tensor:
        """[..., d] to where rounding gives -(L // 2) ... (L - 1) // 2 in each dimension.

        The paper also shifts x so that 0 falls on a point of an even side; at two levels that shift puts every
        first input on one point, so it is left out (our decision).
        """
        half = (self.sides - 1) * (1 + _EPSILON) / 2
        offset = torch.where(self.sides % 2 == 0, 0.5, 0.0)
        return x.tanh() * half - offset
