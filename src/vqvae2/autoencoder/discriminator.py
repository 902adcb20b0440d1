"""The discriminator that the sharpened decoder is trained against, and the losses of both.

It is the patch discriminator of pix2pix (Isola et al. 2017) as VQGAN uses it (Esser et al. 2021, arXiv 2012.09841,
section 3.2): strided convolutions whose outputs each judge one patch of the image. Instead of batch normalisation,
each convolution has spectral normalisation (Miyato et al. 2018, arXiv 1802.05957), so that its judgement of an image
does not depend on the rest of the batch, and its gradient is bounded.

Shapes: B batch, C image channels, H W px, h w the grid of patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """Images [B, C, H, W] in [-1, 1] to one logit per patch [B, 1, h, w]; above 0 means real.

    Args:
        channels: channels of the images.
        width: channels after the first convolution; doubled by each further one, up to four times as many.
        depth: strided convolutions; each halves the grid. Three see patches of 38 px, two of 18 px.
        spectral: spectral normalisation of all convolutions.
    """

    def __init__(self, channels: int, width: int = 64, depth: int = 3, spectral: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for index in range(depth):
            outputs = width * min(4, 2**index)
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            inputs = outputs
        layers += [nn.Conv2d(inputs, inputs, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(inputs, 1, 1)]
        if spectral:
            layers = [spectral_norm(x) if isinstance(x, nn.Conv2d) else x for x in layers]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """The logits, float32 [B, 1, h, w]."""
        logits: Tensor = self.layers(images)
        return logits.float()

    def frozen(self, images: Tensor) -> Tensor:
        """As `forward`, for the generator's loss: the gradient reaches the images and not the weights.

        So both networks can learn in one backward pass.
        """
        weights = {name: parameter.detach() for name, parameter in self.named_parameters()}
        logits: Tensor = functional_call(self, weights, (images,))
        return logits


def discriminator_loss(real: Tensor, fake: Tensor, hinge: bool) -> Tensor:
    """Scalar: what the discriminator minimises, of its logits for real and for reconstructed images.

    The hinge loss max(0, 1 - real) + max(0, 1 + fake) (Lim and Ye 2017, arXiv 1705.02894), or the logistic loss
    softplus(-real) + softplus(fake) (Goodfellow et al. 2014).
    """
    if hinge:
        return functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


def generator_loss(fake: Tensor, hinge: bool) -> Tensor:
    """Scalar: what the decoder minimises: -fake, or the non-saturating softplus(-fake) (Goodfellow et al. 2014)."""
    return -fake.mean() if hinge else functional.softplus(-fake).mean()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Scalar: R1, the squared norm of the gradient at real images, half its mean (Mescheder et al. 2018, arXiv 1801.04406).

    Args:
        logits: the discriminator's, [B, 1, h, w]; an image's score is their mean.
        images: what they were computed from, [B, C, H, W], which must require a gradient.
    """
    scores = logits.mean((1, 2, 3)).sum()
    (gradient,) = torch.autograd.grad(scores, images, create_graph=True)
    return 0.5 * gradient.float().square().sum((1, 2, 3)).mean()


def augment(images: Tensor) -> Tensor:
    """The random colours, shifts and holes of DiffAugment (Zhao et al. 2020, arXiv 2006.10738), each image's its own.

    What the discriminator sees, real or not, goes through it, so that a discriminator of few images cannot learn them by
    heart. It is differentiable, so the decoder learns through it. Shifts are up to an eighth of the side, edges repeated;
    holes are grey squares of half the side. Where images have an alpha channel, the colours change and alpha does not.

    Args:
        images: float32 [B, C, H, W] in [-1, 1].
    """
    x = images[:, :3]
    brightness, saturation, contrast = torch.rand(3, len(x), 1, 1, 1, device=x.device).unbind()
    x = x + brightness - 0.5
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * saturation) + grey
    middle = x.mean((1, 2, 3), keepdim=True)
    x = (x - middle) * (contrast + 0.5) + middle
    x = torch.cat([x, images[:, 3:]], 1)
    height, width = x.shape[2:]
    x = _shift(height, x) @ x @ _shift(width, x).transpose(2, 3)
    return x * (1 - _inside(height, x)[:, None, :, None] * _inside(width, x)[:, None, None, :])


def _shift(side: int, images: Tensor) -> Tensor:
    """[B, 1, side, side]: matrices of which each row chooses one row of an image: a random shift without indexing."""
    reach = side // 8
    offsets = torch.randint(-reach, reach + 1, (len(images), 1), device=images.device)
    sources = (torch.arange(side, device=images.device) + offsets).clamp(0, side - 1)
    return functional.one_hot(sources, side).to(images.dtype)[:, None]


def _inside(side: int, images: Tensor) -> Tensor:
    """[B, side]: 1 within half a side around a random centre, else 0."""
    centres = torch.rand(len(images), 1, device=images.device) * side
    distance = (torch.arange(side, device=images.device) + 0.5 - centres).abs()
    return (distance < side / 4).to(images.dtype)
