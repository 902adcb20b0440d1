"""How typical images are of the data that a prior has learnt, by the log-probability of their codes.

Samples of a distribution lie in its typical set, not at its mode (Nalisnick et al. 2019, arXiv 1906.02994). An image with an
unusually high log-probability, such as a plain surface, is therefore as untypical as one with an unusually low one.

Shapes: B images, N held-out images, L levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNLIKE = 0.05
"""An image of at most this typicality is called unlike the held-out ones."""
LEAST = round(1 / UNLIKE) - 1
"""Held-out images that this needs: with fewer, no image can have so small a typicality."""


class Typical:
    """The distribution of log-probabilities over held-out images.

    Args:
        heldout: [N, L], natural log-probability of the codes of held-out images, per level; N at least 2.

    Attributes:
        mean, standard_deviation: [L] float64, of `heldout`.
        scores: [N] float64, `score` of the held-out images.
    """

    def __init__(self, heldout: Tensor) -> None:
        exact = heldout.double()
        self.mean, self.standard_deviation = exact.mean(0), exact.std(0).clamp_min(1e-9)
        self.scores = self.score(heldout)

    def __len__(self) -> int:
        return len(self.scores)

    def score(self, log_prob: Tensor) -> Tensor:
        """The distance of log p [B, L] from the mean in standard deviations, summed over levels: [B] float64, at least 0."""
        return ((log_prob.double() - self.mean).abs() / self.standard_deviation).sum(1)

    def typicality(self, log_prob: Tensor) -> Tensor:
        """The share of held-out images with at least this score, counting the image itself as one of them: [B] in (0, 1].

        It is a conformal p-value: for an image from the distribution of the held-out ones it is at most a with probability
        at most a.
        """
        scores = self.score(log_prob)
        return ((self.scores >= scores[:, None]).sum(1) + 1) / (len(self) + 1)


def auroc(in_scores: Tensor, out_scores: Tensor) -> float:
    """Area under the ROC curve: the probability that one of `out_scores` [B] is above one of `in_scores` [N].

    Ties count half. 0.5 means no separation, 1 a perfect one.

    Raises:
        ValueError: one of the two is empty.
    """
    if not len(in_scores) or not len(out_scores):
        raise ValueError("expected at least one score on either side")
    ordered = in_scores.sort().values
    below = torch.searchsorted(ordered, out_scores.contiguous())
    at_most = torch.searchsorted(ordered, out_scores.contiguous(), right=True)
    return float((below + at_most).double().mean() / (2 * len(ordered)))
