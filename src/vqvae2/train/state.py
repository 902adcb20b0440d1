"""What a training leaves on the disk: the state from which it resumes, and the lines of its metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqvae2.files import atomic, tensor_file
from vqvae2.train.step import TrainingStep, WeightAverage

_KERNELS = (
    "lr",
    "fused",
    "foreach",
    "capturable",
)  # of the machine and the step, not of the training's state


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
        best: the best weights so far, in host memory; {} before the first evaluation.
    """

    step: TrainingStep
    counts: list[Tensor]
    outcome: Outcome = field(default_factory=Outcome)
    best: dict[str, Tensor] = field(default_factory=dict)

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
        optimizer, groups = tensor_file.pack_optimizer(step.optimizer)
        for group in groups["param_groups"]:
            group["lr"] = float(group["lr"])
        tensors = {f"model.{k}": v for k, v in step.network.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer.items()}
        if isinstance(step.average, WeightAverage):
            tensors |= {f"average.{k}": v for k, v in step.average.state_dict().items()}
        tensors |= {f"sums.{k}": v for k, v in sums.items()}
        tensors |= {f"counts.{k}": v for k, v in enumerate(counts)}
        meta = {"outcome": vars(self.outcome), "summed": step.taken, "groups": groups, "config": settings}
        tensor_file.save_tensors(file, tensors, meta)

    def snapshot(self, model: nn.Module) -> dict[str, Tensor]:
        """A copy of a model's weights and buffers, in host memory."""
        return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}

    def put_best(self) -> None:
        """Put the best weights into the network."""
        self.step.network.load_state_dict(self.best)

    def load(self, file: Path, main: bool) -> None:
        """Go on from a state that `save` wrote.

        Args:
            file: where it is.
            main: whether this is the main process, which takes the counts of all processes.

        Raises:
            FileError: damaged, or of another model.
        """
        step = self.step
        tensors, meta = tensor_file.load_tensors(file)
        self.outcome = Outcome(**meta["outcome"])

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        tensor_file.load_weights(step.network, part("model."), file)
        groups = meta["groups"]["param_groups"]
        for saved, ours in zip(groups, step.optimizer.param_groups, strict=True):
            saved |= {name: ours[name] for name in _KERNELS}
        tensor_file.unpack_optimizer(step.optimizer, part("optimizer."), {"param_groups": groups})
        if step.average is not None:
            average = part("average.")
            step.average.count = int(average.pop("n_averaged"))
            weights = {name.removeprefix("module."): value for name, value in average.items()}
            tensor_file.load_weights(step.average.module, weights, file)
        self.best = part("best.")
        step.sums = {k: v.to(step.bad.device, torch.float32) for k, v in part("sums.").items()}
        step.taken = int(meta.get("summed", 0))
        if main:
            for index, count in part("counts.").items():
                self.counts[int(index)].copy_(count)


def saved_step(file: Path) -> int:
    """After how many steps the state in this file was saved."""
    return int(tensor_file.load_tensors(file)[1]["outcome"]["step"])


def write_metrics(path: Path, step: int, values: Mapping[str, Any]) -> None:
    """Append one line to a metrics.jsonl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **values}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that was cut short is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def cut_metrics(path: Path, step: int) -> None:
    """Drop the lines past `step`, which a killed process may have written; at step 0 there are none."""
    if step == 0:
        path.unlink(missing_ok=True)
    elif path.exists():
        kept = [json.dumps(line) for line in read_metrics(path) if line["step"] <= step]
        atomic.write_text(path, "".join(line + "\n" for line in kept))
