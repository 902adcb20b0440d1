"""A check of the device that an autoencoder is loaded on: one image whose codes are stored with the weights.

Some devices compute some operations wrongly, without an error. When an autoencoder is written, the codes of a small fixed
image are computed on the CPU and stored in the metadata of its weights. Each loading encodes that image again on the
device that will be used, and warns if the codes are others (our decision).
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.config.models import AutoencoderConfig
from vqvae2.files.atomic import FileError

_KEY = "reference_codes"  # of the metadata of an autoencoder's weights

_SIDE = 64  # pixels at least; a multiple of the strides
_TOLERATED = (
    0.02  # of the codes: rounding differs between devices, and changes vectors half-way between two codes
)

_log = logging.getLogger("vqvae2")


def reference_image(config: AutoencoderConfig) -> Tensor:
    """The image [1, C, S, S] in [-1, 1], the same on every device: waves of several directions and lengths.

    It is computed with integers, because sines may differ in their last digit.
    """
    stride = math.prod(config.strides)
    side = stride * math.ceil(_SIDE / stride)
    y, x = torch.arange(side)[:, None], torch.arange(side)[None]
    waves = [(3 + c) * x + (5 + 2 * c) * y + (x * y * (1 + c)) // 16 for c in range(config.channels)]
    levels = (torch.stack(waves)[None] % 256 - 128).abs()  # 0 .. 128
    return levels.to(torch.float32) / 64 - 1


def reference_metadata(config: AutoencoderConfig, weights: dict[str, Tensor]) -> dict[str, Any]:
    """What `check_device` reads: the codes of the reference image on the CPU in float32, per level in raster order.

    Args:
        config: of the autoencoder.
        weights: its tensors, on any device.

    Returns:
        To be saved among the metadata of the weights.
    """
    model = VQVAE(config)
    model.load_state_dict({name: tensor.detach().cpu() for name, tensor in weights.items()})
    return {_KEY: _encode(model.eval())}


def check_device(model: VQVAE, metadata: dict[str, Any], file: Path) -> None:
    """Encode the reference image where the model is, and warn if more than 2 % of the codes are not the stored ones.

    Args:
        model: in eval mode.
        metadata: of its weights; without stored codes, as in files of former versions, nothing is checked.
        file: of the weights, for the messages.

    Raises:
        FileError: the stored codes are no codes of this model.
    """
    stored = metadata.get(_KEY)
    if stored is None:
        return
    found = _encode(model)
    if not _alike(stored, found):
        raise FileError(f"{file} is damaged: the codes of its reference image are not codes of this model")
    pairs = [pair for level in zip(stored, found, strict=True) for pair in zip(*level, strict=True)]
    wrong = sum(expected != code for expected, code in pairs)
    if wrong > _TOLERATED * len(pairs):
        device = next(model.parameters()).device
        _log.warning(
            "%s: on the device %s, %s of the %s codes of the reference image differ from those stored with the weights; "
            "results of this device may be wrong, and --device cpu avoids it",
            file,
            device,
            wrong,
            len(pairs),
        )


def _encode(model: VQVAE) -> list[list[int]]:
    image = reference_image(model.config).to(next(model.parameters()).device)
    codes: list[list[int]] = [level.flatten().tolist() for level in model.encode(image).levels]
    return codes


def _alike(stored: Any, found: list[list[int]]) -> bool:
    """Whether the stored value has the form of these codes."""
    return (
        isinstance(stored, list)
        and all(isinstance(level, list) for level in stored)
        and [len(level) for level in stored] == [len(level) for level in found]
        and all(type(code) is int for level in stored for code in level)
    )
