"""The vector quantiser: nearest code, straight-through gradient, moving-average codebook, revival of unused codes.

    z --nearest code--> k --codebook--> q --straight-through--> decoder
     \\______ statistics (counts, sums) --EMA--> codebook of the next step

Source: van den Oord et al. 2017 (arXiv 1711.00937), eq. 1-3 and appendix A.1; Razavi et al. 2019 (arXiv 1906.00446),
eq. 2-3; Sonnet's `VectorQuantizerEMA` for names, order of operations and zero-debiased averages. Two defaults differ
from Sonnet: the codebook starts from the data (`init="data"`) and unused codes are revived (`revive=True`), because
Sonnet sends every code that the first step leaves unused to the origin.

A training step reads no tensor on the host: every decision is a mask and every state a buffer, so that the step can be
compiled without a break and captured as a CUDA graph.

Shapes: N vectors, D code dimension, K codes.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from vqvae2.autoencoder.base import (
    Quantized,
    Quantizer,
    check_vectors,
    perplexity,
    recomputing,
    summed,
    without_autocast,
)
from vqvae2.autoencoder.nearest import nearest_code
from vqvae2.autoencoder.revival import draw_by_error, hashed_uniform, spread_rows
from vqvae2.config.models import AutoencoderConfig
from vqvae2.config.numbers import real
from vqvae2.errors import UserError
from vqvae2.processes import world

_PENALTY_RAMP = (
    1000  # updates over which the entropy penalty rises: with all of it at once, few codes stay in use
)
_REVIVE_SHARE = 0.03  # a code is dead if its count is below this share of the mean count (our decision)


class _Assign(torch.autograd.Function):
    """Replaces each vector by its code vector; the gradient passes to the vector unchanged (van den Oord et al. 2017, section 3.2).

    The second result is the squared distance of each vector to its code. Its gradient is that of ||z - sg[q]||^2, and can
    be differentiated again. There is no derivative in forward mode: `torch.compile` takes no function that defines one.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, flat: Tensor, codebook: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        """z [N, D], flat [N, D] (z in the codebook's dtype), codebook [K, D], indices [N] -> [N, D] in z's dtype, [N]."""
        quantized = functional.embedding(indices, codebook)
        difference = flat - quantized
        ctx.save_for_backward(difference, z)
        return quantized.to(z.dtype), torch.linalg.vector_norm(difference, dim=1).square()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        difference, z = ctx.saved_tensors
        straight, squares = gradients
        if torch.is_grad_enabled():  # a second derivative may be taken, in which z counts
            difference = difference + (z - z.detach()).to(difference.dtype)
        gradient = torch.addcmul(straight, difference, 2 * squares[:, None])
        return gradient.to(straight.dtype), None, None, None


class VectorQuantizer(Quantizer):
    """A codebook of K vectors; each input vector is replaced by the nearest one.

    The codebook is the buffer `embeddings` [K, D] (rows are codes; Sonnet's is the transpose). It may be written in place before
    training: with `init="data"` too, the first batch is then assigned to these codes. That does not keep them. The averages
    begin with that batch, so its step makes each code that it uses the mean of its vectors, and `revive` moves the others; a
    codebook that is to stay is `frozen`. A state that is saved before the first training step and loaded again does not
    remember that the codebook was written.

    Whatever the input's dtype and whatever autocast says, the arithmetic is in the dtype of `embeddings`: float32, or
    float64 after `.double()`. After `.half()` or `.bfloat16()` it quantises, but does not train: averages of counts and sums
    need more digits.

    In training mode (and with `ema=True`) each call updates the codebook for the next call. With n_i the number of vectors
    assigned to code i and s_i their sum, over all processes (van den Oord et al. 2017, appendix A.1):

        N_i <- EMA(n_i),  m_i <- EMA(s_i),  e_i <- m_i / N_i          (both averages zero-debiased)

    Several processes must call with the same number of vectors; an empty batch changes nothing.

    A vector with a NaN, an infinity, or numbers so large that its squared distance overflows gets some code. In training
    mode it is left out of all statistics, so that it cannot spoil the codebook, and counted in `not_finite`. The loss of its
    batch is then not finite either, so that it does not go unnoticed.

    Activation checkpointing (`torch.utils.checkpoint`) repeats a forward pass inside the backward pass. The repetition
    uses the codebook of the last call in training mode and updates nothing. Of several calls before one backward pass, the
    gradients of all but the last are therefore slightly off under checkpointing.

    Example:
        >>> quantizer = VectorQuantizer(num_embeddings=512, embedding_dim=64)
        >>> result = quantizer(torch.randn(8, 32, 32, 64))
        >>> result.quantize.shape, result.encoding_indices.shape
        (torch.Size([8, 32, 32, 64]), torch.Size([8, 32, 32]))

    Args:
        num_embeddings: K, at least 1.
        embedding_dim: D, at least 1.
        commitment_cost: beta, weight of mean((sg[q] - z)^2); 0.25 in the paper.
        decay: gamma of the moving averages, 0 <= gamma < 1 (1 would divide by zero); 0.99 in the paper.
        epsilon: Laplace smoothing of the counts, as in Sonnet; used with `init="sonnet"`.
        init: "data" takes the first codebook from vectors of the first batch (our decision), unless `embeddings` was written;
            "sonnet" draws it uniformly from +-sqrt(3 / D) and smooths the counts as Sonnet does.
        revive: move codes that are used less than 3 % as often as the mean code to inputs that are far from their code
            (our decision; not in the paper). Every process draws the same inputs. Needs `ema`; it is ignored without.
        ema: False trains the codebook by gradient instead (van den Oord et al. 2017, eq. 3): `embeddings` is then a
            parameter. The codes are counted all the same, for `mean_code`.
        entropy_penalty: lambda of entropy-constrained vector quantization (Chou, Lookabaugh and Gray 1989; our
            addition): the code of z is the k with the least ||z - e_k||^2 + lambda E (-log2 p_k), with p the running
            frequencies of the codes and E the running mean of ||z - q||^2. 0 is the paper. A positive value makes
            codes of lower entropy, which a prior predicts with fewer bits, at a larger error; a negative one
            penalises frequent codes, so that the codebook is used more evenly. Needs `ema`.

    Raises:
        ValueError: an argument out of range.
    """

    embeddings: Tensor
    ema_sum: Tensor
    counter: Tensor
    distortion: Tensor
    jitter: Tensor
    last_embeddings: Tensor
    last_penalty: Tensor

    def __init__(  # noqa: PLR0913 - five of Sonnet and four of ours, each documented
        self,
        num_embeddings: int,
        embedding_dim: int,
        commitment_cost: float = 0.25,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        init: Literal["data", "sonnet"] = "data",
        revive: bool = True,
        ema: bool = True,
        entropy_penalty: float = 0.0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, decay)
        num_embeddings, embedding_dim, decay = self.num_embeddings, self.embedding_dim, self.decay
        entropy_penalty = real(entropy_penalty, "entropy_penalty")
        commitment_cost = real(commitment_cost, "commitment_cost")
        if not 0 <= commitment_cost < math.inf:
            raise ValueError(f"expected a finite commitment_cost of at least 0, found {commitment_cost}")
        epsilon = real(epsilon, "epsilon")
        if not 0 < epsilon < math.inf:
            raise ValueError(f"expected a finite epsilon above 0, found {epsilon}")
        if init not in ("data", "sonnet"):
            raise ValueError(f"expected init 'data' or 'sonnet', found {init!r}")
        if not math.isfinite(entropy_penalty) or (entropy_penalty and not ema):
            raise ValueError(f"expected a finite entropy_penalty, and 0 without ema, found {entropy_penalty}")
        self.commitment_cost = commitment_cost
        self.epsilon = epsilon
        self.init = init
        self.revive = revive
        self.ema = ema
        self.entropy_penalty = entropy_penalty
        limit = math.sqrt(3 / embedding_dim)
        start = torch.empty(num_embeddings, embedding_dim).uniform_(-limit, limit)
        if ema:
            self.register_buffer("embeddings", start)
        else:
            self.embeddings = nn.Parameter(start)
        self.register_buffer("ema_sum", torch.zeros(num_embeddings, embedding_dim))
        # By gradient it is -1 before the first update: states of former versions, which counted none, have 0.
        self.register_buffer("counter", torch.tensor(0 if ema else -1))
        self.register_buffer("distortion", torch.zeros(()))
        self.last_embeddings.copy_(start)

    def first_values(self) -> dict[str, Tensor]:
        """As the base class; also the numbers for `spread_rows`, and codebook and penalty of the last call, for `recomputing`.

        Before the first call, `last_embeddings` is the codebook as it was made or loaded.
        """
        size, dim = self.num_embeddings, self.embedding_dim
        jitter = hashed_uniform(torch.zeros((), dtype=torch.int64), 0, size)
        last = {"last_embeddings": torch.zeros(size, dim), "last_penalty": torch.zeros(size)}
        return {**super().first_values(), "jitter": jitter, **last}

    def _begin_anew(self, device: torch.device) -> None:
        super()._begin_anew(device)
        self.last_embeddings.copy_(self.embeddings.detach())

    @classmethod
    def from_config(cls, config: AutoencoderConfig, size: int) -> VectorQuantizer:
        """The quantiser of a level with `size` codes, as the configuration of the autoencoder describes it."""
        return cls(
            size,
            config.code_dim,
            config.commitment_cost,
            config.decay,
            config.epsilon,
            init=config.init,
            revive=config.revive,
            ema=config.ema,
            entropy_penalty=config.entropy_penalty,
        )

    def extra_repr(self) -> str:
        """The arguments, for `print(model)`."""
        names = ("commitment_cost", "epsilon", "init", "revive", "ema", "entropy_penalty")
        return ", ".join([super().extra_repr(), *(f"{name}={getattr(self, name)!r}" for name in names)])

    def forward(self, z: Tensor) -> Quantized:
        """Quantise the last axis of `z` [..., D].

        Raises:
            ValueError: the last axis is not D, the numbers are no floating-point ones, or training with a codebook of half
                precision.
        """
        check_vectors(z, self.embedding_dim)
        if self.training and self.embeddings.dtype.itemsize < 4:
            raise UserError(
                f"expected a codebook in float32 or float64 in training mode, found {self.embeddings.dtype}: train under "
                "autocast instead"
            )
        with without_autocast(z.device):
            vectors = z.reshape(-1, self.embedding_dim)
            flat = vectors.detach().to(self.embeddings.dtype)
            again = self.training and recomputing()
            step = self.training and len(flat) > 0 and not again  # an empty batch is no step
            learn = step and self.ema
            if step and self.init == "data":
                self._start_from(flat)
            codebook, penalty = self._current(again, learn)
            indices = nearest_code(flat, codebook, penalty)
            straight, squares = self._assign(vectors, flat, codebook, indices)
            valid = (
                squares.detach().isfinite() if self.training else torch.ones_like(indices, dtype=torch.bool)
            )
            count = self.counts_of(indices, valid)
            elements = max(flat.numel(), 1)  # an empty batch has loss 0, not NaN
            loss = squares.sum() * (self.commitment_cost / elements)
            if not self.ema:
                codes = functional.embedding(indices, self.embeddings)
                loss = loss + functional.mse_loss(codes, flat, reduction="sum") / elements
            if learn:
                self._learn(flat, torch.where(valid, indices, self.num_embeddings), count, squares.detach())
            elif step:
                self._count(summed(count.to(flat.dtype)))
            if self.training and not again:
                self.usage += count
                self.not_finite += valid.logical_not().sum()
        return Quantized(straight.reshape(z.shape), loss, perplexity(count), indices.reshape(z.shape[:-1]))

    def _current(self, again: bool, learn: bool) -> tuple[Tensor, Tensor | None]:
        """Codebook and penalty of this call; `learn`: note them for its repetition; `again`: it is a repetition, and takes what was noted."""
        if again and self.ema:
            return self.last_embeddings, self.last_penalty if self.entropy_penalty else None
        codebook, penalty = self.embeddings.detach(), self._penalty()
        if learn:
            self.last_embeddings.copy_(codebook)
            if penalty is not None:
                self.last_penalty.copy_(penalty)
        return codebook, penalty

    def _assign(
        self, vectors: Tensor, flat: Tensor, codebook: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The code vectors [N, D], and the squared distances: one per vector [N] in training mode or if a gradient is needed, else their sum."""
        forward_mode = (
            forward_ad._current_level >= 0
        )  # which `_Assign` refuses; the rest would make zeros of it
        if self.training or (torch.is_grad_enabled() and vectors.requires_grad) or forward_mode:
            return _Assign.apply(vectors, flat, codebook, indices)  # type: ignore[no-any-return, no-untyped-call]
        quantized = functional.embedding(indices, codebook)
        return quantized.to(vectors.dtype), functional.mse_loss(flat, quantized, reduction="sum")

    def lookup(self, indices: Tensor) -> Tensor:
        """The codes [..., D] of integer `indices` [...] (Sonnet's `quantize(indices)`)."""
        return functional.embedding(indices.long(), self.embeddings)

    def codebook(self) -> Tensor:
        """All codes [K, D], without gradient: `embeddings`."""
        return self.embeddings.detach()

    def _debias(self) -> Tensor:
        """Scalar 1 - decay^t after t updates, by which the averages are divided; 0 before the first.

        `expm1` keeps all digits in the codebook's dtype, where 1 - decay^t would lose some to cancellation.
        """
        log_decay = (
            math.log(self.decay) if self.decay else -1e9
        )  # so that 0^t is 0 after an update, and 1 before
        return -torch.expm1(self.counter.to(self.embeddings.dtype) * log_decay)

    def _penalty(self) -> Tensor | None:
        """[K]: the penalty that is added to the squared distance to each code. Frequencies below 1 / (100 K) count as 1 / (100 K)."""
        if not self.entropy_penalty:
            return None
        share = (self.ema_count / self.ema_count.sum()).clamp_min(0.01 / self.num_embeddings)
        ramp = (self.counter.to(share.dtype) / _PENALTY_RAMP).clamp_max(1)
        penalty = -self.entropy_penalty * ramp * self.distortion / self._debias() * share.log2()
        return torch.where(self.counter > 0, penalty, 0)

    @torch.no_grad()
    def _start_from(self, flat: Tensor) -> None:
        """Before the first update, unless the codebook was written, take it from this batch: K of its vectors (repeated if there are
        fewer)."""
        drawn = spread_rows(flat, self.jitter)
        finite = drawn.square().sum(1).isfinite()
        other = drawn.index_select(0, finite.to(torch.uint8).argmax()[None])  # a finite one, if there is any
        drawn = torch.where(finite[:, None], drawn, other)
        untouched = torch.isclose(self.embeddings, self.last_embeddings, rtol=0, atol=0, equal_nan=True).all()
        begins = (self.counter < int(self.ema)) & finite.any() & untouched
        self.embeddings.copy_(torch.where(begins, drawn, self.embeddings))

    @torch.no_grad()
    def _learn(self, flat: Tensor, rows: Tensor, count: Tensor, squares: Tensor) -> None:
        """Update the running statistics and write the codebook of the next step.

        Args:
            flat: [N, D] with N at least 1, the inputs.
            rows: [N], their codes; K for an input that is left out.
            count: [K], how many inputs have each code.
            squares: [N], the squared distances to the codes; not finite for an input that is left out.
        """
        size = self.num_embeddings
        count = count.to(flat.dtype)
        total = flat.new_zeros(size + 1, self.embedding_dim).index_add_(0, rows, flat)[:-1]
        distance = torch.where(squares.isfinite(), squares, 0).sum()
        if world()[1] > 1:
            together = summed(torch.cat([count[:, None], total, distance.expand(size, 1)], 1))
            count, total, distance = together[:, 0], together[:, 1:-1], together[0, -1]
        learned, weight = self._count(count)
        self.ema_sum.lerp_(total, weight)
        self.distortion.lerp_(distance / count.sum().clamp_min(1), weight)
        debias = self._debias()
        n, m = self.ema_count / debias, self.ema_sum / debias
        mass = n.sum()
        if self.init == "sonnet":
            smooth = (n + self.epsilon) / (mass + size * self.epsilon) * mass
            self.embeddings.copy_(torch.where(learned, m / smooth[:, None], self.embeddings))
        else:
            used = learned & (
                n > mass / size * 1e-4
            )  # an idle code stays where it is instead of drifting to the origin
            self.embeddings.copy_(
                torch.where(used[:, None], m / n.clamp_min(1e-12)[:, None], self.embeddings)
            )
        if self.revive:
            self._revive(flat, squares, n, debias)

    def _count(self, count: Tensor) -> tuple[Tensor, Tensor]:
        """Count this step, in which all processes together used the codes `count` [K] times.

        Returns:
            Whether anything is learned from it (scalar bool): nothing is if every vector of the batch is left out. And its
            weight in the moving averages (scalar).
        """
        learned = count.sum() > 0
        weight = learned.to(count.dtype) * (1 - self.decay)
        self.counter += learned
        self.ema_count.lerp_(count, weight)
        return learned, weight

    def _revive(self, flat: Tensor, squares: Tensor, n: Tensor, debias: Tensor) -> None:
        """Move dead codes onto inputs drawn in proportion to their squared error, as many as could be drawn."""
        mean = n.sum() / self.num_embeddings
        drawn, number_drawn = draw_by_error(flat, squares, self.num_embeddings, self.counter)
        dead = n < _REVIVE_SHARE * mean
        rank = dead.cumsum(0) - 1  # of each dead code among the dead: it gets the vector drawn at this rank
        moved = dead & (rank < number_drawn)
        vectors = drawn.index_select(0, rank.clamp(0, len(drawn) - 1))
        self.embeddings.copy_(torch.where(moved[:, None], vectors, self.embeddings))
        self.ema_count.copy_(torch.where(moved, mean * debias, self.ema_count))
        self.ema_sum.copy_(torch.where(moved[:, None], vectors * mean * debias, self.ema_sum))
