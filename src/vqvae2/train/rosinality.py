"""Stage 1 from elsewhere: the VQ-VAE checkpoints of rosinality/vq-vae-2-pytorch become a run folder.

    CHECKPOINT --torch.load(weights_only)--> their tensors --names, shapes--> ours --> RUN/config.yaml, RUN/autoencoder/

It stands in `train/` because it does what stage 1 of the pipeline does, by the rules of `train/folder.py`: it leaves a
run folder whose autoencoder is done, and `vqvae2 train` goes on with the codes and the priors.

Their network (commit ef5f67c) is ours with two levels and strides (4, 2). Three things are not in the file: the decay
and the smoothing of the codebooks' averages (their defaults are written down), and which commit trained it. Before
ef5f67c a residual block was relu(x) + f(x) under the same tensor names; weights of such a training are read as the
commit reads them, and reconstruct worse than they did at home, here as there.

Codes and pixels are theirs. Where two codes are equally far but for the rounding of float32, either may be chosen,
because distances are summed in another order here.

Shapes: D code dimension, K codes.
"""

from __future__ import annotations

import re
import warnings
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
from vqvae2.train.folder import begun, model_file, read_run, write_config

_WHAT = "stage-1 checkpoint of rosinality/vq-vae-2-pytorch"
_FIRST = "enc_b.blocks.0.weight"  # whoever has no such tensor is no VQVAE of theirs
_COUNTER = 100_000  # updates behind the averages: 1 - decay ** this is 1, so they are read as they are
_RESIDUAL = 32  # their default, where no block says it
_CHANNELS = (1, 3, 4)  # what pictures can be read as


class RosinalityError(UserError):
    """A checkpoint that cannot be imported, or a run folder that must not be overwritten."""


def import_rosinality(path: str | Path, folder: str | Path, size: int = 256, command: str = "") -> Config:
    """Make a run folder whose autoencoder is that of a checkpoint of theirs.

    The model file is written last: a run folder without it is not done, and may be imported into again.

    Args:
        path: the checkpoint, a state dict or a dictionary with one inside; with or without `module.` before the names.
        folder: RUN; created.
        size: height and width of the pictures in pixels, a multiple of 8.
        command: what the user typed, for the record.

    Returns:
        The configuration in RUN/config.yaml. Its priors are those of the two finest levels of the `small` preset of
        this size; `vqvae2 train --set prior...` may still change them.

    Raises:
        RosinalityError: no such file, not theirs, not only tensors, or RUN holds something trained.
        ConfigError: sizes that no run can have.
        RunError: RUN was made by a newer version.
        FileError: RUN cannot be written.
    """
    folder = Path(folder)
    tensors = read_state_dict(path)
    config = _config(path, tensors, size)
    weights = convert(path, tensors, config.autoencoder)
    old = read_run(folder)[1] if (folder / "config.yaml").is_file() else config
    if begun(folder, old):
        raise RosinalityError(
            f"{folder} holds a model that is trained, or in training: choose another --run, or delete it first"
        )
    record: dict[str, Any] = {
        "version": metadata.version("vqvae2"),
        "format": atomic.FORMAT,
        "command": command,
        "imported": str(path),
    }
    write_config(folder, record, config)
    tensor_file.save_tensors(model_file(folder), weights, {"figures": {}, "imported": str(path)})
    return config


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint under their plain names, on the CPU. No code in it is ever run.

    Raises:
        RosinalityError: no such file, damaged, more than tensors in it, or no VQVAE of theirs.
    """
    path = Path(path)
    if not path.is_file():
        raise RosinalityError(f"no checkpoint {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats; what matters is an error
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways, deep inside the reader
        named = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        if named is not None:
            raise RosinalityError(
                f"{path} holds more than tensors ({named[1]}); that could run code, so it is not opened: "
                "save only the model's state_dict"
            ) from None
        raise RosinalityError(
            f"{path} is damaged, or not written by torch.save ({type(error).__name__})"
        ) from None
    for found in _candidates(value):
        names = {str(name).removeprefix("module."): tensor for name, tensor in found.items()}
        if _FIRST in names:
            return {name: _plain(path, name, tensor) for name, tensor in names.items()}
    raise RosinalityError(f"{path} is no {_WHAT}: it has no tensor {_FIRST}")


def convert(path: str | Path, tensors: Mapping[str, Tensor], config: AutoencoderConfig) -> dict[str, Tensor]:
    """Their tensors as the state dict of our `VQVAE(config)`.

    Their codebook `embed` [D, K] is the transpose of our `embeddings` and stays as it is. `cluster_size` [K] and
    `embed_avg` [D, K] become `ema_count` [K] and `ema_sum` [K, D], with a counter so large that the averages'
    zero-debiasing divides by 1: theirs are not debiased.

    Raises:
        RosinalityError: a tensor is missing, is one too many, or has another shape; one line about the first.
    """
    with torch.device("meta"):
        own = VQVAE(config).state_dict()
    known = dict(_names(config.blocks))
    result: dict[str, Tensor] = {}
    for theirs, ours in known.items():
        if theirs not in tensors:
            raise RosinalityError(f"{path} is no {_WHAT}: it has no tensor {theirs}")
        shape = tuple(own[ours].shape)
        turned = theirs.endswith(("embed", "embed_avg"))
        expected = shape[::-1] if turned else shape
        found = tensors[theirs]
        if tuple(found.shape) != expected:
            raise RosinalityError(
                f"{path} is no {_WHAT}: at {theirs}, expected the shape {expected}, found {tuple(found.shape)}"
            )
        result[ours] = (found.T if turned else found).contiguous()
    for theirs in tensors:
        if theirs not in known:
            raise RosinalityError(f"{path} is no {_WHAT}: it has a tensor {theirs}, which theirs has not")
    for name, tensor in own.items():
        if name.endswith(".counter"):
            result[name] = torch.tensor(_COUNTER, dtype=tensor.dtype)
        elif name.endswith(".distortion"):  # serves `rate` only, which is 0
            result[name] = torch.zeros((), dtype=tensor.dtype)
    tensor_file.load_weights(VQVAE(config), result, path)
    return result


def _candidates(value: Any) -> Iterator[Mapping[Any, Any]]:
    """What may be the state dict: the value itself, then what it holds; `model` and `state_dict` before others."""
    if not isinstance(value, Mapping):
        return
    yield value
    inner = {name: item for name, item in value.items() if isinstance(item, Mapping)}
    for name in sorted(inner, key=lambda name: name not in ("model", "state_dict")):
        yield inner[name]


def _plain(path: Path, name: str, value: Any) -> Tensor:
    """A tensor as float32, dense, on the CPU.

    Raises:
        RosinalityError: it is none, or holds numbers that are not finite.
    """
    if (
        not isinstance(value, Tensor)
        or not value.is_floating_point()
        or value.layout != torch.strided
        or value.device.type != "cpu"
    ):
        raise RosinalityError(f"{path} is no {_WHAT}: {name} is no tensor of floating-point numbers")
    if value.numel() and not value.detach().isfinite().all():
        raise RosinalityError(f"{path}: {name} holds numbers that are not finite")
    return value.detach().float()


def _config(path: str | Path, tensors: Mapping[str, Tensor], size: int) -> Config:
    """The run's settings: the autoencoder's from the tensors' shapes, the rest from a preset of the size.

    Raises:
        RosinalityError: a shape that says nothing, or pictures of channels that cannot be read.
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
        raise RosinalityError(f"{path} is for pictures of {channels} channels: expected 1, 3 or 4")
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
        "init": "sonnet",  # their averages smooth the counts as Sonnet does, and nothing is revived
        "revive": False,
    }
    base["prior"]["levels"] = base["prior"]["levels"][-2:]  # of three levels, the two whose grids are alike
    base["train_prior"] = base["train_prior"][-2:]
    return parse(base)


def _names(blocks: int) -> Iterator[tuple[str, str]]:
    """(their name, ours) of every tensor they have, for stacks of `blocks` residual blocks; level 0 is their `t`."""

    def layer(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
        for part in ("weight", "bias"):
            yield f"{theirs}.{part}", f"{ours}.{part}"

    def stack(theirs: str, first: int, ours: str) -> Iterator[tuple[str, str]]:
        for block in range(blocks):
            yield from layer(f"{theirs}.blocks.{first + block}.conv.1", f"{ours}.{block}.conv3")
            yield from layer(f"{theirs}.blocks.{first + block}.conv.3", f"{ours}.{block}.conv1")

    for theirs, level, convolutions in (("enc_b", 1, (0, 2, 4)), ("enc_t", 0, (0, 2))):
        for place in convolutions:
            yield from layer(f"{theirs}.blocks.{place}", f"levels.{level}.encoder.0.{place}")
        yield from stack(theirs, convolutions[-1] + 1, f"levels.{level}.encoder.1")
    for theirs, ours, transposed in (("dec_t", "levels.0.conditioner", (0,)), ("dec", "decoder", (0, 2))):
        yield from layer(f"{theirs}.blocks.0", f"{ours}.0")
        yield from stack(theirs, 1, f"{ours}.1")
        for place in transposed:  # after the stack and its ReLU
            yield from layer(f"{theirs}.blocks.{blocks + 2 + place}", f"{ours}.2.{place}")
    yield from layer("upsample_t", "levels.0.to_finest.0.0")
    for letter, level in (("t", 0), ("b", 1)):
        yield from layer(f"quantize_conv_{letter}", f"levels.{level}.projection")
        for theirs, ours in (
            ("embed", "embeddings"),
            ("cluster_size", "ema_count"),
            ("embed_avg", "ema_sum"),
        ):
            yield f"quantize_{letter}.{theirs}", f"levels.{level}.quantizer.{ours}"
