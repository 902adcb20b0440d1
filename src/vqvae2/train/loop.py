"""The one training loop, for both stages: step, log, evaluate, keep the best, save, resume.

Data and dropout noise are pure functions of (seed, step), and so is the learning rate unless `minutes` is set. On a CPU a
run that was interrupted and resumed therefore ends with the same weights, bit for bit; on a GPU only with `deterministic`. Between two lines of metrics the host waits for nothing: the
next batch is made and copied while the device works, and sums of the figures stay on the device.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from vqvae2.config.hardware import Hardware
from vqvae2.config.training import TrainConfig
from vqvae2.files.atomic import FileError
from vqvae2.files.progress import Reporter, Tracker
from vqvae2.files.run_folder import StageFolder
from vqvae2.files.seen import await_seen, check_same
from vqvae2.processes import joined
from vqvae2.stopping import StopRequest, stop_requests
from vqvae2.train.device import (
    Choices,
    TrainingError,
    choose,
    step_seed,
    switches,
)
from vqvae2.train.feed import Feed
from vqvae2.train.judging import HeldOut
from vqvae2.train.objective import Objective
from vqvae2.train.place import Place
from vqvae2.train.prepare import prepared
from vqvae2.train.sharded_state import ShardedState, holds_shards, load_sharded
from vqvae2.train.state import Outcome, State, cut_metrics, going_back, previous_of, saved
from vqvae2.train.step import TrainingStep, learning_rate
from vqvae2.train.watchdog import Watchdog

_AGREE = 5.0  # seconds, about, after which the processes agree again on whether one was asked to stop


class _Stopped(Exception):
    """An evaluation was given up, on every process, because the training is to stop."""


class Interrupted(Exception):
    """The user asked to stop; the state is saved and the same command goes on from there.

    Attributes:
        number: of the signal.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


def fit(
    objective: Objective,
    config: TrainConfig,
    folder: Path,
    accelerator: Accelerator,
    reporter: Reporter,
    seed: int,
    hardware: Hardware | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Train until the steps are done or the held-out score stops improving.

    The best weights by held-out score are in `objective.model` afterwards. The state is saved in
    `folder`/checkpoints at every evaluation, every `save_minutes` and on interruption; a state found there is resumed.

    Args:
        objective: the stage.
        config: steps, batch, learning rate and the other training settings of this stage.
        folder: of the stage: metrics.jsonl, pictures/ and checkpoints/.
        accelerator: of `make_accelerator`, which decided the precision.
        reporter: prints messages and progress.
        seed: of dropout and of whatever else the loss draws.
        hardware: how the machine is used (a `Config` says it too); None = the defaults.
        clock: returns the time in seconds, for `minutes`.

    Raises:
        Interrupted: SIGINT (Ctrl-C), SIGTERM or SIGHUP was caught and the state saved.
        TrainingError: the loss or a weight is not finite; the last good state is kept. Or `folder` was removed meanwhile.
    """
    if config.batch % accelerator.num_processes:
        raise TrainingError(
            f"{objective.name}: a batch of {config.batch} cannot be shared out evenly to "
            f"{accelerator.num_processes} processes"
        )
    device = accelerator.device
    hardware = hardware or Hardware()
    choices = choose(hardware, config, accelerator)
    if hardware.shard and accelerator.num_processes > 1 and objective.name.startswith("prior"):
        choices = replace(choices, sharded=True, fused=False)
    cards = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards), stop_requests(reporter.say) as stop, switches(choices):
        try:
            trainer = _Trainer(objective, config, folder, accelerator, reporter, choices)
            outcome = trainer.run(seed, stop, clock)
            del trainer
            return outcome
        finally:
            accelerator.free_memory()


class _Trainer:
    """One training: its step, its state on the disk, and what is due between steps."""

    def __init__(
        self,
        objective: Objective,
        config: TrainConfig,
        folder: Path,
        accelerator: Accelerator,
        reporter: Reporter,
        choices: Choices,
    ) -> None:
        self.objective, self.config, self.folder = objective, config, folder
        self.judged: HeldOut = getattr(objective, "judged", HeldOut(np.zeros(0, np.int64), config))
        self.accelerator, self.reporter, self.choices = accelerator, reporter, choices
        self.main = accelerator.is_main_process
        self.network, model, optimizer = prepared(objective.model, config, accelerator, choices)
        self.step = TrainingStep(objective, model, self.network, optimizer, config, choices)
        self.state = State(self.step, objective.counts())
        self.watch = Watchdog(objective.name)
        self.place = Place(folder, objective.name, reporter.say) if self.main else None
        if choices.sharded:
            self.state = ShardedState(self.step, objective.counts(), accelerator=accelerator)
        self.state_file = StageFolder(folder).checkpoint
        self.metrics_file = StageFolder(folder).metrics
        if joined().agreed(self.state_file.exists()):
            await_seen([self.state_file])
            if not choices.sharded and holds_shards(self.state_file):
                load_sharded(self.state, self.state_file, self.main, accelerator)
            else:
                self.state.load(self.state_file, self.main)
            check_same(f"the state of step {self.outcome.step:,}", self.state_file)
        if self.main:
            cut_metrics(self.metrics_file, self.outcome.step, self.state.due)
        self.pending: list[tuple[int, dict[str, Any]]] = []  # figures that are not yet written
        self.spent = 0.0  # seconds that all processes agree on
        self.saved: float | None = None  # what they were when the state was saved
        self.seconds = 0.0  # as `spent`, where they are limited
        self.agreed: tuple[int, float] | None = None  # the step and the seconds of the last agreement
        self.agreeing = 0  # the step at which they agree next, if nothing is due before
        self.asked = 0  # the signal that asks to stop, as all processes agree; 0 = none
        self.said_refused = False

    @property
    def outcome(self) -> Outcome:
        """How far the training has come."""
        return self.state.outcome

    def run(self, seed: int, stop: StopRequest, clock: Callable[[], float]) -> Outcome:
        """Steps until done; see `fit`."""
        config, outcome = self.config, self.outcome
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        began, before = clock(), outcome.seconds
        self._agree(stop)
        resident = self.objective.keep_on(self.choices.device, self.choices.resident_bytes)
        if self.choices.device.type == "cuda":
            self.reporter.say(f"{self.objective.name}: {self.choices.line(resident)}")
        if outcome.step:
            self.reporter.say(
                f"{self.objective.name}: going on from step {outcome.step:,} of {config.steps:,}"
                + "; the next evaluation decides anew which weights are best"
                * (outcome.best_step > 0 and outcome.best_score == np.inf)
            )
        batches = self.objective.batches(outcome.step, rank, world)
        feed = Feed(batches, self.choices.device, self.choices.pinned)
        with (
            feed,
            self.watch,
            self.reporter.track(self.objective.name, config.steps, outcome.step, earlier=before) as tracker,
        ):
            if self.state.due:
                self._evaluate(stop)
            while not (self.state.due or self._over()):
                rate = learning_rate(config, outcome.step, self.seconds)
                self.watch.at(outcome.step, "waiting for a batch")
                batch = next(feed)
                self.watch.at(outcome.step, "in a step or waiting for another process")
                self.step(batch, outcome.step, rate, step_seed(seed, outcome.step))
                feed.fetch_ahead()
                outcome.step += 1
                outcome.seconds = before + clock() - began
                tracker.tick(outcome.step, config.batch, "images")
                figures = self.objective.after_step(outcome.step, self.accelerator)
                if figures:
                    self.pending.append((outcome.step, figures))
                due = outcome.step == config.steps or not outcome.step % config.evaluate_every
                due_line = due or not outcome.step % config.log_every
                if world == 1 or due_line or outcome.step >= self.agreeing:
                    self._agree(stop)
                self.state.due = due or self._out_of_time()
                self._do_what_is_due(due_line, rate, tracker, stop)
                if self.asked:
                    break
        self._agree(stop)  # a stop requested during the last evaluation must end the run here too
        self._end_if_asked()
        if outcome.step < config.steps:
            cause = f"its {config.minutes:g} minutes are over" if self._out_of_time() else ""
            cause = cause or f"{config.patience} evaluations in a row brought no better result"
            self.reporter.say(
                f"{self.objective.name}: ended at step {outcome.step:,} of {config.steps:,}, because {cause}"
            )
        self.state.put_best()
        if config.evaluate_on:
            outcome.figures = self._figures(self.network.eval(), stop, whole=True) or {}
            self._end_if_asked()
        return outcome

    def _end_if_asked(self) -> None:
        if self.asked:
            done = f"{self.objective.name}: saved at step {self.outcome.step} of {self.config.steps}"
            raise Interrupted(done, self.asked)

    def _over(self) -> bool:
        return self.outcome.step >= self.config.steps or self._out_of_patience() or self._out_of_time()

    def _out_of_patience(self) -> bool:
        return bool(self.config.patience) and self.outcome.stale >= self.config.patience

    def _out_of_time(self) -> bool:
        return bool(self.config.minutes) and self.seconds >= 60 * self.config.minutes

    def _do_what_is_due(self, line: bool, rate: float, tracker: Tracker, stop: StopRequest) -> None:
        """After a step: a line of metrics, an evaluation and a saved state, where they are due."""
        every = 60 * self.config.save_minutes
        late = every > 0 and self.saved is not None and self.spent - self.saved >= every
        # an evaluation ends with a save: one before it too would leave no state of an earlier step to go back to
        save = self.asked or (late and not self.state.due)
        if self.state.due or line or save:
            self._check()
            self._flush()
        if self.state.due or line:
            self._report(rate, tracker)
        if save or self.state.due:
            self.watch.rest()
        if save:
            self._save()
        if self.state.due and not self.asked:
            self._evaluate(stop)

    def _agree(self, stop: StopRequest) -> None:
        """Agree on the time spent, as the main process has it, on whether any process was asked to stop, and on the step after which to
        agree next; a collective."""
        step, seconds = self.outcome.step, self.outcome.seconds
        self.asked = self._asked(stop)
        if self.accelerator.num_processes > 1:
            seconds = float(broadcast(torch.tensor(seconds, device=self.choices.device)))
            before, then = self.agreed or (step, seconds - _AGREE)
            pace = (seconds - then) / max(1, step - before)
            self.agreed, self.agreeing = (step, seconds), step + max(1, int(_AGREE / max(pace, 1e-6)))
        self.spent = seconds
        self.saved = seconds if self.saved is None else self.saved
        self.seconds = seconds if self.config.minutes else 0.0

    def _asked(self, stop: StopRequest) -> int:
        """The signal that asked any process to stop; a collective."""
        if self.accelerator.num_processes == 1:
            return stop.number
        asked = torch.tensor([stop.number], device=self.choices.device)
        return int(self.accelerator.gather(asked).max())

    def _check(self) -> None:
        """End here if a loss was not finite on any process, or the weights are not; a collective."""
        bad = self.step.not_finite_at(self.accelerator)
        what = "the weights are" if bad is None else "the loss is"
        finite = self.step.finite()
        if self.choices.sharded:
            flags = self.accelerator.gather(torch.tensor(float(finite), device=self.choices.device))
            finite = bool(flags.min() > 0)
        if not finite:
            bad = self.outcome.step if bad is None else min(bad, self.outcome.step)
        if bad is None:
            return
        kept, further = "nothing was saved yet", ""
        if self.state_file.exists():
            step = saved(self.state_file).outcome.step
            kept, further = f"the state of step {step} is kept", _further_back(self.state_file, step)
        raise TrainingError(
            f"{self.objective.name}: {what} not finite at step {bad} "
            f"(learning rate {learning_rate(self.config, bad - 1, self.seconds):.2e}); {kept}; "
            f"try a smaller learning rate or more warm-up, with which the same run goes on{further}"
        )

    def _report(self, rate: float, tracker: Tracker) -> None:
        """One line of metrics: means over the processes and over the steps since the last one; a collective."""
        outcome, step = self.outcome, self.step
        means = step.means(self.accelerator)
        self._write(outcome.step, {**means, "lr": rate})
        # without a score the best one is a number below 0 that says nothing to the user
        measured = outcome.best_step and 0 <= outcome.best_score < np.inf
        best = f", best {outcome.best_score:.4f}" if measured else ""
        tracker.update(outcome.step, f"loss {means['loss']:.4f}{best}", self.config.batch, "images")
        if step.refused and not self.said_refused:
            self.said_refused = True
            self.reporter.say(
                f"{self.objective.name}: the step could not be captured and runs eagerly: {step.refused}"
            )

    def _flush(self) -> None:
        """Write what `after_step` gave since the last line."""
        for step, figures in self.pending:
            plain = {
                key: float(value) if isinstance(value, Tensor) else value for key, value in figures.items()
            }
            self._write(step, plain)
        self.pending = []

    def _write(self, step: int, values: dict[str, Any]) -> None:
        if values and self.place:
            self.place.write(step, values)

    def _evaluate(self, stop: StopRequest) -> None:
        """Evaluate, then save. If a process is asked to stop meanwhile, it is as if this had not begun, and the next sitting begins with it."""
        average = self.step.average
        with nullcontext(self.network) if average is None else average.applied() as model:
            model.eval()
            figures = self._figures(model, stop)
            if figures is not None:
                self.state.due = False
                self._judge(model, figures)
            model.train()
        self._save()
        self.saved = None  # the time of the evaluation is not known to all processes yet

    def _figures(self, model: nn.Module, stop: StopRequest, whole: bool = False) -> dict[str, Any] | None:
        """The held-out figures, with `whole` of all held-out images; None if a process was asked to stop meanwhile. A collective."""

        def poll() -> None:
            self.asked = self._asked(stop)
            if self.asked:
                raise _Stopped

        try:
            with self.judged.asking(poll, whole), self.choices.exactly():
                return self.objective.evaluate(model, self.accelerator)
        except _Stopped:
            return None

    def _judge(self, model: nn.Module, figures: dict[str, Any]) -> None:
        """Write the held-out figures, and keep the weights if they are the best so far."""
        outcome = self.outcome
        score = float(figures.get("score", -outcome.step))
        self._write(outcome.step, {key: value for key, value in figures.items() if key != "score"})
        if score < outcome.best_score or "score" not in figures:
            outcome.best_score, outcome.best_step = score, outcome.step
            outcome.stale, outcome.figures = 0, figures
            self.state.keep_best(model, self.main)
        else:
            outcome.stale += 1
        if (
            self.place and not self.choices.sharded
        ):  # one process alone cannot compute with a part of the weights
            with self.place.going_on():
                self.objective.draw(model, StageFolder(self.folder).pictures / f"step-{outcome.step:07d}.png")

    def _save(self) -> None:
        """The main process writes; nobody goes on, or ends, before it is done."""
        sums = self.accelerator.reduce(self.step.sums, "mean")
        counts = [self.accelerator.reduce(count, "sum") for count in self.objective.counts()]
        if self.place:
            self.place.check()
        if self.main or self.choices.sharded:
            self.state.save(self.state_file, sums, counts, self.config.model_dump())
        self.saved = self.spent
        joined().wait()


def _further_back(file: Path, step: int) -> str:
    """How to go on from the state before the one of `step` in a file, which may already carry what diverges; "" without one."""
    before = previous_of(file)
    with suppress(FileError):
        if before.exists() and (earlier := saved(before).outcome.step) < step:
            return f"; if it diverges again, go back further, to step {earlier}: {going_back(file)}"
    return ""
