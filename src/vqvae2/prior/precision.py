"""In which precision the priors compute when they draw or score codes.

Our decision: whatever computes without gradients does so without TF32. TF32 keeps 10 bits of a product's factors, which is
enough for training, but the logits of a step would then differ from those of the whole grid by about 1e-2, and a score would
not be the probability with which the sampler draws. Training may use TF32 and bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]
"""Of the weights while codes are drawn. The residual streams, the logits and the choice of a code stay in float32 or wider."""

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


@contextmanager
def without_tf32(always: bool = True) -> Iterator[None]:
    """Compute float32 products and convolutions in float32 inside the block, and restore the settings after it.

    Args:
        always: False leaves the settings as they are where gradients are recorded, that is in training.
    """
    if not torch.cuda.is_available() or (torch.is_grad_enabled() and not always):
        yield
        return
    products = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
