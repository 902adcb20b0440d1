"""A perceptual distance between images: features of a VGG16, normalised at every position, compared channel by channel.

It is LPIPS (Zhang, Isola, Efros, Shechtman and Wang, "The Unreasonable Effectiveness of Deep Features as a Perceptual
Metric", CVPR 2018) when the file holds its heads. No weights are shipped: they are read from a file.

Shapes: B batch, C channels, H W px.
"""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vqvae2.config.training import LEAST_COMPARED
from vqvae2.data.pixels import as_rgb
from vqvae2.errors import UserError
from vqvae2.files.atomic import reason
from vqvae2.files.locate import HTTP_ERROR, names_hub
from vqvae2.files.tensor_file import digest, plain_names

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and 3x3 convolutions between poolings
# mean and standard deviation of ImageNet's red, green and blue in [0, 1], converted to [-1, 1]
_MEAN = (2 * 0.485 - 1, 2 * 0.456 - 1, 2 * 0.406 - 1)
_STD = (2 * 0.229, 2 * 0.224, 2 * 0.225)


class PerceptualError(UserError):
    """Weights of a perceptual distance that cannot be used."""


class PerceptualDistance(nn.Module):
    """How different two images look: the mean over positions of weighted squared differences of VGG16 features.

    The features are those after the last ReLU of each of the five stages (relu1_2 to relu5_3). The vector of each position
    is divided by its length. The network's weights are fixed; the distance has a gradient in both images.

    Attributes:
        features: the 13 convolutions, numbered as in torchvision's `vgg16().features`.
        heads: a weight for each channel of each stage. They are 1, which gives the distance of unit vectors, unless the
            file that is read has others.
        has_heads: whether the file had them.
    """

    has_heads = False

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        taps: list[int] = []
        channels = 3
        for stage, (width, convolutions) in enumerate(_STAGES):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.heads = nn.ParameterList(torch.ones(width) for width, _ in _STAGES)
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)
        self._taps = frozenset(taps)
        self.requires_grad_(False).eval()

    @classmethod
    def read(cls, source: str | Path) -> PerceptualDistance:
        """The network with weights from a safetensors file or a Hub repository `owner/name` (its `model.safetensors`).

        The file has torchvision's names (`features.0.weight`, ...), as `timm/vgg16.tv_in1k` on the Hub has; `heads.0`
        to `heads.4` are optional, but all or none; what else it holds (the classifier) is not read. tools/perceptual_weights.py makes one.

        Raises:
            PerceptualError: no such file, damaged, not a VGG16, or some of the heads only.
        """
        net = cls()
        path = _found(source)
        try:
            with safe_open(path, "pt") as file:
                held = plain_names({key: key for key in file.keys()})  # noqa: SIM118 - not a dict
                tensors = {key: file.get_tensor(held[key]) for key in net.state_dict() if key in held}
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise PerceptualError(f"cannot read the weights {path}: {reason(error)}") from None
        state = {k: v for k, v in net.state_dict().items() if k.startswith("heads")}
        state |= tensors
        for name, own in net.state_dict().items():
            shape = list(state[name].shape) if name in state else "none"
            if shape != list(own.shape):
                raise PerceptualError(
                    f"{path} holds no VGG16: expected {name} of shape {list(own.shape)}, found {shape}"
                )
        found = [name for name in tensors if name.startswith("heads")]
        if len(found) not in (0, len(_STAGES)):
            raise PerceptualError(
                f"{path} holds {', '.join(found)} alone: expected {len(_STAGES)} heads, or none"
            )
        net.load_state_dict(state)
        net.has_heads = bool(found)
        return net.requires_grad_(False).eval()

    def about(self) -> dict[str, str | None]:
        """What a report says of it, JSON-ready: the name of the distance, which is LPIPS with heads only, its network, and the
        digests (sha-256) of the weights of the network and of the heads; None without heads.

        Distances compare only where both digests are equal.
        """
        own = self.state_dict()
        parts = {
            part: {name: value for name, value in own.items() if name.startswith(part)}
            for part in ("features", "heads")
        }
        return {
            "name": "LPIPS" if self.has_heads else "distance of unit vectors, without the heads of LPIPS",
            "backbone": "VGG16",
            "weights": digest(parts["features"]),
            "heads": digest(parts["heads"]) if self.has_heads else None,
        }

    def forward(self, images: Tensor, originals: Tensor) -> Tensor:
        """The distances [B], at least 0, of images [B, C, H, W] in [-1, 1]; grey is taken as RGB, and RGBA without its alpha.

        `originals` are as many, or one for all images.

        Raises:
            PerceptualError: shapes that differ, 2 channels or more than 4, or sides below 16 px.
        """
        alike = images.shape[1:] == originals.shape[1:] and originals.shape[:1] in (images.shape[:1], (1,))
        if not alike or images.ndim != 4 or images.shape[1] not in (1, 3, 4):
            raise PerceptualError(
                f"a perceptual distance: expected two batches of images with 1, 3 or 4 channels, found {list(images.shape)} and {list(originals.shape)}"
            )
        if min(images.shape[2:]) < LEAST_COMPARED:
            raise PerceptualError(
                f"a perceptual distance: expected sides of at least {LEAST_COMPARED} px, found {list(images.shape[2:])}"
            )
        return self.between(images, self.aims(originals))

    def between(self, images: Tensor, aims: list[Tensor]) -> Tensor:
        """As `forward`, to originals of which `aims` is kept because they are compared more than once."""
        total = torch.zeros(len(images), device=self.mean.device)
        for head, own, aim in zip(self.heads, self._units(images), aims, strict=True):
            total = total + ((own - aim).square() * head[:, None, None]).sum(1).mean((1, 2))
        return total

    @torch.no_grad()
    def aims(self, originals: Tensor) -> list[Tensor]:
        """What `between` compares with: the unit vectors of each stage, [B, 64 to 512, H/2**i, W/2**i]."""
        return self._units(originals)

    def stages(self, images: Tensor) -> list[Tensor]:
        """The output of each of the five stages after its last ReLU, float32 [B, 64 to 512, H/2**i, W/2**i].

        Args:
            images: [B, C, H, W] in [-1, 1]; grey is taken as RGB, and RGBA without its alpha.
        """
        x = (as_rgb(images).to(self.mean.device) - self.mean) / self.std
        stages = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self._taps:
                stages.append(x.float())
        return stages

    def _units(self, images: Tensor) -> list[Tensor]:
        return [x / (x.square().sum(1, keepdim=True) + 1e-10).sqrt() for x in self.stages(images)]


def _found(source: str | Path) -> Path:
    path, text = Path(source), str(source)
    if path.is_file():
        return path
    if names_hub(text):
        try:
            return Path(hf_hub_download(text, "model.safetensors"))
        except (OSError, ValueError, HTTP_ERROR) as error:
            raise PerceptualError(f"no file {text}, and the Hub gave none: {reason(error)}") from None
    raise PerceptualError(f"no weights at {text}: expected a safetensors file or a Hub repository owner/name")
