"""The state of a training whose weights are cut up: written by all processes, read by any number of them.

checkpoints/last.safetensors            how far it has come, sums and counts; names the folder with the rest, written last
checkpoints/step-STEP-of-WORLD/         a file of each process (`train/sharded.py`)
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vqvae2.files import tensor_file
from vqvae2.files.atomic import FileError, reason
from vqvae2.processes import Group, joined
from vqvae2.train.sharded import (
    load_shards,
    own,
    pieces,
    put,
    restore,
    rows_of_state,
    save_shards,
)
from vqvae2.train.state import (
    Saved,
    State,
    gone_on_from,
    keep_previous,
    previous_of,
    remove_all_but,
    remove_other_states,
    saved,
    saved_record,
    saying_what_to_do,
)
from vqvae2.train.step import TrainingStep


@dataclass
class ShardedState(State):
    """As `State`; every process saves and loads its rows.

    Attributes:
        accelerator: the processes.
    """

    accelerator: Accelerator | None = None

    def save(
        self, file: Path, sums: Mapping[str, Tensor], counts: list[Tensor], settings: dict[str, Any]
    ) -> None:
        """As `State.save`, but on every process; a collective."""
        step, accelerator = self.step, self.accelerator
        assert accelerator is not None
        folder = f"step-{self.outcome.step:09d}-of-{accelerator.num_processes}" + ("-due" if self.due else "")
        tensors = rows_of_state(step.network, step.optimizer, step.average, self.best)
        if accelerator.is_main_process:  # first, so that the disk holds two states at a time and not three
            keep_previous(file)
            remove_all_but(file, folder)
        joined().wait()
        save_shards(file.parent / folder, tensors, accelerator)
        joined().wait()
        if accelerator.is_main_process:
            small = {f"sums.{k}": v for k, v in sums.items()}
            small |= {f"counts.{k}": v for k, v in enumerate(counts)}
            averaged = step.average.count if step.average is not None else 0
            tensor_file.save_tensors(
                file, small, {**self.about(settings), "shards": folder, "averaged": averaged}
            )
            remove_other_states(file.parent, {folder, _shards(previous_of(file))})

    def load(self, file: Path, main: bool) -> None:
        """As `State.load`, of a state that any number of processes saved, sharded or one alone."""
        assert self.accelerator is not None
        if holds_shards(file):
            load_sharded(self, file, main, self.accelerator)
        else:
            with saying_what_to_do(file):
                self._load_whole(file, main, self.accelerator)

    def _load_whole(self, file: Path, main: bool, accelerator: Accelerator) -> None:
        """Take this process's rows of a state that one process saved."""
        tensors, meta = tensor_file.load_tensors(file)
        record = saved_record(meta, self.step, file)
        rank, world = accelerator.process_index, accelerator.num_processes
        shapes = {name: weight.shape for name, weight in self.step.network.named_parameters()}
        names, rows = list(shapes), {}
        try:
            for key, value in tensors.items():
                part, _, name = key.partition(".")
                if part == "optimizer":
                    index, _, part = name.partition(".")
                    name = names[int(index)]
                elif part == "average":
                    name = name.removeprefix("module.")
                if value.ndim and value.shape == shapes.get(name):
                    own_rows = pieces(len(value), world)[rank]
                    rows[f"{part}.{name}"] = value[own_rows.start : own_rows.stop].clone()
            self.best = restore(self.step, rows, record.outcome.step)
            averaged = tensors.get("average.n_averaged")
            _small(self, tensors, record, main, 0 if averaged is None else int(averaged))
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            raise FileError(f"{file} is damaged, or of another model: {reason(error)}") from error

    def snapshot(self, model: nn.Module) -> dict[str, Tensor]:
        """This process's rows, in host memory."""
        return {name: own(weight).cpu().clone() for name, weight in model.named_parameters()}

    def keep_best(self, model: nn.Module, main: bool) -> None:
        """As `State.keep_best`, but each process keeps its rows."""
        self.best = self.snapshot(model)

    def put_best(self) -> None:
        """Put this process's rows of the best weights into the network, if there are any."""
        if self.best:
            put(self.step.network, self.best)


def holds_shards(file: Path) -> bool:
    """Whether a state was saved in parts. Of a damaged file False: loading it says what to do about it."""
    return _shards(file) is not None


def _shards(file: Path) -> str | None:
    """The name of the folder with the parts of a state; None if it has none or is damaged."""
    try:
        return saved(file).shards
    except FileError:
        return None


def remove_previous(file: Path) -> None:
    """Delete the state before the one in a file, where it would be in the way of what is still to be written."""
    with suppress(OSError):
        previous_of(file).unlink(missing_ok=True)
        remove_all_but(file)


def load_sharded(state: State, file: Path, main: bool, accelerator: Accelerator) -> None:
    """Go on from a state that `ShardedState.save` wrote, sharded or not, with any number of processes.

    Args:
        state: its step has the network, the optimiser and the average.
        file: checkpoints/last.safetensors.
        main: whether this is the main process, which takes the counts of all processes.

    Raises:
        FileError: a file is missing or damaged, or of a training on the codes of another autoencoder. The message says what
            to do.
    """
    with saying_what_to_do(file):
        small, meta = tensor_file.load_tensors(file)
        record = saved_record(meta, state.step, file)
        shapes = {name: weight.shape for name, weight in state.step.network.named_parameters()}
        folder = file.parent / Path(str(record.shards)).name  # inside, whatever the file says
        parted = isinstance(state, ShardedState)
        group = Group(accelerator.process_index, accelerator.num_processes) if parted else Group()
        rows = load_shards(folder, shapes, group)
        try:
            best = restore(state.step, rows, record.outcome.step)
            state.best = best if parted or main else {}
            _small(state, small, record, main, record.averaged)
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            raise FileError(f"the state in {folder} is damaged: {reason(error)}") from error


def _small(state: State, tensors: Mapping[str, Tensor], record: Saved, main: bool, averaged: int) -> None:
    """What is not cut up: how far it has come, sums, counts, and how many weights are in the average."""
    step: TrainingStep = state.step
    state.outcome = gone_on_from(record, step)
    if step.average is not None:
        step.average.count = averaged
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        if part == "sums":
            step.sums[name] = value.to(step.bad.device, torch.float32, copy=True)
        elif part == "counts" and main:
            state.counts[int(name)].copy_(value)
    step.taken, state.due = record.summed, record.due
