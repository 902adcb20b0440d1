"""TF32, in which a CUDA card computes float32 products with 10 bits of their factors' mantissas.

Our decision: what chooses codes, or scores them, computes float32 without TF32: encoding, the search of the nearest code, drawing,
probabilities. With 10 bits other codes would be chosen, the logits of a step would differ from those of the whole grid by about 1e-2, and a
score would not be the probability with which the sampler draws. Training may use TF32 and bfloat16, and decoding may use TF32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_tf32(device: torch.device, always: bool = True) -> Iterator[None]:
    """Compute float32 products and convolutions in float32 inside the block, and restore the settings after it.

    The settings belong to the process and are read on the host when an operation is launched, so the block may stand in the capture of
    a graph. Both of torch's interfaces to products are set and restored, because torch refuses to multiply when they disagree.

    Args:
        device: where is computed; on others than CUDA cards nothing is changed.
        always: False leaves the settings as they are where gradients are recorded, that is in training.
    """
    if device.type != "cuda" or (torch.is_grad_enabled() and not always):
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    new = getattr(matmul, "fp32_precision", None)  # torch 2.9 and later
    try:
        products = torch.get_float32_matmul_precision()
    except RuntimeError:  # only the new interface was used, and the old one has its default
        products = "highest"
    convolutions = cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")  # both interfaces to products
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        if new is not None:
            matmul.fp32_precision = new
        cudnn.allow_tf32 = convolutions
