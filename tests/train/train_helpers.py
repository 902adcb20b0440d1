"""Tiny pictures, settings and objectives for the tests of training."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from vqvae2.codes import Codes
from vqvae2.config.hardware import Hardware
from vqvae2.config.models import Config, parse
from vqvae2.config.overrides import merge
from vqvae2.config.training import TrainConfig
from vqvae2.data.images import ImageSet, open_images
from vqvae2.data.store import CodeStore, open_store
from vqvae2.data.store_writer import StoreWriter
from vqvae2.files.progress import Reporter
from vqvae2.files.tensor_file import load_tensors
from vqvae2.train.autoencoder import AutoencoderObjective
from vqvae2.train.device import make_accelerator
from vqvae2.train.loop import Interrupted, fit
from vqvae2.train.pipeline import train
from vqvae2.train.prior import PriorObjective
from vqvae2.train.resident import scaled
from vqvae2.train.sharded import whole
from vqvae2.train.state import Outcome, read_metrics

CLASSES = ("cats", "dogs")
STRIDES = {1: (4,), 2: (4, 2), 3: (2, 2, 2)}
TRAIN: dict[str, Any] = {
    "steps": 6,
    "batch": 4,
    "lr": 3e-3,
    "warmup": 2,
    "log_every": 2,
    "evaluate_every": 3,
}


def tiny(levels: int = 2, channels: int = 3, train: dict[str, Any] | None = None, **patch: Any) -> Config:
    """A configuration that trains in a moment on 16-px pictures; `train` changes every stage's training."""
    level = {
        "hidden": 8, "residual": 8, "layers": 1, "kernel": 3, "heads": 2, "output_layers": 1,
        "condition_blocks": 1, "label_dropout": 0.3,
    }  # fmt: skip
    training = TRAIN | (train or {})
    value = {
        "data": {"size": 16, "channels": channels, "flip": False, "workers": 0, "holdout": 0.3},
        "autoencoder": {
            "channels": channels, "strides": STRIDES[levels], "codes": [8, 10, 12][:levels], "code_dim": 4,
            "hidden": 8, "residual": 4, "blocks": 1,
        },
        "train_autoencoder": training,
        "prior": {"levels": [level] * levels},
        "train_prior": [training | {"code_dropout": 0.2}] * levels,
    }  # fmt: skip
    return parse(merge(value, patch))


class Killed(BaseException):
    """Stands for the end of the process: no handler of ours may catch it."""


class Halves(nn.Module):
    """In place of the perceptual distance: half the mean absolute difference of each picture."""

    def forward(self, images: Tensor, originals: Tensor) -> Tensor:
        """[B]."""
        return (images - originals).abs().mean((1, 2, 3)) / 2


def changed(config: Config, **patch: Any) -> Config:
    """The configuration with some leaves changed."""
    return parse(merge(config.model_dump(mode="json"), patch))


def pictures(root: Path, count: int = 14, classes: tuple[str, ...] = (), channels: int = 3) -> Path:
    """A folder of `count` 16-px PNGs of coarse noise, dealt out to the classes."""
    for number in range(count):
        place = root / classes[number % len(classes)] if classes else root
        place.mkdir(parents=True, exist_ok=True)
        drawn = np.random.default_rng(number).integers(0, 256, (4, 4, channels), np.uint8)
        values = drawn.repeat(4, 0).repeat(4, 1)
        Image.fromarray(values[..., 0] if channels == 1 else values).save(place / f"{number:03d}.png")
    return root


def image_set(place: Path, config: Config, count: int = 14, classes: tuple[str, ...] = ()) -> ImageSet:
    """`count` pictures under `place`, opened."""
    root = place / "pictures"
    if not root.exists():
        pictures(root, count, classes, config.data.channels)
    return open_images(str(root), config.data, place / "data", seed=config.seed, say=lambda _: None)


def code_store(
    place: Path,
    config: Config,
    count: int = 14,
    classes: int = 0,
    heldout: int = 4,
    seed: int = 0,
    plain: bool = False,
) -> CodeStore:
    """Random codes of `count` pictures, the first `heldout` of them held out; `plain` pictures have one code throughout."""
    generator = torch.Generator().manual_seed(seed)
    geometry = config.geometry
    names = [f"class {i}" for i in range(classes)]
    with StoreWriter(place, geometry, "digest", count, classes=names) as writer:
        levels = [
            torch.randint(k, (count, *grid), generator=generator)
            for k, grid in zip(geometry.vocabulary, geometry.grids, strict=True)
        ]
        if plain:
            levels = [levels[0][:, :1, :1].expand_as(level) for level in levels]
        split = np.zeros(count, np.int8)
        split[:heldout] = 1
        writer.append(Codes(tuple(levels)), np.arange(count) % max(classes, 1), split)
    return open_store(place)


def with_classes(config: Config, classes: int) -> Config:
    """The configuration with this number of classes, as the pipeline sets it from the data."""
    return changed(config, prior={"classes": classes})


class Spoken(Reporter):
    """Shows nothing and remembers what was said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """One line."""
        self.lines.append(text)


def go(data: Path, folder: Path, config: Config, **options: Any) -> list[str]:
    """`train` in silence; what it would say."""
    reporter = Spoken()
    train(str(data), folder, config, **{"command": "vqvae2 train", **options}, reporter=reporter)
    return reporter.lines


class Toy:
    """One weight vector; the loss, the scores and what happens at which step are given.

    Args:
        loss: of the weights and the number of the step, from 1.
        scores: of the evaluations, in order; the loss of step 1 when there are none.
        weights: where it starts.
    """

    name = "toy"

    def __init__(self, loss: Any, scores: dict[int, float] | None = None, weights: Any = (1.0, -2.0)) -> None:
        self.model = nn.ParameterDict({"w": nn.Parameter(torch.tensor(weights))})
        self._loss, self.scores = loss, scores
        self.step = 0
        self.weights: dict[int, Tensor] = {}  # after each step
        self.evaluated: dict[int, Tensor] = {}  # at each evaluation

    def keep_on(self, device: torch.device, limit: int) -> int:
        """Nothing."""
        return 0

    def batches(self, start: int, rank: int, world: int) -> Iterator[Any]:
        """The number of the step."""
        return ((torch.full((4,), step),) for step in itertools.count(start + 1))

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """What was given."""
        self.step = int(batch[0][0])
        return self._loss(self.model["w"], self.step), {}

    def after_step(self, step: int, accelerator: Accelerator) -> dict[str, Any]:
        """Remember the weights."""
        self.weights[step] = self.model["w"].detach().clone()
        return {}

    def counts(self) -> list[Tensor]:
        """Nothing."""
        return []

    def evaluate(self, model: Any, accelerator: Accelerator) -> dict[str, Any]:
        """The score of this step."""
        self.evaluated[self.step] = model["w"].detach().clone()
        score = 1.0 if self.scores is None else self.scores[self.step]
        return {"score": score, "heldout": score}

    def draw(self, model: nn.Module, path: Path) -> None:
        """Nothing."""


def stage(kind: str, place: Path, config: Config) -> AutoencoderObjective | PriorObjective:
    """The objective of a stage: "autoencoder" or "prior" (of the finer level, with three classes)."""
    if kind == "autoencoder":
        return AutoencoderObjective(config, image_set(place, config))
    return PriorObjective(with_classes(config, 3), code_store(place / "codes", config, classes=3), 1)


def run(
    objective: Any, config: TrainConfig, folder: Path, seed: int = 7, precision: str = "no", **more: Any
) -> Outcome:
    """`fit`, silent."""
    return fit(objective, config, folder, make_accelerator(precision), Reporter(quiet=True), seed, **more)


def signal_at(objective: Any, steps: set[int], number: int = signal.SIGINT, times: int = 1) -> None:
    """Have the objective send a signal to this process right after some steps."""
    usual = objective.after_step

    def after_step(step: int, accelerator: Accelerator) -> Any:
        figures = usual(step, accelerator)
        for _ in range(times if step in steps else 0):
            signal.raise_signal(number)
        return figures

    objective.after_step = after_step


def result(objective: Any, folder: Path, outcome: Outcome) -> dict[str, Any]:
    """Everything a training leaves behind, except the time it took."""
    tensors, _ = load_tensors(folder / "checkpoints" / "last.safetensors")
    published = {f"published.{k}": v for k, v in objective.model.state_dict().items()}
    figures = {k: v for k, v in asdict(outcome).items() if k != "seconds"}
    return {**tensors, **published, "outcome": [figures], "metrics": read_metrics(folder / "metrics.jsonl")}


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, b[name]), name
        else:
            assert value == b[name], name


def exactly(place: Path, kind: str, steps: int = 12) -> dict[str, Tensor]:
    """The weights after some steps of a stage in float64, with noise of every kind and a learning rate that moves codes."""
    config = tiny(
        train={"steps": steps, "warmup": 0, "lr": 1e-2, "evaluate_every": steps, "average": 0.0},
        data={"flip": True, "shift": 1},
        autoencoder={"nested_dropout": 0.5},
        prior={"levels": [{"dropout": 0.2}, {"dropout": 0.2}]},
    )
    objective = stage(kind, place, config)
    model = objective.model.double()

    def nll(network: nn.Module, levels: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        wide = tuple(level.long() & 0xFFFF for level in levels)
        return functional.cross_entropy(network(wide[-1], wide[:-1], labels), wide[-1], reduction="none")

    def loss(network: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        images = scaled(batch[0]).double()
        out = network(images)
        return (out.images - images).square().mean() + out.commitment, {}

    stubs = {"evaluate": lambda *_: {"score": 0.0}, "draw": lambda *_: None}
    for name, function in ({"_nll": nll} if kind == "prior" else {"loss": loss}).items() | stubs.items():
        setattr(objective, name, function)
    settings = config.train_prior[1] if kind == "prior" else config.train_autoencoder
    run(objective, settings, place / kind)
    return model.state_dict()


def sharded(place: Path, name: str, shard: bool, stop: int = 0) -> dict[str, Tensor]:
    """The whole weights of a prior after six steps, cut up among the processes or not; {} when it stopped at step `stop`."""
    train = {"evaluate_every": 6, "average": 0.5, "warmup": 0, "lr": 1e-3}
    config = tiny(train=train, prior={"levels": [{"dropout": 0.1, "layers": 2}] * 2})
    accelerator = make_accelerator("no")
    codes = place / f"codes-{name}-{accelerator.process_index}"
    objective = PriorObjective(with_classes(config, 3), code_store(codes, config, classes=3), 1)
    if stop:
        signal_at(objective, {stop})
    try:
        run(objective, config.train_prior[1], place / name, hardware=Hardware(shard=shard))
    except Interrupted:
        return {}
    return whole(objective.model)
