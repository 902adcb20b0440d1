"""Classifier-based rejection sampling (Razavi et al. 2019, section 3.3), with any scorer in place of the classifier.

    labels of the samples --candidate_labels--> labels of the candidates --draw_candidates--> scored candidates --> pool
    scores in the pool --best_candidates--> one candidate per sample --choose: its codes from the pool, decoded--> images

A sample is near the data of its class if a classifier recognises it as that class. Of n candidates of a class, the best
ceil(fraction * n) are kept. The paper does not say whether all classes share one ranking. Here each class has its own,
which is our decision: the number of samples per class then stays equal, without which a Frechet distance would also
compare the shares of the classes.

The pool is where scored candidates wait until all are drawn. `MemoryPool` holds them in memory, for `draw_best`;
`generate.sample_folder.SampleFolder` holds them on disk, so that `vqvae2 sample --critic` can be interrupted, resumed and
shared between processes.

Shapes: B batch, M candidates, n samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes
from vqvae2.config.numbers import real
from vqvae2.config.sampling import Sampling
from vqvae2.errors import UserError
from vqvae2.files.parts import cut
from vqvae2.generate.sample import Drawn, draw_samples
from vqvae2.prior.hierarchy import HierarchicalPrior

Scorer = Callable[[Tensor, Tensor], Tensor]
"""(images [B, C, H, W] in [-1, 1], labels [B]) -> scores [B], higher is better; for example p(label | image).

Both are on the device of the networks; the scores may be on any."""


@dataclass(frozen=True)
class Scored(Drawn):
    """Samples with their scores.

    Attributes:
        scores: float64 [B] on the CPU.
    """

    scores: Tensor


@dataclass(frozen=True)
class Chosen(Scored):
    """Samples that were kept; labels, codes and images are on the device of the networks, the others on the CPU.

    Attributes:
        candidates: int64 [B], the number of the candidate that each sample is, on the CPU.
    """

    candidates: Tensor


class Pool(Protocol):
    """Holds scored candidates until the best of them are known."""

    def add(self, part: Scored) -> None:
        """Keep one batch of candidates."""

    def scores(self, count: int) -> Tensor:
        """Scores of the candidates 0 .. count - 1, float64 [count]."""

    def codes(self, numbers: Sequence[int]) -> Codes:
        """Codes of some of the best candidates, in the order of `numbers`, on the CPU."""


class MemoryPool:
    """A pool in memory. Of the codes it holds at most two for each sample that is wanted, and one batch.

    Candidates must be added in the order of their numbers.

    Args:
        labels: class number of each sample that is wanted.
    """

    def __init__(self, labels: Sequence[int]) -> None:
        self._wanted = torch.bincount(torch.tensor(labels))
        self._limit = 2 * len(labels)
        self._scores: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._numbers: list[Tensor] = []  # of the candidates whose codes are held, ascending
        self._codes: list[Codes] = []

    def add(self, part: Scored) -> None:
        """Keep one batch; drop the codes of candidates that cannot be among the best any more."""
        assert part.labels is not None
        self._scores.append(part.scores)
        self._labels.append(part.labels.cpu())
        self._numbers.append(torch.tensor(part.numbers))
        self._codes.append(part.codes.to("cpu"))
        if sum(map(len, self._codes)) >= self._limit:
            self._drop()

    def scores(self, count: int) -> Tensor:
        """Scores of the candidates 0 .. count - 1, float64 [count]."""
        return torch.cat(self._scores)[:count]

    def codes(self, numbers: Sequence[int]) -> Codes:
        """Codes of candidates that are still held."""
        if len(self._codes) > 1:
            self._drop()
        return self._codes[0][torch.searchsorted(self._numbers[0], torch.tensor(numbers))]

    def _drop(self) -> None:
        """Keep the codes of the best of each class: a candidate that is not among the best so far never will be."""
        numbers = torch.cat(self._numbers)
        scores, labels = torch.cat(self._scores)[numbers], torch.cat(self._labels)[numbers]
        kept = best_of_each(scores, labels, self._wanted)
        self._numbers, self._codes = [numbers[kept]], [Codes.cat(self._codes)[kept]]


@torch.no_grad()
def scored(part: Drawn, scorer: Scorer) -> Scored:
    """A batch of samples of a model with classes, with their scores.

    Raises:
        UserError: the scorer does not return one finite score per image.
    """
    assert part.labels is not None
    scores = scorer(part.images, part.labels).cpu().double()
    if scores.shape != part.labels.shape or not scores.isfinite().all():
        raise UserError(
            f"expected a finite score for each of {len(part.labels)} images, found {tuple(scores.shape)} "
            f"with {int((~scores.isfinite()).sum())} that are not finite"
        )
    return Scored(part.numbers, part.labels, part.codes, part.images, scores)


def keep_best(scores: Tensor, labels: Tensor, fraction: float) -> Tensor:
    """Indices, ascending, of the best ceil(fraction * count) of each class; of equal scores the first is kept.

    Args:
        scores: [M].
        labels: int [M], the class of each.
        fraction: 0 < fraction <= 1, taken as the decimal number that is written: a tenth of 30 is 3. 1 keeps all.

    Raises:
        UserError: fraction out of range.
    """
    share = _exact(fraction)
    counts = torch.bincount(labels.long().cpu())
    return best_of_each(scores, labels, torch.tensor([math.ceil(share * count) for count in counts.tolist()]))


def best_of_each(scores: Tensor, labels: Tensor, quota: Tensor) -> Tensor:
    """Indices, ascending, of the best quota[c] (or all, if there are fewer) of each class c; of equal scores the first is kept.

    Args:
        scores: [M].
        labels: int [M], the class of each, 0 to K-1.
        quota: int [K].
    """
    labels = labels.long().cpu()
    order = scores.cpu().argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]
    classes, counts = labels[order], torch.bincount(labels, minlength=len(quota))
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[classes]
    return order[rank < quota[classes]].sort().values


_MOST = 10_000_000  # candidates: more would not be drawn in a month (our decision)


def candidate_labels(labels: Sequence[int], fraction: float) -> list[int]:
    """The class number of each candidate, such that `keep_best` keeps as many of each class as `labels` has.

    For a class of which w samples are wanted there are floor(w / fraction) candidates, the largest count for which
    ceil(fraction * count) is w. They follow the order of `labels`, repeated; with fraction 1 they are `labels`.

    Args:
        labels: class number of each sample that is wanted.
        fraction: as for `keep_best`.

    Raises:
        UserError: fraction out of range, or so small that there would be more than ten million candidates.
    """
    share = _exact(fraction)
    left = {label: math.floor(count / share) for label, count in Counter(labels).items()}
    if sum(left.values()) > _MOST:
        raise UserError(
            f"expected at most {_MOST:,} candidates, found {sum(left.values()):,} (fraction {fraction})"
        )
    candidates: list[int] = []
    while any(left.values()):
        for label in labels:
            if left[label]:
                left[label] -= 1
                candidates.append(label)
    return candidates


def best_candidates(scores: Tensor, labels: Sequence[int], fraction: float) -> list[int]:
    """For each sample the number of its candidate: the best of its class, in ascending order within the class.

    Args:
        scores: [M], of all candidates of `candidate_labels(labels, fraction)`.
        labels: class number of each sample.
    """
    classes = torch.tensor(candidate_labels(labels, fraction))
    kept = keep_best(scores, classes, fraction)
    numbers = torch.empty_like(kept)
    numbers[torch.tensor(labels).argsort(stable=True)] = kept[classes[kept].argsort(stable=True)]
    return numbers.tolist()


def draw_candidates(
    autoencoder: VQVAE,
    prior: HierarchicalPrior,
    labels: Sequence[int],
    seed: int,
    sampling: Sampling,
    scorer: Scorer,
    ranges: Iterable[range] | None = None,
) -> Iterator[Scored]:
    """Draw and score candidates, batch by batch: candidate i is sample i of the seed.

    Args:
        labels: class number of each candidate, from `candidate_labels`.
        ranges: the numbers of those to draw, each range one batch; None draws all.

    Raises:
        UserError: a score is not finite.
    """
    drawn = draw_samples(autoencoder, prior, len(labels), list(labels), seed, sampling, ranges)
    return (scored(part, scorer) for part in drawn)


@torch.no_grad()
def choose(
    autoencoder: VQVAE, pool: Pool, labels: Sequence[int], fraction: float, ranges: Iterable[range]
) -> Iterator[Chosen]:
    """The best candidates of a pool, decoded, batch by batch.

    Args:
        pool: holds all candidates of `candidate_labels(labels, fraction)`.
        labels: class number of each sample.
        ranges: the numbers of the samples, each range one batch.

    Raises:
        UserError: fraction out of range.
    """
    scores = pool.scores(len(candidate_labels(labels, fraction)))
    best = best_candidates(scores, labels, fraction)
    device = next(autoencoder.parameters()).device
    for numbers in ranges:
        own = best[numbers.start : numbers.stop]
        codes = pool.codes(own).to(device)
        classes = torch.tensor([labels[i] for i in numbers], device=device)
        images = autoencoder.decode(codes)
        yield Chosen(numbers, classes, codes, images, scores[own], torch.tensor(own))


def draw_best(
    autoencoder: VQVAE,
    prior: HierarchicalPrior,
    labels: Sequence[int],
    seed: int,
    sampling: Sampling,
    scorer: Scorer,
    fraction: float,
) -> Iterator[Chosen]:
    """Draw candidates, keep the best of each class, and return them batch by batch.

    The result depends on the seed, the labels and the fraction alone, except where two scores differ by less than the
    scorer's rounding error, which may depend on the batch size.

    Args:
        labels: class number of each of the n samples that are wanted.
        sampling: its `batch` is both how many candidates are drawn at a time and how many samples are returned at a time.

    Raises:
        UserError: fraction out of range; a score that is not finite.
    """
    candidates = draw_candidates(
        autoencoder, prior, candidate_labels(labels, fraction), seed, sampling, scorer
    )

    def best() -> Iterator[Chosen]:
        pool = MemoryPool(labels)
        for part in candidates:
            pool.add(part)
        yield from choose(autoencoder, pool, labels, fraction, cut(len(labels), sampling.batch))

    return best()


def _exact(fraction: float) -> Fraction:
    share = real(fraction, "the fraction")
    if not 0 < share <= 1:
        raise UserError(f"expected a fraction with 0 < fraction <= 1, found {share}")
    return Fraction(str(share))
