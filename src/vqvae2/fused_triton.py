# mypy: disable-error-code="import-not-found, no-untyped-def, untyped-decorator"
"""The smallest kernel, by which `vqvae2.fused` finds out whether Triton works. Import this file only where `triton` is installed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _one(out):
    tl.store(out, 1)


def try_kernel(device: torch.device) -> None:
    """Compile and run a kernel on a card.

    Raises:
        Exception: whatever the compiler or the driver raises, or a wrong result.
    """
    out = torch.zeros(1, dtype=torch.int32, device=device)
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        _one[(1,)](out)
    if out.item() != 1:
        raise RuntimeError("a kernel that stores a number stored another")
