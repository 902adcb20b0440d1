"""A small residual network, trained from random weights: for the classification accuracy score, and as a critic of its own.

Shapes: N images, B batch, C channels, H W px, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from vqvae2.config.models import DataConfig
from vqvae2.data.augmentation import augmented
from vqvae2.data.batches import Shuffle
from vqvae2.data.pixels import to_float
from vqvae2.evaluate.classifier import Images, checked_labels, pixel_batches
from vqvae2.files import tensor_file
from vqvae2.modes import seeded

_GRID = 16  # the residual stages begin on a grid of at most 16 x 16 positions


class ClassifierConfig(BaseModel):
    """The small ResNet of the classification accuracy score and its training (our decision)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # at least 8: with 4 channels and one thread, convolutions of torch 2.13 on a CPU wrote outside of their memory
    width: int = Field(
        32, ge=8, le=1024, description="channels of the first stage; each next has twice as many"
    )
    stages: int = Field(3, ge=1, le=6, description="residual stages, each on half the grid of the one before")
    blocks: int = Field(1, ge=1, le=32, description="residual blocks per stage")
    steps: int = Field(2000, ge=10, le=10**9, description="optimiser steps")
    batch: int = Field(128, ge=2, le=10**6, description="images per step")
    lr: float = Field(4e-3, gt=0, le=1000, description="peak learning rate of AdamW, one cycle")
    weight_decay: float = Field(0.05, ge=0, le=1000, description="AdamW weight decay")
    flip: bool = Field(True, description="mirror training images left to right half of the time")
    shift: int = Field(1, ge=0, le=64, description="move training images by up to this many px each way")
    seed: int = Field(
        0, ge=0, le=2**63 - 1, description="seed of the weights, the order and the augmentation"
    )

    def within(self, data: DataConfig) -> ClassifierConfig:
        """These settings without a flip or a shift that the data do not allow.

        Images are mirrored only if `data.flip` is set, because classes may be mirror images of each other, and moved by no more
        px than `data.shift`.
        """
        return self.model_copy(update={"flip": self.flip and data.flip, "shift": min(self.shift, data.shift)})


class ResNet(nn.Module):
    """A residual network in the manner of CIFAR's (He et al. 2016, pre-activation, batch normalisation).

    Convolutions of stride 2 reduce the image to a grid of at most 16 x 16 positions; the residual stages follow.

    Args:
        size: px, the longer side of the images that it is made for.
    """

    def __init__(self, channels: int, size: int, classes: int, config: ClassifierConfig) -> None:
        super().__init__()
        self.channels, self.size, self.classes, self.config = channels, size, classes, config
        width = config.width
        layers: list[nn.Module] = []
        before, grid = channels, size
        while not layers or grid > _GRID:
            stride = 2 if grid > _GRID else 1
            if layers:
                layers += [nn.BatchNorm2d(before), nn.ReLU(inplace=True)]
            layers.append(nn.Conv2d(before, width, 3, stride, padding=1, bias=False))
            before, grid = width, -(-grid // stride)
        for stage in range(config.stages):
            for block in range(config.blocks):
                after = width * 2**stage
                layers.append(_Block(before, after, stride=2 if stage and not block else 1))
                before = after
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(before), nn.ReLU(inplace=True))
        self.head = nn.Linear(before, classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def backbone_digest(self) -> str:
        """Digest of its own weights."""
        return tensor_file.digest(self.state_dict())

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C, H, W] in [-1, 1]."""
        x = images.contiguous(memory_format=torch.channels_last)
        return self.head(self.body(x).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(before)
        self.first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.second = nn.Sequential(
            nn.BatchNorm2d(after), nn.ReLU(inplace=True), nn.Conv2d(after, after, 3, padding=1, bias=False)
        )
        same_shape = before == after and stride == 1
        self.shortcut = nn.Identity() if same_shape else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.norm(x))
        skipped = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
        return skipped + self.second(self.first(active))


def _gathered(images: Images, labels: Tensor, classes: int) -> tuple[NDArray[np.uint8], Tensor]:
    """All images, uint8 [N, H, W, C], which are in memory once, and their labels, int64 [N].

    Raises:
        ClassifierError: see `train_classifier`.
    """
    pixels, found = np.empty((0, 0, 0, 0), np.uint8), 0
    for batch in pixel_batches(images):
        if not found:
            pixels = np.empty((len(labels), *batch.shape[1:]), np.uint8)
        room = pixels[found : found + len(batch)]  # less than the batch if there are too few labels
        room[:] = batch.numpy()[: len(room)]
        found += len(batch)
    return pixels, checked_labels(labels, found, classes)


def train_classifier(
    images: Images,
    labels: Tensor,
    classes: int,
    config: ClassifierConfig | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int], None] = lambda done: None,
) -> ResNet:
    """Train a `ResNet` from random weights: AdamW, one cycle of the learning rate, cross-entropy.

    On the CPU with the same number of threads, equal arguments give equal weights. All images are held in memory as uint8.

    Args:
        images: images in one of the forms of `evaluate.classifier`.
        labels: int [N], 0 to K-1.
        config: default `ClassifierConfig()`.
        progress: called with the number of steps that are done.

    Raises:
        ClassifierError: no images, or labels out of range.
    """
    config = config or ClassifierConfig()
    pixels, labels = _gathered(images, labels, classes)
    height, width, channels = pixels.shape[1:]
    data = DataConfig(size=(height, width), flip=config.flip, shift=config.shift)
    with seeded(config.seed):
        net = ResNet(channels, max(height, width), classes, config)
    net = net.to(device).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=config.steps, pct_start=0.2
    )
    shuffle = Shuffle(np.arange(len(pixels)), config.seed)
    for step in range(config.steps):
        positions = np.arange(step * config.batch, (step + 1) * config.batch)
        chosen = shuffle(positions)
        inputs = to_float(torch.from_numpy(augmented(pixels[chosen], positions, config.seed, data))).to(
            device
        )
        loss = functional.cross_entropy(net(inputs), labels[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(step + 1)
    return net.requires_grad_(False).eval()
