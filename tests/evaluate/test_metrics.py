"""Distances between sets of features, scores of classes and the two-sample test: closed forms, oracles, invariances."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import poly_mmd

from vqvae2.evaluate.metrics import (
    MetricError,
    Moments,
    accuracy,
    class_score,
    frechet_distance,
    kernel_distance,
    too_few,
    two_sample,
)


class Identity(nn.Module):
    """Images that are features already."""

    num_features = 6

    def forward(self, features: Tensor) -> Tensor:
        """[B, 6] as they are."""
        return features


def normal(n: int, dimension: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal vectors."""
    return torch.randn(n, dimension, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def skewed(n: int, dimension: int, seed: int = 0) -> Tensor:
    """Normal vectors with a covariance that is not diagonal, away from 0."""
    return normal(n, dimension, seed) @ normal(dimension, dimension, seed + 1) + normal(
        1, dimension, seed + 2
    )


def gaussian(mean: list[float], covariance: list[list[float]]) -> Moments:
    """The moments of a Gaussian, as if of 11 vectors."""
    return Moments(
        11, torch.tensor(mean, dtype=torch.float64), 10 * torch.tensor(covariance, dtype=torch.float64)
    )


def rotation(dimension: int) -> Tensor:
    """An orthogonal matrix."""
    return torch.linalg.qr(normal(dimension, dimension, 77)).Q


# --- moments ---


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(1, 5), st.integers(1, 31), st.lists(st.integers(1, 29), max_size=3))
def test_moments_of_parts_are_moments_of_the_whole(
    n: int, dimension: int, batch: int, cuts: list[int]
) -> None:
    features = skewed(n, dimension)
    edges = sorted({0, n, *(cut for cut in cuts if cut < n)})
    parts = [Moments.of(features[a:b], batch) for a, b in pairwise(edges)]
    total = parts[0]
    for part in parts[1:]:
        total += part
    assert total.count == n
    assert torch.allclose(total.mean, features.mean(0), atol=1e-12)
    assert torch.allclose(total.covariance, torch.cov(features.T).reshape(dimension, dimension), atol=1e-11)


@pytest.mark.parametrize("seed", [0, 1])
def test_moments_do_not_cancel_far_from_zero(seed: int) -> None:
    """A sum of squares would have lost everything: 1e8 squared leaves no digit of a variance of 1 in float64."""
    features = normal(500, 3, seed) + 1e8
    assert torch.allclose(
        Moments.of(features, 7).covariance, torch.cov((features - 1e8).T), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_moments_are_computed_in_float64(seed: int) -> None:
    features = normal(300, 4, seed, dtype=torch.float32) + 1000
    found = Moments.of(features, 50)
    assert found.mean.dtype == found.covariance.dtype == torch.float64
    assert torch.allclose(found.covariance, torch.cov(features.double().T), rtol=1e-12, atol=1e-12)


def test_moments_of_too_little() -> None:
    with pytest.raises(MetricError, match="at least 2 vectors, found 1"):
        _ = Moments.of(torch.zeros(1, 3)).covariance
    for bad in (torch.zeros(0, 3), torch.zeros(3), torch.zeros(2, 3, dtype=torch.int64)):
        with pytest.raises(MetricError, match=r"expected float vectors \[N, D\]"):
            Moments.of(bad)
    with pytest.raises(MetricError, match="finite"):
        Moments.of(torch.tensor([[1.0], [math.nan]]))


def test_too_few_names_both_numbers() -> None:
    assert too_few(2560, 1280) is None
    text = too_few(2559, 1280)
    assert text is not None
    assert "2559 images" in text
    assert "1280 feature dimensions" in text


# --- Frechet distance ---


def test_frechet_distance_of_numbers() -> None:
    """In one dimension: (m1 - m2)^2 + (s1 - s2)^2."""
    found = frechet_distance(gaussian([1.0], [[9.0]]), gaussian([-1.0], [[0.25]]))
    assert found == pytest.approx(4 + 2.5**2, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_frechet_distance_in_the_plane(seed: int) -> None:
    """The eigenvalues a, b of S1 S2 give the root's trace: (sqrt a + sqrt b)^2 = tr S1 S2 + 2 sqrt det S1 S2."""
    first, second = Moments.of(skewed(9, 2, seed)), Moments.of(skewed(9, 2, seed + 3))
    product = first.covariance @ second.covariance
    root = (product.trace() + 2 * torch.linalg.det(product).clamp_min(0).sqrt()).sqrt()
    expected = (first.mean - second.mean).square().sum() + first.covariance.trace()
    expected += second.covariance.trace() - 2 * root
    assert frechet_distance(first, second) == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_frechet_distance_of_two_sampled_gaussians(seed: int) -> None:
    """N(0, I) against N((1, 0, 0), diag(4, 1, 1/4)), drawn: 1 + 1 + 0 + 1/4."""
    scale = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    samples = normal(200_000, 3, 1 + seed) * scale
    samples[:, 0] += 1
    found = frechet_distance(Moments.of(normal(200_000, 3, 10 + seed)), Moments.of(samples))
    assert found == pytest.approx(2.25, abs=0.03)


@pytest.mark.parametrize("seed", [0, 1])
def test_frechet_distance_is_what_torchmetrics_finds(seed: int) -> None:
    real, samples = skewed(60, 6, seed), skewed(50, 6, 9 + seed)
    oracle = FrechetInceptionDistance(feature=Identity(), normalize=True)
    oracle.update(real, real=True)
    oracle.update(samples, real=False)
    assert frechet_distance(Moments.of(real), Moments.of(samples)) == pytest.approx(
        float(oracle.compute()), rel=1e-8
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_frechet_distance_ignores_order_rotation_and_place(seed: int) -> None:
    real, samples = skewed(40, 5, seed), skewed(30, 5, 9 + seed)
    plain = frechet_distance(Moments.of(real), Moments.of(samples))
    assert plain > 0.1
    assert frechet_distance(Moments.of(samples), Moments.of(real)) == pytest.approx(plain, rel=1e-9)
    turn = rotation(5)
    moved = frechet_distance(Moments.of(real.flip(0) @ turn + 3), Moments.of(samples @ turn + 3))
    assert moved == pytest.approx(plain, rel=1e-9)
    assert frechet_distance(Moments.of(3 * real), Moments.of(3 * samples)) == pytest.approx(
        9 * plain, rel=1e-9
    )


@pytest.mark.parametrize("n", [200, 20, 2])
def test_frechet_distance_of_a_set_to_itself_and_to_its_shift(n: int) -> None:
    """With fewer vectors than dimensions, too: the covariance has no inverse then."""
    features = skewed(n, 50)
    spread = float(Moments.of(features).covariance.trace())
    assert frechet_distance(Moments.of(features), Moments.of(features.flip(0))) < 1e-9 * spread
    shifted = frechet_distance(Moments.of(features), Moments.of(features + 2))
    assert shifted == pytest.approx(4 * 50, abs=1e-9 * spread)


def test_frechet_distance_of_gaussians_in_different_planes() -> None:
    """Nothing overlaps: both traces, and the root has no part; singular covariances of ranks 3 and 2."""
    features = torch.zeros(30, 5, dtype=torch.float64)
    real, samples = features.clone(), features.clone()
    real[:, :3], samples[:, 3:] = normal(30, 3), normal(30, 2)
    turn = rotation(5)
    first, second = Moments.of(real @ turn), Moments.of(samples @ turn)
    expected = (first.mean - second.mean).square().sum() + (first.covariance + second.covariance).trace()
    assert frechet_distance(first, second) == pytest.approx(float(expected), abs=1e-6)


def test_frechet_distance_of_other_dimensions() -> None:
    with pytest.raises(MetricError, match=r"3 \(real\) and 2 \(samples\)"):
        frechet_distance(Moments.of(normal(5, 3)), Moments.of(normal(5, 2)))


# --- kernel distance ---


def test_kernel_distance_by_hand() -> None:
    """Two numbers a side, D = 1: k(1, 2) = 27, k(0, 3) = 1, and (k(1,0) + k(1,3) + k(2,0) + k(2,3)) / 4 = 409 / 4."""
    found = kernel_distance(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [3.0]]), subsets=1, size=2)
    assert found.mean == pytest.approx(27 + 1 - 2 * (1 + 64 + 1 + 343) / 4, abs=1e-9)
    assert found.standard_deviation == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_kernel_distance_is_what_torchmetrics_finds(seed: int) -> None:
    """All vectors in every draw: one figure, whatever their order."""
    real, samples = skewed(40, 6, seed), skewed(40, 6, 9 + seed)
    found = kernel_distance(real, samples, subsets=3, size=40)
    assert found.mean == pytest.approx(float(poly_mmd(real, samples)), rel=1e-9)
    assert found.standard_deviation == pytest.approx(0, abs=1e-9 * found.mean)


@pytest.mark.parametrize("seed", [0, 1])
def test_kernel_distance_is_unbiased(seed: int) -> None:
    """Around 0 for equal distributions, at any size of draws; far above for others."""
    real, same, other = (normal(4000, 8, 3 * seed + number) for number in (0, 1, 2))
    for size in (5, 50):
        found = kernel_distance(real, same, subsets=1500, size=size)
        assert abs(found.mean) < 4 * found.standard_deviation / math.sqrt(1500)
    found = kernel_distance(real, other + 1, subsets=50, size=100)
    assert found.mean > 5 * found.standard_deviation > 0


@pytest.mark.parametrize("seed", [0, 1])
def test_kernel_distance_depends_on_its_seed_alone(seed: int) -> None:
    real, samples = normal(30, 3, seed), normal(40, 3, 1 + seed)
    first = kernel_distance(real, samples, subsets=5, size=10, seed=1 + seed)
    torch.manual_seed(5)
    assert kernel_distance(real, samples, subsets=5, size=10, seed=1 + seed) == first
    assert kernel_distance(real, samples, subsets=5, size=10, seed=2 + seed) != first
    turn = rotation(3)
    turned = kernel_distance(real @ turn, samples @ turn, subsets=5, size=10, seed=1 + seed)
    assert turned == pytest.approx(first, rel=1e-9)


@pytest.mark.parametrize(("subsets", "size"), [(1, 1), (1, 6), (0, 2)])
def test_kernel_distance_of_too_few(subsets: int, size: int) -> None:
    with pytest.raises(MetricError, match=r"2 to 5 vectors \(of 9 real and 5 sampled\)"):
        kernel_distance(normal(9, 3), normal(5, 3), subsets, size)


# --- class score ---


def test_class_score_of_known_cases() -> None:
    certain = torch.eye(4).repeat(25, 1)
    assert class_score(certain, splits=1) == pytest.approx((4, 0), abs=1e-9)
    assert class_score(torch.full((30, 4), 0.25)) == pytest.approx((1, 0), abs=1e-9)
    assert class_score(torch.eye(4)[:1].repeat(30, 1)) == pytest.approx((1, 0), abs=1e-9)
    half = torch.tensor([[0.75, 0.25], [0.25, 0.75]])  # against (1/2, 1/2): ln 2 - H(1/4)
    expected = 2 * math.exp(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert class_score(half, splits=1).mean == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_class_score_is_what_torchmetrics_finds(seed: int) -> None:
    logits = 2 * normal(90, 7, seed)
    with pytest.warns(UserWarning, match="buffer"):
        oracle = InceptionScore(feature=Identity(), splits=1)
    oracle.update(logits)
    with pytest.warns(UserWarning, match="degrees of freedom"):
        expected = float(oracle.compute()[0])
    assert class_score(logits.softmax(1), splits=1).mean == pytest.approx(expected, rel=1e-9)


def test_class_score_of_images_that_are_sorted_by_class() -> None:
    """Parts in the order given would each see one class, and score 1."""
    found = class_score(torch.eye(10).repeat_interleave(100, 0), splits=10)
    assert 8.9 < found.mean < 10
    assert found.standard_deviation > 0


def test_class_score_of_what_is_no_probability() -> None:
    for bad in (torch.ones(20, 2), torch.tensor([[1.5, -0.5]] * 20)):
        with pytest.raises(MetricError, match="sum to 1"):
            class_score(bad)
    with pytest.raises(MetricError, match="1 to 3 splits of 3 images"):
        class_score(torch.eye(3))


# --- two samples ---


def test_two_sample_probability_is_the_share_of_relabellings() -> None:
    """Exact: among all ways to name 4 of 8 numbers first, those with a statistic at least as great."""
    values = torch.tensor([0.1, 0.9, 0.35, 0.2, 0.8, 0.95, 0.5, 1.2], dtype=torch.float64)
    found = two_sample(values[:4], values[4:])

    def statistic(chosen: tuple[int, ...]) -> float:
        first = values[list(chosen)]
        second = values[[i for i in range(8) if i not in chosen]]
        return max(abs(float((first <= x).double().mean() - (second <= x).double().mean())) for x in values)

    assert found.statistic == pytest.approx(statistic((0, 1, 2, 3)))
    share = [statistic(chosen) >= found.statistic - 1e-9 for chosen in combinations(range(8), 4)]
    assert found.p_value == pytest.approx(sum(share) / len(share), abs=1e-9)


def test_two_sample_of_equal_and_of_disjoint_sets() -> None:
    values = normal(20, 1)[:, 0]
    assert two_sample(values, values.flip(0)) == (0, 1)
    statistic, p_value = two_sample(values, values + 100)
    assert statistic == 1
    assert p_value == pytest.approx(2 / math.comb(40, 20), rel=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("n", "m"), [(1000, 999), (1000, 7), (5000, 4001)])
def test_two_sample_of_many_numbers(n: int, m: int, seed: int) -> None:
    first, second = normal(n, 1, 3 + 2 * seed)[:, 0], normal(m, 1, 4 + 2 * seed)[:, 0]
    assert two_sample(first, second).p_value > 0.01
    assert two_sample(first, second + 4).p_value < 1e-4


def test_two_sample_of_nothing() -> None:
    with pytest.raises(MetricError, match="at least 1"):
        two_sample(torch.zeros(0), torch.zeros(3))
    with pytest.raises(MetricError, match="finite"):
        two_sample(torch.zeros(3), torch.tensor([math.inf]))


# --- accuracy ---


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("top", [1, 2, 5])
def test_accuracy_is_what_torchmetrics_finds(top: int, seed: int) -> None:
    logits = normal(200, 8, seed)
    labels = torch.randint(8, (200,), generator=torch.Generator().manual_seed(1 + seed))
    expected = multiclass_accuracy(logits, labels, num_classes=8, top_k=top, average="micro")
    assert accuracy(logits, labels, top) == pytest.approx(float(expected), abs=1e-6)


def test_accuracy_counts_ties_and_what_is_not_a_number_as_wrong() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0], [math.nan, 0.0, 0.0], [math.nan] * 3])
    labels = torch.tensor([0, 0, 0, 1])
    assert accuracy(logits, labels) == 0.25
    assert accuracy(logits, labels, 2) == 0.5
    assert accuracy(logits[:1], torch.tensor([2])) == 0
    assert accuracy(logits[:1], torch.tensor([2]), 2) == 1


def test_accuracy_of_other_shapes() -> None:
    for logits, labels in ((torch.zeros(2, 3), torch.zeros(3)), (torch.zeros(0, 3), torch.zeros(0))):
        with pytest.raises(MetricError, match="logits"):
            accuracy(logits, labels)
