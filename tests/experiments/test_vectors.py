"""experiments/vectors.py: the prior over vectors is causal, its density integrates to one, and samples follow it."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from vqvae2.codes import Geometry
from vqvae2.config.models import LevelPriorConfig

sys.path.append(str(Path(__file__).parents[2] / "experiments"))

from _vector_prior import VectorPixelCNN

CONFIG = LevelPriorConfig(hidden=8, residual=8, layers=2, kernel=3, attention_every=2, heads=2, dropout=0.0)


@pytest.fixture
def prior() -> torch.nn.Module:
    """A prior of the finer of two levels, 3 classes, vectors of 2 dimensions, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = VectorPixelCNN(CONFIG, Geometry(((2, 2), (4, 4)), (5, 5)), 1, 3, dim=2, components=3)
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, 0, 0.3)
    return made.double().eval()


def inputs() -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(2, 4, 4, 2, generator=generator, dtype=torch.float64)
    coarser = torch.randn(2, 2, 2, 2, generator=generator, dtype=torch.float64)
    return vectors, (coarser,), torch.tensor([0, 2])


def test_steps_are_the_forward_pass(prior: torch.nn.Module) -> None:
    vectors, coarser, labels = inputs()
    whole = prior(vectors, coarser, labels).flatten(2)
    cache, previous = prior.start(2, prior.context(coarser, labels)), None
    for position, vector in enumerate(vectors.flatten(1, 2).unbind(1)):
        parameters, cache = prior.step(cache, position, previous)
        torch.testing.assert_close(parameters, whole[:, :, position])
        previous = vector


def test_a_position_sees_what_is_before_it_alone(prior: torch.nn.Module) -> None:
    vectors, coarser, labels = inputs()
    before = prior(vectors, coarser, labels).flatten(2)
    for position in (0, 5, 11):
        other = vectors.clone()
        other.view(2, 16, 2)[:, position] += 1
        changed = (prior(other, coarser, labels).flatten(2) - before).abs().amax((0, 1)) > 1e-12
        assert not changed[: position + 1].any()
        assert changed[position + 1]


def test_the_density_of_a_position_integrates_to_one(prior: torch.nn.Module) -> None:
    """Over the last vector, on a fine grid of the plane."""
    _, coarser, labels = inputs()
    side = torch.arange(-30, 30, 0.1, dtype=torch.float64)
    plane = torch.stack(torch.meshgrid(side, side, indexing="ij"), 2).view(-1, 1, 1, 2)
    mean = torch.full((1, 3 * 5), 0.4, dtype=torch.float64)

    class Fixed(VectorPixelCNN):
        def forward(self, codes: torch.Tensor, *_: object) -> torch.Tensor:
            return mean.view(1, -1, 1, 1).expand(len(codes), -1, 1, 1)

    prior.__class__ = Fixed
    nll = prior.nll(plane, coarser, labels).double()
    assert float(torch.exp(-nll).sum() * 0.01) == pytest.approx(1, abs=1e-4)


def test_draws_follow_the_mixture(prior: torch.nn.Module) -> None:
    """Without weights every position is the same mixture: its mean is that of the components, weighed."""
    for parameter in prior.parameters():
        torch.nn.init.zeros_(parameter)
    logits = torch.tensor([0.0, 1.0, -1.0])
    means = torch.tensor([[0.0, 1.0], [2.0, -1.0], [-1.0, 0.5]])
    with torch.no_grad():
        prior.bias.copy_(torch.cat([logits, means.flatten(), torch.full((6,), -1.0)]))
    bound = (torch.full((2,), -9.0), torch.full((2,), 9.0))
    prior.float()
    coarser = (torch.zeros(400, 2, 2, 2),)
    drawn = prior.draw(coarser, torch.zeros(400, dtype=torch.int64), 400, bound, seed=0).flatten(0, 2)
    share = logits.softmax(0)
    mean = share @ means
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.05, rtol=0)
    variance = share @ (means - mean).square() + math.exp(-2)
    torch.testing.assert_close(drawn.var(0), variance, atol=0.05, rtol=0)
