"""Colours and depths: profiles, negative values, white at 0, and metadata that must not decide over good pixels."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import config, encoded, folder_of, noise, opened, plain
from PIL import Image, ImageCms, PngImagePlugin
from test_decoding import png

from vqvae2.data.colours import CONVERTED, IGNORED
from vqvae2.data.decoding import decode, load_image
from vqvae2.data.errors import ImageError

COLOUR = (200, 80, 40)
P3 = {
    b"rXYZ": (0.51512, 0.2412, -0.00105),
    b"gXYZ": (0.29198, 0.69225, 0.04189),
    b"bXYZ": (0.1571, 0.06657, 0.78407),
}


def display_p3() -> bytes:
    """The profile of sRGB with the primaries of Display P3."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for index in range(struct.unpack_from(">I", profile, 128)[0]):
        name, offset, _ = struct.unpack_from(">4sII", profile, 132 + 12 * index)
        if name in P3:
            struct.pack_into(">iii", profile, offset + 8, *[round(value * 65536) for value in P3[name]])
    return bytes(profile)


def shown(data: bytes, **options: Any) -> tuple[list[int], list[str]]:
    """The colour in the middle, and what is said about the profile."""
    said: list[str] = []
    pixels = decode(data, config(**options), remarks=said)
    return [int(value) for value in pixels[4, 4]], said


def expected() -> list[int]:
    """What littleCMS itself makes of the colour."""
    image, profile = plain(COLOUR), ImageCms.ImageCmsProfile(io.BytesIO(display_p3()))
    converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"))
    assert converted is not None
    return list(converted.getpixel((0, 0)))  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "near"), [("PNG", 0), ("TIFF", 0), ("JPEG", 4), ("WEBP", 4)])
def test_a_profile_is_converted_to_srgb(kind: str, near: int) -> None:
    options = (
        {"lossless": True} if kind == "WEBP" else {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
    )
    colour, said = shown(encoded(plain(COLOUR), kind, icc_profile=display_p3(), **options))
    assert np.abs(np.subtract(colour, expected())).max() <= near
    assert said == [CONVERTED]
    assert max(abs(a - b) for a, b in zip(COLOUR, expected(), strict=True)) > 10


def test_a_profile_with_alpha_and_with_a_palette() -> None:
    data = encoded(plain((*COLOUR, 255), "RGBA"), icc_profile=display_p3())
    assert shown(data, channels=4)[0] == [*expected(), 255]
    palette = plain(COLOUR).convert("P", palette=Image.Palette.ADAPTIVE)
    assert shown(encoded(palette, icc_profile=display_p3()))[0] == expected()


def test_srgb_itself_changes_nothing() -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert shown(encoded(plain(COLOUR), icc_profile=own)) == (list(COLOUR), [])


@pytest.mark.parametrize(
    "profile", [b"no profile", display_p3()[:200], display_p3() + b"x" * (5 << 20)], ids=len
)
def test_a_bad_profile_is_ignored(profile: bytes) -> None:
    """Damaged, or larger than any profile that is used; in a PNG it is left out without a word."""
    colour, said = shown(encoded(plain(COLOUR), "TIFF", icc_profile=profile))
    assert (colour, said) == (list(COLOUR), [IGNORED])
    assert shown(encoded(plain(COLOUR), icc_profile=profile))[0] == list(COLOUR)


def test_a_profile_for_other_pixels_is_ignored() -> None:
    assert shown(encoded(plain(90, "L"), icc_profile=display_p3())) == ([90] * 3, [IGNORED])


def test_conversion_is_counted_and_said(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 3)
    for name in "ab":
        plain(COLOUR).save(root / f"{name}.png", icc_profile=display_p3())
    says: list[str] = []
    opened(root, tmp_path, says)
    assert f"{CONVERTED}: 2 of 5 images" in says


# --- metadata ---


def test_compressed_text_does_not_decide() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 2_000_000, zip=True)
    info.add_itxt("note", "y" * 2_000_000, zip=True)
    assert np.array_equal(load_image(encoded(noise(1), pnginfo=info), config()), np.asarray(noise(1)))


@pytest.mark.parametrize(
    "chunk", [(b"zTXt", b"a\0\0broken"), (b"iCCP", b"p\0\0broken"), (b"eXIf", b"MM\0*" + b"\xff" * 8)]
)
def test_damaged_metadata_does_not_decide(chunk: tuple[bytes, bytes]) -> None:
    row = b"\0" + bytes(COLOUR) * 8
    assert shown(png(8, 8, 8, 2, row * 8, chunk))[0] == list(COLOUR)


def test_a_wrong_checksum_of_metadata_does_not_decide() -> None:
    body = struct.pack(">I", 5) + b"tEXt" + b"a\0bcd" + b"\0\0\0\0"
    data = encoded(noise(1))
    assert np.array_equal(load_image(data[:33] + body + data[33:], config()), np.asarray(noise(1)))


def test_a_large_profile_that_unpacks_to_much_more() -> None:
    bomb = b"p\0\0" + zlib.compress(bytes(200_000_000), 9)
    row = b"\0" + bytes(COLOUR) * 8
    assert shown(png(8, 8, 8, 2, row * 8, (b"iCCP", bomb)))[0] == list(COLOUR)


# --- depth ---


def grey(values: Any, kind: str = "TIFF") -> bytes:
    return encoded(Image.fromarray(np.asarray(values).reshape(8, 8)), kind)


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(-1, 1, 64, dtype=np.float32),
        np.linspace(-1000, 0.5, 64, dtype=np.float32),
        np.linspace(-1024, 3071, 64).astype(np.int32),
        np.linspace(-2000, -1, 64).astype(np.int32),
        np.full(64, np.nan, np.float32),
    ],
    ids=["-1..1", "-1000..0.5", "CT", "negative", "nan"],
)
def test_negative_values_are_refused_not_clipped(values: Any) -> None:
    with pytest.raises(ImageError, match="no agreed range"):
        load_image(grey(values), config())


def with_tag(data: bytes, number: int, value: int) -> bytes:
    """A TIFF of Pillow with another value of a tag."""
    changed = bytearray(data)
    (start,) = struct.unpack_from("<I", changed, 4)
    for index in range(struct.unpack_from("<H", changed, start)[0]):
        at = start + 2 + 12 * index
        if struct.unpack_from("<H", changed, at)[0] == number:
            struct.pack_into("<H", changed, at + 8, value)
    return bytes(changed)


def test_white_is_zero() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    straight = load_image(grey(ramp), config(channels=1))
    inverted = load_image(with_tag(grey(ramp), 262, 0), config(channels=1))
    assert np.array_equal(inverted, 255 - straight)
    eight = encoded(plain(30, "L"), "TIFF")
    assert load_image(with_tag(eight, 262, 0), config(channels=1)).max() == 225
    floats = np.linspace(0, 1, 64, dtype=np.float32)
    pair = [load_image(data, config(channels=1)) for data in (grey(floats), with_tag(grey(floats), 262, 0))]
    assert np.abs(pair[0].astype(int) + pair[1] - 255).max() <= 1
