"""`vqvae2 train`: from images to priors, in one resumable run folder. The job itself is `train.pipeline.train`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqvae2.commands.options import (
    ConfigFile,
    Json,
    Settings,
    assigned,
    command_line,
    print_json,
    read_changes,
    resolve,
    summary,
)
from vqvae2.errors import UserError, suggested
from vqvae2.files.progress import Plan, Reporter
from vqvae2.files.run_folder import RunFolder
from vqvae2.processes import launched

if TYPE_CHECKING:
    from vqvae2.config.models import Config, DataConfig

_SQUARE = 1.25  # ratios of the sides below this keep the square
_LONGEST = 4.0  # the long side of chosen images, in short sides
_CPU_SIDE = 64  # px, at most, that are chosen for a CPU, on which small64 takes hours and small256 months
_GENTLE = 0.3  # of the steps and the learning rates, in fine-tuning


class Stage(StrEnum):
    """The stages of training after which one can stop."""

    autoencoder = "autoencoder"
    codes = "codes"
    sharpen = "sharpen"
    prior = "prior"


class Tracker(StrEnum):
    """Where figures can be sent."""

    tensorboard = "tensorboard"
    trackio = "trackio"
    wandb = "wandb"


def work_of(config: Config, until: str) -> dict[str, tuple[float, float]]:
    """Of each stage, in order: how much work it is, in FLOPs, and the seconds after which it ends in any case."""
    import torch

    from vqvae2.commands.costs import measure
    from vqvae2.train.beginning import trained_until

    with torch.random.fork_rng(devices=[]):  # it may be called in the midst of a training
        costs = [cost for cost in measure(config).networks if trained_until(cost.stage, until)]
    return {cost.stage: (float(cost.total), 60.0 * cost.settings.minutes or float("inf")) for cost in costs}


def choose_config(
    data: str,
    run: Path,
    preset: str | Config | None,
    file: Path | None,
    settings: Sequence[str],
    split: str | None,
    streaming: bool,
    reporter: Reporter,
) -> Config:
    """The configuration of a training: a preset, changed by a file and by assignments.

    Without a preset, a run folder that exists keeps its own configuration; for a new one the preset is chosen by the
    number of images and their size, and reported. A trained run keeps its way of drawing with a preset too, and with one
    of ours its sharpening (`own_settings`).

    Args:
        data: see `open_images`.
        run: RUN.
        preset: its name, or a whole configuration to start from.
        file: YAML with settings that are put over the preset's.
        settings: assignments KEY=VALUE.
        split, streaming: which split of the data, and whether a Hub data set is read as a stream.

    Raises:
        ConfigError: an unknown preset or key, or a value that cannot work.
        RunError: RUN was made by a newer version.
        DataError: the images cannot be read.
    """
    from vqvae2.config.presets import preset as named
    from vqvae2.config.yaml_text import quoted
    from vqvae2.train.folder import read_run

    changes = read_changes(file)
    settings = [*settings, *([f"data.split={quoted(split)}"] if split else [])]
    settings += ["data.streaming=true"] if streaming else []
    if preset is None and RunFolder(run).exists():
        base = read_run(run)[1]
    elif preset is None:
        base = _fitting_preset(data, run, _data_given(changes, settings), reporter)
    elif isinstance(preset, str):
        base = own_settings(run, named(preset), sharpen=True)
    else:
        base = own_settings(run, preset)
    return resolve(base, changes, settings)


def own_settings(run: Path, base: Config, sharpen: bool = False) -> Config:
    """The settings to start from, with what a run whose training has begun keeps: its way of drawing, which may have been tuned since.

    Args:
        run: RUN.
        base: the settings of a preset.
        sharpen: keep the sharpening of the run too, which a run by the presets of former versions has not.

    Raises:
        ConfigError, RunError: the run's own settings are damaged or of a newer version.
    """
    from vqvae2.train.folder import read_run

    paths = RunFolder(run)
    if not (paths.exists() and paths.autoencoder.begun()):
        return base
    own = read_run(run)[1]
    return base.model_copy(update={"sampling": own.sampling} | ({"sharpen": own.sharpen} if sharpen else {}))


def fine_tuning(start: str) -> Config:
    """The settings of a run, to train its weights further on other images in a new run.

    Kept are the networks, the image size and the recipe. Steps are three tenths of the run's, and so are the learning rates but that
    of the sharpening (our decision). Time limits and what belongs to the machine or to the other data are at their defaults; a
    perceptual distance whose file of weights is not here is left out.

    Args:
        start: a run folder, a model of the package, or a Hub id.

    Raises:
        RunError: no such run.
    """
    from vqvae2.config.hardware import Hardware
    from vqvae2.config.models import DataConfig, parse
    from vqvae2.files.locate import find_run, names_hub
    from vqvae2.train.folder import read_run

    folder = find_run(start)
    name = str(folder.resolve()) if RunFolder(Path(start)).exists() else start
    value = read_run(folder)[1].model_dump(mode="json")
    value |= Hardware().model_dump(mode="json")
    data = DataConfig().model_dump(mode="json")
    for key in (
        "split",
        "streaming",
        "limit",
        "image_column",
        "image_root",
        "label_column",
        "labels",
        "workers",
        "cache_gb",
        "holdout",
    ):
        value["data"][key] = data[key]
    for training in (value["train_autoencoder"], *value["train_prior"]):
        steps = max(1, round(_GENTLE * training["steps"]))
        training |= {"steps": steps, "lr": _GENTLE * training["lr"], "minutes": 0.0, "start": name}
        training["warmup"] = min(training["warmup"], steps // 10)
    value["sharpen"] |= {"minutes": 0.0, "steps": round(_GENTLE * value["sharpen"]["steps"])}
    for training in (value["train_autoencoder"], value["sharpen"]):
        weights = training["perceptual_weights"]
        if not Path(weights).is_file() and not names_hub(weights):
            training |= {"perceptual": 0.0, "perceptual_weights": ""}
    value["prior"]["classes"] = 0
    return parse(value)


def _data_given(changes: dict[str, Any], settings: Sequence[str]) -> DataConfig:
    """The settings of the data; `size` is in `model_fields_set` only if the user has given one.

    Raises:
        ConfigError: they cannot be.
    """
    from pydantic import ValidationError

    from vqvae2.config.base import one_line
    from vqvae2.config.models import ConfigError, DataConfig
    from vqvae2.config.overrides import override

    own = changes.get("data")
    value = DataConfig().model_dump(mode="json") | {"size": None} | (own if isinstance(own, dict) else {})
    value = override({"data": value}, [text for text in settings if text.startswith("data.")])["data"]
    given = {key: setting for key, setting in value.items() if key != "size" or setting is not None}
    try:
        return DataConfig.model_validate(given)
    except ValidationError as error:
        raise ConfigError(one_line(error, "data")) from None


def _fitting_preset(data: str, run: Path, reading: DataConfig, reporter: Reporter) -> Config:
    """The preset for the images, which is reported.

    It follows their number, their size and shape unless the user has given a size, and the machine: a CPU would take months
    for the presets of large images.
    """
    from vqvae2.config.presets import choose
    from vqvae2.config.presets import preset as named
    from vqvae2.data.peek import peek
    from vqvae2.train.device import best_device

    size = min(reading.shape) if "size" in reading.model_fields_set else None
    preview = peek(data, reading, run)
    side = preview.side if size is None else size
    slow = size is None and side >= 2 * _CPU_SIDE and best_device().type == "cpu"
    preset = choose(preview.images, _CPU_SIDE if slow else side)
    base = named(preset)
    shape = fitting(base, preview.aspect) if size is None else ()
    if shape:
        base = resolve(base, {"data": {"size": list(shape)}}, ())
    wide = f" at {base.data.shape_text} px, height first, like most images" if shape else ""
    reporter.say(
        f"{preview.images} image{'s' * (preview.images != 1)}, short side about {preview.side} px{', no GPU' * slow}: "
        f"preset {preset}{wide} (choose {'another with --preset' if size else 'others with --preset and --size'})"
    )
    return base


def fitting(config: Config, aspect: float) -> tuple[int, int] | tuple[()]:
    """The shape for images of one aspect ratio: the preset's size as the short side, both sides as the strides want them.

    Args:
        aspect: width / height of most images.

    Returns:
        Height and width in pixels, at most four to one; () where the square of the preset is as good.
    """
    step, short = math.prod(config.autoencoder.strides), min(config.data.shape)
    long = step * round(short * min(_LONGEST, max(aspect, 1 / aspect)) / step)
    if max(aspect, 1 / aspect) < _SQUARE or long == short:
        return ()
    return (short, long) if aspect > 1 else (long, short)


def _help_config(wanted: bool) -> None:
    if wanted:
        from vqvae2.config.overrides import settings

        for key, default, description in settings():
            typer.echo(f"{key} (default {json.dumps(default)})\n    {description}")
        raise typer.Exit


def command(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="a folder (sub-folders are classes), .parquet or .tar files, a Hub id owner/name, or emoji64",
        ),
    ],
    run: Annotated[
        Path, typer.Option("--run", help="run folder; the same command continues an interrupted training")
    ],
    preset: Annotated[
        str | None,
        typer.Option(help="named settings; chosen by the number and the size of the images if not given"),
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="N|HxW",
            help="image size in pixels, one number or height x width; without --preset it follows the images",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="CSV or JSON file with the classes of the images of a folder; see also data.label_column"
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="read only this split of the data")] = None,
    streaming: Annotated[bool, typer.Option(help="read a Hub data set as a stream")] = False,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="fine-tune: begin with the settings and the weights of a run folder, a model of the package or a Hub id, "
            "with three tenths of its steps and of its learning rates",
        ),
    ] = None,
    redo_prior: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            metavar="LEVEL",
            help="replace the prior of this level if its settings changed; the old one is moved aside; repeatable",
        ),
    ] = None,
    until: Annotated[
        Stage, typer.Option(help="stop after this stage; the same command without this option continues")
    ] = Stage.prior,
    help_config: Annotated[
        bool,
        typer.Option(
            "--help-config", is_eager=True, callback=_help_config, help="list every setting and exit"
        ),
    ] = False,
    track: Annotated[
        Tracker | None,
        typer.Option(
            help="send figures and pictures to a tracker as well: tensorboard writes to RUN/tracking; trackio and wandb "
            "have a project vqvae2"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train everything: autoencoder, codes, one prior per level. Resumable.

    At the end RUN/report/training.html shows the figures, the loss curves and what to change.
    """
    reporter = Reporter.of_process(not launched()[0])
    reporter.say(f"training on {data} in {run}")

    from vqvae2.config.yaml_text import quoted
    from vqvae2.train import pipeline

    base: str | Config | None = preset
    if start is not None and preset is not None:
        raise UserError("expected --preset or --from, found both: --from brings its own settings")
    if start is not None:
        base = fine_tuning(start)
        reporter.say(f"begins with the settings and the weights of {start}")
    assignments = assigned(settings, size)
    assignments += [f"data.labels={quoted(str(labels))}"] if labels else []
    following: AbstractContextManager[None] = nullcontext()
    if track is not None:
        from vqvae2.train.trackers import check_tracker, tracked

        check_tracker(track.value)
    resolved = choose_config(data, run, base, config, assignments, split, streaming, reporter)
    if track is not None and launched()[0] == 0:
        following = tracked(track.value, run, resolved, reporter)
    reporter.plan = Plan(lambda: work_of(resolved, until.value))
    with following:
        trained = pipeline.train(
            data,
            run,
            resolved,
            command=command_line(),
            reporter=reporter,
            until=until.value,
            redo=redo_prior or (),
            begins=lambda config: say_estimate(config, run, until, reporter),
        )
    finish(run, reporter, trained, as_json)


def say_estimate(config: Config, run: Path, until: Stage, reporter: Reporter) -> None:
    """Say how long it will take, unless everything is done or several processes share the work."""
    from vqvae2.commands import estimate
    from vqvae2.train.device import best_device

    if launched()[1] == 1:
        estimate.say_estimate(config, run, best_device(), reporter, until.value)


def finish(run: Path, reporter: Reporter, trained: bool, as_json: bool) -> None:
    """Write the report of a training, and say where it is and what can be done next; in the main process alone.

    Args:
        trained: whether anything was trained; if not, the report stays as it is.
    """
    from vqvae2.commands.training_report import write_training_report
    from vqvae2.run import load

    if launched()[0] > 0:
        return
    page = write_training_report(load(run, "cpu")) if trained else None
    if as_json:
        print_json(summary(load(run, "cpu")))
        return
    if page:
        reporter.say(f"report: {page}")
    if page and all(load(run, "cpu").done().values()):
        reporter.say(
            f"next: {suggested('sample', run, '--n', 64, '--out', 'DIR')} draws images, "
            f"{suggested('evaluate', run)} compares them with real ones, {suggested('explain', run)} says what to change"
        )
