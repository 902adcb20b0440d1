"""Measures of images: known errors, torchmetrics in [0, 1] as the oracle, symmetry of known images."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from vqvae2.data.pixels import psnr
from vqvae2.evaluate import image_metrics
from vqvae2.evaluate.image_metrics import (
    mean_squared_error,
    mirror_error,
    multiscale_similarity,
    perceptual_distance,
    scales,
    structural_similarity,
)
from vqvae2.evaluate.metrics import MetricError
from vqvae2.tf32 import tf32_is


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Even in [-1, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- squared error ---


def test_mean_squared_error_of_known_errors() -> None:
    originals = torch.zeros(3, 3, 4, 4)
    images = originals.clone()
    images[0] += 0.1
    images[1, 0, 0, 0] = 1
    images[2] += 9  # clipped to 1
    found = mean_squared_error(images, originals)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([0.01, 1 / 48, 1], abs=1e-8)


@pytest.mark.parametrize("seed", [0, 1])
def test_errors_in_both_ranges_and_in_decibels_agree(seed: int) -> None:
    originals = noise(4, 3, 8, 8, seed=seed)
    images = originals + 0.3 * noise(4, 3, 8, 8, seed=seed + 2)
    signed, unit = (mean_squared_error(images, originals, span) for span in (2, 1))
    of_unit = ((images.clamp(-1, 1) - originals).double() / 2).square().mean((1, 2, 3))
    assert torch.allclose(unit, of_unit, rtol=1e-6)
    assert torch.allclose(psnr(images, originals), 10 * torch.log10(4 / signed), rtol=1e-12)
    assert torch.allclose(psnr(images, originals), 10 * torch.log10(1 / unit), rtol=1e-12)


# --- perceptual distance ---


class Network:
    """A distance on a card that notes how many pixels are compared at once, and must not compute in TF32."""

    mean = SimpleNamespace(device=torch.device("cuda"))

    def __init__(self) -> None:
        self.pixels: list[int] = []

    def __call__(self, images: Tensor, originals: Tensor) -> Tensor:
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
        assert images.shape == originals.shape
        self.pixels.append(images[:, 0].numel())
        return (images - originals).abs().mean((1, 2, 3))


@pytest.mark.parametrize("pixels", [1, 48, 100, 2**20])
def test_few_pixels_go_through_the_network_at_once(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 images of 512 px took tens of gigabytes. The distances are those of each image alone."""
    monkeypatch.setattr(image_metrics, "_ON_A_CARD", pixels)
    images, originals, network = noise(7, 3, 6, 8), noise(7, 3, 6, 8, seed=1), Network()
    with tf32_is(True):
        found = perceptual_distance(images, originals, network)  # type: ignore[arg-type]
    assert max(network.pixels) <= max(pixels, 6 * 8)
    assert sum(network.pixels) == 7 * 6 * 8
    assert found.tolist() == pytest.approx((images - originals).abs().mean((1, 2, 3)).tolist())


# --- structural similarity ---


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 32, 32), (3, 48, 64), (4, 6, 9)])
def test_similarity_is_what_torchmetrics_finds_in_the_range_from_0(
    channels: int, height: int, width: int, seed: int
) -> None:
    originals = noise(3, channels, height, width, seed=seed).double()
    images = (originals + 0.4 * noise(3, channels, height, width, seed=seed + 2)).clamp(-1, 1)
    expected = structural_similarity_index_measure(
        (images + 1) / 2, (originals + 1) / 2, reduction="none", data_range=1.0
    )
    assert isinstance(expected, Tensor)
    found = structural_similarity(images, originals)
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, atol=1e-12)
    assert ((found > 0.1) & (found < 0.99)).all()
    each = torch.cat([structural_similarity(images[[i]], originals[[i]]) for i in range(3)])
    assert torch.allclose(each, found, atol=1e-12)


def test_similarity_of_flat_images() -> None:
    """Black against white in [0, 1]: (2 a b + c1) / (a^2 + b^2 + c1), c1 = 0.01^2; and grey, which is 0 in [-1, 1]."""
    flat = torch.ones(1, 3, 32, 32)
    assert float(structural_similarity(-flat, flat)) == pytest.approx(1e-4 / (1 + 1e-4), rel=1e-6)
    expected = (2 * 0.5 * 0.25 + 1e-4) / (0.25 + 0.0625 + 1e-4)
    assert float(structural_similarity(0 * flat, -0.5 * flat)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("side", [22, 32, 64])
def test_an_image_is_like_itself(side: int) -> None:
    images = noise(2, 3, side, side)
    images[1] = 0.3  # flat
    for found in (structural_similarity(images, images), multiscale_similarity(images, images)):
        assert found is not None
        assert found.tolist() == pytest.approx([1, 1], abs=1e-9)
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    slight = multiscale_similarity(0.9 * images + 0.1 * blurred, images)
    strong = multiscale_similarity(blurred, images)
    assert slight is not None
    assert strong is not None
    assert 1 > slight[0] > strong[0] > 0


@pytest.mark.parametrize(
    ("side", "count"),
    [(6, 0), (11, 1), (21, 1), (22, 2), (43, 2), (44, 3), (98, 3), (99, 4), (175, 4), (176, 5), (256, 5)],
)
def test_as_many_scales_as_fit(side: int, count: int) -> None:
    """One more would be refused by torchmetrics, or leave a coarsest image smaller than the window."""
    assert scales(side, side) == scales(side, 300) == scales(300, side) == count
    found = multiscale_similarity(noise(1, 1, side, 180), noise(1, 1, side, 180))
    assert (found is None) == (count < 2)


@pytest.mark.parametrize("seed", [0, 1])
def test_multiscale_similarity_is_what_torchmetrics_finds(seed: int) -> None:
    originals = noise(2, 1, 176, 180, seed=seed).double()
    images = 0.8 * originals
    plain = multiscale_structural_similarity_index_measure(
        (images + 1) / 2, (originals + 1) / 2, reduction="none", data_range=1.0
    )
    found = multiscale_similarity(images, originals)
    assert found is not None
    assert torch.allclose(found, plain.double(), atol=1e-6)  # its weights sum to 1.0001


# --- symmetry ---


def test_mirror_error_of_known_images() -> None:
    halves = torch.ones(1, 3, 6, 8)
    halves[..., 4:] = -1
    even = noise(1, 3, 6, 8)
    even = (even + even.flip(3)) / 2
    flat = torch.full((1, 3, 6, 8), 0.7)
    images = torch.cat([halves, even, flat])
    assert mirror_error(images).tolist() == pytest.approx([2, 0, 0], abs=1e-9)
    assert mirror_error(images, relative=True).tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    assert mirror_error(images).dtype == torch.float64


@pytest.mark.parametrize("seed", [0, 1])
def test_relative_mirror_error_of_noise(seed: int) -> None:
    """Nothing to do with its mirror image: half the variance is odd."""
    found = mirror_error(noise(8, 3, 64, 64, seed=seed), relative=True)
    assert found.tolist() == pytest.approx([math.sqrt(0.5)] * 8, abs=0.02)


@pytest.mark.parametrize("seed", [0, 1])
def test_contrast_and_brightness_do_not_change_the_relative_mirror_error(seed: int) -> None:
    images = noise(5, 3, 16, 17, seed=seed)
    shades = torch.tensor([0.3, -0.2, 0.5])[:, None, None]
    plain, faint = (mirror_error(x, relative=True) for x in (images, 0.1 * images + shades))
    assert torch.allclose(plain, faint, atol=1e-5)
    assert torch.allclose(mirror_error(0.1 * images + shades), 0.1 * mirror_error(images), atol=1e-6)
    assert torch.allclose(mirror_error(images.flip(3)), mirror_error(images), atol=1e-12)


def test_the_odd_share_of_the_variance() -> None:
    """cos is even about the middle, sin odd: a cos + b sin has b^2 / (a^2 + b^2) of its variance odd."""
    angle = 2 * math.pi * (torch.arange(16) + 0.5 - 8).double() / 16
    for a, b in ((1, 0), (3, 4), (1, 1), (0, 0.2)):
        image = (a * angle.cos() + b * angle.sin()).div(5).expand(1, 1, 4, 16)
        assert float(mirror_error(image, relative=True)) == pytest.approx(b / math.hypot(a, b), abs=1e-6)


def test_images_of_other_shapes() -> None:
    for first, second in ((noise(2, 3, 8, 8), noise(2, 3, 8, 9)), (noise(3, 8, 8), noise(3, 8, 8))):
        for measure in (mean_squared_error, structural_similarity, multiscale_similarity):
            with pytest.raises(MetricError, match="of one shape"):
                measure(first, second)
    with pytest.raises(MetricError, match="of one shape"):
        mirror_error(noise(3, 8, 8))
    with pytest.raises(MetricError, match=r"at least 6 px, found \[5, 9\]"):
        structural_similarity(noise(1, 1, 5, 9), noise(1, 1, 5, 9))
