"""Conversions between uint8 pixels and the float images of the networks; no other file scales pixels.

    uint8 [B, H, W, C] in 0..255, or int16 --to_float--> float [B, C, H, W] in [-1, 1] --to_uint8 or to_pil--> uint8

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vqvae2.data.errors import DataError

Pixels = NDArray[Any]
"""Stored pixels: 8 bits, or 16 bits from -32768 to 32767 where `data.range` is set."""
LEAST_SQUARE = 1e-10
"""What a mean square in [-1, 1] counts as at least, because it divides: a smaller error is a perfect reconstruction."""


def to_float(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, C] in 0..255, or int16 in -32768..32767, to float32 [B, C, H, W] in [-1, 1]."""
    floats = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    if pixels.dtype == torch.int16:
        return floats.add_(0.5).div_(32767.5)
    return floats.div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Float [B, C, H, W] in [-1, 1], clipped and rounded, to uint8 [B, H, W, C]. The inverse of `to_float`."""
    scaled = images.detach().to(torch.float32).add(1).mul_(127.5).round_().clamp_(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


_LARGEST = 1.5  # of a float image: a decoder's output is a little beyond 1, pixels in 0..255 are far beyond (our decision)


def as_tensor(value: Any, what: str = "images") -> Tensor:
    """A tensor of a tensor, an array or a list of numbers.

    Args:
        what: it is, for the message.

    Raises:
        DataError: it is none of them, such as the name of a file.
    """
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        shown = " ".join(repr(value).split())[:80]
        raise DataError(f"expected {what} as a tensor or an array, found {shown}: {error}") from None


def finite(images: Tensor | NDArray[Any]) -> Tensor:
    """The images themselves, as a tensor.

    Raises:
        DataError: no tensor or array; or a floating-point value is NaN, infinite or clearly outside [-1, 1]; the nearest code would make a
            plausible image of it.
    """
    images = as_tensor(images)
    if images.is_floating_point() and images.numel():
        largest = float(images.detach().abs().amax())  # NaN, if there is one
        if not math.isfinite(largest):
            raise DataError("expected images of finite numbers in [-1, 1], found NaN or infinity")
        if largest > _LARGEST:
            raise DataError(
                f"expected images in [-1, 1], found {largest:g} (pixels in 0..255 are scaled by x / 127.5 - 1)"
            )
    return images


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, [B].

    Both are [B, C, H, W]. The range is [-1, 1], so the peak is 2; `images` are clipped to it first. Equal images have
    about 106 dB, because the squared error counts as at least `LEAST_SQUARE`.
    """
    error = (images.double().clamp(-1, 1) - originals.double()).square().mean((1, 2, 3))
    return 10 * torch.log10(4 / error.clamp_min(LEAST_SQUARE))


def decibels(mse: float) -> float:
    """The peak signal-to-noise ratio in dB of a mean squared error, as `psnr`."""
    return 10 * math.log10(4 / max(mse, LEAST_SQUARE))


def viewable(images: Tensor) -> Tensor:
    """Images [B, C, H, W] with channels that can be shown: of 2 channels the first, of more than 4 the first three."""
    channels = images.shape[1]
    return images if channels in (1, 3, 4) else images[:, : 1 if channels == 2 else 3]


def as_rgb(images: Tensor) -> Tensor:
    """[B, 1, 3 or 4, H, W] to [B, 3, H, W]: grey is repeated, alpha dropped."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]


def to_pil(images: Tensor) -> list[Image.Image]:
    """Float [B, C, H, W] in [-1, 1] to Pillow images: grey, RGB or RGBA for C = 1, 3 or 4.

    Raises:
        DataError: `images` have another shape.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3, 4):
        raise DataError(f"expected images [B, 1 or 3 or 4, H, W], found shape {list(images.shape)}")
    arrays = to_uint8(images).cpu().numpy()
    return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]
