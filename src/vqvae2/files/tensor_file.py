"""Tensors and JSON metadata in one safetensors file, with a digest of both.

Nothing is pickled, because reading a pickle can run code. All that is not a tensor is under one key of the file's
header: safetensors writes several keys in random order, and equal content must give equal bytes.

A weight file may come from a stranger: the shapes in its header are compared with those of the network before either
takes memory (`load_network`), and whatever is wrong with it is a `FileError`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vqvae2.files.atomic import FORMAT, FileError, OtherFileError, parse_json, reason, write_atomic
from vqvae2.files.records import Record

_KEY = "vqvae2"  # of the file's header
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of DDP, of torch.compile, of wrappers such as Lightning's
Shape = tuple[int, ...]
Network = TypeVar("Network", bound=nn.Module)
Value = TypeVar("Value")


class _Header(Record):
    """What the one key of the header holds, as JSON."""

    format: int
    digest: str
    metadata: str  # JSON too, because the digest is of this very text


@dataclass(frozen=True)
class TensorHeader:
    """What the header of a file says.

    Attributes:
        shapes: of the tensors, by name.
        metadata: that `save_tensors` was given.
        digest: of the content, as it was when it was saved.
        text: the metadata as JSON, which the digest includes.
    """

    shapes: dict[str, Shape]
    metadata: dict[str, Any]
    digest: str
    text: str


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> str:
    """Save tensors, and metadata that JSON can hold, to one safetensors file, atomically.

    Equal arguments give equal bytes.

    Returns:
        The digest of the content, which is stored in the file and checked by `load_tensors`.

    Raises:
        FileError: the file cannot be written; an earlier one is kept.
    """
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    text = json.dumps(dict(metadata or {}))
    check = digest(plain, text)
    header = {_KEY: json.dumps({"format": FORMAT, "digest": check, "metadata": text})}
    write_atomic(path, lambda temporary: safetensors.torch.save_file(plain, temporary, header))
    return check


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the metadata of a file that `save_tensors` wrote.

    Raises:
        FileError: the file is missing, damaged, altered, or of a newer version.
    """
    header = read_header(path)
    try:
        with safetensors.safe_open(Path(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in header.shapes}
        found = digest(tensors, header.text)
    except Exception as error:  # types of numbers that torch cannot handle raise many kinds of errors
        raise FileError(f"{path} is damaged: {reason(error)}") from error
    if header.digest != found:
        raise FileError(f"{path} was altered after it was saved: its content does not match its digest")
    return tensors, header.metadata


def read_header(path: str | Path) -> TensorHeader:
    """What a file says about itself; the tensors are not read.

    Raises:
        FileError: the file is missing, damaged, or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"no weights at {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            stored = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise FileError(f"{path} is damaged: {reason(error)}") from error
    header = _header(path, stored)
    if header.format > FORMAT:
        raise OtherFileError(
            f"{path} was written by a newer vqvae2 (format {header.format}, this one reads {FORMAT})"
        )
    metadata = parse_json(header.metadata, path)
    if not isinstance(metadata, dict):
        raise FileError(f"{path} is damaged: its metadata are no JSON object")
    return TensorHeader(shapes, metadata, header.digest, header.metadata)


def _header(path: Path, stored: Mapping[str, str]) -> _Header:
    if _KEY in stored:
        return _Header.of(parse_json(stored[_KEY], path), path)
    version = stored.get("format", "0")  # a former version wrote three keys
    if not (version.isascii() and version.isdigit() and len(version) < 10):
        raise FileError(f"{path} is damaged: no such format {version[:80]!r}")
    return _Header(
        format=int(version), digest=stored.get("digest", ""), metadata=stored.get("metadata", "{}")
    )


def stored_digest(path: str | Path) -> str:
    """The digest that `save_tensors` wrote into the file, without reading the tensors.

    Raises:
        FileError: the file is missing or damaged.
    """
    return read_header(path).digest


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """sha256 of the names, dtypes, shapes and bytes of tensors, and of `text`; 64 hexadecimal digits.

    The text may have names of files that are no UTF-8, as Python spells them.
    """
    total = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def load_network(
    make: Callable[[], Network], path: str | Path
) -> tuple[Network, dict[str, Tensor], dict[str, Any]]:
    """Build a network and load its weights from a file that `save_tensors` wrote.

    The shapes are compared first, those of the network on the meta device with those in the file's header, so that a
    configuration that asks for a huge network beside a small file takes no memory.

    Args:
        make: builds the network with any weights.
        path: the file.

    Returns:
        The network on the CPU, all tensors of the file, and its metadata.

    Raises:
        FileError: the file is missing, damaged, or does not fit the network.
    """
    header = read_header(path)
    with torch.device("meta"):
        expected = make()
    compare_shapes(shapes_of(expected.state_dict()), header.shapes, path)
    tensors, metadata = load_tensors(path)
    network = make()
    load_weights(network, tensors, path)
    return network, tensors, metadata


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Load a state dict, which must have exactly the names and shapes of the model's own.

    Args:
        model: its weights are replaced.
        tensors: the state dict.
        source: where it comes from, for the message.

    Raises:
        FileError: a name or a shape differs, or a tensor is of another kind of numbers or not finite; the message names the
            first one. The model is left as it was.
    """
    own = model.state_dict()
    compare_shapes(shapes_of(own), shapes_of(tensors), source)
    for name, value in own.items():
        if value.is_floating_point() != tensors[name].is_floating_point() or tensors[name].is_complex():
            raise OtherFileError(
                f"{source} does not fit the configuration: at {name}, expected {value.dtype}, found {tensors[name].dtype}"
            )
        if value.is_floating_point() and not bool(tensors[name].float().isfinite().all()):
            raise FileError(f"{source} is damaged: {name} holds numbers that are not finite")
    model.load_state_dict(dict(tensors))


def compare_shapes(expected: Mapping[str, Shape], found: Mapping[str, Shape], source: str | Path) -> None:
    """Check that both have the same names and shapes.

    Raises:
        FileError: they have not; the message names the first difference.
    """
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise OtherFileError(
                f"{source} does not fit the configuration: at {name}, expected {expected.get(name, 'nothing')}, "
                f"found {found.get(name, 'nothing')}"
            )


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """The shapes of tensors, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def stored_figures(file: Path) -> dict[str, float]:
    """The held-out figures that a file of weights names.

    Raises:
        FileError: missing or damaged.
    """
    figures = load_tensors(file)[1].get("figures", {})
    if not isinstance(figures, dict):
        raise FileError(f"{file} is damaged: its figures are no JSON object")
    return {name: value for name, value in figures.items() if type(value) in (int, float)}


def plain_names(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """The same with the prefixes removed that wrappers of a network put before the names of all its tensors.

    They are `module.` (data parallelism), `_orig_mod.` (torch.compile) and `model.` (Lightning and others), in any order.
    """
    result = dict(tensors)
    while prefix := next((p for p in _PREFIXES if result and all(n.startswith(p) for n in result)), None):
        result = {name.removeprefix(prefix): value for name, value in result.items()}
    return result


def below(tensors: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """The entries whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as tensors."""
    return {
        f"{index}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the state that `pack_optimizer` returned; the settings of the optimizer stay as they are."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
