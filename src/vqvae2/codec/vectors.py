"""The vectors that the autoencoder quantises, beside the codes.

Shapes: B batch, C image channels, H W image size, h w the grid of a level, D code dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes


@torch.no_grad()
def encode_vectors(model: VQVAE, images: Tensor) -> tuple[Codes, list[Tensor], list[Tensor]]:
    """The codes of images, and per level the vectors before and after quantisation, coarsest first.

    Args:
        model: in eval mode.
        images: [B, C, H, W] in [-1, 1].

    Returns:
        The codes; the inputs of the quantisers, float32 [B, h, w, D] each; the code vectors, of the same shapes.
    """
    before: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        before.append(inputs[0].float().contiguous())

    hooks = [quantizer.register_forward_pre_hook(keep) for quantizer in model.quantizers]
    try:
        codes = model.encode(images)
    finally:
        for hook in hooks:
            hook.remove()
    levels = zip(model.quantizers, codes.levels, strict=True)
    return codes, before, [quantizer.lookup(level).float() for quantizer, level in levels]
