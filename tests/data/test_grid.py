"""Sheets of images: every pixel is where it belongs, and the file holds the sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vqvae2.data.errors import DataError
from vqvae2.data.grid import grid, save_grid, save_picture
from vqvae2.data.pixels import to_float
from vqvae2.files.atomic import FileError

GREY = 0xDD  # of the margins


def noise(count: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Noise, uint8 [B, H, W, C], in which the grey of the margins does not occur."""
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, GREY, (count, height, width, channels), dtype=torch.uint8, generator=generator)


@settings(max_examples=40)
@given(
    count=st.integers(1, 7),
    columns=st.integers(1, 4),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    margin=st.integers(0, 3),
    zoom=st.integers(1, 3),
    channels=st.sampled_from([1, 3, 4]),
)
def test_every_image_is_where_it_belongs_and_the_rest_is_margin(
    count: int, columns: int, size: tuple[int, int], margin: int, zoom: int, channels: int
) -> None:
    pixels = noise(count, *size, channels)
    sheet = np.asarray(grid(to_float(pixels), columns, margin, zoom)).copy()
    height, width = size[0] * zoom, size[1] * zoom
    rows = (count + columns - 1) // columns
    assert sheet.shape[:2] == (
        rows * height + (rows + 1) * margin,
        columns * width + (columns + 1) * margin,
    )
    for index in range(count):
        top = margin + index // columns * (height + margin)
        left = margin + index % columns * (width + margin)
        tile = sheet[top : top + height, left : left + width]
        enlarged = pixels[index].numpy().repeat(zoom, 0).repeat(zoom, 1)
        assert np.array_equal(tile, np.broadcast_to(enlarged, tile.shape))
        tile[:] = (*[GREY] * 3, 255)[: tile.shape[2]]
    assert (sheet[..., :3] == GREY).all()


def test_modes() -> None:
    for channels, mode in ((1, "RGB"), (3, "RGB"), (4, "RGBA")):
        assert grid(to_float(noise(2, 3, 3, channels)), 2).mode == mode
    with pytest.raises(DataError, match="1 or 3 or 4"):
        grid(torch.zeros(2, 3, 3), 2)
    for channels in (2, 5, 16):  # the first, or the first three, are shown
        assert grid(torch.zeros(2, channels, 3, 3), 2).mode == "RGB"


def test_the_file_holds_the_sheet(tmp_path: Path) -> None:
    images = to_float(noise(5, 4, 3))
    path = tmp_path / "new" / "sheet.png"
    save_grid(images, path, 2, zoom=3)
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        assert np.array_equal(np.asarray(sheet), np.asarray(grid(images, 2, zoom=3)))
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]


def test_a_sheet_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileError, match="cannot write"):
        save_picture(Image.new("RGB", (2, 2)), tmp_path / "file" / "a.png")
