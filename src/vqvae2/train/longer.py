"""Training a finished stage further: its steps, minutes or patience were raised, and it goes on from the state that was kept.

    STAGE/state.safetensors   the training's state as it ended: weights, optimiser, averages
    STAGE/longer/             a folder like STAGE, in which the training goes on
    STAGE/model.safetensors   stays as it is until the longer training is done, and is then replaced

Until then the run can be used as before. What was built on the stage is removed at that moment and made anew.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from vqvae2.config.models import Config, parse
from vqvae2.config.training import TrainConfig
from vqvae2.files import atomic, tensor_file
from vqvae2.files.records import Record
from vqvae2.files.run_folder import RunError, RunFolder, StageFolder
from vqvae2.train.sharded_state import holds_shards
from vqvae2.train.state import Outcome, SavedOutcome, saved, saying_what_to_do

_LINE = re.compile(
    r"(?P<stage>train_autoencoder|sharpen|train_prior\.\d+)\.(?P<name>steps|minutes|patience|evaluate_every|evaluate_on|log_every): "
    r"(?P<old>[\d.]+) -> (?P<new>[\d.]+)"
)


def may_change(line: str) -> bool:
    """Whether a setting of a stage that has begun may change so, because it only makes the training longer.

    Args:
        line: `key: old -> new`. Steps and minutes may be raised (0 minutes are without limit), patience, the intervals of
            evaluations and log lines, and the images of an evaluation may change at will. A prior of 0 steps that has begun was
            trained in a copy of the run, with more.
    """
    match = _LINE.fullmatch(line)
    if match is None:
        return False
    old, new = float(match["old"]), float(match["new"])
    if match["name"] == "minutes":
        return old != 0 and (new == 0 or new > old)
    if match["name"] == "steps":
        return old < new and (old > 0 or match["stage"] != "sharpen")
    return True


def may_tune(line: str, folder: Path, config: Config) -> bool:
    """Whether a setting may change because its training is not over, and may have to go on from before a divergence.

    Args:
        line: `key: old -> new`.
        folder: RUN.
        config: its settings.
    """
    stages = RunFolder(folder).networks(config.autoencoder.levels)
    keys = [
        key
        for name, (key, _) in settings_of(config).items()
        if not stages[name].done() or stages[name].longer.checkpoint.exists()
    ]
    return line.startswith(tuple(f"{key}.{name}: " for key in keys for name in ("lr", "warmup", "clip")))


def settings_of(config: Config) -> dict[str, tuple[str, TrainConfig]]:
    """By the name of each stage, the key of its training's settings, and these."""
    priors = {
        f"prior level {level}": (f"train_prior.{level}", training)
        for level, training in enumerate(config.train_prior)
    }
    return {
        "autoencoder": ("train_autoencoder", config.train_autoencoder),
        "sharpen": ("sharpen", config.sharpen),
        **priors,
    }


def record_ends(folder: Path, old: Config, changed: list[str], write: bool) -> None:
    """Write how a stage ended where no record says so (a copied model of the package), before its settings change.

    Args:
        write: False only checks, as in all processes but the first.

    Raises:
        RunError: a stage is to train for more steps, and its minutes, which are used up, are not raised.
        FileError: damaged, or cannot be written.
    """
    stages = RunFolder(folder).networks(old.autoencoder.levels)
    for name, (key, training) in settings_of(old).items():
        lines = [line for line in changed if line.startswith(f"{key}.") and may_change(line)]
        if not lines or not stages[name].done() or not training.steps:  # 0 steps: it was trained in a copy
            continue
        if write and not stages[name].record.exists():
            meta = tensor_file.load_tensors(stages[name].model)[1]
            outcome = Outcome(training.steps, int(meta.get("step", training.steps)))
            record = {"outcome": asdict(outcome), "config": old.model_dump(mode="json")}
            atomic.write_json(stages[name].record, record)
        late = training.minutes and ended(stages[name]).seconds >= 60 * training.minutes
        raised = {line.split(":")[0].removeprefix(f"{key}.") for line in lines}
        if late and "steps" in raised and "minutes" not in raised:
            raise RunError(
                f"the training of {name} was ended by its {training.minutes:g} minutes, so more steps change nothing; "
                f"raise {key}.minutes too (0 = no limit)"
            )


class _StageRecord(Record):
    """STAGE/config.json."""

    outcome: SavedOutcome | None = None
    config: dict[str, Any] = Field(default_factory=dict)


def ended(stage: StageFolder) -> Outcome:
    """How the training of a finished stage ended, by its record; all 0 without one.

    Raises:
        FileError: the record is damaged.
    """
    record = _record(stage)
    return Outcome(**record.outcome.model_dump()) if record.outcome else Outcome()


def _record(stage: StageFolder) -> _StageRecord:
    """The record of a stage; an empty one where there is none."""
    if not stage.record.exists():
        return _StageRecord()
    try:
        return _StageRecord.read(stage.record)
    except atomic.FileError as error:
        raise atomic.FileError(f"{error}; delete it, and only its steps and times are unknown") from error


def wanted(folder: Path, config: Config) -> list[str]:
    """The names of the finished stages whose settings ask for more steps than they were trained with.

    That is, for more steps, minutes, or evaluations in a row without a better one, where these have ended the training.
    If the autoencoder is among them it is the only one, because what was built on it is made anew.

    Raises:
        FileError, ConfigError: the record of a stage is damaged.
    """
    stages = RunFolder(folder).networks(config.autoencoder.levels)
    names: list[str] = []
    for name, (_, training) in settings_of(config).items():
        stage = stages[name]
        if not stage.done():
            continue
        record = _record(stage)
        if not record.config or record.outcome is None:
            continue
        trained = settings_of(parse(record.config))[name][1]
        patient = 0 < trained.patience <= record.outcome.stale and (
            not training.patience or training.patience > trained.patience
        )
        raised = patient or training.steps > trained.steps or training.minutes != trained.minutes
        in_time = not training.minutes or record.outcome.seconds < 60 * training.minutes
        if raised and in_time and record.outcome.step < training.steps:
            names.append(name)
    return ["autoencoder"] if "autoencoder" in names else names


def built_on(stage: StageFolder, config: Config, name: str) -> list[Path]:
    """What is made anew after a stage was trained further: everything of the codes, or sheets of samples."""
    paths, levels = RunFolder(_run(stage, name)), config.autoencoder.levels
    if name == "autoencoder":
        priors = [paths.prior(level).path for level in range(levels)]
        return [path for path in (paths.codes, paths.sharpen.path, *priors) if path.exists()]
    first = levels - 1 if name == "sharpen" else int(name.split()[-1])
    sheets = [paths.prior(level).samples for level in range(first, levels)]
    return [sheet for sheet in sheets if sheet.exists()]


def announcement(folder: Path, config: Config, name: str) -> str:
    """One line that says what will happen before anything does."""
    stage = RunFolder(folder).networks(config.autoencoder.levels)[name]
    training = settings_of(config)[name][1]
    line = f"{name}: trained further, from step {ended(stage).step:,} towards {training.steps:,}"
    if not stage.state.exists():
        line += "; its optimiser's state was not kept, so the optimiser starts anew from the kept weights"
        if name == "sharpen":
            line = f"{name}: its state was not kept, so it is trained anew, for {training.steps:,} steps"
    if name == "autoencoder":
        lost = [
            path.name if path.name == "codes" else str(path.relative_to(folder))
            for path in built_on(stage, config, name)
        ]
        if lost:
            line += (
                f"; when it is done, {', '.join(lost)} are removed and made anew, because the codes change"
            )
    return line + f"; until it is done, {folder} can be used as it is"


def prepare(stage: StageFolder, name: str) -> StageFolder:
    """The folder in which a finished stage is trained further, with the state and the log of what was done before.

    Args:
        stage: finished.
        name: of the stage. The model.safetensors of the sharpened decoder lacks its discriminator, so without its state it is
            trained anew.
    """
    further = stage.longer
    if further.checkpoint.exists():
        return further
    if stage.state.exists():
        tensors, meta = tensor_file.load_tensors(stage.state)
        meta["outcome"]["stale"] = 0  # evaluations without a better one are counted anew
    elif name != "sharpen":
        weights = tensor_file.load_tensors(stage.model)[0]
        tensors = {
            f"{part}.{key}": value.clone() for part in ("model", "best") for key, value in weights.items()
        }
        config = _record(stage).config  # {} where no record says it
        trained = settings_of(parse(config))[name][1].model_dump() if config else {}
        meta = {"outcome": {**asdict(ended(stage)), "stale": 0}, "config": trained}
    else:
        return further
    if stage.metrics.is_file():
        text = stage.metrics.read_text(encoding="utf-8")
        atomic.write_text(further.metrics, text)
    tensor_file.save_tensors(further.checkpoint, tensors, {**meta, "prepared": True})
    return further


def publish(stage: StageFolder, further: StageFolder) -> None:
    """Move the log, the pictures and the state of a longer training, whose model is written, to where they belong.

    The state goes last, because `to_publish` knows by it what a killed process left.
    """
    if further.metrics.exists():
        further.metrics.replace(stage.metrics)
    for picture in further.pictures.glob("*.png"):
        stage.pictures.mkdir(exist_ok=True)
        picture.replace(stage.pictures / picture.name)
    keep_state(stage, further)
    shutil.rmtree(further.path, ignore_errors=True)


def to_publish(stage: StageFolder) -> bool:
    """Whether a longer training of this stage is over, and its model written, but not all of its files are in their place.

    Raises:
        FileError: the state or the record is damaged.
    """
    if not stage.done() or not stage.longer.checkpoint.exists():
        return False
    with saying_what_to_do(stage.longer.checkpoint):
        state = saved(stage.longer.checkpoint)
    if state.prepared:
        return False
    now, then = state.outcome, ended(stage)
    return (now.step, now.best_step, now.best_score) == (then.step, then.best_step, then.best_score)


def keep_state(stage: StageFolder, trained: StageFolder) -> None:
    """Keep the last state of a training that is done, and remove its checkpoints.

    A state that was cut up among processes is not kept, and neither is the one of a shorter training before it.
    """
    if trained.checkpoint.exists():
        if holds_shards(trained.checkpoint):
            stage.state.unlink(missing_ok=True)
        else:
            trained.checkpoint.replace(stage.state)
    shutil.rmtree(trained.checkpoints, ignore_errors=True)


def remove(paths: list[Path]) -> None:
    """Remove what is made anew."""
    for path in paths:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def set_aside(folder: Path, levels: list[int]) -> list[str]:
    """Move the priors of some levels to prior/level-L.before-N, so that others can be trained in their place.

    Returns:
        One line for each.
    """
    lines = []
    for level in levels:
        stage = RunFolder(folder).prior(level)
        number = 1
        while (aside := stage.path.with_name(f"{stage.path.name}.before-{number}")).exists():
            number += 1
        stage.path.replace(aside)
        lines.append(
            f"the prior of level {level} is moved to {aside}, and another one is trained in its place"
        )
    return lines


def _run(stage: StageFolder, name: str) -> Path:
    """RUN, of the folder of one of its stages."""
    return stage.path.parents[1 if name.startswith("prior") else 0]
