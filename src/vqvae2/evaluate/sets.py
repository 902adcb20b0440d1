"""Sets of pictures that are measured, each under a name. Shapes: n pictures, B batch, C channels, S the run's size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.config.models import DataConfig
from vqvae2.data.batches import sequential
from vqvae2.data.images import ImageSet, open_images
from vqvae2.data.pixels import to_float
from vqvae2.errors import UserError
from vqvae2.files.atomic import read_json

Batches = Callable[[slice], Iterator[Tensor]]
"""Pictures of a slice of the set, in order: float32 [B, C, S, S] in [-1, 1], on the CPU."""


@dataclass(frozen=True)
class PictureSet:
    """Some pictures in a fixed order, made or read when they are asked for.

    Attributes:
        name: as tables call it.
        key: sha-256 of what the pictures are; equal keys mean equal pictures.
        n: how many.
        labels: int64 [n], or None.
        source: see `Batches`.
    """

    name: str
    key: str
    n: int
    labels: Tensor | None
    source: Batches

    def __len__(self) -> int:
        return self.n

    def batches(self) -> Iterator[Tensor]:
        """All of them, float32 [B, C, S, S] in [-1, 1]."""
        return self.source(slice(0, self.n))

    def pictures(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Those from `start` to `stop` (all), float32 [b, C, S, S] in [-1, 1], in memory."""
        return torch.cat(list(self.source(slice(start, self.n if stop is None else min(stop, self.n)))))

    def first(self, n: int) -> PictureSet:
        """The first n, or itself."""
        if n >= self.n:
            return self
        labels = None if self.labels is None else self.labels[:n]
        return replace(self, key=digest(self.key, "first", n), n=n, labels=labels)


def digest(*parts: object) -> str:
    """sha-256 of what the parts print."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def real_pictures(
    name: str, images: ImageSet, indices: NDArray[np.int64], config: DataConfig, batch: int = 64
) -> PictureSet:
    """Pictures of a data set, as evaluation sees them: centre crop, no augmentation."""

    def source(part: slice) -> Iterator[Tensor]:
        return (pictures for pictures, _ in sequential(images, indices[part], config, batch=batch))

    labels = images.labels_of(indices) if images.classes else None
    key = digest(images.fingerprint, hashlib.sha256(indices.tobytes()).hexdigest())
    return PictureSet(name, key, len(indices), labels, source)


def reconstructions(name: str, of: PictureSet, autoencoder: VQVAE, weights: str) -> PictureSet:
    """What the autoencoder makes of pictures.

    Args:
        weights: digest of the autoencoder's weights.
    """
    device = next(autoencoder.parameters()).device

    @torch.no_grad()
    def source(part: slice) -> Iterator[Tensor]:
        for pictures in of.source(part):
            yield autoencoder.decode(autoencoder.encode(pictures.to(device))).cpu()

    return replace(of, name=name, key=digest(of.key, "reconstructed", weights), source=source)


def drawn_samples(name: str, folder: Path) -> PictureSet:
    """Samples that `vqvae2 sample --pictures npz` left, from number 0 as far as they follow each other.

    Raises:
        UserError: none are there.
    """
    files: list[tuple[range, Path]] = []
    for file in sorted(folder.glob("codes-*.npz")):
        with np.load(file) as held:
            numbers = held["numbers"]
            if "images" in held and len(numbers):
                files.append((range(int(numbers[0]), int(numbers[-1]) + 1), file))
    files.sort(key=lambda item: item[0].start)
    n = 0
    for numbers, _ in files:
        n = max(n, numbers.stop) if numbers.start <= n else n
    if not n:
        raise UserError(f"no samples in {folder}: expected codes-*.npz with the pictures in them")

    def source(part: slice) -> Iterator[Tensor]:
        at, stop = int(part.start), min(int(part.stop), n)
        for numbers, file in files:
            if at < stop and numbers.start <= at < numbers.stop:
                with np.load(file) as held:
                    own = held["images"][at - numbers.start : stop - numbers.start]
                at += len(own)
                yield to_float(torch.from_numpy(own))

    labels = torch.full((n,), -1)
    for numbers, file in files:
        with np.load(file) as held:
            if "labels" in held:
                own = torch.from_numpy(held["labels"])[: max(0, n - numbers.start)]
                labels[numbers.start : numbers.start + len(own)] = own
    about = (folder / "sampling.json").read_text(encoding="utf-8")
    return PictureSet(name, digest(about, n), n, labels if bool((labels >= 0).all()) else None, source)


def folder_pictures(
    name: str, folder: Path, classes: Sequence[str], config: DataConfig, cache: Path
) -> PictureSet:
    """All pictures of a folder; their classes are its sub-folders, or what its samples.json says, if `classes` has them.

    Raises:
        DataError: nothing usable in it.
    """
    if any(folder.glob("codes-*.npz")) and not any(folder.glob("*.png")):
        return drawn_samples(name, folder)
    images = open_images(str(folder), config, cache, say=lambda text: None)
    listed = _listed(folder)
    order = np.sort(np.concatenate([images.train, images.heldout]))
    if listed:  # there are sheets of pictures beside them
        order = np.array([index for index in order if Path(images.names[index]).name in listed], np.int64)
    pictures = real_pictures(name, images, order, config)
    known = {label: number for number, label in enumerate(classes)}
    named = (
        [images.classes[label] for label in pictures.labels.tolist()]
        if pictures.labels is not None
        else [listed.get(Path(images.names[index]).name, "") for index in order]
    )
    labels = torch.tensor([known.get(label, -1) for label in named])
    return replace(pictures, labels=labels if bool((labels >= 0).all()) else None)


def _listed(folder: Path) -> dict[str, str]:
    """The class of each file, by samples.json."""
    file = folder / "samples.json"
    if not file.is_file():
        return {}
    return {str(entry["file"]): str(entry.get("class", "")) for entry in read_json(file).get("samples", [])}
