"""Tensors from a file of `torch.save`, which somebody else wrote: no code in it is run, and no more memory is taken than
the file has bytes, times a small factor.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae2.files.atomic import FileError, reason

_GROWTH = 8  # bytes in float32 per byte of the file, at most: float8 takes 4, and a few tensors may share their numbers


def read_torch_file(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU: tensors, and plain Python values around them.

    Raises:
        FileError: no such file, damaged, compressed, or with more than tensors in it.
    """
    if not path.is_file():
        raise FileError(f"no file {path}")
    try:
        if zipfile.is_zipfile(path):
            _check_stored(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats; a real problem is an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileError:
        raise
    except Exception as error:  # a damaged file can raise almost anything in the reader
        named = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        if named is not None:
            raise FileError(
                f"{path} holds more than tensors ({named[1]}); this could run code, so it is not opened: "
                "save only the model's state_dict"
            ) from None
        raise FileError(f"{path} is damaged, or not written by torch.save ({type(error).__name__})") from None


def plain_tensors(values: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Tensors as float32, dense and contiguous, on the CPU.

    A view that repeats its numbers, such as an expanded one, is refused: a few bytes may stand for any number of them.

    Args:
        path: of the file that they are from.

    Raises:
        FileError: a value is no tensor of floating-point numbers, repeats its numbers, or is not finite, or together they
            are much larger than the file.
    """
    left = _GROWTH * path.stat().st_size
    result = {}
    for name, value in values.items():
        dense = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if not dense or not value.is_floating_point():
            raise FileError(f"{path}: {name} is no tensor of floating-point numbers")
        left -= 4 * value.numel()
        if value.numel() * value.element_size() > value.untyped_storage().nbytes() or left < 0:
            raise FileError(f"{path}: {name} stands for more numbers than the file holds")
        try:
            plain = value.detach().float().contiguous()
        except (RuntimeError, TypeError) as error:  # a type that torch stores and cannot convert
            raise FileError(f"{path}: {name} has the type {value.dtype}: {reason(error)}") from None
        if not bool(plain.isfinite().all()):
            raise FileError(f"{path}: {name} holds numbers that are not finite")
        result[name] = plain
    return result


def _check_stored(path: Path) -> None:
    """Check that nothing in an archive is compressed, and that its members do not overlap."""
    left = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            left -= member.file_size
            if member.compress_type != zipfile.ZIP_STORED or left < 0:
                raise FileError(
                    f"{path} is damaged, or not written by torch.save: {member.filename!r} is compressed"
                )
