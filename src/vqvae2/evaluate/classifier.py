"""Classifiers of pictures: for the classification accuracy score, and for the critic.

    features --fit_probe--> Probe            the linear one, on a feature network
    pictures --train_classifier--> ResNet    the small one, for the classification accuracy score
    a TorchScript file --read_torchscript--> TorchScriptClassifier    somebody's own

Each says on whose weights it rests, so that no network measures samples that it has chosen itself.

Shapes: N pictures, B batch, C channels, H W px, D features, K classes. Pictures are one tensor, uint8 [N, H, W, C] or
float [N, C, H, W] in [-1, 1], or batches of either; floats are first rounded to 8 bits, as files are.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from vqvae2.config.models import DataConfig
from vqvae2.data.augmentation import augmented
from vqvae2.data.batches import Shuffle
from vqvae2.data.pixels import to_float, to_uint8
from vqvae2.errors import UserError
from vqvae2.evaluate.features import FeatureNetwork
from vqvae2.files import tensor_file
from vqvae2.files.atomic import FileError

Pictures = Tensor | Iterable[Tensor]

DECLARATION = "vqvae2.json"  # extra file of a TorchScript archive
_DECAYS = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)
_GRID = 16  # the residual stages of a ResNet begin at this many places or fewer


class ClassifierError(UserError):
    """Pictures or labels that no classifier can learn from, or a file that holds no classifier."""


class ImageClassifier(Protocol):
    """Pictures to classes.

    Attributes:
        classes: K.
    """

    classes: int

    @property
    def rests_on(self) -> str:
        """sha-256 of the weights that decide what it sees: its own, or its feature network's (its `digest`)."""

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [B, K] of pictures [B, C, H, W] in [-1, 1]."""


class Probe(nn.Module):
    """Multinomial logistic regression on standardised features: [B, D] -> logits [B, K].

    Attributes:
        rests_on: digest of the network whose features they are.
        weight_decay: what `fit_probe` chose.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, dimension: int, classes: int, rests_on: str, weight_decay: float) -> None:
        super().__init__()
        self.dimension, self.classes = dimension, classes
        self.rests_on, self.weight_decay = rests_on, weight_decay
        self.register_buffer("mean", torch.zeros(dimension))
        self.register_buffer("deviation", torch.ones(dimension))
        self.weight = nn.Parameter(torch.zeros(classes, dimension))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, K]."""
        return functional.linear((features - self.mean) / self.deviation, self.weight, self.bias)


def fit_probe(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    rests_on: str,
    weight_decays: Sequence[float] = _DECAYS,
    validation: float = 0.2,
    seed: int = 0,
) -> Probe:
    """The logistic regression whose weight decay is the best on pictures left out, then fitted to all.

    It minimises the mean cross-entropy plus weight_decay / 2 times the squared weights (not the biases), which has one
    minimum, by L-BFGS. The best decay is that of the least cross-entropy on the left-out share of each class.

    Args:
        features: [N, D].
        labels: int [N], 0 to K-1; a class may be without pictures.
        rests_on: digest of the feature network.
        validation: share of each class that is left out for the choice; what has one picture is not left out.
        seed: of the choice of the left-out pictures.

    Raises:
        ClassifierError: no pictures, labels out of range, or features that are not finite.
    """
    labels = _checked(labels, len(features), classes).to(features.device)
    features = features.float()
    if features.ndim != 2 or not features.isfinite().all():
        raise ClassifierError(f"expected finite features [N, D], found {list(features.shape)}")
    decays = sorted(weight_decays, reverse=True)
    best = decays[0]
    held = _left_out(labels.cpu(), validation, seed).to(features.device)
    if len(decays) > 1 and held.any():
        probe = _standardising(features[~held], classes, rests_on)
        losses = []
        for decay in decays:  # each begins where a stronger one ended
            _descend(probe, features[~held], labels[~held], decay)
            losses.append(functional.cross_entropy(probe(features[held]), labels[held]).item())
        best = decays[int(np.argmin(losses))]
    probe = _standardising(features, classes, rests_on)
    _descend(probe, features, labels, best)
    probe.weight_decay = best
    return probe.requires_grad_(False).eval()


def _standardising(features: Tensor, classes: int, rests_on: str) -> Probe:
    probe = Probe(features.shape[1], classes, rests_on, 0.0).to(features.device)
    probe.mean.copy_(features.mean(0))
    deviation = features.std(0, correction=0)
    probe.deviation.copy_(torch.where(deviation > 1e-6, deviation, 1.0))
    return probe


def _descend(probe: Probe, features: Tensor, labels: Tensor, decay: float) -> None:
    inputs = (features - probe.mean) / probe.deviation
    optimizer = torch.optim.LBFGS(
        probe.parameters(),
        max_iter=300,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = functional.linear(inputs, probe.weight, probe.bias)
        value = functional.cross_entropy(logits, labels) + decay / 2 * probe.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)


def _left_out(labels: Tensor, share: float, seed: int) -> Tensor:
    """Boolean [N]: `share` of each class, rounded down."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = order[labels[order] == label]
        out[members[: int(share * len(members))]] = True
    return out


class ProbeClassifier(nn.Module):
    """A feature network with a probe on it, as a classifier of pictures.

    Raises:
        ClassifierError: the probe was fitted on another network.
    """

    def __init__(self, network: FeatureNetwork, probe: Probe) -> None:
        super().__init__()
        if probe.rests_on != network.digest:
            raise ClassifierError(
                f"the probe was fitted on the network {probe.rests_on[:12]}, not on {network.name} {network.digest[:12]}"
            )
        self.network, self.probe = network, probe
        self.classes, self.rests_on = probe.classes, probe.rests_on

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of pictures [B, C, H, W] in [-1, 1]."""
        features, _ = self.network(images)
        return self.probe(features.to(self.probe.mean.device))


class ClassifierConfig(BaseModel):
    """The small ResNet of the classification accuracy score and its training (our decision)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(
        32, ge=1, le=1024, description="channels of the first stage; each next has twice as many"
    )
    stages: int = Field(3, ge=1, le=6, description="residual stages, each on half the grid of the one before")
    blocks: int = Field(1, ge=1, le=32, description="residual blocks per stage")
    steps: int = Field(2000, ge=10, description="optimiser steps")
    batch: int = Field(128, ge=2, description="pictures per step")
    lr: float = Field(4e-3, gt=0, description="peak learning rate of AdamW, one cycle")
    weight_decay: float = Field(0.05, ge=0, description="AdamW weight decay")
    flip: bool = Field(True, description="mirror training pictures left to right half of the time")
    shift: int = Field(1, ge=0, le=64, description="move training pictures by up to this many px each way")
    seed: int = Field(0, ge=0, description="of weights, order and augmentation")


class ResNet(nn.Module):
    """A residual network in the manner of CIFAR's (He et al. 2016, pre-activation, batch normalisation).

    Convolutions of stride 2 bring the picture to at most 16 places a side; then come the residual stages.

    Args:
        size: px, the longer side of the pictures that it is for.
    """

    def __init__(self, channels: int, size: int, classes: int, config: ClassifierConfig) -> None:
        super().__init__()
        self.channels, self.size, self.classes, self.config = channels, size, classes, config
        width = config.width
        layers: list[nn.Module] = []
        before, grid = channels, size
        while not layers or grid > _GRID:
            stride = 2 if grid > _GRID else 1
            if layers:
                layers += [nn.BatchNorm2d(before), nn.ReLU(inplace=True)]
            layers.append(nn.Conv2d(before, width, 3, stride, padding=1, bias=False))
            before, grid = width, -(-grid // stride)
        for stage in range(config.stages):
            for block in range(config.blocks):
                after = width * 2**stage
                layers.append(_Block(before, after, stride=2 if stage and not block else 1))
                before = after
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(before), nn.ReLU(inplace=True))
        self.head = nn.Linear(before, classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def rests_on(self) -> str:
        """Digest of its own weights."""
        return tensor_file.digest(self.state_dict())

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of pictures [B, C, H, W] in [-1, 1]."""
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(f"expected pictures [B, {self.channels}, H, W], found {list(images.shape)}")
        x = images.contiguous(memory_format=torch.channels_last)
        return self.head(self.body(x).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(before)
        self.first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.second = nn.Sequential(
            nn.BatchNorm2d(after), nn.ReLU(inplace=True), nn.Conv2d(after, after, 3, padding=1, bias=False)
        )
        straight = before == after and stride == 1
        self.shortcut = nn.Identity() if straight else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.norm(x))
        past = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
        return past + self.second(self.first(active))


def train_classifier(
    images: Pictures,
    labels: Tensor,
    classes: int,
    config: ClassifierConfig | None = None,
    device: str | torch.device = "cpu",
) -> ResNet:
    """A `ResNet` trained from nothing: AdamW, one cycle of the learning rate, cross-entropy.

    On the CPU with the same number of threads, equal arguments give equal weights. They are kept in memory as uint8.

    Args:
        images: square pictures, see above.
        labels: int [N], 0 to K-1.
        config: default `ClassifierConfig()`.

    Raises:
        ClassifierError: no pictures, pictures that are not square, or labels out of range.
    """
    config = config or ClassifierConfig()
    pixels = torch.cat(list(_pixels(images))).numpy()
    labels = _checked(labels, len(pixels), classes)
    size, channels = pixels.shape[1], pixels.shape[3]
    if pixels.shape[2] != size:
        raise ClassifierError(f"expected square pictures, found {size}x{pixels.shape[2]} px")
    data = DataConfig(size=size, flip=config.flip, shift=config.shift)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = ResNet(channels, size, classes, config)
    net = net.to(device).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=config.steps, pct_start=0.2
    )
    shuffle = Shuffle(np.arange(len(pixels)), config.seed)
    for step in range(config.steps):
        places = np.arange(step * config.batch, (step + 1) * config.batch)
        chosen = shuffle(places)
        inputs = to_float(torch.from_numpy(augmented(pixels[chosen], places, config.seed, data))).to(device)
        loss = functional.cross_entropy(net(inputs), labels[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.requires_grad_(False).eval()


@torch.no_grad()
def predict(classifier: ImageClassifier, images: Pictures, batch: int = 256) -> Tensor:
    """Logits, float32 [N, K] on the CPU.

    Raises:
        ClassifierError: no pictures.
    """
    place = torch.empty(0)
    if isinstance(classifier, nn.Module):
        classifier.eval()
        place = next(chain(classifier.parameters(), classifier.buffers()), place)
    found = [
        classifier(to_float(some).to(place.device)).float().cpu()
        for part in _pixels(images)
        for some in part.split(batch)
    ]
    return torch.cat(found)


class TorchScriptClassifier(nn.Module):
    """Somebody's classifier: a TorchScript module that maps [B, 3, S, S] in [-1, 1] to logits.

    Pictures are resized (bilinear, antialiased); grey is taken as RGB, of RGBA the colours. A module that wants other
    numbers than [-1, 1] scales them itself.
    """

    def __init__(self, module: nn.Module, size: int, classes: int, rests_on: str) -> None:
        super().__init__()
        self.module, self.size, self.classes, self.rests_on = module, size, classes, rests_on

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of pictures [B, C, H, W] in [-1, 1]."""
        colours = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]
        if colours.shape[2:] != (self.size, self.size):
            sides = (self.size, self.size)
            colours = functional.interpolate(colours, sides, mode="bilinear", antialias=True)
        return self.module(colours)


def read_torchscript(path: Path, device: str | torch.device = "cpu") -> TorchScriptClassifier:
    """A classifier that `torch.jit.save(module, path, _extra_files={"vqvae2.json": '{"size": 224}'})` wrote.

    `size` is S. The declaration may hold `rests_on`, the digest of a feature network that the classifier was made from;
    without it, it is the file's own sha-256. Batches of any size must be possible.

    Pickles are refused, and so are torch.export's .pt2 files: reading one unpickles and evaluates what is in it. A
    TorchScript file is a program too, though of tensor operations only: use those of people you trust.

    Raises:
        ClassifierError: no such file, another kind of file, no or a wrong declaration, or the module fails on two and
            three empty pictures.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {name.partition("/")[2] for name in archive.namelist()}
    except FileNotFoundError:
        raise ClassifierError(f"no classifier at {path}") from None
    except (OSError, zipfile.BadZipFile):
        raise ClassifierError(f"{path} is no TorchScript file") from None
    if "constants.pkl" not in inside or not any(name.startswith("code/") for name in inside):
        kind = "torch.export's" if "archive_format" in inside else "a pickle or another archive"
        raise ClassifierError(
            f"{path} is no TorchScript file but {kind}, which could run code: save the model with torch.jit.save"
        )
    declared = {DECLARATION: b""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # TorchScript is deprecated, and nothing else that is no pickle is there
            module = torch.jit.load(path, map_location=device, _extra_files=declared).eval()
    except RuntimeError as error:
        raise ClassifierError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from None
    about = _declaration(path, declared[DECLARATION])
    size = about["size"]
    try:
        with torch.no_grad():
            shapes = [module(torch.zeros(count, 3, size, size, device=device)).shape for count in (2, 3)]
    except Exception as error:  # somebody else's program
        raise ClassifierError(
            f"{path} fails on pictures [B, 3, {size}, {size}]: {' '.join(str(error).split())[-200:]}"
        ) from None
    if [tuple(shape[:-1]) for shape in shapes] != [(2,), (3,)] or shapes[0] != (2, shapes[1][-1]):
        raise ClassifierError(
            f"{path} gives {[list(shape) for shape in shapes]} for 2 and 3 pictures: expected [B, K]"
        )
    own = hashlib.sha256(path.read_bytes()).hexdigest()
    return TorchScriptClassifier(module, size, shapes[0][1], about.get("rests_on", own))


def _declaration(path: Path, text: bytes) -> dict[str, Any]:
    try:
        about = json.loads(text or "null")
    except ValueError:
        about = None
    sized = isinstance(about, dict) and type(about.get("size")) is int and 1 <= about["size"] <= 8192
    if not sized or not isinstance(about.get("rests_on", ""), str):
        raise ClassifierError(
            f'{path} does not say the size of its pictures: expected an extra file {DECLARATION} like {{"size": 224}}'
        )
    return about


def save_classifier(path: Path, classifier: Probe | ResNet) -> str:
    """Write a probe (without its feature network) or a ResNet; returns the content's digest."""
    about: dict[str, Any] = {"classes": classifier.classes}
    if isinstance(classifier, Probe):
        about |= {"kind": "probe", "dimension": classifier.dimension}
        about |= {"rests_on": classifier.rests_on, "weight_decay": classifier.weight_decay}
    else:
        about |= {"kind": "resnet", "channels": classifier.channels, "size": classifier.size}
        about |= {"config": classifier.config.model_dump()}
    return tensor_file.save_tensors(path, classifier.state_dict(), about)


def load_classifier(path: Path, device: str | torch.device = "cpu") -> Probe | ResNet:
    """What `save_classifier` wrote.

    Raises:
        FileError: missing, damaged, or another file.
    """
    tensors, about = tensor_file.load_tensors(path)
    kind = about.pop("kind", None)
    if kind not in ("probe", "resnet"):
        raise FileError(f"{path} holds no classifier")
    classifier: Probe | ResNet
    if kind == "probe":
        classifier = Probe(**about)
    else:
        config = ClassifierConfig(**about.pop("config"))
        with torch.random.fork_rng(devices=[]):
            classifier = ResNet(config=config, **about)
    tensor_file.load_weights(classifier, tensors, path)
    return classifier.requires_grad_(False).to(device).eval()


def _pixels(images: Pictures) -> Iterator[Tensor]:
    """Parts of the pictures, uint8 [b, H, W, C] on the CPU."""
    found = False
    for part in (images,) if isinstance(images, Tensor) else images:
        channels = part.shape[3 if part.dtype == torch.uint8 else 1] if part.ndim == 4 else 0
        if channels not in (1, 3, 4):
            raise ClassifierError(
                "expected pictures uint8 [N, H, W, 1 or 3 or 4] or float [N, 1 or 3 or 4, H, W], "
                f"found {part.dtype} {list(part.shape)}"
            )
        found = found or len(part) > 0
        yield (part if part.dtype == torch.uint8 else to_uint8(part)).cpu()
    if not found:
        raise ClassifierError("expected at least one picture, found none")


def _checked(labels: Tensor, count: int, classes: int) -> Tensor:
    """Labels as int64 [count] on the CPU."""
    labels = labels.cpu().long()
    if labels.shape != (count,) or not count:
        raise ClassifierError(
            f"expected a label for each of {count} pictures and at least one, found {list(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ClassifierError(
            f"expected labels of 0 to {classes - 1}, found {int(labels.min())} to {int(labels.max())}"
        )
    return labels
