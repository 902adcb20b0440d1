"""The operations of which a static step consists, in plain PyTorch: on any device, in any precision.

Positions are given as (row, column, width): `row` is a tensor [1], so that a recorded graph works for every row, the others
are numbers. Shapes: B batch, C channels, R inner channels, K codes, N positions, D = C / heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vqvae2.prior.chooser import Chooser
from vqvae2.prior.gated import gate
from vqvae2.prior.layers import EPSILON


@dataclass(frozen=True)
class StepSpec:
    """What decides the shapes and types of a prepared prior, and so whether it can be used again.

    Attributes:
        batch: B, counted twice with guidance.
        context: shape of the context [B, C, H or 1, W or 1], or None.
        weights: type of the weights and caches; products add up in float32 or wider.
        stream: type of the residual streams and logits.
        device: of everything.
    """

    batch: int
    context: tuple[int, ...] | None
    weights: torch.dtype
    stream: torch.dtype
    device: torch.device


class StepOps:
    """Products add up in float32 or wider. The residual stream h [B, C] has its own type, wider than the weights' or the same."""

    def norm(self, x: Tensor, out: Tensor) -> None:
        """Root-mean-square norm over the last axis without gain, written to `out` (of the weights' type)."""
        out.copy_(functional.rms_norm(x, x.shape[-1:], eps=EPSILON))

    def norm_gate(self, h: Tensor, weight: Tensor, before: Tensor, normed: Tensor) -> Tensor:
        """The gate of a layer at one position.

        Args:
            h: [B, C].
            weight: [2R, C], gain included.
            before: [B, 2R], everything else that enters the gate.
            normed: [B, C], where the normed h is kept for the positions to the right.

        Returns:
            [B, R].
        """
        self.norm(h, normed)
        return self.gate(torch.addmm(before, normed, weight.T))

    def gate(self, x: Tensor) -> Tensor:
        """tanh(a) x sigmoid(b) of the two halves of [M, 2R]: [M, R]."""
        return gate(x)

    def linear_add(self, x: Tensor, weight: Tensor, bias: Tensor, h: Tensor) -> Tensor:
        """h + x weight^T + bias: [M, C]; `h` may be overwritten."""
        if x.dtype == h.dtype:
            return torch.addmm(h + bias, x, weight.T)
        return h + bias + functional.linear(x, weight)

    def norm_linear(self, h: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """activation(norm(h) weight^T + bias) in the weights' type: [B, O]."""
        normed = functional.rms_norm(h, h.shape[-1:], eps=EPSILON).to(weight.dtype)
        y = functional.linear(normed, weight, None if bias is None else bias.to(weight.dtype))
        return {"": _same, "relu": torch.relu, "gelu": functional.gelu}[activation](y)

    def attend(self, qkv: Tensor, cache: Tensor, row: Tensor, column: int, width: int) -> Tensor:
        """Attention of one position to itself and all before it.

        Args:
            qkv: [B, 3C]; q is already scaled.
            cache: [2, B, heads, N, D], keys and values, written in place.

        Returns:
            [B, C].
        """
        _, batch, heads, positions, depth = cache.shape
        position = row * width + column
        q, k, v = qkv.view(batch, 3, heads, depth).unbind(1)
        cache[0].index_copy_(2, position, k[:, :, None])
        cache[1].index_copy_(2, position, v[:, :, None])
        scores = (cache[0] @ q[..., None])[..., 0]  # [B, heads, N]
        later = torch.arange(positions, device=row.device) > position
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        return (weights[:, :, None] @ cache[1]).view(batch, -1)

    def embed(
        self, codes: Tensor, table: Tensor, rows: Tensor, columns: Tensor, row: Tensor, column: int
    ) -> Tensor:
        """The input of a position: the embedding of the code before it and the position's own, [B, C].

        Args:
            codes: [(H + 1) W, B], position p at W + p.
            table: [K + 1, C].
            rows, columns: positional embeddings [H, C], [W, C].
        """
        width = len(columns)
        previous = codes.index_select(0, row * width + (width + column - 1))[0]
        return table.index_select(0, previous) + (rows.index_select(0, row) + columns[column])

    def choose(
        self, chooser: Chooser, logits: Tensor, codes: Tensor, row: Tensor, column: int, width: int
    ) -> None:
        """Choose the codes of a position and write them to `codes` [(H + 1) W, B]."""
        position = row * width + column
        codes.index_copy_(0, position + width, chooser.static(position, logits)[None])


def _same(x: Tensor) -> Tensor:
    return x
