"""The chained pipeline: images -> autoencoder -> codes -> sharpened decoder (if asked for) -> one prior per level.

All of it is in one run folder and resumable.

Called again, it goes on where it stopped; `train/folder.py` says what counts as done, and what is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.autoencoder.perceptual import PerceptualDistance
from vqvae2.config.models import Config
from vqvae2.data.images import ImageSet, open_images
from vqvae2.data.store import CodeStore
from vqvae2.data.value_range import with_range
from vqvae2.files import atomic, tensor_file
from vqvae2.files.lock import locks, still_locked
from vqvae2.files.progress import Reporter
from vqvae2.files.run_folder import RunFolder, StageFolder, run_path
from vqvae2.files.seen import await_seen, check_same
from vqvae2.processes import joined
from vqvae2.train.autoencoder import AutoencoderObjective
from vqvae2.train.beginning import (
    Until,
    begin_prior,
    check_end,
    check_processes,
    check_starts,
    due,
    read_distance,
    stage1_inputs,
)
from vqvae2.train.derived import check_derived
from vqvae2.train.device import make_accelerator
from vqvae2.train.extract import extract, fits, open_for_all, parts_folder
from vqvae2.train.folder import (
    Claim,
    Redo,
    begun,
    check_images,
    claim,
    finished,
    load_autoencoder,
    model_file,
    read_run,
    same_images,
    samples_file,
    settle,
    with_classes,
)
from vqvae2.train.level_samples import draw_level
from vqvae2.train.longer import announcement, built_on, keep_state, prepare, publish, remove, wanted
from vqvae2.train.loop import fit
from vqvae2.train.objective import Objective
from vqvae2.train.place import tidy
from vqvae2.train.prior import PriorObjective, copies
from vqvae2.train.reference import reference_metadata
from vqvae2.train.remarks import check_learned, say_sharpened, say_usage
from vqvae2.train.sharded import whole
from vqvae2.train.sharded_state import remove_previous
from vqvae2.train.sharpen import SharpenObjective


@locks("folder", below=["."])
def train(
    data: str,
    folder: str | Path,
    config: Config,
    *,
    command: str = "",
    reporter: Reporter | None = None,
    until: Until = "prior",
    redo: Sequence[int] = (),
    begins: Callable[[Config], None] = lambda config: None,
) -> bool:
    """Run every stage of the pipeline that is not done yet, or the first ones only.

    Args:
        data: see `open_images`.
        folder: RUN; created.
        config: every setting.
        command: what the user typed; it is written to config.yaml.
        reporter: where progress and messages are shown.
        until: stop after "autoencoder", "codes" (which are stored) or "sharpen"; a later call without it continues.
        redo: levels whose priors are replaced if their settings changed; the old ones are moved aside.
        begins: called once before images are read, if the settings are accepted and something is left to train.

    Returns:
        False if all was done already.

    Raises:
        LockError: another command works in RUN, or RUN was removed meanwhile.
        RunError: RUN cannot be written, was made by a newer version, holds a stage of other settings; or no stage `until`.
        DataError: the images cannot be read, or are too few.
        PerceptualError: the weights of the perceptual distance cannot be read.
        TrainingError: a training cannot go on, for example because the loss is not finite.
        FileError, StoreError: a file of the run is damaged, cannot be written, or belongs to another autoencoder.
        Interrupted: Ctrl-C was pressed; the state is saved.
    """
    folder = run_path(folder)
    check_end(config, until)
    accelerator = make_accelerator(config.precision)
    reporter = (reporter or Reporter()) if accelerator.is_main_process else Reporter(quiet=True)
    config = _with_range(data, folder, config, reporter)
    claimed = claim(folder, data, config, command, accelerator, Redo(redo, reporter.say))
    config = claimed.config
    if accelerator.is_main_process:
        tidy(folder, config.autoencoder.levels)
    joined().wait()  # what it and `claim` wrote decides below what every process does
    check_derived(folder, config)
    further = wanted(folder, config)
    stages = due(folder, config, further, claimed.anew.levels, until)
    for name in (name for name in further if stages.get(name) is False):
        reporter.say(announcement(folder, config, name))
    todo = bool(stages or further) or not finished(folder, config)
    if not todo and same_images(folder, data, config):
        settle(folder, claimed, accelerator)
        reporter.say(f"{folder}: all is done; nothing to train")
        return False
    check_processes(config, stages, accelerator.num_processes)
    check_starts(config, stages)
    begins(config)
    _stages(data, folder, claimed, stages, until, accelerator, reporter)
    return todo


def _stages(
    data: str,
    folder: Path,
    claimed: Claim,
    stages: Mapping[str, bool],
    until: Until,
    accelerator: Accelerator,
    reporter: Reporter,
) -> None:
    """The stages of `due`, and the codes."""
    config = claimed.config
    # first, so that a wrong path is reported at once
    inputs = stage1_inputs(config, stages["autoencoder"]) if "autoencoder" in stages else None
    distance = read_distance(config.sharpen.perceptual_weights) if "sharpen" in stages else None
    images = _open(data, folder, config, accelerator, reporter)
    try:
        config = with_classes(folder, data, claimed, images, accelerator)
        autoencoder, digest = _stage1(folder, config, images, inputs, accelerator, reporter)
        if until == "autoencoder":
            return
        store = _codes(folder, config, images, autoencoder, digest, accelerator, reporter)
        if "sharpen" in stages:
            _sharpen(folder, config, images, digest, distance, accelerator, reporter)
    finally:
        images.close()
    say_usage(store, reporter)
    if until == "prior":
        _priors(folder, config, store, autoencoder, stages, accelerator, reporter)
    say_sharpened(folder, config.sharpen.begin, reporter)


def _with_range(data: str, folder: Path, config: Config, reporter: Reporter) -> Config:
    """The settings with numbers for `data.range`, those of the run where a stage of it is trained."""
    if not isinstance(config.data.range, str):
        return config
    if RunFolder(folder).exists():
        record, old = read_run(folder)
        if begun(folder, old, record) and old.data.range is not None:
            return config.model_copy(
                update={"data": config.data.model_copy(update={"range": old.data.range})}
            )
    found = with_range(data, config.data, folder, reporter.say, config.seed)
    return config.model_copy(update={"data": found})


def _open(data: str, folder: Path, config: Config, accelerator: Accelerator, reporter: Reporter) -> ImageSet:
    with joined().main_first(), reporter.track("reading images", 1, unit="images") as tracker:

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
    check_same(
        f"{len(images.train):,} images to train and {len(images.heldout):,} held out ({images.fingerprint[:12]})",
        data,
    )
    reporter.say(
        f"{len(images)} images of {config.data.shape_text} px: {len(images.train)} to train, {len(images.heldout)} held out"
        + (f", {len(images.classes)} classes" if images.classes else ", no classes")
    )
    return images


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
        _fit(
            objective,
            config.train_autoencoder,
            part,
            accelerator,
            reporter,
            config,
            config.seed,
            lambda weights: (weights, reference_metadata(config.autoencoder, weights)),
        )
        await_seen([part.model])
    return load_autoencoder(folder, config, accelerator.device)


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
    still_locked(folder)
    settings = config.sharpen
    if settings.patience:
        reporter.say(
            "sharpen: sharpen.patience is not used, because no held-out score tells which weights look best"
        )
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
        lambda _: (objective.weights(), {"autoencoder": digest}),
    )


def _codes(
    folder: Path,
    config: Config,
    images: ImageSet,
    model: VQVAE,
    digest: str,
    accelerator: Accelerator,
    reporter: Reporter,
) -> CodeStore:
    still_locked(folder)
    place = RunFolder(folder).codes
    with joined().main_first():  # the main process finishes renames, and checks the content for all
        found = fits(place, config, images, digest, accelerator.is_main_process)
    found = joined().agreed(found)
    if not found:
        if any(model_file(folder, level).exists() for level in range(config.autoencoder.levels)):
            reporter.say("the code store is missing or does not fit the autoencoder: extracting anew")
        if (times := copies(config)) > 1:
            reporter.say(
                f"codes: each of {len(images.train):,} training images is encoded {times} times, once as it is and "
                f"{times - 1} times augmented (train_prior.*.copies), and {len(images.heldout):,} held-out images once"
            )
        extract(model, images, config, place, digest, accelerator, reporter)
    elif accelerator.is_main_process:
        remove([parts_folder(place)])  # of an extraction that was killed at its very end
    return open_for_all(place, digest)


def _priors(
    folder: Path,
    config: Config,
    store: CodeStore,
    autoencoder: VQVAE,
    stages: Mapping[str, bool],
    accelerator: Accelerator,
    reporter: Reporter,
) -> None:
    """Stage 2 of every level that is due, and after each samples of the levels so far, if all of them are trained."""
    trained = True  # this level and all coarser ones
    for level in range(config.autoencoder.levels):
        if (begins := stages.get(f"prior level {level}")) is not None:
            _stage2(folder, config, store, autoencoder, level, begins, accelerator, reporter)
        trained = trained and RunFolder(folder).prior(level).done()
        if accelerator.is_main_process and trained and not samples_file(folder, level).exists():
            more = any(
                f"prior level {later}" in stages for later in range(level + 1, config.autoencoder.levels)
            )
            draw_level(folder, config, autoencoder, store.digest, level, more)
        joined().wait()


def _stage2(
    folder: Path,
    config: Config,
    store: CodeStore,
    autoencoder: VQVAE,
    level: int,
    begins: bool,
    accelerator: Accelerator,
    reporter: Reporter,
) -> None:
    still_locked(folder)
    settings = config.train_prior[level]
    codebooks = [quantizer.codebook() for quantizer in autoencoder.quantizers[: level + 1]]
    objective = PriorObjective(config, store, level, codebooks)
    if settings.start and begins:
        new = begin_prior(objective.model, settings.start, level, list(store.classes))
        words = f"; {new} of {len(store.classes)} classes are new to it" if new else ""
        reporter.say(f"{objective.name}: begins with the prior of {settings.start}{words}")
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
        lambda weights: (weights, {"autoencoder": store.digest}),
    )


def _fit(
    objective: Objective,
    settings: Any,
    part: StageFolder,
    accelerator: Accelerator,
    reporter: Reporter,
    config: Config,
    seed: int,
    result: Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], dict[str, Any]]],
) -> None:
    """Train one stage, or train it further if it is done, then write its model.safetensors and keep its state.

    Args:
        result: returns the tensors and further metadata to write, of the whole weights of the objective's model; called in
            the main process alone.
    """
    again = part.done()
    folder = part.longer if again else part
    if again and accelerator.is_main_process:
        prepare(part, objective.name)
    joined().wait()
    outcome = fit(objective, settings, folder.path, accelerator, reporter, seed, config)
    check_learned(objective.name, outcome.figures, part)
    figures = {key: value for key, value in outcome.figures.items() if key != "score"}
    kept = f"step {outcome.best_step} is the best of {outcome.step}"
    if objective.name == "sharpen":
        kept = f"the averaged weights of step {outcome.best_step} are kept"
    reporter.say(f"{objective.name}: {kept}: {_figures(figures)}")
    weights = whole(objective.model)
    if accelerator.is_main_process:
        remove_previous(folder.checkpoint)
        record = {"outcome": asdict(outcome), "config": config.model_dump(mode="json")}
        tensors, more = result(weights)
        about = {"figures": figures, "step": outcome.best_step, **more}
        if again or objective.name == "sharpen":  # the finest sheet of samples is by the decoder before
            remove(built_on(part, config, objective.name))
        if again:  # the record last, because it says that there is nothing more to train
            tensor_file.save_tensors(part.model, tensors, about)
            atomic.write_json(part.record, record)
            publish(part, folder)
        else:
            atomic.write_json(part.record, record)
            tensor_file.save_tensors(part.model, tensors, about)
            keep_state(part, part)
    joined().wait()


def _figures(figures: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in figures.items() if isinstance(value, float))
