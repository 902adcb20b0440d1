"""The critic: the best of each class, whatever scores them, and nothing but the best."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
import torch
from comparing import same_codes
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sample import models, refused
from torch import Tensor

from vqvae2.codes import Codes
from vqvae2.config.sampling import Sampling
from vqvae2.generate.reject import Chosen, best_candidates, candidate_labels, draw_best, keep_best
from vqvae2.generate.sample import draw_samples

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=30)
FRACTIONS = st.sampled_from([1.0, 0.9, 0.7, 0.5, 1 / 3, 0.3, 0.25, 0.1, 0.05])
WANTED = [1, 0, 0, 1, 1, 0, 1]


def brightness(images: Tensor, labels: Tensor) -> Tensor:
    """A scorer: the mean of class 0, its negative of class 1."""
    return images.mean((1, 2, 3)) * (1 - 2 * labels.to(images.device))


def chosen(
    labels: list[int], fraction: float, seed: int = 3, scorer: Any = brightness, **options: Any
) -> Chosen:
    """All parts in one."""
    parts = list(draw_best(*models(), labels, seed, Sampling(**options), scorer, fraction))
    assert [number for part in parts for number in part.numbers] == list(range(len(labels)))
    return Chosen(
        range(len(labels)),
        torch.cat([p.labels for p in parts if p.labels is not None]),
        Codes.cat([p.codes for p in parts]),
        torch.cat([p.images for p in parts]),
        torch.cat([p.scores for p in parts]),
        torch.cat([p.candidates for p in parts]),
    )


# --- which are kept ---


@settings(deadline=None)
@given(LABELS, FRACTIONS, st.integers(0, 99))
def test_the_best_of_each_class_are_kept(labels: list[int], fraction: float, seed: int) -> None:
    """As sorting each class by hand has it; few different scores, so that there are ties."""
    scores = torch.randint(4, (len(labels),), generator=torch.Generator().manual_seed(seed)).float()
    expected: list[int] = []
    for label in set(labels):
        own = sorted((-float(scores[i]), i) for i in range(len(labels)) if labels[i] == label)
        count = math.ceil(Fraction(str(fraction)) * len(own))
        expected += [i for _, i in own[:count]]
    assert keep_best(scores, torch.tensor(labels), fraction).tolist() == sorted(expected)


def test_a_fraction_is_the_decimal_number_that_is_written() -> None:
    """In floating point .07 x 100 is above 7, and its ceiling 8."""
    assert math.ceil(0.07 * 100) == 8
    for fraction, count, kept in ((0.1, 30, 3), (0.07, 100, 7), (0.29, 100, 29), (0.55, 100, 55), (1, 7, 7)):
        assert len(keep_best(torch.rand(count), torch.zeros(count, dtype=torch.int64), fraction)) == kept


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, math.nan, math.inf])
def test_fractions_out_of_range(fraction: float) -> None:
    told = f"0 < fraction <= 1, found {fraction}"
    refused(lambda: keep_best(torch.zeros(2), torch.tensor([0, 0]), fraction), told)
    refused(lambda: candidate_labels([0, 1], fraction), told)
    refused(lambda: chosen(WANTED, fraction), told)


@settings(deadline=None)
@given(LABELS, FRACTIONS)
def test_as_many_candidates_as_leave_what_is_wanted(labels: list[int], fraction: float) -> None:
    """Keeping the fraction leaves each class its count; one candidate more of any class would leave one too many."""
    candidates, share = Counter(candidate_labels(labels, fraction)), Fraction(str(fraction))
    wanted = Counter(labels)
    assert candidates.keys() == wanted.keys()
    for label, count in candidates.items():
        assert math.ceil(share * count) == wanted[label]
        assert math.ceil(share * (count + 1)) == wanted[label] + 1
    places = best_candidates(torch.rand(candidates.total()), labels, fraction)
    classes = candidate_labels(labels, fraction)
    assert [classes[place] for place in places] == labels
    assert len(set(places)) == len(labels)
    for label in wanted:
        own = [place for place, wants in zip(places, labels, strict=True) if wants == label]
        assert own == sorted(own)


def test_candidates_are_in_the_order_of_the_plan() -> None:
    assert candidate_labels([0, 1, 2, 0], 1) == [0, 1, 2, 0]
    assert candidate_labels([0, 1, 2], 0.5) == [0, 1, 2] * 2
    assert candidate_labels([2, 0, 2], 0.5) == [2, 0, 2, 2, 0, 2]
    assert candidate_labels([0, 1, 1], 0.4) == [0, 1, 1, 0, 1, 1, 1]  # 2.5 and 5


# --- drawing ---


@pytest.mark.parametrize(("batch", "seed"), [(1, 3), (3, 4), (64, 5)])
def test_keeping_all_is_plain_sampling(batch: int, seed: int) -> None:
    """Bit for bit: the same codes, the same pictures, each its own candidate."""
    sampling = Sampling(batch=batch)
    plain = list(draw_samples(*models(), len(WANTED), WANTED, seed, sampling))
    kept = list(draw_best(*models(), WANTED, seed, sampling, brightness, 1.0))
    for a, b in zip(plain, kept, strict=True):
        assert a.numbers == b.numbers
        assert b.labels is not None
        assert torch.equal(a.labels if a.labels is not None else torch.empty(0), b.labels)
        assert same_codes(a.codes, b.codes)
        assert torch.equal(a.images, b.images)
        assert b.candidates.tolist() == list(b.numbers)
        assert torch.equal(b.scores, brightness(a.images, b.labels).double())


@pytest.mark.parametrize(("fraction", "seed"), [(0.5, 3), (0.3, 4), (0.1, 5)])
def test_what_is_chosen_is_the_top_of_all_candidates(fraction: float, seed: int) -> None:
    candidates = candidate_labels(WANTED, fraction)
    (every,) = draw_samples(*models(), len(candidates), candidates, seed, Sampling(batch=len(candidates)))
    assert every.labels is not None
    scores = brightness(every.images, every.labels)
    found = chosen(WANTED, fraction, seed, batch=4)
    assert found.labels is not None
    assert found.labels.tolist() == WANTED
    for label in (0, 1):
        top = scores[every.labels == label].sort(descending=True).values[: WANTED.count(label)]
        own = found.scores[found.labels == label].sort(descending=True).values
        assert torch.allclose(own.float(), top, atol=1e-6)
    assert same_codes(found.codes, every.codes[found.candidates])
    assert torch.allclose(found.images, every.images[found.candidates], atol=1e-5)
    assert found.candidates.tolist() == best_candidates(scores, WANTED, fraction)


@pytest.mark.parametrize(("batch", "seed"), [(1, 3), (4, 4), (64, 5)])
def test_the_choice_does_not_depend_on_the_batch(batch: int, seed: int) -> None:
    one, other = chosen(WANTED, 0.4, seed, batch=7), chosen(WANTED, 0.4, seed, batch=batch)
    assert torch.equal(one.candidates, other.candidates)
    assert same_codes(one.codes, other.codes)
    assert torch.allclose(one.images, other.images, atol=1e-5)


def test_of_equals_the_first_is_kept() -> None:
    """A critic without an opinion keeps the first candidates of each class."""
    found = chosen(WANTED, 0.25, scorer=lambda images, labels: torch.ones(len(labels)), batch=3)
    assert found.candidates.tolist() == list(range(len(WANTED)))


@pytest.mark.parametrize("seed", [3, 4])
def test_a_property_that_the_scorer_prefers_is_raised(seed: int) -> None:
    """Of brightness 1 the kept have more, the fewer are kept; of class 1, for which it is a fault, they have less."""
    labels = [0, 1] * 6
    means = []
    for fraction in (1.0, 0.5, 0.1):
        found = chosen(labels, fraction, seed)
        assert found.labels is not None
        bright = found.images.mean((1, 2, 3))
        means.append((bright[found.labels == 0].mean(), bright[found.labels == 1].mean()))
    assert means[0][0] < means[1][0] < means[2][0]
    assert means[0][1] > means[1][1] > means[2][1]


def test_no_more_than_a_batch_and_twice_the_wanted_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    honest = Codes.cat

    def counted(parts: Any) -> Codes:
        held.append(sum(map(len, parts)))
        return honest(parts)

    monkeypatch.setattr(Codes, "cat", counted)
    list(draw_best(*models(), WANTED, 3, Sampling(batch=4), brightness, 0.1))
    assert max(held) < 2 * len(WANTED) + 4
    assert len(held) > 3


@pytest.mark.parametrize(
    ("scorer", "found"),
    [
        (lambda images, labels: images.mean((2, 3)), r"each of 7 images, found \(7, 3\)"),
        (lambda images, labels: images.mean((1, 2, 3)) * math.nan, "7 that are not finite"),
    ],
)
def test_scorers_that_give_no_score(scorer: Any, found: str) -> None:
    refused(lambda: chosen(WANTED, 0.5, scorer=scorer, batch=7), found)
