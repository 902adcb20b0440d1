"""The image files that a verb is called with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vqvae2.data.augmentation import centre
from vqvae2.data.decoding import load_image
from vqvae2.data.errors import DataError, ImageError
from vqvae2.data.folder_files import list_folder
from vqvae2.data.pixels import to_float
from vqvae2.data.skipped import one_line
from vqvae2.errors import UserError, printable
from vqvae2.run import Run

_SHOWN = 20  # skipped files that are named one by one

Skipped = list[tuple[str, str]]
"""Files that are not used, each with the reason."""


def image_files(paths: Sequence[Path], skipped: Skipped | None = None) -> list[Path]:
    """The files among `paths`, and the image files in the folders among them, sorted per folder.

    A folder is listed by the rule of `data.folder_files`, as for training.

    Args:
        skipped: the other files of the folders are appended, with their reasons.

    Raises:
        UserError: a path does not exist, or a folder holds no image.
    """
    missing = [printable(str(path)) for path in paths if not path.exists()]
    if missing:
        raise UserError(f"no such file: {', '.join(missing)}")
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        found = list_folder(path)
        unread = found.unread()
        if not found.images:
            why = f" (the first of {len(unread)} files, {one_line(*unread[0], ': ')})" if unread else ""
            raise UserError(f"no images in {printable(str(path))}{why}")
        files += found.images
        if skipped is not None:
            skipped += [(str(path / name), reason) for name, reason in unread]
    if not files:
        raise UserError("expected at least one image")
    return files


def load_images(run: Run, files: Sequence[Path]) -> Tensor:
    """Image files as the run sees them, resized and cut to the centre: [B, C, H, W] in [-1, 1].

    Raises:
        DataError: a file that cannot be used.
    """
    data = run.config.data
    return to_float(
        torch.from_numpy(centre(np.stack([load_image(file, data) for file in files]), data.shape))
    )


def usable_images(
    run: Run, paths: Sequence[Path], say: Callable[[str], None] = lambda text: None
) -> tuple[list[Path], Tensor]:
    """The images among `paths` and in the folders among them, without the files of folders that cannot be used.

    The images stay 8-bit, so that many of them fit in memory.

    Args:
        paths: image files, or folders with image files.
        say: called with one line of text that counts what was skipped, and one for each of the first 20 such files.

    Returns:
        The files, and their images, resized and cut to the centre: uint8 [n, H, W, C].

    Raises:
        UserError: as `image_files`, or no file of the folders can be used.
        DataError: a file that is named itself cannot be used, or a file cannot be read for a reason that is not its own.
    """
    data, skipped = run.config.data, Skipped()
    named = {path for path in paths if not path.is_dir()}
    files, pixels = [], []
    for file in image_files(paths, skipped):
        try:
            pixels.append(load_image(file, data))
            files.append(file)
        except ImageError as error:
            if file in named:
                raise
            skipped.append((str(file), str(error).removeprefix(f"{printable(str(file))}: ")))
    if skipped:
        say(f"skipped {len(skipped)} file{'s' * (len(skipped) != 1)} that cannot be used:")
        for item in skipped[:_SHOWN]:
            say(f"  {one_line(*item, ': ')}")
    if not files:
        raise DataError(f"no usable image: {len(skipped)} files were skipped")
    return files, torch.from_numpy(centre(np.stack(pixels), data.shape))


def read_image(run: Run, data: bytes) -> Tensor:
    """The image in the bytes of a file, as the run sees it: [C, H, W] in [-1, 1].

    Raises:
        DataError: not an image, damaged, or too large.
    """
    config = run.config.data
    return to_float(torch.from_numpy(centre(load_image(data, config)[None], config.shape)))[0]
