"""A level prior prepared for drawing on a GPU: steps of constant shape that a CUDA graph can record.

The plain step of a prior slices its caches by a position that is a Python number, so every position is another sequence of
kernels. Here the row is a tensor on the device, the caches have their full size from the start and are written in place, and
only the column is a Python number. So the kernels of a row are the same for all rows, and one recorded row draws a whole
grid. At the start of each grid the weights are copied into the layout of the step: the gain
of a norm is multiplied into the weights of the following product, and the weights of all layers are stacked into one tensor, so that
one batched product can serve several layers.

Shapes: B batch, H W grid, N = H x W, K codes, C hidden units, R inner channels, L layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from vqvae2.prior.attention import CausalAttention
from vqvae2.prior.chooser import Chooser
from vqvae2.prior.layers import ChannelNorm, Pointwise, PointwiseBlock
from vqvae2.prior.level import LevelPrior
from vqvae2.prior.step_ops import StepOps, StepSpec


class StaticPrior(ABC):
    """The state of one grid that is being drawn: arranged weights, caches and codes, all written in place.

    Attributes:
        codes: [(H + 1) W, B]. The code of position p is at index W + p. The first W entries stand for the row above the
            grid; they hold K, and row K of `embedding` is zero.
        row: [1] int64, the current row.
    """

    def __init__(self, prior: LevelPrior, spec: StepSpec, ops: StepOps) -> None:
        self.spec, self.ops = spec, ops
        self.height, self.width, self.vocabulary = prior.height, prior.width, prior.vocabulary
        width = prior.config.hidden
        self.codes = self._zeros((self.height + 1) * self.width, spec.batch, dtype=torch.int64)
        self.row = self._zeros(1, dtype=torch.int64)
        self.embedding = self._zeros(self.vocabulary + 1, width)
        self.row_positions = self._zeros(self.height, width)
        self.column_positions = self._zeros(self.width, width)
        self.logit_weight = self._zeros(self.vocabulary, width)
        self.logit_bias = self._zeros(self.vocabulary)
        self.context: Tensor | None = None
        if spec.context is not None:
            _, channels, height, columns = spec.context
            self.context = self._zeros(height, columns, spec.batch, channels)

    def load(self, prior: LevelPrior, context: Tensor | None) -> None:
        """Start a new grid with the present weights of `prior` and a context like that of the spec."""
        self.codes.fill_(self.vocabulary)
        self.row.zero_()
        self.embedding[:-1].copy_(prior.embedding.weight)
        self.row_positions.copy_(prior.place_rows[:, :, 0].T)
        self.column_positions.copy_(prior.place_columns[:, 0].T)
        if self.context is not None:
            assert context is not None
            self.context.copy_(context.permute(2, 3, 0, 1))
        *_, norm, _, last = output_layers(prior)
        assert isinstance(norm, ChannelNorm)
        assert isinstance(last, Pointwise)
        # logits = E (W n + b) + bias, where n is the normed stream: one product of E W
        self.logit_weight.copy_(prior.embedding.weight @ (last.linear.weight * norm.gain))
        self.logit_bias.copy_(prior.embedding.weight @ last.linear.bias + prior.bias)
        self._load(prior)

    @abstractmethod
    def _load(self, prior: LevelPrior) -> None:
        """Arrange the weights of the layers, and empty the caches that a new grid must find empty."""

    @abstractmethod
    def start_row(self) -> None:
        """Whatever is computed once for each row."""

    @abstractmethod
    def step(self, column: int) -> Tensor:
        """Logits [B, K] of a position of the current row, given the codes before it."""

    def draw_row(self, chooser: Chooser) -> None:
        """Choose all codes of the current row and go to the next one. This is what a graph records."""
        self.start_row()
        for column in range(self.width):
            self.ops.choose(chooser, self.step(column), self.codes, self.row, column, self.width)
        self.row += 1

    def result(self) -> Tensor:
        """The codes [B, H, W]."""
        grid = self.codes[self.width :].view(self.height, self.width, self.spec.batch)
        return grid.permute(2, 0, 1).contiguous()

    def _zeros(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.zeros(*shape, dtype=dtype or self.spec.stream, device=self.spec.device)

    def _weights(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=self.spec.weights, device=self.spec.device)


class StaticBlocks:
    """The weights of several `PointwiseBlock`s of the same sizes, stacked, with the norms' gains folded in."""

    def __init__(self, blocks: list[PointwiseBlock], state: StaticPrior) -> None:
        self.count, self.ops = len(blocks), state.ops
        if not blocks:
            return
        channels, residual = blocks[0].norm.gain.numel(), blocks[0].inner.linear.out_features
        self.activation = blocks[0].activation.__name__
        self.inner = state._weights(self.count, residual, channels)
        self.inner_bias = state._zeros(self.count, residual)
        self.outer = state._weights(self.count, channels, residual)
        self.outer_bias = state._zeros(self.count, channels)

    def load(self, blocks: list[PointwiseBlock]) -> None:
        """Arrange the weights."""
        for index, block in enumerate(blocks):
            self.inner[index].copy_(block.inner.linear.weight * block.norm.gain)
            self.inner_bias[index].copy_(block.inner.linear.bias)
            self.outer[index].copy_(block.outer.linear.weight)
            self.outer_bias[index].copy_(block.outer.linear.bias)

    def step(self, h: Tensor, index: int) -> Tensor:
        """[B, C] -> [B, C]; `h` may be overwritten."""
        y = self.ops.norm_linear(h, self.inner[index], self.inner_bias[index], self.activation)
        return self.ops.linear_add(y, self.outer[index], self.outer_bias[index], h)


class StaticAttention:
    """The weights of A attention layers, stacked, and their cache of keys and values [A, 2, B, heads, N, D], D = C / heads."""

    def __init__(self, layers: list[CausalAttention], heads: int, state: StaticPrior) -> None:
        self.count, self.ops, self.heads = len(layers), state.ops, heads
        channels, positions = state.embedding.shape[1], state.height * state.width
        self.qkv = state._weights(self.count, 3 * channels, channels)
        self.out = state._weights(self.count, channels, channels)
        self.out_bias = state._zeros(self.count, channels)
        size = (self.count, 2, state.spec.batch, heads, positions, channels // heads)
        self.cache = state._weights(*size)

    def load(self, layers: list[CausalAttention]) -> None:
        """Arrange the weights; the scores' factor 1 / sqrt(D) goes into the queries."""
        for index, layer in enumerate(layers):
            weight = layer.qkv.linear.weight * layer.norm.gain
            channels = weight.shape[1]
            self.qkv[index, channels:].copy_(weight[channels:])
            self.qkv[index, :channels].copy_(weight[:channels] * (channels // self.heads) ** -0.5)
            self.out[index].copy_(layer.out.linear.weight)
            self.out_bias[index].copy_(layer.out.linear.bias)

    def step(self, h: Tensor, index: int, row: Tensor, column: int, width: int) -> Tensor:
        """[B, C] -> [B, C]; `h` may be overwritten."""
        qkv = self.ops.norm_linear(h, self.qkv[index], None, "")
        y = self.ops.attend(qkv, self.cache[index], row, column, width)
        return self.ops.linear_add(y, self.out[index], self.out_bias[index], h)


def output_layers(prior: LevelPrior) -> list[nn.Module]:
    """The layers of the output stack: blocks, then norm, dropout and projection."""
    assert isinstance(prior.output, nn.Sequential)
    return list(prior.output)
