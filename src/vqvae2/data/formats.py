"""The formats of image files: how they are recognised, which are read, and what decoding them may cost.

A file is recognised by its first bytes. The name decides only for TGA, which has no signature.
"""

from __future__ import annotations

import functools
import importlib
import re
import struct
import zlib
from typing import Any, NamedTuple

from PIL import Image

from vqvae2.data.errors import ImageError

FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI"),
    *("PSD", "SGI", "DDS"),
)
"""The formats that are opened, as Pillow names them; TGA besides, for files of that name. Pillow reads more, some of it
by starting other programs."""

READ = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, PPM, QOI, TGA, PSD, SGI or DDS"
"""The same in words."""

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".avif", ".jp2", ".j2k", ".jpx", ".j2c", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".qoi", ".tga"),
    *(".psd", ".sgi", ".rgb", ".dds", ".npy", ".dcm", ".nii", ".nii.gz"),
)

TABLE_SUFFIXES = (".parquet", ".tar", ".tar.gz", ".tgz")

RAW_SUFFIXES = (".cr2", ".nef", ".arw", ".dng", ".orf", ".rw2", ".pef", ".srw")
"""Raw files of cameras: they look like TIFF files, of which only the thumbnail would be read."""

_SIGNATURES: tuple[tuple[str, re.Pattern[bytes]], ...] = tuple(
    (name, re.compile(pattern, re.DOTALL))
    for name, pattern in (
        (
            "",
            rb"\xff\xd8\xff|\x89PNG|GIF8[79]a|II[*+]\0|MM\0[*+]|RIFF....WEBP|qoif|8BPS|DDS |\x01\xda[\0\x01][\x01\x02]",
        ),
        ("", rb"BM....\0\0\0\0|\0\0\0\x0cjP  |\xff\x4f\xff\x51|P[1-7fF]\s|....ftypavi[fs]"),
        ("HEIC", rb"....ftyp(hei[cxms]|hev[cx]|mif1|msf1)"),
        ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
        ("EPS", rb"%!PS|\xc5\xd0\xd3\xc6"),
        ("PDF", rb"%PDF"),
        ("SVG", rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg"),
        ("ICO", rb"\0\0[\x01\x02]\0[^\0]\0"),
        ("camera raw", rb"FUJIFILMCCD-RAW|IIU\0|....ftypcrx "),
        ("", rb".{128}DICM|\x93NUMPY"),
        ("", rb"(\x5c\x01\0\0|\0\0\x01\x5c).{340}n\+1\0|(\x1c\x02\0\0|\0\0\x02\x1c)n\+2\0"),
        ("NIfTI in two files", rb"(\x5c\x01\0\0|\0\0\x01\x5c).{340}ni1\0"),
        ("OpenEXR", rb"\x76\x2f\x31\x01"),
        ("video", rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI "),
        ("ZIP", rb"PK\x03\x04"),
    )
)

_MOST_SCAN_PIXELS = (
    1_500_000_000  # pixels times scans of a progressive JPEG: about 15 s of decoding on one core
)
_MOST_SCANS = 64  # a usual progressive JPEG has about 10
_MOST_PROFILE = 1 << 20  # bytes of an unpacked colour profile in a PNG
_KEPT_CHUNKS = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"))

# Bytes per pixel that decoding and converting a mode takes at most: Pillow's pixels, a converted copy, a cut-out.
_COST = {"1": 2, "L": 3, "P": 9, "RGB": 8, "I;16": 8, "I;16B": 8, "I;16L": 8, "I": 12, "F": 12}
_COST_OTHERS = 14


class Encoded(NamedTuple):
    """An image file without the metadata that could spoil it.

    Attributes:
        data: the bytes.
        profile: the colour profile of a PNG, which was taken out; None = none, or Pillow finds it.
    """

    data: bytes
    profile: bytes | None = None


def is_image(head: bytes) -> bool:
    """Whether a file with these first bytes (at least 512 where there are as many) is an image of a format that is read."""
    return recognised(head) == ""


def recognised(head: bytes) -> str | None:
    """The name of the format, "" for one that is read, None for none that is known."""
    name = next((name for name, pattern in _SIGNATURES if pattern.match(head)), None)
    return "" if name == "HEIC" and _reads_heic() else name


def optional(name: str) -> Any:
    """A library of an extra; None if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


@functools.cache
def _reads_heic() -> bool:
    """Whether the extra `heic` is installed; Pillow then reads the format, too."""
    library = optional("pillow_heif")
    if library is not None:
        library.register_heif_opener(thumbnails=False)
    return library is not None


def unread(head: bytes) -> str:
    """Why a file that begins with these bytes is not used, although nothing else is known to be wrong with it."""
    name = recognised(head)
    if name is None:
        return "not an image"
    if name == "HEIC":
        return "HEIC: read with the extra heic alone (pip install 'vqvae2[heic]')"
    return f"{name}: a known format that is not read" if name else "broken behind its first bytes"


def formats_for(data: bytes, name: str) -> tuple[str, ...]:
    """The formats in which a file is tried; `name` is its name or ""."""
    tga = name.lower().endswith(".tga") or data[-18:] == b"TRUEVISION-XFILE.\0"
    return ("TGA",) if tga and not is_image(data[:512]) else _available()


@functools.cache
def _available() -> tuple[str, ...]:
    """The formats that this Pillow reads; AVIF needs version 11.3 or newer, HEIF the extra `heic`."""
    Image.init()  # loads the plugins of all formats
    wanted = (*FORMATS, "HEIF") if _reads_heic() else FORMATS
    return tuple(name for name in wanted if name in Image.OPEN)


def without_metadata(data: bytes) -> Encoded:
    """A PNG without texts and other metadata, because compressed or damaged metadata must not decide over good pixels.

    Other formats are returned as they are: Pillow ignores what is wrong with their metadata.
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return Encoded(data)
    parts, profile, at = [data[:8]], None, 8
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):  # cut off: Pillow judges the rest
            parts.append(data[at:])
            break
        if name in _KEPT_CHUNKS or not name.isalpha():
            parts.append(data[at:end])
        elif name == b"eXIf" and data[end - 4 : end] == struct.pack(">I", zlib.crc32(data[at + 4 : end - 4])):
            parts.insert(2, data[at:end])  # before the pixels, so that it is known without decoding them
        elif name == b"iCCP" and profile is None:
            profile = _profile(data[at + 8 : end - 4])
        at = end
        if name == b"IEND":
            break
    return Encoded(b"".join(parts), profile)


def _profile(chunk: bytes) -> bytes | None:
    """The colour profile in the body of an iCCP chunk; None if it is damaged or too large."""
    _, _, packed = chunk.partition(b"\0")
    try:
        unpacking = zlib.decompressobj()
        profile = unpacking.decompress(packed[1:], _MOST_PROFILE)
    except zlib.error:
        return None
    return profile if unpacking.eof else None


def check_pixels(shape: tuple[int, int], most: int) -> None:
    """Refuse an image of too many pixels.

    Args:
        shape: height and width.
        most: `max_pixels` of the settings.

    Raises:
        ImageError: it has more.
    """
    height, width = shape
    if height * width > most:
        raise ImageError(f"{width}x{height} pixels, more than max_pixels = {most}")


def check_costs(image: Image.Image, most_pixels: int) -> None:
    """Refuse, from the header alone, an image of too many pixels or one that would take too long to decode.

    Args:
        image: opened, not decoded; `info["scans"]` is an upper bound of the scans of a JPEG.
        most_pixels: `max_pixels` of the settings.

    Raises:
        ImageError: it would.
    """
    width, height = image.size
    check_pixels((height, width), most_pixels)
    if image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        scans = image.info["scans"]
        if scans > _MOST_SCANS or scans * width * height > _MOST_SCAN_PIXELS:
            raise ImageError(f"{width}x{height} pixels in {scans} scans would take too long to decode")


def check_memory(image: Image.Image, most_megabytes: int) -> None:
    """Refuse an image whose pixels would take more than `most_megabytes` (of 1e6 bytes) to decode and convert.

    Raises:
        ImageError: they would.
    """
    width, height = image.size
    megabytes = width * height * _COST.get(image.mode, _COST_OTHERS) / 1e6
    if megabytes > most_megabytes:
        raise ImageError(
            f"{width}x{height} pixels of mode {image.mode} would take {megabytes:.0f} MB, more than max_memory = "
            f"{most_megabytes} (MB)"
        )
