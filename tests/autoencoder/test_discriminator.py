"""The discriminator: what a logit sees, who learns from which loss, and the losses themselves."""

from __future__ import annotations

import math

import pytest
import torch

from vqvae2.autoencoder.discriminator import (
    PatchDiscriminator,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)


def images(count: int = 3, channels: int = 3, side: int = 32, seed: int = 0) -> torch.Tensor:
    """Uniform noise in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, side, side, generator=generator) * 2 - 1


@pytest.mark.parametrize(("depth", "patch"), [(1, 10), (2, 20), (3, 40)])
def test_a_logit_sees_one_patch(depth: int, patch: int) -> None:
    torch.manual_seed(depth)
    x = images(1, side=96).requires_grad_()
    logits = PatchDiscriminator(3, width=8, depth=depth)(x)
    assert logits.shape == (1, 1, 96 // 2**depth, 96 // 2**depth)
    middle = logits.shape[2] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], x)
    for axis in (2, 3):
        touched = gradient.abs().amax([i for i in range(4) if i != axis]).nonzero()
        assert touched.max() - touched.min() + 1 == patch


def test_a_frozen_discriminator_judges_alike_and_does_not_learn() -> None:
    torch.manual_seed(0)
    net = PatchDiscriminator(1, width=8)
    x = images(channels=1).requires_grad_()
    assert torch.equal(net.frozen(x), net(x))
    generator_loss(net.frozen(x), hinge=True).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_losses_of_known_logits() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    assert discriminator_loss(real, fake, hinge=True) == pytest.approx(0.25 + 1.0)
    assert generator_loss(fake, hinge=True) == pytest.approx(1.0)

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    expected = (softplus(-2) + softplus(-0.5) + softplus(-3) + softplus(1)) / 2
    assert discriminator_loss(real, fake, hinge=False) == pytest.approx(expected)
    assert generator_loss(fake, hinge=False) == pytest.approx((softplus(3) + softplus(-1)) / 2)


def test_the_gradient_penalty_of_a_linear_score() -> None:
    """The gradient of w.x is w everywhere, so the penalty is half its squared norm, and w learns from it.

    The same score given four times, a quarter each, has the same squared norm, divided by four logits.
    """
    weight = images(1, seed=1).requires_grad_()
    x = images(5).requires_grad_()
    logits = (weight * x).sum((1, 2, 3), keepdim=True)
    quarter = gradient_penalty((logits / 4).expand(5, 1, 2, 2), x)
    penalty = gradient_penalty(logits, x)
    assert penalty.item() == pytest.approx(4 * quarter.item(), rel=1e-5)
    assert penalty.item() == pytest.approx(0.5 * weight.detach().square().sum().item(), rel=1e-5)
    penalty.backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, weight.detach())
