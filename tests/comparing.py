"""Whether codes, tensors and folders are still the same."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vqvae2.codes import Codes


def same_codes(a: Codes, b: Codes) -> bool:
    """Whether two batches of codes are the same."""
    return all(torch.equal(x, y) for x, y in zip(a.levels, b.levels, strict=True))


def same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors are equal, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all buffers, those that no file keeps included, and parameters."""
    named = (*module.named_buffers(), *module.named_parameters())
    return {name: value.detach().clone() for name, value in named}


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every path of a folder with its time of change and its bytes."""
    return {
        str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *sorted(folder.rglob("*"))]
    }
