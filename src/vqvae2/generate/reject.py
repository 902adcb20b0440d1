"""The critic: classifier-based rejection sampling (Razavi et al. 2019, section 3.3), whatever the classifier is.

    class plan --candidate_plan--> candidates --drawn and scored--> scores --place_best--> a candidate for each sample

A sample near the manifold of its class is one that a classifier knows to be of it. Of n candidates of a class the best
ceil(fraction * n) are kept. The paper does not say whether classes share one ranking; here each has its own (our decision:
class counts stay equal, without which a Frechet distance would compare class shares).

Shapes: B batch, M candidates, n samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes
from vqvae2.config.sampling import Sampling
from vqvae2.errors import UserError
from vqvae2.generate.sample import Drawn, batches, draw_samples
from vqvae2.prior.hierarchy import HierarchicalPrior

Scorer = Callable[[Tensor, Tensor], Tensor]
"""(images [B, C, H, W] in [-1, 1], labels [B]) -> scores [B], higher is better: the probability of the label, say."""


@dataclass(frozen=True)
class Scored(Drawn):
    """Samples with their scores, float64 [B] on the CPU."""

    scores: Tensor


@dataclass(frozen=True)
class Chosen(Scored):
    """Samples that were kept, each with the number of the candidate that it is, int64 [B]."""

    candidates: Tensor


def scored(part: Drawn, scorer: Scorer) -> Scored:
    """A batch of samples of a model with classes, and their scores.

    Raises:
        UserError: not one finite score for each.
    """
    assert part.labels is not None
    scores = scorer(part.images, part.labels).double().cpu()
    if scores.shape != part.labels.shape or not scores.isfinite().all():
        raise UserError(
            f"expected a finite score for each of {len(part.labels)} pictures, found {tuple(scores.shape)} "
            f"with {int((~scores.isfinite()).sum())} that are not finite"
        )
    return Scored(part.numbers, part.labels, part.codes, part.images, scores)


def keep_best(scores: Tensor, labels: Tensor, fraction: float) -> Tensor:
    """Indices, ascending, of the best ceil(fraction * count) of each class; of equals the one that comes first.

    Args:
        scores: [M].
        labels: int [M], the class of each.
        fraction: 0 < fraction <= 1, taken as the decimal number it is written as: a tenth of 30 is 3. 1 keeps all.

    Raises:
        UserError: fraction out of range.
    """
    share = _exact(fraction)
    counts = torch.bincount(labels.long().cpu())
    return _best(scores, labels, torch.tensor([math.ceil(share * count) for count in counts.tolist()]))


def candidate_plan(plan: Sequence[int], fraction: float) -> list[int]:
    """The class number of each candidate, such that `keep_best` keeps as many of each class as `plan` has.

    Of a class that is wanted w times there are floor(w / fraction) candidates, the most of which ceil(fraction * count) is
    w. They come in the order of the plan, over and over; with fraction 1 this is the plan.

    Raises:
        UserError: fraction out of range.
    """
    share = _exact(fraction)
    left = {label: math.floor(count / share) for label, count in Counter(plan).items()}
    candidates: list[int] = []
    while any(left.values()):
        for label in plan:
            if left[label]:
                left[label] -= 1
                candidates.append(label)
    return candidates


def place_best(scores: Tensor, plan: Sequence[int], fraction: float) -> list[int]:
    """For each sample of `plan` the number of its candidate: those kept of its class, in order.

    Args:
        scores: of all candidates of `candidate_plan(plan, fraction)`.
    """
    labels = torch.tensor(candidate_plan(plan, fraction))
    return _places(keep_best(scores, labels, fraction), labels, plan).tolist()


@torch.no_grad()
def draw_best(
    autoencoder: VQVAE,
    prior: HierarchicalPrior,
    plan: Sequence[int],
    seed: int,
    sampling: Sampling,
    scorer: Scorer,
    fraction: float,
) -> Iterator[Chosen]:
    """Draw `candidate_plan(plan, fraction)`, which are samples 0 .. M - 1 of the seed, and keep the best of each class.

    What is kept depends on the seed, the plan and the fraction alone, but for scores that differ by no more than the
    scorer's rounding, which may depend on the batch. At most two codes for each sample and one batch are held at a time.

    Args:
        plan: class number of each of the n samples that are wanted.
        sampling: its `batch` is both how many are drawn and how many are given out at a time.

    Raises:
        UserError: fraction out of range; a score that is not finite.
    """
    candidates = candidate_plan(plan, fraction)
    labels = torch.tensor(plan)
    quota, device = torch.bincount(labels), next(autoencoder.parameters()).device
    pool: list[_Candidates] = []
    for part in draw_samples(autoencoder, prior, len(candidates), candidates, seed, sampling):
        pool.append(_Candidates.of(part, scorer))
        if part.numbers.stop == len(candidates) or sum(len(held.codes) for held in pool) >= 2 * len(plan):
            pool = [_pruned(pool, quota)]
    (best,) = pool
    order = _places(torch.arange(len(plan)), best.labels, plan)
    for numbers in batches([range(len(plan))], sampling.batch):
        own = order[numbers.start : numbers.stop]
        codes = best.codes[own].to(device)
        images = autoencoder.decode(codes)
        yield Chosen(numbers, best.labels[own], codes, images, best.scores[own], best.numbers[own])


class _Candidates(NamedTuple):
    """Candidates that may yet be among the best, without their pictures."""

    numbers: Tensor
    labels: Tensor
    scores: Tensor
    codes: Codes

    @classmethod
    def of(cls, part: Drawn, scorer: Scorer) -> _Candidates:
        whole = scored(part, scorer)
        assert whole.labels is not None
        return cls(torch.tensor(whole.numbers), whole.labels, whole.scores, whole.codes.to("cpu"))


def _pruned(pool: Sequence[_Candidates], quota: Tensor) -> _Candidates:
    """Those of consecutive batches that are among the best of all: whatever is not among the best of some never is."""
    numbers, labels, scores = (torch.cat(column) for column in zip(*(part[:3] for part in pool), strict=True))
    kept = _best(scores, labels, quota)
    return _Candidates(
        numbers[kept], labels[kept], scores[kept], Codes.cat([part.codes for part in pool])[kept]
    )


def _best(scores: Tensor, labels: Tensor, quota: Tensor) -> Tensor:
    """Indices, ascending, of the best quota[c] (or all, if there are fewer) of each class c."""
    labels = labels.long().cpu()
    order = scores.cpu().argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]
    classes, counts = labels[order], torch.bincount(labels, minlength=len(quota))
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[classes]
    return order[rank < quota[classes]].sort().values


def _places(kept: Tensor, labels: Tensor, plan: Sequence[int]) -> Tensor:
    """`kept` rearranged so that their classes are the plan's, in order within each class."""
    places = torch.empty_like(kept)
    places[torch.tensor(plan).argsort(stable=True)] = kept[labels[kept].argsort(stable=True)]
    return places


def _exact(fraction: float) -> Fraction:
    if not 0 < fraction <= 1:
        raise UserError(f"expected a fraction with 0 < fraction <= 1, found {fraction}")
    return Fraction(str(float(fraction)))
