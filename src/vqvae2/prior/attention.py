"""Causal multi-head self-attention over the raster order, with `forward` (the whole grid) and `step` (the next position).

Shapes: B batch, C channels, H W grid, N = H x W, D = C / heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function

from vqvae2.noise import dropout as dropped
from vqvae2.prior.layers import ChannelNorm, Pointwise
from vqvae2.prior.recompute import recomputed
from vqvae2.processes import world

_PART = 128  # queries whose scores are held at once where no fused kernel drops them out


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Causal attention, inclusive of the own position, without ever N x N scores.

    The fused kernel of CPUs has no dropout, and that of MPS no backward pass either. Where it cannot be used, the queries are taken in parts, each
    with the keys up to its last query, and the backward pass computes the scores of a part again instead of keeping them.

    Args:
        q, k, v: [B, heads, N, D], D contiguous.
        dropout: on the attention weights.

    Returns:
        [B, heads, N, D].
    """
    if has_torch_function(
        (q, k, v)
    ):  # as torch's own functions do, so that a mode that counts operations can replace this one
        result: Tensor = handle_torch_function(attend, (q, k, v), q, k, v, dropout)
        return result
    n = q.shape[2]
    if not in_parts(q, dropout):
        if dropout and world()[1] > 1 and q.device.type == "cpu":
            return _attend_last(q, k, v, dropout)
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
    parts = []
    for start in range(0, n, _PART):
        end = min(start + _PART, n)
        inputs = q[:, :, start:end], k[:, :, :end], v[:, :, :end], dropout
        parts.append(recomputed(_attend_last, *inputs))
    return torch.cat(parts, 2)


def in_parts(q: Tensor, dropout: float) -> bool:
    """Whether `attend` takes these queries in parts."""
    backward = q.device.type == "mps" and torch.is_grad_enabled() and q.requires_grad
    lacking = q.device.type in ("cpu", "mps") and (bool(dropout) or backward)
    return lacking and q.shape[2] > 2 * _PART


def _attend_last(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """`attend` of the last queries [B, heads, M, D] among N keys."""
    m, n = q.shape[2], k.shape[2]
    seen = torch.ones(m, n, dtype=torch.bool, device=q.device).tril(n - m)
    if world()[1] == 1:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)
    scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)  # the same, with the noise of the global batch
    return dropped(scores.masked_fill(~seen, -torch.inf).softmax(3), dropout, True) @ v


class CausalAttention(nn.Module):
    """Multi-head self-attention over the raster order, inclusive of the own position; residual.

    Scores of all pairs of positions are never materialised (`attend`).

    Args:
        channels: C, divisible by `heads`.
        dropout: on the attention weights and after the block.
    """

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = ChannelNorm(channels)
        self.qkv = Pointwise(channels, 3 * channels, bias=False)
        self.out = Pointwise(channels, channels, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        qkv = qkv.transpose(3, 4)
        if qkv.stride(4) != 1:  # which no fused kernel takes: torch would compute the scores one by one
            qkv = qkv.contiguous()
        rate = self.dropout if self.training else 0.0
        y = attend(qkv[:, 0], qkv[:, 1], qkv[:, 2], rate)
        y = y.transpose(2, 3).reshape(batch, channels, height, width)
        return x + dropped(self.out(y), self.dropout, self.training)

    def start(self, x: Tensor, positions: int) -> Tensor:
        """An empty cache of keys and values [2, B, heads, N, C / heads] for positions like `x` [B, C]."""
        return x.new_zeros(2, x.shape[0], self.heads, positions, x.shape[1] // self.heads)

    def step(self, x: Tensor, cache: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Position `position` (0 .. N - 1): [B, C] and the cache, written in place -> [B, C] and the cache."""
        batch, channels = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads).unbind(1)
        cache[0, :, :, position], cache[1, :, :, position] = k, v
        keys, values = cache[0, :, :, : position + 1], cache[1, :, :, : position + 1]
        y = functional.scaled_dot_product_attention(q[:, :, None], keys, values)
        return x + self.out(y.reshape(x.shape)), cache
