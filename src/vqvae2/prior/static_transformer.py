"""The static step of `Transformer`. Shapes as in `static`."""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae2.prior.level import LevelPrior
from vqvae2.prior.static import StaticAttention, StaticBlocks, StaticPrior
from vqvae2.prior.step_ops import StepOps, StepSpec
from vqvae2.prior.transformer import Transformer


class StaticTransformer(StaticPrior):
    """See `StaticPrior`."""

    def __init__(self, prior: LevelPrior, spec: StepSpec, ops: StepOps) -> None:
        super().__init__(prior, spec, ops)
        assert isinstance(prior, Transformer)
        self.attention = StaticAttention(
            [block.attention for block in prior.blocks()], prior.config.heads, self
        )
        self.blocks = StaticBlocks([block.mlp for block in prior.blocks()], self)

    def _load(self, prior: LevelPrior) -> None:
        assert isinstance(prior, Transformer)
        self.attention.load([block.attention for block in prior.blocks()])
        self.blocks.load([block.mlp for block in prior.blocks()])

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
