"""Samples that are drawn when the prior of a level is trained: what the levels so far have learned."""

from __future__ import annotations

from pathlib import Path

import torch

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes
from vqvae2.config.models import Config
from vqvae2.data.grid import save_grid
from vqvae2.files.parts import cut
from vqvae2.files.run_folder import RunFolder
from vqvae2.prior.captured import StepGraphs
from vqvae2.train.device import TrainingError
from vqvae2.train.folder import load_prior, samples_file, sharp_autoencoder


def draw_level(folder: Path, config: Config, autoencoder: VQVAE, digest: str, level: int, more: bool) -> None:
    """Draw prior/level-L/samples.png: samples of the levels trained so far; finer levels are set to their mean code.

    With all levels trained, the sharpened decoder is used if there is one.

    Args:
        folder, config: RUN and its settings.
        autoencoder: decodes them; its sha-256 is `digest`.
        digest: of the autoencoder.
        level: whose prior is trained.
        more: whether a finer level is still to be trained by this process.

    Raises:
        TrainingError: the samples are saved, but this process cannot train the next level on the card.
    """
    device = next(autoencoder.parameters()).device
    if level == config.autoencoder.levels - 1 and RunFolder(folder).sharpen.model.exists():
        autoencoder = sharp_autoencoder(folder, config, device)
    count, classes = 64, config.prior.classes
    prior = load_prior(folder, config, device, level + 1, digest)
    labels = torch.arange(count) % classes if classes else None
    sampling, finer = config.sampling.coarsest(level + 1), config.geometry.grids[level + 1 :]
    pictures, graphs = [], StepGraphs(sampling.dtype)
    for numbers in cut(count, sampling.batch):
        own = None if labels is None else labels[numbers.start : numbers.stop]
        drawn = prior.sample(numbers, own, sampling, seed=config.seed, graphs=graphs)
        rest = (torch.zeros(len(numbers), *grid, dtype=torch.int64, device=device) for grid in finer)
        pictures.append(autoencoder.decode(Codes((*drawn.levels, *rest)), level + 1).cpu())
    save_grid(torch.cat(pictures), samples_file(folder, level), columns=8)
    if graphs.lost and more:
        raise TrainingError(
            f"prior level {level} is trained and its samples are drawn, but drawing could not be captured as a CUDA graph, after which "
            "the card cannot be used further by this process; the same command goes on with the next level"
        )
