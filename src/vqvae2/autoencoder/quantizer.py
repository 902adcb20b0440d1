"""The vector quantizer: nearest code, straight-through gradient, moving-average codebook, revival, usage.

    z --nearest code--> k --codebook--> q --straight-through--> decoder
     \\______ statistics (counts, sums) --EMA--> codebook of the next step

Source: van den Oord et al. 2017 (arXiv 1711.00937), eq. 6-8; Razavi et al. 2019 (arXiv 1906.00446), eq. 2-3;
Sonnet's `VectorQuantizerEMA` for names, order of operations and zero-debiased averages. What differs from
Sonnet by default, and why: the codebook starts from the data (`init="data"`) and unused codes are revived
(`revive=True`), because Sonnet sends every code unused in the first step to the origin.

Shapes: N vectors, D code dimension, K codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

_CHUNK_ELEMENTS = (
    512 * 1024
)  # distances held at once on a CPU: 2 MiB in float32, so that they stay in its cache
_GROUP = 64  # codes whose least distance is found in one go
_RATE_RAMP = (
    1000  # updates over which the price of bits rises to `rate`: first the codes must come to mean something
)
_REVIVE_SHARE = 0.03  # a code is dead when it is used less than this share of the mean use (our decision)


@dataclass(frozen=True)
class Quantized:
    """What a quantizer returns; the names are Sonnet's.

    Attributes:
        quantize: [..., D], dtype of the input; its value is the code, its gradient goes to the input unchanged.
        loss: scalar, float32 at least; commitment_cost x mean((q - z)^2), plus the codebook loss if `ema=False`.
        perplexity: scalar, exp of the entropy (nats) of the batch's code frequencies, between 1 and K.
        encoding_indices: [...], int64, the nearest code of each vector, ties to the lowest index.
    """

    quantize: Tensor
    loss: Tensor
    perplexity: Tensor
    encoding_indices: Tensor


@torch.no_grad()
def nearest_code(vectors: Tensor, codebook: Tensor, penalty: Tensor | None = None) -> Tensor:
    """Index of the nearest code of each vector (least squared distance plus penalty), ties to the lowest index.

    The N x K distances are never held at once: rows are worked through in chunks that stay in the cache. On a CPU
    the least is searched in two passes, because a least value is found at the speed of memory and its index is
    not: first the least of each group of codes, then the code within the best group.

    Args:
        vectors: [N, D].
        codebook: [K, D], same dtype.
        penalty: [K], added to the squared distances; None = nothing.

    Returns:
        [N] int64.
    """
    size, device = codebook.shape[0], codebook.device
    norms = codebook.square().sum(1)
    if penalty is not None:
        norms = norms + penalty
    group = 1
    if device.type == "cpu" and size > _GROUP:
        group = max(_GROUP, 1 << (size.bit_length() // 2))  # about the root of K
        missing = -size % group
        codebook = functional.pad(codebook, (0, 0, 0, missing))
        norms = functional.pad(norms, (0, missing), value=math.inf)
    padded = codebook.shape[0]
    rows = max(1, (_CHUNK_ELEMENTS if device.type == "cpu" else 32 * _CHUNK_ELEMENTS) // padded)
    rows = min(rows, max(1, vectors.shape[0]))
    held = torch.empty(rows, padded, dtype=norms.dtype, device=device)
    places = torch.arange(rows, device=device)
    indices = torch.empty(vectors.shape[0], dtype=torch.int64, device=device)
    for start in range(0, vectors.shape[0], rows):
        chunk = vectors[start : start + rows]
        # ||z||^2 is the same for every code
        distances = torch.addmm(norms, chunk, codebook.T, alpha=-2, out=held[: len(chunk)])
        if group == 1:
            torch.argmin(distances, 1, out=indices[start : start + rows])
            continue
        groups = distances.view(len(chunk), -1, group)
        best = groups.amin(2).argmin(1)
        within = groups[places[: len(chunk)], best].argmin(1)
        indices[start : start + rows] = within.add_(best, alpha=group)
    return indices.clamp_max_(size - 1)  # beyond K only for vectors that are not finite


class _StraightThrough(torch.autograd.Function):
    """The value of `quantized`, the gradient of `z` (paper v1, section 3.1)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, quantized: Tensor) -> Tensor:
        return quantized.detach().clone() if quantized.requires_grad else quantized

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class VectorQuantizer(nn.Module):
    """A codebook of K vectors; each input vector is replaced by the nearest one.

    The codebook is the buffer `embeddings` [K, D] (rows are codes; Sonnet's is the transpose), writable in place
    before training. Whatever the input's dtype and whatever autocast says, the arithmetic is in the dtype of
    `embeddings`: float32, or float64 after `.double()`.

    In training mode (and `ema=True`) each call updates the codebook for the NEXT call: with n_i vectors
    assigned to code i and s_i their sum, over all processes,

        N_i <- EMA(n_i),  m_i <- EMA(s_i),  e_i <- m_i / N_i          (both averages zero-debiased)

    Args:
        num_embeddings: K, at least 1.
        embedding_dim: D, at least 1.
        commitment_cost: beta, weight of mean((sg[q] - z)^2); 0.25 in the paper.
        decay: gamma of the moving averages, 0 <= gamma < 1 (1 would divide by zero); 0.99 in the paper.
        epsilon: Laplace smoothing of the counts, as in Sonnet; used with `init="sonnet"`.
        init: "data" draws the first codebook from the first batch (our decision); "sonnet" draws it uniformly
            in +-sqrt(3 / D) and smooths counts as Sonnet does.
        revive: move codes used less than 3 % of the mean use to inputs that are far from their code
            (our decision; not in the paper). Drawn alike on every process.
        ema: False trains the codebook by gradient instead (paper v1, eq. 3): `embeddings` is then a parameter.
        rate: weight of the bits in the choice of a code (entropy-constrained vector quantization, Chou, Lookabaugh
            and Gray 1989; our addition): code k is chosen for the least ||z - e_k||^2 + rate x E x -log2 p_k, with p
            the running shares of use and E the running mean of ||z - q||^2. 0 is the paper. More makes codes that
            a prior predicts with fewer bits, at some cost in error; below 0 it is frequent codes that cost, which
            evens their use out. Needs `ema`.

    Raises:
        ValueError: an argument out of range.
    """

    embeddings: Tensor
    ema_count: Tensor
    ema_sum: Tensor
    counter: Tensor
    distortion: Tensor
    usage: Tensor

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
        rate: float = 0.0,
    ) -> None:
        super().__init__()
        if num_embeddings < 1 or embedding_dim < 1:
            raise ValueError(
                f"expected at least 1 code of at least 1 dimension, found {num_embeddings} x {embedding_dim}"
            )
        if not 0 <= decay < 1:
            raise ValueError(f"expected 0 <= decay < 1, found {decay}")
        if init not in ("data", "sonnet"):
            raise ValueError(f"expected init 'data' or 'sonnet', found {init!r}")
        if not math.isfinite(rate) or (rate and not ema):
            raise ValueError(f"expected a finite rate, and 0 without ema, found {rate}")
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.commitment_cost = commitment_cost
        self.decay = decay
        self.epsilon = epsilon
        self.init = init
        self.revive = revive
        self.ema = ema
        self.rate = rate
        limit = math.sqrt(3 / embedding_dim)
        start = torch.empty(num_embeddings, embedding_dim).uniform_(-limit, limit)
        if ema:
            self.register_buffer("embeddings", start)
        else:
            self.embeddings = nn.Parameter(start)
        self.register_buffer("ema_count", torch.zeros(num_embeddings))
        self.register_buffer("ema_sum", torch.zeros(num_embeddings, embedding_dim))
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64))
        self.register_buffer("distortion", torch.zeros(()))
        self.register_buffer("usage", torch.zeros(num_embeddings, dtype=torch.int64), persistent=False)

    def extra_repr(self) -> str:
        """The arguments, for `print(model)`."""
        return f"{self.num_embeddings}, {self.embedding_dim}, decay={self.decay}, init={self.init}, revive={self.revive}"

    def forward(self, z: Tensor) -> Quantized:
        """Quantize the last axis of `z` [..., D].

        Raises:
            ValueError: the last axis is not D.
        """
        check_vectors(z, self.embedding_dim)
        with torch.autocast(z.device.type, enabled=False):
            exact = z.to(self.embeddings.dtype)
            vectors = exact.reshape(-1, self.embedding_dim)
            flat = vectors.detach()
            learn = self.training and self.ema
            if learn and self.init == "data" and int(self.counter) == 0:
                self._start_from(flat)
            indices = nearest_code(flat, self.embeddings.detach(), self._penalty())
            quantized = functional.embedding(indices, self.embeddings).reshape(exact.shape)
            count = torch.bincount(indices, minlength=self.num_embeddings)
            squares = functional.mse_loss(exact, quantized.detach(), reduction="sum")
            elements = max(exact.numel(), 1)  # an empty batch has loss 0, not NaN
            loss = self.commitment_cost * squares / elements
            if not self.ema:
                loss = loss + functional.mse_loss(quantized, exact.detach(), reduction="sum") / elements
            straight: Tensor = _StraightThrough.apply(exact, quantized)  # type: ignore[no-untyped-call]
            if learn:
                self._learn(flat, indices, count, squares.detach())
            if self.training:
                self.usage += count
        return Quantized(straight.to(z.dtype), loss, perplexity(count), indices.reshape(z.shape[:-1]))

    def lookup(self, indices: Tensor) -> Tensor:
        """The codes [..., D] of integer `indices` [...] (Sonnet's `quantize(indices)`)."""
        return functional.embedding(indices.long(), self.embeddings)

    def mean_code(self) -> Tensor:
        """[D]: the mean quantised vector, weighted by use; what stands in for a level that is left out.

        Without statistics (`ema=False`, or before the first step) all codes weigh the same.
        """
        return mean_of(self.embeddings.detach(), self.ema_count)

    def _penalty(self) -> Tensor | None:
        """[K]: what each code costs besides its distance; a code of no use costs as much as one of 1 / (100 K)."""
        if not self.rate or int(self.counter) == 0:
            return None
        debias = 1 - self.decay ** int(self.counter)
        share = (self.ema_count / self.ema_count.sum()).clamp_min(0.01 / self.num_embeddings)
        ramp = min(1.0, int(self.counter) / _RATE_RAMP)
        return -self.rate * ramp * self.distortion / debias * share.log2()

    @torch.no_grad()
    def _start_from(self, flat: Tensor) -> None:
        """Take the first codebook from this batch: K of its vectors, at random (repeated if there are fewer)."""
        drawn = _draw(flat, torch.zeros(flat.shape[0], device=flat.device), self.num_embeddings, seed=0)
        if drawn.shape[0]:
            repeats = math.ceil(self.num_embeddings / drawn.shape[0])
            self.embeddings.copy_(drawn.repeat(repeats, 1)[: self.num_embeddings])

    @torch.no_grad()
    def _learn(self, flat: Tensor, indices: Tensor, count: Tensor, squares: Tensor) -> None:
        """Update the running statistics and write the codebook of the next step.

        Args:
            flat: [N, D], the inputs; `indices` [N] their codes, `count` [K] of each.
            squares: scalar, their squared distances to their codes, summed.
        """
        size = self.num_embeddings
        count = count.to(flat.dtype)
        total = torch.zeros_like(self.ema_sum).index_add_(0, indices, flat)
        if _distributed():
            both = summed(torch.cat([count[:, None], total, squares.expand(size, 1)], 1))
            count, total, squares = both[:, 0], both[:, 1:-1], both[0, -1]
        if float(count.sum()) == 0:  # an empty batch changes nothing, and makes no NaN
            return
        self.counter += 1
        self.ema_count.lerp_(count, 1 - self.decay)
        self.ema_sum.lerp_(total, 1 - self.decay)
        self.distortion.lerp_(squares / count.sum(), 1 - self.decay)
        debias = 1 - self.decay ** int(self.counter)
        n, m = self.ema_count / debias, self.ema_sum / debias
        mass = n.sum()
        if self.init == "sonnet":
            smooth = (n + self.epsilon) / (mass + size * self.epsilon) * mass
            self.embeddings.copy_(m / smooth[:, None])
        else:
            used = n > mass / size * 1e-4  # an idle code stays where it is instead of drifting to the origin
            self.embeddings.copy_(
                torch.where(used[:, None], m / n.clamp_min(1e-12)[:, None], self.embeddings)
            )
        if self.revive:
            self._revive(flat, indices, n, debias)

    def _revive(self, flat: Tensor, indices: Tensor, n: Tensor, debias: float) -> None:
        """Move dead codes onto inputs drawn in proportion to their squared error, as k-means++ does."""
        mean = n.sum() / self.num_embeddings
        dead = (n < _REVIVE_SHARE * mean).nonzero()[:, 0]
        if not dead.numel():
            return
        error = (flat - functional.embedding(indices, self.embeddings)).square().sum(1)
        drawn = _draw(flat, error.log(), dead.numel(), seed=int(self.counter))
        dead = dead[: drawn.shape[0]]
        self.embeddings[dead] = drawn
        self.ema_count[dead] = mean * debias
        self.ema_sum[dead] = drawn * mean * debias


def check_vectors(z: Tensor, dim: int) -> None:
    """Raise `ValueError` unless the last axis of `z` is `dim`."""
    if z.ndim < 1 or z.shape[-1] != dim:
        raise ValueError(f"expected vectors of {dim} on the last axis, found shape {tuple(z.shape)}")


def mean_of(codes: Tensor, count: Tensor) -> Tensor:
    """[D]: the mean of codes [K, D], weighted by their use [K]; all weigh the same where none was used."""
    total = count.sum()
    return torch.where(total > 0, count / total, 1 / len(codes)) @ codes


def summed(value: Tensor) -> Tensor:
    """`value` summed over all processes, in place where there are several."""
    if _distributed():
        dist.all_reduce(value)
    return value


def perplexity(count: Tensor) -> Tensor:
    """exp of the entropy in nats of code counts [K] (Sonnet's 1e-10 inside the logarithm); 1 for no counts."""
    share = count.double() / count.sum().clamp_min(1)
    return torch.exp(-(share * (share + 1e-10).log()).sum())


def _draw(flat: Tensor, log_weight: Tensor, count: int, seed: int) -> Tensor:
    """Draw up to `count` distinct rows of all processes' [N, D], weighted; the same rows on every process.

    Gumbel noise is drawn for the global batch from `seed` and each process takes its share, so that the result
    does not depend on the number of processes. Every process must hold the same number of rows.
    """
    rows = flat.shape[0]
    world = dist.get_world_size() if _distributed() else 1
    rank = dist.get_rank() if _distributed() else 0
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(rows * world, generator=generator, dtype=torch.float64)[
        rank * rows : (rank + 1) * rows
    ]
    score = log_weight.double() - (-uniform.clamp_min(1e-300).log()).log().to(flat.device)
    best = score.topk(min(count, rows))
    vectors, scores = flat[best.indices], best.values
    if world > 1:
        all_vectors = [torch.empty_like(vectors) for _ in range(world)]
        all_scores = [torch.empty_like(scores) for _ in range(world)]
        dist.all_gather(all_vectors, vectors.contiguous())
        dist.all_gather(all_scores, scores)
        vectors, scores = torch.cat(all_vectors), torch.cat(all_scores)
        vectors = vectors[scores.topk(min(count, scores.shape[0])).indices]
        scores = scores.topk(vectors.shape[0]).values
    return vectors[scores > -math.inf]  # a row that is already its code (error 0) is no candidate
