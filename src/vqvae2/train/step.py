"""One training step: forward, backward, clipping, update, averages and sums, without a word from the device to the host.

    eager:     the operations are launched one by one; what everything else is compared with
    static:    the same, but batch and learning rate are read from tensors that never move
    captured:  a static step, recorded once as a CUDA graph and replayed: one launch instead of hundreds

Random numbers are those of generators that are seeded before each step, so a replay draws what an eager step would.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vqvae2.config.training import TrainConfig
from vqvae2.recording import RecordingLostError, first_line, recorded
from vqvae2.train.device import Choices, TrainingError, own_seed
from vqvae2.train.feed import Batch, mapped, parts, tensors
from vqvae2.train.sharded import ShardedAverage, own, put_together

_NEVER = 2**62  # the step at which the loss was not finite, when there is none
_WARM_UP = (
    3  # eager steps before a capture: lazily made buffers, cuDNN's search, codebooks from the first batch
)


def learning_rate(config: TrainConfig, step: int, seconds: float = 0.0) -> float:
    """Linear warm-up, then constant, or a cosine that falls to 1/50 of the peak.

    It ends when the steps or, if `minutes` is set, the time are used up, whichever comes first."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    if config.minutes:
        share = max(share, seconds / (60 * config.minutes))
    return config.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


class HasLoss(Protocol):
    """What a step needs of an objective."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise and what to log (scalars)."""


class WeightAverage:
    """Exponential average of a model's weights, beginning with those of the first step; buffers are copied as they are.

    Args:
        model: whose weights are averaged.
        decay: share of the old average that is kept in a step, 0 <= decay < 1.
        ramped: after n weights, keep at most (1 + n) / (10 + n), so that few steps forget the first weights too.
    """

    def __init__(self, model: nn.Module, decay: float, ramped: bool = False) -> None:
        self.model, self.decay, self.count = model, decay, 0
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.new = next(model.parameters()).new_zeros(()) if ramped else None  # share of the next weights

    def before_step(self) -> None:
        """Choose the decay of the coming step; a recorded step reads it from a tensor."""
        if self.new is not None:
            self.new.fill_(1 - min(self.decay, (1 + self.count) / (10 + self.count)))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's present weights."""
        ours: list[Tensor] = [p.data for p in self.module.parameters()]
        theirs: list[Tensor] = [p.data for p in self.model.parameters()]
        if self.count == 0:
            torch._foreach_copy_(ours, theirs)
        elif self.new is None:
            torch._foreach_lerp_(ours, theirs, 1 - self.decay)
        else:
            changes = torch._foreach_sub(theirs, ours)
            torch._foreach_mul_(changes, self.new)
            torch._foreach_add_(ours, changes)
        buffers = list(self.module.buffers())
        if buffers:
            torch._foreach_copy_(buffers, list(self.model.buffers()))
        self.count += 1

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights; shares their memory."""
        return {name: weight.data for name, weight in self.module.named_parameters()}

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The model with the averaged weights."""
        yield self.module

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps; the names are those of torch's `AveragedModel`."""
        state = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        return {"n_averaged": torch.tensor(self.count), **state}


class TrainingStep:
    """The step of one training.

    Args:
        objective: its loss.
        model: what the loss is computed with: the network, perhaps compiled and wrapped for several processes.
        network: the network itself. It may have a method `before_step`, which is called with the number of each step, from 0.
        optimizer: of the network's weights, as `make_optimizer` makes it.
        config: of the training.
        choices: how it is computed.

    Attributes:
        average: the averaged weights; None without.
        sums: per figure, its sum over the steps since it was last cleared; float32 scalars on the device.
        taken: steps in those sums.
        bad: the first step whose loss was not finite, or a very large number; int64 on the device.
        refused: why the device could not record the step, if it could not.
    """

    def __init__(
        self,
        objective: HasLoss,
        model: nn.Module,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        choices: Choices,
    ) -> None:
        self.objective, self.model, self.network, self.optimizer = objective, model, network, optimizer
        self.config, self.choices = config, choices
        self.average: WeightAverage | ShardedAverage | None = None
        if config.average and choices.sharded:
            self.average = ShardedAverage(network, config.average)
        elif config.average:
            ramped = getattr(network, "ramped_average", False)
            self.average = WeightAverage(network, config.average, ramped)
        self.sums: dict[str, Tensor] = {}
        self.taken = 0
        self.bad = torch.full((), _NEVER, device=choices.device)
        self.number = torch.zeros((), dtype=torch.int64, device=choices.device)
        self.warmed = 0
        self.replay: Callable[[], Any] | None = None
        self.inputs: Batch = ()
        self.refused = ""
        self.side = torch.cuda.Stream(choices.device) if choices.captured else None
        self.before_step: Callable[[int], None] = getattr(network, "before_step", lambda number: None)

    def __call__(self, batch: Batch, number: int, rate: float, seed: int) -> None:
        """Do step `number` (from 0) on a batch on the device, with this learning rate and this seed."""
        self._seed(seed)
        self.number.fill_(number)
        self.before_step(number)
        if isinstance(self.average, WeightAverage):
            self.average.before_step()
        for group in self.optimizer.param_groups:
            own = rate * group.get("scale", 1.0)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(own)
            else:
                group["lr"] = own
        self.taken += 1
        if not self.choices.static or self.refused:
            self._work(batch)
        elif self.warmed < _WARM_UP:
            self.warmed += 1
            with self._beside():
                self._work(batch)
        else:
            self._static(batch, seed)

    def finite(self) -> bool:
        """Whether every weight and buffer is finite, of a sharded network this process's rows; waits for the device."""
        state = [own(value).isfinite().all() for value in self.network.state_dict().values()]
        return bool(torch.stack(state).all())

    def not_finite_at(self, accelerator: Accelerator) -> int | None:
        """The first step, counted from 1, whose loss was not finite on any process; waits for the device; a collective."""
        number = int(accelerator.gather(self.bad).min())
        return None if number == _NEVER else number + 1

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over the processes and over the steps since the last call; waits for the device; a collective."""
        names = sorted(
            self.sums, key=lambda name: (name != "loss", name)
        )  # also in a training that is resumed
        sums = accelerator.reduce(torch.stack([self.sums[name] for name in names]), "mean").tolist()
        means = {name: value / self.taken for name, value in zip(names, sums, strict=True)}
        for value in self.sums.values():
            value.zero_()
        self.taken = 0
        return means

    def _static(self, batch: Batch, seed: int) -> None:
        """Put the batch where the static step reads it, and do that step; make it first if there is none."""
        if self.replay is None:
            self.inputs = mapped(batch, Tensor.clone)
            reason = ""
            try:
                self.replay = self._captured() if self.choices.captured else lambda: self._work(self.inputs)
            except RuntimeError as error:
                reason = first_line(error)
            if self.replay is None:  # only here, where the error no longer holds the memory of the capture
                self._give_up(reason)
                self._seed(seed)
                self._work(batch)
                return
        else:
            for there, value in zip(tensors(self.inputs), tensors(batch), strict=True):
                there.copy_(value, non_blocking=True)
        self._seed(seed)
        self.replay()
        if self.average is not None and self.choices.captured:
            self.average.count += 1  # which is no work of the device

    def _seed(self, seed: int) -> None:
        """Alike on every process, for what `noise` draws for the global batch; what a CUDA device draws is each process's own."""
        torch.manual_seed(seed)
        if self.choices.rank and self.choices.device.type == "cuda":
            torch.cuda.manual_seed(own_seed(seed, self.choices.rank))

    def _captured(self) -> Callable[[], None]:
        """Record the step; nothing is computed meanwhile.

        Raises:
            TrainingError: something in the step made the recording invalid, and with it what torch knows of the card.
            RuntimeError: something in the step failed; the card is as before.
        """
        count = self.average.count if self.average is not None else 0
        self._capturable(True)
        self.optimizer.zero_grad()  # so that the recorded backward pass makes its gradients where replays write them
        torch.cuda.synchronize(self.choices.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with recorded(graph, self.side, self.choices.device):
                self._work(self.inputs)
        except RecordingLostError as error:
            raise TrainingError(
                f"the step cannot be captured as a CUDA graph ({error}), and the card cannot be used further by this process; "
                "give the command again with --set capture=false"
            ) from error
        finally:
            if self.average is not None:
                self.average.count = count
        return graph.replay

    def _capturable(self, value: bool) -> None:
        """Tell the optimiser that it is being recorded; its fused kernel is the same either way."""
        for group in self.optimizer.param_groups:
            group["capturable"] = value

    def _give_up(self, reason: str) -> None:
        self.refused = reason
        self.inputs = ()
        self._capturable(False)
        self.optimizer.zero_grad()
        if self.choices.captured:
            torch.cuda.synchronize(self.choices.device)

    def _work(self, batch: Batch) -> None:
        """Everything a step does on the device."""
        self.model.train()
        self.optimizer.zero_grad()
        logs: dict[str, Tensor] = {}
        pieces = parts(batch, self.config.accumulate)
        for index, (share, part) in enumerate(pieces):
            with self._only_last_is_shared(index == len(pieces) - 1), self.choices.autocast():
                loss, extra = self.objective.loss(self.model, part)
                (loss * share).backward()
            for key, value in {"loss": loss, **extra}.items():
                term = value.detach().float() * share
                logs[key] = logs[key] + term if key in logs else term
        if self.config.clip:
            logs["gradient_norm"] = self._clipped()
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        self._note(logs)

    def _clipped(self) -> Tensor:
        """Clip the gradients of each group of the optimiser by their own norm; the norm of the first group before that.

        Networks that play against each other are groups, and a steep loss of one may not slow down the other.
        """
        groups = [group["params"] for group in self.optimizer.param_groups]
        norms = [put_together(nn.utils.clip_grad_norm_(weights, self.config.clip)) for weights in groups]
        return norms[0].detach().float()

    @torch.no_grad()
    def _note(self, logs: dict[str, Tensor]) -> None:
        first = torch.minimum(self.bad, self.number)
        self.bad.copy_(torch.where(logs["loss"].isfinite(), self.bad, first))
        for key, value in logs.items():
            if key not in self.sums:
                self.sums[key] = torch.zeros_like(value)
            self.sums[key] += value

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """On the stream on which the step will be recorded, as warm-up steps have to be."""
        if self.side is None:
            yield
            return
        here = torch.cuda.current_stream(self.choices.device)
        self.side.wait_stream(here)
        with torch.cuda.stream(self.side):
            yield
        here.wait_stream(self.side)

    @contextmanager
    def _only_last_is_shared(self, last: bool) -> Iterator[None]:
        """Of several processes, sum the gradients in the last part of a batch only."""
        no_sync = None if last else getattr(self.model, "no_sync", None)  # of DistributedDataParallel
        if no_sync is None:
            yield
        else:
            with no_sync():
                yield
