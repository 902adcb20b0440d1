"""Finite scalar quantization: the lattice, its indices, its gradient, and that it stands where a codebook stands."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqvae2.autoencoder.fsq import FiniteScalarQuantizer, lattice
from vqvae2.autoencoder.model import VQVAE
from vqvae2.config.models import AutoencoderConfig, ConfigError, parse


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        (64, (8, 8)),
        (240, (8, 6, 5)),
        (512, (8, 8, 8)),
        (1000, (8, 5, 5, 5)),
        (1024, (8, 8, 4, 4)),
        (4096, (8,) * 4),
        (4375, (7, 5, 5, 5, 5)),
        (2, (2,)),
    ],
)
def test_the_papers_lattices(size: int, sides: tuple[int, ...]) -> None:
    found = lattice(size)
    assert math.prod(found) == size
    assert found == sides or (len(found), max(found) - min(found)) < (len(sides), max(sides) - min(sides))


@pytest.mark.parametrize("size", [0, 1, 11, 22, 2435])
def test_no_lattice(size: int) -> None:
    with pytest.raises(ValueError, match="factors of 2 to 8"):
        lattice(size)


@given(st.sampled_from([2, 3, 8, 10, 64, 240, 512, 1000]), st.integers(1, 9))
def test_every_index_is_its_own_point(size: int, dim: int) -> None:
    q = FiniteScalarQuantizer(size, dim)
    every = torch.arange(size)
    half = q.sides // 2
    points = (every[:, None] // q.basis) % q.sides - half
    assert len(points.unique(dim=0)) == size
    assert ((points + half) * q.basis).sum(1).equal(every)
    assert ((points >= -half) & (points < q.sides - half)).all()


@given(st.sampled_from([2, 5, 8, 48, 512]), st.integers(0, 99))
def test_every_point_is_reached_and_looked_up(size: int, seed: int) -> None:
    torch.manual_seed(seed)
    q = FiniteScalarQuantizer(size, len(lattice(size)))
    with torch.no_grad():  # wide inputs straight into the lattice
        q.inward.weight.copy_(torch.eye(len(q.sides)))
        q.inward.bias.zero_()
    z = torch.atanh(0.999 * (2 * torch.rand(200 * size, q.embedding_dim) - 1))
    out = q(z)
    assert len(out.encoding_indices.unique()) == size
    assert torch.allclose(out.quantize, q.lookup(out.encoding_indices), atol=1e-6)
    assert torch.allclose(q.codebook()[out.encoding_indices], out.quantize, atol=1e-6)
    assert out.loss == 0


def test_the_gradient_is_that_of_the_bounded_values() -> None:
    torch.manual_seed(0)
    q = FiniteScalarQuantizer(240, 6).double()
    z = torch.randn(50, 6, dtype=torch.float64, requires_grad=True)
    (q(z).quantize * torch.arange(6)).sum().backward()
    again = z.detach().requires_grad_()
    (q.outward(q._bound(q.inward(again)) / (q.sides // 2)) * torch.arange(6)).sum().backward()
    assert z.grad is not None
    assert again.grad is not None
    assert torch.allclose(z.grad, again.grad, atol=1e-12)
    assert z.grad.abs().sum() > 0


def test_eval_counts_nothing_and_the_mean_code_follows_use() -> None:
    torch.manual_seed(0)
    q = FiniteScalarQuantizer(64, 5)
    assert torch.allclose(q.mean_code(), q.codebook().mean(0), atol=1e-6)
    q.eval()(torch.randn(9, 5))
    assert q.usage.sum() == 0
    out = q.train()(torch.randn(40, 5))
    assert q.usage.sum() == 40
    assert torch.allclose(q.mean_code(), out.quantize.detach().mean(0), atol=1e-6)


def test_empty_batches_and_wrong_shapes() -> None:
    q = FiniteScalarQuantizer(64, 5)
    out = q(torch.zeros(0, 3, 5))
    assert out.encoding_indices.shape == (0, 3)
    assert out.perplexity == 1
    with pytest.raises(ValueError, match="expected vectors of 5"):
        q(torch.zeros(2, 4))


def test_a_hierarchy_of_lattices_learns_and_its_codes_are_all_that_passes() -> None:
    torch.manual_seed(0)
    config = AutoencoderConfig(
        strides=(2, 2), codes=(48, 64), code_dim=4, hidden=8, residual=4, quantizer="fsq"
    )
    model = VQVAE(config)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    images = torch.rand(8, 3, 1, 1).expand(-1, -1, 8, 8) * 2 - 1
    errors = []
    for _ in range(60):
        out = model(images)
        errors.append((out.images - images).square().mean())
        optimizer.zero_grad()
        (errors[-1] + out.commitment).backward()
        optimizer.step()
    assert errors[-1] < 0.5 * errors[0]
    model.eval()
    assert torch.allclose(model.decode(model.encode(images)), model(images).images.clamp(-1, 1), atol=1e-5)


def test_codebooks_that_are_no_lattice_are_refused() -> None:
    with pytest.raises(ConfigError, match="no prime factor above 7"):
        parse({"autoencoder": {"quantizer": "fsq", "codes": [512, 2435]}})
    with pytest.raises(ConfigError, match="entropy_penalty 0"):
        parse({"autoencoder": {"quantizer": "fsq", "entropy_penalty": 0.1}})
