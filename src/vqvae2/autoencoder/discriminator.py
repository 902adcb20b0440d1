"""The discriminator that the sharpened decoder is trained against, and the losses of both.

It is the patch discriminator of pix2pix (Isola et al. 2017, arXiv 1611.07004) as VQGAN uses it (Esser et al. 2021, arXiv
2012.09841, section 3.2): strided convolutions, each of whose outputs judges one patch of the image. Two things differ:

- It is also shown, enlarged, what a blur of three pixels takes from the image: there real images and good reconstructions
  differ, and without it the discriminator learned nothing in hundreds of steps on emoji.
- There is no batch normalisation, so that the judgement of an image does not depend on the rest of the batch. The gradient
  penalty keeps the training stable instead.

Shapes: B batch, C image channels, H W px, h w the grid of patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_ENLARGED = 4.0  # what a blur takes from an image, about .1, comes nearer to the size of the image itself


class PatchDiscriminator(nn.Module):
    """Images [B, C, H, W] in [-1, 1] to one logit per patch [B, 1, h, w]; above 0 means real.

    Args:
        channels: C, channels of the images.
        width: channels after the first convolution; doubled by each further one, up to four times as many.
        depth: strided convolutions; each halves the grid. Three see patches of 40 px, two of 20 px.
    """

    def __init__(self, channels: int, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 2 * channels
        for index in range(depth):
            outputs = width * min(4, 2**index)
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            inputs = outputs
        layers += [nn.Conv2d(inputs, inputs, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(inputs, 1, 1)]
        for layer in layers:
            if isinstance(
                layer, nn.Conv2d
            ):  # torch's own first weights shrink the signal and its gradient at each layer
                nn.init.kaiming_normal_(layer.weight, a=0.2)
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """The logits, float32 [B, 1, h, w]."""
        blurred = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
        logits: Tensor = self.layers(torch.cat([images, _ENLARGED * (images - blurred)], 1))
        return logits.float()

    def frozen(self, images: Tensor) -> Tensor:
        """As `forward`, for the generator's loss: the gradient reaches the images and not the weights.

        So both networks can learn in one backward pass.
        """
        from torch.func import functional_call  # it imports torch's compiler, which takes seconds

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
    """Scalar: R1, half the mean squared norm of the gradient at real images (Mescheder et al. 2018, arXiv 1801.04406).

    The squared norm is of the gradient of all logits' sum, divided by their number, so that it does not depend on
    the size of the images.

    Args:
        logits: the discriminator's, [B, 1, h, w].
        images: what they were computed from, [B, C, H, W], which must require a gradient.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.float().square().sum() / logits.numel()
