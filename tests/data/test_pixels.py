"""Conversions between pixels and float images, their inverse, and the signal-to-noise ratio."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vqvae2.data.errors import DataError
from vqvae2.data.pixels import psnr, to_float, to_pil, to_uint8


def test_scaling_is_inverse_for_every_value() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(2, 16, 16, 3)
    images = to_float(pixels)
    assert images.shape == (2, 3, 16, 16)
    assert images.dtype == torch.float32
    assert images.min() == -1
    assert images.max() == 1
    assert torch.equal(to_uint8(images), pixels)


def test_uint8_clips_and_rounds() -> None:
    values = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]).reshape(1, 1, 1, 5)
    assert to_uint8(values).flatten().tolist() == [0, 0, 128, 255, 255]
    assert to_uint8(values.to(torch.bfloat16)).dtype == torch.uint8


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_to_pil(channels: int, mode: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (2, 5, 7, channels), dtype=torch.uint8, generator=generator)
    converted = to_pil(to_float(pixels))
    assert [(image.mode, image.size) for image in converted] == [(mode, (7, 5))] * 2
    assert np.array_equal(np.asarray(converted[1]).reshape(5, 7, channels), pixels[1].numpy())


def test_to_pil_refuses_other_shapes() -> None:
    with pytest.raises(DataError, match="1 or 3 or 4"):
        to_pil(torch.zeros(1, 2, 4, 4))


def test_psnr_of_a_known_error() -> None:
    white = torch.ones(2, 3, 4, 4)
    result = psnr(torch.stack([white[0] * 3, white[0] - 0.02]), white)  # clipped; 1 % of the range of 2
    assert result.tolist() == pytest.approx([100 + 10 * np.log10(4), 40], abs=1e-3)
