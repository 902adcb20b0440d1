"""The static step of `Transformer`. Shapes as in `static`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqvae2.prior.attention import CausalAttention
from vqvae2.prior.layers import PointwiseBlock
from vqvae2.prior.static import StaticAttention, StaticBlocks, StaticPrior
from vqvae2.prior.step_ops import Ops, Spec

if TYPE_CHECKING:
    from vqvae2.prior.level import LevelPrior


class StaticTransformer(StaticPrior):
    """See `StaticPrior`."""

    def __init__(self, prior: LevelPrior, spec: Spec, ops: Ops) -> None:
        super().__init__(prior, spec, ops)
        self.attention = StaticAttention(_attentions(prior), prior.config.heads, self)
        self.blocks = StaticBlocks(_blocks(prior), self)

    def _load(self, prior: LevelPrior) -> None:
        self.attention.load(_attentions(prior))
        self.blocks.load(_blocks(prior))

    def start_row(self) -> None:
        """Nothing is computed once for each row."""

    def step(self, column: int) -> Tensor:
        """As `StaticPrior.step`."""
        h = self.ops.embed(
            self.codes, self.embedding, self.row_positions, self.column_positions, self.row, column
        )
        if self.context is not None:
            height, width = self.context.shape[:2]
            row = self.row if height > 1 else torch.zeros_like(self.row)
            h = h + self.context.index_select(0, row)[0, column % width]
        for index in range(self.blocks.count):
            h = self.attention.step(h, index, self.row, column, self.width)
            h = self.blocks.step(h, index)
        return self.ops.norm_linear(h, self.logit_weight, self.logit_bias, "")


def _attentions(prior: LevelPrior) -> list[CausalAttention]:
    assert isinstance(prior.layers, nn.ModuleList)
    layers = [layer.attention for layer in prior.layers]
    return [layer for layer in layers if isinstance(layer, CausalAttention)]


def _blocks(prior: LevelPrior) -> list[PointwiseBlock]:
    assert isinstance(prior.layers, nn.ModuleList)
    blocks = [layer.mlp for layer in prior.layers]
    return [block for block in blocks if isinstance(block, PointwiseBlock)]
