"""The codes of every image, encoded by all processes and written by the main one.

    rank 0: images 0 .. b-1     rank 1: images b .. 2b-1    ...    --gather--> main process --> code store, in order

Shapes: b images that one process encodes at a time, h w the grid of a level.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes
from vqvae2.config.models import Config
from vqvae2.data.batches import sequential_pixels
from vqvae2.data.images import ImageSet
from vqvae2.data.store import StoreWriter
from vqvae2.files.progress import Reporter
from vqvae2.train.feed import Batch, Feed
from vqvae2.train.prior import copies
from vqvae2.train.resident import scaled

_BATCH = 64  # images encoded at a time on a CPU
_PIXELS = 2**23  # of the images encoded at a time on a GPU


def extract(
    autoencoder: VQVAE,
    images: ImageSet,
    config: Config,
    folder: Path,
    digest: str,
    accelerator: Accelerator,
    reporter: Reporter,
) -> None:
    """Encode every image into the code store `folder`: held-out images once, training images `copies` times.

    The first copy is not augmented; each further one is, as the data configuration says. Codes are computed in float32.
    Every process calls this; only the main one writes. The store holds the same codes in the same order for any
    number of processes.

    Args:
        autoencoder: on the device of the process; put into eval mode.
        images: all of them are encoded, with their labels.
        config: the whole configuration.
        folder: of the code store.
        digest: of the autoencoder's weights, which the store names.
        accelerator: says which process this is of how many.
        reporter: where the progress is shown.

    Raises:
        StoreError: the store cannot be written.
    """
    autoencoder.eval()
    total = image_count(images, config)
    main = accelerator.is_main_process
    writer = StoreWriter(
        folder, config.geometry, digest, total, classes=images.classes, fingerprint=images.fingerprint
    )
    device = accelerator.device
    size = _BATCH if device.type == "cpu" else max(_BATCH, _PIXELS // config.data.area)
    done = 0
    with writer if main else nullcontext(), reporter.track("codes", total, unit="images") as tracker:
        for indices, split, seed in passes(images, config):
            shares = _shares(indices, size, accelerator.process_index, accelerator.num_processes)
            batches = sequential_pixels(images, shares, config.data, batch=size, copies_seed=seed)
            with Feed(batches, device) as feed:
                for begin, (pixels, labels) in zip(
                    range(0, len(indices), size * accelerator.num_processes), feed, strict=True
                ):
                    codes, labels = _encoded(autoencoder, (pixels, labels), accelerator)
                    feed.fetch_ahead()
                    count = min(len(indices) - begin, len(labels))
                    if main:
                        kept = Codes(tuple(level[:count] for level in codes))
                        writer.append(kept, labels[:count].cpu().numpy(), np.full(count, split, np.int8))
                    done += count
                    tracker.update(done)


def image_count(images: ImageSet, config: Config) -> int:
    """The number of images in the code store, copies included."""
    return len(images.heldout) + copies(config) * len(images.train)


def passes(images: ImageSet, config: Config) -> Iterator[tuple[NDArray[np.int64], int, int | None]]:
    """The images in the order of the store: their indices, 0 for training or 1 for held out, the seed of augmentation or None."""
    yield images.heldout, 1, None
    for copy in range(copies(config)):
        yield images.train, 0, None if copy == 0 else config.seed + copy


def _shares(indices: NDArray[np.int64], size: int, rank: int, world: int) -> NDArray[Any]:
    """What one of `world` processes encodes: of each chunk of `size` x `world` indices its `size` in a row.

    The last chunk is filled up with its last index, so that every process encodes as many; the surplus is cut off after
    the gathering. One process alone encodes exactly the indices.
    """
    if world == 1:
        return indices
    surplus = -len(indices) % (size * world)
    filled = np.concatenate([indices, np.repeat(indices[-1:], surplus)])
    return filled.reshape(-1, world, size)[:, rank].reshape(-1)


@torch.no_grad()
def _encoded(autoencoder: VQVAE, batch: Batch, accelerator: Accelerator) -> tuple[tuple[Tensor, ...], Tensor]:
    """The codes and labels of every process's batch, in the order of the processes; a collective."""
    pixels, labels = batch
    codes = autoencoder.encode(scaled(pixels)).levels
    if accelerator.num_processes == 1:
        return codes, labels
    gathered = accelerator.gather((*codes, labels.to(accelerator.device)))
    return tuple(gathered[:-1]), gathered[-1]
