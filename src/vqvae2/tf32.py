"""TF32, in which a CUDA card computes float32 products with 10 bits of their factors' mantissas.

Our decision: what chooses codes, or scores them, computes float32 without TF32: encoding, the search of the nearest code, drawing,
probabilities. With 10 bits other codes would be chosen, the logits of a step would differ from those of the whole grid by about 1e-2, and a
score would not be the probability with which the sampler draws. Training may use TF32 and bfloat16, and decoding may use TF32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def tf32_is(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in products and convolutions of CUDA cards inside the block, and restore the settings after it.

    The settings belong to the process and are read on the host when an operation is launched, so the block may stand in the capture of
    a graph. Both of torch's interfaces are set and restored: torch refuses to read the older one where they disagree, and what only
    the older one forbids, a newer setting for all operations allows again.
    """
    backends: Any = torch.backends
    cudnn, products_of = backends.cudnn, (backends.cuda, backends.mkldnn)  # the older interface sets both
    parts: list[Any] = [getattr(backend, "matmul", None) for backend in products_of]
    parts += [getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None)]
    newer = [part for part in parts if hasattr(part, "fp32_precision")]  # torch 2.9 and later
    before = [part.fp32_precision for part in newer]
    try:
        products = torch.get_float32_matmul_precision()
    except RuntimeError:  # only the new interface was used, and the old one has its default
        products = "highest"
    try:
        convolutions = cudnn.allow_tf32
    except RuntimeError:
        convolutions = True  # as above
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    cudnn.allow_tf32 = allowed
    for part in newer:
        part.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        cudnn.allow_tf32 = convolutions
        for part, own in zip(newer, before, strict=True):
            part.fp32_precision = own


@contextmanager
def without_tf32(device: torch.device, always: bool = True) -> Iterator[None]:
    """Compute float32 products and convolutions in float32 inside the block; see `tf32_is`.

    Args:
        device: where is computed; on others than CUDA cards nothing is changed.
        always: False leaves the settings as they are where gradients are recorded, that is in training.
    """
    if device.type != "cuda" or (torch.is_grad_enabled() and not always):
        yield
        return
    with tf32_is(False):
        yield
