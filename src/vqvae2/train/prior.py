"""Stage 2: the objective of one level's prior, cross-entropy on stored codes (paper section 3.2).

Reported: NLL per code in nats and bits (bits = nats / ln 2), on training and on held-out images, and the accuracy on held-out
ones: the share of codes that are the likeliest one, given the true codes before them. Without augmentation, with the label.

Shapes: B batch, b this process's part of it, H W the level's grid, n images in the code store.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vqvae2.config.models import Config
from vqvae2.data.batches import TrainingOrder, spread
from vqvae2.data.grid import save_grid
from vqvae2.data.store import CodeStore
from vqvae2.modes import seeded
from vqvae2.noise import replaced
from vqvae2.prior.hierarchy import make_level
from vqvae2.processes import world
from vqvae2.train.device import host_total
from vqvae2.train.feed import Batch
from vqvae2.train.judging import HeldOut

_PROBE = 512  # training images on which the training NLL is measured
_MAPPED = 128  # held-out images over which the map of the NLL is a mean
_TILES = 8  # maps on a sheet: the mean, then single images
_TILE = 128  # their larger side in pixels, about


class PriorObjective:
    """Stage 2 of one level for the training loop.

    Args:
        config: the whole configuration; `config.prior.classes` as in the store.
        store: the codes.
        level: 0 is the coarsest.
        codebooks: [K, D] of this and all coarser levels, from which the embeddings start; () = at random.
    """

    def __init__(
        self, config: Config, store: CodeStore, level: int, codebooks: Sequence[Tensor] = ()
    ) -> None:
        self.config, self.store, self.level = config, store, level
        self.name = f"prior level {level}"
        self.settings = config.train_prior[level]
        self.autoencoder = store.digest  # which made the codes; the state of the training names it
        self.classes = config.prior.classes
        with seeded(config.seed + 1 + level):
            self.model = make_level(config.prior.levels[level], store.geometry, level, self.classes)
            if codebooks:
                self.model.start_from(codebooks)
        self.model.checkpointing = self.settings.checkpointing
        self.resident: Batch | None = None  # all codes of these levels and all labels, on the device
        self.judged = HeldOut(store.heldout, self.settings)
        plain = store.train[: len(store.train) // copies(config)]
        self.probe = spread(plain, _PROBE)

    def keep_on(self, device: torch.device, limit: int) -> int:
        """Keep the codes of these levels and the labels on the device, if they take at most `limit` bytes."""
        positions = sum(height * width for height, width in self.store.geometry.grids[: self.level + 1])
        size = len(self.store) * (2 * positions + 8)
        if size > limit:
            return 0
        chunks = [
            self._fetch(np.arange(at, min(at + 4096, len(self.store))))
            for at in range(0, len(self.store), 4096)
        ]
        levels = [torch.cat(parts).to(device) for parts in zip(*(codes for codes, _ in chunks), strict=True)]
        self.resident = tuple(levels), torch.cat([labels for _, labels in chunks]).to(device)
        return size

    def batches(self, start: int, rank: int, world: int) -> Iterator[Batch]:
        """This process's batches from step `start` on: codes [b, h, w] of this and the coarser levels, and labels [b].

        Codes are 16 bits each, to be read as unsigned. Where they are on the device, a batch is their indices [b].
        """
        order = TrainingOrder(
            self.store.train, self.settings.batch, self.config.seed + self.level, rank, world
        )
        for _, indices in order.steps(start):
            yield (torch.from_numpy(indices),) if self.resident is not None else self._fetch(indices)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy in nats per code; some labels are hidden so that "no label" is learned too.

        The network sees some random codes in place of true ones, as many as `code_dropout` says, and is asked for the true
        ones. This is word dropout (Bowman et al. 2016), with a random code in place of a mask, which would need an embedding
        of its own; and for the codes of coarser levels the augmentation of the condition (Ho et al. 2022).
        """
        if self.resident is not None:
            levels, labels = self.resident
            batch = tuple(level[batch[0]] for level in levels), labels[batch[0]]
        codes, labels = batch
        if self.classes:
            labels = self.model.dropped(labels)
        return _nll(*self._predicted(model, codes, labels, self.settings.code_dropout)).mean(), {}

    def after_step(self, step: int, accelerator: Accelerator) -> dict[str, Any]:
        """Nothing is due."""
        return {}

    def counts(self) -> list[Tensor]:
        """Nothing is counted."""
        return []

    @torch.no_grad()
    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, Any]:
        """NLL per code in nats and bits: held out, and on a fixed part of the training images; and the held-out accuracy."""
        (heldout, accuracy), (train, _) = (
            self._means(model, part, accelerator) for part in (self.judged.chosen, self.probe)
        )
        return {
            "score": heldout,
            "heldout_nats": heldout,
            "heldout_bits": heldout / math.log(2),
            "heldout_accuracy": accuracy,
            "train_nats": train,
            "train_bits": train / math.log(2),
            "uniform_bits": math.log2(self.store.geometry.vocabulary[self.level]),
        }

    @torch.no_grad()
    def draw(self, model: nn.Module, path: Path) -> None:
        """Where the bits are: the NLL of each position, from black for 0 to white for `uniform_bits` and more.

        First the mean over held-out images, then some of them. Samples would need every level and the decoder; the
        pipeline draws them when this prior is trained.
        """
        shown = spread(self.store.heldout, _MAPPED)
        size = self.judged.size(world()[1])
        nll = torch.cat(list(self._batches(model, shown, size, lambda *predicted: _nll(*predicted).cpu())))
        maps = torch.cat([nll.mean(0, keepdim=True), nll[: _TILES - 1]])[:, None]
        white = math.log(self.store.geometry.vocabulary[self.level])
        zoom = max(1, _TILE // max(maps.shape[2:]))
        save_grid(2 * maps / white - 1, path, columns=_TILES // 2, zoom=zoom)

    def _fetch(self, indices: NDArray[np.int64]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Codes [b, h, w] of this and the coarser levels, the low 16 bits of each, and labels [b]."""
        codes = self.store.codes(indices)
        labels = torch.from_numpy(np.array(self.store.labels[indices], np.int64))
        return tuple(level.to(torch.int16) for level in codes.levels[: self.level + 1]), labels

    def _predicted(
        self, model: nn.Module, levels: tuple[Tensor, ...], labels: Tensor, share: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, K, H, W], from codes of which this share is replaced, and the true codes [B, H, W]."""
        device = next(model.parameters()).device
        wide = tuple(level.to(device).long() & 0xFFFF for level in levels)
        sizes = self.store.geometry.vocabulary
        seen = tuple(replaced(codes, share, k) for codes, k in zip(wide, sizes, strict=False))
        return model(seen[-1], seen[:-1], labels.to(device) if self.classes else None), wide[-1]

    def _batches(
        self,
        model: nn.Module,
        indices: NDArray[np.int64],
        size: int,
        measure: Callable[[Tensor, Tensor], Tensor],
    ) -> Iterator[Tensor]:
        """What `measure` returns for the logits and the true codes of these images, batch by batch.

        The logits of a batch are gigabytes: they are freed before those of the next batch are computed.
        """
        for start in range(0, len(indices), size):
            yield measure(*self._predicted(model, *self._fetch(indices[start : start + size])))

    def _means(
        self, model: nn.Module, indices: NDArray[np.int64], accelerator: Accelerator
    ) -> tuple[float, float]:
        """Nats per code and accuracy over these images, by all processes; a collective."""
        processes = accelerator.num_processes
        filled = np.resize(
            indices, -(-len(indices) // processes) * processes
        )  # repeats the first ones at the end
        share = filled[
            accelerator.process_index :: processes
        ]  # as many each: sharded weights need all processes at once
        own = len(indices[accelerator.process_index :: processes])
        batches = self._batches(model, share, self.judged.size(processes), _nats_and_hits)
        each = list(self.judged.polled(batches, len(indices), processes))
        nats, right = host_total([torch.cat(each, 1)[:, :own]], 2, accelerator)
        return nats / len(indices), right / len(indices)


def _nats_and_hits(logits: Tensor, codes: Tensor) -> Tensor:
    """[2, B]: the mean nats per code of each image, and the share of its codes that are the likeliest one."""
    return torch.stack([_nll(logits, codes).mean((1, 2)), (logits.argmax(1) == codes).float().mean((1, 2))])


def _nll(logits: Tensor, codes: Tensor) -> Tensor:
    """Nats [B, H, W] of codes [B, H, W] under logits [B, K, H, W]."""
    return functional.cross_entropy(logits.float(), codes, reduction="none")


def copies(config: Config) -> int:
    """How often each training image is in the code store: first as it is, then augmented."""
    return max(settings.copies for settings in config.train_prior)
