"""Whether the fused kernels, which are written in Triton, can be used on a device."""

from __future__ import annotations

import importlib.util
import logging
from functools import cache

import torch

_log = logging.getLogger("vqvae2")


@cache
def triton_works(device: torch.device) -> bool:
    """Whether Triton is installed and a kernel of it runs on this card; False on any other device.

    Before its first kernel Triton compiles a small library in C. It cannot where there is no compiler, or where Python's header files are
    missing, as in many images for containers. One line says so then, and what asked uses torch's own operations.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    try:
        from vqvae2.fused_triton import try_kernel

        try_kernel(device)
    except Exception as error:  # of the compiler, of the system's linker, of the driver
        lines = str(error).strip().splitlines() or [type(error).__name__]
        _log.warning(
            "Triton cannot compile kernels here (%s), so slower operations of torch are used; it needs a C compiler and Python's header "
            "files (Debian: apt-get install gcc python3-dev)",
            lines[0][:200],
        )
        return False
    return True
