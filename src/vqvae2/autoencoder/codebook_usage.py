"""How evenly the codes of a codebook are used. Shapes: K codes, L levels (coarsest first)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vqvae2.autoencoder.base import perplexity, widest_float
from vqvae2.codes import CodesError
from vqvae2.data.store import CodeStore

_AT_ONCE = 4096  # images whose codes are read from the store at a time


@dataclass(frozen=True)
class CodebookUsage:
    """How often each code of a level is used over a set of images.

    Attributes:
        counts: [K] integers, how often each code is used.
        used: the share of the K codes that is used at all.
        perplexity: exp of the entropy of the counts, 1 to K (van den Oord et al. 2017, arXiv 1711.00937): as many codes, used
            equally often, would have the same entropy.
        order: [K] int64, codes from the most to the least used; among equal counts the lower code comes first.
    """

    counts: Tensor
    used: float
    perplexity: float
    order: Tensor


def codebook_usage(counts: Tensor) -> CodebookUsage:
    """The usage figures of counts [K]."""
    used, spread = usage_scalars(counts)
    return CodebookUsage(
        counts,
        float(used),
        float(spread),
        counts.argsort(descending=True, stable=True),
    )


def usage_scalars(counts: Tensor) -> tuple[Tensor, Tensor]:
    """`used` and `perplexity` of counts [K] as scalars on their device, so that the host need not wait for them."""
    return (counts > 0).to(widest_float(counts.device)).mean(), perplexity(counts)


def code_counts(codes: Tensor, size: int) -> Tensor:
    """How often each of `size` codes occurs, [K] int64; the counts of batches can be added.

    Args:
        codes: integers in 0 .. size - 1, any shape.

    Raises:
        CodesError: a code outside this range.
    """
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
        raise CodesError(f"expected codes in 0..{size - 1}, found {int(codes.min())}..{int(codes.max())}")
    return torch.bincount(codes.flatten().long(), minlength=size)


def stored_usage(store: CodeStore) -> list[CodebookUsage]:
    """The usage of each level's codes over the training images of a code store, with all their stored copies."""
    vocabulary = store.geometry.vocabulary
    counts = [torch.zeros(size, dtype=torch.int64) for size in vocabulary]
    for start in range(0, len(store.train), _AT_ONCE):
        codes = store.codes(store.train[start : start + _AT_ONCE])
        for count, level, size in zip(counts, codes.levels, vocabulary, strict=True):
            count += code_counts(level, size)
    return [codebook_usage(count) for count in counts]
