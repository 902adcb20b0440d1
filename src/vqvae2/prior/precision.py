"""In which precision the priors compute when they draw or score codes.

Our decision: float32 means float32. TF32 keeps 10 bits of a product's factors, which is enough for training, but it would
make the logits of a step differ from those of the whole grid by about 1e-2, so that a score would not be the probability
with which the sampler draws. Training may use TF32 and bfloat16.
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
def without_tf32() -> Iterator[None]:
    """Compute float32 products and convolutions in float32 inside the block, and restore the settings after it."""
    if not torch.cuda.is_available():
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
