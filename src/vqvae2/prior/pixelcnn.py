"""Gated PixelCNN with self-attention: the paper's kind of level prior.

    context --1x1--> every gate
    codes --embedding, shifted--> gated layers (+ attention) --> output stack --> logits

Source: paper section 3.2. Shapes: B batch, H W grid, N = H x W, K codes, C hidden units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqvae2.codes import Geometry
from vqvae2.config.models import LevelPriorConfig
from vqvae2.prior.attention import CausalAttention
from vqvae2.prior.gated import GatedLayer
from vqvae2.prior.layers import PointwiseBlock
from vqvae2.prior.level import LevelPrior, output_stack


@dataclass(frozen=True)
class Cache:
    """What later positions need of the earlier ones; an argument and a return value of `PixelCNN.step`.

    Attributes:
        context: [B, C, H or 1, W or 1], or None.
        row: [B, C, W], embeddings of the current row's codes so far.
        vertical: per gated layer, the rows above [B, C, above, W].
        features: per gated layer, what the vertical stream passes to the horizontal gates of the current row [W, B, 2R].
        horizontal: per gated layer, the positions to the left [B, C, left].
        attention: per attention layer, keys and values.
    """

    context: Tensor | None
    row: Tensor
    vertical: tuple[Tensor, ...]
    features: tuple[Tensor, ...]
    horizontal: tuple[Tensor, ...]
    attention: tuple[Tensor, ...]


class PixelCNN(LevelPrior):
    """A level prior of two convolutional streams; see `LevelPrior`."""

    def __init__(self, config: LevelPriorConfig, geometry: Geometry, level: int, classes: int) -> None:
        super().__init__(config, geometry, level, classes)
        width = config.hidden
        context = width if classes or level else 0
        self.layers = nn.ModuleList(
            GatedLayer(width, config.residual, config.kernel, context, config.dropout)
            for _ in range(config.layers)
        )
        every = config.attention_every
        self.attention_after = tuple(i for i in range(config.layers) if every and (i + 1) % every == 0)
        self.attentions = nn.ModuleList(
            CausalAttention(width, config.heads, config.dropout) for _ in self.attention_after
        )
        self.output = output_stack(
            config,
            *(PointwiseBlock(width, config.residual, config.dropout) for _ in range(config.output_layers)),
        )

    def forward(
        self, codes: Tensor, coarser: tuple[Tensor, ...] = (), labels: Tensor | None = None
    ) -> Tensor:
        """As `LevelPrior.forward`."""
        context = self.context(coarser, labels)
        e = self._embedded(codes)
        v = functional.pad(e, (0, 0, 1, 0))[:, :, :-1] + self._positional(e.dtype)
        h = self._before(e)
        attentions = iter(self.attentions)
        for index, layer in enumerate(self.layers):
            v, h = self._run(layer, v, h, context)
            if index in self.attention_after:
                h = self._run(next(attentions), h)
        return self._logits(h)

    def start(self, batch: int, context: Tensor | None) -> Cache:
        """As `LevelPrior.start`."""
        row = self.place_rows.new_zeros(batch, self.config.hidden, self.width)
        return Cache(
            context=context,
            row=row,
            vertical=tuple(layer.vertical.start(row) for layer in self.gated_layers()),
            features=(),
            horizontal=tuple(layer.horizontal.start(row[:, :, 0]) for layer in self.gated_layers()),
            attention=tuple(
                attention.start(row[:, :, 0], self.positions) for attention in self.attention_layers()
            ),
        )

    def step(self, cache: Cache, position: int, previous: Tensor | None) -> tuple[Tensor, Cache]:
        """As `LevelPrior.step`; the row, keys and values are written in place."""
        r, c = divmod(position, self.width)
        if previous is not None:
            cache.row[:, :, (c - 1) % self.width] = self.embedding(previous)
        if c == 0:
            cache = self._start_row(cache, r)
        positional = self.place_rows[:, r, 0] + self.place_columns[:, 0, c]
        h = (
            cache.row[:, :, c - 1] + positional
        )  # at column 0 the last code of the row above; zero at the first position
        horizontal, attention = list(cache.horizontal), list(cache.attention)
        attentions = enumerate(self.attention_layers())
        for index, layer in enumerate(self.gated_layers()):
            h, horizontal[index] = layer.step(h, cache.features[index][c], horizontal[index])
            if index in self.attention_after:
                order, layer_attention = next(attentions)
                h, attention[order] = layer_attention.step(h, attention[order], position)
        return self._logits(h), replace(cache, horizontal=tuple(horizontal), attention=tuple(attention))

    def gated_layers(self) -> list[GatedLayer]:
        """The gated layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, GatedLayer)]

    def attention_layers(self) -> list[CausalAttention]:
        """The attention layers; the n-th follows gated layer `attention_after[n]`."""
        return [layer for layer in self.attentions if isinstance(layer, CausalAttention)]

    def _start_row(self, cache: Cache, r: int) -> Cache:
        """Run the vertical stream over row `r`, whose input is the finished row above."""
        context = cache.context
        if context is not None:
            context = context[:, :, r if context.shape[2] > 1 else 0]
        v = cache.row + self.place_rows[:, r] + self.place_columns[:, 0]
        vertical, features = list(cache.vertical), []
        for index, layer in enumerate(self.gated_layers()):
            v, row_features, vertical[index] = layer.step_row(v, vertical[index], context)
            features.append(row_features.permute(2, 0, 1).contiguous())  # so that each column is contiguous
        horizontal = tuple(torch.zeros_like(left) for left in cache.horizontal)
        return replace(cache, vertical=tuple(vertical), features=tuple(features), horizontal=horizontal)
