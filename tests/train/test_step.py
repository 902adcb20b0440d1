"""One step: static is eager, averages are torch's, and between two lines of metrics the host waits for nothing."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from card_stand_ins import FORBIDDEN, INVALID, stand_in
from dispatch_modes import NoFloat64, NoSynchronisation
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode
from train_helpers import TRAIN, Toy, assert_same, changed, image_set, result, run, signal_at, stage, tiny

from vqvae2.autoencoder import base, codebook_usage
from vqvae2.autoencoder.model import VQVAE
from vqvae2.config.training import TrainConfig
from vqvae2.data.batches import sequential
from vqvae2.train import device, loop, step
from vqvae2.train.device import Choices, TrainingError
from vqvae2.train.loop import Interrupted
from vqvae2.train.sharpen import SharpenObjective
from vqvae2.train.step import TrainingStep, WeightAverage

LONG = {"steps": 12, "log_every": 5, "evaluate_every": 6, "average": 0.8, "weight_decay": 0.1}


STAGES = pytest.mark.parametrize("kind", ["autoencoder", "prior", "sharpen"])


def begun(kind: str, place: Path, **train: Any) -> tuple[Any, TrainConfig]:
    """The objective of a stage and its settings; the adversarial loss sets in after two steps."""
    config = tiny(train=LONG | train)
    if kind != "sharpen":
        training = config.train_autoencoder if kind == "autoencoder" else config.train_prior[1]
        return stage(kind, place, config), training
    more = {**TRAIN, **LONG, **train, "begin": 2, "width": 4, "depth": 2, "penalty": 1.0}
    config = changed(config, sharpen=more)
    torch.manual_seed(1)
    plain, images = VQVAE(config.autoencoder), image_set(place, config)
    plain.train()(next(sequential(images, images.train, config.data, batch=8))[0])  # first codebooks
    return SharpenObjective(config, images, plain, None), config.sharpen


def trained(kind: str, place: Path, folder: str, **train: Any) -> dict[str, Any]:
    """What a training of a stage leaves behind."""
    objective, training = begun(kind, place, **train)
    return result(objective, place / folder, run(objective, training, place / folder))


@pytest.fixture
def static(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train with a static step, as on a card but not captured."""
    usual = loop.choose
    monkeypatch.setattr(loop, "choose", lambda *a: replace(usual(*a), static=True))


@STAGES
def test_a_static_step_is_an_eager_one(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit with the same optimiser; within rounding with the one of a CPU, whose rate is no float32."""
    plain = trained(kind, tmp_path, "plain")
    usual = loop.choose
    monkeypatch.setattr(loop, "choose", lambda *a: replace(usual(*a), static=True))
    monkeypatch.setattr(step, "_WARM_UP", 10**6)
    eager = trained(kind, tmp_path, "eager")
    monkeypatch.setattr(step, "_WARM_UP", 3)
    inputs: set[int] = set()
    work = TrainingStep._work

    def noted(self: TrainingStep, batch: Any) -> None:
        inputs.add(batch[-1].data_ptr())
        work(self, batch)

    monkeypatch.setattr(TrainingStep, "_work", noted)
    static = trained(kind, tmp_path, "static")
    assert len(inputs) <= 4, "after the warm-up there is one batch, and it does not move"
    assert_same(static, eager)
    for name, value in plain.items():
        if name.startswith("published."):
            assert torch.allclose(static[name].double(), value.double(), rtol=1e-4, atol=1e-5), name


@pytest.mark.usefixtures("static")
@STAGES
def test_a_resumed_training_with_the_optimiser_of_a_card_is_the_uninterrupted_one(
    kind: str, tmp_path: Path
) -> None:
    """Its moments were loaded with another layout in memory than the weights: a card refused them, a CPU paired the wrong numbers."""
    broken, training = begun(kind, tmp_path)
    signal_at(broken, {5})
    with pytest.raises(Interrupted):
        run(broken, training, tmp_path / "resumed")
    resumed, _ = begun(kind, tmp_path)
    found = result(resumed, tmp_path / "resumed", run(resumed, training, tmp_path / "resumed"))
    assert_same(found, trained(kind, tmp_path, "whole"))


def test_a_step_that_cannot_be_recorded_is_done_without_the_memory_of_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, held, alive = loop.choose, list[Any](), list[bool]()

    def refused(self: TrainingStep) -> Any:
        activations = torch.zeros(8)
        held.append(weakref.ref(activations))
        self.choices = replace(self.choices, captured=False)
        raise RuntimeError("out of memory")

    work = TrainingStep._work

    def noted(self: TrainingStep, batch: Any) -> None:
        alive.extend(one() is not None for one in held)
        work(self, batch)

    monkeypatch.setattr(loop, "choose", lambda *a: replace(usual(*a), static=True, captured=True))
    monkeypatch.setattr(torch.cuda, "Stream", lambda *a: None)
    monkeypatch.setattr(TrainingStep, "_captured", refused)
    monkeypatch.setattr(TrainingStep, "_work", noted)
    trained("autoencoder", tmp_path, "refused")
    assert len(held) == 1
    assert alive
    assert not any(alive)


@pytest.mark.usefixtures("static")
def test_what_cannot_be_made_static_runs_eagerly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture that fails changes nothing but the speed, and the reason is kept for the user."""
    expected = trained("prior", tmp_path, "expected")

    def refuse(self: TrainingStep) -> None:
        self.choices = replace(self.choices, captured=False)
        raise RuntimeError("operation not permitted when stream is capturing\nsecond line")

    def choose(*a: Any) -> Choices:
        return replace(device.choose(*a), static=True, captured=True)

    said: list[str] = []
    monkeypatch.setattr(TrainingStep, "_captured", refuse)
    monkeypatch.setattr(loop, "choose", choose)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(loop.Reporter, "say", lambda self, text: said.append(text))
    assert_same(trained("prior", tmp_path, "refused"), expected)
    assert [line for line in said if "captured" in line] == [
        "prior level 1: the step could not be captured and runs eagerly: operation not permitted when stream is capturing"
    ]


class Still(Toy):
    """Reads no number of the batch itself."""

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """What was given."""
        return self._loss(self.model["w"], 0), {}


def reading_loss(weights: Tensor, step_number: int) -> Tensor:
    """A loss that reads a number on the host, as one of an extension may."""
    return weights.square().sum() * (1 + 0.0 * weights.sum().item())


READS = rf"cannot be captured as a CUDA graph \(CUDA error: {FORBIDDEN}.*\).*--set capture=false"


def test_a_recording_that_cuda_declares_invalid_ends_the_training_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch knows of the card is in disorder then, and steps on it would fail or fill its memory."""
    usual, toy = loop.choose, Still(reading_loss)
    graphs = stand_in(monkeypatch)
    monkeypatch.setattr(loop, "choose", lambda *a: replace(usual(*a), static=True, captured=True))
    with pytest.raises(TrainingError, match=READS) as ended:
        run(toy, tiny(train=LONG).train_autoencoder, tmp_path / "run")
    assert "\n" not in str(ended.value)
    assert len(graphs) == 1
    assert toy.weights.keys() == {1, 2, 3}, "nothing is trained after it"
    monkeypatch.setattr(loop, "choose", lambda *a: replace(usual(*a), static=True))
    again = run(Still(reading_loss), tiny(train=LONG).train_autoencoder, tmp_path / "run")
    assert again.step == 12, "with capture=false the same command goes on"


@pytest.mark.parametrize("invalid", [False, True])
def test_a_recording_that_fails_leaves_the_average_as_it_was(
    invalid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing keeps the memory of the recording when the step is done without one."""
    graphs, held = stand_in(monkeypatch), list[Any]()

    def loss(weights: Tensor, step_number: int) -> Tensor:
        if graphs and not held:
            activations = torch.zeros(8)
            held.append(weakref.ref(activations))
            graphs[0].invalid = invalid  # CUDA may say so at the end only, when the average was updated
            if invalid:
                return weights.square().sum()
            raise RuntimeError("out of memory")
        assert all(one() is None for one in held)
        return weights.square().sum()

    toy, choices = Still(loss), Choices(torch.device("cpu"), static=True, captured=True)
    config = tiny(train=LONG).train_autoencoder
    training = TrainingStep(
        toy, toy.model, toy.model, device.make_optimizer(toy.model, config, choices), config, choices
    )
    for number in range(3):
        training((torch.full((4,), number + 1),), number, 1e-3, seed=number)
    assert isinstance(training.average, WeightAverage)
    assert training.average.count == 3
    if invalid:
        with pytest.raises(TrainingError, match=INVALID):
            training((torch.full((4,), 4),), 3, 1e-3, seed=3)
        assert training.average.count == 3
    else:
        training((torch.full((4,), 4),), 3, 1e-3, seed=3)
        assert training.refused == "out of memory"
        assert training.average.count == 4
    assert held


ON_A_CARD = """
import sys
from pathlib import Path
from test_step import Still, loop, reading_loss, run, tiny
from vqvae2.config.hardware import Hardware
run(Still(reading_loss), tiny(train={"steps": 60}).train_autoencoder, Path(sys.argv[1]), hardware=Hardware(capture=sys.argv[2] == "true"))
"""


@pytest.mark.gpu
def test_a_loss_that_reads_a_number_ends_the_capture_on_a_card_with_one_line(tmp_path: Path) -> None:
    """In processes of their own, because the first cannot use the card any more."""
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_TORCH_DEVICE"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    for capture, code in (("true", 1), ("false", 0)):
        command = [sys.executable, "-c", ON_A_CARD, str(tmp_path / "run"), capture]
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert code == 0 or re.search(
            "TrainingError: the step cannot be captured.*--set capture=false", done.stderr
        )


def test_the_average_is_torchs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ours, theirs = WeightAverage(model, 0.7), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7))
    for _ in range(4):
        model(torch.randn(5, 3))
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn_like(p)
        ours.update()
        theirs.update_parameters(model)
    expected = theirs.state_dict()
    state = ours.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


class Recording(TorchDispatchMode):
    """Records operations, as a CUDA graph does: `replay` does them again, with the same tensors and the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, made))
        return made

    def replay(self) -> None:
        """Everything again; what is made lies where it lay."""
        for func, args, kwargs, made in self.done:
            again = func(*args, **kwargs)
            if isinstance(made, list | tuple) and made and "_." not in str(func):
                for there, value in zip(made, again, strict=True):
                    there.copy_(value)


def test_a_recorded_average_has_the_decay_of_each_step() -> None:
    """That is no number in the recording: of two averages of the same weights one is replayed, and both are equal."""
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    recorded, eager = (WeightAverage(model, 0.5, ramped=True) for _ in range(2))
    recording = Recording()
    averages = []
    for step_number in range(12):  # after 8 steps the decay is the constant one
        with torch.no_grad():
            for p in model.parameters():
                p.normal_()
        for average in (recorded, eager):
            average.before_step()
        eager.update()
        if step_number < 3:
            recorded.update()
        elif step_number == 3:
            with recording:
                recorded.update()
        else:
            recording.replay()
            recorded.count += 1
        averages.append(eager.module.weight.clone())
        assert torch.equal(recorded.module.weight, eager.module.weight), step_number
    assert not any(torch.equal(one, averages[0]) for one in averages[1:])


# --- what a step may not do ---


def forbid_reading(monkeypatch: pytest.MonkeyPatch, mode: NoSynchronisation) -> None:
    """Have `mode` raise too where a tensor is read whole, which on a CPU is no operation that a mode sees.

    Only in this thread: batches are made in another one, of what is in the host's memory.
    """
    mode.allowed = True
    for name in ("tolist", "numpy", "cpu", "item"):
        usual = getattr(Tensor, name)

        def read(self: Tensor, *a: Any, usual: Any = usual, name: str = name, **k: Any) -> Any:
            assert mode.allowed or threading.current_thread() is not threading.main_thread(), (
                f"{name} makes the host wait"
            )
            return usual(self, *a, **k)

        monkeypatch.setattr(Tensor, name, read)


@contextmanager
def watching(mode: NoSynchronisation) -> Iterator[None]:
    """Waiting is forbidden inside."""
    mode.allowed = False
    try:
        yield
    finally:
        mode.allowed = True


@contextmanager
def reading(mode: NoSynchronisation) -> Iterator[None]:
    """Waiting is allowed inside."""
    mode.allowed = True
    try:
        yield
    finally:
        mode.allowed = False


@STAGES
@pytest.mark.parametrize("warm_up", [3, 10**6])
@pytest.mark.usefixtures("static")
def test_the_host_waits_only_at_lines_of_metrics(
    kind: str, warm_up: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole loop, eager and static, runs under a mode that raises; it is lifted where a line is due, and nowhere else.

    With a card's optimiser: the one of a CPU reads its count of steps, which is in host memory there.
    """
    monkeypatch.setattr(step, "_WARM_UP", warm_up)
    mode = NoSynchronisation()
    forbid_reading(monkeypatch, mode)
    for name in ("_check", "_flush", "_report", "_evaluate", "_save"):
        usual = getattr(loop._Trainer, name)

        def lifted(self: Any, *arguments: Any, usual: Any = usual) -> Any:
            with reading(mode):
                return usual(self, *arguments)

        monkeypatch.setattr(loop._Trainer, name, lifted)
    usual_run = loop._Trainer.run

    def watched(self: Any, *arguments: Any) -> Any:
        with mode, watching(mode):
            return usual_run(self, *arguments)

    monkeypatch.setattr(loop._Trainer, "run", watched)
    lines = trained(kind, tmp_path, "run")["metrics"]
    assert {line["step"] for line in lines if "loss" in line} == {5, 6, 10, 12}


def test_reading_a_tensor_whole_raises_too(monkeypatch: pytest.MonkeyPatch) -> None:
    mode, ones = NoSynchronisation(), torch.ones(3)
    forbid_reading(monkeypatch, mode)
    assert ones.tolist() == [1, 1, 1]
    with watching(mode):
        for wait in (ones.tolist, ones.numpy, ones.cpu, lambda: np.asarray(ones)):
            with pytest.raises(AssertionError, match="makes the host wait"):
                wait()


@STAGES
def test_training_makes_no_float64(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, evaluations, checkpoints, where the device is said to have none: what sums need it do so in numpy."""
    for module in (base, codebook_usage):
        monkeypatch.setattr(module, "widest_float", lambda device: torch.float32)
    with NoFloat64():
        trained(kind, tmp_path, "run")


def test_gradients_do_not_pile_up(tmp_path: Path) -> None:
    """Whatever is left in the gradients, by an evaluation or by a caller, does not enter a step."""
    config = tiny(train=LONG)
    first, second = stage("prior", tmp_path, config), stage("prior", tmp_path, config)
    for p in second.model.parameters():
        p.grad = torch.ones_like(p)
    weights = []
    for index, objective in enumerate((first, second)):
        run(objective, config.train_prior[1], tmp_path / str(index))
        weights.append(copy.deepcopy(objective.model.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))
