"""What the training loop asks of a stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vqvae2.train.feed import Batch


class Objective(Protocol):
    """One stage: what is trained, on what, and how it is judged."""

    name: str

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    def keep_on(self, device: torch.device, limit: int) -> int:
        """Keep the training data on the device if they take at most `limit` bytes; returns how many they take there, or 0.

        Called once, before `batches`, which may then give the device indices in place of data.
        """

    def batches(self, start: int, rank: int, world: int) -> Iterator[Batch]:
        """Endless batches from step `start` on; this process's share of the global batch, in host memory.

        The loop iterates over them in a thread of its own, ahead of the step that needs them.
        """

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise and what to log (scalars), of a batch that is on the model's device.

        Between two lines of metrics nothing here may make the host wait for the device.
        """

    def after_step(self, step: int, accelerator: Accelerator) -> dict[str, Any]:
        """Figures that are due after `step` steps (epoch statistics); often none. Called on every process.

        They may be scalars on the device, which are read when the next line of metrics is written.
        """

    def counts(self) -> list[Tensor]:
        """This process's running counts between two calls of `after_step` that return figures (code usage of the current epoch).

        They are summed over the processes when saved; on resuming, the main process's are overwritten with the sum."""

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, Any]:
        """Held-out figures. Called on every process. The weights with the lowest `score` are kept; without a score, the last ones.

        An objective whose attribute `judged` is a `HeldOut` takes images and batches from there, so that an evaluation can be
        interrupted. It must leave no trace, because an interrupted one is done again."""

    def draw(self, model: nn.Module, path: Path) -> None:
        """Save a picture that shows the progress. Called in the main process only, so it must not use collectives."""
