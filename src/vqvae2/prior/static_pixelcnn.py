"""The static step of `PixelCNN`.

At each position, what the gates get from the positions to the left is known before any layer of this position has run. So one
batched product computes it for all layers at once, and only the position's own tap is left to each layer.

Shapes as in `static`; S = kernel // 2, the positions to the left and the rows above that a layer sees.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae2.prior.layers import PointwiseBlock
from vqvae2.prior.level import LevelPrior
from vqvae2.prior.pixelcnn import PixelCNN
from vqvae2.prior.static import StaticAttention, StaticBlocks, StaticPrior, output_layers
from vqvae2.prior.step_ops import StepOps, StepSpec


class StaticPixelCNN(StaticPrior):
    """See `StaticPrior`.

    Attributes:
        above: [L, S + 1, W + 2S, B, C], the normed vertical stream of the current row and the rows above it, zero outside.
        features: [L, W, B, 2R], what the horizontal gates of the current row get from above and from the context.
        left: [L, B, S + W, C], the normed horizontal stream of the current row, zero left of the grid.
    """

    def __init__(self, prior: LevelPrior, spec: StepSpec, ops: StepOps) -> None:
        super().__init__(prior, spec, ops)
        assert isinstance(prior, PixelCNN)
        layers, config = prior.gated_layers(), prior.config
        count, channels, inner = len(layers), config.hidden, config.residual
        batch, width, self.side = spec.batch, self.width, config.kernel // 2
        self.attention_after = {i: n for n, i in enumerate(prior.attention_after)}
        rows = self.side + 1
        self.vertical = self._weights(count, 2 * inner, rows * config.kernel * channels)
        self.link = self._weights(count, 2 * inner, channels)
        self.biases = self._weights(count, 4 * inner)  # of the vertical gates, then of the horizontal ones
        self.out_v, self.out_h = (self._weights(count, channels, inner) for _ in range(2))
        self.out_v_bias, self.out_h_bias = (self._zeros(count, channels) for _ in range(2))
        self.left_weight = self._weights(count, self.side * channels, 2 * inner)
        self.own_weight = self._weights(count, 2 * inner, channels)
        self.context_weight = None
        if self.context is not None:
            self.context_weight = self._weights(count, 4 * inner, channels)
        self.above = self._weights(count, rows, width + 2 * self.side, batch, channels)
        self.features = self._weights(count, width, batch, 2 * inner)
        self.left = self._weights(count, batch, self.side + width, channels)
        self.attention = StaticAttention(prior.attention_layers(), config.heads, self)
        self.blocks = StaticBlocks(output_blocks(prior), self)

    def _load(self, prior: LevelPrior) -> None:
        assert isinstance(prior, PixelCNN)
        for index, layer in enumerate(prior.gated_layers()):
            vertical, horizontal = layer.vertical.conv, layer.horizontal.conv
            taps = vertical.weight * layer.norm_v.gain[:, None, None]
            self.vertical[index].copy_(taps.permute(0, 2, 3, 1).flatten(1))
            taps = (horizontal.weight * layer.norm_h.gain[:, None, None])[:, :, 0]
            self.left_weight[index].copy_(taps[:, :, :-1].permute(2, 1, 0).flatten(0, 1))
            self.own_weight[index].copy_(taps[:, :, -1])
            assert vertical.bias is not None
            assert horizontal.bias is not None
            self.biases[index].copy_(torch.cat([vertical.bias, horizontal.bias]))
            self.link[index].copy_(layer.link.linear.weight)
            for weight, bias, linear in (
                (self.out_v, self.out_v_bias, layer.out_v.linear),
                (self.out_h, self.out_h_bias, layer.out_h.linear),
            ):
                weight[index].copy_(linear.weight)
                bias[index].copy_(linear.bias)
            if self.context_weight is not None:
                assert layer.context is not None
                self.context_weight[index].copy_(layer.context.linear.weight)
        self.attention.load(prior.attention_layers())
        self.blocks.load(output_blocks(prior))
        self.above.zero_()

    def start_row(self) -> None:
        """Run the vertical stream of all layers over the current row."""
        width, batch, side = self.width, self.spec.batch, self.side
        previous = self.codes.view(self.height + 1, width, batch).index_select(0, self.row)[0]
        v = self.embedding[previous] + (
            self.row_positions.index_select(0, self.row) + self.column_positions
        ).unsqueeze(1)
        v = v.flatten(0, 1)  # [W B, C]
        self.above.copy_(self.above.roll(-1, 1))
        context = self._row_context()
        for index in range(len(self.vertical)):
            above = self.above[index]
            own = above[-1, side : side + width]
            self.ops.norm(v.view_as(own), own)
            taps = above.unfold(1, 2 * side + 1, 1).permute(1, 2, 0, 4, 3)  # [W, B, S + 1, kernel, C]
            bias = self.biases[index]
            if context is not None:
                assert self.context_weight is not None
                bias = torch.addmm(bias, context, self.context_weight[index].T)
            for_v, for_h = bias.chunk(2, -1)
            x = torch.addmm(for_v, taps.reshape(width * batch, -1), self.vertical[index].T)
            v = self.ops.linear_add(self.ops.gate(x), self.out_v[index], self.out_v_bias[index], v)
            features = self.features[index].flatten(0, 1)
            torch.addmm(for_h, v.to(x.dtype), self.link[index].T, out=features)

    def step(self, column: int) -> Tensor:
        """As `StaticPrior.step`."""
        ops, side = self.ops, self.side
        h = ops.embed(self.codes, self.embedding, self.row_positions, self.column_positions, self.row, column)
        left = self.left[:, :, column : column + side].flatten(2)
        before = torch.baddbmm(self.features[:, column], left, self.left_weight)
        for index in range(len(self.own_weight)):
            normed = self.left[index, :, side + column]
            y = ops.norm_gate(h, self.own_weight[index], before[index], normed)
            h = ops.linear_add(y, self.out_h[index], self.out_h_bias[index], h)
            if index in self.attention_after:
                h = self.attention.step(h, self.attention_after[index], self.row, column, self.width)
        for index in range(self.blocks.count):
            h = self.blocks.step(h, index)
        return ops.norm_linear(h, self.logit_weight, self.logit_bias, "")

    def _row_context(self) -> Tensor | None:
        """The context of the current row [W B, C]; None without one."""
        if self.context is None:
            return None
        row = self.row if len(self.context) > 1 else torch.zeros_like(self.row)
        context = self.context.index_select(0, row)[0].expand(self.width, -1, -1)
        return context.flatten(0, 1).to(self.spec.weights)


def output_blocks(prior: LevelPrior) -> list[PointwiseBlock]:
    """The blocks of the output stack."""
    return [layer for layer in output_layers(prior) if isinstance(layer, PointwiseBlock)]
