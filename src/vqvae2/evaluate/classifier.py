"""Classifiers of images behind one protocol, and how images and labels are handed to them.

    features --probe.fit_probe--> Probe                         linear, on the features of a fixed network
    images --resnet.train_classifier--> ResNet                  small, trained from random weights
    a TorchScript file --torchscript.read_torchscript--> TorchScriptClassifier

The classification accuracy score trains a `ResNet`; the critic takes any of the three. Each names its backbone, because a
network must not measure samples that were chosen with it.

Shapes: N images, B batch, C channels, H W px, K classes. Images are one tensor, uint8 [N, H, W, C] or float [N, C, H, W] in
[-1, 1], or an iterable of such batches. Floats are first rounded to 8 bits, as they would be in an image file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn

from vqvae2.data.pixels import to_float, to_uint8
from vqvae2.errors import UserError

Images = Tensor | Iterable[Tensor]


class ClassifierError(UserError):
    """Images or labels that no classifier can learn from, or a file that holds no classifier."""


class ImageClassifier(Protocol):
    """A map from images to class logits.

    Attributes:
        classes: K.
    """

    classes: int

    @property
    def backbone_digest(self) -> str:
        """sha-256 of the weights of the backbone: of its own weights, or of the feature network below a probe."""

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C, H, W] in [-1, 1]."""


@torch.no_grad()
def predict(classifier: ImageClassifier, images: Images, batch: int = 256) -> Tensor:
    """Logits, float32 [N, K] on the CPU.

    Raises:
        ClassifierError: no images.
    """
    device = torch.device("cpu")
    if isinstance(classifier, nn.Module):
        classifier.eval()
        weights = next(chain(classifier.parameters(), classifier.buffers()), None)
        device = device if weights is None else weights.device
    logits = [
        classifier(to_float(pixels).to(device)).float().cpu()
        for given in pixel_batches(images)
        for pixels in given.split(batch)
    ]
    return torch.cat(logits)


def pixel_batches(images: Images) -> Iterator[Tensor]:
    """The images as batches of uint8 [b, H, W, C] on the CPU.

    Raises:
        ClassifierError: no images, or another shape.
    """
    empty = True
    for batch in (images,) if isinstance(images, Tensor) else images:
        channels = batch.shape[3 if batch.dtype == torch.uint8 else 1] if batch.ndim == 4 else 0
        if channels not in (1, 3, 4):
            raise ClassifierError(
                "expected images uint8 [N, H, W, 1 or 3 or 4] or float [N, 1 or 3 or 4, H, W], "
                f"found {batch.dtype} {list(batch.shape)}"
            )
        empty = empty and not len(batch)
        yield (batch if batch.dtype == torch.uint8 else to_uint8(batch)).cpu()
    if empty:
        raise ClassifierError("expected at least one image, found none")


def checked_labels(labels: Tensor, count: int, classes: int) -> Tensor:
    """The labels as int64 [count] on the CPU.

    Raises:
        ClassifierError: another number of labels than `count`, none at all, or a label outside 0 .. classes - 1.
    """
    labels = labels.cpu().long()
    if labels.shape != (count,) or not count:
        raise ClassifierError(
            f"expected a label for each of {count} images and at least one, found {list(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ClassifierError(
            f"expected labels of 0 to {classes - 1}, found {int(labels.min())} to {int(labels.max())}"
        )
    return labels
