"""Nearest neighbours and manifolds: a plain search in whole numbers, a case by hand, the order of arguments, invariances."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vqvae2.evaluate import manifolds as module
from vqvae2.evaluate.manifolds import Manifolds, manifolds, nearest
from vqvae2.evaluate.metrics import MetricError

Points = list[tuple[int, int]]

points = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=4, max_size=14)
tiles = st.sampled_from([1, 500, 2000, module.MEMORY])  # bytes: tiles of 1, some and all rows


def normal(n: int, dimension: int, seed: int = 0) -> Tensor:
    """Standard normal vectors."""
    return torch.randn(n, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def squared(a: tuple[int, int], b: tuple[int, int]) -> int:
    """Squared distance, exactly."""
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2


def searched(real: Points, samples: Points, k: int, k_coverage: int) -> Manifolds:
    """`manifolds` as the papers define it, pair by pair and without rounding."""

    def balls(centres: Points, count: int) -> list[tuple[tuple[int, int], int]]:
        return [
            (x, sorted(squared(x, y) for j, y in enumerate(centres) if j != i)[count - 1])
            for i, x in enumerate(centres)
        ]

    narrow, wide, other = balls(real, k), balls(real, k_coverage), balls(samples, k)
    return Manifolds(
        sum(any(squared(x, y) <= r for x, r in narrow) for y in samples) / len(samples),
        sum(any(squared(x, y) <= r for y, r in other) for x in real) / len(real),
        sum(squared(x, y) <= r for y in samples for x, r in wide) / len(samples) / k_coverage,
        sum(any(squared(x, y) <= r for y in samples) for x, r in wide) / len(real),
    )


def vectors(values: Points) -> Tensor:
    """Points far from 0, as a network's features are."""
    return torch.tensor(values, dtype=torch.float32) + 50


# --- neighbours ---


@settings(max_examples=60, deadline=None)
@given(points, points, st.integers(1, 4), tiles)
def test_nearest_is_a_plain_search(queries: Points, reference: Points, k: int, memory: int) -> None:
    """Ties and copies included, which whole numbers are full of."""
    distances, places = nearest(vectors(queries), vectors(reference), k, memory=memory)
    for query, row, where in zip(queries, distances.tolist(), places.tolist(), strict=True):
        expected = sorted(squared(query, other) for other in reference)[:k]
        assert row == pytest.approx([math.sqrt(x) for x in expected], abs=1e-9)
        assert [squared(query, reference[place]) for place in where] == expected
        assert len(set(where)) == k


@settings(max_examples=40, deadline=None)
@given(points, st.integers(1, 3), tiles)
def test_no_vector_is_its_own_neighbour(values: Points, k: int, memory: int) -> None:
    """But a copy of it is one."""
    distances, places = nearest(vectors(values), vectors(values), k, itself=True, memory=memory)
    for i, (row, where) in enumerate(zip(distances.tolist(), places.tolist(), strict=True)):
        expected = sorted(squared(values[i], other) for j, other in enumerate(values) if j != i)[:k]
        assert row == pytest.approx([math.sqrt(x) for x in expected], abs=1e-9)
        assert i not in where


@pytest.mark.parametrize("seed", [0, 1])
def test_copies_are_at_distance_zero(seed: int) -> None:
    """Exactly, in many dimensions and far from 0 in float32."""
    reference = normal(300, 200, seed).float() + 30
    order = torch.randperm(300, generator=torch.Generator().manual_seed(3 + seed))
    distances, places = nearest(reference[order], reference, memory=10**6)
    assert torch.equal(distances, torch.zeros(300, 1, dtype=torch.float64))
    assert torch.equal(places[:, 0], order)


@pytest.mark.parametrize("seed", [0, 1])
def test_nearest_in_tiles_is_nearest_at_once(seed: int) -> None:
    queries, reference = normal(130, 20, seed), normal(170, 20, seed + 2)
    whole = nearest(queries, reference, 5)
    for memory in (10**4, 10**5):
        parts = nearest(queries, reference, 5, memory=memory)
        assert torch.allclose(parts[0], whole[0], rtol=1e-12)
        assert torch.equal(parts[1], whole[1])


def test_tiles_keep_to_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is alive at once: two tiles of squares with their masks, and both sides in float64 twice."""
    sizes, plain = [], module._tiles

    def watched(a: Tensor, b: Tensor, memory: int, device: Any) -> Any:
        for rows, columns, squares in plain(a, b, memory, device):
            sizes.append(24 * squares.numel() + 16 * a.shape[1] * (squares.shape[0] + squares.shape[1]))
            yield rows, columns, squares

    monkeypatch.setattr(module, "_tiles", watched)
    for dimension in (1, 40):
        sizes.clear()
        nearest(normal(300, dimension), normal(200, dimension), memory=10**5)
        assert 0.9 * 10**5 < max(sizes) <= 10**5


def test_neighbours_that_are_not_there() -> None:
    for k, itself in ((0, False), (6, False), (5, True)):
        with pytest.raises(MetricError, match=f"of 5, found {k}"):
            nearest(normal(5, 2), normal(5, 2), k, itself)
    with pytest.raises(MetricError, match="one dimension, found 3 and 2"):
        nearest(normal(5, 3), normal(5, 2))
    with pytest.raises(MetricError, match="finite"):
        nearest(normal(5, 2), torch.full((5, 2), math.nan))


# --- manifolds ---


def test_manifolds_by_hand() -> None:
    """On a line, k = 1. Real 0 1 3 have radii 1 1 2: balls [-1, 1] [0, 2] [1, 5]. Samples 0.5 4 9 10 have radii 3.5 3.5 1 1:
    balls [-3, 4] [0.5, 7.5] [8, 10] [9, 11]. 0.5 lies in 2 real balls, 4 in 1; every real number lies in a sample's ball.
    """
    real, samples = (torch.tensor(values)[:, None] for values in ([0.0, 1.0, 3.0], [0.5, 4.0, 9.0, 10.0]))
    found = manifolds(real, samples, k=1, k_coverage=1)
    assert found == pytest.approx((2 / 4, 3 / 3, 3 / 4, 3 / 3))
    assert manifolds(samples, real, k=1, k_coverage=1) == pytest.approx((3 / 3, 2 / 4, 5 / 3, 2 / 4))


@settings(max_examples=40, deadline=None)
@given(points, points, st.integers(1, 3), st.integers(1, 3), tiles)
def test_manifolds_are_a_plain_search(
    real: Points, samples: Points, k: int, k_coverage: int, memory: int
) -> None:
    found = manifolds(vectors(real), vectors(samples), k, k_coverage, memory=memory)
    assert found == pytest.approx(searched(real, samples, k, k_coverage), abs=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_samples_that_dropped_a_mode_are_precise_and_recall_half(seed: int) -> None:
    """The order of arguments: (real, samples)."""
    there, away = normal(200, 5, 3 * seed), normal(200, 5, 3 * seed + 1) + 40
    real, samples = torch.cat([there, away]), normal(400, 5, 3 * seed + 2)
    dropped = manifolds(real, samples)
    assert dropped.precision > 0.9
    assert 0.4 < dropped.recall <= 0.5
    assert dropped.density > 0.8
    assert dropped.coverage <= 0.5
    invented = manifolds(samples, real)
    assert 0.4 < invented.precision <= 0.5
    assert invented.recall > 0.9


@pytest.mark.parametrize("seed", [0, 1])
def test_a_set_against_itself(seed: int) -> None:
    """Every vector in its own ball and, at the edge, in that of those whose k-th neighbour it is: (k + 1) / k."""
    features = normal(60, 10, seed)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1 + seed))
    assert manifolds(features, features[order]) == pytest.approx((1, 1, 6 / 5, 1))


def test_disjoint_sets() -> None:
    assert manifolds(normal(40, 4), normal(50, 4, 1) + 1000) == (0, 0, 0, 0)


def test_samples_that_are_all_the_same() -> None:
    """A manifold of radius 0 recalls nothing but copies."""
    real = normal(50, 4)
    assert manifolds(real, real[:1].repeat(20, 1))[:2] == pytest.approx((1, 1 / 50))
    assert manifolds(real, torch.full((20, 4), 0.01, dtype=torch.float64)).recall == 0


def test_equal_distributions() -> None:
    """Density 1 and coverage 1 - 2^-5 are the expected values of Naeem et al."""
    found = [manifolds(normal(400, 8, seed), normal(400, 8, seed + 50)) for seed in range(8)]
    assert sum(f.density for f in found) / 8 == pytest.approx(1, abs=0.05)
    assert sum(f.coverage for f in found) / 8 == pytest.approx(1 - 2**-5, abs=0.01)
    assert sum(f.precision - f.recall for f in found) / 8 == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("seed", [0, 1])
def test_manifolds_ignore_order_rotation_scale_and_place(seed: int) -> None:
    real, samples = normal(70, 6, seed), 1.3 * normal(60, 6, seed + 2)
    plain = manifolds(real, samples)
    turn = 7 * torch.linalg.qr(normal(6, 6, 2)).Q
    assert manifolds(real.flip(0) @ turn + 1000, samples.flip(0) @ turn + 1000) == plain
    known = nearest(real, real, 9, itself=True)[0]
    assert manifolds(real, samples, neighbours=known) == plain
    assert manifolds(real, samples, memory=3000) == plain


def test_manifolds_of_too_few() -> None:
    with pytest.raises(MetricError, match="neighbours of 5, found 5"):
        manifolds(normal(5, 2), normal(9, 2))
    with pytest.raises(MetricError, match="neighbours of 3, found 3"):
        manifolds(normal(9, 2), normal(3, 2))
    for k, k_coverage, known in ((3, 0, None), (3, 5, torch.ones(9, 4)), (3, 4, torch.ones(8, 4))):
        with pytest.raises(MetricError, match="found shape"):
            manifolds(normal(9, 2), normal(9, 2), k, k_coverage, known)
