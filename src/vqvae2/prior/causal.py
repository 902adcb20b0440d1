"""Causal layers, each with `forward` (the whole grid) and `step` (the next part, from an explicit cache).

Two streams, as in Gated PixelCNN (arXiv 1606.05328): the vertical one sees the rows above, the horizontal one the
codes before it and, through the vertical one, the rows above. Their inputs are shifted once, at the bottom of
the network (down by a row; on by one position), so every later layer may include its own position.
Because the vertical stream at row r depends on finished rows only, its `step` is a whole row.

Caches are arguments and return values. Shapes: B batch, C channels, H W grid, N = H x W, R inner channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils.checkpoint import checkpoint

_PART = 128  # queries whose scores are held at once where no fused kernel drops them out


class ChannelNorm(nn.Module):
    """Root-mean-square norm over channels at each position (our decision: deep stacks train much faster)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> [B, C, ...]."""
        exact = x if x.dtype == torch.float64 else x.float()
        scale = torch.rsqrt(exact.square().mean(1, keepdim=True) + 1e-6).to(x.dtype)
        return x * scale * self.gain.view(1, -1, *([1] * (x.ndim - 2)))


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [B, C, ...] times weight [O, C] at each position: [B, O, ...]."""
    if x.ndim == 2:
        return functional.linear(x, weight, bias)
    if x.ndim == 3:
        y = torch.matmul(weight, x)
        return y if bias is None else y + bias[:, None]
    return functional.conv2d(x, weight[:, :, None, None], bias)


class Pointwise(nn.Module):
    """A 1x1 convolution that takes grids [B, C, H, W], rows [B, C, W] and positions [B, C] alike."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, zero: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias)
        if zero:
            nn.init.zeros_(self.linear.weight)
            if bias:
                nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> [B, O, ...]."""
        return pointwise(x, self.linear.weight, self.linear.bias)


class VerticalConv(nn.Module):
    """Convolution over the current and the (kernel - 1) / 2 rows above it, `kernel` columns wide.

    Args:
        inputs, outputs: channels.
        kernel: odd width; the height is (kernel + 1) / 2.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.above, self.side = kernel // 2, kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, (self.above + 1, kernel))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, O, H, W]."""
        result: Tensor = self.conv(functional.pad(x, (self.side, self.side, self.above, 0)))
        return result

    def start(self, x: Tensor) -> Tensor:
        """An empty cache [B, C, above, W] for rows like `x` [B, C, W]."""
        return x.new_zeros(x.shape[0], x.shape[1], self.above, x.shape[2])

    def step(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """The next row: [B, C, W] and the rows above -> [B, O, W] and the new cache.

        One large product: on a CPU 1.2 to 2 times as fast as a convolution over so few rows.
        """
        rows = torch.cat([cache, x[:, :, None]], 2)
        wide = functional.pad(rows, (self.side, self.side)).unfold(
            3, 2 * self.side + 1, 1
        )  # [B, C, rows, W, kernel]
        weight = self.conv.weight.flatten(1)
        taps = wide.permute(1, 2, 4, 0, 3).reshape(weight.shape[1], x.shape[0] * x.shape[2])
        assert self.conv.bias is not None
        result = torch.addmm(self.conv.bias[:, None], weight, taps)
        return result.view(len(weight), x.shape[0], x.shape[2]).transpose(0, 1), rows[:, :, 1:]


class HorizontalConv(nn.Module):
    """Convolution over the current position and the (kernel - 1) / 2 to its left."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.left = kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, (1, self.left + 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, O, H, W]."""
        result: Tensor = self.conv(functional.pad(x, (self.left, 0)))
        return result

    def start(self, x: Tensor) -> Tensor:
        """An empty cache [B, C, left] for positions like `x` [B, C]; a new row starts with it."""
        return x.new_zeros(*x.shape, self.left)

    def step(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """The next position of the row: [B, C] and those to its left -> [B, O] and the new cache."""
        taps = torch.cat([cache, x[:, :, None]], 2)
        result = functional.linear(taps.flatten(1), self.conv.weight.flatten(1), self.conv.bias)
        return result, taps[:, :, 1:]


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Causal attention, inclusive of the own position, without ever N x N scores.

    The fused kernel of CPUs has no dropout. With it, parts of the queries take turns there, each beside the keys up to its
    end, and the backward pass computes their scores anew.

    Args:
        q, k, v: [B, heads, N, D], D contiguous.
        dropout: on the attention weights.

    Returns:
        [B, heads, N, D].
    """
    if has_torch_function(
        (q, k, v)
    ):  # as of torch's own functions, so that what counts them may take another
        result: Tensor = handle_torch_function(attend, (q, k, v), q, k, v, dropout)
        return result
    n = q.shape[2]
    if not dropout or q.device.type != "cpu" or n <= 2 * _PART:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
    parts = []
    for start in range(0, n, _PART):
        end = min(start + _PART, n)
        given = q[:, :, start:end], k[:, :, :end], v[:, :, :end], dropout
        parts.append(checkpoint(_attend_last, *given, use_reentrant=False))
    return torch.cat(parts, 2)


def _attend_last(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """`attend` of the last queries [B, heads, M, D] among N keys."""
    m, n = q.shape[2], k.shape[2]
    seen = torch.ones(m, n, dtype=torch.bool, device=q.device).tril(n - m)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)


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
        return x + functional.dropout(self.out(y), self.dropout, self.training)

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


def gate(x: Tensor) -> Tensor:
    """tanh(a) x sigmoid(b) of the two halves of the channels [B, 2R, ...] -> [B, R, ...]."""
    a, b = x.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


class GatedLayer(nn.Module):
    """One gated layer of both streams, with residual connections and a conditioning input to each gate.

        v' = v + W gate(vertical(norm v) + context_v)
        h' = h + W gate(horizontal(norm h) + link(v') + context_h)

    Source: Gated PixelCNN figure 2 and eq. 2-3; spec 3.3. Ours: the norms, the link taken from the vertical
    stream after its update, and "residual units" R read as the width inside the gate.

    Args:
        channels: C, the residual streams ("hidden units").
        residual: R.
        kernel: odd filter size.
        context: channels of the context, 0 for none.
        dropout: before the projections back to the streams.
    """

    def __init__(self, channels: int, residual: int, kernel: int, context: int, dropout: float) -> None:
        super().__init__()
        self.residual, self.dropout = residual, dropout
        self.norm_v, self.norm_h = ChannelNorm(channels), ChannelNorm(channels)
        self.vertical = VerticalConv(channels, 2 * residual, kernel)
        self.horizontal = HorizontalConv(channels, 2 * residual, kernel)
        self.link = Pointwise(channels, 2 * residual, bias=False)
        self.context = Pointwise(context, 4 * residual, bias=False) if context else None
        self.out_v = Pointwise(residual, channels)
        self.out_h = Pointwise(residual, channels)

    def forward(self, v: Tensor, h: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Streams [B, C, H, W] each, context [B, E, H or 1, W or 1] -> both streams."""
        for_v, for_h = self._contexts(context)
        v = v + self.out_v(self._drop(gate(_plus(self.vertical(self.norm_v(v)), for_v))))
        given = _plus(self.link(v), for_h)
        h = h + self.out_h(self._drop(gate(self.horizontal(self.norm_h(h)) + given)))
        return v, h

    def step_row(self, v: Tensor, cache: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The next row of the vertical stream.

        Args:
            v: [B, C, W].
            cache: of `vertical`.
            context: [B, E, W or 1].

        Returns:
            v' [B, C, W]; what the row gives to the horizontal gates [B, 2R, W]; the new cache.
        """
        for_v, for_h = self._contexts(context)
        x, cache = self.vertical.step(self.norm_v(v), cache)
        v = v + self.out_v(gate(_plus(x, for_v)))
        return v, _plus(self.link(v), for_h), cache

    def step(self, h: Tensor, given: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """The next position: h [B, C], the row's gift at this column [B, 2R], cache of `horizontal`."""
        x, cache = self.horizontal.step(self.norm_h(h), cache)
        return h + self.out_h(gate(x + given)), cache

    def _contexts(self, context: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if self.context is None or context is None:
            return None, None
        for_v, for_h = self.context(context).chunk(2, 1)
        return for_v, for_h

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


def _plus(x: Tensor, more: Tensor | None) -> Tensor:
    return x if more is None else x + more


class PointwiseBlock(nn.Module):
    """x + W2 f(W1 norm(x)) at each position: a block of the output stack (paper section 3.2), or a transformer's MLP.

    Args:
        channels: C.
        residual: rows of W1.
        dropout: before W2.
        activation: f.
        zero: whether W2 starts at zero.
    """

    def __init__(
        self,
        channels: int,
        residual: int,
        dropout: float,
        activation: Callable[[Tensor], Tensor] = functional.relu,
        zero: bool = False,
    ) -> None:
        super().__init__()
        self.dropout, self.activation = dropout, activation
        self.norm = ChannelNorm(channels)
        self.inner, self.outer = Pointwise(channels, residual), Pointwise(residual, channels, zero=zero)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> [B, C, ...]; one position at a time is the same function."""
        y = functional.dropout(self.activation(self.inner(self.norm(x))), self.dropout, self.training)
        result: Tensor = self.outer(y)
        return x + result
