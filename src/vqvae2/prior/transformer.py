"""A plain causal transformer with a cache of keys and values: the other kind of level prior.

    code before + positional embedding + context --> blocks of attention and MLP, each pre-normed and residual --> output stack --> logits

Our decision: the paper has the PixelCNN only. Shapes: B batch, H W grid, N = H x W, K codes, C hidden units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqvae2.codes import Geometry
from vqvae2.config.models import LevelPriorConfig
from vqvae2.prior.attention import CausalAttention
from vqvae2.prior.layers import PointwiseBlock
from vqvae2.prior.level import LevelPrior, output_stack


@dataclass(frozen=True)
class Cache:
    """What later positions need of the earlier ones; an argument and a return value of `Transformer.step`.

    Attributes:
        context: [B, C, H or 1, W or 1], or None.
        attention: per block, keys and values of all positions [2, B, heads, N, C / heads], zero until they are known.
    """

    context: Tensor | None
    attention: tuple[Tensor, ...]


class TransformerBlock(nn.Module):
    """Causal self-attention, then an MLP at each position; both residual, and nothing but residual at first.

    Args:
        channels: C, divisible by `heads`.
        residual: width of the MLP.
        heads: attention heads.
        dropout: on the attention weights, after the attention and inside the MLP.
    """

    def __init__(self, channels: int, residual: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = CausalAttention(channels, heads, dropout)
        self.mlp = PointwiseBlock(channels, residual, dropout, functional.gelu, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        result: Tensor = self.mlp(self.attention(x))
        return result

    def step(self, x: Tensor, cache: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """As `CausalAttention.step`."""
        x, cache = self.attention.step(x, cache, position)
        return self.mlp(x), cache


class Transformer(LevelPrior):
    """A level prior of attention alone; see `LevelPrior`."""

    def __init__(self, config: LevelPriorConfig, geometry: Geometry, level: int, classes: int) -> None:
        super().__init__(config, geometry, level, classes)
        self.layers = nn.ModuleList(
            TransformerBlock(config.hidden, config.residual, config.heads, config.dropout)
            for _ in range(config.layers)
        )
        self.output = output_stack(config)

    def forward(
        self, codes: Tensor, coarser: tuple[Tensor, ...] = (), labels: Tensor | None = None
    ) -> Tensor:
        """As `LevelPrior.forward`."""
        context = self.context(coarser, labels)
        h = self._before(self._embedded(codes))
        if context is not None:
            h = h + context.to(h.dtype)
        h = h.contiguous(memory_format=torch.channels_last)  # as attention reads it
        for layer in self.layers:
            h = self._run(layer, h)
        return self._logits(h)

    def start(self, batch: int, context: Tensor | None) -> Cache:
        """As `LevelPrior.start`."""
        x = self.place_rows.new_zeros(batch, self.config.hidden)
        return Cache(context, tuple(layer.attention.start(x, self.positions) for layer in self.blocks()))

    def step(self, cache: Cache, position: int, previous: Tensor | None) -> tuple[Tensor, Cache]:
        """As `LevelPrior.step`; keys and values are written in place."""
        r, c = divmod(position, self.width)
        h = self.place_rows[:, r, 0] + self.place_columns[:, 0, c]
        h = h.expand(cache.attention[0].shape[1], -1) if previous is None else self.embedding(previous) + h
        if cache.context is not None:
            _, _, height, width = cache.context.shape
            h = h + cache.context[:, :, r % height, c % width]
        attention = list(cache.attention)
        for index, layer in enumerate(self.blocks()):
            h, attention[index] = layer.step(h, attention[index], position)
        return self._logits(h), Cache(cache.context, tuple(attention))

    def blocks(self) -> list[TransformerBlock]:
        """The blocks, first to last."""
        return [layer for layer in self.layers if isinstance(layer, TransformerBlock)]
