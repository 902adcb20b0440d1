"""Residual stacks, downsampling and upsampling: the convolutions of the autoencoder.

A ReLU after a convolution works in place, because the gradient of the convolution does not need its output.

Shapes: B batch, C channels, H W height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqvae2.config.numbers import prime_factors


class ResidualBlock(nn.Module):
    """x + Conv1x1(ReLU(Conv3x3(ReLU(x)))), without normalisation (van den Oord et al. 2017, section 4.1; Sonnet's `ResidualStack`).

    Args:
        channels: channels of x ("hidden units", 128 in the paper).
        residual: channels between the two convolutions ("residual units", 64 in the paper).
    """

    def __init__(self, channels: int, residual: int) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(channels, residual, 3, padding=1)
        self.conv1 = nn.Conv2d(residual, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        y: Tensor = self.conv1(functional.relu_(self.conv3(functional.relu(x))))
        return x + y


def residual_stack(channels: int, residual: int, blocks: int) -> nn.Sequential:
    """`blocks` residual blocks and a final ReLU."""
    last = nn.ReLU(inplace=blocks > 0)  # without a block it would change its input
    return nn.Sequential(*(ResidualBlock(channels, residual) for _ in range(blocks)), last)


def _kernel(prime: int) -> tuple[int, int]:
    """Kernel and padding with which stride `prime` divides the size exactly, and multiplies it exactly when transposed: 2 gives (4, 1)."""
    return prime + 2, 1


def channels_last(module: nn.Module) -> None:
    """Bring the weights of all convolutions in `module` into the memory format channels_last.

    Unlike `module.to(memory_format=...)` it works on the fake tensors with which costs are counted.
    """
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def channels_first(module: nn.Module) -> None:
    """Compute all convolutions in `module`, whatever reaches them, in torch's default memory format."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            part.weight.data = part.weight.data.contiguous()
            part.register_forward_pre_hook(_contiguous)


def _contiguous(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous() for x in inputs)


def sonnet_weights(module: nn.Module) -> None:
    """Sonnet's initial weights for every convolution in `module`.

    Biases are 0. Weights are normal with standard deviation 1 / sqrt(fan-in), truncated at two standard deviations, as
    in Sonnet's `Conv2D` and `Conv2DTranspose`.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            fan_in = part.in_channels * part.kernel_size[0] * part.kernel_size[1]
            nn.init.trunc_normal_(part.weight, std=fan_in**-0.5, a=-2 * fan_in**-0.5, b=2 * fan_in**-0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def downsample(
    in_channels: int, out_channels: int, width: int, factor: int, relu: bool = False
) -> nn.Sequential:
    """Reduce height and width by `factor`, one strided convolution with ReLU per prime factor.

    The first of them has `width` / 2 output channels, the others `width`: a factor of 4 gives Conv4x4/2, ReLU, Conv4x4/2,
    ReLU, as in Sonnet's encoder. A last 3x3 convolution maps to `out_channels`, followed by a ReLU if `relu`.
    """
    primes = prime_factors(factor)
    layers: list[nn.Module] = []
    channels = in_channels
    for index, prime in enumerate(primes):
        following = width // 2 if index == 0 else width
        kernel, padding = _kernel(prime)
        layers += [
            nn.Conv2d(channels, following, kernel, stride=prime, padding=padding),
            nn.ReLU(inplace=True),
        ]
        channels = following
    layers.append(nn.Conv2d(channels, out_channels, 3, padding=1))
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


def upsample(in_channels: int, out_channels: int, width: int, factor: int) -> nn.Sequential:
    """Multiply height and width by `factor`, one strided transposed convolution per prime factor.

    A ReLU follows every convolution but the last, so the output is linear. Every convolution but the last has
    `width` / 2 output channels, as in Sonnet's decoder. A factor of 1 is a 3x3 convolution.
    """
    primes = prime_factors(factor)
    if not primes:
        return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1))
    layers: list[nn.Module] = []
    channels = in_channels
    for index, prime in enumerate(reversed(primes)):
        last = index == len(primes) - 1
        following = out_channels if last else width // 2
        kernel, padding = _kernel(prime)
        layers.append(nn.ConvTranspose2d(channels, following, kernel, stride=prime, padding=padding))
        if not last:
            layers.append(nn.ReLU(inplace=True))
        channels = following
    return nn.Sequential(*layers)
