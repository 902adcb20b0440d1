"""Codes of images by the autoencoder of a run, read from its code store where that holds them.

    RUN/codes: [held-out images][training images][augmented training images] ...    each in the order of the data set

Augmented copies are only stored for training and are not used here. The stored codes are those that encoding would return: the
store names the digest of the autoencoder and the fingerprint of the data, and both are compared. On another kind of device
rounding can change a code whose two nearest vectors are about equally near.

Shapes: n images, B batch, C channels, S px.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes
from vqvae2.data.images import ImageSet
from vqvae2.data.store import CodeStore
from vqvae2.evaluate.sets import NamedImages, digest


def stored_rows(store: CodeStore, images: ImageSet) -> NDArray[np.int64] | None:
    """For each image of a data set the row of the code store that holds its codes without augmentation.

    Returns:
        int64 [len(images)], -1 for an image without codes; None if the store is of other images, or of another split.
    """
    train, heldout = len(images.train), len(images.heldout)
    copies, rest = divmod(len(store.train), train) if train else (0, 0)
    if store.fingerprint != images.fingerprint or len(store.heldout) != heldout or not copies or rest:
        return None
    rows = np.full(len(images), -1, np.int64)
    rows[images.heldout] = store.heldout
    rows[images.train] = store.train[:train]  # the first copy is not augmented
    for indices in (images.train, images.heldout):
        if not np.array_equal(store.labels[rows[indices]], images.labels_of(indices).numpy()):
            return None
    return rows


class Encoder:
    """The autoencoder of a run, with the code store that saves encoding anew.

    Args:
        autoencoder: in eval mode, with the decoder that makes the reconstructions.
        weights: digest of its weights; another decoder has another one.
        store: the code store of this autoencoder, whatever its decoder; or None.
    """

    def __init__(self, autoencoder: VQVAE, weights: str, store: CodeStore | None) -> None:
        self.autoencoder, self.weights, self.store = autoencoder, weights, store
        self.device = next(autoencoder.parameters()).device

    @torch.no_grad()
    def codes(self, images: NamedImages, wanted: slice | None = None) -> Iterator[Codes]:
        """The codes of a slice of a set (default: all), in order and in batches, on the device of the autoencoder."""
        wanted = wanted or slice(0, len(images))
        if self.store is not None and images.rows is not None:
            rows = images.rows[wanted]
            for start in range(0, len(rows), images.batch):
                yield self.store.codes(rows[start : start + images.batch]).to(self.device)
            return
        for batch in images.source(wanted):
            yield self.autoencoder.encode(batch.to(self.device))

    @torch.no_grad()
    def with_images(self, images: NamedImages) -> Iterator[tuple[Tensor, Codes]]:
        """All images of a set, [B, C, S, S] on the CPU, and their codes on the device of the autoencoder, in batches."""
        start = 0
        for batch in images.batches():
            if self.store is not None and images.rows is not None:
                codes = self.store.codes(images.rows[start : start + len(batch)]).to(self.device)
            else:
                codes = self.autoencoder.encode(batch.to(self.device))
            yield batch, codes
            start += len(batch)

    def reconstructed(self, name: str, images: NamedImages) -> NamedImages:
        """The set of the reconstructions of images, under another name."""

        @torch.no_grad()
        def source(wanted: slice) -> Iterator[Tensor]:
            for codes in self.codes(images, wanted):
                yield self.autoencoder.decode(codes).cpu()

        key = digest(images.key, "reconstructed", self.weights)
        return replace(images, name=name, key=key, source=source, rows=None)
