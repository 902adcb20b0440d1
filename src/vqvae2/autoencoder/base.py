"""What every quantiser shares: its result, its base class, and the statistics of its codes.

Shapes: N vectors, D code dimension, K codes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist

from vqvae2.config.numbers import whole


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
    the host (`.item()`, `if tensor:`), so that a training step can be compiled or captured as a CUDA graph.

    Args:
        num_embeddings: K, at least 1.
        embedding_dim: D, at least 1.
        decay: of the running counts of the codes, from which `mean_code` is computed.

    Attributes:
        usage: [K] int64, how often each code was used in training mode since somebody last set it to zero.
        ema_count: [K], moving average of the codes' counts per step, over all processes.

    Raises:
        ValueError: fewer than one code or dimension.
    """

    usage: Tensor
    ema_count: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, decay: float = 0.99) -> None:
        super().__init__()
        num_embeddings = whole(num_embeddings, "num_embeddings")
        embedding_dim = whole(embedding_dim, "embedding_dim")
        if num_embeddings < 1 or embedding_dim < 1:
            raise ValueError(
                f"expected at least 1 code of at least 1 dimension, found {num_embeddings} x {embedding_dim}"
            )
        self.num_embeddings, self.embedding_dim, self.decay = num_embeddings, embedding_dim, decay
        self.register_buffer("ema_count", torch.zeros(num_embeddings))
        self.register_buffer("usage", torch.zeros(num_embeddings, dtype=torch.int64), persistent=False)

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

    def result(self, quantize: Tensor, loss: Tensor, indices: Tensor) -> Quantized:
        """The result of `forward`; in training mode the codes are counted in `usage` and `ema_count`.

        Args:
            quantize: [..., D], with the gradient for the input.
            loss: scalar, the quantiser's own loss.
            indices: [...] int64, the codes.
        """
        count = counts(indices, self.num_embeddings)
        if self.training:
            self.usage += count
            self.ema_count.lerp_(summed(count.to(self.ema_count.dtype)), 1 - self.decay)
        return Quantized(quantize, loss, perplexity(count), indices)


def check_vectors(z: Tensor, dim: int) -> None:
    """Raise `ValueError` unless the last axis of `z` is `dim`."""
    if z.ndim < 1 or z.shape[-1] != dim:
        raise ValueError(f"expected vectors of {dim} on the last axis, found shape {tuple(z.shape)}")


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


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """What runs in this context keeps its dtypes, whatever autocast says."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def world() -> tuple[int, int]:
    """The rank of this process and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def summed(value: Tensor) -> Tensor:
    """`value` summed over all processes, in place where there are several."""
    if world()[1] > 1:
        dist.all_reduce(value)
    return value
