"""Features of images in a fixed network, computed once and kept in files.

Shapes: B batch, N images, C channels, H W px, D features, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vqvae2.errors import UserError
from vqvae2.files import tensor_file
from vqvae2.files.atomic import FileError


class FeatureError(UserError):
    """A feature network that is missing or cannot be read."""


class FeatureNetwork(Protocol):
    """A fixed network that maps images to features.

    Attributes:
        name: as the report prints it.
        digest: sha-256 of its weights.
        dimension: D.
        size: px of both sides to which images are resized.
        resize: how they are resized, for the protocol of the report.
        score_name: name of `metrics.class_score` on its class probabilities; None if it has no classes.
    """

    name: str
    digest: str
    dimension: int
    size: int
    resize: str
    score_name: str | None

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features [B, D] and logits [B, K], float32 on the network's device, of images [B, C, H, W] in [-1, 1].

        They are first rounded to 8 bits, so an image in memory has the features of its file. Grey images are expanded to
        RGB, and of RGBA the colours are taken.

        Raises:
            ValueError: another shape.
        """


@dataclass(frozen=True)
class Features:
    """Features of a set of images.

    Attributes:
        pooled: float32 [N, D], on the CPU.
        logits: float32 [N, K], or None.
        seconds: time of the network; for features from a file, the time when they were computed.
    """

    pooled: Tensor
    logits: Tensor | None
    seconds: float

    def __len__(self) -> int:
        return len(self.pooled)


def extract(network: FeatureNetwork, batches: Iterable[Tensor]) -> Features:
    """The features of all images, in order.

    Args:
        batches: images, [B, C, H, W] in [-1, 1].

    Raises:
        ValueError: no images.
    """
    pooled, logits, seconds = [], [], 0.0
    for images in batches:
        start = time.perf_counter()
        batch_pooled, batch_logits = network(images)
        pooled.append(batch_pooled.cpu())
        if batch_logits is not None:
            logits.append(batch_logits.cpu())
        seconds += time.perf_counter() - start
    if not pooled:
        raise ValueError("expected at least one batch of images, found none")
    return Features(torch.cat(pooled), torch.cat(logits) if logits else None, seconds)


def keep(cache: Path, features: Features, network: FeatureNetwork, key: str) -> None:
    """Write features to a safetensors file, from which `cached` reads them.

    Args:
        key: identifies the images and their number: equal keys promise equal images.

    Raises:
        FileError: the file cannot be written.
    """
    tensors = {"pooled": features.pooled}
    if features.logits is not None:
        tensors["logits"] = features.logits
    tensor_file.save_tensors(cache, tensors, {**_about(network, key), "seconds": features.seconds})


def cached(cache: Path, network: FeatureNetwork, key: str) -> Features | None:
    """The features in a file that `keep` wrote; None if there is none of this network, preprocessing and key, or if it is damaged."""
    with suppress(FileError):
        tensors, metadata = tensor_file.load_tensors(cache)
        seconds = metadata.pop("seconds", 0.0)
        pooled = tensors.get("pooled")
        fits = metadata == _about(network, key) and isinstance(seconds, float | int)
        if fits and pooled is not None and pooled.ndim == 2:
            return Features(pooled, tensors.get("logits"), seconds)
    return None


def _about(network: FeatureNetwork, key: str) -> dict[str, Any]:
    about = {"network": network.name, "weights": network.digest, "size": network.size}
    return about | {"resize": network.resize, "pictures": key}
