"""What every kind of prior of one level shares: conditioning, embeddings and logits.

    coarser codes --conditioning stack--> context
    class --embedding-----------------------^
    codes --embedding--> a kind of network, with the context --> output stack --product with the embedding--> logits

Source: paper section 3.2. Shapes: B batch, H W grid, N = H x W, K codes, C hidden units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqvae2.codes import CodesError, Geometry
from vqvae2.config.models import LevelPriorConfig
from vqvae2.noise import dropout, uniform
from vqvae2.prior.layers import ChannelNorm, Dropout, Pointwise, pointwise, stream_type
from vqvae2.prior.recompute import recomputed


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
            dropout(functional.relu(self.conv3(self.norm(x))), self.dropout, self.training)
        )
        return x + y


class ConditionStack(nn.Module):
    """All coarser grids, or the next coarser one alone, to a context on this level's grid.

    The coarsest of them is embedded, up-sampled to the next and added to that one's embedding, and so on; the residual
    blocks stand at the next coarser grid, where they are cheap, before the last up-sampling (our decision).
    `places` holds its positional embeddings (named as in the files of earlier versions).

    Args:
        geometry: of all levels.
        level: whose context this is, at least 1.
        config: of this level.
    """

    def __init__(self, geometry: Geometry, level: int, config: LevelPriorConfig) -> None:
        super().__init__()
        width = config.hidden
        self.first = level - 1 if config.coarser == "next" else 0  # the coarsest level that is seen
        self.embeddings = nn.ModuleList(
            nn.Embedding(k, width) for k in geometry.vocabulary[self.first : level]
        )
        self.places = nn.Parameter(torch.zeros(width, *geometry.grids[level - 1]))
        ups = []
        for (h, w), (finer_h, finer_w) in zip(
            geometry.grids[self.first : level], geometry.grids[self.first + 1 : level + 1], strict=True
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
        """Codes [B, h, w] of every coarser level, seen or not, and a class vector [B, C] -> context [B, C, H, W]."""
        x: Tensor | None = None
        for index, codes in enumerate(coarser[self.first :]):
            e = self.embeddings[index](codes.long())
            e = e.to(stream_type(e)).permute(0, 3, 1, 2)
            x = e if x is None else self.ups[index - 1](x) + e
        assert x is not None
        x = x + self.places.to(x.dtype)
        if label is not None:
            x = x + label[:, :, None, None].to(x.dtype)
        result: Tensor = self.ups[-1](self.blocks(x))
        return result


class LevelPrior(nn.Module, ABC):
    """p(codes of one level | coarser codes, class), autoregressive in raster order; the base of its kinds.

    `place_rows` and `place_columns` are the positional embeddings of rows and columns (named as in the files of earlier
    versions). A kind has `output`, the last layers before the logits: [B, C, ...] -> [B, C, ...], see `output_stack`.
    With `checkpointing` set, training keeps what enters each layer and computes the rest anew in the backward pass.

    Args:
        config: of this level.
        geometry: of all levels.
        level: 0 is the coarsest.
        classes: number of classes, 0 for none. One more embedding stands for "no label".
    """

    output: nn.Module

    def __init__(self, config: LevelPriorConfig, geometry: Geometry, level: int, classes: int) -> None:
        super().__init__()
        self.config, self.level, self.classes = config, level, classes
        self.checkpointing = False
        self.height, self.width = geometry.grids[level]
        self.vocabulary = geometry.vocabulary[level]
        width = config.hidden
        self.embedding = nn.Embedding(self.vocabulary, width)
        self.place_rows = nn.Parameter(torch.randn(width, self.height, 1) * 0.1)
        self.place_columns = nn.Parameter(torch.randn(width, 1, self.width) * 0.1)
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.condition = ConditionStack(geometry, level, config) if level else None
        self.bias = nn.Parameter(torch.zeros(self.vocabulary))

    @torch.no_grad()
    def start_from(self, codebooks: Sequence[Tensor]) -> None:
        """Before training: let codes with similar codebook vectors start with similar embeddings.

        Half of each embedding's variance comes from the codebook vector, projected at random to C dimensions (our
        decision: with few images, most of what is learned about one code then holds for its neighbours too).

        Args:
            codebooks: [K, D] of this level and all coarser ones, coarsest first.
        """
        embeddings, seen = [self.embedding], codebooks
        if self.condition is not None:
            embeddings, seen = [*self.condition.embeddings, self.embedding], codebooks[self.condition.first :]
        for embedding, codebook in zip(embeddings, seen, strict=True):
            codes = codebook.to(embedding.weight) - codebook.to(embedding.weight).mean(0)
            turned = codes @ torch.randn(codes.shape[1], embedding.weight.shape[1], device=codes.device)
            turned /= turned.square().mean().sqrt().clamp_min(1e-12)
            embedding.weight.copy_((turned + torch.randn_like(turned)) / 2**0.5)

    @property
    def positions(self) -> int:
        """N, the number of positions."""
        return self.height * self.width

    def context(self, coarser: tuple[Tensor, ...], labels: Tensor | None) -> Tensor | None:
        """The conditioning on coarser codes and class as one map [B, C, H or 1, W or 1]; None without both.

        Args:
            coarser: codes [B, h, w] of every coarser level.
            labels: [B] int64 in 0 .. classes, where `classes` means "no label"; ignored without classes.
        """
        label = self.label(labels) if self.label is not None and labels is not None else None
        if self.condition is None:
            return None if label is None else label[:, :, None, None]
        context: Tensor = self.condition(coarser, label)
        return context if label is None else context + label[:, :, None, None].to(context.dtype)

    def dropped(self, labels: Tensor) -> Tensor:
        """Labels [B], of which each is replaced by "no label" with probability `config.label_dropout`.

        A prior that is trained on these learns "no label" too. The numbers are torch's own; several processes draw those
        of the whole batch (`noise.uniform`).
        """
        hidden = uniform(len(labels), labels.device) < self.config.label_dropout
        return torch.where(hidden, self.classes, labels)

    @abstractmethod
    def forward(
        self, codes: Tensor, coarser: tuple[Tensor, ...] = (), labels: Tensor | None = None
    ) -> Tensor:
        """Logits [B, K, H, W] of every position, each from the positions before it.

        Args:
            codes: [B, H, W] int64.
            coarser: as in `context`.
            labels: as in `context`.
        """

    @abstractmethod
    def start(self, batch: int, context: Tensor | None) -> Any:
        """The cache before the first position; `context` from `context`, `batch` images."""

    @abstractmethod
    def step(self, cache: Any, position: int, previous: Tensor | None) -> tuple[Tensor, Any]:
        """Logits of one position, and the cache of the next.

        Args:
            cache: of the positions before; not to be used again (parts of it are written in place).
            position: 0 .. N - 1, in order.
            previous: [B] codes of position - 1; None at position 0.

        Returns:
            logits [B, K]; the new cache.
        """

    def _embedded(self, codes: Tensor) -> Tensor:
        """[B, H, W] int64 -> [B, C, H, W]."""
        e: Tensor = self.embedding(codes.long())
        return e.to(stream_type(e)).permute(0, 3, 1, 2)

    def _positional(self, dtype: torch.dtype) -> Tensor:
        """The positional embeddings [C, H, W]."""
        return (self.place_rows + self.place_columns).to(dtype)

    def _before(self, e: Tensor) -> Tensor:
        """[B, C, H, W] -> the same, on by one position, zero at the first, with the positional embeddings added."""
        flat = e.permute(0, 2, 3, 1).flatten(1, 2)  # [B, N, C], in which `e` is contiguous
        moved = functional.pad(flat, (0, 0, 1, 0))[:, :-1].reshape(e.shape[0], *e.shape[2:], e.shape[1])
        return moved.permute(0, 3, 1, 2) + self._positional(e.dtype)

    def _run(self, layer: nn.Module, *inputs: Tensor | None) -> Any:
        """What the layer makes of its inputs; dropout, which alone may draw random numbers in it, draws the same when it is computed anew."""
        if self.checkpointing and self.training:
            return recomputed(layer, *inputs, random=self.config.dropout > 0)
        return layer(*inputs)

    def _logits(self, h: Tensor) -> Tensor:
        """[B, C, ...] -> [B, K, ...]: the output stack, then a product with the embeddings of the codes."""
        return pointwise(self.output(h), self.embedding.weight, self.bias)


def output_stack(config: LevelPriorConfig, *blocks: nn.Module) -> nn.Sequential:
    """Some blocks, norm, dropout and a projection that starts at zero, so that every code is equally likely at first."""
    return nn.Sequential(
        *blocks,
        ChannelNorm(config.hidden),
        Dropout(config.dropout),
        Pointwise(config.hidden, config.hidden, zero=True),
    )
