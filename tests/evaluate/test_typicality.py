"""Typicality: neither too unlikely nor too likely."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vqvae2.evaluate.typicality import UNLIKE, Typical


def noise(n: int, seed: int = 0) -> Tensor:
    """log p of n images at two levels: about -300 and -900, which vary by 30 and 50."""
    normal = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return normal * torch.tensor([30.0, 50.0]) + torch.tensor([-300.0, -900.0])


@pytest.mark.parametrize("seed", [0, 1])
def test_too_likely_is_as_untypical_as_too_unlikely(seed: int) -> None:
    typical = Typical(noise(500, seed))
    middle, far = typical.mean[None], 6 * typical.standard_deviation
    assert typical.score(middle).item() == 0
    assert typical.typicality(middle).item() == 1
    for level in (0, 1):
        for sign in (-1, 1):
            other = middle.clone()
            other[0, level] += sign * far[level]
            assert typical.score(other).item() == pytest.approx(6)
            assert typical.typicality(other).item() == pytest.approx(1 / 501, abs=2e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_level_counts_in_its_own_deviations(seed: int) -> None:
    """However much smaller its bits are than another level's."""
    typical = Typical(noise(500, seed) * torch.tensor([1.0, 100.0]))
    a, b = typical.mean[None].repeat(2, 1)
    a[0] += 4 * typical.standard_deviation[0]
    b[1] += 4 * typical.standard_deviation[1]
    assert torch.allclose(*typical.score(torch.stack([a, b])))


@pytest.mark.parametrize("seed", [0, 1])
def test_typicality_of_images_like_the_held_out_ones_is_even(seed: int) -> None:
    """As a p-value: below a with probability a."""
    found = Typical(noise(2000, seed)).typicality(noise(2000, seed=seed + 2))
    for a in (0.05, 0.2, 0.5, 0.9):
        assert float((found <= a).double().mean()) == pytest.approx(a, abs=0.035)


@pytest.mark.parametrize("levels", [1, 3])
def test_few_held_out_images_promise_no_more_than_many(levels: int) -> None:
    """With 19 of them, too, an image like them is called unlike with probability 5 %, whatever the number of levels."""
    drawn = torch.randn(500, 19 + 40, levels, generator=torch.Generator().manual_seed(levels))
    found = torch.stack([Typical(some[:19]).typicality(some[19:]) for some in drawn])
    assert float((found <= UNLIKE).double().mean()) == pytest.approx(0.05, abs=0.006)


def test_the_image_counts_in_its_own_statistics() -> None:
    """Against all N + 1 images written out, one of which is a held-out image itself."""
    usual, others = noise(30), torch.cat([noise(20, 1) * 1.3, noise(1)])
    expected = []
    for image in others:
        every = torch.cat([usual, image[None]]).double()
        scores = ((every - every.mean(0)).abs() / every.std(0)).sum(1)
        expected.append(float((scores >= scores[-1]).double().mean()))
    found = Typical(usual).typicality(others)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert Typical(usual).typicality(others.repeat(60, 1))[-len(others) :].tolist() == pytest.approx(
        expected
    ), "in parts, too"


def test_a_level_that_never_varies() -> None:
    typical = Typical(torch.tensor([[-1.0, -5.0], [-1.0, -7.0]]))
    assert len(typical) == 2
    assert typical.score(torch.tensor([[-1.0, -6.0]])).isfinite().all()
