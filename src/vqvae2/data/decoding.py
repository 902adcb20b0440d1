"""One encoded picture to a square of pixels: formats, colour, orientation, size, and everything that is broken.

    bytes or a file --open, check max_pixels--> colour, upright --resize, centre square--> uint8 [P, P, C]

Shapes: C channels, S the configured size, P = round(S * scale) the stored side.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError
from vqvae2.data.listing import Payload
from vqvae2.data.pixels import Pixels

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF")
"""What is opened, in Pillow's names; it reads much more, some of it by starting other programs."""


def load_image(
    source: bytes | str | Path, config: DataConfig, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Pixels:
    """Decode one picture: colour, orientation, resize of the short side, centre crop.

    Args:
        source: a file, or the encoded bytes.
        config: size, scale, channels, background and max_pixels are used.
        resample: how the size is changed; the default is smooth both ways.

    Returns:
        uint8 [P, P, C] with P = round(size * scale).

    Raises:
        DataError: it is missing, broken, truncated, empty, no picture, or larger than max_pixels; says why.
    """
    try:
        return decode(source, config, resample)
    except DataError as error:
        raise error if isinstance(source, bytes) else DataError(f"{source}: {error}") from error


def load_mask(source: bytes | str | Path, config: DataConfig) -> NDArray[np.bool_]:
    """Decode a mask the way `load_image` decodes its picture: centre square, but the nearest pixel, nothing smoothed.

    Args:
        source: a file, or the encoded bytes; colours count as their grey, what is transparent as black.
        config: size, scale and max_pixels are used.

    Returns:
        bool [P, P], True where it is white (grey at least 128 of 255).

    Raises:
        DataError: as `load_image`.
    """
    grey = config.model_copy(update={"channels": 1, "background": "black"})
    return load_image(source, grey, Image.Resampling.NEAREST)[..., 0] >= 128


def decode(
    source: bytes | str | Path, config: DataConfig, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Pixels:
    """`load_image` whose error is the reason alone."""
    try:
        if not (len(source) if isinstance(source, bytes) else Path(source).stat().st_size):
            raise DataError("zero bytes")
        with (
            _quiet(),
            Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image,
        ):
            width, height = image.size
            if width * height > config.max_pixels:
                raise DataError(f"{width}x{height} pixels, more than max_pixels = {config.max_pixels}")
            side = stored_side(config)
            image.draft(None, (2 * side, 2 * side))  # JPEG: decode smaller
            image.load()
            return _square(_channels(_upright(image), config), side, resample)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError("not a picture (JPEG, PNG, WebP, GIF, BMP or TIFF)") from None
    except Exception as error:  # a broken file may raise anything
        if isinstance(error, OSError) and error.strerror:
            raise DataError(error.strerror) from error
        raise DataError(f"broken: {' '.join(str(error).split()) or type(error).__name__}") from error


def stored_side(config: DataConfig) -> int:
    """P: the side in pixels at which pictures are kept."""
    return round(config.size * config.scale)


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of Pillow, and its own limit of pixels off: ours is checked right after the header."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Image.MAX_IMAGE_PIXELS = None
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data says nothing about the pixels
        return image


def _channels(image: Image.Image, config: DataConfig) -> Image.Image:
    """Any Pillow mode to L, RGB or RGBA; transparent pixels on the background unless alpha is kept."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _deep_grey(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
    if config.channels == 4:
        return image if image.mode == "RGBA" else image.convert("RGB").convert("RGBA")
    if image.mode == "RGBA":
        behind = Image.new("RGBA", image.size, background(config))
        image = Image.alpha_composite(behind, image)
    if config.channels == 1:
        return image if image.mode == "L" else image.convert("RGB").convert("L")
    return image.convert("RGB")


def background(config: DataConfig) -> tuple[int, int, int, int]:
    """The background as RGBA, opaque.

    Raises:
        DataError: no such colour.
    """
    try:
        red, green, blue, *_ = ImageColor.getrgb(config.background)
    except ValueError:
        raise DataError(
            f"background: expected a colour name or #rrggbb, found {config.background!r}"
        ) from None
    return red, green, blue, 255


def _deep_grey(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit or floating-point grey to 8 bits: 65535, or 1.0, becomes 255."""
    values = np.asarray(image).astype(np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    if not np.isfinite(values).all() or values.max() > top:
        raise DataError(f"grey values beyond {top:g} (mode {image.mode}) have no agreed range")
    grey = Image.fromarray(np.rint(values.clip(0, top) * (255 / top)).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
        return Image.merge("LA", (grey, alpha))
    return grey


def _square(image: Image.Image, side: int, resample: Image.Resampling) -> Pixels:
    """The centre square, resized: uint8 [side, side, C]."""
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    box = (left, top, left + short, top + short)
    image = image.resize((side, side), resample, box=box, reducing_gap=3.0)
    array = np.array(image)  # a copy, writable
    return array[..., None] if array.ndim == 2 else array


def decode_many(payloads: Sequence[Payload | None], config: DataConfig) -> tuple[Pixels, list[str | None]]:
    """The usable ones, uint8 [k, P, P, C], and per payload None or the reason why it is not usable."""
    found: list[Pixels] = []
    reasons: list[str | None] = []
    for payload in payloads:
        try:
            if payload is None:
                raise DataError("the row holds no picture")
            found.append(decode(payload, config))
            reasons.append(None)
        except DataError as error:
            reasons.append(str(error))
    side = stored_side(config)
    return np.stack(found) if found else np.empty((0, side, side, config.channels), np.uint8), reasons
