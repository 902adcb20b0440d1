"""Layers that work at each position by itself: norm, 1x1 convolution, pointwise residual block.

Shapes: B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqvae2.modes import AUTOCAST
from vqvae2.noise import dropout

EPSILON = 1e-6
"""Added to the mean square in every norm."""


class ChannelNorm(nn.Module):
    """Root-mean-square norm over channels at each position (our decision: deep stacks train much faster).

    The mean is taken in float32 or wider. The result has the input's type, also under autocast, so that a residual stream in
    bfloat16 stays one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> [B, C, ...]."""
        gain = self.gain.to(x.dtype)
        if x.ndim == 2:
            return _rms_norm(x, gain)
        if is_channels_last(x):
            return _rms_norm(x.permute(0, 2, 3, 1), gain).permute(0, 3, 1, 2)
        exact = x if x.dtype == torch.float64 else x.float()
        scale = torch.rsqrt(exact.square().mean(1, keepdim=True) + EPSILON).to(x.dtype)
        return x * scale * gain.view(1, -1, *([1] * (x.ndim - 2)))


def _rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    """Over the last axis, in the type of `x`."""
    if x.device.type == "cuda" and torch.is_autocast_enabled("cuda"):  # which may ask for float32
        with torch.autocast("cuda", enabled=False):
            return functional.rms_norm(x, x.shape[-1:], gain, EPSILON)
    return functional.rms_norm(x, x.shape[-1:], gain, EPSILON)


def stream_type(weight: Tensor) -> torch.dtype:
    """Type of the residual streams that start from `weight`: that of autocast where it is on, so that none is cast later."""
    device = weight.device.type
    if device in AUTOCAST and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a grid [B, C, H, W] are contiguous in memory."""
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [B, C, ...] times weight [O, C] at each position: [B, O, ...]."""
    if x.ndim == 2:
        return functional.linear(x, weight, bias)
    if x.ndim == 3:
        y = torch.matmul(weight, x)
        return y if bias is None else y + bias[:, None]
    if is_channels_last(x):
        return functional.linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
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


class Dropout(nn.Module):
    """`noise.dropout` as a layer; `rate` is the share of values that become 0."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[b, ...] -> [b, ...]."""
        return dropout(x, self.rate, self.training)


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
        y = dropout(self.activation(self.inner(self.norm(x))), self.dropout, self.training)
        result: Tensor = self.outer(y)
        return x + result
