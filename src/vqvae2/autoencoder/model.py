"""The N-level VQ-VAE (paper section 3.1, algorithm 1; the wiring of spec 2.4 for any number of levels).

    image --encoder--> h_finest --encoder--> ... --encoder--> h_coarsest
    coarsest level:  z = Conv1x1(h)           -> quantize -> e
    each finer one:  z = Conv1x1([hint, h])   -> quantize -> e       hint = conditioner([e, hint] of the coarser)
    image = decoder([e of every level, up-sampled to the finest grid])

Shapes: B batch, C image channels, H W image size, h w grid of a level, D code dimension, K codes. Lists of
levels are coarsest first, here and everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vqvae2.autoencoder.base import Quantized, Quantizer
from vqvae2.autoencoder.fsq import FiniteScalarQuantizer
from vqvae2.autoencoder.layers import downsample, residual_stack, sonnet_weights, upsample
from vqvae2.autoencoder.quantizer import VectorQuantizer
from vqvae2.codes import Codes, CodesError, Geometry
from vqvae2.config.models import AutoencoderConfig


@dataclass(frozen=True)
class Reconstruction:
    """What `VQVAE.forward` returns.

    Attributes:
        images: [B, C, H, W], the decoder's linear output; about [-1, 1], not clipped.
        levels: each level's quantizer output, coarsest first.
        used: [B], how many levels, from the coarsest, each image was decoded from; all unless `nested_dropout`.
    """

    images: Tensor
    levels: tuple[Quantized, ...]
    used: Tensor

    @property
    def codes(self) -> Codes:
        """The codes of the batch."""
        return Codes(tuple(level.encoding_indices for level in self.levels))

    @property
    def commitment(self) -> Tensor:
        """Scalar: the levels' latent losses, summed (spec 1.1)."""
        return torch.stack([level.loss for level in self.levels]).sum()


def _quantizer(config: AutoencoderConfig, size: int) -> Quantizer:
    if config.quantizer == "fsq":
        return FiniteScalarQuantizer(size, config.code_dim, config.decay)
    return VectorQuantizer(
        size,
        config.code_dim,
        config.commitment_cost,
        config.decay,
        config.epsilon,
        init=config.init,
        revive=config.revive,
        ema=config.ema,
        entropy_penalty=config.entropy_penalty,
    )


class _Level(nn.Module):
    """One level: its encoder, its quantizer, and what it tells the finer levels.

    Args:
        config: the autoencoder's.
        level: 0 is the coarsest.
    """

    def __init__(self, config: AutoencoderConfig, level: int) -> None:
        super().__init__()
        width, dim = config.hidden, config.code_dim
        finest = level == config.levels - 1
        step = config.levels - 1 - level  # how many levels are finer than this one
        hint = dim if level else 0
        channels = config.channels if finest else width
        self.encoder = nn.Sequential(
            downsample(channels, width, width, config.strides[step], relu=config.stem_relu),
            residual_stack(width, config.residual, config.blocks),
        )
        self.projection = nn.Conv2d(width + hint, dim, 1)
        self.quantizer = _quantizer(config, config.codes[level])
        self.conditioner: nn.Sequential | None = None
        if not finest:
            self.conditioner = nn.Sequential(
                nn.Conv2d(dim + hint, width, 3, padding=1),
                residual_stack(width, config.residual, config.blocks),
                upsample(width, dim, width, config.strides[step]),
            )
        # its own way to the finest grid, for the final decoder (spec 6.1.2); empty at the finest level
        self.to_finest = nn.Sequential(
            *(upsample(dim, dim, 2 * dim, config.strides[i]) for i in range(step, 0, -1))
        )

    def quantize(self, features: Tensor, hint: Tensor | None) -> Quantized:
        """Features [B, width, h, w] and the coarser levels' hint [B, D, h, w] to codes, channels last."""
        z = self.projection(features if hint is None else torch.cat([hint, features], 1))
        quantized: Quantized = self.quantizer(z.permute(0, 2, 3, 1))
        return quantized

    def tell(self, e: Tensor, hint: Tensor | None) -> Tensor | None:
        """The hint for the next finer level [B, D, h', w']; None at the finest."""
        if self.conditioner is None:
            return None
        told: Tensor = self.conditioner(e if hint is None else torch.cat([e, hint], 1))
        return told


class VQVAE(nn.Module):
    """Hierarchical vector-quantised autoencoder with 1 to 4 levels.

    Args:
        config: widths, strides, codebooks; see `AutoencoderConfig`.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.levels = nn.ModuleList(_Level(config, level) for level in range(config.levels))
        self.decoder = nn.Sequential(
            nn.Conv2d(config.levels * config.code_dim, config.hidden, 3, padding=1),
            residual_stack(config.hidden, config.residual, config.blocks),
            upsample(config.hidden, config.channels, config.hidden, config.strides[0]),
        )
        if config.weights == "sonnet":
            sonnet_weights(self)

    @property
    def quantizers(self) -> tuple[Quantizer, ...]:
        """The levels' quantizers, coarsest first."""
        return tuple(level.quantizer for level in self._levels())

    def geometry(self, height: int, width: int) -> Geometry:
        """The grids that images of this size give.

        Raises:
            ConfigError: the strides do not divide the size.
        """
        return self.config.geometry(height, width)

    def forward(self, images: Tensor) -> Reconstruction:
        """Images [B, C, H, W] in [-1, 1] to their reconstruction; in training mode the codebooks learn."""
        quantized = self._quantize(images)
        parts = [_channels_first(level.quantize) for level in quantized]
        every = torch.full((images.shape[0],), self.config.levels, device=images.device)
        if not self.training or not self.config.nested_dropout or self.config.levels == 1:
            return Reconstruction(self._decode(parts), tuple(quantized), every)
        some = torch.randint_like(every, 1, self.config.levels)
        dropped = torch.rand(every.shape, device=every.device) < self.config.nested_dropout
        used = torch.where(dropped, some, every)  # nested dropout (Rippel et al. 2014)
        return Reconstruction(self._decode(parts, used), tuple(quantized), used)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Codes:
        """Images [B, C, H, W], float in [-1, 1], to codes. The codebooks do not change, whatever the mode.

        Raises:
            ConfigError: the strides do not divide the size, or the channels differ.
        """
        modes = [quantizer.training for quantizer in self.quantizers]
        try:
            for quantizer in self.quantizers:
                quantizer.eval()
            return Codes(tuple(level.encoding_indices for level in self._quantize(images)))
        finally:
            for quantizer, mode in zip(self.quantizers, modes, strict=True):
                quantizer.train(mode)

    @torch.no_grad()
    def decode(self, codes: Codes, levels: int | None = None) -> Tensor:
        """Codes to images [B, C, H, W], clipped to [-1, 1].

        Args:
            codes: every level's codes.
            levels: use only this many levels, from the coarsest; the others are replaced by their mean code
                (our decision: an index 0 or a zero vector is no neutral input). None uses all.

        Raises:
            CodesError: wrong number of levels, grids that do not fit each other, codes out of range.
        """
        count = self.config.levels
        if len(codes.levels) != count:
            raise CodesError(f"expected codes of {count} levels, found {len(codes.levels)}")
        finest = codes.levels[-1]
        scale = self.config.strides[0]
        self.geometry(finest.shape[1] * scale, finest.shape[2] * scale).check(codes)
        use = count if levels is None else levels
        if not 1 <= use <= count:
            raise CodesError(f"expected levels between 1 and {count}, found {levels}")
        parts = [
            _channels_first(q.lookup(level)) for q, level in zip(self.quantizers, codes.levels, strict=True)
        ]
        used = None if use == count else torch.full((len(codes),), use, device=finest.device)
        return self._decode(parts, used).clamp(-1, 1)

    def _levels(self) -> list[_Level]:
        return [level for level in self.levels if isinstance(level, _Level)]

    def _quantize(self, images: Tensor) -> list[Quantized]:
        self.config.check_images(tuple(images.shape))
        features, x = [], images
        for level in reversed(self._levels()):  # the encoders run from the image down to the coarsest grid
            x = level.encoder(x)
            features.append(x)
        quantized: list[Quantized] = []
        hint: Tensor | None = None
        for level, feature in zip(self._levels(), reversed(features), strict=True):
            quantized.append(level.quantize(feature, hint))
            hint = level.tell(_channels_first(quantized[-1].quantize), hint)
        return quantized

    def _decode(self, parts: list[Tensor], used: Tensor | None = None) -> Tensor:
        """Quantized levels [B, D, h, w] to images; of the coarsest used[b] levels only, the others at their mean code."""
        if used is not None:
            parts = [
                torch.where((used > index).view(-1, 1, 1, 1), part, quantizer.mean_code().view(1, -1, 1, 1))
                for index, (part, quantizer) in enumerate(zip(parts, self.quantizers, strict=True))
            ]
        finest = [level.to_finest(e) for level, e in zip(self._levels(), parts, strict=True)]
        image: Tensor = self.decoder(torch.cat(finest, 1))
        return image


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)
