"""The autoencoder on images that are too large to be computed at once: in blocks with a border that is thrown away.

    image --blocks with a border--> encode each --cut off the border--> codes of the whole image; decoding alike

All layers are convolutions, so what a network computes at a position depends on a bounded surrounding. The border (halo) is as
wide as that, so every block gives what the whole image would give, up to rounding; where a block touches the edge of the image
both see the same zero padding.

Shapes: C channels, H W image size, h w the grid of a level.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vqvae2.autoencoder.layers import ResidualBlock
from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes

BLOCK = 512
"""Pixels of the side of a block, without its border, about."""


def reach(module: nn.Module, border: int) -> int:
    """How many positions at each edge of a network's output are wrong when `border` positions at each edge of its input are.

    The edge itself is artificial, so zero padding there counts as wrong too.

    Raises:
        TypeError: a layer that mixes positions and is no convolution.
    """
    if isinstance(module, nn.Sequential):
        for layer in module:
            border = reach(layer, border)
        return border
    if isinstance(module, ResidualBlock):
        return max(border, reach(module.conv1, reach(module.conv3, border)))
    if isinstance(module, nn.Conv2d):
        return max(_conv(module, axis, border) for axis in (0, 1))
    if isinstance(module, nn.ConvTranspose2d):
        return max(_transposed(module, axis, border) for axis in (0, 1))
    if isinstance(module, nn.ReLU):
        return border
    raise TypeError(f"no rule for the surroundings that {type(module).__name__} sees")


def _conv(conv: nn.Conv2d, axis: int, border: int) -> int:
    kernel, stride, padding = conv.kernel_size[axis], conv.stride[axis], int(conv.padding[axis])
    first = -(-(border + padding) // stride)  # output i sees i x stride - padding and kernel - 1 more
    last = -(-(border + kernel - stride - padding) // stride)
    return max(first, last)


def _transposed(conv: nn.ConvTranspose2d, axis: int, border: int) -> int:
    kernel, stride, padding = conv.kernel_size[axis], conv.stride[axis], int(conv.padding[axis])
    # input i reaches outputs i x stride - padding to i x stride - padding + kernel - 1
    return max(0, border * stride + kernel - 1 - padding - (stride - 1))


def encoder_halo(model: VQVAE) -> int:
    """Pixels around a block on which its codes depend, rounded up to the stride of the coarsest level."""
    levels: list[Any] = list(model.levels)
    strides = _strides(model)
    features, border = [], 0
    for level in reversed(levels):
        border = reach(level.encoder, border)
        features.append(border)
    widest, condition = 0, 0
    for level, own, stride in zip(levels, reversed(features), strides, strict=True):
        border = max(own, condition)
        widest = max(widest, border * stride)
        condition = reach(level.conditioner, border) if level.conditioner is not None else 0
    return -(-widest // strides[0]) * strides[0]


def decoder_halo(model: VQVAE) -> int:
    """As `encoder_halo`, of the pixels that a block of codes is decoded to."""
    levels: list[Any] = list(model.levels)
    border = max(reach(level.to_finest, 0) for level in levels)
    pixels, stride = reach(model.decoder, border), _strides(model)[0]
    return -(-pixels // stride) * stride


def encode_large(model: VQVAE, images: Tensor, block: int = BLOCK) -> Codes:
    """The codes of images of any size.

    Args:
        model: in eval mode.
        images: [B, C, H, W] in [-1, 1], on the device of the model; the strides divide H and W.
        block: pixels, about.
    """
    strides = _strides(model)
    count, _, height, width = images.shape
    grids = [(height // stride, width // stride) for stride in strides]
    whole = [torch.zeros(count, *grid, dtype=torch.int64, device=images.device) for grid in grids]
    for inner, outer in _blocks(height, width, _whole(block, strides[0]), encoder_halo(model)):
        codes = model.encode(images[:, :, outer[0], outer[1]])
        for level, stride, target in zip(codes.levels, strides, whole, strict=True):
            target[_scaled(inner, stride)] = level[_scaled(_within(inner, outer), stride)]
    return Codes(tuple(whole))


def decode_large(model: VQVAE, codes: Codes, levels: int | None = None, block: int = BLOCK) -> Tensor:
    """The images [B, C, H, W] of codes, on the device of the codes; `levels` as of `VQVAE.decode`, `block` as above."""
    strides = _strides(model)
    height, width = (side * strides[-1] for side in codes.levels[-1].shape[1:])
    images = torch.zeros(len(codes), model.config.channels, height, width, device=codes.levels[0].device)
    for inner, outer in _blocks(height, width, _whole(block, strides[0]), decoder_halo(model)):
        parts = (level[_scaled(outer, stride)] for level, stride in zip(codes.levels, strides, strict=True))
        decoded = model.decode(Codes(tuple(parts)), levels)
        rows, columns = _within(inner, outer)
        images[:, :, inner[0], inner[1]] = decoded[:, :, rows, columns]
    return images


_Window = tuple[slice, slice]


def _blocks(height: int, width: int, block: int, halo: int) -> Iterator[tuple[_Window, _Window]]:
    """Windows that cover an image, and the same with their border as far as the image reaches."""
    for top in range(0, height, block):
        for left in range(0, width, block):
            bottom, right = min(top + block, height), min(left + block, width)
            outer = (
                slice(max(0, top - halo), min(height, bottom + halo)),
                slice(max(0, left - halo), min(width, right + halo)),
            )
            yield (slice(top, bottom), slice(left, right)), outer


def _within(inner: _Window, outer: _Window) -> _Window:
    """The inner window, counted from the corner of the outer one."""
    rows, columns = (slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
    return rows, columns


def _scaled(window: _Window, stride: int) -> tuple[slice, slice, slice]:
    """The cells of a window of pixels in a grid [1, h, w]."""
    rows, columns = (slice(part.start // stride, part.stop // stride) for part in window)
    return slice(None), rows, columns


def _strides(model: VQVAE) -> list[int]:
    """Pixels of a cell of each level, coarsest first."""
    return list(itertools.accumulate(model.config.strides, operator.mul))[::-1]


def _whole(block: int, stride: int) -> int:
    return max(1, block // stride) * stride
