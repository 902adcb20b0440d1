"""Sheets for people to look at: many images in a grid with thin margins, as one PNG."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from PIL import Image
from torch import Tensor

from vqvae2.data.pixels import to_pil, viewable
from vqvae2.files.atomic import write_bytes


def grid(images: Tensor, columns: int, margin: int = 2, zoom: int = 1) -> Image.Image:
    """A sheet of images, row by row from the top left.

    Args:
        images: float [B, C, H, W] in [-1, 1]; see `viewable` for C other than 1, 3 or 4.
        columns: images in a row.
        margin: pixels between images and around the sheet.
        zoom: whole factor by which each image is enlarged, without smoothing.

    Returns:
        RGB, or RGBA where the images have 4 channels.

    Raises:
        DataError: `images` have another shape.
    """
    tiles = to_pil(viewable(images))
    if zoom > 1:
        tiles = [
            tile.resize((tile.width * zoom, tile.height * zoom), Image.Resampling.NEAREST) for tile in tiles
        ]
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    mode = "RGBA" if tiles[0].mode == "RGBA" else "RGB"
    sheet = Image.new(
        mode, (columns * (width + margin) + margin, rows * (height + margin) + margin), "#dddddd"
    )
    for index, tile in enumerate(tiles):
        x, y = index % columns, index // columns
        sheet.paste(tile, (margin + x * (width + margin), margin + y * (height + margin)))
    return sheet


def save_grid(images: Tensor, path: Path, columns: int, zoom: int = 1) -> None:
    """Write the sheet that `grid` makes as a PNG, atomically."""
    save_picture(grid(images, columns, zoom=zoom), path)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a Pillow image as a PNG, atomically."""
    write_bytes(path, png_bytes(picture))


def png_bytes(picture: Image.Image) -> bytes:
    """The PNG of a Pillow image."""
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
