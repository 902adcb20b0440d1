"""From logits to codes: temperature, top-k, top-p, and one random stream per sample.

Randomness belongs to the sample: the uniform numbers of image i of seed s, level l depend on (s, i, l) alone, so
the image is the same at any batch size (on a card up to rounding in the last float32 digits of the logits, whose sums have another order at other sizes).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vqvae2.config.numbers import Whole, whole
from vqvae2.errors import UserError


def check_seed(seed: Whole) -> int:
    """`seed`, an integer of any library, if it is 0 .. 2^63 - 1, else a ValueError."""
    number = whole(seed, "the seed")
    if not 0 <= number < 2**63:
        raise UserError(f"expected a seed between 0 and 2^63 - 1, found {number}")
    return number


def uniforms(seed: int, images: Sequence[int], level: int, positions: int) -> Tensor:
    """[B, positions] float64 in [0, 1): row b is the stream of image number images[b]."""
    seed = check_seed(seed)
    low, high = seed % 2**32, seed >> 32  # each in a fixed position, or streams of two seeds could coincide
    rows = [
        np.random.Generator(np.random.Philox(np.random.SeedSequence((low, i, level, high)))).random(positions)
        for i in images
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, positions, dtype=torch.float64)


def exact(logits: Tensor) -> Tensor:
    """In float64; on the CPU if the device has none."""
    return logits.to(exact_device(logits.device)).double()


def exact_device(device: torch.device | str) -> torch.device:
    """`device` if it has float64, which Apple's MPS has not; else the CPU."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def guided(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): unnormalised log-probabilities u + g x (c - u); all [..., K].

    Args:
        conditional, unconditional: logits with and without the class.
        guidance: g; 0 is without the class, 1 with it, more is further in the same direction.
    """
    u = unconditional.log_softmax(-1)
    return u + guidance * (conditional.log_softmax(-1) - u)


def probabilities(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Probabilities [B, K] after temperature, top-k and top-p; `exact`.

    Args:
        logits: [B, K].
        temperature: > 0 divides the logits; 0 is the most likely code.
        top_k: keep the k most likely codes; 0 keeps all.
        top_p: keep the fewest codes whose probabilities add up to at least p, 0 < p <= 1.

    Raises:
        ValueError: out of range.
    """
    if not temperature >= 0 or top_k < 0 or not 0 < top_p <= 1:
        raise UserError(
            f"expected temperature >= 0, top_k >= 0 and 0 < top_p <= 1, "
            f"found temperature {temperature}, top_k {top_k}, top_p {top_p}"
        )
    logits = exact(logits)
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    p = torch.softmax((logits - logits.amax(-1, keepdim=True)) / temperature, -1)
    if top_k and top_k < p.shape[-1]:
        keep = p.topk(top_k, -1).indices
        p = torch.zeros_like(p).scatter_(-1, keep, p.gather(-1, keep))
    if top_p < 1:
        order = p.sort(-1, descending=True)
        before = order.values.cumsum(-1) - order.values
        p = torch.zeros_like(p).scatter_(
            -1, order.indices, order.values * (before < top_p * p.sum(-1, keepdim=True))
        )
    return p / p.sum(-1, keepdim=True)


def draw(p: Tensor, uniform: Tensor) -> Tensor:
    """Codes [B] of probabilities [B, K] by inverting the cumulative sum at `uniform` [B]; never one of p = 0."""
    edges = p.cumsum(-1)
    codes = torch.searchsorted(edges, (uniform * edges[:, -1]).unsqueeze(-1), right=True).squeeze(-1)
    last = (p > 0).long() * torch.arange(p.shape[-1], device=p.device)
    return torch.minimum(codes, last.max(-1).values)
