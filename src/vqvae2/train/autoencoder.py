"""Stage 1: the objective of the autoencoder. L = MSE(x, x_hat) / variance + sum of the levels' latent losses (paper eq. 2).

The reconstruction term is the mean squared error over pixels in [-1, 1]; `variance` is 1 unless configured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vqvae2.autoencoder.model import VQVAE
from vqvae2.autoencoder.quantizer import perplexity
from vqvae2.config import Config
from vqvae2.data.batches import batches, sequential
from vqvae2.data.grid import save_grid
from vqvae2.data.images import ImageSet
from vqvae2.data.pixels import psnr


class AutoencoderObjective:
    """Stage 1 for the training loop.

    Args:
        config: the whole configuration.
        images: the pictures; `images.train` are learnt from, `images.heldout` judged on.
    """

    name = "autoencoder"

    def __init__(self, config: Config, images: ImageSet) -> None:
        self.config, self.images = config, images
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model: VQVAE = VQVAE(config.autoencoder)
        self.epoch_steps = max(1, math.ceil(len(images.train) / config.train_autoencoder.batch))

    def batches(self, start: int, rank: int, world: int) -> Iterator[Any]:
        """(images [b, C, S, S] in [-1, 1], labels [b]) of this process from step `start` on."""
        batch = self.config.train_autoencoder.batch
        return batches(
            self.images,
            self.images.train,
            self.config.data,
            batch=batch,
            seed=self.config.seed,
            start=start,
            rank=rank,
            world=world,
        )

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction plus commitment; logs both and each level's batch perplexity."""
        images = batch[0].to(next(model.parameters()).device)
        out = model(images)
        errors = (out.images.float() - images).square().mean((1, 2, 3))
        whole = out.used == self.config.autoencoder.levels
        mse = errors.mean()
        of_whole = (errors * whole).sum() / whole.sum().clamp_min(1)
        logs = {"mse": torch.where(whole.any(), of_whole, mse), "commitment": out.commitment}
        logs |= {f"batch_perplexity_{level}": item.perplexity for level, item in enumerate(out.levels)}
        return mse / self.config.autoencoder.variance + out.commitment, logs

    def after_step(self, step: int, accelerator: Accelerator) -> dict[str, Any]:
        """Every epoch: perplexity and share of codes used per level over the epoch, by all processes."""
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
        """Held-out MSE in [-1, 1], PSNR in dB (of the mean error, and mean over pictures), code use per level."""
        assert isinstance(model, VQVAE)
        device = accelerator.device
        share = self.images.heldout[accelerator.process_index :: accelerator.num_processes]
        totals = torch.zeros(3, dtype=torch.float64, device=device)
        use = [torch.zeros(k, dtype=torch.int64, device=device) for k in self.config.autoencoder.codes]
        for images, _ in sequential(
            self.images, share, self.config.data, batch=self.config.train_autoencoder.batch
        ):
            images = images.to(device)
            out = model(images)
            decibels = psnr(out.images, images)
            error = 4 * 10 ** (-decibels / 10)
            totals += torch.stack(
                [error.sum(), decibels.sum(), torch.tensor(float(len(images)), device=device)]
            )
            for count, level in zip(use, out.codes.levels, strict=True):
                count += torch.bincount(level.flatten(), minlength=len(count))
        totals = accelerator.reduce(totals, "sum")
        use = [accelerator.reduce(count, "sum") for count in use]
        mse, mean_psnr = float(totals[0] / totals[2]), float(totals[1] / totals[2])
        figures = {
            "heldout_mse": mse,
            "heldout_psnr": 10 * math.log10(4 / max(mse, 1e-10)),
            "heldout_psnr_per_picture": mean_psnr,
        }
        return {"score": mse, **figures, **{f"heldout_{k}": v for k, v in usage_figures(use).items()}}

    @torch.no_grad()
    def draw(self, model: nn.Module, path: Path) -> None:
        """Sixteen held-out originals (eight if there are fewer), each above its reconstruction."""
        assert isinstance(model, VQVAE)
        heldout = self.images.heldout
        count = 16 if len(heldout) >= 16 else 8
        indices = heldout[:: max(1, len(heldout) // count)][:count]
        images, _ = next(iter(sequential(self.images, indices, self.config.data, batch=16)))
        images = images.to(next(model.parameters()).device)
        again = model(images).images.float()
        rows = [images[:8], again[:8], images[8:], again[8:]]
        save_grid(torch.cat([row for row in rows if len(row)]).cpu(), path, columns=min(8, len(images)))


def usage_figures(counts: list[Tensor]) -> dict[str, float]:
    """Per level: `usage_L`, the share of codes used at all, and `perplexity_L`, of code counts [K]."""
    figures = {}
    for level, count in enumerate(counts):
        figures[f"usage_{level}"] = float((count > 0).double().mean())
        figures[f"perplexity_{level}"] = float(perplexity(count))
    return figures
