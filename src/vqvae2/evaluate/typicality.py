"""How typical pictures are of those that a prior has learnt: their bits beside those of held-out pictures.

A picture whose codes are likelier than those of almost every held-out picture (a plain surface) is as unlike them as one
whose codes are less likely: samples of a distribution lie in its typical set, not at its mode (Nalisnick et al. 2019,
arXiv 1906.02994). Shapes: B pictures, N held-out pictures, L levels.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Typical:
    """What is usual.

    Args:
        heldout: [N, L], natural log-probability per level of held-out pictures' codes, N at least 2.
    """

    def __init__(self, heldout: Tensor) -> None:
        exact = heldout.double()
        self.mean, self.deviation = exact.mean(0), exact.std(0).clamp_min(1e-9)
        self.scores = self.score(heldout)

    def __len__(self) -> int:
        return len(self.scores)

    def score(self, log_prob: Tensor) -> Tensor:
        """[B] float64, at least 0: how many standard deviations log p [B, L] is from the mean, summed over levels."""
        return ((log_prob.double() - self.mean).abs() / self.deviation).sum(1)

    def typicality(self, log_prob: Tensor) -> Tensor:
        """[B] in (0, 1]: the share of held-out pictures with at least this score, the picture itself among them.

        Of a picture like the held-out ones, it is below a with probability a (a conformal p-value).
        """
        scores = self.score(log_prob)
        return ((self.scores >= scores[:, None]).sum(1) + 1) / (len(self) + 1)


def auroc(in_scores: Tensor, out_scores: Tensor) -> float:
    """Area under the ROC curve: the probability that one of `out_scores` [B] is above one of `in_scores` [N].

    Ties count half; 0.5 is no separation, 1 a perfect one.

    Raises:
        ValueError: one of them is empty.
    """
    if not len(in_scores) or not len(out_scores):
        raise ValueError("expected at least one score on either side")
    ordered = in_scores.sort().values
    below = torch.searchsorted(ordered, out_scores.contiguous())
    at_most = torch.searchsorted(ordered, out_scores.contiguous(), right=True)
    return float((below + at_most).double().mean() / (2 * len(ordered)))
