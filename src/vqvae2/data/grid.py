"""Sheets of pictures: a grid with a thin margin, as one PNG."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from PIL import Image
from torch import Tensor

from vqvae2.data.pixels import to_pil
from vqvae2.files.atomic import write_atomic


def grid(images: Tensor, columns: int, margin: int = 2, zoom: int = 1) -> Image.Image:
    """[B, C, H, W] in [-1, 1] as one picture, row by row.

    Args:
        columns: pictures in a row.
        margin: pixels between pictures.
        zoom: whole factor by which each picture is enlarged, without smoothing.
    """
    tiles = to_pil(images)
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
    """Write `grid` as a PNG, atomically."""
    save_picture(grid(images, columns, zoom=zoom), path)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write one picture as a PNG, atomically."""
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    write_atomic(path, lambda temporary: _write(temporary, buffer.getvalue()))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
