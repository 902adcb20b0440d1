"""Feature networks by name.

Figures carry the name of their network. Only those of `inception` are what the literature calls FID, KID and Inception score.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from vqvae2.evaluate.features import FeatureError, FeatureNetwork
from vqvae2.evaluate.networks.base import Network
from vqvae2.evaluate.networks.inception import Inception
from vqvae2.evaluate.networks.lite0 import Lite0
from vqvae2.evaluate.networks.vgg16 import Vgg16

NETWORKS: dict[str, Callable[[Path | None], Network]] = {
    "lite0": Lite0,
    "vgg16": Vgg16,
    "inception": Inception,
}


def no_network(name: str, *others: str) -> FeatureError:
    """The error about an unknown network, where `others` could be named too."""
    return FeatureError(f"no feature network {name!r}: expected one of {', '.join([*NETWORKS, *others])}")


def feature_network(
    name: str = "lite0", weights: Path | None = None, device: str | torch.device = "cpu"
) -> FeatureNetwork:
    """A feature network by name.

    - `lite0`: EfficientNet-Lite0 of ImageNet (extra `evaluate`, weights included), 1280 features, 1000 classes.
    - `vgg16`: channel means of the five stages of the VGG16 of `autoencoder/perceptual.py`, 1472 features, no classes.
    - `inception`: the Inception of the FID as torch-fidelity has it (extra `inception`), 2048 features, 1008 classes. Its
      logits lack the bias of the last layer, as they do for the Inception score.

    Args:
        weights: a safetensors file, or a state dict of `torch.save`. `lite0` needs none, the others do; for `vgg16` it is a
            file that `PerceptualDistance.read` reads.

    Raises:
        FeatureError: no such network; its package or its weights are missing, or the weights do not fit.
    """
    if name not in NETWORKS:
        raise no_network(name)
    return NETWORKS[name](weights).to(device)
