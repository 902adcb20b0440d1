"""One level's distribution: gated PixelCNN with self-attention, given the class and the coarser levels.

    coarser codes --conditioning stack--> context --1x1--> every gate
    class --embedding-----------------------^
    codes --embedding, shifted--> gated layers (+ attention) --> output stack --> logits

Source: paper section 3.2; spec 3.3. Shapes: B batch, H W grid, N = H x W, K codes, C hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqvae2.codes import CodesError, Geometry
from vqvae2.config import LevelPriorConfig
from vqvae2.prior.causal import CausalAttention, ChannelNorm, GatedLayer, Pointwise, PointwiseBlock, pointwise


class ConditionBlock(nn.Module):
    """x + Conv1x1(ReLU(Conv3x3(norm x))): sees the whole coarser grid, so it need not be causal."""

    def __init__(self, channels: int, residual: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = ChannelNorm(channels)
        self.conv3 = nn.Conv2d(channels, residual, 3, padding=1)
        self.conv1 = nn.Conv2d(residual, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        y: Tensor = self.conv1(
            functional.dropout(functional.relu(self.conv3(self.norm(x))), self.dropout, self.training)
        )
        return x + y


class ConditionStack(nn.Module):
    """All coarser grids to a context on this level's grid.

    The coarsest grid is embedded, up-sampled to the next and added to that one's embedding, and so on; the residual
    blocks stand at the next coarser grid, where they are cheap, before the last up-sampling (our decision).

    Args:
        geometry: of all levels.
        level: whose context this is, at least 1.
        config: of this level.
    """

    def __init__(self, geometry: Geometry, level: int, config: LevelPriorConfig) -> None:
        super().__init__()
        width = config.hidden
        self.embeddings = nn.ModuleList(nn.Embedding(k, width) for k in geometry.vocabulary[:level])
        self.places = nn.Parameter(torch.zeros(width, *geometry.grids[level - 1]))
        ups = []
        for (h, w), (finer_h, finer_w) in zip(
            geometry.grids[:level], geometry.grids[1 : level + 1], strict=True
        ):
            if finer_h % h or finer_w % w:
                raise CodesError(f"a grid of {finer_h}x{finer_w} is no whole multiple of the coarser {h}x{w}")
            factor = (finer_h // h, finer_w // w)
            ups.append(nn.ConvTranspose2d(width, width, factor, stride=factor))
        self.ups = nn.ModuleList(ups)
        self.blocks = nn.Sequential(
            *(ConditionBlock(width, config.residual, config.dropout) for _ in range(config.condition_blocks))
        )

    def forward(self, coarser: tuple[Tensor, ...], label: Tensor | None) -> Tensor:
        """Codes [B, h, w] per coarser level and a class vector [B, C] -> context [B, C, H, W]."""
        x: Tensor | None = None
        for index, codes in enumerate(coarser):
            e = self.embeddings[index](codes.long()).permute(0, 3, 1, 2)
            x = e if x is None else self.ups[index - 1](x) + e
        assert x is not None
        x = x + self.places
        if label is not None:
            x = x + label[:, :, None, None]
        result: Tensor = self.ups[-1](self.blocks(x))
        return result


@dataclass(frozen=True)
class Cache:
    """What the finished positions leave behind; an argument and a return value of `LevelPrior.step`.

    Attributes:
        context: [B, C, H or 1, W or 1], or None.
        row: [B, C, W], embeddings of the current row's codes so far.
        vertical: per gated layer, the rows above [B, C, above, W].
        given: per gated layer, what the row gives to the horizontal gates [B, 2R, W].
        horizontal: per gated layer, the positions to the left [B, C, left].
        attention: per attention layer, keys and values.
    """

    context: Tensor | None
    row: Tensor
    vertical: tuple[Tensor, ...]
    given: tuple[Tensor, ...]
    horizontal: tuple[Tensor, ...]
    attention: tuple[Tensor, ...]


class LevelPrior(nn.Module):
    """p(codes of one level | coarser codes, class), autoregressive in raster order.

    Args:
        config: of this level.
        geometry: of all levels.
        level: 0 is the coarsest.
        classes: number of classes, 0 for none. One more embedding stands for "no label".
    """

    def __init__(self, config: LevelPriorConfig, geometry: Geometry, level: int, classes: int) -> None:
        super().__init__()
        self.config, self.level, self.classes = config, level, classes
        self.height, self.width = geometry.grids[level]
        self.vocabulary = geometry.vocabulary[level]
        width = config.hidden
        self.embedding = nn.Embedding(self.vocabulary, width)
        self.place_rows = nn.Parameter(torch.randn(width, self.height, 1) * 0.1)
        self.place_columns = nn.Parameter(torch.randn(width, 1, self.width) * 0.1)
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.condition = ConditionStack(geometry, level, config) if level else None
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
        self.output = nn.Sequential(
            *(PointwiseBlock(width, config.residual, config.dropout) for _ in range(config.output_layers)),
            ChannelNorm(width),
            nn.Dropout(config.dropout),
            Pointwise(width, width, zero=True),
        )
        self.bias = nn.Parameter(torch.zeros(self.vocabulary))

    @torch.no_grad()
    def start_from(self, codebooks: Sequence[Tensor]) -> None:
        """Before training: let codes that mean nearly the same start with nearly the same embeddings.

        Half of each embedding's variance comes from the code, turned at random into C dimensions (our decision:
        with few pictures, most of what is learnt about one code then holds for its neighbours too).

        Args:
            codebooks: [K, D] of this level and all coarser ones, coarsest first.
        """
        embeddings = [*(self.condition.embeddings if self.condition is not None else ()), self.embedding]
        for embedding, codebook in zip(embeddings, codebooks, strict=True):
            codes = codebook.to(embedding.weight) - codebook.to(embedding.weight).mean(0)
            turned = codes @ torch.randn(codes.shape[1], embedding.weight.shape[1], device=codes.device)
            turned /= turned.square().mean().sqrt().clamp_min(1e-12)
            embedding.weight.copy_((turned + torch.randn_like(turned)) / 2**0.5)

    @property
    def positions(self) -> int:
        """N, the number of positions."""
        return self.height * self.width

    def context(self, coarser: tuple[Tensor, ...], labels: Tensor | None) -> Tensor | None:
        """What the level is given, as one map [B, C, H or 1, W or 1]; None if it is given nothing.

        Args:
            coarser: codes [B, h, w] of every coarser level.
            labels: [B] int64 in 0 .. classes, where `classes` means "no label"; ignored without classes.
        """
        label = self.label(labels) if self.label is not None and labels is not None else None
        if self.condition is None:
            return None if label is None else label[:, :, None, None]
        context: Tensor = self.condition(coarser, label)
        return context if label is None else context + label[:, :, None, None]

    def forward(
        self, codes: Tensor, coarser: tuple[Tensor, ...] = (), labels: Tensor | None = None
    ) -> Tensor:
        """Logits [B, K, H, W] of every position, each from the positions before it.

        Args:
            codes: [B, H, W] int64.
            coarser, labels: as in `context`.
        """
        context = self.context(coarser, labels)
        e = self.embedding(codes.long()).permute(0, 3, 1, 2)
        places = self.place_rows + self.place_columns
        v = functional.pad(e, (0, 0, 1, 0))[:, :, :-1] + places
        h = functional.pad(e.flatten(2), (1, 0))[:, :, :-1].view_as(e) + places
        attentions = iter(self.attentions)
        for index, layer in enumerate(self.layers):
            v, h = layer(v, h, context)
            if index in self.attention_after:
                h = next(attentions)(h)
        return self._logits(h)

    def start(self, batch: int, context: Tensor | None) -> Cache:
        """The cache before the first position; `context` from `context`, `batch` images."""
        row = self.place_rows.new_zeros(batch, self.config.hidden, self.width)
        return Cache(
            context=context,
            row=row,
            vertical=tuple(layer.vertical.start(row) for layer in self._layers()),
            given=(),
            horizontal=tuple(layer.horizontal.start(row[:, :, 0]) for layer in self._layers()),
            attention=tuple(
                attention.start(row[:, :, 0], self.positions) for attention in self._attentions()
            ),
        )

    def step(self, cache: Cache, position: int, previous: Tensor | None) -> tuple[Tensor, Cache]:
        """Logits of one position, and the cache of the next.

        Args:
            cache: of the positions before; not to be used again (the row, keys and values are written in place).
            position: 0 .. N - 1, in order.
            previous: [B] codes of position - 1; None at position 0.

        Returns:
            logits [B, K]; the new cache.
        """
        r, c = divmod(position, self.width)
        if previous is not None:
            cache.row[:, :, (c - 1) % self.width] = self.embedding(previous)
        if c == 0:
            cache = self._start_row(cache, r)
        places = self.place_rows[:, r, 0] + self.place_columns[:, 0, c]
        h = (
            cache.row[:, :, c - 1] + places
        )  # at column 0 the last code of the row above; zero at the first position
        horizontal, attention = list(cache.horizontal), list(cache.attention)
        attentions = enumerate(self._attentions())
        for index, layer in enumerate(self._layers()):
            h, horizontal[index] = layer.step(h, cache.given[index][:, :, c], horizontal[index])
            if index in self.attention_after:
                place, layer_attention = next(attentions)
                h, attention[place] = layer_attention.step(h, attention[place], position)
        return self._logits(h), replace(cache, horizontal=tuple(horizontal), attention=tuple(attention))

    def _logits(self, h: Tensor) -> Tensor:
        """[B, C, ...] -> [B, K, ...]: the output stack, then a product with the embeddings of the codes."""
        return pointwise(self.output(h), self.embedding.weight, self.bias)

    def _layers(self) -> list[GatedLayer]:
        return [layer for layer in self.layers if isinstance(layer, GatedLayer)]

    def _attentions(self) -> list[CausalAttention]:
        return [layer for layer in self.attentions if isinstance(layer, CausalAttention)]

    def _start_row(self, cache: Cache, r: int) -> Cache:
        """Run the vertical stream over row `r`, whose input is the finished row above."""
        context = cache.context
        if context is not None:
            context = context[:, :, r if context.shape[2] > 1 else 0]
        v = cache.row + self.place_rows[:, r] + self.place_columns[:, 0]
        vertical, given = list(cache.vertical), []
        for index, layer in enumerate(self._layers()):
            v, gift, vertical[index] = layer.step_row(v, vertical[index], context)
            given.append(gift.expand(-1, -1, self.width))
        horizontal = tuple(torch.zeros_like(left) for left in cache.horizontal)
        return replace(cache, vertical=tuple(vertical), given=tuple(given), horizontal=horizontal)
