"""What the feature networks share: the preparation of images, and the reading of weights.

Shapes: B batch, C channels, H W px, D features, K classes.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from vqvae2.data.pixels import as_rgb, to_uint8
from vqvae2.evaluate.features import FeatureError
from vqvae2.files.atomic import reason
from vqvae2.files.tensor_file import plain_names
from vqvae2.files.torch_file import read_torch_file

_AT_ONCE = 16  # images in one pass on a CPU, whatever the batch, which bounds the memory
_ON_A_CARD = 64  # which has the memory, and stands idle with fewer; more of small ones:
_PIXELS = 2**22  # of the images in one pass on a card, as resized: 3 GB in vgg16, which takes most


class Network(nn.Module):
    """What the networks share: 8-bit colours as input, a few images per pass, no gradients."""

    name: str
    dimension: int
    size: int
    anchor: Tensor  # empty; it is on the device of the network
    resize = "bicubic, antialiased, clipped to 0..255"
    score_name: str | None = None

    def __init__(self, digest: str) -> None:
        super().__init__()
        self.digest = digest
        self.register_buffer("anchor", torch.empty(0), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `FeatureNetwork.__call__`."""
        if images.ndim != 4 or images.shape[1] not in (1, 3, 4):
            raise FeatureError(f"expected images [B, 1 or 3 or 4, H, W], found {list(images.shape)}")
        pooled, logits = [], []
        with torch.inference_mode():
            for few in images.split(at_once(self.anchor.device, self.size)):
                pixels = to_uint8(few).to(self.anchor.device).permute(0, 3, 1, 2)
                features, classes = self.features_of(as_rgb(pixels))
                pooled.append(features)
                if classes is not None:
                    logits.append(classes)
        # outside inference mode, because a probe may be trained on these
        return torch.cat(pooled), torch.cat(logits) if logits else None

    def features_of(self, colours: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features [B, D] and logits [B, K] (or None) of uint8 [B, 3, H, W]."""
        raise NotImplementedError


def at_once(device: torch.device, size: int) -> int:
    """Images in one pass of a network, which it sees at `size` px."""
    return _AT_ONCE if device.type == "cpu" else max(_ON_A_CARD, _PIXELS // size**2)


def resized(colours: Tensor, size: int) -> Tensor:
    """Colours [B, C, H, W] in 0..255 as float [B, C, size, size]: bicubic, antialiased as in Pillow, clipped."""
    sides = (size, size)
    if colours.shape[2:] == sides:
        return colours.float()
    return functional.interpolate(colours.float(), sides, mode="bicubic", antialias=True).clamp_(0, 255)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a state dict of `torch.save`; nothing but tensors is unpickled.

    Prefixes that wrappers put before all names are removed (`plain_names`).

    Raises:
        FeatureError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise FeatureError(f"no weights at {path}")
    try:
        state = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else read_torch_file(path)
    except Exception as error:  # a damaged file, or one with more than tensors, raises many kinds of errors
        raise FeatureError(
            f"cannot read {path} as weights: expected safetensors or a state dict of torch.save, of tensors alone "
            f"({type(error).__name__})"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FeatureError(f"expected a state dict of tensors in {path}, found {type(state).__name__}")
    return plain_names({str(name): value for name, value in state.items()})


def load_state(net: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load the tensors of the file `path` into a network.

    Raises:
        FeatureError: names or shapes do not fit.
    """
    try:
        net.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise FeatureError(f"{path} does not fit the network: {reason(error)}") from None
