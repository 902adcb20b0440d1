"""The critic of a run: a classifier of its training images, for rejection sampling (`generate/reject.py`).

    RUN/critic/critic.json         its kind, backbone and classes, and its accuracy on held-out images
    RUN/critic/model.safetensors   a probe on a feature network, or a ResNet
    RUN/critic/model.pt            instead of these: somebody else's TorchScript classifier
    RUN/critic/parts/              features and predictions, while a critic is fitted

Shapes: B batch, C image channels, H W image size, K classes.
"""

from __future__ import annotations

import hashlib
import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from vqvae2.config.models import DataConfig
from vqvae2.data.images import ImageSet
from vqvae2.errors import UserError, suggested
from vqvae2.evaluate.classifier import ImageClassifier, predict
from vqvae2.evaluate.classifier_file import load_classifier, save_classifier
from vqvae2.evaluate.critic_images import ImageReader, own_images
from vqvae2.evaluate.features import extract
from vqvae2.evaluate.networks.by_name import NETWORKS, feature_network, no_network
from vqvae2.evaluate.probe import Probe, ProbeClassifier, fit_probe, fits
from vqvae2.evaluate.resnet import ClassifierConfig, ResNet, train_classifier
from vqvae2.evaluate.sets import real_images
from vqvae2.evaluate.torchscript import read_torchscript
from vqvae2.evaluate.trained_run import TrainedRun
from vqvae2.files import atomic, tensor_file
from vqvae2.files.locate import public_name
from vqvae2.files.lock import locks
from vqvae2.files.progress import Plan, Reporter
from vqvae2.files.records import Record
from vqvae2.files.run_folder import RunError, RunFolder, refuse_links
from vqvae2.modes import loading
from vqvae2.prior.draw import exact
from vqvae2.processes import Group

RESNET = "resnet"
"""Given instead of the name of a feature network: a classifier that is trained from random weights."""
_READ, _FIT, _TEST = "critic: training images", "critic: fitting", "critic: held-out images"
_PROBE = 30.0  # images: features took .055 s of processor time each, the probe 1.0 s of 400 images and 2.2 s of 100
_EPOCHS, _LEAST_STEPS = (
    100,
    200,
)  # of the classifier that is trained from random weights


class CriticError(UserError):
    """A critic that cannot be fitted to these images, or that is damaged."""


class _Backbone(Record):
    """The network of a critic."""

    name: str
    digest: str
    weights: str | None = None


class CriticRecord(Record):
    """The content of critic.json. The file of the model is beside it, whatever the name says."""

    kind: Literal["probe", "model"]
    file: Annotated[str, Field(pattern=r"^model(\.[A-Za-z0-9]{1,20})?$")]
    digest: str
    network: _Backbone
    classes: Annotated[list[str], Field(min_length=1)]
    accuracy: Annotated[float, Field(ge=0, le=1)]
    train: int | None = None
    heldout: int = 0
    fingerprint: str | None = None


class Critic:
    """Scores images by the probability that a classifier assigns to their class.

    Args:
        record: the content of RUN/critic/critic.json.

    Attributes:
        digest: sha-256 of the classifier, or of the probe alone.
        backbone_digest: of the weights of the backbone, which is the classifier itself or its feature network. The network
            with this digest may not measure what this critic chose.
        classes: names of the K classes.
        accuracy: share of the run's held-out images whose likeliest class is the right one, 0 to 1.
    """

    def __init__(self, classifier: ImageClassifier, record: dict[str, Any]) -> None:
        self.classifier, self.record = classifier, record
        self.digest: str = record["digest"]
        self.backbone_digest: str = record["network"]["digest"]
        self.classes = tuple(record["classes"])
        self.accuracy: float = record["accuracy"]

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """p(label | image), [B], of images [B, C, H, W] in [-1, 1].

        It is float64, because float32 would round probabilities near 1 to equal scores; on the CPU if the device has no float64.
        """
        probabilities = exact(self.classifier(images)).softmax(1)
        return probabilities.gather(1, labels.to(probabilities.device)[:, None])[:, 0]


def critic_file(folder: Path) -> Path:
    """critic.json of a run folder; it exists if and only if a critic is fitted."""
    return RunFolder(folder).critic


@locks("run.folder", below=["critic"])
def fit_to_run(
    run: TrainedRun,
    data: str | None,
    features: str,
    weights: Path | None,
    model: Path | None,
    reporter: Reporter,
    group: Group | None = None,
) -> Critic:
    """Fit a critic to the images that a run was trained on and save it in RUN/critic.

    Args:
        data: these images, if they are elsewhere now; None takes them from where they were.
        features, weights, model: see `fit_critic`.
        group: the processes that share the work, all of which call this; None is this one alone.

    Raises:
        LockError: another command works in the run's folder.
        RunError: the run is a model of the package or of the Hub, `data` holds other images, or a folder of the run leads out of
            it.
        DataError, CriticError, FeatureError, ClassifierError, FileError: see `open_images` and `fit_critic`.
    """
    config, group = run.config, group or Group()
    if (public := public_name(run.folder)) is not None:
        raise RunError(
            f"nothing is written into {public}: copy its folder {run.folder.resolve()}, and fit the critic of the copy"
        )
    refuse_links(run.folder, config.autoencoder.levels)
    kind = CriticKind(features, weights, model)
    kind.check(run.device)  # before images are decoded, which may take long
    with ExitStack() as stack:
        elsewhere = Path(stack.enter_context(TemporaryDirectory())) / "data"
        with group.main_first():
            images = own_images(run, data, elsewhere, reporter.say)
        stack.callback(images.close)
        return fit_critic(run.folder, images, config.data, kind, run.device, reporter, group)


@dataclass(frozen=True)
class CriticKind:
    """Which classifier a critic is.

    Attributes:
        features, weights: the feature network on which a probe is fitted, see `feature_network`; or "resnet", a small network
            that is trained from random weights (`train_classifier`) and therefore shares no backbone with a feature network.
        model: instead of a probe, a classifier that is already trained: a TorchScript file (`read_torchscript`) or a ResNet
            that `save_classifier` wrote (.safetensors).
    """

    features: str = "lite0"
    weights: Path | None = None
    model: Path | None = None

    def check(self, device: torch.device | str) -> None:
        """Raise if there is no such network or file, or if it cannot be read.

        Raises:
            CriticError, FeatureError, ClassifierError, FileError: see there.
        """
        if self.model is not None:
            _read(self.model, device)
        elif self.features != RESNET:
            if self.features not in NETWORKS:
                raise no_network(self.features, RESNET)
            feature_network(self.features, self.weights, device)


def fit_critic(
    folder: Path,
    images: ImageSet,
    data: DataConfig,
    kind: CriticKind | None = None,
    device: torch.device | str = "cpu",
    reporter: Reporter | None = None,
    group: Group | None = None,
) -> Critic:
    """Fit a critic to the training images of a run, test it on the held-out ones and save it in RUN/critic.

    Several processes share the features and the test; the classifier is fitted by the main one. Parts of this work that a
    killed command has done are found in RUN/critic/parts.

    Args:
        folder: RUN.
        images, data: the run's own, split as the run splits them.
        kind: which classifier; None is a probe on lite0.
        reporter: shows the progress of each of the three jobs, and the time left for all; None shows nothing.
        group: the processes, all of which call this; None is this one alone.

    Raises:
        CriticError: no classes, or a model of another number of classes or channels.
        FeatureError, ClassifierError, FileError: see there.
    """
    if not images.classes:
        raise CriticError("a critic scores how well an image fits its class, and these images have none")
    if data.channels not in (1, 3, 4):
        raise CriticError(f"a critic needs images of 1, 3 or 4 channels, found {data.channels}")
    kind, group, reporter = kind or CriticKind(), group or Group(), reporter or Reporter(quiet=True)
    model = kind.model
    reporter.plan = _plan(kind, images)
    read = ImageReader(folder, images, data, reporter, group, device)
    own: Probe | ResNet | None = None
    if model is not None:
        classifier, about = _read(model, device), {"name": model.name}
    else:
        classifier, own, about = _trained(read, kind, device)
    if classifier.classes != len(images.classes):
        raise CriticError(
            f"expected a classifier of the {len(images.classes)} classes of {folder}, "
            f"found {classifier.classes} classes in {model}"
        )
    if isinstance(classifier, ResNet) and classifier.channels != data.channels:
        raise CriticError(
            f"the images have {data.channels} channels, and the classifier in {model} expects {classifier.channels}"
        )
    identity = _digest(model) if model else tensor_file.digest(own.state_dict()) if own else ""
    rows = read.rows(_TEST, identity, images.heldout, lambda some: {"logits": predict(classifier, some)})
    right = rows["logits"].argmax(1) == rows["labels"]
    ending = ".safetensors" if model is None or model.suffix == ".safetensors" else ".pt"
    file = critic_file(folder).with_name(f"model{ending}")
    if group.main:
        _save_model(file, own, model)
    group.wait()
    record = _record(file, own, about | {"digest": classifier.backbone_digest}, images, right)
    if group.main:
        atomic.write_json(critic_file(folder), record)
    read.done()
    return Critic(classifier, record)


def _plan(kind: CriticKind, images: ImageSet) -> Plan:
    """How the work is divided between the jobs, in images of which the feature network computes the features.

    A training step counts like a batch forth and back. To fit a probe takes about as long as `_PROBE` images.
    """
    jobs = {_READ: float(len(images.train)), _FIT: _PROBE, _TEST: float(len(images.heldout))}
    if kind.model is not None:
        jobs = {_TEST: jobs[_TEST]}
    elif kind.features == RESNET:
        config = classifier_config(len(images.train))
        jobs = {_FIT: 3.0 * config.steps * config.batch, _TEST: jobs[_TEST]}
    return Plan(lambda: {title: (work, math.inf) for title, work in jobs.items()})


def _record(
    file: Path, own: Probe | ResNet | None, network: dict[str, Any], images: ImageSet, right: Tensor
) -> dict[str, Any]:
    """The content of critic.json; `right` [n] says which held-out images were classified rightly."""
    return {
        "kind": "probe" if isinstance(own, Probe) else "model",
        "file": file.name,
        "digest": _digest(file),
        "network": network,
        "classes": list(images.classes),
        "accuracy": float(right.double().mean()),
        "train": len(images.train) if own is not None else None,
        "heldout": len(right),
        "fingerprint": images.fingerprint,
    }


def classifier_config(n: int) -> ClassifierConfig:
    """The settings of the classifier that is trained from random weights on n images: fewer steps for fewer images."""
    config = ClassifierConfig()
    steps = max(_LEAST_STEPS, round(_EPOCHS * n / config.batch))
    return config.model_copy(update={"steps": min(config.steps, steps)})


def _trained(
    read: ImageReader, kind: CriticKind, device: torch.device | str
) -> tuple[ImageClassifier, Probe | ResNet, dict[str, Any]]:
    """Train on the training images: the classifier, what of it is saved, and what its record says of the backbone.

    The processes compute features together; the main one fits.
    """
    images, group = read.images, read.group
    if kind.features == RESNET:
        net: ResNet | None = None
        if group.main:
            given = real_images("training", images, images.train, read.data)
            config = classifier_config(len(given)).within(read.data)
            assert given.labels is not None
            with read.reporter.track(_FIT, config.steps) as tracker:
                pixels, classes = given.batches(), len(images.classes)
                net = train_classifier(pixels, given.labels, classes, config, device, tracker.update).cpu()
        net = group.agreed(net)
        assert net is not None
        net = net.to(device)
        return net, net, {"name": RESNET}
    network = feature_network(kind.features, kind.weights, device)
    rows = read.rows(
        _READ, network.digest, images.train, lambda some: {"pooled": extract(network, some).pooled}
    )
    probe: Probe | None = None
    if group.main:
        features, labels, classes = rows["pooled"], rows["labels"], len(images.classes)
        with read.reporter.track(_FIT, fits(), unit="fits") as tracker:
            done = tracker.update
            probe = fit_probe(features, labels, classes, backbone_digest=network.digest, progress=done).cpu()
    probe = group.agreed(probe)
    assert probe is not None
    probe = probe.to(device)
    about = {
        "name": network.name,
        "weights": None if kind.weights is None else str(kind.weights.resolve()),
    }
    return ProbeClassifier(network, probe), probe, about


def _save_model(file: Path, own: Probe | ResNet | None, model: Path | None) -> None:
    """Write what was trained, or copy the model that was given; the record of an earlier critic goes first."""
    critic_file(file.parents[1]).unlink(missing_ok=True)
    if own is not None:
        save_classifier(file, own)
        return
    assert model is not None
    atomic.write_bytes(file, model.read_bytes())


@loading()
def load_critic(folder: Path, device: torch.device | str = "cpu") -> Critic:
    """The critic of a run.

    Raises:
        FileError: its model is damaged.
        CriticError: none is fitted, its record is damaged, or its model is missing or was replaced.
        FeatureError, ClassifierError: its feature network is missing or was replaced.
    """
    record = read_record(folder)
    file = critic_file(folder).with_name(record.file)
    if not file.is_file() or _digest(file) != record.digest:
        raise CriticError(f"{file} is missing or was replaced; {_fit_again(folder)}")
    if record.kind == "model":
        classifier = _read(file, device)
    else:
        probe, weights = load_classifier(file, device), record.network.weights
        if not isinstance(probe, Probe):
            raise CriticError(f"{file} holds no probe; {_fit_again(folder)}")
        network = feature_network(record.network.name, Path(weights) if weights else None, device)
        classifier = ProbeClassifier(network, probe)
    if classifier.classes != len(record.classes):
        raise CriticError(
            f"{file} is of {classifier.classes} classes, and its record of {len(record.classes)}; "
            f"{_fit_again(folder)}"
        )
    return Critic(classifier, record.model_dump())


def _fit_again(folder: Path) -> str:
    return f"{suggested('critic', 'fit', folder)} fits a critic again"


def read_record(folder: Path) -> CriticRecord:
    """What critic.json of a run folder says.

    Raises:
        CriticError: it is missing or damaged.
    """
    try:
        return CriticRecord.read(critic_file(folder))
    except atomic.FileError as error:
        raise CriticError(f"{error}; {_fit_again(folder)}") from error


def _read(file: Path, device: torch.device | str) -> ImageClassifier:
    if file.suffix != ".safetensors":
        return read_torchscript(file, device)
    classifier = load_classifier(file, device)
    if isinstance(classifier, Probe):
        raise CriticError(f"{file} is a probe without its feature network; `--features` fits one")
    return classifier


def _digest(file: Path) -> str:
    if file.suffix == ".safetensors":
        # of the tensors, because their order in the file may vary
        return tensor_file.stored_digest(file)
    return hashlib.sha256(file.read_bytes()).hexdigest()
