"""Decoding one image file to a square of pixels, whatever its format, colours, orientation, size or damage.

    bytes or file --open, check max_pixels--> upright, L or RGB or RGBA --centre square, resize--> uint8 [P, P, C]

Shapes: C channels, S the configured size, P = round(S * scale) the stored side in pixels.
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
"""The formats that are opened, as Pillow names them. Pillow reads many more, some of them by starting other programs."""


def load_image(
    source: bytes | str | Path, config: DataConfig, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Pixels:
    """Decode one image: turn it upright, convert its colours, crop the centre square and resize it.

    Args:
        source: a file, or the encoded bytes.
        config: size, scale, channels, background and max_pixels are used.
        resample: the filter of the resizing; the default suits both larger and smaller sizes.

    Returns:
        uint8 [P, P, C] with P = round(size * scale).

    Raises:
        DataError: the file is missing, empty, damaged, not an image, or larger than max_pixels; the message says
            which, and names the file.
    """
    try:
        return decode(source, config, resample)
    except DataError as error:
        raise error if isinstance(source, bytes) else DataError(f"{source}: {error}") from error


def load_whole_image(source: bytes | str | Path, config: DataConfig) -> Pixels:
    """As `load_image`, but with its own size and all of it: uint8 [H, W, C]. `channels`, `background` and `max_pixels` are used.

    Raises:
        DataError: as `load_image`.
    """
    try:
        return _decoded(source, config, whole=True)
    except DataError as error:
        raise error if isinstance(source, bytes) else DataError(f"{source}: {error}") from error


def load_mask(source: bytes | str | Path, config: DataConfig) -> NDArray[np.bool_]:
    """Decode a mask as `load_image` decodes the image that it belongs to, but with the nearest pixel instead of smoothing.

    Args:
        source: a file, or the encoded bytes; colours are converted to grey, transparent pixels to black.
        config: size, scale and max_pixels are used.

    Returns:
        bool [P, P], True where the mask is white (grey of at least 128 out of 255).

    Raises:
        DataError: as `load_image`.
    """
    grey = config.model_copy(update={"channels": 1, "background": "black"})
    return load_image(source, grey, Image.Resampling.NEAREST)[..., 0] >= 128


def decode(
    source: bytes | str | Path, config: DataConfig, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Pixels:
    """As `load_image`, but the message of an error is the reason alone, without the name of the file."""
    return _decoded(source, config, resample)


def _decoded(
    source: bytes | str | Path,
    config: DataConfig,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
    whole: bool = False,
) -> Pixels:
    """The centre square, resized, uint8 [P, P, C]; or the whole image as it is, uint8 [H, W, C]."""
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
            if whole:
                image.load()
                array = np.array(_channels(_upright(image), config))
                return array[..., None] if array.ndim == 2 else array
            side = stored_side(config)
            image.draft(None, (2 * side, 2 * side))  # a JPEG is decoded at a reduced size, which is faster
            image.load()
            return _square(_channels(_upright(image), config), side, resample)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError("not an image (JPEG, PNG, WebP, GIF, BMP or TIFF)") from None
    except Exception as error:  # Pillow may raise any exception for a damaged file
        if isinstance(error, OSError) and error.strerror:
            raise DataError(error.strerror) from error
        raise DataError(f"broken: {' '.join(str(error).split()) or type(error).__name__}") from error


def stored_side(config: DataConfig) -> int:
    """P: the side in pixels of the square at which images are kept."""
    return round(config.size * config.scale)


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off Pillow's warnings and its limit of pixels; `max_pixels` is checked right after the header is read."""
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
    except Exception:  # damaged EXIF data does not make the pixels unusable
        return image


def _channels(image: Image.Image, config: DataConfig) -> Image.Image:
    """Convert any Pillow mode to L, RGB or RGBA; with 1 or 3 channels transparent pixels show the background."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _deep_grey(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
    if config.channels == 4:
        return image if image.mode == "RGBA" else image.convert("RGB").convert("RGBA")
    if image.mode == "RGBA":
        colour = Image.new("RGBA", image.size, background(config))
        image = Image.alpha_composite(colour, image)
    if config.channels == 1:
        return image if image.mode == "L" else image.convert("RGB").convert("L")
    return image.convert("RGB")


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


def _deep_grey(image: Image.Image) -> Image.Image:
    """Convert 16-bit, 32-bit or floating-point grey to 8 bits; 65535, or 1.0 for floating point, becomes 255."""
    values = np.asarray(image).astype(np.float64)
    largest = 1.0 if image.mode == "F" else 65535.0
    if not np.isfinite(values).all() or values.max() > largest:
        raise DataError(f"grey values beyond {largest:g} (mode {image.mode}) have no agreed range")
    grey = Image.fromarray(np.rint(values.clip(0, largest) * (255 / largest)).astype(np.uint8))
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
    array = np.array(image)  # np.array copies, so the result is writable
    return array[..., None] if array.ndim == 2 else array


def decode_many(payloads: Sequence[Payload | None], config: DataConfig) -> tuple[Pixels, list[str | None]]:
    """Decode several images.

    Returns:
        The k images that are usable, uint8 [k, P, P, C], and per payload None or the reason why it cannot be used.
    """
    decoded: list[Pixels] = []
    reasons: list[str | None] = []
    for payload in payloads:
        try:
            if payload is None:
                raise DataError("the row holds no image")
            decoded.append(decode(payload, config))
            reasons.append(None)
        except DataError as error:
            reasons.append(str(error))
    side = stored_side(config)
    return np.stack(decoded) if decoded else np.empty((0, side, side, config.channels), np.uint8), reasons
