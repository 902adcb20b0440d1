"""The critic of a run: a classifier of its training pictures, for rejection sampling (`generate/reject.py`).

    RUN/critic/critic.json         what it is, what it rests on, its classes, how often it is right on held-out pictures
    RUN/critic/model.safetensors   a probe on a feature network, or a ResNet of `classifier.py`
    RUN/critic/model.pt            instead: somebody's TorchScript classifier

Shapes: B batch, C image channels, H W image size, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae2.config.models import DataConfig
from vqvae2.data.batches import sequential
from vqvae2.data.images import ImageSet
from vqvae2.errors import UserError
from vqvae2.evaluate.classifier import (
    ImageClassifier,
    Probe,
    ProbeClassifier,
    ResNet,
    fit_probe,
    load_classifier,
    predict,
    read_torchscript,
    save_classifier,
    train_classifier,
)
from vqvae2.evaluate.features import extract, feature_network
from vqvae2.files import atomic, tensor_file
from vqvae2.files.run_folder import RunFolder

RESNET = "resnet"
"""In the place of a feature network's name: a classifier that is trained from nothing."""


class CriticError(UserError):
    """A critic that cannot be fitted to these pictures, or that is damaged."""


class Critic:
    """Scores pictures by the probability that a classifier gives their class.

    Args:
        record: what RUN/critic/critic.json says.

    Attributes:
        digest: sha-256 of the classifier, or of the probe alone.
        network_digest: of the weights that decide what it sees, its own or its feature network's: the network that may not
            measure what this critic chose.
        classes: names of the K classes.
        accuracy: how often the likeliest class is the right one on held-out pictures of the run, 0 to 1.
    """

    def __init__(self, classifier: ImageClassifier, record: dict[str, Any]) -> None:
        self.classifier, self.record = classifier, record
        self.digest: str = record["digest"]
        self.network_digest: str = record["network"]["digest"]
        self.classes = tuple(record["classes"])
        self.accuracy: float = record["accuracy"]

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """p(label | image), float64 [B], of images [B, C, H, W] in [-1, 1]; float32 would make equals of the near-certain."""
        chances = self.classifier(images).double().softmax(1)
        return chances.gather(1, labels.to(chances.device)[:, None])[:, 0]


def critic_file(folder: Path) -> Path:
    """critic.json of a run, which is there when its critic is fitted."""
    return RunFolder(folder).critic


def fit_critic(
    folder: Path,
    images: ImageSet,
    data: DataConfig,
    features: str = "lite0",
    weights: Path | None = None,
    model: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda done: None,
) -> Critic:
    """Fit a critic to the training pictures of a run, test it on the held-out ones and keep it in RUN/critic.

    Args:
        folder: RUN.
        images, data: the run's own, split as it splits them.
        features, weights: the network on whose features a probe is fitted, see `feature_network`; or "resnet", a small
            network of its own that learns from nothing (`train_classifier`) and rests on none that measures.
        model: instead of a probe, a classifier that is fitted already: a TorchScript file (`read_torchscript`) or a ResNet
            that `save_classifier` wrote (.safetensors).
        progress: told how many pictures were looked at; all of them, but with a model the held-out ones alone.

    Raises:
        CriticError: no classes, or a model of another number of classes.
        FeatureError, ClassifierError, FileError: see there.
    """
    if not images.classes:
        raise CriticError(
            "expected pictures with classes: without them there is nothing for a critic to tell"
        )
    labels: list[Tensor] = []
    seen = 0

    def pictures(indices: np.ndarray) -> Iterator[Tensor]:
        nonlocal seen
        labels.clear()
        for pixels, known in sequential(images, indices, data, batch=64):
            labels.append(known)
            yield pixels
            seen += len(known)
            progress(seen)

    classifier: ImageClassifier
    own: Probe | ResNet | None = None
    about: dict[str, Any]
    file = critic_file(folder).with_name(f"model{model.suffix}" if model else "model.safetensors")
    if model is not None:
        classifier = _read(model, device)
        about = {"name": model.name}
    elif features == RESNET:
        known = images.labels_of(images.train)
        own = train_classifier(pictures(images.train), known, len(images.classes), device=device)
        classifier, about = own, {"name": RESNET}
    else:
        network = feature_network(features, weights, device)
        pooled = extract(network, pictures(images.train)).pooled
        own = fit_probe(pooled, torch.cat(labels), len(images.classes), rests_on=network.digest)
        classifier = ProbeClassifier(network, own.to(device))
        about = {"name": network.name, "weights": None if weights is None else str(weights.resolve())}
    if classifier.classes != len(images.classes):
        raise CriticError(
            f"expected a classifier of the {len(images.classes)} classes of {folder}, "
            f"found {classifier.classes} classes in {model}"
        )
    likeliest = predict(classifier, pictures(images.heldout)).argmax(1)
    right = likeliest == torch.cat(labels)
    critic_file(folder).unlink(missing_ok=True)  # of an earlier critic, whose model is overwritten now
    if own is not None:
        save_classifier(file, own)
    else:
        assert model is not None
        contents = model.read_bytes()
        atomic.write_atomic(file, lambda temporary: _write(temporary, contents))
    record = {
        "kind": "probe" if isinstance(own, Probe) else "model",
        "file": file.name,
        "digest": _digest(file),
        "network": {**about, "digest": classifier.rests_on},
        "classes": list(images.classes),
        "accuracy": float(right.double().mean()),
        "train": len(images.train) if model is None else None,
        "heldout": len(right),
        "fingerprint": images.fingerprint,
    }
    atomic.write_json(critic_file(folder), record)
    return Critic(classifier, record)


def load_critic(folder: Path, device: torch.device | str = "cpu") -> Critic:
    """The critic of a run.

    Raises:
        FileError: none is fitted, or it is damaged.
        CriticError: its model is missing or another; FeatureError, ClassifierError: its feature network is missing or another.
    """
    record = atomic.read_json(critic_file(folder))
    file = critic_file(folder).with_name(record["file"])
    if not file.is_file() or _digest(file) != record["digest"]:
        raise CriticError(f"{file} is missing or another; `vqvae2 critic fit {folder}` fits a critic anew")
    if record["kind"] == "model":
        return Critic(_read(file, device), record)
    about, probe = record["network"], load_classifier(file, device)
    assert isinstance(probe, Probe)
    network = feature_network(about["name"], Path(about["weights"]) if about["weights"] else None, device)
    return Critic(ProbeClassifier(network, probe), record)


def _read(file: Path, device: torch.device | str) -> ImageClassifier:
    if file.suffix != ".safetensors":
        return read_torchscript(file, device)
    found = load_classifier(file, device)
    if isinstance(found, Probe):
        raise CriticError(f"{file} is a probe without its feature network; `--features` fits one")
    return found


def _write(file: Path, contents: bytes) -> None:
    file.write_bytes(contents)


def _digest(file: Path) -> str:
    if file.suffix == ".safetensors":
        return tensor_file.stored_digest(file)  # of the tensors: the order in the file is not always the same
    return hashlib.sha256(file.read_bytes()).hexdigest()
