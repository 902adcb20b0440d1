"""The chained pipeline: images -> autoencoder -> codes -> sharpened decoder (if asked for) -> one prior per level.

All of it is in one run folder and resumable.

Called again, it goes on where it stopped; `train/folder.py` says what counts as done, and what is refused.
"""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from vqvae2.autoencoder.codebook_usage import stored_usage
from vqvae2.autoencoder.model import VQVAE
from vqvae2.autoencoder.perceptual import PerceptualDistance
from vqvae2.codes import Codes
from vqvae2.config.models import Config
from vqvae2.data.grid import save_grid
from vqvae2.data.images import ImageSet, open_images
from vqvae2.data.recorded import same_source
from vqvae2.data.store import CodeStore, StoreError, complete_renames, open_store
from vqvae2.data.value_range import with_range
from vqvae2.files import atomic, tensor_file
from vqvae2.files.progress import Reporter
from vqvae2.files.run_folder import RunFolder, StageFolder, run_path
from vqvae2.train.autoencoder import AutoencoderObjective
from vqvae2.train.extract import extract, image_count, parts_folder
from vqvae2.train.folder import (
    begun,
    check_derived,
    check_images,
    claim,
    finished,
    load_autoencoder,
    load_prior,
    model_file,
    read_run,
    samples_file,
    sharp_autoencoder,
    sharp_file,
    stored_figures,
    with_classes,
)
from vqvae2.train.loop import Objective, Outcome, TrainingError, fit, make_accelerator
from vqvae2.train.prior import PriorObjective
from vqvae2.train.sharded import whole
from vqvae2.train.sharpen import SharpenObjective

_WORSE = (
    1.0  # bits per code by which a prior may be worse than guessing; with few steps some are a little worse
)
_COLLAPSED = 0.10  # a level that uses a smaller share of its codes is reported before stage 2


def train(
    data: str,
    folder: str | Path,
    config: Config,
    *,
    command: str = "",
    reporter: Reporter | None = None,
    until: Literal["autoencoder", "prior"] = "prior",
) -> None:
    """Run every stage of the pipeline that is not done yet, or the first stage only.

    Args:
        data: see `open_images`.
        folder: RUN; created.
        config: every setting.
        command: what the user typed; it is written to config.yaml.
        reporter: where progress and messages are shown.
        until: "autoencoder" stops after stage 1; a later call without it continues.

    Raises:
        RunError: RUN cannot be written, was made by a newer version, or holds a stage trained with other settings.
        DataError: the images cannot be read, or are too few.
        PerceptualError: the weights of the perceptual distance cannot be read.
        TrainingError: a training cannot go on, for example because the loss is not finite.
        FileError, StoreError: a file of the run is damaged, cannot be written, or was derived from another autoencoder than
            the run's.
        Interrupted: Ctrl-C was pressed; the state is saved.
    """
    folder = run_path(folder)
    accelerator = make_accelerator(config.precision)
    reporter = reporter or Reporter()
    if not accelerator.is_main_process:
        reporter = Reporter(quiet=True)
    config = _with_range(data, folder, config, reporter)
    config = claim(folder, data, config, command, accelerator)
    check_derived(folder, config)
    if finished(folder, config) and same_source(data, read_run(folder)[0], folder):
        reporter.say(f"{folder}: all is done; nothing to train")
        return
    # first, so that a wrong path is reported at once
    inputs = None if model_file(folder).exists() else _stage1_inputs(config)
    sharpens = config.sharpen.steps > 0 and not sharp_file(folder).exists()
    distance = _distance(config.sharpen.perceptual_weights) if sharpens and until != "autoencoder" else None
    images = _open(data, folder, config, accelerator, reporter)
    try:
        config = with_classes(folder, data, config, images, accelerator)
        autoencoder, digest = _stage1(folder, config, images, inputs, accelerator, reporter)
        if until == "autoencoder":
            return
        store = _codes(folder, config, images, autoencoder, digest, accelerator, reporter)
        if sharpens:
            _sharpen(folder, config, images, digest, distance, accelerator, reporter)
    finally:
        images.close()
    _health(store, reporter)
    _priors(folder, config, store, autoencoder, accelerator, reporter)
    _say_sharpened(folder, reporter)


def _with_range(data: str, folder: Path, config: Config, reporter: Reporter) -> Config:
    """The settings with numbers for `data.range`, those of the run where a stage of it is trained."""
    if not isinstance(config.data.range, str):
        return config
    if RunFolder(folder).exists():
        old = read_run(folder)[1]
        if begun(folder, old) and old.data.range is not None:
            return config.model_copy(
                update={"data": config.data.model_copy(update={"range": old.data.range})}
            )
    found = with_range(data, config.data, folder, reporter.say)
    return config.model_copy(update={"data": found})


def _open(data: str, folder: Path, config: Config, accelerator: Accelerator, reporter: Reporter) -> ImageSet:
    with accelerator.main_process_first(), reporter.track("reading images", 1, unit="images") as tracker:

        def progress(done: int, total: int | None) -> None:
            tracker.total = total or done + 1  # the length of a stream is unknown
            tracker.update(done)

        images = open_images(
            data,
            config.data,
            RunFolder(folder).data,
            seed=config.seed,
            say=reporter.say,
            progress=progress,
            check=functools.partial(check_images, folder, data, config),
        )
    reporter.say(
        f"{len(images)} images of {config.data.shape_text} px: {len(images.train)} to train, {len(images.heldout)} held out"
        + (f", {len(images.classes)} classes" if images.classes else ", no classes")
    )
    return images


def _stage1_inputs(config: Config) -> tuple[PerceptualDistance | None, dict[str, Tensor]]:
    """What stage 1 needs beside images: the perceptual distance or None, and the initial weights ({} means random ones)."""
    settings = config.train_autoencoder
    weights, start = settings.perceptual_weights, settings.start
    distance = _distance(weights)
    begin = tensor_file.load_tensors(model_file(Path(start)))[0] if start else {}
    if begin:
        tensor_file.load_weights(VQVAE(config.autoencoder), begin, start)  # raises where they do not fit
    return distance, begin


def _stage1(
    folder: Path,
    config: Config,
    images: ImageSet,
    inputs: tuple[PerceptualDistance | None, dict[str, Tensor]] | None,
    accelerator: Accelerator,
    reporter: Reporter,
) -> tuple[VQVAE, str]:
    if inputs:
        part, objective = RunFolder(folder).autoencoder, AutoencoderObjective(config, images, inputs[0])
        if inputs[1]:
            tensor_file.load_weights(objective.model, inputs[1], config.train_autoencoder.start)
        _fit(objective, config.train_autoencoder, part, accelerator, reporter, config, config.seed)
    return load_autoencoder(folder, config, accelerator.device)


def _distance(weights: str) -> PerceptualDistance | None:
    return PerceptualDistance.read(weights) if weights else None


def _sharpen(
    folder: Path,
    config: Config,
    images: ImageSet,
    digest: str,
    distance: PerceptualDistance | None,
    accelerator: Accelerator,
    reporter: Reporter,
) -> None:
    """Train the sharpened decoder. Its file holds the digest of the autoencoder that it belongs to."""
    settings = config.sharpen
    plain, _ = load_autoencoder(folder, config, accelerator.device)  # its own copy, which it freezes
    objective = SharpenObjective(config, images, plain, distance)
    objective.autoencoder = digest
    _fit(
        objective,
        settings,
        RunFolder(folder).sharpen,
        accelerator,
        reporter,
        config,
        config.seed + 5,  # four levels of priors take the numbers before
        lambda: (objective.weights(), {"autoencoder": digest}),
    )


def _say_sharpened(folder: Path, reporter: Reporter) -> None:
    """If the run has a sharpened decoder, say what it has changed and how to use the other one."""
    if not sharp_file(folder).exists():
        return
    figures = stored_figures(sharp_file(folder))
    psnr, sharpness = (
        f"{figures.get(f'heldout_{name}_plain', math.nan):.4g} -> {figures.get(f'heldout_{name}', math.nan):.4g}"
        for name in ("psnr", "sharpness")
    )
    reporter.say(
        f"the decoder is sharpened: held-out sharpness {sharpness} (originals 1), PSNR {psnr} dB; it is used by default, "
        f"--decoder plain chooses the other one"
    )


def _draw_level(folder: Path, config: Config, autoencoder: VQVAE, digest: str, level: int) -> None:
    """Draw prior/level-L/samples.png: samples of the levels trained so far; finer levels are set to their mean code.

    With all levels trained, the sharpened decoder is used if there is one.
    """
    device = next(autoencoder.parameters()).device
    if level == config.autoencoder.levels - 1 and sharp_file(folder).exists():
        autoencoder = sharp_autoencoder(folder, config, device)
    count, classes = 64, config.prior.classes
    prior = load_prior(folder, config, device, level + 1, digest)
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
    place = RunFolder(folder).codes
    with (
        accelerator.main_process_first()
    ):  # the main process finishes renames, and checks the content for all
        found = _fits(place, config, images, digest, accelerator.is_main_process)
    if not found:
        if any(model_file(folder, level).exists() for level in range(config.autoencoder.levels)):
            reporter.say("the code store is missing or does not fit the autoencoder: extracting anew")
        extract(model, images, config, place, digest, accelerator, reporter)
    elif accelerator.is_main_process:
        shutil.rmtree(
            parts_folder(place), ignore_errors=True
        )  # of an extraction that was killed at its very end
    accelerator.wait_for_everyone()
    return open_store(place, digest=digest, check=False)


def _fits(place: Path, config: Config, images: ImageSet, digest: str, main: bool) -> bool:
    """Whether the code store holds the codes of these images by this autoencoder, undamaged."""
    try:
        if main:
            complete_renames(place)
        store = open_store(place, digest=digest, check=main)
    except (StoreError, OSError):
        return False
    return (
        len(store) == image_count(images, config)
        and store.geometry == config.geometry
        and store.fingerprint == images.fingerprint
        and store.classes == tuple(images.classes)
    )


def _health(store: CodeStore, reporter: Reporter) -> None:
    """Warn of a level that uses few of its codes before stage 2 starts, and say what may help."""
    for level, usage in enumerate(stored_usage(store)):
        if usage.used < _COLLAPSED:
            reporter.say(
                f"warning: level {level} is collapsed: it uses {usage.used:.1%} of its codes "
                f"(perplexity {usage.perplexity:.1f}). Its prior will have little to learn and samples will be poor. "
                f"Try fewer codes (--set autoencoder.codes=...), a larger stride for the finer level, or more training."
            )


def _priors(
    folder: Path,
    config: Config,
    store: CodeStore,
    autoencoder: VQVAE,
    accelerator: Accelerator,
    reporter: Reporter,
) -> None:
    """Stage 2 of every level, and samples of the levels so far after each."""
    for level in range(config.autoencoder.levels):
        if not model_file(folder, level).exists():
            _stage2(folder, config, store, autoencoder, level, accelerator, reporter)
        if accelerator.is_main_process and not samples_file(folder, level).exists():
            _draw_level(folder, config, autoencoder, store.digest, level)
        accelerator.wait_for_everyone()


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
    codebooks = [quantizer.codebook() for quantizer in autoencoder.quantizers[: level + 1]]
    objective = PriorObjective(config, store, level, codebooks)
    part = RunFolder(folder).prior(level)
    if accelerator.is_main_process:  # samples of these levels are of an earlier prior
        for later in range(level, config.autoencoder.levels):
            samples_file(folder, later).unlink(missing_ok=True)
    _fit(
        objective,
        settings,
        part,
        accelerator,
        reporter,
        config,
        config.seed + 1 + level,
        lambda: (objective.model.state_dict(), {"autoencoder": store.digest}),
    )


def _fit(
    objective: Objective,
    settings: Any,
    part: StageFolder,
    accelerator: Accelerator,
    reporter: Reporter,
    config: Config,
    seed: int,
    result: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]] | None = None,
) -> Outcome:
    """Train one stage, then write its model.safetensors and delete its checkpoints.

    Args:
        result: returns the tensors and further metadata to write; without it the state of the objective's model is written.
    """
    outcome = fit(objective, settings, part.path, accelerator, reporter, seed, config)
    _check_learnt(objective.name, outcome.figures, part)
    figures = {key: value for key, value in outcome.figures.items() if key != "score"}
    kept = f"step {outcome.best_step} is the best of {outcome.step}"
    if objective.name == "sharpen":
        kept = f"the averaged weights of step {outcome.best_step} are kept"
    reporter.say(f"{objective.name}: {kept}: {_figures(figures)}")
    weights = whole(objective.model)
    if accelerator.is_main_process:
        atomic.write_json(part.record, {"outcome": asdict(outcome), "config": config.model_dump(mode="json")})
        tensors, more = result() if result else (weights, {})
        about = {"figures": figures, "step": outcome.best_step, **more}
        tensor_file.save_tensors(part.model, tensors, about)
        shutil.rmtree(part.checkpoints, ignore_errors=True)
    accelerator.wait_for_everyone()
    return outcome


def _check_learnt(name: str, figures: dict[str, Any], part: StageFolder) -> None:
    """Refuse a prior that is worse than no prior; nothing of it is kept as a result.

    Raises:
        TrainingError: its bits per code exceed those of guessing all codes alike by more than one.
    """
    bits, uniform = figures.get("heldout_bits", 0.0), figures.get("uniform_bits", 0.0)
    if bits > uniform + _WORSE:
        raise TrainingError(
            f"{name}: it ended at {bits:.4g} bits per code of held-out images, and guessing all codes alike takes {uniform:.4g}, "
            f"so it has learnt nothing that holds; delete {part.path}, and train with a smaller learning rate or more warm-up"
        )


def _figures(figures: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in figures.items() if isinstance(value, float))
