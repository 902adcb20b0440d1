"""The one training loop, for both stages: step, log, evaluate, keep the best, save, resume.

Data, learning rate and dropout noise are pure functions of (seed, step), so a run that was interrupted and
resumed ends with the same weights as one that was not.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, broadcast
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vqvae2.config.models import TrainConfig
from vqvae2.errors import UserError
from vqvae2.files import atomic, tensor_file
from vqvae2.files.progress import Reporter

Batch = Any


class TrainingError(UserError):
    """Training cannot go on; the last good state is kept."""


class Interrupted(Exception):
    """The user asked to stop; the state is saved and the same command goes on from there."""


class Objective(Protocol):
    """One stage: what is trained, on what, and how it is judged."""

    name: str

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    def batches(self, start: int, rank: int, world: int) -> Iterator[Batch]:
        """Endless batches from step `start` on; this process's share of the global batch."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise and what to log (scalars)."""

    def after_step(self, step: int, accelerator: Accelerator) -> dict[str, Any]:
        """Figures that are due after `step` steps (epoch statistics); often none. Called on every process."""

    def counts(self) -> list[Tensor]:
        """What `after_step` counts meanwhile, this process's part of it; saved, and written to on resuming."""

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, Any]:
        """Held-out figures. Called on every process; `score` is what is minimised."""

    def draw(self, model: nn.Module, path: Path) -> None:
        """A picture of how it goes; main process only, so no collectives."""


@dataclass
class Outcome:
    """How a training ended.

    Attributes:
        step: steps done.
        best_step: the step whose weights are kept.
        figures: the held-out figures of the kept weights.
        seconds: time spent, over all sittings.
    """

    step: int = 0
    best_step: int = 0
    best_score: float = math.inf
    stale: int = 0
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


def make_accelerator(precision: str = "no", compiled: bool = False) -> Accelerator:
    """Devices, precision and processes.

    Raises:
        TrainingError: the device cannot compute in this precision.
    """
    AcceleratorState._reset_state()  # else a second training in this process must have the first one's precision
    long = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # the others wait while one process decodes
    backend = "inductor" if compiled else None
    try:
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # unasked, accelerate makes no group of CPU processes
            mixed_precision=precision,
            dynamo_backend=backend,
            kwargs_handlers=[long],
        )
    except ValueError as error:
        raise TrainingError(f"cannot train in precision {precision!r}: {error}") from error
    if precision == "fp16" and accelerator.device.type == "cpu":  # which accelerate would take for "no"
        raise TrainingError("cannot train in precision 'fp16' on a CPU: use bf16, or no")
    return accelerator


def learning_rate(config: TrainConfig, step: int, seconds: float = 0.0) -> float:
    """Linear warm-up, then constant, or a cosine that ends at 1/50 of the peak with the steps or the time."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    if config.minutes:
        share = max(share, seconds / (60 * config.minutes))
    return config.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def fit(
    objective: Objective,
    config: TrainConfig,
    folder: Path,
    accelerator: Accelerator,
    reporter: Reporter,
    seed: int,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Train until the steps are done or the held-out score stops improving.

    The best weights by held-out score are in `objective.model` afterwards. The state is saved in
    `folder`/checkpoints at every evaluation and on interruption; a state found there is resumed.

    Args:
        clock: seconds that count for `minutes`.

    Raises:
        Interrupted: Ctrl-C (or SIGTERM) was caught and the state saved.
        TrainingError: the loss or a weight is not finite; the last good state is kept.
    """
    if config.batch % accelerator.num_processes:
        raise TrainingError(
            f"{objective.name}: a batch of {config.batch} cannot be shared out evenly to "
            f"{accelerator.num_processes} processes"
        )
    with torch.random.fork_rng(devices=[], enabled=True), _signals() as stop:
        try:
            return _Trainer(objective, config, folder, accelerator, reporter, seed, stop).run(clock)
        finally:
            accelerator.free_memory()


class _Trainer:
    """The loop's state: model, averaged weights, optimiser, best weights, outcome, means to be logged."""

    def __init__(
        self,
        objective: Objective,
        config: TrainConfig,
        folder: Path,
        accelerator: Accelerator,
        reporter: Reporter,
        seed: int,
        stop: threading.Event,
    ) -> None:
        self.objective, self.config, self.folder = objective, config, folder
        self.accelerator, self.reporter, self.seed, self.stop = accelerator, reporter, seed, stop
        self.raw = objective.model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups = getattr(
            objective.model, "parameter_groups", None
        )  # a model may have its own; `scale` times the rate
        parameters = groups() if groups else [p for p in self.raw.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
        self.average = None
        if config.average:
            self.average = AveragedModel(self.raw, multi_avg_fn=get_ema_multi_avg_fn(config.average))
        self.outcome = Outcome()
        self.best: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}  # of what was logged in the `summed` steps since the last line
        self.summed = 0
        self.bad = torch.full((), math.inf, device=accelerator.device)  # the first step that was not finite
        self.state_file = folder / "checkpoints" / "last.safetensors"
        self.metrics_file = folder / "metrics.jsonl"
        self._load()
        self.seconds = self._agreed_seconds()
        # Buffers are not broadcast: the quantizer keeps its own in step, and counts each process's own.
        buffers = [name for name, _ in self.raw.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.raw, buffers)
        self.model, self.prepared = accelerator.prepare(self.raw, self.optimizer)

    def run(self, clock: Callable[[], float]) -> Outcome:
        """Steps until done; see `fit`."""
        config, outcome = self.config, self.outcome
        begun, before = clock(), outcome.seconds
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        batches = self.objective.batches(outcome.step, rank, world)
        with self.reporter.track(self.objective.name, config.steps, outcome.step) as tracker:
            while outcome.step < config.steps and not self._tired() and not self._late():
                rate = learning_rate(config, outcome.step, self.seconds)
                logs = self._step(next(batches), rate)
                outcome.step += 1
                outcome.seconds = before + clock() - begun
                self.seconds = self._agreed_seconds()
                self._sum(logs)
                self._log(self.objective.after_step(outcome.step, self.accelerator))
                stopping = self._stopping()
                last = outcome.step == config.steps or self._late()
                evaluate = last or outcome.step % config.evaluate_every == 0
                log = evaluate or outcome.step % config.log_every == 0
                if log or stopping:
                    self._check()
                if log:
                    means = self._means()
                    self._log({**means, "lr": rate})
                    best = f", best {outcome.best_score:.4f}" if outcome.best_step else ""
                    tracker.update(outcome.step, f"loss {means['loss']:.4f}{best}", config.batch, "images")
                if evaluate:
                    self._evaluate()
                    self._save()
                if stopping:
                    if not evaluate:
                        self._save()
                    break
        if self._stopping():  # also when asked in the last evaluation: the stages after this one wait too
            raise Interrupted(f"{self.objective.name}: saved at step {outcome.step} of {config.steps}")
        if self.best:
            self.raw.load_state_dict(self.best)
        return outcome

    def _step(self, batch: Batch, rate: float) -> dict[str, Tensor]:
        step = self.outcome.step
        torch.manual_seed(((self.seed * 1_000_003 + step) * 64 + self.accelerator.process_index) % 2**63)
        for group in self.prepared.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        self.model.train()
        parts = _parts(batch, self.config.accumulate)
        logs: dict[str, Tensor] = {}
        for index, (share, part) in enumerate(parts):
            last = index == len(parts) - 1
            with _no_sync_if(not last, self.accelerator, self.model), self.accelerator.autocast():
                loss, extra = self.objective.loss(self.model, part)
                self.accelerator.backward(loss * share)
            for key, value in {"loss": loss, **extra}.items():
                logs[key] = logs.get(key, torch.zeros_like(value)).detach() + value.detach().float() * share
        if self.config.clip:
            logs["gradient_norm"] = self.accelerator.clip_grad_norm_(
                self.raw.parameters(), self.config.clip
            ).detach()
        self.prepared.step()
        self.prepared.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.raw)
        return logs

    def _sum(self, logs: dict[str, Tensor]) -> None:
        self.bad = torch.where(
            logs["loss"].isfinite(), self.bad, torch.clamp(self.bad, max=self.outcome.step)
        )
        for key, value in logs.items():
            self.sums[key] = self.sums.get(key, torch.zeros_like(value)) + value
        self.summed += 1

    def _means(self) -> dict[str, float]:
        """Means over the processes and over the steps since the last call; a collective."""
        sums: dict[str, Tensor] = self.accelerator.reduce(self.sums, "mean")
        means = {key: float(value) / self.summed for key, value in sums.items()}
        self.sums, self.summed = {}, 0
        return means

    def _evaluate(self) -> None:
        outcome = self.outcome
        model = self.raw if self.average is None else self.average.module
        model.eval()
        figures = self.objective.evaluate(model, self.accelerator)
        score = float(figures["score"])
        self._log({key: value for key, value in figures.items() if key != "score"})
        if score < outcome.best_score:
            outcome.best_score, outcome.best_step, outcome.stale, outcome.figures = (
                score,
                outcome.step,
                0,
                figures,
            )
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        else:
            outcome.stale += 1
        if self.accelerator.is_main_process:
            self.objective.draw(model, self.folder / "pictures" / f"step-{outcome.step:07d}.png")
        model.train()

    def _tired(self) -> bool:
        return bool(self.config.patience) and self.outcome.stale >= self.config.patience

    def _late(self) -> bool:
        return bool(self.config.minutes) and self.seconds >= 60 * self.config.minutes

    def _agreed_seconds(self) -> float:
        """The time spent, as the main process has it; 0 where there is no limit. A collective."""
        if not self.config.minutes:
            return 0.0
        if self.accelerator.num_processes == 1:
            return self.outcome.seconds
        spent = torch.tensor(self.outcome.seconds, device=self.accelerator.device)
        return float(broadcast(spent))

    def _stopping(self) -> bool:
        """Whether any process was asked to stop; a collective, so every process calls it at the same step."""
        if self.accelerator.num_processes == 1:
            return self.stop.is_set()
        flag = torch.tensor(float(self.stop.is_set()), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def _check(self) -> None:
        """End here if a loss was not finite on any process, or the weights are not; a collective."""
        bad = float(self.accelerator.gather(self.bad).min())
        what = "the loss is" if math.isfinite(bad) else "the weights are"
        if not all(bool(tensor.isfinite().all()) for tensor in self.raw.state_dict().values()):
            bad = min(bad, self.outcome.step)
        if math.isfinite(bad):
            step = int(bad)
            kept = (
                f"the state of step {self._saved_step()} is kept"
                if self.state_file.exists()
                else "nothing was saved yet"
            )
            raise TrainingError(
                f"{self.objective.name}: {what} not finite at step {step} "
                f"(learning rate {learning_rate(self.config, step - 1, self.seconds):.2e}); {kept}; "
                f"try a smaller learning rate or more warm-up, in a new run"
            )

    def _log(self, values: dict[str, Any]) -> None:
        if values and self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.outcome.step, **values}) + "\n")

    def _save(self) -> None:
        """The main process writes; nobody goes on, or ends, before it is done."""
        sums = self.accelerator.reduce(self.sums, "mean")
        counts = [self.accelerator.reduce(count, "sum") for count in self.objective.counts()]
        if self.accelerator.is_main_process:
            self._write(sums, counts)
        self.accelerator.wait_for_everyone()

    def _write(self, sums: dict[str, Tensor], counts: list[Tensor]) -> None:
        optimizer, groups = tensor_file.pack_optimizer(self.optimizer)
        tensors = {f"model.{k}": v for k, v in self.raw.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer.items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        tensors |= {f"sums.{k}": v for k, v in sums.items()}
        tensors |= {f"counts.{k}": v for k, v in enumerate(counts)}
        meta = {
            "outcome": vars(self.outcome),
            "summed": self.summed,
            "groups": groups,
            "config": self.config.model_dump(),
        }
        if self.accelerator.scaler is not None:  # fp16
            meta["scaler"] = self.accelerator.scaler.state_dict()
        tensor_file.save_tensors(self.state_file, tensors, meta)

    def _load(self) -> None:
        if not self.state_file.exists():
            if self.accelerator.is_main_process:
                self.metrics_file.unlink(missing_ok=True)
            return
        tensors, meta = tensor_file.load_tensors(self.state_file)
        self.outcome = Outcome(**meta["outcome"])

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        tensor_file.load_weights(self.raw, part("model."), self.state_file)
        tensor_file.unpack_optimizer(self.optimizer, part("optimizer."), meta["groups"])
        if self.average is not None:
            tensor_file.load_weights(self.average, part("average."), self.state_file)
        self.best = part("best.")
        self.sums = {k: v.to(self.accelerator.device) for k, v in part("sums.").items()}
        self.summed = int(meta.get("summed", 0))
        if self.accelerator.is_main_process:  # they are of all processes together
            for index, count in part("counts.").items():
                self.objective.counts()[int(index)].copy_(count)
        if self.accelerator.scaler is not None and meta.get("scaler"):
            self.accelerator.scaler.load_state_dict(meta["scaler"])
        self._cut_metrics()

    def _saved_step(self) -> int:
        return int(tensor_file.load_tensors(self.state_file)[1]["outcome"]["step"])

    def _cut_metrics(self) -> None:
        """Drop lines past the resumed step, which a killed process may have written."""
        if self.metrics_file.exists() and self.accelerator.is_main_process:
            lines = read_metrics(self.metrics_file)
            kept = [json.dumps(line) for line in lines if line["step"] <= self.outcome.step]
            atomic.write_text(self.metrics_file, "".join(line + "\n" for line in kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that was cut short is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


@contextmanager
def _no_sync_if(condition: bool, accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Skip the gradient all-reduce while `condition` holds (all but the last part of a batch)."""
    if condition:
        with accelerator.no_sync(model):
            yield
    else:
        yield


def _parts(batch: Batch, count: int) -> list[tuple[float, Batch]]:
    """Cut a tuple of tensors (or of tuples of tensors) into `count` parts along the batch, each with its share."""
    if count == 1:
        return [(1.0, batch)]
    first = batch[0] if isinstance(batch[0], Tensor) else batch[0][0]
    count = min(count, len(first))
    chunks = [
        item.tensor_split(count)
        if isinstance(item, Tensor)
        else list(zip(*(t.tensor_split(count) for t in item), strict=True))
        for item in batch
    ]
    shares = [len(part) / len(first) for part in first.tensor_split(count)]
    return list(zip(shares, zip(*chunks, strict=True), strict=True))


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """The first SIGINT or SIGTERM sets the event, the second acts as usual. Only a main thread can listen."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(number, old[signal.Signals(number)] or signal.SIG_DFL)

    for number in old:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in old.items():
            signal.signal(number, handler or signal.SIG_DFL)
