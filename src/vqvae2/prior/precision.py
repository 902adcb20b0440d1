"""In which precision the weights of the priors are while codes are drawn."""

from __future__ import annotations

from typing import Literal

Precision = Literal["float32", "bfloat16"]
"""Of the weights while codes are drawn. The residual streams, the logits and the choice of a code stay in float32 or wider."""

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
