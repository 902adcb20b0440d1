"""Decoding one image file to pixels of one shape, whatever its format, colours, orientation, size or damage.

    bytes or file --open, check costs--> upright --crop or pad, resize--> L or RGB or RGBA in sRGB: uint8 [PH, PW, C]

Shapes: C channels, PH PW = the configured size times scale, rounded.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vqvae2.config.models import DataConfig
from vqvae2.data.colours import Depth, background, deep_grey, has_alpha, is_deep, to_channels
from vqvae2.data.deep import (
    TIFF,
    checked_values,
    is_array_file,
    pillow_values,
    png_16,
    read_values,
    scaled,
    tiff_size,
    with_channels,
)
from vqvae2.data.errors import DataError, ImageError, reading_failed
from vqvae2.data.formats import READ, check_costs, check_memory, formats_for, unread, without_metadata
from vqvae2.data.frames import split_frame
from vqvae2.data.listing import Payload, contents
from vqvae2.data.medical import NIFTI_SUFFIXES, frame_size, read_frame
from vqvae2.data.orientation import upright, upright_size
from vqvae2.data.pixels import Pixels
from vqvae2.errors import printable
from vqvae2.files.atomic import reason

_ARRAY = "an array of values, which is read with data.range set"
_DARK = 31  # of 255
_REDUCED = "more than 8 bits reduced to 8"


class Decoded(NamedTuple):
    """Several decoded images.

    Attributes:
        pixels: of the k images that are usable, uint8 [k, PH, PW, C].
        reasons: per image None, or the reason why it cannot be used.
        remarks: what was done to images besides, such as a converted colour profile, with the number of images.
    """

    pixels: Pixels
    reasons: list[str | None]
    remarks: Counter[str]


def load_image(
    source: bytes | str | Path, config: DataConfig, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Pixels:
    """Decode one image: turn it upright, convert its colours to sRGB, cut out or pad it to the shape, and resize it.

    Args:
        source: a file, or the encoded bytes.
        config: size, scale, fit, channels, background, max_pixels and max_memory are used.
        resample: the filter of the resizing; the default suits both larger and smaller sizes.

    Returns:
        uint8 [PH, PW, C]; int16 where `data.range` is set (`deep`).

    Raises:
        ImageError: the file is missing, empty, damaged, not an image, or larger than max_pixels; the message says
            which, and names the file.
        DataError: it cannot be read now, for example for want of memory.
    """
    try:
        return decode(source, config, resample)
    except DataError as error:
        raise (
            error if isinstance(source, bytes) else type(error)(f"{printable(str(source))}: {error}")
        ) from error


def load_whole(source: bytes | str | Path, config: DataConfig) -> Pixels:
    """Decode one image as `load_image` does, but at its own size: uint8 [H, W, C], int16 where `data.range` is set.

    Raises:
        ImageError, DataError: as `load_image`.
    """
    try:
        own = {"size": image_size(source, values=config.range is not None), "scale": 1.0}
    except DataError as error:
        name = "" if isinstance(source, bytes) else f"{printable(str(source))}: "
        raise type(error)(f"{name}{error}") from error
    return load_image(source, config.model_copy(update=own))


def load_mask(source: bytes | str | Path, config: DataConfig) -> NDArray[np.bool_]:
    """Decode a mask as `load_image` decodes the image that it belongs to, but with the nearest pixel instead of smoothing.

    Args:
        source: a file, or the encoded bytes; colours are converted to grey, transparent pixels to black.
        config: size, scale, fit, max_pixels and max_memory are used.

    Returns:
        bool [PH, PW], True where the mask is white (grey of at least 128 out of 255).

    Raises:
        DataError: as `load_image`.
    """
    grey = config.model_copy(update={"channels": 1, "background": "black", "range": None})
    return load_image(source, grey, Image.Resampling.NEAREST)[..., 0] >= 128


def decode(
    source: bytes | str | Path,
    config: DataConfig,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
    remarks: list[str] | None = None,
) -> Pixels:
    """As `load_image`, but the message of an error is the reason alone, without the name of the file.

    Args:
        remarks: what was done with the colour profile or with the depth is appended.
    """
    said: list[str] = [] if remarks is None else remarks
    if config.range is not None:
        values = with_channels(raw_values(source, config), config.channels)
        return _padded(scaled(_resized_values(values, config, resample), config, said), config)
    with _opened(source, config.max_memory) as image:
        check_costs(image, config.max_pixels)
        enough = 2 * max(stored_shape(config))  # in either orientation
        image.draft(None, (enough, enough))  # a JPEG is decoded at a reduced size, which is faster
        check_memory(image, config.max_memory)
        image.load()
        depth = Depth.of(image)
        whole = upright(image)
        if is_deep(whole):
            whole = deep_grey(whole, depth)
            lightest = int(np.asarray(whole.getchannel(0)).max())
            dark = ", and nearly black then (data.range=percentiles takes their own range)"
            said.append(_REDUCED + (" (data.range keeps them)" if lightest > _DARK else dark))
        if has_alpha(whole) or whole.mode in ("1", "P"):  # what cannot be resized as it is
            return _padded(_array(_resized(to_channels(whole, config, said), config, resample)), config)
        return _padded(_array(to_channels(_resized(whole, config, resample), config, said)), config)


def raw_values(source: bytes | str | Path | None, config: DataConfig) -> NDArray[Any]:
    """The values of an image as its file stores them, [H, W, C], upright.

    Raises:
        ImageError, DataError: as `decode`.
    """
    if source is None:
        raise ImageError("the row holds no image")
    if (place := _frame(source)) is not None:
        with _blaming(_head(place[0]), config.max_memory):
            return checked_values(read_frame(*place, config.max_pixels, config.max_memory))
    data = source if isinstance(source, bytes) else _read(Path(source))
    if is_array_file(data) or data.startswith(TIFF):
        with _blaming(data, config.max_memory):
            return read_values(data, config.max_pixels, config.max_memory)
    with _opened(data, config.max_memory, "" if isinstance(source, bytes) else str(source)) as image:
        check_costs(image, config.max_pixels)
        check_memory(image, config.max_memory)
        deep = png_16(without_metadata(data).data)
        if deep is not None:
            return deep
        image.load()
        return pillow_values(upright(image))


def image_size(source: bytes | str | Path, *, values: bool = False) -> tuple[int, int]:
    """Height and width of an upright image in pixels, from its header.

    Args:
        source: a file, or the encoded bytes.
        values: whether it is decoded with `data.range` set.

    Raises:
        ImageError, DataError: as `decode`.
    """
    if (place := _frame(source)) is not None:
        with _blaming(_head(place[0]), 0):
            return frame_size(*place)
    data = source if isinstance(source, bytes) else _read(Path(source))
    if is_array_file(data):
        with _blaming(data, 0):
            height, width, _ = read_values(data, 2**40, 2**20).shape
            return height, width
    if values and data.startswith(TIFF) and (size := tiff_size(data)) is not None:
        return size
    with _opened(data, 0, "" if isinstance(source, bytes) else str(source)) as image:
        return upright_size(image)


def _frame(source: bytes | str | Path) -> tuple[Path, int | None] | None:
    """The file and the number of an image that is one of several in a file, or that is in a NIfTI volume; None for others."""
    if isinstance(source, bytes):
        return None
    file, number = split_frame(Path(source))
    return (file, number) if number is not None or file.name.lower().endswith(NIFTI_SUFFIXES) else None


@contextmanager
def _opened(source: bytes | str | Path, max_memory: int, name: str = "") -> Iterator[Image.Image]:
    """The image, opened by Pillow.

    Args:
        max_memory: see `_blaming`, which holds for what is done with the image, too.
        name: of the file, if `source` is its content.
    """
    if _frame(source) is not None:
        raise ImageError(_ARRAY)
    data = source if isinstance(source, bytes) else _read(Path(source))
    name = name if isinstance(source, bytes) else str(source)
    with _blaming(data, max_memory):
        if is_array_file(data):
            raise ImageError(_ARRAY)
        plain = without_metadata(data)
        with _quiet(), Image.open(BytesIO(plain.data), formats=formats_for(data, name)) as image:
            if plain.profile is not None:
                image.info["icc_profile"] = plain.profile
            image.info["scans"] = data.count(b"\xff\xda")
            yield image


@contextmanager
def _blaming(data: bytes, max_memory: int) -> Iterator[None]:
    """Turn whatever is raised while a file is read into an `ImageError`, or a `DataError` where the machine is to blame.

    Args:
        data: the content of the file.
        max_memory: MB that decoding may take, to tell a damaged image from too little memory.
    """
    if not data:
        raise ImageError("zero bytes")
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError:
        found = unread(data[:512])
        raise ImageError(f"{found} ({READ})" if found == "not an image" else found) from None
    except MemoryError as error:
        _blame_memory(max_memory)
        raise ImageError("broken: it asks for more memory than its size needs") from error
    except Exception as error:  # Pillow and others may raise any exception for a damaged file
        if isinstance(error, OSError) and error.errno is not None:
            raise reading_failed(error) from error
        raise ImageError(f"broken: {reason(error)}") from error


def _head(path: Path) -> bytes:
    """The first bytes of a file."""
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError as error:
        raise reading_failed(error) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise reading_failed(error) from error
    except MemoryError:
        raise DataError(f"too little memory to read the file of {path.stat().st_size / 1e6:.0f} MB") from None


def _blame_memory(megabytes: int) -> None:
    """Raise `DataError` unless there is as much memory as an image may take: then the image is to blame.

    The memory is asked for, not written to, so this costs nothing.
    """
    try:
        np.empty(megabytes * 1_000_000, np.uint8)
    except MemoryError:
        raise DataError(
            f"too little memory to decode images: up to max_memory = {megabytes} (MB) may be needed at a time; "
            "use fewer data.workers, or set data.max_memory lower to skip large images"
        ) from None


def stored_type(config: DataConfig) -> np.dtype[Any]:
    """The type of the pixels that are kept: 8 bits, or 16 where `data.range` is set."""
    return np.dtype(np.uint8 if config.range is None else np.int16)


def stored_shape(config: DataConfig) -> tuple[int, int]:
    """PH and PW: the height and width in pixels at which images are kept."""
    height, width = config.shape
    return round(height * config.scale), round(width * config.scale)


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


def _resized_values(values: NDArray[Any], config: DataConfig, resample: Image.Resampling) -> NDArray[Any]:
    """As `_resized`, channel by channel in floating point; the filter adds no values beyond those of the channel."""
    planes = []
    for channel in range(values.shape[2]):
        plane = np.ascontiguousarray(values[..., channel], np.float32)
        resized = np.asarray(_resized(Image.fromarray(plane), config, resample))
        planes.append(resized.clip(plane.min(), plane.max()))
    return np.stack(planes, -1)


def _resized(image: Image.Image, config: DataConfig, resample: Image.Resampling) -> Image.Image:
    """The image resized to the stored shape, cropped to it before, or to what of that shape it fills; with its profile."""
    (width, height), (down, across) = image.size, stored_shape(config)
    wide = width * down >= height * across  # wider than the shape
    left = top = 0
    if config.fit == "pad":
        size = (
            (across, max(1, round(height * across / width)))
            if wide
            else (max(1, round(width * down / height)), down)
        )
    else:
        size, whole = (across, down), (width, height)
        width, height = (
            (max(1, height * across // down), height) if wide else (width, max(1, width * down // across))
        )
        left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    resized = image.resize(size, resample, box=(left, top, left + width, top + height), reducing_gap=3.0)
    if "icc_profile" in image.info:
        resized.info["icc_profile"] = image.info["icc_profile"]
    return resized


def _padded(pixels: Pixels, config: DataConfig) -> Pixels:
    """The pixels in the middle of the stored shape, between bars of the background colour (with 4 channels transparent)."""
    shape = (*stored_shape(config), config.channels)
    if pixels.shape == shape:
        return pixels
    colour = np.array([*background(config)[:3], 0], np.uint8)
    if config.channels == 1:
        colour = np.asarray(Image.new("RGB", (1, 1), background(config)[:3]).convert("L")).reshape(1)
    if config.range is not None:
        colour = np.full(config.channels, np.iinfo(np.int16).min)  # the lowest value
    whole = np.empty(shape, pixels.dtype)
    whole[:] = colour[: config.channels]
    top, left = (shape[0] - pixels.shape[0]) // 2, (shape[1] - pixels.shape[1]) // 2
    whole[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return whole


def _array(image: Image.Image) -> Pixels:
    """uint8 [H, W, C]; np.array copies, so the result is writable."""
    array = np.array(image)
    return array[..., None] if array.ndim == 2 else array


def decode_many(payloads: Sequence[Payload | None], config: DataConfig) -> Decoded:
    """Decode several images; those that cannot be used because of their own file are left out.

    Raises:
        DataError: an image cannot be read for a reason that is not its own, such as too little memory.
    """
    decoded: list[Pixels] = []
    reasons: list[str | None] = []
    remarks: Counter[str] = Counter()
    for payload in contents(payloads):
        said: list[str] = []
        try:
            if payload is None:
                raise ImageError("the row holds no image")
            decoded.append(decode(payload, config, remarks=said))
            reasons.append(None)
            remarks.update(said)
        except ImageError as error:
            reasons.append(str(error))
    empty = (0, *stored_shape(config), config.channels)
    pixels = np.stack(decoded) if decoded else np.empty(empty, stored_type(config))
    return Decoded(pixels, reasons, remarks)
