"""`vqvae2 train`: from images to priors, in one resumable run folder. The job itself is `train.pipeline.train`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqvae2.commands.options import Json, Settings, command_line, print_json, resolve, summary
from vqvae2.files.progress import Plan, Reporter
from vqvae2.files.run_folder import RunFolder

if TYPE_CHECKING:
    from vqvae2.config.models import Config, DataConfig

_SQUARE = 1.25  # ratios of the sides below this keep the square
_LONGEST = 4.0  # the long side of chosen images, in short sides


class Stage(StrEnum):
    """The two stages of training."""

    autoencoder = "autoencoder"
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

    with torch.random.fork_rng(devices=[]):  # it may be called in the midst of a training
        costs = [cost for cost in measure(config).networks if until == "prior" or cost.name == "autoencoder"]
    names = {"sharpening": "sharpen"}
    return {
        names.get(cost.name, cost.name): (float(cost.total), 60.0 * cost.settings.minutes or float("inf"))
        for cost in costs
    }


def _first_process() -> bool:
    """Whether this is the only process, or the first of those that `torchrun` started."""
    return int(os.environ.get("RANK", "0")) == 0


def choose_config(
    data: str,
    run: Path,
    preset: str | None,
    file: Path | None,
    settings: Sequence[str],
    split: str | None,
    streaming: bool,
    reporter: Reporter,
) -> Config:
    """The configuration of a training: a preset, changed by a file and by assignments.

    Without a preset, a run folder that exists keeps its own configuration; for a new one the preset is chosen by the
    number of images and their size, and reported.

    Args:
        data: see `open_images`.
        run: RUN.
        file: YAML with settings that are put over the preset's.
        settings: assignments KEY=VALUE.
        split, streaming: which split of a Hub data set, and whether it is read as a stream.

    Raises:
        ConfigError: an unknown preset or key, or a value that cannot work.
        RunError: RUN was made by a newer version.
        DataError: the images cannot be read.
    """
    from vqvae2.config.models import DataConfig
    from vqvae2.config.overrides import read_yaml
    from vqvae2.config.presets import preset as named
    from vqvae2.train.folder import read_run

    changes = read_yaml(file) if file else {}
    changes.pop("run", None)  # the record, if it is the config.yaml of a run folder
    if preset is None and RunFolder(run).exists():
        base = read_run(run)[1]
    elif preset is None:
        sized = any(text.startswith("data.size=") for text in settings)
        base = _fitting_preset(data, run, DataConfig(split=split, streaming=streaming), sized, reporter)
    else:
        base = named(preset)
    extra = [f"data.split={split}"] if split else []
    extra += ["data.streaming=true"] if streaming else []
    return resolve(base, changes, [*settings, *extra])


def _fitting_preset(data: str, run: Path, reading: DataConfig, sized: bool, reporter: Reporter) -> Config:
    """The preset for the number, the size and, unless the user `sized` them, the shape of the images; it is reported."""
    from vqvae2.config.presets import choose
    from vqvae2.config.presets import preset as named
    from vqvae2.data.peek import peek

    preview = peek(data, reading, run)
    preset = choose(preview.images, preview.side)
    base = named(preset)
    size = () if sized else fitting(base, preview.aspect)
    if size:
        base = resolve(base, {"data": {"size": list(size)}}, ())
    shape = f" at {base.data.shape_text} px, height first, like most images" if size else ""
    reporter.say(
        f"{preview.images} image{'s' * (preview.images != 1)}, short side about {preview.side} px: preset {preset}{shape} "
        f"(choose {'others with --preset and --size' if size else 'another with --preset'})"
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
            typer.echo(f"{key} (default {default})\n    {description}")
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
    config: Annotated[
        Path | None, typer.Option(help="YAML file with settings that replace the preset's")
    ] = None,
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
    split: Annotated[str | None, typer.Option(help="split of a Hub data set")] = None,
    streaming: Annotated[bool, typer.Option(help="read a Hub data set as a stream")] = False,
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
    """Train everything: autoencoder, codes, one prior per level. Resumable."""
    reporter = Reporter(quiet=None if _first_process() else True)
    reporter.say(f"training on {data} in {run}")

    from vqvae2.run import load
    from vqvae2.train import pipeline

    assignments = [*(settings or ()), *([f"data.size={size}"] if size else [])]
    assignments += [f"data.labels={json.dumps(str(labels.absolute()))}"] if labels else []
    following: AbstractContextManager[None] = nullcontext()
    if track is not None:
        from vqvae2.train.trackers import check_tracker, tracked

        check_tracker(track.value)
    resolved = choose_config(data, run, preset, config, assignments, split, streaming, reporter)
    if track is not None and _first_process():
        following = tracked(track.value, run, resolved, reporter)
    reporter.plan = Plan(lambda: work_of(resolved, until.value))
    with following:
        pipeline.train(data, run, resolved, command=command_line(), reporter=reporter, until=until.value)
    if as_json:
        print_json(summary(load(run, "cpu")))
