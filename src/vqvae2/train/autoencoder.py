"""Stage 1: the objective of the autoencoder. L = MSE(x, x_hat) / variance + sum of the levels' latent losses (paper eq. 2).

The reconstruction term is the mean squared error over pixels in [-1, 1]; `variance` is 1 unless configured. Our
addition, off unless configured: plus `perceptual` x a perceptual distance of x and x_hat.

Shapes: B batch, C channels, H W height and width, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vqvae2.autoencoder.codebook_usage import usage_scalars
from vqvae2.autoencoder.model import VQVAE
from vqvae2.config.models import Config
from vqvae2.data.batches import rows_of_eight, sequential, sequential_pixels
from vqvae2.data.grid import save_grid
from vqvae2.data.images import ImageSet
from vqvae2.data.pixels import LEAST_SQUARE, decibels
from vqvae2.modes import seeded
from vqvae2.train.device import host_total
from vqvae2.train.feed import Batch
from vqvae2.train.judging import HeldOut
from vqvae2.train.resident import TrainingImages, scaled


class AutoencoderObjective:
    """Stage 1 for the training loop.

    Args:
        config: the whole configuration.
        images: `images.train` are learned from, `images.heldout` judged on.
        distance: measured on the held-out images, and part of the loss with weight `train_autoencoder.perceptual`.
    """

    name = "autoencoder"

    def __init__(self, config: Config, images: ImageSet, distance: nn.Module | None = None) -> None:
        self.config, self.images = config, images
        with seeded(config.seed):
            self.model: VQVAE = VQVAE(config.autoencoder)
        self.distance = distance
        self.training = TrainingImages(images, config.data, config.train_autoencoder.batch, config.seed)
        self.judged = HeldOut(images.heldout, config.train_autoencoder)
        self.epoch_steps = max(1, math.ceil(len(images.train) / config.train_autoencoder.batch))

    def keep_on(self, device: torch.device, limit: int) -> int:
        """As `TrainingImages.keep_on`."""
        return self.training.keep_on(device, limit)

    def batches(self, start: int, rank: int, world: int) -> Iterator[Batch]:
        """As `TrainingImages.batches`."""
        return self.training.batches(start, rank, world)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction plus commitment, of a batch of `batches`; logs both and each level's batch perplexity."""
        images = self.training.scaled(batch, next(model.parameters()).device)
        out = model(images)
        errors = (out.images.float() - images).square().mean((1, 2, 3))
        whole = out.used == self.config.autoencoder.levels
        mse = errors.mean()
        of_whole = (errors * whole).sum() / whole.sum().clamp_min(1)
        logs = {"mse": torch.where(whole.any(), of_whole, mse), "commitment": out.commitment}
        logs |= {f"batch_perplexity_{level}": item.perplexity for level, item in enumerate(out.levels)}
        loss = mse / self.config.autoencoder.variance + out.commitment
        weight = self.config.train_autoencoder.perceptual
        if weight:
            logs["perceptual"] = self._distance(out.images, images).mean()
            loss = loss + weight * logs["perceptual"]
        return loss, logs

    def _distance(self, again: Tensor, images: Tensor) -> Tensor:
        assert self.distance is not None
        distances: Tensor = self.distance.to(images.device)(again, images)
        return distances

    def after_step(self, step: int, accelerator: Accelerator) -> dict[str, Any]:
        """Every epoch: perplexity and share of codes used per level over the epoch, by all processes; on the device."""
        if step % self.epoch_steps:
            return {}
        figures = usage_figures([accelerator.reduce(count, "sum") for count in self.counts()])
        for count in self.counts():
            count.zero_()
        return {"epoch": step // self.epoch_steps, **figures}

    def counts(self) -> list[Tensor]:
        """How often each code was used in this epoch, per level [K]."""
        return [quantizer.usage for quantizer in self.model.quantizers]

    @torch.no_grad()
    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, Any]:
        """Held-out MSE in [-1, 1], PSNR in dB (of the mean error, and mean over images), sharpness, codebook usage per level.

        Sharpness is the energy of the reconstructions' Laplacian over that of the originals: 1 is as sharp, less is
        blurred. With weights for it, the mean perceptual distance too.
        """
        assert isinstance(model, VQVAE)
        device, settings = accelerator.device, self.config.train_autoencoder
        chosen, processes = self.judged.chosen, accelerator.num_processes
        share, size = chosen[accelerator.process_index :: processes], self.judged.size(processes)
        batches = sequential_pixels(self.images, share, self.config.data, batch=size)
        measured: list[Tensor] = []
        use = [torch.zeros(k, dtype=torch.int64, device=device) for k in self.config.autoencoder.codes]
        for pixels, _ in self.judged.polled(batches, len(chosen), processes):
            images = scaled(pixels.to(device))
            out = model(images)
            again = out.images.float().clamp(-1, 1)
            error = (again - images).square().mean((1, 2, 3))
            psnr = 10 * torch.log10(4 / error.clamp_min(LEAST_SQUARE))
            distance = self._distance(again, images) if self.distance else torch.zeros_like(error)
            measured.append(torch.stack([error, psnr, detail(again), detail(images), distance]))
            for count, level in zip(use, out.codes.levels, strict=True):
                codes = level.flatten()
                count.index_add_(0, codes, torch.ones_like(codes))
        mse, mean_psnr, energy, aim, looks = (
            total / len(chosen) for total in host_total(measured, 5, accelerator)
        )
        figures = {
            "heldout_mse": mse,
            "heldout_psnr": decibels(mse),
            "heldout_psnr_per_picture": mean_psnr,
            "heldout_sharpness": sharpness(energy, aim),
        }
        if self.distance:
            figures["heldout_perceptual"] = looks
        score = mse + self.config.autoencoder.variance * settings.perceptual * looks
        used = usage_figures([accelerator.reduce(count, "sum") for count in use])
        return {"score": score, **figures, **{f"heldout_{k}": float(v) for k, v in used.items()}}

    @torch.no_grad()
    def draw(self, model: nn.Module, path: Path) -> None:
        """Sixteen held-out originals (eight if there are fewer), each above its reconstruction."""
        assert isinstance(model, VQVAE)
        indices = rows_of_eight(self.images.heldout)
        images, _ = next(iter(sequential(self.images, indices, self.config.data, batch=16)))
        images = images.to(next(model.parameters()).device)
        again = model(images).images.float()
        rows = [images[:8], again[:8], images[8:], again[8:]]
        save_grid(torch.cat([row for row in rows if len(row)]).cpu(), path, columns=min(8, len(images)))


def detail(images: Tensor) -> Tensor:
    """[B]: the energy of the Laplacian of images [B, C, H, W], summed over their interior: what blur takes first."""
    inner = images[..., 1:-1, 1:-1]
    around = images[..., :-2, 1:-1] + images[..., 2:, 1:-1] + images[..., 1:-1, :-2] + images[..., 1:-1, 2:]
    return (around - 4 * inner).square().sum((1, 2, 3))


def sharpness(decoded: float, real: float) -> float:
    """The `detail` of decoded images over that of their originals; 1 if these have none, such as white images."""
    return decoded / real if real > 1e-6 else 1.0


def usage_figures(counts: list[Tensor]) -> dict[str, Tensor]:
    """Scalars per level: `usage_L`, the share of codes used at all, and `perplexity_L`, of code counts [K]."""
    figures = {}
    for level, count in enumerate(counts):
        figures[f"usage_{level}"], figures[f"perplexity_{level}"] = usage_scalars(count)
    return figures
