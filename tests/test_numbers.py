"""Numbers and tensors of any kind at the doors of the Python interface: the right answer, or one clear line; prime factors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import vqvae2
from vqvae2 import Run, Sampling
from vqvae2.autoencoder.fsq import FiniteScalarQuantizer
from vqvae2.codes import CodesError
from vqvae2.config.models import AutoencoderConfig, ConfigError
from vqvae2.config.numbers import plain, prime_factors, real, whole
from vqvae2.config.training import TrainConfig
from vqvae2.errors import UserError

INTEGERS: list[Callable[[int], Any]] = [int, np.int64, np.uint8, np.int16, torch.tensor, np.array]
REALS: list[Callable[[float], Any]] = [
    float,
    np.float32,
    np.float64,
    torch.tensor,
    np.array,
    str,
]


@pytest.fixture(scope="module")
def opened(trained: Path) -> Run:
    """The trained run."""
    return Run(trained, "cpu")


@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_of_any_library(kind: Callable[[int], Any], opened: Run, pictures: Path) -> None:
    expected = opened.sample(2, 1, seed=3)
    assert torch.equal(opened.sample(kind(2), kind(1), seed=kind(3)), expected)
    codes = opened.prior.sample(2, torch.tensor([1, 1]), seed=3)
    found = opened.prior.sample(kind(2), torch.tensor([1, 1]), seed=kind(3))
    assert all(torch.equal(a, b) for a, b in zip(codes.levels, found.levels, strict=True))
    assert torch.equal(opened.reconstruct(expected, kind(1)), opened.reconstruct(expected, 1))
    kept = opened.keep(expected[0], levels=kind(1))
    (completed,) = opened.complete(kept, kind(1), seed=kind(3), passes=kind(1))
    assert completed.images.shape == expected[:1].shape
    assert TrainConfig(steps=kind(7)).steps == 7
    assert AutoencoderConfig(strides=(kind(4), kind(2)), codes=[kind(16)] * 2).codes == (16, 16)
    assert vqvae2.VectorQuantizer(kind(8), kind(4)).embeddings.shape == (8, 4)


@pytest.mark.parametrize("kind", REALS)
def test_numbers_of_any_library(kind: Callable[[float], Any], opened: Run) -> None:
    assert Sampling(temperature=kind(0.5), top_p=(kind(0.5), 1)) == Sampling(temperature=0.5, top_p=(0.5, 1))
    assert TrainConfig(lr=kind(0.25)).lr == 0.25
    if kind(0.5) != "0.5":
        assert torch.equal(opened.sample(1, temperature=kind(0.5)), opened.sample(1, temperature=0.5))
        quantizer = vqvae2.VectorQuantizer(8, 4, kind(0.25), kind(0.5), kind(0.5), entropy_penalty=kind(0.5))
        assert (quantizer.commitment_cost, quantizer.decay, quantizer.epsilon) == (0.25, 0.5, 0.5)


@pytest.mark.parametrize("value", [1.5, "3", None, [1], torch.ones(2), np.float64(2)])
def test_what_is_no_integer(value: Any, opened: Run) -> None:
    with pytest.raises(UserError, match="expected an integer for x, found"):
        whole(value, "x")
    with pytest.raises((UserError, TypeError)):
        opened.sample(1, seed=value)


@pytest.mark.parametrize("value", ["3", None, [1], torch.ones(2), "x", 1j])
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(UserError, match="expected a number for x, found"):
        real(value, "x")


def test_plain_values() -> None:
    given = {
        "a": np.float32(0.5),
        "b": [torch.tensor(2), (np.bool_(True),)],
        "c": np.arange(2),
        "d": "text",
        "e": None,
    }
    found = plain(given)
    assert found == {"a": 0.5, "b": [2, (True,)], "c": [0, 1], "d": "text", "e": None}
    assert [type(item) for item in found["b"][1]] == [bool]


# --- images --------------------------------------------------------------------------------------------------------------


def images(count: int, dtype: torch.dtype) -> Tensor:
    """Images of numbers that float16 holds exactly."""
    random = torch.Generator().manual_seed(1)
    return (torch.randint(-8, 9, (count, 3, 16, 16), generator=random) / 8).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_any_floating_point_type(dtype: torch.dtype, opened: Run) -> None:
    expected = opened.reconstruct(images(2, torch.float32))
    found = opened.reconstruct(images(2, dtype))
    assert found.dtype == dtype
    assert torch.equal(found, expected.to(dtype))
    assert torch.equal(opened.log_prob(images(2, dtype)), opened.log_prob(images(2, torch.float32)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_images_that_are_no_floating_point_numbers(dtype: torch.dtype, opened: Run) -> None:
    for call in (opened.reconstruct, opened.log_prob, opened.autoencoder, opened.autoencoder.encode):
        with pytest.raises(ConfigError, match=r"floating-point numbers in \[-1, 1\], found torch\."):
            call(images(2, torch.float32).to(dtype))


@pytest.mark.parametrize("labels", [None, 1, []])
def test_no_image_is_no_mistake(labels: Any, opened: Run) -> None:
    none = images(2, torch.float32)[:0]
    assert opened.log_prob(none, labels).shape == (0, 2)
    assert opened.reconstruct(none).shape == (0, 3, 16, 16)


# --- quantisers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["commitment_cost", "epsilon"])
@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), "x", None])
def test_a_quantiser_refuses_what_it_cannot_use(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=name):
        vqvae2.VectorQuantizer(8, 4, **{name: bad})


def test_no_smoothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a finite epsilon above 0, found 0"):
        vqvae2.VectorQuantizer(8, 4, epsilon=0)
    assert vqvae2.VectorQuantizer(8, 4, commitment_cost=0).commitment_cost == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_lattice_in_other_types(dtype: torch.dtype) -> None:
    """Weights of half precision: the codes are those of the same weights in float32."""
    torch.manual_seed(0)
    half = FiniteScalarQuantizer(64, 8).to(dtype)
    z = torch.randn(50, 8).to(dtype)
    found = half.eval()(z)
    exact = FiniteScalarQuantizer(64, 8).to(torch.promote_types(dtype, torch.float32)).eval()
    exact.load_state_dict(half.state_dict())
    expected = exact(z.to(exact.inward.weight.dtype))
    assert torch.equal(found.encoding_indices, expected.encoding_indices)
    assert found.quantize.dtype == dtype
    assert torch.equal(found.quantize, expected.quantize.to(dtype))
    assert half.codebook().dtype == half.mean_code().dtype == dtype
    assert half.mean_code().isfinite().all()
    half.train()(z)
    assert half.mean_code().isfinite().all()


def test_codes_that_do_not_fit_are_still_refused(opened: Run) -> None:
    with pytest.raises(CodesError):
        opened.autoencoder.decode(
            vqvae2.Codes((torch.full((1, 2, 2), 16), torch.zeros(1, 4, 4, dtype=torch.int64)))
        )


@given(st.integers(1, 5000))
def test_prime_factors(factor: int) -> None:
    primes = prime_factors(factor)
    product = 1
    for prime in primes:
        assert all(prime % d for d in range(2, int(prime**0.5) + 1))
        product *= prime
    assert product == factor
    assert primes == sorted(primes)
