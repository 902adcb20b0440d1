"""How typical images are of the data that a prior has learned, by the log-probability of their codes.

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
_LEAST_STD = 1e-9  # nats, of a level that never varies
_IMAGES = 1024  # that are compared with all held-out ones at a time


class Typical:
    """The distribution of log-probabilities over held-out images.

    Args:
        heldout: [N, L], natural log-probability of the codes of held-out images, per level; N at least 2.

    Attributes:
        mean, standard_deviation: [L] float64, of `heldout`.
    """

    def __init__(self, heldout: Tensor) -> None:
        self._heldout = heldout.double()
        self.mean = self._heldout.mean(0)
        self.standard_deviation = self._heldout.std(0).clamp_min(_LEAST_STD)

    def __len__(self) -> int:
        return len(self._heldout)

    def score(self, log_prob: Tensor) -> Tensor:
        """The distance of log p [B, L] from the mean in standard deviations, summed over levels: [B] float64, at least 0."""
        return ((log_prob.double() - self.mean).abs() / self.standard_deviation).sum(1)

    def typicality(self, log_prob: Tensor) -> Tensor:
        """The share of held-out images that are at least as unusual as an image [L], counting the image itself: [B] in (0, 1].

        All N + 1 are scored as by `score`, but with the mean and standard deviation of all N + 1. None of them has a part of its own, so
        it is a (full) conformal p-value (Vovk, Gammerman and Shafer 2005): for an image from the distribution of the held-out
        ones it is at most a with probability at most a, whatever N is. This takes the prior as given; that its best step was
        chosen on the same held-out images is not accounted for.

        Args:
            log_prob: [B, L], as those of the held-out images.
        """
        return torch.cat([self._shares(part) for part in log_prob.double().split(_IMAGES)])

    def _shares(self, log_prob: Tensor) -> Tensor:
        """`typicality` of a few images, whose [B, N] scores are in memory."""
        count = len(self)
        step = log_prob - self.mean
        mean = self.mean + step / (count + 1)  # of the held-out images and this one, [B, L]
        scatter = (self._heldout - self.mean).square().sum(0) + step.square() * count / (count + 1)
        std = (scatter / count).sqrt().clamp_min(_LEAST_STD)
        own, theirs = torch.zeros(len(step), 1).double(), torch.zeros(len(step), count).double()
        for level in range(step.shape[1]):
            at = mean[:, level, None], std[:, level, None]
            own += (log_prob[:, level, None] - at[0]).abs() / at[1]
            theirs += (self._heldout[:, level] - at[0]).abs() / at[1]
        return ((theirs >= own).sum(1) + 1) / (count + 1)
