"""Sharpening: the decoder of a trained autoencoder learns to make images that look real; the codes do not change.

Squared error alone blurs what the codes leave open. Here the decoder and its up-sampling paths are trained further
with squared error + adversarial loss (+ optional perceptual distance), as VQGAN trains its whole autoencoder (Esser et al.
2021, arXiv 2012.09841, section 3.2). That encoder and codebooks stay frozen is our decision: priors, stored codes and
compressed files of the run remain valid.

Both networks learn in the same backward pass (simultaneous gradient descent): the decoder's loss sees the
discriminator's weights as constants and the discriminator's loss sees the decoder's images as constants. So the one
training loop and its checkpoints serve this stage as they serve the others.

The averaged weights of the last step are kept: an adversarial training has no held-out score that says which
weights look best.

Shapes: B batch, C image channels, S image size, D code dimension, h w the grid of a level.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vqvae2.autoencoder.base import summed
from vqvae2.autoencoder.discriminator import (
    PatchDiscriminator,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes
from vqvae2.config.models import Config
from vqvae2.data.batches import rows_of_eight, sequential
from vqvae2.data.grid import save_grid
from vqvae2.data.images import ImageSet
from vqvae2.data.pixels import decibels
from vqvae2.modes import seeded
from vqvae2.processes import world
from vqvae2.train.autoencoder import detail, sharpness
from vqvae2.train.device import host_total
from vqvae2.train.feed import Batch
from vqvae2.train.judging import HeldOut
from vqvae2.train.resident import TrainingImages


class Sharpening(nn.Module):
    """The two networks that play against each other: a copy of the decoder, and a discriminator.

    Args:
        plain: the trained autoencoder; it is not changed.
        config: the whole configuration.
        distance: perceptual distance, part of the loss with weight `sharpen.perceptual`.
    """

    seen: Tensor
    may_compile = False  # a gradient is taken within the forward pass
    ramped_average = True  # it is the result, also of few steps

    def __init__(self, plain: VQVAE, config: Config, distance: nn.Module | None = None) -> None:
        super().__init__()
        settings = config.sharpen
        self.config, self.settings = config, settings
        self.decoder = copy.deepcopy(plain.decoder)
        paths = [level.get_submodule("to_finest") for level in plain.levels]
        self.to_finest = copy.deepcopy(nn.ModuleList(paths))
        self.discriminator = PatchDiscriminator(config.data.channels, settings.width, settings.depth)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # steps before the present one
        self._distance = [distance]  # in a list, so that its weights are no part of this module

    def before_step(self, number: int) -> None:
        """Steps are counted outside: a state may hold a count of parts of batches, of which a step had any number."""
        self.seen.fill_(number)

    def decode(self, vectors: Sequence[Tensor]) -> Tensor:
        """The code vectors of every level [B, D, h, w], coarsest first, to images [B, C, S, S], not clipped."""
        finest = [path(level) for path, level in zip(self.to_finest, vectors, strict=True)]
        images: Tensor = self.decoder(torch.cat(finest, 1))
        return images.float()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser: the decoder's weights, and the discriminator's, which learn `discriminator_rate` times as fast.

        Two rates: Heusel et al. 2017, arXiv 1706.08500. The first beta is that of pix2pix.
        """
        betas = (0.5, 0.99)
        own = list(self.discriminator.parameters())
        rest = [*self.decoder.parameters(), *self.to_finest.parameters()]
        return [
            {"params": rest, "betas": betas, "scale": 1.0},
            {"params": own, "betas": betas, "scale": self.settings.discriminator_rate},
        ]

    def forward(self, vectors: Sequence[Tensor], images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of both networks' losses, and figures to log.

        Args:
            vectors: the code vectors of every level [B, D, h, w] of the images.
            images: [B, C, S, S] in [-1, 1].
        """
        sharp = self.decode(vectors)
        mse = (sharp - images).square().mean()
        logs = {"mse": mse}
        loss = mse / self.config.autoencoder.variance
        if self.settings.perceptual and self._distance[0] is not None:
            logs["perceptual"] = self._distance[0](sharp, images).mean()
            loss = loss + self.settings.perceptual * logs["perceptual"]
        adversarial, adversarial_logs = self._adversarial(sharp, (sharp - images).detach())
        own, own_logs = self._discriminator(sharp.detach(), images)
        return loss + adversarial + own, {**logs, **adversarial_logs, **own_logs}

    def _adversarial(self, sharp: Tensor, error: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A term whose gradient at the images is the adversarial one, of a size relative to that of the squared error.

        VQGAN's equation 7 divides by the adversarial gradient at the last layer's weights. We compare gradients at the
        images, and never divide by less than the gradient of a discriminator of slope 1: an undecided one has a small
        gradient that means nothing, and enlarging it ruined the images.
        """
        fake = self.discriminator.frozen(sharp)
        loss = generator_loss(fake, self.settings.loss == "hinge")
        (gradient,) = torch.autograd.grad(loss, sharp)
        processes = world()[1]
        squares = summed(torch.stack([error.square().sum(), gradient.square().sum()]))  # of the global batch
        error_norm, norm = squares.sqrt().unbind()
        elements = error.numel() * processes * self.config.autoencoder.variance
        least = (fake.numel() * processes) ** -0.5
        weight = self.settings.adversarial * (2 * error_norm / elements) / (norm / processes).clamp_min(least)
        weight = weight * (self.seen >= self.settings.begin)
        return (sharp * (weight * gradient)).sum(), {"generator": loss.detach(), "weight": weight}

    def _discriminator(self, sharp: Tensor, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        penalised = self.settings.penalty > 0
        images = images.detach().requires_grad_(penalised)
        real, fake = self.discriminator(images), self.discriminator(sharp)
        loss = discriminator_loss(real, fake, self.settings.loss == "hinge")
        logs = {"discriminator": loss.detach(), "real": real.detach().mean(), "fake": fake.detach().mean()}
        if penalised:
            logs["penalty"] = gradient_penalty(real, images)
            loss = loss + self.settings.penalty * logs["penalty"]
        return loss, logs


class SharpenObjective:
    """The sharpening for the training loop.

    Args:
        config: the whole configuration.
        images: `images.train` are learned from; figures and drawings are of `images.heldout`.
        plain: the trained autoencoder; its encoder makes the codes, also of augmented images. It is not changed.
        distance: a perceptual distance, measured on the held-out images, and part of the loss with weight `sharpen.perceptual`.
    """

    name = "sharpen"

    def __init__(
        self, config: Config, images: ImageSet, plain: VQVAE, distance: nn.Module | None = None
    ) -> None:
        self.config, self.images = config, images
        self.autoencoder: str | None = (
            None  # digest of `plain`'s weights, which the state of the training names
        )
        self.plain = plain.eval().requires_grad_(False)
        self.distance = distance.to(next(plain.parameters()).device) if distance is not None else None
        with seeded(config.seed):
            self.model = Sharpening(plain, config, self.distance).requires_grad_(True)
        self.training = TrainingImages(images, config.data, config.sharpen.batch, config.seed)
        self.judged = HeldOut(images.heldout, config.sharpen)

    def keep_on(self, device: torch.device, limit: int) -> int:
        """As `TrainingImages.keep_on`."""
        return self.training.keep_on(device, limit)

    def batches(self, start: int, rank: int, world: int) -> Iterator[Batch]:
        """As `TrainingImages.batches`."""
        return self.training.batches(start, rank, world)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of decoder and discriminator, summed; logs each of their terms."""
        images = self.training.scaled(batch, next(model.parameters()).device)
        with torch.autocast(images.device.type, enabled=False):  # float32 as for the stored codes
            vectors = self.vectors(self.plain.encode(images))
        result: tuple[Tensor, dict[str, Tensor]] = model(vectors, images)
        return result

    @torch.no_grad()
    def vectors(self, codes: Codes) -> list[Tensor]:
        """The code vectors of every level [B, D, h, w]."""
        pairs = zip(self.plain.quantizers, codes.levels, strict=True)
        return [quantizer.lookup(level).permute(0, 3, 1, 2) for quantizer, level in pairs]

    def after_step(self, step: int, accelerator: Accelerator) -> dict[str, Any]:
        """Nothing."""
        return {}

    def counts(self) -> list[Tensor]:
        """Nothing."""
        return []

    @torch.no_grad()
    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, Any]:
        """Held-out PSNR in dB, sharpness and perceptual distance (see `AutoencoderObjective.evaluate`), sharpened and plain.

        `heldout_real` and `heldout_fake` are the discriminator's mean logits: when it knows its training images by heart,
        held-out ones no longer look real to it. There is no score, so that the last weights are kept.
        """
        assert isinstance(model, Sharpening)
        device = accelerator.device
        chosen, processes = self.judged.chosen, accelerator.num_processes
        share, size = chosen[accelerator.process_index :: processes], self.judged.size(processes)
        batches = sequential(self.images, share, self.config.data, batch=size)
        measured: list[Tensor] = []
        for images, _ in self.judged.polled(batches, len(chosen), processes):
            images = images.to(device)
            codes = self.plain.encode(images)
            pair = (model.decode(self.vectors(codes)).clamp(-1, 1), self.plain.decode(codes))
            columns = [(x - images).square().mean((1, 2, 3)) for x in pair]
            columns += [detail(x) for x in (*pair, images)]
            columns += [model.discriminator(x).mean((1, 2, 3)) for x in (images, pair[0])]
            if self.distance:
                columns += [self.distance(x, images) for x in pair]
            measured.append(torch.stack(columns))
        mse, plain_mse, detail_sharp, detail_plain, detail_real, real, fake, *distances = (
            total / len(chosen) for total in host_total(measured, 9 if self.distance else 7, accelerator)
        )
        figures = {
            "heldout_mse": mse,
            "heldout_psnr": decibels(mse),
            "heldout_psnr_plain": decibels(plain_mse),
            "heldout_sharpness": sharpness(detail_sharp, detail_real),
            "heldout_sharpness_plain": sharpness(detail_plain, detail_real),
            "heldout_real": real,
            "heldout_fake": fake,
        }
        names = ("heldout_perceptual", "heldout_perceptual_plain")
        return figures | dict(zip(names, distances, strict=False))

    @torch.no_grad()
    def draw(self, model: nn.Module, path: Path) -> None:
        """Eight held-out originals, their plain and their sharpened reconstructions; then eight more if there are as many."""
        assert isinstance(model, Sharpening)
        indices = rows_of_eight(self.images.heldout)
        images, _ = next(iter(sequential(self.images, indices, self.config.data, batch=16)))
        images = images.to(next(model.parameters()).device)
        codes = self.plain.encode(images)
        sharp, plain = model.decode(self.vectors(codes)), self.plain.decode(codes)
        rows = [x[i : i + 8] for i in (0, 8) for x in (images, plain, sharp)]
        save_grid(torch.cat([row for row in rows if len(row)]).cpu(), path, columns=min(8, len(images)))

    def weights(self) -> dict[str, Tensor]:
        """The sharpened weights under the names that they have in a `VQVAE`."""
        tensors = {f"decoder.{name}": value for name, value in self.model.decoder.state_dict().items()}
        for level, path in enumerate(self.model.to_finest):
            tensors |= {f"levels.{level}.to_finest.{k}": v for k, v in path.state_dict().items()}
        return tensors
