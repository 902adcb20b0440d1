"""From any Pillow mode and colour profile to grey, RGB or RGBA in sRGB.

Nothing is clipped or inverted: values that have no place in 0..255 by an agreed rule are refused.
"""

from __future__ import annotations

import functools
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageColor

from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError, ImageError

CONVERTED = "colour profile converted to sRGB"
IGNORED = "colour profile ignored, because it is damaged or does not fit the pixels"

_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_LARGEST_PROFILE = 4 << 20  # bytes
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}  # of profiles, to Pillow's modes
_PROBE = (
    (0, 0, 0),
    (255, 255, 255),
    (200, 80, 40),
    (40, 200, 80),
    (60, 60, 220),
    (128, 128, 128),
    (250, 240, 10),
)
_SAME = 1  # a profile that changes no probe by more than this out of 255 is sRGB itself
_PHOTOMETRIC, _BITS = 262, 258  # tags of TIFF files
_ROWS = 256  # rows of a deep image that are converted at a time


def has_alpha(image: Image.Image) -> bool:
    """Whether an image has transparent pixels in any of the ways that Pillow knows."""
    return image.mode in _ALPHA or "transparency" in image.info


def background(config: DataConfig) -> tuple[int, int, int, int]:
    """The configured background colour as opaque RGBA, each 0..255.

    Raises:
        DataError: `config.background` is no colour.
    """
    try:
        red, green, blue, *_ = ImageColor.getrgb(config.background)
    except ValueError:
        raise DataError(
            f"background: expected a colour name or #rrggbb, found {config.background!r}"
        ) from None
    return red, green, blue, 255


def to_channels(image: Image.Image, config: DataConfig, remarks: list[str]) -> Image.Image:
    """Convert an 8-bit image of any mode to L, RGB or RGBA; with 1 or 3 channels transparent pixels show the background.

    Args:
        image: of a mode with 8 bits per channel; `info` holds its colour profile, if it has one.
        config: `channels` and `background` are used.
        remarks: what was done with the colour profile is appended.
    """
    profile = image.info.get("icc_profile")
    if has_alpha(image):
        image = image.convert("RGBA")
    elif image.mode == "P":
        image = image.convert("RGB")
    if profile:
        image = _in_srgb(image, profile, remarks)
    if config.channels == 4:
        return image if image.mode == "RGBA" else _rgb(image).convert("RGBA")
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, background(config)), image)
    if config.channels == 1:
        return image if image.mode == "L" else _rgb(image).convert("L")
    return _rgb(image)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":  # without a usable profile: Pillow has no conversion of its own
        standard = ImageCms.buildTransform(
            ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
        )
        converted = ImageCms.applyTransform(image, standard)
        assert converted is not None
        return converted
    return image.convert("RGB")


def _in_srgb(image: Image.Image, profile: Any, remarks: list[str]) -> Image.Image:
    """The image with its colours converted from its profile to sRGB; without a usable profile, as it is."""
    mode = "RGB" if image.mode == "RGBA" else image.mode
    transform = _transform(profile, mode) if isinstance(profile, bytes) else IGNORED
    if transform is None:
        return image
    if isinstance(transform, str):
        remarks.append(transform)
        return image
    try:
        converted = ImageCms.applyTransform(image.convert(mode), transform)
    except ImageCms.PyCMSError:
        remarks.append(IGNORED)
        return image
    assert converted is not None
    if image.mode == "RGBA":
        converted.putalpha(image.getchannel("A"))
    remarks.append(CONVERTED)
    return converted


@functools.lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | str | None:
    """From a profile to sRGB for pixels of a mode; None = the profile is sRGB, a text = why it is not used."""
    if len(profile) > _LARGEST_PROFILE:
        return IGNORED
    try:
        opened = ImageCms.ImageCmsProfile(BytesIO(profile))
        if _SPACES.get(opened.profile.xcolor_space.strip()) != mode:
            return IGNORED
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode in ("RGB", "L"):
            probe = Image.new(mode, (len(_PROBE), 1))
            for x, colour in enumerate(_PROBE):
                probe.putpixel((x, 0), colour if mode == "RGB" else colour[0])
            shown = ImageCms.applyTransform(probe, transform)
            assert shown is not None
            difference = np.asarray(shown, int) - np.asarray(probe.convert("RGB"), int)
            return transform if np.abs(difference).max() > _SAME else None
        return transform
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return IGNORED


def is_deep(image: Image.Image) -> bool:
    """Whether the image is grey with more than 8 bits per pixel, or with floating-point numbers."""
    return image.mode.startswith("I") or image.mode == "F"


class Depth(NamedTuple):
    """What the tags of a TIFF say about the numbers of a deep image; to be read before the image is turned.

    Attributes:
        largest: the number that becomes white, or black in an inverted image.
        inverted: whether 0 is white, which Pillow respects with up to 8 bits only.
    """

    largest: float
    inverted: bool

    @classmethod
    def of(cls, image: Image.Image) -> Depth:
        """The depth of an opened image."""
        tags = getattr(image, "tag_v2", {})
        bits = tags.get(_BITS)
        largest = 65535.0
        if image.mode == "F":
            largest = 1.0
        elif isinstance(bits, tuple) and len(bits) == 1 and 8 < bits[0] < 16:
            largest = float(2 ** bits[0] - 1)
        return cls(largest, bool(tags.get(_PHOTOMETRIC) == 0))


def deep_grey(image: Image.Image, depth: Depth) -> Image.Image:
    """Deep grey as 8 bits: the largest whole number of its depth, or 1.0 for floating point, becomes 255.

    Raises:
        ImageError: values below 0 or above that, which would have to be clipped, or that are not finite.
    """
    values = np.asarray(image)
    largest = depth.largest
    lowest, highest = values.min(), values.max()
    if not (lowest >= 0 and highest <= largest):  # NaN fails both
        raise ImageError(
            f"grey values from {lowest:g} to {highest:g} (mode {image.mode}) have no agreed range: expected 0 to {largest:g}"
        )
    if depth.inverted:
        values = np.asarray(largest - values, values.dtype)
    grey = np.empty(values.shape, np.uint8)
    for at in range(0, len(values), _ROWS):
        rows: NDArray[Any] = values[at : at + _ROWS].astype(np.float64)
        grey[at : at + _ROWS] = np.rint(rows * (255 / largest))
    result = Image.fromarray(grey)
    key = image.info.get("transparency")
    if isinstance(key, int):
        result.putalpha(Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8)))
    return result
