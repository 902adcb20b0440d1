"""The linear probe: multinomial logistic regression on the features of a fixed network.

Shapes: N images, B batch, C channels, H W px, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vqvae2.evaluate.classifier import ClassifierError, checked_labels
from vqvae2.evaluate.features import FeatureNetwork

_WEIGHT_DECAYS = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)


class Probe(nn.Module):
    """Multinomial logistic regression on standardised features: [B, D] -> logits [B, K].

    Attributes:
        mean, standard_deviation: [D], of the features that it was fitted to.
        backbone_digest: digest of the network whose features they are.
        weight_decay: the one that `fit_probe` chose.
    """

    mean: Tensor
    standard_deviation: Tensor

    def __init__(self, dimension: int, classes: int, backbone_digest: str, weight_decay: float) -> None:
        super().__init__()
        self.dimension, self.classes = dimension, classes
        self.backbone_digest, self.weight_decay = backbone_digest, weight_decay
        self.register_buffer("mean", torch.zeros(dimension))
        self.register_buffer("standard_deviation", torch.ones(dimension))
        self.weight = nn.Parameter(torch.zeros(classes, dimension))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, K]."""
        return functional.linear((features - self.mean) / self.standard_deviation, self.weight, self.bias)


def fit_probe(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    backbone_digest: str,
    weight_decays: Sequence[float] = _WEIGHT_DECAYS,
    validation: float = 0.2,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Probe:
    """Choose the weight decay on images that are left out, then fit the probe to all images.

    The loss is the mean cross-entropy plus weight_decay / 2 times the squared weights (not the biases). It is convex, and
    L-BFGS finds its one minimum. The chosen weight decay is the one with the least cross-entropy on the left-out share of
    each class.

    Args:
        features: [N, D].
        labels: int [N], 0 to K-1; a class may be without images.
        backbone_digest: digest of the feature network.
        validation: share of each class that is left out for the choice; a class with one image is not split.
        seed: decides which images are left out.
        progress: called with the number of fits that are done, of `fits()`.

    Raises:
        ClassifierError: no images, labels out of range, or features that are not finite.
    """
    labels = checked_labels(labels, len(features), classes).to(features.device)
    features = features.float()
    if features.ndim != 2 or not features.isfinite().all():
        raise ClassifierError(f"expected finite features [N, D], found {list(features.shape)}")
    decays = sorted(weight_decays, reverse=True)
    best = decays[0]
    held = _left_out(labels.cpu(), validation, seed).to(features.device)
    if len(decays) > 1 and held.any():
        probe = _standardising(features[~held], classes, backbone_digest)
        losses: list[float] = []
        for decay in decays:  # each fit starts from the weights of the next larger decay
            _minimise(probe, features[~held], labels[~held], decay)
            losses.append(functional.cross_entropy(probe(features[held]), labels[held]).item())
            progress(len(losses))
        best = decays[int(np.argmin(losses))]
    probe = _standardising(features, classes, backbone_digest)
    _minimise(probe, features, labels, best)
    progress(fits(weight_decays))
    probe.weight_decay = best
    return probe.requires_grad_(False).eval()


def fits(weight_decays: Sequence[float] = _WEIGHT_DECAYS) -> int:
    """How often `fit_probe` fits: with every weight decay on some of the images, and then once on all."""
    return len(weight_decays) + 1


def _standardising(features: Tensor, classes: int, backbone_digest: str) -> Probe:
    """A probe with zero weights that brings these features to mean 0 and standard deviation 1."""
    probe = Probe(features.shape[1], classes, backbone_digest, 0.0).to(features.device)
    probe.mean.copy_(features.mean(0))
    std = features.std(0, correction=0)
    probe.standard_deviation.copy_(torch.where(std > 1e-6, std, 1.0))
    return probe


def _minimise(probe: Probe, features: Tensor, labels: Tensor, decay: float) -> None:
    """Fit the weights. They are searched in the span of the inputs, where the minimum is, which is small for few images."""
    inputs = (features - probe.mean) / probe.standard_deviation
    basis = torch.linalg.qr(inputs.T).Q if len(inputs) < inputs.shape[1] else None
    weight = probe.weight.detach()
    if basis is not None:
        inputs, weight = inputs @ basis, weight @ basis
    weight, bias = (value.clone().requires_grad_(True) for value in (weight, probe.bias.detach()))
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=300,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = functional.linear(inputs, weight, bias)
        value = functional.cross_entropy(logits, labels) + decay / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        probe.weight.copy_(weight if basis is None else weight @ basis.T)
        probe.bias.copy_(bias)


def _left_out(labels: Tensor, share: float, seed: int) -> Tensor:
    """Boolean [N], true for `share` of each class, rounded down."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = order[labels[order] == label]
        out[members[: int(share * len(members))]] = True
    return out


class ProbeClassifier(nn.Module):
    """A feature network with a probe on it, as a classifier of images.

    Raises:
        ClassifierError: the probe was fitted on another network.
    """

    def __init__(self, network: FeatureNetwork, probe: Probe) -> None:
        super().__init__()
        if probe.backbone_digest != network.digest:
            raise ClassifierError(
                f"the probe was fitted on the network {probe.backbone_digest[:12]}, "
                f"not on {network.name} {network.digest[:12]}"
            )
        self.network, self.probe = network, probe
        self.classes, self.backbone_digest = probe.classes, probe.backbone_digest

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C, H, W] in [-1, 1]."""
        features, _ = self.network(images)
        return self.probe(features.to(self.probe.mean.device))
