"""The feature network `vgg16`: the VGG16 of `autoencoder/perceptual.py`. Shapes: B batch, H W px."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vqvae2.autoencoder.perceptual import PerceptualDistance
from vqvae2.evaluate.features import FeatureError
from vqvae2.evaluate.networks.base import Network, resized
from vqvae2.files.tensor_file import digest


class Vgg16(Network):
    """Channel means of the five stages of VGG16, on images of half the side that it was trained with.

    The smaller side takes a quarter of the time (our decision).
    """

    name = "vgg16"
    dimension = 1472
    size = 112

    def __init__(self, weights: Path | None) -> None:
        if weights is None:
            raise FeatureError("the feature network vgg16 needs a weights file (tools/perceptual_weights.py)")
        net = PerceptualDistance.read(weights)
        super().__init__(digest(net.features.state_dict()))
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features_of(self, colours: Tensor) -> tuple[Tensor, Tensor | None]:
        x = resized(colours, self.size).div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)
        return torch.cat([stage.mean((2, 3)) for stage in self.net.stages(x)], 1), None
