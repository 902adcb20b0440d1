"""Causal layers, each with `forward` (the whole grid) and `step` (the next part, from an explicit cache).

Two streams, as in Gated PixelCNN (arXiv 1606.05328): the vertical one sees the rows above, the horizontal one sees
the codes to its left in the same row and, through the vertical stream, the rows above. Their inputs are shifted once, at the bottom of
the network (down by a row; on by one position), so every later layer may include its own position.
Because the vertical stream at row r depends on finished rows only, its `step` is a whole row.

Caches are arguments and return values. Shapes: B batch, C channels, H W grid, N = H x W, R inner channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqvae2.fused import triton_works
from vqvae2.noise import dropout
from vqvae2.prior.layers import ChannelNorm, Pointwise, is_channels_last


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


def gate(x: Tensor) -> Tensor:
    """tanh(a) x sigmoid(b) of the two halves of the channels [B, 2R, ...] -> [B, R, ...]."""
    a, b = x.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


def gate_of_sum(x: Tensor, y: Tensor | None) -> Tensor:
    """`gate` of x + y, or of x alone, for grids [B, 2R, H, W]; one fused kernel on a GPU where Triton works."""
    fusible = x.is_cuda and x.dtype != torch.float64 and is_channels_last(x)
    if not fusible or torch.compiler.is_compiling() or not triton_works(x.device):
        return gate(_plus(x, y))
    if y is not None and not (y.shape == x.shape and y.dtype == x.dtype and is_channels_last(y)):
        x, y = (x + y).contiguous(memory_format=torch.channels_last), None
    from vqvae2.prior.gate_triton import fused_gate

    return fused_gate(x, y)


class GatedLayer(nn.Module):
    """One gated layer of both streams, with residual connections and a conditioning input to each gate.

        v' = v + W gate(vertical(norm v) + context_v)
        h' = h + W gate(horizontal(norm h) + link(v') + context_h)

    Source: Gated PixelCNN figure 2 and equations 2 and 3. Our decisions: the norms, the link taken from the vertical
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
        v = v + self.out_v(self._drop(gate_of_sum(self.vertical(self.norm_v(v)), for_v)))
        from_above = _plus(self.link(v), for_h)
        h = h + self.out_h(self._drop(gate_of_sum(self.horizontal(self.norm_h(h)), from_above)))
        return v, h

    def step_row(self, v: Tensor, cache: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The next row of the vertical stream.

        Args:
            v: [B, C, W].
            cache: of `vertical`.
            context: [B, E, W or 1].

        Returns:
            v' [B, C, W]; the features that the row passes to the horizontal gates [B, 2R, W]; the new cache.
        """
        for_v, for_h = self._contexts(context)
        x, cache = self.vertical.step(self.norm_v(v), cache)
        v = v + self.out_v(gate(_plus(x, for_v)))
        return v, _plus(self.link(v), for_h), cache

    def step(self, h: Tensor, features: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """The next position: h [B, C], the vertical stream's features at this column [B, 2R], cache of `horizontal`."""
        x, cache = self.horizontal.step(self.norm_h(h), cache)
        return h + self.out_h(gate(x + features)), cache

    def _contexts(self, context: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if self.context is None or context is None:
            return None, None
        for_v, for_h = self.context(context).chunk(2, 1)
        return for_v, for_h

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


def _plus(x: Tensor, more: Tensor | None) -> Tensor:
    return x if more is None else x + more
