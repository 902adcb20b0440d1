"""Images with more than 8 bits, with values of any range, and with 1 to 16 channels: read, scaled, and written again.

    values [H, W, C] of any type --data.range [low, high]--> int16 [H, W, C], -32768 = low, 32767 = high
    float [C, H, W] in [-1, 1] --> values between low and high: whole numbers for whole bounds, else floating point

This path is taken where `data.range` is set. All channels share one range.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError, ImageError
from vqvae2.data.formats import check_pixels, optional
from vqvae2.data.medical import is_dicom, is_nifti, read_frame
from vqvae2.data.orientation import upright
from vqvae2.files.atomic import reason, write_bytes

CLIPPED = "values outside data.range clipped to it"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NUMPY = b"\x93NUMPY"

_STEPS = 65535  # between the lowest and the highest stored value
_LOWEST = -32768
_MOST_CHANNELS = 16


def is_array_file(data: bytes) -> bool:
    """Whether a file is an image that only this path reads: a NumPy array, a DICOM file or a NIfTI volume."""
    return data.startswith(NUMPY) or is_dicom(data) or is_nifti(data)


def read_values(data: bytes, most_pixels: int, most_megabytes: int) -> NDArray[Any]:
    """The values of an image file as they are stored: numbers [H, W, C].

    NumPy arrays are [H, W] or [H, W, C]. TIFF files are read by tifffile (extra `deep`), else by Pillow, which knows grey
    ones. `medical` reads DICOM files and NIfTI volumes.

    Raises:
        ImageError: the file is none of these, holds several images, or has another shape or type.
        DataError: an extra is missing.
    """
    if data.startswith(NUMPY):
        return checked_values(_numpy(data, most_pixels))
    if data.startswith(TIFF):
        return checked_values(_tiff(data, most_pixels, most_megabytes))
    return checked_values(read_frame(data, None, most_pixels, most_megabytes))


def checked_values(values: NDArray[Any]) -> NDArray[Any]:
    """Values [H, W] or [H, W, C] as [H, W, C].

    Raises:
        ImageError: another shape, or no real numbers.
    """
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or not values.size or values.shape[2] > _MOST_CHANNELS:
        raise ImageError(
            f"expected an array [H, W] or [H, W, 1 to {_MOST_CHANNELS}], found {list(values.shape)}"
        )
    if values.dtype.kind not in "buif":
        raise ImageError(f"expected real numbers, found {values.dtype}")
    return values


def pillow_values(image: Image.Image) -> NDArray[Any]:
    """The values of an image that Pillow decoded, [H, W, C]; 16-bit grey keeps its depth."""
    if image.mode in ("P", "1", "CMYK", "YCbCr", "LAB", "HSV", "PA"):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    values = np.asarray(image)
    return values[..., None] if values.ndim == 2 else values


def png_16(data: bytes) -> NDArray[Any] | None:
    """The values of a PNG with 16 bits per channel in colour, upright, uint16 [H, W, 3 or 4]; None for any other file.

    Pillow keeps one byte of each number. It is asked twice, for the high and for the low bytes.
    """
    if (
        not data.startswith(b"\x89PNG\r\n\x1a\n")
        or data[24:25] != b"\x10"
        or data[25:26] not in (b"\x02", b"\x06")
    ):
        return None
    mode = "RGB" if data[25] == 2 else "RGBA"
    halves = []
    for order in "BL":
        with Image.open(BytesIO(data), formats=("PNG",)) as image:
            image.tile = [tile._replace(args=f"{mode};16{order}") for tile in image.tile]
            image.load()
            halves.append(np.asarray(upright(image)).astype(np.uint16))
    return halves[0] * 256 + halves[1]


def _numpy(data: bytes, most_pixels: int) -> NDArray[Any]:
    stream = BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(stream)
        check_pixels((shape[0], shape[1]) if len(shape) > 1 else (1, 1), most_pixels)
        if dtype.hasobject:
            raise ImageError("expected real numbers, found Python objects")
        count = int(np.prod(shape, dtype=np.int64))
        values = np.frombuffer(data, dtype, count, stream.tell())
    except ImageError:
        raise
    except Exception as error:  # the parser of NumPy raises many kinds of exceptions for a damaged file
        raise ImageError(f"broken: {reason(error)}") from error
    return values.reshape(shape, order="F" if fortran else "C")


def _tiff(data: bytes, most_pixels: int, most_megabytes: int) -> NDArray[Any]:
    library = optional("tifffile")
    if library is None:
        with Image.open(BytesIO(data), formats=("TIFF",)) as image:
            check_pixels(image.size[::-1], most_pixels)
            if len(image.getbands()) > 1 and set(image.tag_v2.get(258) or (8,)) != {8}:  # type: ignore[attr-defined]
                raise DataError(
                    "TIFF files of several channels with more than 8 bits need the extra deep (tifffile)"
                )
            image.load()
            return pillow_values(upright(image))
    with library.TiffFile(BytesIO(data)) as file:
        page = file.pages[0]
        check_pixels((page.imagelength, page.imagewidth), most_pixels)
        if page.nbytes > most_megabytes * 1e6:
            raise ImageError(
                f"{page.nbytes / 1e6:.0f} MB of values, more than max_memory = {most_megabytes} (MB)"
            )
        values = np.asarray(page.asarray())
        if values.ndim == 3 and "S" in page.axes and page.axes.index("S") == 0:
            values = np.moveaxis(values, 0, 2)  # one plane per channel
        if page.photometric == 0:  # white is 0
            largest = 2**page.bitspersample - 1 if values.dtype.kind == "u" else 0
            values = (largest - values).astype(values.dtype)
    return values


def tiff_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of the values in a TIFF; None without tifffile, which alone does not turn them upright."""
    library = optional("tifffile")
    if library is None:
        return None
    try:
        with library.TiffFile(BytesIO(data)) as file:
            page = file.pages[0]
            return int(page.imagelength), int(page.imagewidth)
    except Exception:  # damaged: Pillow says how
        return None


def with_channels(values: NDArray[Any], channels: int) -> NDArray[Any]:
    """The values with as many channels as are wanted: grey is repeated for colours, and alpha is dropped.

    Raises:
        ImageError: they have another number of channels.
    """
    have = values.shape[2]
    if have == channels:
        return values
    if have == 1 and channels in (3, 4):
        return np.repeat(values, channels, 2)
    if have in (2, 4) and channels == have - 1:
        return values[..., :channels]
    raise ImageError(f"{have} channels, where data.channels is {channels}")


def scaled(values: NDArray[Any], config: DataConfig, remarks: list[str]) -> NDArray[np.int16]:
    """Values as int16, -32768 for the low and 32767 for the high end of `data.range`; clipping is noted in `remarks`.

    Raises:
        ImageError: values that are no numbers.
    """
    low, high = bounds(config)
    if not np.isfinite(values).all():
        raise ImageError("values that are infinite or no numbers")
    share = (values.astype(np.float64) - low) / (high - low)
    if share.min() < -1e-9 or share.max() > 1 + 1e-9:
        remarks.append(CLIPPED)
    steps: NDArray[np.int16] = (np.rint(share.clip(0, 1) * _STEPS) + _LOWEST).astype(np.int16)
    return steps


def bounds(config: DataConfig) -> tuple[float, float]:
    """The low and the high end of `data.range`.

    Raises:
        DataError: the range is still a word, which `value_range.with_range` replaces by numbers.
    """
    if not isinstance(config.range, tuple):
        raise DataError(f"data.range is {config.range!r}: expected two numbers")
    return config.range


def to_values(image: Tensor, config: DataConfig) -> NDArray[Any]:
    """An image [C, H, W] in [-1, 1] as values in `data.range`, [H, W, C].

    With whole bounds they are rounded to the smallest of uint8, uint16, int16 and int32 that holds them, else float32.
    """
    low, high = bounds(config)
    share = image.detach().cpu().double().add(1).div(2).clamp(0, 1).permute(1, 2, 0).numpy()
    values = low + share * (high - low)
    if low != int(low) or high != int(high) or max(abs(low), abs(high)) > 2**30 or high - low < 2:
        return values.astype(np.float32)
    types = (np.uint8, np.uint16, np.int16, np.int32)
    kind = next(kind for kind in types if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return np.rint(values).astype(kind)


def save_values(image: Tensor, stem: Path, config: DataConfig) -> Path:
    """Write an image [C, H, W] in [-1, 1] in its own range and depth; returns the file.

    It is a TIFF: by Pillow with one channel, by tifffile (extra `deep`) with several. Without tifffile it is a NumPy array
    [H, W, C].

    Raises:
        FileError: it cannot be written.
    """
    values = to_values(image, config)
    library = optional("tifffile")
    stream = BytesIO()
    if values.shape[2] == 1 and values.dtype != np.int16:
        Image.fromarray(values[..., 0]).save(stream, "TIFF", compression="tiff_adobe_deflate")
    elif library is not None and values.shape[2] == 1:
        library.imwrite(stream, values[..., 0], photometric="minisblack", compression="zlib")
    elif library is not None:
        library.imwrite(stream, values, photometric="minisblack", planarconfig="contig", compression="zlib")
    else:
        np.save(stream, values)
    path = stem.with_name(f"{stem.name}{'.npy' if stream.getvalue().startswith(NUMPY) else '.tif'}")
    write_bytes(path, stream.getvalue())
    return path
