"""Files of classifiers: a probe (without its feature network) or a ResNet, as safetensors with a JSON description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vqvae2.evaluate.probe import Probe
from vqvae2.evaluate.resnet import ClassifierConfig, ResNet
from vqvae2.files import tensor_file
from vqvae2.files.atomic import FileError

# Two names in the file are older than the names in the code; the file keeps them, so old and new files are alike.
_STANDARD_DEVIATION = "deviation"
_BACKBONE_DIGEST = "rests_on"


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
    tensors, about = tensor_file.load_tensors(path)
    kind = about.pop("kind", None)
    if kind not in ("probe", "resnet"):
        raise FileError(f"{path} holds no classifier")
    classifier: Probe | ResNet
    if kind == "probe":
        classifier = Probe(backbone_digest=about.pop(_BACKBONE_DIGEST), **about)
        tensors["standard_deviation"] = tensors.pop(_STANDARD_DEVIATION)
    else:
        config = ClassifierConfig(**about.pop("config"))
        with torch.random.fork_rng(devices=[]):
            classifier = ResNet(config=config, **about)
    tensor_file.load_weights(classifier, tensors, path)
    return classifier.requires_grad_(False).to(device).eval()
