"""What a training computes on and how: processes, precision, the switches of CUDA, the optimiser's kernel.

On a CPU, and wherever else nothing faster is known, every choice is torch's default.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn
from torch import distributed as dist

from vqvae2.config.hardware import Hardware
from vqvae2.config.training import TrainConfig
from vqvae2.errors import UserError
from vqvae2.tf32 import tf32_is, without_tf32

_CAPTURE_FROM = 50  # steps from which on recording the step is worth its second or two (our decision)


class TrainingError(UserError):
    """Training cannot go on; the last good state is kept."""


def chosen_precision(precision: str) -> str:
    """What `Hardware.precision` stands for on `best_device`: `auto` is bf16 on a CUDA card that has it, else no (float32)."""
    if precision != "auto":
        return precision
    card = best_device().type == "cuda"
    capable = card and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if capable else "no"


def make_accelerator(precision: str = "no") -> Accelerator:
    """The device, the process group, and the precision, which the result's `mixed_precision` names.

    A process group that this makes is destroyed when the process ends.

    Args:
        precision: as `Hardware.precision`.

    Raises:
        TrainingError: the device cannot train in this precision, or not with several processes.
    """
    if (
        torch.cuda.is_available()
    ):  # what `deterministic` needs; torch reads it at the first product on the card
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # otherwise a second training in this process must have the first one's precision; accelerators made before keep theirs
    AcceleratorState._shared_state = {}
    if precision == "fp16":
        raise TrainingError("cannot train in precision 'fp16': use bf16, or no for float32")
    precision = chosen_precision(precision)
    device = best_device()
    if device.type == "mps" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError("several processes cannot share an Apple GPU: add --device cpu")
    grouped = dist.is_available() and dist.is_initialized()
    patient = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # the others wait while one process decodes
    try:
        accelerator = Accelerator(
            cpu=device.type == "cpu",  # without this, accelerate makes no group of CPU processes
            mixed_precision=precision,
            kwargs_handlers=[patient],
        )
    except ValueError as error:
        raise TrainingError(f"cannot train in precision {precision!r}: {error}") from error
    if not grouped and dist.is_available() and dist.is_initialized():
        atexit.register(_destroy_group)
        if device.type == "cuda":  # a fault of NCCL is met here, and later calls take this card
            dist.all_reduce(torch.zeros(1, device=accelerator.device))
    return accelerator


def _destroy_group() -> None:
    """End the group, unless an exception ends this process: the others may be waiting in a collective, and would be waited for."""
    if dist.is_initialized() and getattr(sys, "last_value", None) is None:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Choices:
    """What one training uses, as decided by `choose`.

    Attributes:
        device: where the step runs.
        bf16: whether the forward pass runs under bfloat16 autocast.
        compiled: whether the network is compiled by torch.compile.
        static: whether the step reads fixed tensors, learning rate included, so that it can be replayed.
        captured: whether a static step is recorded as a CUDA graph.
        eager_because: why the step is not captured; "" where nobody would expect it.
        tf32: whether float32 products may be computed in TF32.
        deterministic: whether only deterministic kernels are used.
        fused: whether AdamW's fused kernel updates the weights, on a CUDA card and in a static step.
        channels_last: whether convolutions are computed in this memory format.
        cudnn_benchmark: whether cuDNN searches for its fastest kernels, on a CUDA card.
        pinned: whether batches go to a CUDA card from pinned memory, one ahead.
        resident_bytes: the most bytes of training data to keep on the device.
        rank: number of this process.
        sharded: whether the weights and the optimiser's state are cut up among the processes.
    """

    device: torch.device
    bf16: bool = False
    compiled: bool = False
    static: bool = False
    captured: bool = False
    eager_because: str = ""
    tf32: bool = False
    deterministic: bool = False
    fused: bool = True
    channels_last: bool = True
    cudnn_benchmark: bool = True
    pinned: bool = True
    resident_bytes: int = 0
    rank: int = 0
    sharded: bool = False

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """The precision of held-out scores: float32 without TF32, whatever the training's."""
        autocast = torch.autocast(self.device.type, enabled=False) if self.bf16 else nullcontext()
        with autocast, without_tf32(self.device):
            yield

    def line(self, resident: int) -> str:
        """The choices in one line, for the user.

        Args:
            resident: bytes of training data that are kept on the device.
        """
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        step = (
            "step captured as a CUDA graph"
            if self.captured
            else f"eager step ({self.eager_because or 'asked for'})"
        )
        search = "cuDNN's search for kernels" if self.cudnn_benchmark else "no search for kernels"
        optimizer = "fused AdamW" if self.fused else "AdamW in torch's default implementation"
        sent = "training data sent batch by batch" + " when they are needed" * (not self.pinned)
        words = [
            "bfloat16 autocast" if self.bf16 else "float32",
            "TF32 for float32 products" if self.tf32 else "no TF32",
            "deterministic kernels" if self.deterministic else search,
            "cut up among the processes" if self.sharded else optimizer,
            "channels last" if self.channels_last else "channels first",
            step,
            *(["torch.compile"] if self.compiled else []),
            f"training data on the card ({resident / 1e9:.2f} GB)" if resident else sent,
        ]
        return f"{name}: " + ", ".join(words)


def choose(hardware: Hardware, config: TrainConfig, accelerator: Accelerator) -> Choices:
    """Decide how one stage is trained.

    Args:
        hardware: what the user asked for.
        config: the stage's training.
        accelerator: of `make_accelerator`.
    """
    device, bf16 = accelerator.device, accelerator.mixed_precision == "bf16"
    compiled = hardware.compile is True
    if device.type != "cuda":
        layout = hardware.channels_last
        return Choices(device, bf16, compiled, channels_last=layout, rank=accelerator.process_index)
    because = ""
    if accelerator.num_processes > 1:
        because = "several processes"
    elif config.accumulate > 1:
        because = "accumulate is above 1"
    elif hardware.deterministic:
        because = "deterministic"
    elif not hardware.fused_adamw:
        because = "AdamW is not fused"
    elif hardware.capture == "auto" and config.steps < _CAPTURE_FROM:
        because = f"fewer than {_CAPTURE_FROM} steps"
    captured = not because and hardware.capture is not False
    free, _ = torch.cuda.mem_get_info(device)
    return Choices(
        device,
        bf16,
        compiled,
        static=captured,
        captured=captured,
        eager_because=because,
        tf32=hardware.tf32,
        deterministic=hardware.deterministic,
        fused=hardware.fused_adamw,
        channels_last=hardware.channels_last,
        cudnn_benchmark=hardware.cudnn_benchmark,
        pinned=hardware.pin_memory,
        resident_bytes=min(int(hardware.resident_gb * 1e9), free // 2),
        rank=accelerator.process_index,
    )


@contextmanager
def switches(choices: Choices) -> Iterator[None]:
    """Set torch's global switches for the time of a training; on a CPU only those that `deterministic` needs.

    Raises:
        TrainingError: an operation has no deterministic kernel, and one was asked for.
    """
    cudnn, card = torch.backends.cudnn, choices.device.type == "cuda"
    before = cudnn.benchmark, cudnn.deterministic
    strict = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    try:
        if card:
            cudnn.benchmark = choices.cudnn_benchmark and not choices.deterministic
            cudnn.deterministic = choices.deterministic
        if choices.deterministic:
            torch.use_deterministic_algorithms(True)
        with tf32_is(choices.tf32) if card else nullcontext():
            yield
    except RuntimeError as error:
        if choices.deterministic and "deterministic" in str(error):
            raise TrainingError(
                f"deterministic: true cannot be kept here: {str(error).splitlines()[0]}"
            ) from error
        raise
    finally:
        if card:
            cudnn.benchmark, cudnn.deterministic = before
        if choices.deterministic:
            torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])


def make_optimizer(model: nn.Module, config: TrainConfig, choices: Choices) -> torch.optim.AdamW:
    """AdamW over what is trained. If `choices` says so, on a CUDA card and in a static step it is fused and reads its rate from a tensor.

    A model may have a method `parameter_groups`; the learning rate of each group is multiplied by its `scale`.
    """
    own = getattr(model, "parameter_groups", None)
    weights = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = own() if own else [{"params": weights}]
    if not choices.fused or (choices.device.type != "cuda" and not choices.static):
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    for group in groups:  # a tensor for each, because groups that share one could not have different rates
        group["lr"] = torch.full((), config.lr, device=choices.device)
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def step_seed(seed: int, step: int) -> int:
    """The seed of the random numbers in one step, of all processes."""
    return (seed * 1_000_003 + step) * 64 % 2**63


def own_seed(seed: int, rank: int) -> int:
    """The seed of what a process draws for itself alone in the step of this seed; any number of processes draw different numbers."""
    block, within = divmod(rank, 64)  # between the seeds of two steps there is room for 64
    return (seed + within + block * 0x5E3779B97F4A7C15) % 2**63


def host_total(values: list[Tensor], figures: int, accelerator: Accelerator) -> list[float]:
    """Sums over images and processes, in float64 on the host, because a device may have no float64. A collective.

    Args:
        values: tensors [figures, b] of b images each, batch after batch; some process may have none.
        figures: how many sums there are.
    """
    sums = np.zeros(figures)
    for value in [part.float().cpu().numpy() for part in values]:
        sums += value.astype(np.float64).sum(1)
    if accelerator.num_processes > 1:
        sums = accelerator.reduce(torch.from_numpy(sums).to(accelerator.device), "sum").cpu().numpy()
    return sums.tolist()


def best_device() -> torch.device:
    """The device that ACCELERATE_TORCH_DEVICE names (`--device` sets it), else the accelerator if there is one, else the CPU."""
    if named := os.environ.get("ACCELERATE_TORCH_DEVICE"):
        return torch.device(named)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def devices_of(kind: str) -> int:
    """How many devices of a kind, such as "cuda" or "mps", this machine has."""
    module = getattr(torch, kind)
    return int(module.device_count()) if module.is_available() else 0


def present_device(device: torch.device | str) -> torch.device:
    """A device that this machine has.

    Raises:
        UserError: it has none of that name.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise UserError(
            f"expected a device such as cpu, cuda, cuda:1, mps or xpu, found {device!r}"
        ) from None
    if found.type in ("cuda", "mps", "xpu") and (found.index or 0) >= devices_of(found.type):
        raise UserError(f"no device {found} on this machine")
    return found
