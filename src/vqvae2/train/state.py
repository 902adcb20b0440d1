"""What a training leaves on the disk: the state from which it resumes, and the lines of its metrics."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate.utils import broadcast
from pydantic import Field
from torch import Tensor, nn

from vqvae2.files import atomic, tensor_file
from vqvae2.files.records import Record
from vqvae2.files.run_folder import StageFolder
from vqvae2.files.temporary import temporary_name
from vqvae2.files.tensor_file import below
from vqvae2.processes import joined
from vqvae2.train.step import TrainingStep, WeightAverage

_LINE = 2**20  # bytes of a line of metrics, at most


class SavedOutcome(Record):
    """An `Outcome` in a file."""

    step: Annotated[int, Field(ge=0)]
    best_step: Annotated[int, Field(ge=0)]
    best_score: float
    stale: Annotated[int, Field(ge=0)]
    seconds: float
    figures: dict[str, int | float]


class Saved(Record):
    """The metadata of a checkpoint."""

    outcome: SavedOutcome
    config: dict[str, Any] = Field(default_factory=dict)  # of the training
    summed: Annotated[int, Field(ge=0)] = 0
    due: bool = False
    shards: str | None = None  # the folder beside it in which the processes have written their parts
    averaged: Annotated[int, Field(ge=0)] = 0  # weights in the average of such a state
    prepared: bool = False  # copied by `longer.prepare`, and not trained further yet
    autoencoder: str | None = (
        None  # digest of the autoencoder whose codes are learned, or whose decoder is sharpened
    )


@dataclass
class Outcome:
    """How a training ended.

    Attributes:
        step: steps done.
        best_step: the step whose weights are kept; 0 before the first evaluation.
        best_score: its held-out score; less is better.
        stale: evaluations since then.
        seconds: time spent, over all sittings.
        figures: the held-out figures of the kept weights.
    """

    step: int = 0
    best_step: int = 0
    best_score: float = math.inf
    stale: int = 0
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class State:
    """Everything that a resumed training goes on with.

    Attributes:
        step: weights, averaged weights, optimiser and the sums since the last line of metrics.
        counts: what the objective counts meanwhile, this process's part of it.
        outcome: how far the training has come.
        best: the best weights so far, in host memory, on the main process alone; {} before the first evaluation.
        due: whether these steps are still to be evaluated.
    """

    step: TrainingStep
    counts: list[Tensor]
    outcome: Outcome = field(default_factory=Outcome)
    best: dict[str, Tensor] = field(default_factory=dict)
    due: bool = False

    def save(
        self, file: Path, sums: Mapping[str, Tensor], counts: list[Tensor], settings: dict[str, Any]
    ) -> None:
        """Write the state.

        Args:
            file: where.
            sums, counts: those of all processes together.
            settings: of the training, for the record.
        """
        step = self.step
        tensors = {f"model.{k}": v for k, v in step.network.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {f"optimizer.{k}": v for k, v in tensor_file.pack_optimizer(step.optimizer).items()}
        if isinstance(step.average, WeightAverage):
            tensors |= {f"average.{k}": v for k, v in step.average.state_dict().items()}
        tensors |= {f"sums.{k}": v for k, v in sums.items()}
        tensors |= {f"counts.{k}": v for k, v in enumerate(counts)}
        keep_previous(file)
        remove_all_but(file)  # what several processes have saved
        tensor_file.save_tensors(file, tensors, self.about(settings))

    def about(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The metadata of a state, which `Saved` reads."""
        meta = {"outcome": vars(self.outcome), "summed": self.step.taken, "config": settings, "due": self.due}
        if (autoencoder := getattr(self.step.objective, "autoencoder", None)) is not None:
            meta["autoencoder"] = autoencoder
        return meta

    def snapshot(self, model: nn.Module) -> dict[str, Tensor]:
        """A copy of a model's weights and buffers, in host memory."""
        return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}

    def keep_best(self, model: nn.Module, main: bool) -> None:
        """Take a model's weights for the best ones; on a machine with eight cards, eight copies would be the largest thing in its memory."""
        self.best = self.snapshot(model) if main else {}

    def put_best(self) -> None:
        """Put the best weights into the network, if there are any; a collective."""
        group = joined()
        if not group.agreed(bool(self.best)):
            return
        if group.main:
            self.step.network.load_state_dict(self.best)
        if group.count > 1:
            for tensor in self.step.network.state_dict().values():
                whole = tensor.contiguous()
                tensor.copy_(broadcast(whole))

    def load(self, file: Path, main: bool) -> None:
        """Go on from a state that `save` wrote.

        Args:
            file: where it is.
            main: whether this is the main process, which takes the counts of all processes.

        Raises:
            FileError: damaged, of another model, or of a training on the codes of another autoencoder. The message says
                what to do.
        """
        with saying_what_to_do(file):
            self._check_shapes(tensor_file.read_header(file), file)
            tensors, meta = tensor_file.load_tensors(file)
            self._load(file, tensors, saved_record(meta, self.step, file), main)

    def _check_shapes(self, header: tensor_file.TensorHeader, file: Path) -> None:
        """Compare the shapes in the file with those of the networks, before tensors are read."""
        own = tensor_file.shapes_of(self.step.network.state_dict())
        for prefix in ("model.", "best.", "average.module."):
            found = below(header.shapes, prefix)
            if found or prefix == "model.":
                tensor_file.compare_shapes(own, found, file)

    def _load(self, file: Path, tensors: dict[str, Tensor], record: Saved, main: bool) -> None:
        step, part = self.step, partial(below, tensors)
        # what is kept is copied: a tensor of the file maps it into memory, so its place on the disk would not become free
        tensor_file.load_weights(step.network, part("model."), file)
        try:
            if moments := part("optimizer."):  # not kept where a training goes on from its weights alone
                self._load_optimizer(moments)
            if step.average is not None:
                average = part("average.") or {"n_averaged": torch.tensor(0), **part("model.")}
                step.average.count = int(average.pop("n_averaged"))
                weights = {name.removeprefix("module."): value for name, value in average.items()}
                tensor_file.load_weights(step.average.module, weights, file)
            step.sums = {k: v.to(step.bad.device, torch.float32, copy=True) for k, v in part("sums.").items()}
            if main:
                for index, count in part("counts.").items():
                    self.counts[int(index)].copy_(count)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            if isinstance(error, atomic.FileError):
                raise
            raise atomic.FileError(f"{file} is damaged: {atomic.reason(error)}") from error
        self.best = {name: value.clone() for name, value in part("best.").items()} if main else {}
        step.taken, self.due = record.summed, record.due
        self.outcome = gone_on_from(record, step)

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        """Take over the moments; the settings of the optimiser are those of this training, which may not have changed."""
        optimizer = self.step.optimizer
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        for name, value in tensors.items():
            weight = weights[int(name.partition(".")[0])]
            if value.ndim and value.shape != weight.shape:
                raise ValueError(f"the optimiser's {name} has the shape {list(value.shape)}")
            # the fused optimiser refuses moments that lie otherwise in memory than their weight
            like = weight if value.ndim else value
            tensors[name] = torch.empty_like(like, dtype=value.dtype, device="cpu").copy_(value)
        tensor_file.unpack_optimizer(optimizer, tensors)


@contextmanager
def saying_what_to_do(file: Path) -> Iterator[None]:
    """Add to every `FileError` of the block what to do about the state in this file."""
    try:
        yield
    except atomic.FileError as error:
        raise atomic.FileError(f"{error}; {_what_to_do(file, error)}") from error


def _what_to_do(file: Path, error: atomic.FileError) -> str:
    if isinstance(error.__cause__, OSError):
        return "when it can be read again, the same command goes on from it"
    anew = f"delete {file}, and the same command trains this stage again from step 0"
    if isinstance(error, atomic.OtherFileError):
        return anew
    before = previous_of(file)
    with suppress(OSError):
        if not before.samefile(file):  # they are one until the next state is written
            return f"the state before it is kept: {going_back(file)}, and the same command goes on from there"
    return f"no earlier state is kept: {anew}"


def going_back(file: Path) -> str:
    """The shell command that moves the state in this file aside and puts the one before it in its place."""
    moves = (file, f"{file}.bad"), (previous_of(file), file)
    return " && ".join(shlex.join(map(str, ("mv", *names))) for names in moves)


def previous_of(file: Path) -> Path:
    """Where the state before the one in this file is."""
    return StageFolder(file.parents[1]).previous


def keep_previous(file: Path) -> None:
    """Keep the state in a file, which is about to be replaced, under another name, where the file system knows hard links."""
    before = previous_of(file)
    link = temporary_name(before)
    with suppress(OSError):
        os.link(file, link)
        link.replace(before)  # which leaves both names if they are links to one file
        link.unlink(missing_ok=True)


def remove_all_but(file: Path, *folders: str) -> None:
    """Delete the folders of other states than the one in a file, but those of these names; none if it cannot be read."""
    with suppress(atomic.FileError):
        remove_other_states(file.parent, {saved(file).shards, *folders})


def remove_other_states(folder: Path, kept: Collection[str | None]) -> None:
    """Delete the folders of states under `folder` but those of these names."""
    for old in folder.glob("step-*"):
        if old.is_dir() and old.name not in kept:
            shutil.rmtree(old, ignore_errors=True)


def saved_record(metadata: dict[str, Any], step: TrainingStep, file: Path) -> Saved:
    """The metadata of a state, for a training that goes on from it.

    Raises:
        FileError: damaged, or of a training on the codes of another autoencoder.
    """
    record = Saved.of(metadata, file)
    if record.autoencoder not in (None, getattr(step.objective, "autoencoder", None)):
        raise atomic.OtherFileError(f"{file} belongs to a training with another autoencoder")
    return record


def gone_on_from(record: Saved, step: TrainingStep) -> Outcome:
    """How far a training is that goes on from a saved state.

    The scores of other held-out images do not compare with its best one, so where `evaluate_on` was changed the next evaluation
    decides anew, and the best weights are kept until then.
    """
    outcome, now = Outcome(**record.outcome.model_dump()), step.config.evaluate_on
    if record.config.get("evaluate_on", now) != now:
        outcome.best_score, outcome.stale = math.inf, 0
    return outcome


def saved(file: Path) -> Saved:
    """The metadata of the state in a file.

    Raises:
        FileError: damaged.
    """
    return Saved.of(tensor_file.read_header(file).metadata, file)


def write_metrics(path: Path, step: int, values: Mapping[str, Any]) -> None:
    """Append one line to a metrics.jsonl."""
    atomic.append_text(path, json.dumps({"step": step, **values}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, up to the first that is damaged or was cut short.

    Each line is an object whose `step` is an integer.
    """
    lines: list[dict[str, Any]] = []
    if not path.is_file():
        return lines
    with path.open("rb") as file:
        while text := file.readline(_LINE):
            if (line := parse_metrics(text, path)) is None:
                break
            lines.append(line)
    return lines


def parse_metrics(text: bytes, path: Path) -> dict[str, Any] | None:
    """One line of a metrics.jsonl, whose `step` is an integer; None if it is damaged."""
    try:
        line = atomic.parse_json(text.decode("utf-8"), path)
    except ValueError:  # no UTF-8, or no JSON
        return None
    return line if isinstance(line, dict) and type(line.get("step")) is int else None


def cut_metrics(path: Path, step: int, due: bool = False) -> None:
    """Drop the lines past `step`, which a killed process may have written; at step 0 there are none.

    Args:
        due: whether this step is still to be evaluated; what is past its line with the learning rate is dropped too.
    """
    if step == 0:
        path.unlink(missing_ok=True)
    elif path.exists():
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        while due and kept and kept[-1]["step"] == step and "lr" not in kept[-1]:
            kept.pop()
        atomic.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
