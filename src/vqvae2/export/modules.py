"""The parts of a run as modules that `torch.export` and ONNX can take: tensors in, tensors out, caches included.

    images --Encoder--> codes of each level --Decoder--> images
    coarser codes, label --Context--> context
    row, codes above, context, vertical --RowStart--> vertical, features, horizontal        (PixelCNN only)
    position, code before, caches --Step--> logits, caches

The loop over the positions stays with the caller, as `prior/scan.py` is the loop of this package. A position and a row are
tensors here, so one module serves the whole grid. All caches have one size from the first position to the last.

Shapes: B batch, L levels, H W grid, N = H x W, K codes, C hidden units, R inner channels, G gated layers, A attention
layers, D = C / heads, S positions to the left (and rows above) that a convolution sees.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes
from vqvae2.errors import UserError
from vqvae2.prior.attention import CausalAttention
from vqvae2.prior.level import LevelPrior
from vqvae2.prior.pixelcnn import PixelCNN
from vqvae2.prior.transformer import Transformer


class Encoder(nn.Module):
    """Images [B, channels, height, width] in [-1, 1] -> codes [B, h, w] int64 of each level, coarsest first."""

    def __init__(self, model: VQVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return self.model.encode(images).levels


class Decoder(nn.Module):
    """Codes [B, h, w] int64 of each level, coarsest first -> images [B, channels, height, width], clipped to [-1, 1]."""

    def __init__(self, model: VQVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, *codes: Tensor) -> Tensor:
        """See the class."""
        return self.model.decode(Codes(codes))


class Context(nn.Module):
    """Coarser codes [B, h, w] and, with classes, labels [B] -> [B, C, H or 1, W or 1].

    Labels are 0 .. classes, the last for "no label"; the module lacks the last one if the prior never learned it.

    Args:
        prior: of a level that has coarser levels or classes.
    """

    def __init__(self, prior: LevelPrior) -> None:
        super().__init__()
        if prior.label is not None and no_label(prior) is None:
            prior = copy.deepcopy(prior)
            assert prior.label is not None
            learned = prior.label.weight[: prior.classes].detach()
            prior.label = nn.Embedding(len(learned), learned.shape[1], _weight=learned)
        self.prior = prior

    def forward(self, *inputs: Tensor) -> Tensor:
        """The inputs in this order: labels if there are classes, then the coarser codes, coarsest first."""
        labels, coarser = (inputs[0], inputs[1:]) if self.prior.classes else (None, inputs)
        context = self.prior.context(tuple(coarser), labels)
        assert context is not None
        return context


class RowStart(nn.Module):
    """The vertical stream of a PixelCNN over a row, once before the first position of each row.

    Args:
        prior: a level prior of the kind pixelcnn.
    """

    def __init__(self, prior: PixelCNN) -> None:
        super().__init__()
        self.prior = prior

    def forward(
        self, row: Tensor, above: Tensor, vertical: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The caches with which the positions of a row begin.

        Args:
            row: [1] int64, 0 .. H - 1.
            above: [B, W] int64, the codes of the row above; K in the first row, which has none.
            vertical: [G, B, C, S, W], zero before the first row.
            context: from `Context`, if the level has one.

        Returns:
            vertical, for the next row; features [G, B, 2R, W] and horizontal [G, B, C, S], for the steps of this row.
        """
        prior = self.prior
        v = _embed(prior, above).transpose(1, 2) + prior.place_rows[:, :, 0].index_select(1, row)
        v = v + prior.place_columns[:, 0]
        of_row: Tensor | None = None
        if context is not None:
            of_row = context.index_select(2, row)[:, :, 0] if context.shape[2] > 1 else context[:, :, 0]
        rows, features = [], []
        for index, layer in enumerate(prior.gated_layers()):
            v, row_features, cache = layer.step_row(v, vertical[index], of_row)
            rows.append(cache)
            features.append(row_features)
        left = prior.gated_layers()[0].horizontal.left
        horizontal = vertical.new_zeros(len(rows), v.shape[0], v.shape[1], left)
        return torch.stack(rows), torch.stack(features), horizontal


class PixelCNNStep(nn.Module):
    """One position of a PixelCNN: the horizontal stream, attention and the logits.

    Args:
        prior: a level prior of the kind pixelcnn.
    """

    def __init__(self, prior: PixelCNN) -> None:
        super().__init__()
        self.prior = prior

    def forward(
        self,
        position: Tensor,
        previous: Tensor,
        features: Tensor,
        horizontal: Tensor,
        attention: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """The logits of a position, and the caches of the next one.

        Args:
            position: [1] int64, 0 .. N - 1, in order.
            previous: [B] int64, the code of the position before; K at position 0, which has none.
            features: [G, B, 2R, W], from `RowStart`.
            horizontal: [G, B, C, S], from `RowStart` at the first position of a row, then from this module.
            attention: [A, 2, B, heads, N, D], zero before position 0; None without attention layers.

        Returns:
            logits [B, K], horizontal and, with attention layers, attention.
        """
        prior = self.prior
        column = position % prior.width
        h = _input(prior, position, previous)
        attentions = enumerate(prior.attention_layers())
        lefts, kept = [], []
        for index, layer in enumerate(prior.gated_layers()):
            above = features[index].index_select(2, column)[:, :, 0]
            h, left = layer.step(h, above, horizontal[index])
            lefts.append(left)
            if index in prior.attention_after:
                assert attention is not None
                order, layer_attention = next(attentions)
                h, cache = _attend(layer_attention, h, attention[order], position)
                kept.append(cache)
        result = (prior._logits(h), torch.stack(lefts))
        return (*result, torch.stack(kept)) if kept else result


class TransformerStep(nn.Module):
    """One position of a transformer.

    Args:
        prior: a level prior of the kind transformer.
    """

    def __init__(self, prior: Transformer) -> None:
        super().__init__()
        self.prior = prior

    def forward(
        self, position: Tensor, previous: Tensor, attention: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `PixelCNNStep.forward`, with the context of the whole grid in place of features and horizontal."""
        prior = self.prior
        h = _input(prior, position, previous)
        if context is not None:
            row = position // prior.width if context.shape[2] > 1 else torch.zeros_like(position)
            column = position % prior.width if context.shape[3] > 1 else torch.zeros_like(position)
            h = h + context.index_select(2, row).index_select(3, column)[:, :, 0, 0]
        kept = []
        for index, block in enumerate(prior.blocks()):
            h, cache = _attend(block.attention, h, attention[index], position)
            h = block.mlp(h)
            kept.append(cache)
        return prior._logits(h), torch.stack(kept)


def has_context(prior: LevelPrior) -> bool:
    """Whether anything conditions this level: coarser levels or classes."""
    return prior.condition is not None or prior.label is not None


def no_label(prior: LevelPrior) -> int | None:
    """The number that stands for "no label"; None without classes, or if the prior never learned it (`PriorConfig.lacks_unlabelled`)."""
    return prior.classes if prior.classes and prior.config.label_dropout else None


def step_module(prior: LevelPrior) -> PixelCNNStep | TransformerStep:
    """The step of a level prior.

    Raises:
        UserError: a kind of prior of which no step for export is known.
    """
    if isinstance(prior, PixelCNN):
        return PixelCNNStep(prior)
    if isinstance(prior, Transformer):
        return TransformerStep(prior)
    raise UserError(
        f"a prior of the kind {prior.config.kind} cannot be exported: only pixelcnn and transformer"
    )


def _embed(prior: LevelPrior, codes: Tensor) -> Tensor:
    """Embeddings [..., C] of codes [...]; zero for K."""
    return functional.embedding(codes, functional.pad(prior.embedding.weight, (0, 0, 0, 1)))


def _input(prior: LevelPrior, position: Tensor, previous: Tensor) -> Tensor:
    """What enters the first layer at a position [B, C]: the code before it and the position's own embedding."""
    row = prior.place_rows[:, :, 0].index_select(1, position // prior.width)
    column = prior.place_columns[:, 0].index_select(1, position % prior.width)
    return _embed(prior, previous) + (row + column)[:, 0]


def _attend(layer: CausalAttention, x: Tensor, cache: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """`CausalAttention.step` with the position as a tensor and a new cache as the result."""
    heads, positions, depth = cache.shape[2:]
    q, k, v = layer.qkv(layer.norm(x)).reshape(-1, 3, heads, depth).unbind(1)
    every = torch.arange(positions, device=x.device)
    here = (every == position)[:, None]
    keys, values = torch.where(here, k[:, :, None], cache[0]), torch.where(here, v[:, :, None], cache[1])
    scores = (q[:, :, None] @ keys.transpose(2, 3)) * depth**-0.5
    weights = scores.masked_fill(every > position, -torch.inf).softmax(-1)
    y = (weights @ values).reshape(x.shape)
    return x + layer.out(y), torch.stack([keys, values])
