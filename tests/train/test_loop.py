"""The training loop: a resumed run is the uninterrupted one, the best weights are kept, and nothing good is lost."""

from __future__ import annotations

import errno
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from train_helpers import (
    Killed,
    Spoken,
    Toy,
    assert_same,
    changed,
    code_store,
    image_set,
    result,
    run,
    signal_at,
    stage,
    tiny,
    with_classes,
)

from vqvae2.autoencoder.quantizer import VectorQuantizer
from vqvae2.config.training import TrainConfig
from vqvae2.files.atomic import FileError, WriteError
from vqvae2.files.progress import Reporter
from vqvae2.files.tensor_file import load_tensors
from vqvae2.train import device, loop, place, watchdog
from vqvae2.train.autoencoder import AutoencoderObjective
from vqvae2.train.device import TrainingError, make_accelerator
from vqvae2.train.loop import Interrupted, learning_rate
from vqvae2.train.prior import PriorObjective
from vqvae2.train.state import read_metrics

WAYS: dict[str, dict[str, Any]] = {  # how a stage is trained
    "plain": {},
    "averaged, in parts, decayed": {"average": 0.7, "accumulate": 3, "weight_decay": 0.1, "batch": 5},
    "best kept, constant": {"schedule": "constant", "lr": 0.3, "clip": 0.0, "evaluate_every": 1},
}
LONG = {"steps": 7, "log_every": 3, "evaluate_every": 4}


def toy_config(**options: Any) -> TrainConfig:
    """Six steps at a constant rate, evaluated at every one."""
    usual = {"steps": 6, "batch": 4, "lr": 0.01, "warmup": 0, "schedule": "constant", "evaluate_every": 1}
    return TrainConfig(**(usual | options))


def settings_of(config: Any, kind: str) -> TrainConfig:
    """The training settings of the stage that `stage` makes."""
    found: TrainConfig = config.train_autoencoder if kind == "autoencoder" else config.train_prior[1]
    return found


# --- interrupted and resumed ---


@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
@pytest.mark.parametrize("way", WAYS)
def test_interrupted_at_any_step_and_resumed(kind: str, way: str, tmp_path: Path) -> None:
    """Weights, codebooks, averages, optimiser, best weights and every metrics line, bit for bit."""
    config = tiny(train=LONG | WAYS[way])
    training = settings_of(config, kind)
    whole = stage(kind, tmp_path, config)
    expected = result(whole, tmp_path / "whole", run(whole, training, tmp_path / "whole"))
    assert expected["outcome"][0]["step"] == training.steps
    for name, stops in {"once": [5], "at every step": list(range(1, training.steps + 1))}.items():
        folder = tmp_path / name
        for stop in stops:
            broken = stage(kind, tmp_path, config)
            signal_at(broken, {stop})
            with pytest.raises(Interrupted, match=f"saved at step {stop} of {training.steps}"):
                run(broken, training, folder)
        resumed = stage(kind, tmp_path, config)
        assert_same(result(resumed, folder, run(resumed, training, folder)), expected)


def test_the_ways_of_the_test_above_differ(tmp_path: Path) -> None:
    """Averages are not the weights, and the best are not the last: otherwise that test would show little."""
    config = tiny(train=LONG | WAYS["averaged, in parts, decayed"])
    objective = stage("prior", tmp_path, config)
    state = result(objective, tmp_path / "a", run(objective, config.train_prior[1], tmp_path / "a"))
    name = "embedding.weight"
    assert not torch.equal(state[f"average.module.{name}"], state[f"model.{name}"])
    config = tiny(train=LONG | WAYS["best kept, constant"])
    objective = stage("prior", tmp_path, config)
    outcome = run(objective, config.train_prior[1], tmp_path / "b")
    assert outcome.best_step < outcome.step


@pytest.mark.parametrize("moment", ["before", "half written", "not renamed"])
@pytest.mark.parametrize("save", [1, 2, 3])
def test_killed_in_a_save(moment: str, save: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill leaves half a file and lines of metrics beyond the last good state; the next sitting mends both."""
    config = tiny(train={"steps": 9, "evaluate_every": 3, "log_every": 1})
    whole = stage("autoencoder", tmp_path, config)
    expected = result(whole, tmp_path / "whole", run(whole, config.train_autoencoder, tmp_path / "whole"))
    folder = tmp_path / "killed"
    saves = 0
    usual = safetensors.torch.save_file

    def write(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
        nonlocal saves
        saves += 1
        if saves < save:
            usual(tensors, path, header)
            return
        if moment != "before":
            usual(tensors, path, header)
        if moment == "half written":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", write)
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # the dead do not tidy up
        with pytest.raises(Killed):
            run(stage("autoencoder", tmp_path, config), config.train_autoencoder, folder)
    left = [line["step"] for line in read_metrics(folder / "metrics.jsonl")]
    assert max(left) == 3 * save
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')  # a line that was being written
    resumed = stage("autoencoder", tmp_path, config)
    steps: list[int] = []
    after = resumed.after_step
    monkeypatch.setattr(resumed, "after_step", lambda step, a: steps.append(step) or after(step, a))
    assert_same(result(resumed, folder, run(resumed, config.train_autoencoder, folder)), expected)
    assert steps == list(range(3 * (save - 1) + 1, 10)), "it goes on from the last good state"


def test_a_training_without_a_state_starts_with_empty_metrics(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 5.0}\n')
    run(Toy(lambda w, step: w.sum()), toy_config(steps=2), tmp_path)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 1, 2, 2]


def test_done_is_done(tmp_path: Path) -> None:
    """Called again after the last step: no step, no line, the same weights."""
    config = tiny()
    first = stage("prior", tmp_path, config)
    before = result(first, tmp_path / "run", run(first, config.train_prior[1], tmp_path / "run"))
    again = stage("prior", tmp_path, config)
    signal_at(again, set(range(10)))  # any step at all would interrupt it
    assert_same(result(again, tmp_path / "run", run(again, config.train_prior[1], tmp_path / "run")), before)


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    config = tiny()
    run(stage("prior", tmp_path, config), config.train_prior[1], tmp_path / "run")
    wider = changed(config, prior={"levels": [config.prior.levels[0].model_dump() | {"hidden": 12}] * 2})
    with pytest.raises(FileError, match="does not fit the configuration"):
        run(stage("prior", tmp_path, wider), config.train_prior[1], tmp_path / "run")


# --- signals ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_acts_as_usual(number: int, tmp_path: Path) -> None:
    """The first is noted, the second reaches whoever listened before; then all is as it was."""
    heard: list[int] = []

    def usual(number: int, frame: object) -> None:
        heard.append(number)
        raise Killed

    before = signal.signal(number, usual)
    try:
        once = Toy(lambda w, step: w.sum())
        signal_at(once, {2}, number)
        with pytest.raises(Interrupted, match="toy: saved at step 2 of 6"):
            run(once, toy_config(), tmp_path / "once")
        assert heard == []
        assert signal.getsignal(number) is usual
        assert load_tensors(tmp_path / "once/checkpoints/last.safetensors")[1]["outcome"]["step"] == 2
        twice = Toy(lambda w, step: w.sum())
        signal_at(twice, {2}, number, times=2)
        with pytest.raises(Killed):
            run(twice, toy_config(), tmp_path / "twice")
        assert heard == [number]
        assert signal.getsignal(number) is usual
    finally:
        signal.signal(number, before)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler of Ctrl-C, also where a shell started the tests in the background, with it ignored."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


@pytest.mark.usefixtures("interruptible")
def test_two_interrupts_are_the_interpreters_own(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    objective = Toy(lambda w, step: w.sum())
    signal_at(objective, {3}, times=2)
    with pytest.raises(KeyboardInterrupt):
        run(objective, toy_config(), tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    state, meta = load_tensors(tmp_path / "checkpoints" / "last.safetensors")
    assert meta["outcome"]["step"] == 2
    assert torch.equal(state["model.w"], objective.weights[2])


@pytest.mark.parametrize("end", ["done", "failed"])
def test_handlers_are_restored(end: str, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    during: list[Any] = []

    def loss(w: Tensor, step: int) -> Tensor:
        during[:] = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return w.sum() * (math.nan if end == "failed" else 1)

    if end == "failed":
        with pytest.raises(TrainingError):
            run(Toy(loss), toy_config(), tmp_path)
    else:
        run(Toy(loss), toy_config(), tmp_path)
    assert before[0] is not during[0]
    assert before[1] is not during[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_in_the_last_evaluation_is_not_swallowed(tmp_path: Path) -> None:
    """Otherwise Ctrl-C would end one stage and the next one would start."""
    objective = Toy(lambda w, step: w.sum())
    usual = objective.evaluate

    def evaluate(model: Any, accelerator: Any) -> dict[str, Any]:
        if objective.step == 6:
            signal.raise_signal(signal.SIGINT)
        return usual(model, accelerator)

    objective.evaluate = evaluate  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="saved at step 6 of 6"):
        run(objective, toy_config(), tmp_path)
    assert run(Toy(lambda w, step: w.sum()), toy_config(), tmp_path).step == 6


def test_training_outside_the_main_thread(tmp_path: Path) -> None:
    """Only the main thread can listen to signals; another one trains all the same."""
    outcomes: list[Any] = []
    thread = threading.Thread(
        target=lambda: outcomes.append(run(Toy(lambda w, step: w.sum()), toy_config(), tmp_path))
    )
    thread.start()
    thread.join(60)
    assert [outcome.step for outcome in outcomes] == [6]


@pytest.mark.parametrize("damage", ["cut short", "one bit"])
def test_a_damaged_state_has_one_before_it(damage: str, tmp_path: Path) -> None:
    """What the message says goes on from there, to the same end; it said that all is lost."""
    config = tiny(train={"steps": 9, "evaluate_every": 3})
    whole = stage("prior", tmp_path, config)
    expected = result(whole, tmp_path / "whole", run(whole, config.train_prior[1], tmp_path / "whole"))
    folder, broken = tmp_path / "run", stage("prior", tmp_path, config)
    signal_at(broken, {8})
    with pytest.raises(Interrupted):
        run(broken, config.train_prior[1], folder)
    file = folder / "checkpoints" / "last.safetensors"
    content = file.read_bytes()
    file.write_bytes(
        content[:-9] if damage == "cut short" else content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    )
    with pytest.raises(
        FileError, match=r"the state before it is kept: mv \S+ \S+ && mv \S+ \S+, and the same"
    ) as caught:
        run(stage("prior", tmp_path, config), config.train_prior[1], folder)
    for command in str(caught.value).split(": mv ")[1].split(",")[0].split(" && mv "):
        Path(command.split()[0]).replace(command.split()[1])
    assert load_tensors(file)[1]["outcome"]["step"] == 6
    resumed = stage("prior", tmp_path, config)
    assert_same(result(resumed, folder, run(resumed, config.train_prior[1], folder)), expected)


# --- between evaluations, and within one ---

SITTINGS = {"steps": 6, "evaluate_every": 4, "log_every": 3, "average": 0.7, "batch": 2}


def ticking() -> Callable[[], float]:
    """A clock that is ten seconds later at every look."""
    seconds = iter(range(0, 10**6, 10))
    return lambda: float(next(seconds))


def asked_at(objective: Any, number: int, act: Callable[[], None]) -> None:
    """Have something happen in the evaluations before batch `number` of all of them, counted from 1."""
    usual, count = objective.judged.polled, 0

    def polled(batches: Any, *more: int) -> Iterator[Any]:
        nonlocal count
        for batch in batches:
            count += 1
            if count == number:
                act()
            yield from usual([batch], 1, 1)

    objective.judged.polled = polled


@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
@pytest.mark.parametrize("evaluation", [1, 2])
@pytest.mark.parametrize("end", ["asked", "killed", "killed when written"])
def test_ended_within_an_evaluation_and_resumed(kind: str, evaluation: int, end: str, tmp_path: Path) -> None:
    """A request to stop does not wait for the end; the evaluation is done again, and everything is as in a training that ran through."""
    config = tiny(train=SITTINGS | {"save_minutes": 1 / 60})
    training = settings_of(config, kind)
    whole = stage(kind, tmp_path, config)
    expected = result(whole, tmp_path / "whole", run(whole, training, tmp_path / "whole", clock=ticking()))
    broken, folder = stage(kind, tmp_path, config), tmp_path / "run"
    batches = -(-len(broken.judged.images) // 2)
    assert batches > 1
    if kind == "prior":
        batches += -(-len(broken.probe) // 2)
    number = (evaluation - 1) * batches + 2

    def die(*_: Any) -> None:
        raise Killed

    asked_at(broken, number, die if end == "killed" else lambda: signal.raise_signal(signal.SIGTERM))
    step = ((3, 4) if end == "killed" else (4, 6))[evaluation - 1]
    with pytest.raises(Killed if end == "killed" else Interrupted):
        run(broken, training, folder, clock=ticking())
    if end == "killed when written":  # in the sitting that begins with the evaluation
        broken = stage(kind, tmp_path, config)
        broken.draw = die  # type: ignore[method-assign]
        with pytest.raises(Killed):
            run(broken, training, folder, clock=ticking())
    assert load_tensors(folder / "checkpoints" / "last.safetensors")[1]["outcome"]["step"] == step
    resumed = stage(kind, tmp_path, config)
    steps: list[int] = []
    after = resumed.after_step
    resumed.after_step = lambda step, a: steps.append(step) or after(step, a)  # type: ignore[method-assign]
    assert_same(result(resumed, folder, run(resumed, training, folder)), expected)
    assert steps == list(range(step + 1, 7))


def test_a_state_is_saved_when_its_minutes_are_over(tmp_path: Path) -> None:
    """Also far from an evaluation; saving changes nothing, and `save_minutes` 0 saves at evaluations alone."""
    found = {}
    for minutes in (0.0, 0.4):  # a step takes ten seconds
        config = tiny(train={"steps": 9, "evaluate_every": 9, "log_every": 4, "save_minutes": minutes})
        whole = stage("prior", tmp_path, config)
        folder = tmp_path / f"whole {minutes}"
        found[minutes] = result(whole, folder, run(whole, config.train_prior[1], folder, clock=ticking()))
        killed = stage("prior", tmp_path, config)
        usual = killed.after_step

        def after_step(step: int, accelerator: Any, usual: Any = usual) -> dict[str, Any]:
            if step == 6:
                raise Killed
            return usual(step, accelerator)

        killed.after_step = after_step  # type: ignore[method-assign]
        folder = tmp_path / f"killed {minutes}"
        with pytest.raises(Killed):
            run(killed, config.train_prior[1], folder, clock=ticking())
        file = folder / "checkpoints" / "last.safetensors"
        assert file.exists() == bool(minutes)
        if minutes:
            assert load_tensors(file)[1]["outcome"]["step"] == 3
        again = stage("prior", tmp_path, config)
        assert_same(result(again, folder, run(again, config.train_prior[1], folder)), found[minutes])
    assert_same(found[0.0], found[0.4])


def test_the_state_before_the_last_one_is_of_an_earlier_step(tmp_path: Path) -> None:
    """Also where the minutes of a save are over when an evaluation is due, which ends with a save of its own."""
    config = toy_config(evaluate_every=3, save_minutes=1 / 60)
    run(Toy(lambda w, step: w.sum()), config, tmp_path, clock=ticking())
    names = ("last", "previous")
    saved = [load_tensors(tmp_path / "checkpoints" / f"{name}.safetensors")[1] for name in names]
    assert [each["outcome"]["step"] for each in saved] == [6, 5]


# --- nothing good is lost ---


@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
def test_a_loss_that_is_not_finite(kind: str, tmp_path: Path) -> None:
    """The error names step and rate, the last good state stays as it was, and goes on when the cause is gone."""
    config = tiny(train={"steps": 9, "evaluate_every": 3, "log_every": 2})
    training = settings_of(config, kind)
    whole = stage(kind, tmp_path, config)
    expected = result(whole, tmp_path / "whole", run(whole, training, tmp_path / "whole"))
    folder = tmp_path / "run"
    broken = stage(kind, tmp_path, config)
    usual = broken.loss
    calls = 0

    def loss(model: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        value, logs = usual(model, batch)
        return value * (math.nan if calls == 5 else 1), logs

    broken.loss = loss  # type: ignore[method-assign]
    with pytest.raises(TrainingError) as caught:
        run(broken, training, folder)
    said = str(caught.value)
    assert "the loss is not finite at step 5 " in said
    assert f"(learning rate {learning_rate(training, 4):.2e})" in said
    assert "the state of step 3 is kept" in said
    assert "\n" not in said
    tensors, meta = load_tensors(folder / "checkpoints" / "last.safetensors")
    assert meta["outcome"]["step"] == 3
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    resumed = stage(kind, tmp_path, config)
    assert_same(result(resumed, folder, run(resumed, training, folder)), expected)


def test_a_finite_loss_with_an_infinite_gradient(tmp_path: Path) -> None:
    """The loss of the step is finite but its update is not: such weights are never saved over good ones."""

    def loss(w: Tensor, step: int) -> Tensor:
        return w.sum() if step != 4 else (w - w.detach()).abs().sum().sqrt()

    with pytest.raises(TrainingError, match=r"the weights are not finite at step 4 .*step 2 is kept"):
        run(Toy(loss), toy_config(evaluate_every=2), tmp_path)
    state, meta = load_tensors(tmp_path / "checkpoints" / "last.safetensors")
    assert meta["outcome"]["step"] == 2
    assert state["model.w"].isfinite().all()
    healthy = Toy(lambda w, step: w.sum())
    assert run(healthy, toy_config(evaluate_every=2), tmp_path).step == 6
    assert sorted(healthy.weights) == [3, 4, 5, 6]


@pytest.mark.parametrize("before", ["kept", "damaged", "of the same step", "none"])
def test_what_diverges_again_goes_on_from_further_back(before: str, tmp_path: Path) -> None:
    """The last state may already carry what diverges; the message gives the command that leads to the one before it."""
    spoilt = Toy(lambda w, step: w.sum() * (math.nan if step == 5 else 1))
    with pytest.raises(TrainingError) as caught:
        run(spoilt, toy_config(evaluate_every=2), tmp_path)
    last, previous = (tmp_path / "checkpoints" / f"{name}.safetensors" for name in ("last", "previous"))
    further = (
        f"; if it diverges again, go back further, to step 2: mv {last} {last}.bad && mv {previous} {last}"
    )
    assert str(caught.value).endswith(f"with which the same run goes on{further}")
    assert "the state of step 4 is kept" in str(caught.value)
    if before == "kept":
        previous.replace(last)
        healthy = Toy(lambda w, step: w.sum())
        assert run(healthy, toy_config(evaluate_every=2), tmp_path).step == 6
        assert sorted(healthy.weights) == [3, 4, 5, 6]
        return
    previous.unlink()
    if before != "none":
        previous.write_bytes(b"damaged" if before == "damaged" else last.read_bytes())
    with pytest.raises(TrainingError, match=r"step 4 is kept.*, with which the same run goes on$"):
        run(spoilt, toy_config(evaluate_every=2), tmp_path)


def test_not_finite_before_anything_was_saved(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"not finite at step 1 .*nothing was saved yet"):
        run(Toy(lambda w, step: w.sum() * math.inf), toy_config(), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_not_finite_when_interrupted(tmp_path: Path) -> None:
    """A spoilt state is not saved on Ctrl-C either."""
    objective = Toy(lambda w, step: w.sum() * (math.nan if step == 3 else 1))
    signal_at(objective, {4})
    with pytest.raises(TrainingError, match=r"at step 3 .*state of step 2 is kept"):
        run(objective, toy_config(evaluate_every=2, log_every=100), tmp_path)


@pytest.mark.parametrize("how", ["os", "safetensors"])
def test_a_full_disk(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(train={"steps": 6, "evaluate_every": 2})
    whole = stage("prior", tmp_path, config)
    expected = result(whole, tmp_path / "whole", run(whole, config.train_prior[1], tmp_path / "whole"))
    folder = tmp_path / "run"
    usual = safetensors.torch.save_file
    saves = 0

    def write(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
        nonlocal saves
        saves += 1
        if saves == 2:
            path.write_bytes(b"half")
            full = OSError(errno.ENOSPC, "No space left on device")
            raise full if how == "os" else safetensors.SafetensorError(f"I/O error: {full}")
        usual(tensors, path, header)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", write)
        with pytest.raises(FileError, match=r"cannot write .*No space left.*an earlier file is kept"):
            run(stage("prior", tmp_path, config), config.train_prior[1], folder)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "last.safetensors",
        "previous.safetensors",
    ]
    assert load_tensors(folder / "checkpoints" / "last.safetensors")[1]["outcome"]["step"] == 2
    resumed = stage("prior", tmp_path, config)
    assert_same(result(resumed, folder, run(resumed, config.train_prior[1], folder)), expected)


@pytest.mark.parametrize("what", ["line", "picture"])
def test_what_is_only_looked_at_ends_no_training(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that fails for a moment: hours of training ended before their state was saved. Lines are written later."""
    objective = Toy(lambda w, step: w.sum(), dict.fromkeys(range(1, 7), 1.0))
    failed: list[int] = []
    usual = place.write_metrics

    def write(path: Path, step: int, values: Any) -> None:
        if step in (2, 3) and len(failed) < 5:
            failed.append(step)
            raise OSError(errno.EIO, "Input/output error")
        usual(path, step, values)

    def draw(model: Any, path: Path) -> None:
        failed.append(0)
        raise WriteError(f"cannot write {path}: Input/output error; an earlier file is kept")

    if what == "line":
        monkeypatch.setattr(place, "write_metrics", write)
    else:
        objective.draw = draw  # type: ignore[method-assign]
    said = Spoken()
    loop.fit(objective, toy_config(log_every=1), tmp_path / "run", make_accelerator(), said, 0)
    assert failed
    assert ["the training goes on" in line for line in said.lines if "was not written" in line] == [True]
    steps = [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert steps == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert load_tensors(tmp_path / "run/checkpoints/last.safetensors")[1]["outcome"]["step"] == 6


# --- a process that stands still ---


@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize(("seconds", "minutes"), [(0, 30), (170, 30), (600, 100), (2400, 400)])
def test_a_process_that_stands_still_ends(seconds: int, minutes: int, evaluated: bool) -> None:
    """After half an hour without a step, or ten times its longest step; but not in the first one, nor while it evaluates or saves.

    Steps of more than half an hour each ended a training that went on.
    """
    said: list[str] = []
    watch = watchdog.Watchdog("toy", said.append)
    for step in range(4, 8):
        watch.at(step, "waiting for a batch")
        watch.at(step, "in a step")
        watch.passed(seconds)
        if evaluated:
            watch.rest()
            watch.passed(10**6)
    watch.at(8, "waiting for a batch")
    watch.passed(60 * minutes - 1)
    assert said == []
    watch.passed(1)
    assert len(said) == 1
    assert said[0].startswith("toy: process 0 on ")
    assert f"has stood still for {minutes} minutes after step 8, waiting for a batch, and ends" in said[0]


def test_a_long_first_step_says_something_of_the_second_one_only() -> None:
    """Networks are compiled in it."""
    said: list[str] = []
    watch = watchdog.Watchdog("toy", said.append)
    for step, seconds in enumerate((1200, 2000, 60)):
        watch.at(step, "in a step")
        watch.passed(seconds)
    assert said == []
    watch.at(3, "in a step")
    watch.passed(19_999)
    assert said == []
    watch.passed(1)
    assert len(said) == 1
    short = watchdog.Watchdog("toy", said.append)
    for step, seconds in enumerate((1200, 60, 60)):
        short.at(step, "in a step")
        short.passed(seconds)
    short.passed(1740)
    assert "for 30 minutes after step 2" in said[1]


def test_steps_are_watched_and_evaluations_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[watchdog.Watchdog] = []
    monkeypatch.setattr(loop, "Watchdog", lambda what: made.append(watchdog.Watchdog(what)) or made[0])
    seen: dict[str, list[bool]] = {"step": [], "evaluation": [], "save": []}

    def note(name: str, of: Any) -> Any:
        return lambda *arguments: seen[name].append(made[0].watching) or of(*arguments)

    objective = Toy(note("step", lambda w, step: w.sum()))
    objective.evaluate = note("evaluation", objective.evaluate)  # type: ignore[method-assign]
    monkeypatch.setattr(loop.State, "save", note("save", loop.State.save))
    run(objective, toy_config(evaluate_every=2), tmp_path)
    assert seen == {"step": [True] * 6, "evaluation": [False] * 3, "save": [False] * 3}
    assert not made[0].watching
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}


# --- the update ---


@pytest.mark.parametrize("batch", [8, 10])
def test_accumulation_is_the_whole_batch(batch: int, tmp_path: Path) -> None:
    """Parts of unequal size count by their size; more parts than pictures are as many parts as pictures."""
    level = {"label_dropout": 0.0, "dropout": 0.0, "hidden": 8, "layers": 1}
    config = tiny(prior={"levels": [level] * 2}, train_prior=[{}] * 2)
    store = code_store(tmp_path / "codes", config, count=30, classes=3)
    weights: dict[int, dict[str, Tensor]] = {}
    lines: dict[int, list[dict[str, Any]]] = {}
    for parts in (1, 2, 3, 4, 7, 16):
        objective = PriorObjective(with_classes(config, 3), store, 1)
        training = TrainConfig(steps=3, batch=batch, lr=1e-3, warmup=0, accumulate=parts, log_every=1)
        run(objective, training, tmp_path / str(parts))
        weights[parts] = objective.model.state_dict()
        lines[parts] = read_metrics(tmp_path / str(parts) / "metrics.jsonl")
    for parts, state in weights.items():
        for name, value in state.items():
            assert torch.allclose(value, weights[1][name], rtol=0, atol=1e-5), (parts, name)
        for line, whole in zip(lines[parts], lines[1], strict=True):
            assert line == pytest.approx(whole, rel=1e-4)
    start = PriorObjective(with_classes(config, 3), store, 1).model.state_dict()
    assert any((start[name] - value).abs().max() > 1e-3 for name, value in weights[1].items())


def gradient_norms() -> tuple[list[float], Any]:
    """The norms that optimisers will see, and the handle of the hook that notes them."""
    seen: list[float] = []

    def note(optimizer: Any, args: Any, kwargs: Any) -> None:
        grads = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        seen.append(float(torch.cat(grads).norm()))

    return seen, register_optimizer_step_pre_hook(note)


@pytest.mark.parametrize(("clip", "expected"), [(0.5, [0.5, 0.5, 0.3]), (2.0, [2.0, 1.0, 0.3]), (0.0, [5.0, 1.0, 0.3])])  # fmt: skip
def test_clipping_bounds_the_norm(clip: float, expected: list[float], tmp_path: Path) -> None:
    """Norms 5, 1, 0.3: those above the bound are scaled to it, the others stay; the log has the raw ones."""
    scale = {1: 5.0, 2: 1.0, 3: 0.3}
    direction = torch.tensor([0.6, 0.8])
    objective = Toy(lambda w, step: (w * direction).sum() * scale[step])
    seen, handle = gradient_norms()
    with handle:
        run(objective, toy_config(steps=3, clip=clip, log_every=1), tmp_path)
    assert seen == pytest.approx(expected, rel=1e-4)
    logged = [line["gradient_norm"] for line in read_metrics(tmp_path / "metrics.jsonl") if "gradient_norm" in line]  # fmt: skip
    assert logged == pytest.approx([5.0, 1.0, 0.3] if clip else [])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("warmup", [0, 4])
def test_learning_rates(schedule: str, warmup: int) -> None:
    config = TrainConfig(steps=104, warmup=warmup, schedule=schedule, lr=0.5)  # type: ignore[arg-type]
    rates = [learning_rate(config, step) for step in range(104)]
    assert rates[:warmup] == pytest.approx([0.5 * (i + 1) / 4 for i in range(warmup)])
    assert rates[warmup] == pytest.approx(0.5)
    if schedule == "constant":
        assert set(rates[warmup:]) == {0.5}
        return
    assert all(a > b for a, b in pairwise(rates[warmup:]))
    assert learning_rate(config, (104 + warmup) // 2) == pytest.approx(0.5 * (1 + 0.02) / 2)
    assert learning_rate(config, 104) == pytest.approx(0.5 / 50)
    assert rates[-1] == pytest.approx(0.5 / 50, rel=0.05)


def test_the_scheduled_rate_is_the_size_of_the_step(tmp_path: Path) -> None:
    """With a constant gradient Adam moves every weight by exactly the learning rate; the log says which."""
    objective = Toy(lambda w, step: w.sum())
    config = toy_config(steps=12, warmup=3, schedule="cosine", log_every=1)
    places = [torch.tensor([1.0, -2.0])]
    run(objective, config, tmp_path)
    places += [objective.weights[step] for step in range(1, 13)]
    moved = [float((a - b)[0]) for a, b in pairwise(places)]
    expected = [learning_rate(config, step) for step in range(12)]
    assert moved == pytest.approx(expected, rel=1e-3)
    assert max(expected) > 5 * min(expected)
    logged = [line["lr"] for line in read_metrics(tmp_path / "metrics.jsonl") if "lr" in line]
    assert logged == expected


def test_weight_decay(tmp_path: Path) -> None:
    """Without a gradient each step multiplies the weights by 1 - rate x decay."""
    objective = Toy(lambda w, step: (w * 0).sum())
    config = toy_config(weight_decay=0.5, warmup=3)
    run(objective, config, tmp_path)
    factor = math.prod(1 - 0.5 * learning_rate(config, step) for step in range(6))
    assert torch.allclose(objective.weights[6], torch.tensor([1.0, -2.0]) * factor, rtol=1e-6)
    assert factor < 0.99


def test_evaluation_is_of_the_averaged_weights(tmp_path: Path) -> None:
    """They are an exponential average that starts at the first step's weights, and they are what is kept."""
    objective = Toy(lambda w, step: w.square().sum(), {step: -step for step in range(1, 7)})
    run(objective, toy_config(average=0.8, lr=0.2), tmp_path)
    average = objective.weights[1]
    for step in range(1, 7):
        average = objective.weights[step] if step == 1 else 0.8 * average + 0.2 * objective.weights[step]
        assert torch.allclose(objective.evaluated[step], average, atol=1e-6)
    assert torch.allclose(objective.model["w"], average, atol=1e-6)
    assert not torch.allclose(average, objective.weights[6], atol=1e-2)


def test_the_average_takes_the_codebooks_as_they_are(tmp_path: Path) -> None:
    """Codebooks are averages already: with averaged weights, the ones in use are kept."""
    config = tiny(train={"average": 0.9, "steps": 3, "evaluate_every": 3})
    objective = stage("autoencoder", tmp_path, config)
    state = result(objective, tmp_path / "a", run(objective, config.train_autoencoder, tmp_path / "a"))
    for level in (0, 1):
        name = f"levels.{level}.quantizer.embeddings"
        assert torch.equal(state[f"published.{name}"], state[f"model.{name}"])
    name = "decoder.0.weight"
    assert not torch.equal(state[f"published.{name}"], state[f"model.{name}"])


# --- the best ---


def test_the_best_weights_are_kept_not_the_last(tmp_path: Path) -> None:
    scores = {1: 3.0, 2: 1.0, 3: 0.5, 4: 0.5, 5: 2.0, 6: 0.7}
    objective = Toy(lambda w, step: w.sum(), scores)
    outcome = run(objective, toy_config(), tmp_path)
    assert (outcome.step, outcome.best_step, outcome.best_score) == (6, 3, 0.5)
    assert outcome.figures["heldout"] == 0.5
    assert torch.equal(objective.model["w"], objective.weights[3]), "of equals the first"
    assert not torch.equal(objective.model["w"], objective.weights[6])


def test_patience_stops_early(tmp_path: Path) -> None:
    """After two evaluations in a row without a better one; and a training that stopped so stays stopped."""
    scores = {2: 3.0, 4: 4.0, 6: 1.0, 8: 1.0, 10: 2.0, 12: 0.1}
    config = toy_config(steps=20, evaluate_every=2, patience=2)
    objective = Toy(lambda w, step: w.sum(), scores)
    outcome = run(objective, config, tmp_path)
    assert (outcome.step, outcome.best_step) == (10, 6)
    assert torch.equal(objective.model["w"], objective.weights[6])
    again = Toy(lambda w, step: w.sum(), {})
    outcome = run(again, config, tmp_path)
    assert (outcome.step, again.weights) == (10, {})
    assert torch.equal(again.model["w"], objective.weights[6])


def test_no_patience_goes_on(tmp_path: Path) -> None:
    assert run(Toy(lambda w, step: w.sum(), dict.fromkeys(range(1, 31), 1.0)), toy_config(steps=30), tmp_path).step == 30  # fmt: skip


# --- the record ---


@pytest.mark.parametrize("stop", [None, 1, 2, 4])
def test_a_line_is_the_mean_since_the_line_before(stop: int | None, tmp_path: Path) -> None:
    """Also across an interruption."""
    config = toy_config(steps=7, log_every=3, evaluate_every=100)

    def toy() -> Toy:
        return Toy(lambda w, step: (w * 0).sum() + step**2)

    if stop:
        objective = toy()
        signal_at(objective, {stop})
        with pytest.raises(Interrupted):
            run(objective, config, tmp_path)
    run(toy(), config, tmp_path)
    lines = [(line["step"], line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]  # fmt: skip
    assert lines == [(3, pytest.approx((1 + 4 + 9) / 3)), (6, pytest.approx((16 + 25 + 36) / 3)), (7, 49.0)]


def test_metrics_end_before_a_torn_line(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert read_metrics(file) == []
    file.write_text('{"step": 1}\n{"step": 2, "x": 0.5}\n{"step": 3, "x"')
    assert read_metrics(file) == [{"step": 1}, {"step": 2, "x": 0.5}]


def test_seconds_add_up_over_the_sittings(tmp_path: Path) -> None:
    objective = Toy(lambda w, step: w.sum())
    signal_at(objective, {3})
    with pytest.raises(Interrupted):
        run(objective, toy_config(), tmp_path)
    before = load_tensors(tmp_path / "checkpoints" / "last.safetensors")[1]["outcome"]["seconds"]
    assert run(Toy(lambda w, step: w.sum()), toy_config(), tmp_path).seconds > before > 0


# --- noise, precision, processes ---


def test_training_is_a_function_of_the_seed(tmp_path: Path) -> None:
    """Dropout draws from (seed, step); what was drawn before, and is drawn after, does not matter."""
    config = tiny(train={"steps": 2})
    weights = []
    for number, seed in enumerate([1, 1, 2, 2**63 - 1]):
        torch.manual_seed(number)
        before = torch.random.get_rng_state()
        objective = stage("prior", tmp_path, config)
        run(objective, config.train_prior[1], tmp_path / str(number), seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        weights.append(torch.cat([p.detach().flatten() for p in objective.model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_dropout_noise_differs_from_step_to_step(tmp_path: Path) -> None:
    drawn: list[float] = []

    def loss(w: Tensor, step: int) -> Tensor:
        drawn.append(float(torch.rand(())))
        return w.sum()

    run(Toy(loss), toy_config(steps=6), tmp_path)
    assert len(set(drawn)) == 6


def test_bfloat16_trunk_and_float32_quantiser(tmp_path: Path) -> None:
    config = tiny(train={"steps": 4})
    objective = AutoencoderObjective(config, image_set(tmp_path, config))
    types: dict[str, set[torch.dtype]] = {"trunk": set(), "codes": set(), "loss": set()}

    def note(name: str, of: Callable[[Any], Tensor]) -> Callable[[Any, Any, Any], None]:
        return lambda module, args, out: types[name].add(of(out).dtype) if module.training else None

    objective.model.decoder[0].register_forward_hook(note("trunk", lambda out: out))
    for quantizer in objective.model.quantizers:
        quantizer.register_forward_hook(note("loss", lambda out: out.loss))
        quantizer.register_forward_hook(lambda module, args, out: types["codes"].add(module.embeddings.dtype))
    run(objective, config.train_autoencoder, tmp_path / "run", precision="bf16")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert types == {"trunk": {torch.bfloat16}, "codes": {torch.float32}, "loss": {torch.float32}}
    assert {value.dtype for value in objective.model.state_dict().values()} == {torch.float32, torch.int64}
    assert all(isinstance(q, VectorQuantizer) and q.ema_sum.isfinite().all() for q in objective.model.quantizers)  # fmt: skip


def test_precision_may_change_between_two_sittings(tmp_path: Path) -> None:
    """And between two trainings of one process."""
    config = tiny()
    objective = stage("prior", tmp_path, config)
    signal_at(objective, {2})
    with pytest.raises(Interrupted):
        run(objective, config.train_prior[1], tmp_path / "run", precision="bf16")
    outcome = run(stage("prior", tmp_path, config), config.train_prior[1], tmp_path / "run")
    assert outcome.step == 6
    assert math.isfinite(outcome.best_score)


def test_a_precision_that_the_device_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise ValueError("bf16 mixed precision requires a supported device")

    with monkeypatch.context() as patch:
        patch.setattr(device, "Accelerator", refuse)
        with pytest.raises(TrainingError, match=r"precision 'bf16': .*device"):
            make_accelerator("bf16")
    assert make_accelerator().mixed_precision == "no"


def test_nothing_is_held_after_a_training(tmp_path: Path) -> None:
    """The next stage does not carry the last one's model and optimiser along."""
    accelerator = make_accelerator()
    loop.fit(Toy(lambda w, step: w.sum()), toy_config(), tmp_path, accelerator, Reporter(quiet=True), 0)
    assert accelerator._models == []
    assert accelerator._optimizers == []


def test_the_state_file_is_plain_json_and_tensors(tmp_path: Path) -> None:
    """What is asked of it elsewhere: outcome and settings, readable without this package."""
    run(Toy(lambda w, step: w.sum()), toy_config(), tmp_path)
    with safetensors.safe_open(tmp_path / "checkpoints" / "last.safetensors", framework="pt") as file:
        meta = json.loads(json.loads(file.metadata()["vqvae2"])["metadata"])
        names = set(file.keys())
    assert meta["outcome"]["step"] == 6
    assert meta["config"]["steps"] == 6
    assert {"model.w", "best.w", "optimizer.0.exp_avg"} <= names


# --- a limit in time ---


def test_a_training_ends_when_its_minutes_are_spent(tmp_path: Path) -> None:
    """Evaluated and saved as at the last step; and a second call does nothing more."""
    config = toy_config(steps=50, evaluate_every=40, minutes=1e-9)
    outcome = run(Toy(lambda w, step: w.square().sum()), config, tmp_path)
    assert (outcome.step, outcome.best_step) == (1, 1)
    again = run(Toy(lambda w, step: w.square().sum()), config, tmp_path)
    assert again.step == 1


def test_the_time_limit_is_by_the_clock_that_is_given(tmp_path: Path) -> None:
    clock = iter(range(0, 10_000, 10))  # every look at the clock is ten seconds later
    toy = Toy(lambda w, step: w.square().sum())
    outcome = run(toy, toy_config(steps=90, minutes=1), tmp_path, clock=lambda: next(clock))
    assert outcome.seconds >= 60
    assert outcome.step < 8


def test_the_schedule_ends_with_the_steps_or_the_time() -> None:
    config = TrainConfig(steps=100, warmup=0, lr=1.0, minutes=2)
    assert learning_rate(config, 50, 0) == pytest.approx(0.51)
    assert learning_rate(config, 50, 60) == pytest.approx(0.51)
    assert learning_rate(config, 10, 60) == pytest.approx(0.51)
    assert learning_rate(config, 10, 120) == pytest.approx(0.02)
    assert learning_rate(config, 10, 500) == pytest.approx(0.02)
    assert learning_rate(TrainConfig(steps=100, warmup=0, lr=1.0), 50, 1e9) == pytest.approx(0.51)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_step_is_not_lost(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It arrived while memory was freed, when the loop no longer looks: the next stages were trained as if nothing had happened."""
    arrived: list[int] = []
    old = {n: signal.signal(n, lambda n, _: arrived.append(n)) for n in (signal.SIGINT, signal.SIGTERM)}
    accelerator = make_accelerator()
    monkeypatch.setattr(accelerator, "free_memory", lambda: signal.raise_signal(number))
    try:
        loop.fit(Toy(lambda w, step: w.sum()), toy_config(), tmp_path, accelerator, Reporter(quiet=True), 0)
        assert arrived == [number]
    finally:
        for n, handler in old.items():
            signal.signal(n, handler)
