"""The chained pipeline: pictures -> autoencoder -> codes -> one prior per level, in one run folder, resumable.

Called again, it goes on where it stopped; `train/folder.py` says what counts as done, and what is refused.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from vqvae2.autoencoder.codebook_usage import stored_usage
from vqvae2.autoencoder.model import VQVAE
from vqvae2.autoencoder.perceptual import PerceptualDistance
from vqvae2.codes import Codes
from vqvae2.config.models import Config
from vqvae2.data.batches import sequential
from vqvae2.data.grid import save_grid
from vqvae2.data.images import ImageSet, open_images
from vqvae2.data.store import CodeStore, StoreError, StoreWriter, open_store
from vqvae2.files import atomic, tensor_file
from vqvae2.files.progress import Reporter
from vqvae2.train.autoencoder import AutoencoderObjective
from vqvae2.train.folder import (
    claim,
    finished,
    load_autoencoder,
    load_prior,
    model_file,
    samples_file,
    with_classes,
)
from vqvae2.train.loop import Objective, Outcome, fit, make_accelerator
from vqvae2.train.prior import PriorObjective, copies

_COLLAPSED = 0.10  # a level that uses fewer codes than this share is reported before stage 2


def train(
    data: str,
    folder: str | Path,
    config: Config,
    *,
    command: str = "",
    reporter: Reporter | None = None,
    until: Literal["autoencoder", "prior"] = "prior",
) -> None:
    """Do what is not yet done of the whole pipeline, or of its first stage.

    Args:
        data: see `open_images`.
        folder: RUN; created.
        config: every setting.
        command: what the user typed, for the record.
        reporter: where to speak.
        until: "autoencoder" stops after stage 1; a later call without it goes on.

    Raises:
        RunError: RUN cannot be written, is of a newer version, or holds something trained otherwise.
        DataError, PerceptualError, TrainingError, FileError, StoreError: see there. Interrupted: Ctrl-C.
    """
    folder = Path(folder)
    accelerator = make_accelerator(config.precision, config.compile)
    reporter = reporter or Reporter()
    if not accelerator.is_main_process:
        reporter = Reporter(quiet=True)
    config = claim(folder, data, config, command, accelerator)
    if finished(folder, config):
        reporter.say(f"{folder}: all is done; nothing to train")
        return
    given = None if model_file(folder).exists() else _given(config)  # first: a wrong path is found at once
    images = _open(data, folder, config, accelerator, reporter)
    try:
        config = with_classes(folder, config, images, accelerator)
        autoencoder, digest = _stage1(folder, config, images, given, accelerator, reporter)
        if until == "autoencoder":
            return
        store = _codes(folder, config, images, autoencoder, digest, accelerator, reporter)
    finally:
        images.close()
    _health(store, reporter)
    for level in range(config.autoencoder.levels):
        if not model_file(folder, level).exists():
            _stage2(folder, config, store, autoencoder, level, accelerator, reporter)
        if accelerator.is_main_process and not samples_file(folder, level).exists():
            _draw_level(folder, config, autoencoder, level)
        accelerator.wait_for_everyone()


def extract(
    autoencoder: VQVAE, images: ImageSet, config: Config, folder: Path, digest: str, reporter: Reporter
) -> None:
    """Encode every picture into the code store `folder`: held-out ones once, training ones `copies` times.

    The first copy is not augmented; each further one is, as the data configuration says. The frozen model is in
    eval mode; labels travel along.
    """
    device = next(autoencoder.parameters()).device
    total = _total(images, config)
    autoencoder.eval()
    with (
        StoreWriter(
            folder, config.geometry, digest, total, classes=images.classes, fingerprint=images.fingerprint
        ) as writer,
        reporter.track("codes", total, unit="images") as tracker,
    ):
        done = 0
        passes = [
            (images.heldout, 1, None),
            *((images.train, 0, None if i == 0 else config.seed + i) for i in range(copies(config))),
        ]
        for indices, side, seed in passes:
            for pictures, labels in sequential(images, indices, config.data, batch=64, copies_seed=seed):
                codes = autoencoder.encode(pictures.to(device))
                writer.append(codes, labels.numpy(), np.full(len(labels), side, np.int8))
                done += len(labels)
                tracker.update(done)


def _total(images: ImageSet, config: Config) -> int:
    """How many pictures the code store holds."""
    return len(images.heldout) + copies(config) * len(images.train)


def _open(data: str, folder: Path, config: Config, accelerator: Accelerator, reporter: Reporter) -> ImageSet:
    with accelerator.main_process_first(), reporter.track("reading pictures", 1, unit="images") as tracker:

        def progress(done: int, total: int | None) -> None:
            tracker.total = total or done + 1  # of a stream nobody knows
            tracker.update(done)

        images = open_images(
            data, config.data, folder / "data", seed=config.seed, say=reporter.say, progress=progress
        )
    reporter.say(
        f"{len(images)} pictures of {config.data.size} px: {len(images.train)} to train, {len(images.heldout)} held out"
        + (f", {len(images.classes)} classes" if images.classes else ", no classes")
    )
    return images


def _given(config: Config) -> tuple[PerceptualDistance | None, dict[str, Tensor]]:
    """What stage 1 is given beside pictures: its perceptual distance, and the weights it begins with ({}: at random)."""
    settings = config.train_autoencoder
    weights, start = settings.perceptual_weights, settings.start
    distance = PerceptualDistance.read(weights) if weights else None
    begin = tensor_file.load_tensors(model_file(Path(start)))[0] if start else {}
    if begin:
        tensor_file.load_weights(VQVAE(config.autoencoder), begin, start)  # says what does not fit
    return distance, begin


def _stage1(
    folder: Path,
    config: Config,
    images: ImageSet,
    given: tuple[PerceptualDistance | None, dict[str, Tensor]] | None,
    accelerator: Accelerator,
    reporter: Reporter,
) -> tuple[VQVAE, str]:
    if given:
        part, objective = folder / "autoencoder", AutoencoderObjective(config, images, given[0])
        if given[1]:
            tensor_file.load_weights(objective.model, given[1], config.train_autoencoder.start)
        _fit(objective, config.train_autoencoder, part, accelerator, reporter, config, config.seed)
    return load_autoencoder(folder, config, accelerator.device)


def _draw_level(folder: Path, config: Config, autoencoder: VQVAE, level: int) -> None:
    """Samples of the levels that are trained so far, finer ones at their mean code: prior/level-L/samples.png."""
    device = next(autoencoder.parameters()).device
    count, classes = 64, config.prior.classes
    prior = load_prior(folder, config, device, level + 1)
    labels = torch.arange(count) % classes if classes else None
    drawn = prior.sample(count, labels, config.sampling.coarsest(level + 1), seed=config.seed)
    finer = config.geometry.grids[level + 1 :]
    rest = (torch.zeros(count, *grid, dtype=torch.int64, device=device) for grid in finer)
    pictures = autoencoder.decode(Codes((*drawn.levels, *rest)), level + 1)
    save_grid(pictures.cpu(), samples_file(folder, level), columns=8)


def _codes(
    folder: Path,
    config: Config,
    images: ImageSet,
    model: VQVAE,
    digest: str,
    accelerator: Accelerator,
    reporter: Reporter,
) -> CodeStore:
    if accelerator.is_main_process:
        try:
            store = open_store(folder / "codes", digest=digest)
            if len(store) != _total(images, config):
                raise StoreError("train_prior.*.copies was changed")
        except StoreError:
            if any(model_file(folder, level).exists() for level in range(config.autoencoder.levels)):
                reporter.say("the code store is missing or does not fit the autoencoder: extracting anew")
            extract(model, images, config, folder / "codes", digest, reporter)
    accelerator.wait_for_everyone()
    return open_store(folder / "codes", digest=digest)


def _health(store: CodeStore, reporter: Reporter) -> None:
    """Report a collapsed level before stage 2 starts, with what to do."""
    for level, usage in enumerate(stored_usage(store)):
        if usage.used < _COLLAPSED:
            reporter.say(
                f"warning: level {level} is collapsed: it uses {usage.used:.1%} of its codes "
                f"(perplexity {usage.perplexity:.1f}). Its prior will have little to learn and samples will be poor. "
                f"Try fewer codes (--set autoencoder.codes=...), a larger stride for the finer level, or more training."
            )


def _stage2(
    folder: Path,
    config: Config,
    store: CodeStore,
    autoencoder: VQVAE,
    level: int,
    accelerator: Accelerator,
    reporter: Reporter,
) -> None:
    settings = config.train_prior[level]
    codebooks = [quantizer.embeddings for quantizer in autoencoder.quantizers[: level + 1]]
    objective = PriorObjective(config, store, level, codebooks)
    part = folder / "prior" / f"level-{level}"
    _fit(objective, settings, part, accelerator, reporter, config, config.seed + 1 + level)


def _fit(
    objective: Objective,
    settings: Any,
    part: Path,
    accelerator: Accelerator,
    reporter: Reporter,
    config: Config,
    seed: int,
) -> Outcome:
    """Train one stage and publish its model; the checkpoints are not needed after that."""
    outcome = fit(objective, settings, part, accelerator, reporter, seed)
    figures = {key: value for key, value in outcome.figures.items() if key != "score"}
    reporter.say(
        f"{objective.name}: step {outcome.best_step} is the best of {outcome.step}: " + _figures(figures)
    )
    if accelerator.is_main_process:
        atomic.write_json(
            part / "config.json", {"outcome": asdict(outcome), "config": config.model_dump(mode="json")}
        )
        tensor_file.save_tensors(
            part / "model.safetensors",
            objective.model.state_dict(),
            {"figures": figures, "step": outcome.best_step},
        )
        shutil.rmtree(part / "checkpoints", ignore_errors=True)
    accelerator.wait_for_everyone()
    return outcome


def _figures(figures: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in figures.items() if isinstance(value, float))
