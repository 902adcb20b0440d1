"""The VQ-VAE with 1 to 4 levels (Razavi et al. 2019, section 3.1 and algorithm 1, for any number of levels).

    image --encoder--> features of the finest level --encoder--> ... --encoder--> features of the coarsest level

    coarsest level:      e = quantize(Conv1x1(features))
    each finer level:    e = quantize(Conv1x1([condition, features]))
                         where condition = conditioner([e, condition] of the next coarser level)

    image = decoder([e of every level, upsampled to the finest grid])

All convolutions run in the memory format channels_last, which GPUs and CPUs compute faster. The vectors of a position
are then contiguous, so that nothing is copied on the way to the quantiser.

Shapes: B batch, C image channels, H W image size, h w grid of a level, R hidden units, D code dimension, K codes.
Lists of levels are coarsest first, here and everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vqvae2.autoencoder.base import Quantized, Quantizer
from vqvae2.autoencoder.layers import (
    channels_last,
    downsample,
    residual_stack,
    sonnet_weights,
    upsample,
)
from vqvae2.autoencoder.quantizers import make_quantizer
from vqvae2.codes import Codes, CodesError, Geometry
from vqvae2.config.models import AutoencoderConfig, ConfigError
from vqvae2.config.numbers import whole
from vqvae2.modes import eval_mode, without_autocast
from vqvae2.noise import integers, uniform
from vqvae2.tf32 import without_tf32


@dataclass(frozen=True)
class Reconstruction:
    """The result of `VQVAE.forward`.

    Attributes:
        images: [B, C, H, W], the decoder's linear output; about [-1, 1], not clipped.
        levels: the result of each level's quantiser, coarsest first.
        used: [B] int64, how many levels, from the coarsest, each image was decoded from; all without `nested_dropout`.
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
        """Scalar: the sum of the quantisers' losses over the levels (Razavi et al. 2019, eq. 2)."""
        return torch.stack([level.loss for level in self.levels]).sum()


class _Level(nn.Module):
    """One level: its encoder, its quantiser, and the networks that its codes enter.

    Args:
        config: the autoencoder's.
        level: 0 is the coarsest.
    """

    def __init__(self, config: AutoencoderConfig, level: int) -> None:
        super().__init__()
        width, dim = config.hidden, config.code_dim
        finer = config.levels - 1 - level  # how many levels are finer than this one
        condition = dim if level else 0  # channels of the conditioning on coarser levels
        channels = width if finer else config.channels
        self.encoder = nn.Sequential(
            downsample(channels, width, width, config.strides[finer], relu=config.stem_relu),
            residual_stack(width, config.residual, config.blocks),
        )
        self.projection = nn.Conv2d(width + condition, dim, 1)
        self.quantizer = make_quantizer(config, config.codes[level])
        self.conditioner: nn.Sequential | None = None
        if finer:
            self.conditioner = nn.Sequential(
                nn.Conv2d(dim + condition, width, 3, padding=1),
                residual_stack(width, config.residual, config.blocks),
                upsample(width, dim, width, config.strides[finer]),
            )
        # the decoder's input from this level, upsampled to the finest grid; the finest level needs no upsampling
        self.to_finest = nn.Sequential(
            *(upsample(dim, dim, 2 * dim, config.strides[i]) for i in range(finer, 0, -1))
        )

    def quantize(self, features: Tensor, condition: Tensor | None) -> Quantized:
        """Quantise features [B, R, h, w] given the conditioning on coarser levels [B, D, h, w]; the result has axes [B, h, w, ...]."""
        z = self.projection(features if condition is None else torch.cat([condition, features], 1))
        quantized: Quantized = self.quantizer(z.permute(0, 2, 3, 1))
        return quantized

    def condition_next(self, e: Tensor, condition: Tensor | None) -> Tensor | None:
        """The conditioning of the next finer level [B, D, h', w'] from codes e and conditioning [B, D, h, w]; None at the finest."""
        if self.conditioner is None:
            return None
        following: Tensor = self.conditioner(e if condition is None else torch.cat([e, condition], 1))
        return following


class VQVAE(nn.Module):
    """Hierarchical vector-quantised autoencoder with 1 to 4 levels.

    `torch.compile(model)` compiles training and inference without a graph break.

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
        channels_last(self)

    @property
    def quantizers(self) -> tuple[Quantizer, ...]:
        """The levels' quantisers, coarsest first."""
        return tuple(level.quantizer for level in self._levels())

    def geometry(self, height: int, width: int) -> Geometry:
        """The grids of images of this size.

        Raises:
            ConfigError: the strides do not divide the size.
        """
        return self.config.geometry(height, width)

    def forward(self, images: Tensor) -> Reconstruction:
        """Reconstruct images [B, C, H, W] in [-1, 1]; in training mode the codebooks are updated.

        Raises:
            ConfigError: the strides do not divide the size, the channels differ, or the numbers are no floating-point ones.
        """
        quantized = self._quantize(images)
        codes = [_channels_first(level.quantize) for level in quantized]
        every = torch.full((images.shape[0],), self.config.levels, device=images.device)
        if not self.training or not self.config.nested_dropout or self.config.levels == 1:
            return Reconstruction(self._decode(codes), tuple(quantized), every)
        fewer = integers(1, self.config.levels, len(images), images.device)
        dropped = uniform(len(images), images.device) < self.config.nested_dropout
        used = torch.where(dropped, fewer, every)  # nested dropout over levels (Rippel et al. 2014)
        return Reconstruction(self._decode(codes, used), tuple(quantized), used)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Codes:
        """The codes of images [B, C, H, W], float in [-1, 1]; the codebooks do not change, whatever the mode.

        They are computed without TF32 and without autocast, so that they are the same wherever this is called. A model in training
        mode is put into eval mode meanwhile, so no other thread may train or encode with it at the same time.

        Raises:
            ConfigError: the strides do not divide the size, the channels differ, or the numbers are no floating-point ones.
        """
        device = self._device()
        training = (quantizer for quantizer in self.quantizers if quantizer.training)
        with eval_mode(*training), without_tf32(device), without_autocast(device):
            return Codes(tuple(level.encoding_indices for level in self._quantize(images)))

    @torch.no_grad()
    def decode(self, codes: Codes, levels: int | None = None) -> Tensor:
        """The images [B, C, H, W] of codes, clipped to [-1, 1], in the dtype of the weights and without gradients.

        Args:
            codes: every level's codes.
            levels: use only this many levels, from the coarsest. The others are replaced by their mean code (our
                decision: neither index 0 nor a zero vector is a neutral input). None uses all.

        Raises:
            CodesError: wrong number of levels, grids that do not fit each other, codes out of range (which compiled
                code does not check).
            ConfigError: a finest grid that the strides of the coarser levels do not divide.
        """
        count = self.config.levels
        if len(codes.levels) != count:
            raise CodesError(f"expected codes of {count} levels, found {len(codes.levels)}")
        use = count if levels is None else whole(levels, "the number of levels")
        if not 1 <= use <= count:
            raise CodesError(f"expected levels between 1 and {count}, found {levels}")
        codes = codes.to(self._device())
        finest = codes.levels[-1]
        scale = self.config.strides[0]
        if not torch.compiler.is_compiling():  # the check reads values
            self.geometry(finest.shape[1] * scale, finest.shape[2] * scale).check(codes)
        looked_up = [
            _channels_first(quantizer.lookup(level))
            for quantizer, level in zip(self.quantizers, codes.levels, strict=True)
        ]
        used = None if use == count else torch.full((len(codes),), use, device=finest.device)
        images = self._decode(looked_up, used).clamp(-1, 1)
        return images.to(self._levels()[0].projection.weight.dtype)  # under autocast it is a narrower one

    def _levels(self) -> list[_Level]:
        return [level for level in self.levels if isinstance(level, _Level)]

    def _device(self) -> torch.device:
        return self._levels()[0].projection.weight.device

    def check_images(self, images: Tensor) -> None:
        """Raise `ConfigError` unless images are floating-point numbers [B, channels, H, W] with sizes that the strides divide."""
        self.config.check_images(tuple(images.shape))
        if not images.is_floating_point():
            raise ConfigError(f"expected images of floating-point numbers in [-1, 1], found {images.dtype}")

    def _quantize(self, images: Tensor) -> list[Quantized]:
        self.check_images(images)
        weight = self._levels()[0].projection.weight
        features, x = [], images.to(weight.device, weight.dtype).contiguous(memory_format=torch.channels_last)
        for level in reversed(self._levels()):  # the encoders run from the image down to the coarsest grid
            x = level.encoder(x)
            features.append(x)
        quantized: list[Quantized] = []
        condition: Tensor | None = None
        for level, feature in zip(self._levels(), reversed(features), strict=True):
            quantized.append(level.quantize(feature, condition))
            condition = level.condition_next(_channels_first(quantized[-1].quantize), condition)
        return quantized

    def _decode(self, codes: list[Tensor], used: Tensor | None = None) -> Tensor:
        """Decode the levels' vectors [B, D, h, w]; of image b only the used[b] coarsest levels, the others at their mean code."""
        if used is not None:
            codes = [
                torch.where(
                    (used > index).view(-1, 1, 1, 1),
                    e,
                    quantizer.mean_code().to(e.dtype).view(1, -1, 1, 1),  # otherwise all would become float32
                )
                for index, (e, quantizer) in enumerate(zip(codes, self.quantizers, strict=True))
            ]
        finest = [level.to_finest(e) for level, e in zip(self._levels(), codes, strict=True)]
        image: Tensor = self.decoder(torch.cat(finest, 1))
        return image


def _channels_first(x: Tensor) -> Tensor:
    """[B, h, w, D] -> [B, D, h, w], a view; of a contiguous tensor it is in the memory format channels_last."""
    return x.permute(0, 3, 1, 2)
