"""Pure measures of sets of feature vectors and of class probabilities: distances between distributions, scores, a test.

The caller has to name the network of the features: a Frechet distance is an FID only in Inception's features. Everything is
computed in float64. Sets are given in the order (real, samples); figures are Python floats, rows are tensors. Where a `device` is
given, some rows at a time go there, or stay on the CPU if it has no float64.

Shapes: N real vectors, M samples, D dimensions, K classes.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vqvae2.errors import UserError
from vqvae2.prior.draw import exact_device

_PAIRS = 2**24  # of vectors whose kernel a card computes at a time: 400 MB


class MetricError(UserError):
    """Numbers from which nothing can be measured: too few, of the wrong shape, or not finite."""


class Spread(NamedTuple):
    """A figure that was computed on several subsets: its mean and standard deviation over the subsets.

    It is the standard deviation of one subset's figure, not the standard error of the mean.
    """

    mean: float
    standard_deviation: float


@dataclass(frozen=True)
class Moments:
    """Mean and scatter of a set of vectors; `a + b` are those of both sets together, without the vectors.

    The sum is that of Chan, Golub and LeVeque (1979). Unlike a sum of squares it does not suffer from cancellation.

    Attributes:
        count: number of vectors.
        mean: [D] float64, on the CPU.
        scatter: [D, D] float64, the sum of outer products of differences from the mean; on the CPU.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor, batch: int = 1024, device: torch.device | str = "cpu") -> Moments:
        """The moments of features [N, D], of which `batch` at a time are held in float64.

        Args:
            device: where they are computed.

        Raises:
            MetricError: no vector, another shape, or numbers that are not finite.
        """
        check(features)
        batches = (vectors.to(exact_device(device)) for vectors in features.split(batch))
        total = cls._of(next(batches))
        for vectors in batches:
            total += cls._of(vectors)
        return cls(total.count, total.mean.cpu(), total.scatter.cpu())

    @classmethod
    def _of(cls, features: Tensor) -> Moments:
        exact = features.detach().double()
        mean = exact.mean(0)
        centred = exact - mean
        return cls(len(exact), mean, centred.T @ centred)

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        step = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(step, step) * (self.count * other.count / count)
        return Moments(count, self.mean + step * (other.count / count), scatter)

    @property
    def covariance(self) -> Tensor:
        """[D, D] float64, unbiased.

        Raises:
            MetricError: fewer than 2 vectors.
        """
        if self.count < 2:
            raise MetricError(f"a covariance needs at least 2 vectors, found {self.count}")
        return self.scatter / (self.count - 1)


def too_few(count: int, dimension: int) -> str | None:
    """A warning where `count` vectors are too few for moments in `dimension` dimensions; None if they are enough.

    Our limit is 2 D: below D + 1 a covariance is singular, and the Frechet distance is biased upwards by about 1 / count
    (Chong and Forsyth 2020, arXiv 1911.07023), so only distances at the same count compare.
    """
    if count >= 2 * dimension:
        return None
    return (
        f"{count} images are few for {dimension} feature dimensions (expected at least {2 * dimension}): "
        "the Frechet distance is too high and compares only with others at the same count"
    )


def frechet_distance(real: Moments, samples: Moments) -> float:
    """Frechet distance of two Gaussians, |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), at least 0.

    Heusel et al. 2017, arXiv 1706.08500. The trace of the root is computed as the sum of the singular values of R1^T R2, where
    S = R R^T. This avoids the root of a matrix that is not symmetric, and singular covariances are no special case.

    Raises:
        MetricError: other dimensions, or fewer than 2 vectors.
    """
    if real.mean.shape != samples.mean.shape:
        raise MetricError(
            f"expected features of one dimension, found {len(real.mean)} (real) and {len(samples.mean)} (samples)"
        )
    first, second = real.covariance, samples.covariance
    overlap = torch.linalg.svdvals(_root(first).T @ _root(second)).sum()
    means = (real.mean - samples.mean).square().sum()
    return max(0.0, float(means + first.trace() + second.trace() - 2 * overlap))


def _root(covariance: Tensor) -> Tensor:
    """R with R R^T = covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt()


def kernel_distance(
    real: Tensor,
    samples: Tensor,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Spread:
    """Squared maximum mean discrepancy under the kernel (x.y / D + 1)^3, unbiased, so it may be below 0 for equal distributions.

    It is the kernel inception distance of Bińkowski et al. 2018, arXiv 1801.01401, if the features are Inception's.

    Args:
        real: [N, D].
        samples: [M, D].
        subsets: number of subsets, each of `size` vectors of either set, drawn without repetition.
        size: 2 to the smaller of N and M. Near the upper limit all subsets are nearly alike, and the standard deviation
            between them says little.
        seed: seed of the draws.
        device: where the kernel is computed.

    Raises:
        MetricError: fewer vectors than `size`, `size` below 2, other shapes, or numbers that are not finite.
    """
    check(real, samples)
    if not 2 <= size <= min(len(real), len(samples)) or subsets < 1:
        raise MetricError(
            f"expected at least 1 draw of 2 to {min(len(real), len(samples))} vectors "
            f"(of {len(real)} real and {len(samples)} sampled), found {subsets} of {size}"
        )
    generator = torch.Generator().manual_seed(seed)

    def draw(features: Tensor) -> Tensor:
        drawn = torch.randperm(len(features), generator=generator)[:size]
        return features[drawn.to(features.device)].to(exact_device(device)).double()

    return _spread([_discrepancy(draw(real), draw(samples)) for _ in range(subsets)])


def _discrepancy(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate for two sets of n vectors [n, D] in float64 (Gretton et al. 2012)."""
    count, dimension = x.shape
    rows = count if x.device.type == "cpu" else max(1, _PAIRS // count)

    def total(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([(part @ b.T / dimension + 1).pow(3).sum() for part in a.split(rows)]).sum()

    def within(z: Tensor) -> Tensor:
        diagonal = (z.square().sum(1) / dimension + 1).pow(3).sum()
        return (total(z, z) - diagonal) / (count * (count - 1))

    return float(within(x) + within(y) - 2 * (total(x, y) / count**2))


def class_score(probabilities: Tensor, splits: int = 10, seed: int = 0) -> Spread:
    """exp of the mean KL(p(y|x) || p(y)), 1 to K, on `splits` subsets: high if the class of each image is clear and all
    classes are equally frequent.

    It is the inception score of Salimans et al. 2016, arXiv 1606.03498, if the classifier is Inception. The images are
    shuffled first (by `seed`), because subsets of images that are sorted by class would each hold few classes.

    Args:
        probabilities: [M, K], rows that sum to 1.

    Raises:
        MetricError: fewer images than splits, other shapes, or rows that do not sum to 1.
    """
    check(probabilities)
    exact = probabilities.detach().double()
    if float(exact.min()) < 0 or float((exact.sum(1) - 1).abs().max()) > 1e-3:
        raise MetricError("expected class probabilities: rows of numbers of at least 0 that sum to 1")
    if not 1 <= splits <= len(exact):
        raise MetricError(f"expected 1 to {len(exact)} splits of {len(exact)} images, found {splits}")
    order = torch.randperm(len(exact), generator=torch.Generator().manual_seed(seed))
    scores = []
    for subset in exact[order.to(exact.device)].tensor_split(splits):
        marginal = subset.mean(0)
        divergence = (torch.xlogy(subset, subset) - torch.xlogy(subset, marginal)).sum(1).mean()
        scores.append(math.exp(float(divergence)))
    return _spread(scores)


class TwoSample(NamedTuple):
    """A test of two sets of numbers: the statistic, in [0, 1], and the probability that chance makes it at least as large."""

    statistic: float
    p_value: float


def two_sample(first: Tensor, second: Tensor) -> TwoSample:
    """The two-sided Kolmogorov-Smirnov test: the greatest difference between the distribution functions of two sets.

    The probability is exact up to 1000 numbers on either side, asymptotic beyond (Hodges 1958).

    Args:
        first: [N] numbers.
        second: [M] numbers.

    Raises:
        MetricError: a set without numbers, other shapes, or numbers that are not finite.
    """
    from scipy.stats import ks_2samp  # a second of imports, for every command

    check(first[:, None], second[:, None])
    method = "exact" if max(len(first), len(second)) <= 1000 else "asymp"
    arrays = (numbers.detach().double().cpu().numpy() for numbers in (first, second))
    with warnings.catch_warnings():  # scipy warns where it falls back to the asymptotic probability
        warnings.simplefilter("ignore", RuntimeWarning)
        test = ks_2samp(*arrays, method=method)
    return TwoSample(float(test.statistic), float(test.pvalue))


def accuracy(logits: Tensor, labels: Tensor, top: int = 1) -> float:
    """The share of images whose class is among the `top` highest logits; ties count as wrong.

    Args:
        logits: [B, K].
        labels: [B] class numbers.

    Raises:
        MetricError: no images, or other shapes.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise MetricError(
            f"expected logits [B, K] and labels [B], found {list(logits.shape)} and {list(labels.shape)}"
        )
    own = logits.gather(1, labels.long()[:, None])
    rank = (~(logits < own)).sum(1)  # NaN compares false, so it counts as wrong
    return float((rank <= top).double().mean())


def _spread(values: list[float]) -> Spread:
    """Mean and population standard deviation, as in the code of the papers."""
    exact = torch.tensor(values, dtype=torch.float64)
    return Spread(float(exact.mean()), float(exact.std(correction=0)))


def check(*sets: Tensor) -> None:
    """Raise `MetricError` unless these are finite float vectors [N, D] of one dimension, N at least 1."""
    for features in sets:
        if features.ndim != 2 or not features.numel() or not features.is_floating_point():
            raise MetricError(
                f"expected float vectors [N, D], N at least 1, found {features.dtype} {list(features.shape)}"
            )
        if features.shape[1] != sets[0].shape[1]:
            raise MetricError(
                f"expected vectors of one dimension, found {sets[0].shape[1]} and {features.shape[1]}"
            )
        if not all(rows.isfinite().all() for rows in features.split(1024)):
            raise MetricError("expected finite numbers, found inf or nan")
