"""Pure measures of images: how near a reconstruction is to its original, and how near an image is to its mirror image.

Every measure returns one figure per image, float64 [B]. All are computed in float64 except SSIM and MS-SSIM: their windows take
17 times as long in float64 (64 px, on a CPU), and float32 changes the figure of an image by 2e-5 only. Reconstructions are
clipped to [-1, 1] before the comparison, as they are when they are shown, so the error is at most the one that training
minimises. The peak signal-to-noise ratio is `vqvae2.data.pixels.psnr`.

Shapes: B images, C channels (all with the same weight), H W px.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from vqvae2.autoencoder.perceptual import PerceptualDistance
from vqvae2.evaluate.metrics import MetricError
from vqvae2.tf32 import without_tf32

# pixels that go through the network of the perceptual distance at once (about 0.5 GB, and 2 GB on a card), at least one image
_PIXELS, _ON_A_CARD = 2**18, 2**20
_WINDOW = 11  # px of SSIM's Gaussian window
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM's scales, finest first


def mean_squared_error(images: Tensor, originals: Tensor, span: float = 2.0) -> Tensor:
    """Mean squared error over pixels and channels, [B]; both [B, C, H, W] in [-1, 1].

    Args:
        span: length of the pixel range to which the error refers: 2 for [-1, 1], 1 for [0, 1] (a quarter of the former).

    Raises:
        MetricError: shapes that differ.
    """
    _check(images, originals)
    errors = images.detach().double().clamp(-1, 1) - originals.detach().double()
    return errors.square().mean((1, 2, 3)) * (span / 2) ** 2


@torch.no_grad()
def perceptual_distance(images: Tensor, originals: Tensor, network: PerceptualDistance) -> Tensor:
    """The perceptual distance, at least 0, [B], on the CPU; both [B, C, H, W] in [-1, 1]. Computed in float32 where the network is.

    Raises:
        MetricError: shapes that differ.
    """
    _check(images, originals)
    part = at_once(images, network.mean.device)
    pairs = zip(images.split(part), originals.split(part), strict=True)
    with without_tf32(network.mean.device):
        return torch.cat([network(*pair) for pair in pairs]).cpu().double()


def at_once(images: Tensor, device: torch.device) -> int:
    """How many of these images go through the network of the perceptual distance at once."""
    pixels = _PIXELS if device.type == "cpu" else _ON_A_CARD
    return max(1, pixels // (images.shape[2] * images.shape[3]))


@torch.no_grad()
def perceptual_aims(originals: Tensor, network: PerceptualDistance) -> list[Tensor]:
    """What `distance_to_aims` compares with; computed as in `perceptual_distance`."""
    with without_tf32(network.mean.device):
        return network.aims(originals)


@torch.no_grad()
def distance_to_aims(images: Tensor, aims: list[Tensor], network: PerceptualDistance) -> Tensor:
    """As `perceptual_distance`, to originals that are compared more than once."""
    with without_tf32(network.mean.device):
        return network.between(images, aims).cpu().double()


def structural_similarity(images: Tensor, originals: Tensor) -> Tensor:
    """SSIM, at most 1, [B]; both [B, C, H, W] in [-1, 1]. Wang et al. 2004, IEEE TIP 13(4): window 11 px, K1 .01, K2 .03.

    Pixels are mapped to [0, 1] first, because the measure compares brightness by ratios, which have no meaning around 0.

    Raises:
        MetricError: shapes that differ, or sides below 6 px.
    """
    _check(images, originals)
    if min(images.shape[2:]) <= _WINDOW // 2:
        raise MetricError(
            f"SSIM needs sides of at least {_WINDOW // 2 + 1} px, found {list(images.shape[2:])}"
        )
    similarity = structural_similarity_index_measure(
        _unit(images), _unit(originals), reduction="none", data_range=1.0
    )
    assert isinstance(similarity, Tensor)
    return similarity.double()


def scales(height: int, width: int) -> int:
    """How many scales of MS-SSIM fit into an image, 0 to 5: the window must fit into the coarsest scale, and the library
    sets a limit of its own.

    Sides of 176 px allow all five, 99 px four, 44 px three, 22 px two.
    """
    side = min(height, width)
    return sum(side >= _WINDOW * max(2**scale, scale**2) for scale in range(len(_WEIGHTS)))


def multiscale_similarity(images: Tensor, originals: Tensor) -> Tensor | None:
    """MS-SSIM, in [0, 1], [B]; both [B, C, H, W] in [-1, 1]. Wang, Simoncelli and Bovik 2003, Asilomar 37.

    None if fewer than two scales fit (sides below 22 px). If fewer than five fit, the finest ones are used, with their weights
    divided by their sum (our decision); such figures compare only with figures of as many `scales`.

    Raises:
        MetricError: shapes that differ.
    """
    _check(images, originals)
    weights = _WEIGHTS[: scales(*images.shape[2:])]
    if len(weights) < 2:
        return None
    similarity = multiscale_structural_similarity_index_measure(
        _unit(images),
        _unit(originals),
        reduction="none",
        data_range=1.0,
        betas=tuple(weight / sum(weights) for weight in weights),
    )
    return similarity.double()


def mirror_error(images: Tensor, relative: bool = False) -> Tensor:
    """How far images [B, C, H, W] in [-1, 1] are from their left-right mirror images, [B]. Our measure.

    It is the root of the mean squared difference, in [0, 2]. The relative error is this divided by twice the standard deviation
    of the image (around the mean of each channel). It is in [0, 1] and does not depend on contrast and brightness: 0 for a
    symmetric image, 1 if the halves are each other's negatives, about 0.71 for noise. Its square is the share of the variance
    that is odd under mirroring. An image without contrast counts as symmetric.

    Args:
        relative: return the relative error.

    Raises:
        MetricError: another shape.
    """
    _check(images, images)
    exact = images.detach().double()
    error = (exact - exact.flip(3)).square().mean((1, 2, 3))
    if not relative:
        return error.sqrt()
    variance = exact.var((2, 3), correction=0).mean(1)
    return (error / (4 * variance.clamp_min(1e-12))).clamp(0, 1).sqrt()


def _unit(images: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], clipped."""
    return images.detach().float().add(1).div(2).clamp(0, 1)


def _check(images: Tensor, originals: Tensor) -> None:
    """Raise `MetricError` unless both are images [B, C, H, W] of one shape."""
    if images.ndim != 4 or not images.numel() or images.shape != originals.shape:
        raise MetricError(
            f"expected images [B, C, H, W] of one shape, found {list(images.shape)} and {list(originals.shape)}"
        )
