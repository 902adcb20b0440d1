"""What every quantiser shares: its result, its base class, and the statistics of its codes.

Shapes: N vectors, D code dimension, K codes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch import distributed as dist

from vqvae2.config.numbers import real, whole
from vqvae2.errors import UserError
from vqvae2.modes import without_autocast as without_autocast
from vqvae2.processes import world


@dataclass(frozen=True)
class Quantized:
    """The result of a quantiser; the names are Sonnet's.

    Attributes:
        quantize: [..., D], dtype of the input; its value is the code, its gradient reaches the input.
        loss: scalar, float32 or wider: the quantiser's own loss, e.g. the commitment loss.
        perplexity: scalar, exp of the entropy (nats) of the batch's code frequencies, between 1 and K.
        encoding_indices: [...], int64, the code of each vector.
    """

    quantize: Tensor
    loss: Tensor
    perplexity: Tensor
    encoding_indices: Tensor


class Quantizer(nn.Module, ABC):
    """Base class of all quantisers: it maps vectors to codes and codes back to vectors.

    A subclass implements `forward`, which ends with `self.result(...)`, and `lookup`. Neither should read a tensor on
    the host (`.item()`, `if tensor:`), so that a training step can be compiled or captured as a CUDA graph. A forward
    pass that activation checkpointing repeats must change no statistics; `recomputing` tells (`result` asks it).

    Args:
        num_embeddings: K, at least 1.
        embedding_dim: D, at least 1.
        decay: of the running counts of the codes, from which `mean_code` is computed; 0 <= decay < 1.

    Attributes:
        usage: [K] int64, how often each code was used in training mode since somebody last set it to zero. It is in no
            state dict, and zero after `to_empty` from the device "meta" and after every `load_state_dict`.
        not_finite: scalar int64, how many vectors had a NaN or an infinity and were therefore left out of all statistics;
            otherwise as `usage`.
        ema_count: [K], moving average of the codes' counts per step, over all processes.
        frozen: whether codebook and statistics stay as they are: the quantiser is then in eval mode, and `train()` leaves it
            there. Gradients still reach the input. It is in no state dict; a codebook that is a parameter also needs
            `requires_grad_(False)`. After `frozen = False` the next `train()` lets it learn again.

    Every process has its own `usage` and `not_finite`, which `DistributedDataParallel` would overwrite with those of the
    first: wrap a model that has quantisers with `broadcast_buffers=False`. The codebooks are alike without it.

    Raises:
        ValueError: fewer than one code or dimension, or a decay out of range.
    """

    _frozen = False

    usage: Tensor
    not_finite: Tensor
    ema_count: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, decay: float = 0.99) -> None:
        super().__init__()
        num_embeddings = whole(num_embeddings, "num_embeddings")
        embedding_dim = whole(embedding_dim, "embedding_dim")
        decay = real(decay, "decay")
        if not 0 <= decay < 1:
            raise ValueError(f"expected 0 <= decay < 1, found {decay}")
        if num_embeddings < 1 or embedding_dim < 1:
            raise ValueError(
                f"expected at least 1 code of at least 1 dimension, found {num_embeddings} x {embedding_dim}"
            )
        self.num_embeddings, self.embedding_dim, self.decay = num_embeddings, embedding_dim, decay
        self.register_buffer("ema_count", torch.zeros(num_embeddings))
        for name, value in self.first_values().items():
            self.register_buffer(name, value, persistent=False)

    def first_values(self) -> dict[str, Tensor]:
        """By name, the buffers that no state dict holds, as they are before the first step.

        A subclass that has further ones adds them here. They are then right in every model, also in one that was built on
        the device "meta" and got its memory by `to_empty` or its weights by `load_state_dict(..., assign=True)`.
        """
        count = torch.zeros(self.num_embeddings, dtype=torch.int64)
        return {"usage": count, "not_finite": torch.zeros((), dtype=torch.int64)}

    @property
    def frozen(self) -> bool:
        """Whether codebook and statistics stay as they are."""
        return self._frozen

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        self._frozen = bool(frozen)
        if frozen:
            self.eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode; of a `frozen` quantiser it stays eval mode."""
        return super().train(mode and not self.frozen)

    def extra_repr(self) -> str:
        """The arguments, for `print(model)`."""
        return f"{self.num_embeddings}, {self.embedding_dim}, decay={self.decay}" + ", frozen" * self.frozen

    def _begin_anew(self, device: torch.device) -> None:
        """Give the buffers that no state dict holds their first values, on this device."""
        with torch.device("cpu"):
            first = self.first_values()
        for name, value in first.items():
            own = getattr(self, name)
            if own.device == device and not own.is_meta:
                own.copy_(value)
            else:
                setattr(self, name, value.to(device, own.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        without_values = self.usage.is_meta
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if without_values and not self.usage.is_meta:  # by `to_empty`, which leaves arbitrary values
            self._begin_anew(self.usage.device)
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._begin_anew(self.ema_count.device)

    @abstractmethod
    def forward(self, z: Tensor) -> Quantized:
        """Quantise the last axis of `z` [..., D]."""

    @abstractmethod
    def lookup(self, indices: Tensor) -> Tensor:
        """The codes [..., D] of integer `indices` [...]."""

    def codebook(self) -> Tensor:
        """All codes [K, D], without gradient."""
        with torch.no_grad():
            return self.lookup(torch.arange(self.num_embeddings, device=self.usage.device))

    def mean_code(self) -> Tensor:
        """[D]: the mean code, weighted by how often each is used; the decoder's input for a level that is left out.

        Without statistics (before the first training step) all codes weigh the same.
        """
        codes = self.codebook()
        count = self.ema_count.to(
            torch.promote_types(codes.dtype, torch.float32)
        )  # a sum of float16 may be infinite
        total = count.sum()
        share = torch.where(total > 0, count / total, 1 / self.num_embeddings)
        return (share @ codes.to(share.dtype)).to(codes.dtype)

    def result(
        self, quantize: Tensor, loss: Tensor, indices: Tensor, finite: Tensor | None = None
    ) -> Quantized:
        """The result of `forward`; in training mode the codes are counted in `usage` and `ema_count`.

        Args:
            quantize: [..., D], with the gradient for the input.
            loss: scalar, the quantiser's own loss.
            indices: [...] int64, the codes.
            finite: [...] bool, False where the input was not finite: such codes are not counted. None counts all.
        """
        valid = torch.ones_like(indices, dtype=torch.bool) if finite is None else finite
        count = self.counts_of(indices, valid)
        if self.training and not recomputing():
            self.usage += count
            self.not_finite += valid.logical_not().sum()
            self.ema_count.lerp_(summed(count.to(self.ema_count.dtype)), 1 - self.decay)
        return Quantized(quantize, loss, perplexity(count), indices)

    def counts_of(self, indices: Tensor, valid: Tensor) -> Tensor:
        """[K] int64: how often each code occurs in `indices` [...] where `valid` [...] is True."""
        size = self.num_embeddings
        return counts(torch.where(valid, indices, size), size + 1)[:-1]


def check_vectors(z: Tensor, dim: int) -> None:
    """Raise `ValueError` unless `z` has floating-point numbers and its last axis is `dim`."""
    if not z.is_floating_point():
        raise UserError(f"expected vectors of floating-point numbers, found {z.dtype}")
    if z.ndim < 1 or z.shape[-1] != dim:
        raise ValueError(f"expected vectors of {dim} on the last axis, found shape {tuple(z.shape)}")


def recomputing() -> bool:
    """Whether this forward pass repeats an earlier one inside a backward pass, as activation checkpointing does.

    Compiled code never sees such a repetition: `torch.compile` decides itself what it computes again.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def counts(indices: Tensor, size: int) -> Tensor:
    """[K] int64: how often each code occurs in `indices` [...]. Unlike `bincount` it does not wait for the device."""
    flat = indices.reshape(-1)
    return torch.zeros(size, dtype=torch.int64, device=flat.device).scatter_add_(
        0, flat, torch.ones_like(flat)
    )


def perplexity(count: Tensor) -> Tensor:
    """exp of the entropy in nats of code counts [K] (Sonnet's 1e-10 inside the logarithm); 1 for no counts."""
    share = count.to(widest_float(count.device)) / count.sum().clamp_min(1)
    return torch.exp(-(share * (share + 1e-10).log()).sum())


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on Apple's MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def summed(value: Tensor) -> Tensor:
    """`value` summed over all processes, in place where there are several."""
    if world()[1] > 1:
        dist.all_reduce(value)
    return value
