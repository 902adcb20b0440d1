"""Tensors and JSON metadata in one safetensors file, with a digest of both.

Nothing is pickled, because reading a pickle can run code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vqvae2.files.atomic import FORMAT, FileError, reason, write_atomic


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> str:
    """Save tensors, and metadata that JSON can hold, to one safetensors file, atomically.

    Returns:
        The digest of the content, which is stored in the file and checked by `load_tensors`.

    Raises:
        FileError: the file cannot be written; an earlier one is kept.
    """
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    text = json.dumps(dict(metadata or {}))
    check = digest(plain, text)
    header = {"metadata": text, "digest": check, "format": str(FORMAT)}
    write_atomic(path, lambda temporary: safetensors.torch.save_file(plain, temporary, header))
    return check


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the metadata of a file that `save_tensors` wrote.

    Raises:
        FileError: the file is missing, damaged, altered, or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"no weights at {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path} is damaged: {reason(error)}") from error
    version = header.get("format", "0")
    if not (version.isascii() and version.isdigit()):
        raise FileError(f"{path} is damaged: no such format {version!r}")
    if int(version) > FORMAT:
        raise FileError(f"{path} was written by a newer vqvae2 (format {version}, this one reads {FORMAT})")
    text = header.get("metadata", "{}")
    if header.get("digest") != digest(tensors, text):
        raise FileError(f"{path} was altered after it was saved: its content does not match its digest")
    return tensors, json.loads(text)


def stored_digest(path: str | Path) -> str:
    """The digest that `save_tensors` wrote into the file, without reading the tensors.

    Raises:
        FileError: the file is missing or damaged.
    """
    try:
        with safetensors.safe_open(Path(path), framework="pt") as file:
            return str((file.metadata() or {}).get("digest", ""))
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path} is damaged: {reason(error)}") from error


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """sha256 of the names, dtypes, shapes and bytes of tensors, and of `text`; 64 hexadecimal digits."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Load a state dict, which must have exactly the names and shapes of the model's own.

    Args:
        model: its weights are replaced.
        tensors: the state dict.
        source: where it comes from, for the message.

    Raises:
        FileError: a name or a shape differs; the message names the first one. The model is left as it was.
    """
    own = model.state_dict()
    for name in [*own, *tensors]:
        if name not in tensors or name not in own or own[name].shape != tensors[name].shape:
            expected = tuple(own[name].shape) if name in own else "nothing"
            actual = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise FileError(
                f"{source} does not fit the configuration: at {name}, expected {expected}, found {actual}"
            )
    model.load_state_dict(dict(tensors))


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of an optimizer as tensors, and as metadata that JSON can hold."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, values in state["state"].items()
        for key, value in values.items()
    }
    return tensors, {"param_groups": state["param_groups"]}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Restore the state that `pack_optimizer` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": metadata["param_groups"]})
