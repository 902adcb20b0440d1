"""From logits to symbols: what temperature, top-k and top-p keep, and where the random numbers come from."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prior_helpers import noise, refused
from torch import Tensor

from vqvae2.prior.draw import check_seed, draw, probabilities, uniforms

some_logits = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=9)
weights = st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1)), min_size=1, max_size=9).filter(
    lambda w: sum(w) > 0
)
brief = settings(max_examples=80, deadline=None)


def p_of(logits: list[float], temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> list[float]:
    """Of one row."""
    result: list[float] = probabilities(torch.tensor([logits]), temperature, top_k, top_p)[0].tolist()
    return result


def softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    """By the book."""
    top = max(logits)
    e = [math.exp((x - top) / temperature) for x in logits]
    return [x / sum(e) for x in e]


# --- temperature, top-k, top-p ---


@brief
@given(some_logits, st.floats(0.05, 20))
def test_temperature_divides_the_logits(logits: list[float], temperature: float) -> None:
    p = p_of(logits, temperature)
    assert all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(p, softmax(logits, temperature), strict=True))
    assert math.isclose(sum(p), 1)


@brief
@given(some_logits)
def test_temperature_zero_is_the_most_likely_symbol(logits: list[float]) -> None:
    p = p_of(logits, 0.0)
    assert sorted(p) == [0.0] * (len(p) - 1) + [1.0]
    assert logits[p.index(1.0)] == max(logits)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300, 5e-324])
def test_very_cold_is_the_most_likely_symbol(temperature: float) -> None:
    assert p_of([-3.0, 40.0, 7.0], temperature) == [0.0, 1.0, 0.0]
    assert p_of([2.0, -9.0, 2.0], temperature) == [0.5, 0.0, 0.5]


def test_very_hot_is_uniform() -> None:
    for temperature in (1e12, math.inf):
        assert p_of([3.0, -1.0, 7.0, 0.0], temperature) == pytest.approx([0.25] * 4)


@brief
@given(some_logits, st.integers(1, 11))
def test_top_k_keeps_the_k_most_likely(logits: list[float], k: int) -> None:
    p, base = p_of(logits, top_k=k), softmax(logits)
    kept = [i for i in range(len(p)) if p[i] > 0]
    assert len(kept) == min(k, len(p))
    dropped = [base[i] for i in range(len(p)) if i not in kept]
    assert not dropped or max(dropped) <= min(base[i] for i in kept) * (1 + 1e-9)
    total = sum(base[i] for i in kept)
    assert all(math.isclose(p[i], base[i] / total, rel_tol=1e-9) for i in kept)


@brief
@given(some_logits, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_that_reach_p(logits: list[float], top_p: float) -> None:
    p, base = p_of(logits, top_p=top_p), softmax(logits)
    kept = [i for i in range(len(p)) if p[i] > 0]
    total = sum(base[i] for i in kept)
    assert total >= top_p - 1e-9
    assert total - min(base[i] for i in kept) < top_p + 1e-9  # one fewer does not reach it
    dropped = [base[i] for i in range(len(p)) if i not in kept]
    assert not dropped or max(dropped) <= min(base[i] for i in kept) * (1 + 1e-9)
    assert all(math.isclose(p[i], base[i] / total, rel_tol=1e-9) for i in kept)


def test_top_p_is_the_smallest_of_all_subsets() -> None:
    """By brute force over the subsets of six symbols."""
    for seed in range(20):
        logits = noise(6, seed=seed).tolist()
        base = softmax(logits)
        for top_p in (0.1, 0.5, 0.77, 0.95):
            kept = {i for i, p in enumerate(p_of(logits, top_p=top_p)) if p > 0}
            sets = [set(s) for n in range(1, 7) for s in itertools.combinations(range(6), n)]
            enough = [s for s in sets if sum(base[i] for i in s) >= top_p]
            smallest = min(len(s) for s in enough)
            best = max((s for s in enough if len(s) == smallest), key=lambda s: sum(base[i] for i in s))
            assert kept == best


def test_at_the_edge_of_top_p() -> None:
    """Exactly reaching p is enough."""
    equal = [0.0] * 4
    assert [sum(p > 0 for p in p_of(equal, top_p=top_p)) for top_p in (0.2, 0.25, 0.5, 0.51, 0.75, 1.0)] == [
        1,
        1,
        2,
        3,
        3,
        4,
    ]
    assert p_of([5.0, 1.0, 0.0], top_p=1e-300) == [1.0, 0.0, 0.0]


@brief
@given(
    st.lists(st.integers(-50, 50), min_size=1, max_size=9, unique=True),
    st.integers(1, 9),
    st.sampled_from([0.13, 0.37, 0.5, 0.71, 0.9]),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_temperature_then_top_k_then_top_p(
    tenths: list[int], k: int, top_p: float, temperature: float
) -> None:
    """By the book, each applied to the renormalised result of the one before."""
    logits = [x / 10 for x in tenths]
    base = softmax(logits, temperature)
    order = sorted(range(len(base)), key=lambda i: -base[i])[:k]
    total, kept = sum(base[i] for i in order), 0.0
    expected = [0.0] * len(base)
    for i in order:
        if kept < top_p * total:
            expected[i] = base[i]
        kept += base[i]
    p = p_of(logits, temperature, k, top_p)
    assert p == pytest.approx([x / sum(expected) for x in expected], rel=1e-5)
    assert [x > 0 for x in p] == [x > 0 for x in expected]


@brief
@given(some_logits, st.floats(-5, 5, width=32))
def test_a_constant_in_the_logits_does_not_matter(logits: list[float], shift: float) -> None:
    a = probabilities(torch.tensor([logits], dtype=torch.float64))
    b = probabilities(torch.tensor([logits], dtype=torch.float64) + shift)
    assert torch.allclose(a, b, atol=1e-12)


def test_off_is_the_models_own_distribution() -> None:
    logits = noise(5, 7, dtype=torch.float32)
    expected = logits.double().softmax(-1)
    for top_k in (0, 7, 8, 1000):
        assert torch.allclose(probabilities(logits, 1.0, top_k, 1.0), expected, atol=1e-15)


def test_rows_do_not_see_each_other() -> None:
    logits = noise(6, 5, dtype=torch.float32)
    for options in ((1.0, 0, 1.0), (0.5, 2, 1.0), (2.0, 0, 0.7), (0.0, 0, 1.0), (0.7, 3, 0.5)):
        whole = probabilities(logits, *options)
        assert whole.dtype == torch.float64
        assert torch.equal(whole, torch.cat([probabilities(row[None], *options) for row in logits]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_logits_give_precise_probabilities(dtype: torch.dtype) -> None:
    logits = noise(3, 300).to(dtype)
    p = probabilities(logits, 0.9, 100, 0.8)
    assert p.dtype == torch.float64
    assert torch.allclose(p.sum(-1), torch.ones(3, dtype=torch.float64), atol=1e-14)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"top_k": -1}, "top_k -1"),
        ({"top_p": 0.0}, r"top_p 0\.0"),
        ({"top_p": 1.01}, r"top_p 1\.01"),
        ({"top_p": -1.0}, r"top_p -1\.0"),
        ({"top_p": math.nan}, "top_p nan"),
    ],
)
def test_out_of_range(options: dict[str, float], found: str) -> None:
    refused(
        lambda: probabilities(torch.zeros(1, 3), **options),  # type: ignore[arg-type]
        rf"expected temperature >= 0, top_k >= 0 and 0 < top_p <= 1, found .*{found}",
    )


# --- the draw ---


@brief
@given(weights, st.floats(0, 1, exclude_max=True))
def test_a_symbol_of_probability_zero_is_never_drawn(w: list[float], u: float) -> None:
    p = torch.tensor([w], dtype=torch.float64)
    for value in (u, 0.0, 1 - 2.0**-53, 1.0):  # as if a device rounded up
        symbol = int(draw(p / p.sum(), torch.tensor([value], dtype=torch.float64)))
        assert w[symbol] > 0


@brief
@given(weights, st.floats(0, 1, exclude_max=True))
def test_the_draw_inverts_the_cumulative_sum(w: list[float], u: float) -> None:
    p = torch.tensor([w], dtype=torch.float64)
    p = p / p.sum()
    symbol = int(draw(p, torch.tensor([u], dtype=torch.float64)))
    below, upto = float(p[0, :symbol].sum()), float(p[0, : symbol + 1].sum())
    assert below - 1e-12 <= u <= upto + 1e-12


def test_each_symbol_has_its_share_of_the_uniform_numbers() -> None:
    n = 10_000
    p = torch.tensor([0.0, 0.3, 0.0, 0.5, 0.0125, 0.1875, 0.0], dtype=torch.float64)
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    symbols = draw(p.expand(n, -1), u)
    assert torch.equal(symbols.bincount(minlength=7), (p * n).round().long())


def test_each_row_has_its_own_number() -> None:
    p = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.1, 0.9], [0.9, 0.1]], dtype=torch.float64)
    u = torch.tensor([0.2, 0.7, 0.2, 0.2], dtype=torch.float64)
    assert draw(p, u).tolist() == [0, 1, 1, 0]
    assert draw(p, u).dtype == torch.int64


# --- the random numbers ---


def test_uniforms_belong_to_seed_image_and_level() -> None:
    """At any place in any batch; and one longer stream begins like a shorter one."""
    whole = uniforms(7, range(5), 1, 20)
    assert whole.shape == (5, 20)
    assert whole.dtype == torch.float64
    for images in ([3], [4, 0], [2, 2, 1], range(1, 4)):
        assert torch.equal(uniforms(7, images, 1, 20), whole[list(images)])
    assert torch.equal(uniforms(7, range(5), 1, 6), whole[:, :6])
    assert uniforms(7, [], 1, 20).shape == (0, 20)
    assert uniforms(7, [1], 1, 0).shape == (1, 0)


def distinct(streams: list[Tensor]) -> bool:
    """Whether no two streams have a number in common."""
    flat = torch.cat([s.flatten() for s in streams])
    return flat.unique().numel() == flat.numel()


def test_seeds_images_and_levels_all_matter() -> None:
    assert distinct([uniforms(seed, range(4), level, 50) for seed in (0, 1, 2) for level in (0, 1, 2)])


def test_no_two_of_seed_image_and_level_share_a_stream_by_their_bits() -> None:
    """Large seeds take more than one word; their words must not run into the image's and the level's."""
    names = [
        (0, 1, 1),
        (2**32, 1, 0),
        (0, 2, 1),
        (2 * 2**32, 1, 0),
        (2**32, 0, 1),
        (1, 1, 0),
        (1 + 2**32, 0, 0),
    ]
    streams = [uniforms(seed, [image], level, 8) for seed, image, level in names]
    assert distinct(streams)


def test_uniforms_are_uniform() -> None:
    """Within a stream and across images: the mean, the variance and the tenths."""
    u = uniforms(3, range(400), 0, 50)
    assert 0 <= u.min() < u.max() < 1
    for values in (u, u[:, 0], u[0], uniforms(0, range(4000), 1, 1)):
        n = values.numel()
        assert abs(values.mean() - 0.5) < 4 * (1 / 12 / n) ** 0.5
        counts = (values.flatten() * 10).long().bincount(minlength=10)
        assert ((counts - n / 10) ** 2 / (n / 10)).sum() < 9 + 5 * 18**0.5
    assert abs(torch.corrcoef(u[:2])[0, 1]) < 0.5


def test_global_random_numbers_are_neither_used_nor_moved() -> None:
    torch.manual_seed(1)
    first, torch_state, numpy_state = (
        uniforms(3, [1], 0, 5),
        torch.get_rng_state(),
        np.random.get_state()[1],  # noqa: NPY002
    )
    assert torch.equal(torch_state, torch.manual_seed(1).get_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002
    torch.manual_seed(2)
    assert torch.equal(uniforms(3, [1], 0, 5), first)


def test_streams_are_those_of_earlier_versions() -> None:
    """The pictures of a seed are a promise: this is NumPy's Philox, which does not change."""
    assert uniforms(5, [2], 1, 3)[0].tolist() == [0.5571228231875845, 0.09591803102522323, 0.8587445765873303]


@pytest.mark.parametrize("seed", [-1, 2**63, -(2**70)])
def test_seeds_out_of_range(seed: int) -> None:
    expected = rf"expected a seed between 0 and 2\^63 - 1, found {seed}"
    refused(lambda: check_seed(seed), expected)
    refused(lambda: uniforms(seed, [0], 0, 1), expected)


def test_seeds_at_the_ends_of_the_range() -> None:
    for seed in (0, 2**63 - 1):
        assert check_seed(seed) == seed
    assert distinct([uniforms(0, [0], 0, 4), uniforms(2**63 - 1, [0], 0, 4)])
