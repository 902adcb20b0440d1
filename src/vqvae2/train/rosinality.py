"""Import of stage 1: a VQ-VAE checkpoint of rosinality/vq-vae-2-pytorch becomes a run folder.

    CHECKPOINT --torch.load(weights_only)--> its tensors --names, shapes--> ours --> RUN/config.yaml, RUN/autoencoder/

This module is in `train/` because it replaces stage 1 of the pipeline: afterwards the autoencoder of the run folder is
done, and `vqvae2 train` continues with the codes and the priors.

Rosinality's network (commit ef5f67c) is ours with two levels and strides (4, 2). The checkpoint does not contain the decay
and the smoothing of the codebooks' moving averages, so rosinality's defaults are written down, nor the commit that it was
trained with. Before ef5f67c a residual block computed relu(x) + f(x) under the same tensor names. Weights from that time
are read as ef5f67c reads them; in both programs their reconstructions are worse than they were originally.

Codes and reconstructions equal rosinality's. If two codes are equally near except for the rounding of float32, either may
be chosen, because distances are summed in a different order here.

Shapes: D code dimension, K codes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.config.models import AutoencoderConfig, Config, parse
from vqvae2.config.presets import choose, preset
from vqvae2.errors import UserError
from vqvae2.files import atomic, tensor_file
from vqvae2.files.atomic import FileError
from vqvae2.files.lock import locks
from vqvae2.files.run_folder import RunFolder, run_path
from vqvae2.files.tensor_file import plain_names
from vqvae2.files.torch_file import plain_tensors, read_torch_file
from vqvae2.train.folder import begun, model_file, read_run, write_config
from vqvae2.train.reference import reference_metadata

_WHAT = "stage-1 checkpoint of rosinality/vq-vae-2-pytorch"
_FIRST = "enc_b.blocks.0.weight"  # a file without this tensor is no checkpoint of that VQ-VAE
_COUNTER = (
    100_000  # number of updates of the moving averages: 1 - decay ** this is 1, so they are used as they are
)
_RESIDUAL = 32  # rosinality's default, for a network without residual blocks
_CHANNELS = (1, 3, 4)  # of images that can be read


class RosinalityError(UserError):
    """A checkpoint that cannot be imported, or a run folder that must not be overwritten."""


@locks("folder")
def import_rosinality(path: str | Path, folder: str | Path, size: int = 256, command: str = "") -> Config:
    """Make a run folder whose autoencoder is that of a checkpoint.

    The model file is written last, so an import that was interrupted can be repeated.

    Args:
        path: the checkpoint, a state dict or a dictionary that contains one; with or without `module.`, `_orig_mod.` or
            `model.` before the names.
        folder: RUN; created.
        size: height and width of the images in pixels, a multiple of 8.
        command: what the user typed, for the record.

    Returns:
        The configuration in RUN/config.yaml. Its priors are those of the two finest levels of the `small` preset of
        this size; `vqvae2 train --set prior...` can still change them.

    Raises:
        RosinalityError: no such file, another network, more than tensors in it, or RUN holds trained weights.
        ConfigError: sizes that no run can have.
        RunError: RUN was made by a newer version.
        LockError: another command works in RUN.
        FileError: RUN cannot be written.
    """
    folder = run_path(folder)
    tensors = read_state_dict(path)
    config = _config(path, tensors, size)
    weights = convert(path, tensors, config.autoencoder)
    old_record, old = read_run(folder) if RunFolder(folder).exists() else ({}, config)
    if begun(folder, old, old_record):
        raise RosinalityError(
            f"{folder} holds a model that is trained or in training: choose another --run, or delete it first"
        )
    record: dict[str, Any] = {
        "version": metadata.version("vqvae2"),
        "format": atomic.FORMAT,
        "command": command,
        "imported": str(path),
    }
    write_config(folder, record, config)
    about = {"figures": {}, "imported": Path(path).name, **reference_metadata(config.autoencoder, weights)}
    tensor_file.save_tensors(model_file(folder), weights, about)
    return config


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint under their plain names, on the CPU. No code in it is ever run.

    Raises:
        RosinalityError: no such file, damaged, more than tensors in it, or another network.
    """
    path = Path(path)
    if not path.is_file():
        raise RosinalityError(f"no checkpoint {path}")
    try:
        for candidate in _candidates(read_torch_file(path)):
            names = plain_names({str(name): tensor for name, tensor in candidate.items()})
            if _FIRST in names:
                return plain_tensors(names, path)
    except FileError as error:
        raise RosinalityError(str(error)) from None
    raise RosinalityError(f"{path} is no {_WHAT}: it has no tensor {_FIRST} (its priors cannot be imported)")


def convert(path: str | Path, tensors: Mapping[str, Tensor], config: AutoencoderConfig) -> dict[str, Tensor]:
    """Rosinality's tensors as the state dict of our `VQVAE(config)`.

    The codebook `embed` [D, K] becomes its transpose `embeddings` [K, D]. `cluster_size` [K] and `embed_avg` [D, K] become
    `ema_count` [K] and `ema_sum` [K, D]. These averages are not zero-debiased, so the counter of updates is set so high
    that zero-debiasing divides them by 1.

    Args:
        path: of the checkpoint, for error messages.

    Raises:
        RosinalityError: a tensor is missing, unexpected, or has another shape; the message names the first one.
    """
    with torch.device("meta"):
        own = VQVAE(config).state_dict()
    known = dict(_names(config.blocks))
    result: dict[str, Tensor] = {}
    for source, target in known.items():
        if source not in tensors:
            raise RosinalityError(f"{path} is no {_WHAT}: it has no tensor {source}")
        shape = tuple(own[target].shape)
        transposed = source.endswith(("embed", "embed_avg"))
        expected = shape[::-1] if transposed else shape
        tensor = tensors[source]
        if tuple(tensor.shape) != expected:
            raise RosinalityError(
                f"{path} is no {_WHAT}: at {source}, expected the shape {expected}, found {tuple(tensor.shape)}"
            )
        result[target] = (tensor.T if transposed else tensor).contiguous()
    for source in tensors:
        if source not in known:
            raise RosinalityError(f"{path} is no {_WHAT}: it has an unexpected tensor {source}")
    for name, tensor in own.items():
        if name.endswith(".counter"):
            result[name] = torch.tensor(_COUNTER, dtype=tensor.dtype)
        elif name.endswith(".distortion"):  # only the entropy penalty uses it, which is 0
            result[name] = torch.zeros((), dtype=tensor.dtype)
    tensor_file.load_weights(VQVAE(config), result, path)
    return result


def _candidates(value: Any) -> Iterator[Mapping[Any, Any]]:
    """What may be the state dict: the value itself, then the mappings in it, `model` and `state_dict` before others."""
    if not isinstance(value, Mapping):
        return
    yield value
    inner = {name: item for name, item in value.items() if isinstance(item, Mapping)}
    for name in sorted(inner, key=lambda name: name not in ("model", "state_dict")):
        yield inner[name]


def _config(path: str | Path, tensors: Mapping[str, Tensor], size: int) -> Config:
    """The run's settings: those of the autoencoder from the shapes of the tensors, the rest from the preset of the size.

    Raises:
        RosinalityError: a tensor with another number of axes, or a number of image channels that cannot be read.
        ConfigError: out of range.
    """

    def length(name: str, axis: int, axes: int) -> int:
        if name not in tensors:
            raise RosinalityError(f"{path} is no {_WHAT}: it has no tensor {name}")
        shape = tuple(tensors[name].shape)
        if len(shape) != axes:
            raise RosinalityError(
                f"{path} is no {_WHAT}: at {name}, expected {axes} axes, found the shape {shape}"
            )
        return shape[axis]

    channels = length(_FIRST, 1, 4)
    if channels not in _CHANNELS:
        raise RosinalityError(f"{path} is for images of {channels} channels: expected 1, 3 or 4")
    blocks = sum(re.fullmatch(r"enc_b\.blocks\.\d+\.conv\.1\.weight", name) is not None for name in tensors)
    base = preset(choose(0, size)).model_dump(mode="json")
    base["data"] |= {"size": size, "channels": channels}
    base["autoencoder"] = {
        "channels": channels,
        "strides": [4, 2],
        "codes": [length("quantize_t.embed", 1, 2), length("quantize_b.embed", 1, 2)],
        "code_dim": length("quantize_t.embed", 0, 2),
        "hidden": length("enc_b.blocks.4.weight", 0, 4),
        "residual": length("enc_b.blocks.5.conv.1.weight", 0, 4) if blocks else _RESIDUAL,
        "blocks": blocks,
        "init": "sonnet",  # rosinality smooths the counts as Sonnet does, and revives no codes
        "revive": False,
    }
    base["prior"]["levels"] = base["prior"]["levels"][
        -2:
    ]  # of a preset with three levels, the two with the same grids
    base["train_prior"] = base["train_prior"][-2:]
    base["sharpen"] = {"steps": 0}  # nothing of the imported weights is trained unasked
    return parse(base)


def _names(blocks: int) -> Iterator[tuple[str, str]]:
    """(rosinality's name, ours) of every tensor, with `blocks` residual blocks per stack.

    Rosinality's level `t` (top) is our level 0, `b` (bottom) our level 1.
    """

    def layer(source: str, target: str) -> Iterator[tuple[str, str]]:
        for name in ("weight", "bias"):
            yield f"{source}.{name}", f"{target}.{name}"

    def stack(source: str, first: int, target: str) -> Iterator[tuple[str, str]]:
        for block in range(blocks):
            yield from layer(f"{source}.blocks.{first + block}.conv.1", f"{target}.{block}.conv3")
            yield from layer(f"{source}.blocks.{first + block}.conv.3", f"{target}.{block}.conv1")

    for source, level, convolutions in (("enc_b", 1, (0, 2, 4)), ("enc_t", 0, (0, 2))):
        for index in convolutions:
            yield from layer(f"{source}.blocks.{index}", f"levels.{level}.encoder.0.{index}")
        yield from stack(source, convolutions[-1] + 1, f"levels.{level}.encoder.1")
    for source, target, transposed in (("dec_t", "levels.0.conditioner", (0,)), ("dec", "decoder", (0, 2))):
        yield from layer(f"{source}.blocks.0", f"{target}.0")
        yield from stack(source, 1, f"{target}.1")
        for index in transposed:  # after the stack and its ReLU
            yield from layer(f"{source}.blocks.{blocks + 2 + index}", f"{target}.2.{index}")
    yield from layer("upsample_t", "levels.0.to_finest.0.0")
    for letter, level in (("t", 0), ("b", 1)):
        yield from layer(f"quantize_conv_{letter}", f"levels.{level}.projection")
        for source, target in (
            ("embed", "embeddings"),
            ("cluster_size", "ema_count"),
            ("embed_avg", "ema_sum"),
        ):
            yield f"quantize_{letter}.{source}", f"levels.{level}.quantizer.{target}"
