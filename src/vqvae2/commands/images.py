"""The image files that a verb is called with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vqvae2.data.augmentation import centre
from vqvae2.data.decoding import load_image
from vqvae2.data.pixels import to_float
from vqvae2.errors import UserError
from vqvae2.run import Run


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths`, and all files in the folders among them, sorted per folder; hidden ones are left out.

    Raises:
        UserError: a path does not exist, or a folder holds no file.
    """
    files: list[Path] = []
    for path in paths:
        inside = path.rglob("*") if path.is_dir() else ()
        files += sorted(p for p in inside if p.is_file() and not p.name.startswith(".")) or [path]
    missing = [str(path) for path in files if not path.exists()]
    if missing:
        raise UserError(f"no such file: {', '.join(missing)}")
    empty = [str(path) for path in files if path.is_dir()]
    if empty or not files:
        raise UserError(f"no images in {', '.join(empty)}")
    return files


def load_images(run: Run, files: Sequence[Path]) -> Tensor:
    """Image files as the run sees them, resized and cut to the centre square: [B, C, S, S] in [-1, 1].

    Raises:
        DataError: a file that cannot be used.
    """
    data = run.config.data
    return to_float(torch.from_numpy(centre(np.stack([load_image(file, data) for file in files]), data.size)))


def free_name(stem: str, suffixes: Sequence[str], taken: set[str], ending: str = ".png") -> str:
    """`stem`, or `stem` with a number, such that no file STEM + SUFFIX + ENDING is in `taken`; all of them are added."""
    for name in itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2))):
        files = {f"{name}{suffix}{ending}".casefold() for suffix in suffixes}
        if not files & taken:
            taken |= files
            return name
    raise AssertionError("the numbers never end")
