"""What the page shows, as PNG in data URLs: images, grids of codes in colours, and where the bits are.

Shapes: C channels, H W image size, h w grid of a level, D code dimension, K codes.
"""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vqvae2.data.grid import png_bytes
from vqvae2.data.pixels import to_pil, viewable

_BITS = np.array(  # from few bits to many: dark blue, violet, orange, light yellow
    [(13, 8, 60), (90, 20, 120), (190, 55, 85), (245, 125, 40), (252, 240, 165)], dtype=np.float64
)


def data_url(picture: Image.Image) -> str:
    """A Pillow image as a PNG in a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png_bytes(picture)).decode('ascii')}"


def image_urls(images: Tensor) -> list[str]:
    """Images [B, C, H, W] in [-1, 1], of any number of channels."""
    return [data_url(image) for image in to_pil(viewable(images))]


def palette(codebook: Tensor) -> Tensor:
    """Colours of the codes [K, 3] uint8: codes with similar vectors [K, D] have similar colours.

    They are the first three principal components of the codebook, each spread evenly over the range by rank.
    """
    vectors = codebook.detach().cpu().double()
    centred = vectors - vectors.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    turned = centred @ directions[:3].T
    ranks = turned.argsort(0).argsort(0).double() / max(1, len(vectors) - 1)
    colours = torch.full((len(vectors), 3), 128.0, dtype=torch.float64)
    colours[:, : ranks.shape[1]] = 30 + ranks * 210
    return colours.round().to(torch.uint8)


def codes_url(grid: Tensor, colours: Tensor) -> str:
    """A grid of codes [h, w] in the colours [K, 3] of a palette, one pixel for each code."""
    return data_url(Image.fromarray(colours[grid.cpu().long()].numpy()))


def bits_url(bits: Tensor, most: float) -> str:
    """Bits of each code [h, w] from dark (0) to light (`most` and more), one pixel for each code."""
    share = (bits.double().cpu().numpy() / max(most, 1e-9)).clip(0, 1) * (len(_BITS) - 1)
    low = np.floor(share).astype(int).clip(0, len(_BITS) - 2)
    part = (share - low)[..., None]
    return data_url(
        Image.fromarray(np.rint(_BITS[low] * (1 - part) + _BITS[low + 1] * part).astype(np.uint8))
    )


def read_mask(url: str, height: int, width: int) -> Tensor:
    """The mask [H, W] bool that was painted on the page: True where the picture in the data URL is white.

    Raises:
        ValueError: it is no PNG, or has another size.
    """
    head, _, text = url.partition(",")
    if head != "data:image/png;base64":
        raise ValueError("expected the mask as a PNG in a data URL")
    try:
        with Image.open(BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as picture:
            if picture.size != (width, height):
                raise ValueError(
                    f"expected a mask of {width}x{height} px, found {picture.width}x{picture.height}"
                )
            return torch.from_numpy(np.asarray(picture.convert("L")) >= 128)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the mask is no picture: {error}") from None
