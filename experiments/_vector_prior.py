"""The hierarchy without a codebook: bounded vectors in place of codes, and a PixelCNN over them (for vectors.py).

Shapes: B batch, D dimension of a vector, M components of the mixture.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vqvae2.autoencoder.base import Quantized
from vqvae2.codes import Geometry
from vqvae2.config.models import LevelPriorConfig
from vqvae2.prior.layers import pointwise
from vqvae2.prior.level import ConditionStack
from vqvae2.prior.pixelcnn import PixelCNN

MIN_LOG_SCALE = -4.0  # of the standard deviation of a mixture component, for standardised vectors


class Bounded(nn.Module):
    """Takes the place of the quantizer: tanh and, in training, normal noise."""

    usage: Tensor

    def __init__(self, size: int, dim: int, noise: float) -> None:
        super().__init__()
        self.dim, self.noise = dim, noise
        self.register_buffer("usage", torch.zeros(size, dtype=torch.int64), persistent=False)

    def forward(self, z: Tensor) -> Quantized:
        """[..., D] to vectors in [-1, 1]; no codes, no loss."""
        bounded = z.tanh()
        if self.training:
            bounded = bounded + self.noise * torch.randn_like(bounded)
        none = torch.zeros(z.shape[:-1], dtype=torch.int64, device=z.device)
        return Quantized(bounded, bounded.new_zeros(()), bounded.new_ones(()), none)

    def mean_code(self) -> Tensor:
        """[D]: replaces a level that is left out; zero, the middle of the range."""
        return torch.zeros(self.dim, device=self.usage.device)


class VectorConditionStack(ConditionStack):
    """The same conditioning stack for coarser vectors [B, h, w, D] instead of codes."""

    def __init__(self, geometry: Geometry, level: int, config: LevelPriorConfig, dim: int) -> None:
        super().__init__(geometry, level, config)
        self.embeddings = nn.ModuleList(nn.Linear(dim, config.hidden) for _ in self.embeddings)

    def forward(self, coarser: tuple[Tensor, ...], label: Tensor | None) -> Tensor:
        """Context [B, C, H, W]."""
        x: Tensor | None = None
        for index, vectors in enumerate(coarser[self.first :]):
            e = self.embeddings[index](vectors).permute(0, 3, 1, 2)
            x = e if x is None else self.ups[index - 1](x) + e
        assert x is not None
        x = x + self.places
        if label is not None:
            x = x + label[:, :, None, None]
        result: Tensor = self.ups[-1](self.blocks(x))
        return result


class VectorPixelCNN(PixelCNN):
    """The PixelCNN over vectors [B, H, W, D]: a projection replaces the embedding, mixture parameters replace the logits.

    `forward` and `step` return [B, M (1 + 2 D), ...]: M logits, M D means, M D logarithms of standard deviations.
    """

    def __init__(
        self,
        config: LevelPriorConfig,
        geometry: Geometry,
        level: int,
        classes: int,
        dim: int,
        components: int,
    ) -> None:
        super().__init__(config, geometry, level, classes)
        self.embedding = nn.Linear(dim, config.hidden)  # type: ignore[assignment]
        if level:
            self.condition = VectorConditionStack(geometry, level, config, dim)
        self.head = nn.Linear(config.hidden, components * (1 + 2 * dim), bias=False)
        self.bias = nn.Parameter(torch.zeros(components * (1 + 2 * dim)))
        self.components, self.dim = components, dim
        with torch.no_grad():
            self.bias[components : components * (1 + dim)].normal_(
                0, 0.5
            )  # otherwise all components would stay equal

    def _embedded(self, codes: Tensor) -> Tensor:
        e: Tensor = self.embedding(codes)
        return e.permute(0, 3, 1, 2)

    def _logits(self, h: Tensor) -> Tensor:
        return pointwise(self.output(h), self.head.weight, self.bias)

    def mixture(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, M (1 + 2 D), ...] to logits [B, M, ...], means and log standard deviations [B, M, D, ...]."""
        m, d = self.components, self.dim
        logits, means, scales = parameters.split([m, m * d, m * d], 1)
        shape = (len(parameters), m, d, *parameters.shape[2:])
        return logits, means.reshape(shape), scales.reshape(shape).clamp(MIN_LOG_SCALE, 3)

    def nll(self, vectors: Tensor, coarser: tuple[Tensor, ...], labels: Tensor | None) -> Tensor:
        """[B, H, W] nats, a density of the standardised vectors."""
        logits, means, scales = self.mixture(self(vectors, coarser, labels).float())
        x = vectors.permute(0, 3, 1, 2)[:, None]
        normal = -0.5 * (((x - means) * (-scales).exp()).square() + math.log(2 * math.pi)) - scales
        return -torch.logsumexp(logits.log_softmax(1) + normal.sum(2), 1)

    @torch.no_grad()
    def draw(
        self,
        coarser: tuple[Tensor, ...],
        labels: Tensor | None,
        n: int,
        bound: tuple[Tensor, Tensor],
        seed: int,
    ) -> Tensor:
        """[n, H, W, D] in raster order, kept within the bounds [D] that the encoder's vectors have."""
        generator = torch.Generator().manual_seed(seed)
        cache, previous, drawn = self.start(n, self.context(coarser, labels)), None, []
        for position in range(self.positions):
            parameters, cache = self.step(cache, position, previous)
            logits, means, scales = self.mixture(parameters)
            chosen = torch.multinomial(logits.softmax(1), 1, generator=generator)
            index = chosen[:, :, None].expand(-1, 1, self.dim)
            mean, scale = means.gather(1, index)[:, 0], scales.gather(1, index)[:, 0].exp()
            previous = mean + scale * torch.randn(n, self.dim, generator=generator)
            previous = previous.clamp(*bound)
            drawn.append(previous)
        return torch.stack(drawn, 1).view(n, self.height, self.width, self.dim)
