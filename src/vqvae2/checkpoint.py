"""Atomic save and load: safetensors for tensors, JSON for the rest, a digest over both. No pickle, ever.

Everything is written to a temporary name in the same folder, flushed to the disk and renamed, so a kill or a
full disk at any moment leaves the last good state.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vqvae2.errors import UserError

FORMAT = 1  # of run folders and weight files; a larger number was written by a newer version


class CheckpointError(UserError):
    """A file that is missing, damaged, altered, or of a newer version."""


def write_atomic(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, flush it, and rename it to `path`.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; an earlier file at `path` stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot write {path}: {_reason(error)}; what was there before is kept"
        ) from error
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    write_atomic(path, lambda temporary: _plain_write(temporary, text))


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, indented."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: str | Path) -> Any:
    """The value in a JSON file.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {_reason(error)}") from error


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> str:
    """Save tensors and a JSON-ready `metadata` to one safetensors file.

    Returns:
        The content digest, which is stored too and checked by `load_tensors`.
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
        CheckpointError: missing, truncated, altered, or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {_reason(error)}") from error
    version = header.get("format", "0")
    if not (version.isascii() and version.isdigit()):
        raise CheckpointError(f"{path} is damaged: no such format {version!r}")
    if int(version) > FORMAT:
        raise CheckpointError(
            f"{path} was written by a newer vqvae2 (format {version}, this one reads {FORMAT})"
        )
    text = header.get("metadata", "{}")
    if header.get("digest") != digest(tensors, text):
        raise CheckpointError(f"{path} was altered after it was saved: its content does not match its digest")
    return tensors, json.loads(text)


def stored_digest(path: str | Path) -> str:
    """The digest that `save_tensors` wrote into the file, without reading the tensors.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        with safetensors.safe_open(Path(path), framework="pt") as file:
            return str((file.metadata() or {}).get("digest", ""))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {_reason(error)}") from error


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """sha256 over names, dtypes, shapes and bytes of tensors, and over `text`; 64 hexadecimal digits."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Load a state dict whose names and shapes must fit exactly.

    Raises:
        CheckpointError: they do not; one line that says what differs first.
    """
    own = model.state_dict()
    for name in [*own, *tensors]:
        if name not in tensors or name not in own or own[name].shape != tensors[name].shape:
            expected = tuple(own[name].shape) if name in own else "nothing"
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise CheckpointError(
                f"{source} does not fit the configuration: at {name}, expected {expected}, found {found}"
            )
    model.load_state_dict(dict(tensors))


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors and JSON."""
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
    """Restore what `pack_optimizer` saved."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": metadata["param_groups"]})


def _plain_write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())
