"""`vqvae2 train`: from images to priors, in one resumable run folder. The job itself is `train.pipeline.train`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqvae2.commands.options import Json, Settings, command_line, print_json, resolve, summary
from vqvae2.files.progress import Reporter
from vqvae2.files.run_folder import RunFolder

if TYPE_CHECKING:
    from vqvae2.config.models import Config


class Stage(StrEnum):
    """The two stages of training."""

    autoencoder = "autoencoder"
    prior = "prior"


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
    from vqvae2.config.presets import choose
    from vqvae2.config.presets import preset as named
    from vqvae2.data.peek import peek
    from vqvae2.train.folder import read_run

    changes = read_yaml(file) if file else {}
    changes.pop("run", None)  # the record, if it is the config.yaml of a run folder
    if preset is None and RunFolder(run).exists():
        base = read_run(run)[1]
    else:
        if preset is None:
            count, side = peek(data, DataConfig(split=split, streaming=streaming), run)
            preset = choose(count, side)
            reporter.say(
                f"{count} images, short side about {side} px: preset {preset} (choose another with --preset)"
            )
        base = named(preset)
    extra = [f"data.split={split}"] if split else []
    extra += ["data.streaming=true"] if streaming else []
    return resolve(base, changes, [*settings, *extra])


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
    as_json: Json = False,
) -> None:
    """Train everything: autoencoder, codes, one prior per level. Resumable.

    At the end RUN/report/training.html shows the figures, the loss curves and what to change.
    """
    from vqvae2.train import pipeline

    reporter = Reporter()
    resolved = choose_config(data, run, preset, config, settings or (), split, streaming, reporter)
    pipeline.train(data, run, resolved, command=command_line(), reporter=reporter, until=until.value)
    finish(run, reporter, as_json)


def finish(run: Path, reporter: Reporter, as_json: bool) -> None:
    """Write the report of a training, and say where it is and what can be done next; in the main process alone."""
    from accelerate import PartialState

    from vqvae2.commands.training_report import write_training_report
    from vqvae2.run import load

    if not PartialState().is_main_process:
        return
    loaded = load(run, "cpu")
    page = write_training_report(loaded)
    if as_json:
        print_json(summary(loaded))
        return
    if page:
        reporter.say(f"report: {page}")
    if all(loaded.done().values()):
        reporter.say(
            f"next: `vqvae2 sample {run} --n 64 --out DIR` draws images, `vqvae2 evaluate {run}` compares them with real ones, "
            f"`vqvae2 explain {run}` says what to change"
        )
