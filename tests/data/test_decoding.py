"""Decoding one image: formats, colour modes, orientation, size, and files that are damaged."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import BLUE, GREEN, RED, config, encoded, noise, plain
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vqvae2.data import formats
from vqvae2.data.decoding import load_image, load_mask
from vqvae2.data.errors import DataError
from vqvae2.data.folder_files import list_folder

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def middle(data: bytes, **options: Any) -> list[int]:
    """The colour in the middle."""
    pixels = load_image(data, config(**options))
    return [int(value) for value in pixels[4, 4]]


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand, for what Pillow does not write; `rows` holds the filter bytes too."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    inner = b"".join(chunk(name, body) for name, body in chunks)
    return b"\x89PNG\r\n\x1a\n" + head + inner + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# --- formats and modes ---


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("PNG", {}),
        ("WEBP", {"quality": 95}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("colour", [RED, GREEN, BLUE])
def test_formats(kind: str, options: dict[str, Any], colour: tuple[int, int, int]) -> None:
    result = middle(encoded(plain(colour, size=(24, 16)), kind, **options))
    assert np.abs(np.subtract(result, colour)).max() <= 6


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (plain(77, "L"), [77] * 3),
        (plain((77, 255), "LA"), [77] * 3),
        (plain((77, 0), "LA"), [255] * 3),
        (plain(1, "1"), [255] * 3),
        (plain((*RED, 255), "RGBA"), list(RED)),
        (plain((*RED, 0), "RGBA"), [255] * 3),
        (plain(RED).convert("P", palette=Image.Palette.ADAPTIVE), list(RED)),
        (plain(0x8080, "I;16"), [128] * 3),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_modes_as_png(image: Image.Image, expected: list[int]) -> None:
    assert middle(encoded(image)) == expected


def test_half_transparent_on_a_background() -> None:
    data = encoded(plain((200, 0, 0, 128), "RGBA"))
    assert np.allclose(middle(data, background="#0000ff"), [100, 0, 127], atol=1)
    assert np.allclose(middle(data, background="black"), [100, 0, 0], atol=1)
    assert np.allclose(middle(data, channels=4), [200, 0, 0, 128], atol=1)
    assert np.allclose(middle(data, channels=1), [round(0.299 * 227 + 0.701 * 127)], atol=2)


def test_hidden_colours_do_not_bleed() -> None:
    """Next to an opaque white square lies invisible black: resized, the edge must stay white on white."""
    image = plain((0, 0, 0, 0), "RGBA", (64, 64))
    image.paste((255, 255, 255, 255), (20, 20, 44, 44))
    assert load_image(encoded(image), config()).min() == 255
    kept = load_image(encoded(image), config(channels=4))
    assert kept[kept[..., 3] > 8][:, :3].min() > 250


def test_palette_with_transparency() -> None:
    image = plain(0, "P")
    image.putpalette([*RED, *BLUE])
    image.paste(1, (0, 0, 16, 4))
    assert np.allclose(middle(encoded(image, transparency=0)), 255, atol=2)
    assert np.allclose(middle(encoded(image, transparency=bytes([255, 0]))), RED, atol=2)
    assert np.allclose(middle(encoded(image, "GIF", transparency=0), background="lime"), [0, 255, 0], atol=2)
    assert middle(encoded(image, transparency=0), channels=4)[3] <= 1


def test_transparent_colour_key() -> None:
    assert middle(encoded(plain(RED), transparency=RED)) == [255] * 3
    assert middle(encoded(plain(RED), transparency=BLUE)) == list(RED)
    assert middle(encoded(plain(9, "L"), transparency=9), channels=1) == [255]


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    expected = np.rint(ramp / 257).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        result = load_image(encoded(Image.fromarray(ramp), kind), config(channels=1))
        assert np.array_equal(result[..., 0], expected), kind
    big_endian = encoded(Image.frombytes("I;16B", (8, 8), ramp.astype(">u2").tobytes()), "TIFF")
    assert np.array_equal(load_image(big_endian, config(channels=1))[..., 0], expected)


def test_16_bit_grey_with_a_transparent_value() -> None:
    row = b"\0" + struct.pack(">H", 4096) * 8
    data = png(8, 8, 16, 0, row * 8, (b"tRNS", struct.pack(">H", 4096)))
    assert middle(data, channels=1, background="white") == [255]


def test_16_bit_rgb_and_grey_alpha() -> None:
    row = b"\0" + struct.pack(">HHH", 0xFFFF, 0x8000, 0x0100) * 8
    assert np.allclose(middle(png(8, 8, 16, 2, row * 8)), [255, 128, 1], atol=1)
    row = b"\0" + struct.pack(">HH", 0x8000, 0xFFFF) * 8
    assert np.allclose(middle(png(8, 8, 16, 4, row * 8)), [128] * 3, atol=1)


def test_integer_and_floating_grey() -> None:
    assert middle(encoded(plain(0x8080, "I"), "TIFF")) == [128] * 3
    assert middle(encoded(plain(0.5, "F"), "TIFF")) == [128] * 3
    for image in (plain(70_000, "I"), plain(2.0, "F"), plain(float("nan"), "F")):
        with pytest.raises(DataError, match="no agreed range"):
            load_image(encoded(image, "TIFF"), config())


def test_cmyk() -> None:
    for kind, options in (("JPEG", {"quality": 95}), ("TIFF", {})):
        assert np.allclose(
            middle(encoded(plain((0, 255, 255, 0), "CMYK"), kind, **options)), [255, 0, 0], atol=6
        )
        assert np.allclose(middle(encoded(plain((0, 0, 0, 0), "CMYK"), kind, **options)), [255] * 3, atol=6)


def test_first_frame_of_a_gif() -> None:
    frames = [plain(RED), plain(BLUE)]
    assert middle(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == list(RED)
    assert np.allclose(
        middle(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)),
        RED,
        atol=1,
    )


# --- orientation and size ---


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    """The four corners lie where a viewer shows them."""
    upright = Image.new("RGB", (16, 16), WHITE)
    for colour, corner in ((RED, (0, 0)), (GREEN, (8, 0)), (BLUE, (0, 8))):
        upright.paste(colour, (*corner, corner[0] + 8, corner[1] + 8))
    turn = Image.Transpose
    inverse = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    stored = upright.transpose(inverse[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = (
        {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    )
    pixels = load_image(encoded(stored, kind, exif=exif, **options), config())
    corners = [pixels[1, 1], pixels[1, 6], pixels[6, 1], pixels[6, 6]]
    for result, expected in zip(corners, (RED, GREEN, BLUE, WHITE), strict=True):
        assert np.abs(result.astype(int) - expected).max() < 30


def test_damaged_exif_is_ignored() -> None:
    data = encoded(plain(RED), "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.allclose(middle(data), RED, atol=6)


def test_centre_of_the_short_side() -> None:
    wide = Image.new("RGB", (40, 10), WHITE)
    wide.paste(RED, (15, 0, 25, 10))
    for image in (wide, wide.transpose(Image.Transpose.ROTATE_90)):
        assert np.abs(load_image(encoded(image), config()).astype(int) - RED).max() < 8


def test_same_size_is_untouched_and_odd_margins_do_not_blur() -> None:
    image = noise(1, (11, 8))
    assert np.array_equal(load_image(encoded(image), config()), np.asarray(image)[:, 1:9])


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 4]), st.floats(1, 2))
def test_any_size_becomes_the_stored_square(width: int, height: int, channels: int, scale: float) -> None:
    pixels = load_image(encoded(plain(RED, size=(width, height))), config(channels=channels, scale=scale))
    side = round(8 * scale)
    assert pixels.shape == (side, side, channels)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable


def test_antialiasing() -> None:
    """A fine chessboard becomes grey, not stripes."""
    board = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)
    for kind in ("PNG", "JPEG"):
        pixels = load_image(encoded(Image.fromarray(board), kind), config(channels=1))
        assert np.abs(pixels.astype(int) - 127).max() < 20, kind


def test_large_jpeg_is_decoded_smaller_and_alike() -> None:
    gradient = np.linspace(0, 255, 512).astype(np.uint8)
    image = Image.fromarray(
        np.stack([np.tile(gradient, (512, 1)), np.tile(gradient[:, None], (1, 512))], -1).repeat(2, -1)[
            ..., :3
        ]
    )
    jpeg = load_image(encoded(image, "JPEG", quality=95), config(size=32))
    exact = load_image(encoded(image), config(size=32))
    assert np.abs(jpeg.astype(int) - exact).max() < 10


# --- what cannot be used ---


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated(kind: str) -> None:
    data = encoded(noise(0, (64, 64)), kind)
    for share in (0.5, 0.9):
        with pytest.raises(DataError, match=r"broken|not an image"):
            load_image(data[: int(len(data) * share)], config())


@pytest.mark.parametrize("seed", [0, 1])
def test_garbage_inside_is_an_error_or_pixels_never_a_crash(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        data = bytearray(encoded(noise(seed, (32, 32)), kind))
        for _ in range(40):
            broken = data.copy()
            for position in rng.integers(0, len(data), 6):
                broken[position] = rng.integers(256)
            try:
                pixels = load_image(bytes(broken), config())
            except DataError:
                continue
            assert pixels.shape == (8, 8, 3)


def test_reasons(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^zero bytes$"):
        load_image(b"", config())
    with pytest.raises(DataError, match=r"^not an image"):
        load_image(b"hello, world", config())
    with pytest.raises(DataError, match=r"nothing\.png: No such file"):
        load_image(tmp_path / "nothing.png", config())
    with pytest.raises(DataError, match="Is a directory"):
        load_image(str(tmp_path), config())
    with pytest.raises(DataError, match="background: expected a colour"):
        load_image(encoded(plain((1, 2, 3, 4), "RGBA")), config(background="no such"))


def test_other_formats_are_not_opened() -> None:
    """Pillow reads much more, some of it by starting other programs. What is known is named as what it is."""
    for kind in ("EPS", "ICO", "PDF"):
        with pytest.raises(DataError, match=f"{kind}: a known format that is not read"):
            load_image(encoded(plain(RED), kind), config())


def test_bomb_is_refused_from_its_header() -> None:
    bomb = png(60_000, 60_000, 8, 2, b"")  # decoding would fail: there are no rows
    with pytest.raises(DataError, match="60000x60000 pixels, more than max_pixels = 178956970"):
        load_image(bomb, config())
    small = encoded(plain(RED, size=(20, 20)))
    with pytest.raises(DataError, match="20x20 pixels"):
        load_image(small, config(max_pixels=399))
    assert load_image(small, config(max_pixels=400)).shape == (8, 8, 3)


def test_a_limit_above_that_of_pillow_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert middle(encoded(plain(RED))) == list(RED)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_bytes_and_files_are_alike(tmp_path: Path) -> None:
    path = tmp_path / "ü 1.png"
    noise(3).save(path)
    assert np.array_equal(load_image(path, config()), load_image(path.read_bytes(), config()))
    assert np.array_equal(load_image(str(path), config()), np.asarray(Image.open(BytesIO(path.read_bytes()))))


# --- masks ---


def mask_of(image: Image.Image, **options: Any) -> Any:
    """The mask that an image becomes."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return load_mask(buffer.getvalue(), config(**options))


def test_a_mask_is_cropped_and_resized_like_its_image_without_smoothing() -> None:
    """Centre square, then the nearest pixel; white from 128 on."""
    wide = np.zeros((16, 24), np.uint8)
    wide[:, :4] = 255  # outside the square
    wide[2:6, 4:8], wide[8:10, 10:12] = 128, 127
    expected = np.zeros((8, 8), bool)
    expected[1:3, :2] = True
    assert np.array_equal(mask_of(Image.fromarray(wide), size=8), expected)
    small = np.array([[0, 255], [255, 0]], np.uint8)
    assert np.array_equal(mask_of(Image.fromarray(small), size=8), np.kron(small, np.ones((4, 4))) > 0)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P"])
def test_a_mask_of_any_mode(mode: str) -> None:
    assert mask_of(Image.new("L", (8, 8), 255).convert(mode), size=8).all()
    assert not mask_of(Image.new("L", (8, 8), 0).convert(mode), size=8).any()


def test_transparent_pixels_of_a_mask_are_black() -> None:
    """Whatever the background colour of the images is."""
    assert not mask_of(Image.new("RGBA", (8, 8), (255, 255, 255, 0)), size=8, background="white").any()


def test_a_mask_that_is_no_image() -> None:
    with pytest.raises(DataError, match="not an image"):
        load_mask(b"hello", config())


# --- formats beyond the usual ones ---


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("AVIF", {"quality": 95}),
        ("JPEG2000", {"quality_mode": "rates", "quality_layers": [1]}),
        ("PPM", {}),
        ("QOI", {}),
        ("SGI", {}),
        ("DDS", {}),
    ],
)
def test_further_formats(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    image = Image.new("RGB", (24, 16), RED)
    if kind not in Image.SAVE and kind == "AVIF":
        pytest.skip("this Pillow writes no AVIF")
    data = encoded(image, kind, **options)
    assert np.abs(np.subtract(middle(data), RED)).max() <= 6
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dat").write_bytes(data)
    assert [file.name for file in list_folder(tmp_path / "in").images] == ["a.dat"]


def test_tga_is_known_by_its_name_or_its_end(tmp_path: Path) -> None:
    data = encoded(plain(GREEN), "TGA")
    (tmp_path / "a.tga").write_bytes(data)
    assert load_image(tmp_path / "a.tga", config())[4, 4].tolist() == list(GREEN)
    assert middle(data + b"TRUEVISION-XFILE.\0") == list(GREEN)
    (tmp_path / "b.tga").write_bytes(b"hello, world")
    with pytest.raises(DataError):
        load_image(tmp_path / "b.tga", config())


def test_heic(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    image = heif.from_pillow(plain(RED, size=(64, 64)))
    image.save(tmp_path / "a.heic", quality=95)
    assert np.abs(np.subtract(load_image(tmp_path / "a.heic", config())[4, 4], RED)).max() <= 6
    assert len(list_folder(tmp_path).images) == 1


def test_heic_without_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_reads_heic", lambda: False)
    with pytest.raises(
        DataError, match=r"HEIC: read with the extra heic alone \(pip install 'vqvae2\[heic\]'\)"
    ):
        load_image(b"\0\0\0\x18ftypheic" + bytes(40), config())
