"""The likelihood of codes: units that convert into each other, and the paper's own figures."""

from __future__ import annotations

import math

import pytest
import torch

from vqvae2.codes import Geometry
from vqvae2.evaluate.code_likelihood import likelihood
from vqvae2.evaluate.metrics import MetricError
from vqvae2.evaluate.parts.likelihood import likelihoods
from vqvae2.evaluate.tables import tables

PAPER = Geometry(((32, 32), (64, 64)), (512, 512))


def test_a_prior_that_knows_nothing_needs_the_fixed_length() -> None:
    geometry = Geometry(((2, 3), (4, 6)), (16, 32))
    nats = torch.tensor([6 * math.log(16), 24 * math.log(32)], dtype=torch.float64)
    found = likelihood(-nats.expand(5, 2), geometry, (3, 8, 12))
    assert found.nats_per_code == pytest.approx((math.log(16), math.log(32)))
    assert found.bits_per_code == pytest.approx((4, 5))
    assert found.bits_per_image == pytest.approx(geometry.bits) == pytest.approx(144)
    assert found.bits_per_pixel == pytest.approx(1.5)
    assert found.bits_per_dimension == pytest.approx(0.5)


def test_the_papers_figures() -> None:
    """Table 1, validation: 3.41 and 3.45 nats per code are 25.4 kbit for an image of 256 px, 0.39 bits per pixel."""
    found = likelihood(-torch.tensor([[3.41 * 1024, 3.45 * 4096]]).double(), PAPER, (3, 256, 256))
    assert found.bits_per_code == pytest.approx((4.92, 4.98), abs=0.005)
    assert found.bits_per_image == pytest.approx(25_425, abs=10)
    assert found.bits_per_pixel == pytest.approx(0.39, abs=0.005)


@pytest.mark.parametrize("seed", [0, 1])
def test_likelihood_is_the_mean_over_images(seed: int) -> None:
    log_prob = -100 * torch.rand(7, 2, generator=torch.Generator().manual_seed(seed))
    whole = likelihood(log_prob, PAPER, (1, 256, 256))
    each = [likelihood(row[None], PAPER, (1, 256, 256)).bits_per_image for row in log_prob]
    assert whole.bits_per_image == pytest.approx(sum(each) / 7, rel=1e-9)
    assert whole.bits_per_pixel == whole.bits_per_dimension


@pytest.mark.parametrize("shape", [(3, 1), (0, 2), (2,)])
def test_likelihood_of_other_levels(shape: tuple[int, ...]) -> None:
    with pytest.raises(MetricError, match=r"expected log-probabilities \[B, 2\]"):
        likelihood(torch.zeros(shape), PAPER, (3, 256, 256))


def test_a_level_whose_codes_are_certain_has_no_excess() -> None:
    """As where one code of a collapsed codebook takes every position."""
    training, heldout = torch.tensor([[0.0, -2.0]]), torch.tensor([[-1.0, -3.0]])
    figures = likelihoods({"training": training, "held out": heldout}, PAPER, (3, 256, 256)).figures
    assert figures["gap"] == [None, pytest.approx(0.5)]
    assert tables(figures)
