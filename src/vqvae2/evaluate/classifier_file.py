"""Files of classifiers: a probe (without its feature network) or a ResNet, as safetensors with a JSON description."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError

from vqvae2.evaluate.probe import Probe
from vqvae2.evaluate.resnet import ClassifierConfig, ResNet
from vqvae2.files import tensor_file
from vqvae2.files.atomic import FileError
from vqvae2.files.records import Record, first_error
from vqvae2.modes import loading

# Two names in the file are older than the names in the code; the file keeps them, so old and new files are alike.
_STANDARD_DEVIATION = "deviation"
_BACKBONE_DIGEST = "rests_on"
_Count = Annotated[int, Field(ge=1, le=10**6)]


class _ProbeRecord(Record):
    """The metadata of a probe's file."""

    dimension: _Count
    classes: _Count
    backbone_digest: str = Field(alias=_BACKBONE_DIGEST)
    weight_decay: float


class _ResNetRecord(Record):
    """The metadata of a ResNet's file."""

    channels: _Count
    size: Annotated[int, Field(ge=1, le=8192)]
    classes: _Count
    config: dict[str, Any]


def save_classifier(path: Path, classifier: Probe | ResNet) -> str:
    """Write a probe (without its feature network) or a ResNet.

    Returns:
        The digest of the content.
    """
    tensors = classifier.state_dict()
    about: dict[str, Any] = {"classes": classifier.classes}
    if isinstance(classifier, Probe):
        about |= {"kind": "probe", "dimension": classifier.dimension}
        about |= {_BACKBONE_DIGEST: classifier.backbone_digest, "weight_decay": classifier.weight_decay}
        tensors[_STANDARD_DEVIATION] = tensors.pop("standard_deviation")
    else:
        about |= {"kind": "resnet", "channels": classifier.channels, "size": classifier.size}
        about |= {"config": classifier.config.model_dump()}
    return tensor_file.save_tensors(path, tensors, about)


def load_classifier(path: Path, device: str | torch.device = "cpu") -> Probe | ResNet:
    """Read what `save_classifier` wrote.

    Raises:
        FileError: the file is missing, damaged, or holds something else.
    """
    header = tensor_file.read_header(path)
    kind = header.metadata.get("kind")
    if kind not in ("probe", "resnet"):
        raise FileError(f"{path} holds no classifier")
    if kind == "probe":
        make = _probe(_ProbeRecord.of(header.metadata, path))
    else:
        make = _resnet(_ResNetRecord.of(header.metadata, path), path)
    with torch.device("meta"):
        own = {_stored(name): value for name, value in make().state_dict().items()}
    tensor_file.compare_shapes(tensor_file.shapes_of(own), header.shapes, path)  # before either takes memory
    tensors, _ = tensor_file.load_tensors(path)
    with loading():
        classifier = make()
    weights = {name: tensors[_stored(name)] for name in classifier.state_dict()}
    tensor_file.load_weights(classifier, weights, path)
    return classifier.requires_grad_(False).to(device).eval()


def _stored(name: str) -> str:
    """The name of a tensor in the file."""
    return _STANDARD_DEVIATION if name == "standard_deviation" else name


def _probe(record: _ProbeRecord) -> Callable[[], Probe | ResNet]:
    return lambda: Probe(record.dimension, record.classes, record.backbone_digest, record.weight_decay)


def _resnet(record: _ResNetRecord, path: Path) -> Callable[[], Probe | ResNet]:
    try:
        config = ClassifierConfig(**record.config)
    except ValidationError as error:
        raise FileError(f"{path} is damaged: {first_error(error)}") from None
    return lambda: ResNet(record.channels, record.size, record.classes, config)
