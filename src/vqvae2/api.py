"""Training and measuring as functions of `import vqvae2`: what the verbs `train` and `evaluate` do, for Python code.

A run as an object, which draws and reconstructs images, is `vqvae2.Run`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from pydantic import TypeAdapter, ValidationError

from vqvae2.commands.evaluate import evaluate, report_folder
from vqvae2.commands.train import Stage, choose_config, finish, say_estimate, work_of
from vqvae2.config.base import one_line
from vqvae2.config.models import Config
from vqvae2.config.numbers import plain
from vqvae2.errors import UserError
from vqvae2.evaluate.options import EvaluateOptions
from vqvae2.files.progress import Plan, Reporter
from vqvae2.processes import joined, launched
from vqvae2.run import Run, load
from vqvae2.train import pipeline
from vqvae2.train.beginning import Until
from vqvae2.train.device import make_accelerator
from vqvae2.train.loop import Interrupted


@contextmanager
def _as_a_guest() -> Iterator[None]:
    """What a training in somebody else's process owes to it.

    If it was asked to stop, it ends with KeyboardInterrupt, which a loop over trainings does not catch as an error. Afterwards, the caller
    may make an Accelerator of other settings.
    """
    state = AcceleratorState._shared_state
    try:
        yield
    except Interrupted as error:
        raise KeyboardInterrupt(str(error)) from error
    finally:
        AcceleratorState._shared_state = state


@_as_a_guest()
def fit(
    data: str | Path,
    run: str | Path,
    *,
    preset: str | Config | None = None,
    config: str | Path | None = None,
    size: int | tuple[int, int] | None = None,
    settings: Mapping[str, Any] | None = None,
    until: Until = "prior",
    reporter: Reporter | None = None,
) -> Run:
    """Train a run, as `vqvae2 train` does: the autoencoder, the codes, and one prior for each level.

    What is done already is kept: the same call continues a training that was interrupted, and returns at once when all is done.
    At the end RUN/report/training.html shows the figures and the curves. It trains on the accelerator if there is one; the
    environment variable ACCELERATE_TORCH_DEVICE, set before the first training of a process, names another device.

    Processes that decode images import the script that calls this anew. A script therefore has to call it below
    `if __name__ == "__main__":`, or with {"data.workers": 0}.

    Args:
        data: a folder of images, .parquet or .tar files, a data set of the Hub, or "emoji64"; the page Your images says more.
        run: the run folder; it is made if it does not exist.
        preset: the name of a preset, or every setting as a `Config`. None keeps the settings of a run folder that exists, and
            chooses one by the number and the size of the images for a new one. With either, a run keeps its own `sampling`.
        config: a YAML file with settings that replace the preset's.
        size: of the images in pixels, one number or (height, width); None keeps that of the preset, or if there is none follows the images.
        settings: further settings by their dotted keys, which replace those before: {"train_autoencoder.steps": 2000}. In a key
            `*` stands for all levels; a list replaces the whole list. `vqvae2 train --help-config` lists all.
        until: stop after "autoencoder", "codes" (which are stored) or "sharpen"; a later call without it continues.
        reporter: where progress and messages are shown; None is standard error. `Reporter(quiet=True)` shows nothing.

    Returns:
        The run, as `load` opens it.

    Raises:
        UserError: the images cannot be read, a setting is unknown or cannot work, `run` was trained with other settings, or the
            training cannot go on. Its message is one line.
        KeyboardInterrupt: Ctrl-C was pressed, or another signal asked to stop; the state is saved.
    """
    if until not in (choices := [stage.value for stage in Stage]):
        raise UserError(f"expected until to be one of {', '.join(choices)}, found {until!r}")
    source, folder, reporter = _source(data), Path(run), reporter or Reporter.of_process(not launched()[0])
    changes = {**(settings or {}), **({} if size is None else {"data.size": size})}
    file = None if config is None else Path(config)
    chosen = choose_config(
        source, folder, _preset(preset), file, list(map(_assignment, changes.items())), None, False, reporter
    )
    reporter.plan = Plan(lambda: work_of(chosen, until))
    trained = pipeline.train(
        source,
        folder,
        chosen,
        command="vqvae2.fit",
        reporter=reporter,
        until=until,
        begins=lambda config: say_estimate(config, folder, Stage(until), reporter),
    )
    finish(folder, reporter, trained, as_json=False)
    return load(folder)


def measure(
    run: Run | str | Path | None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    only: str | Sequence[str] = (),
    split: str | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measure a run, or any folder of images, beside real images, as `vqvae2 evaluate` does.

    OUT/report.json and OUT/report.html are written. OUT/cache keeps samples and features, which the next call takes from there.

    Args:
        run: a run, or what `load` opens; None measures the folder `samples` alone.
        data: the real images, as for `fit`; None takes those that the run was trained on.
        out: folder for the report; None is RUN/report, and an error with `split`, or without a run.
        only: names of parts, such as "reconstruction" or ["nll", "distances"]; none for all that can be measured. The error that names
            an unknown one lists them.
        split: a split of the data, such as "test", all of whose images are measured in place of the run's held-out images.
        reporter: as in `fit`.
        options: the other fields of `evaluate.options.EvaluateOptions`, by name, with their defaults: n (10,000 images of each
            set), reference (10,000), network ("lite0"), weights, perceptual, samples, against ({name: folder}), sampling (a
            `Sampling`), decoder ("plain" or "sharp"), seed (0), and some more.

    Returns:
        The content of report.json: protocol, parts (the figures of each by its name), plots, left_out, warnings, seconds. Under
        torchrun it is {} on all processes but the main one.

    Raises:
        UserError: nothing can be measured, a part that was asked for cannot, or an option is unknown or out of range; one line.
    """
    known = {field.name for field in fields(EvaluateOptions)} - {"only", "split"}
    if unknown := sorted({*options} - known):
        raise UserError(f"no option {', '.join(unknown)}: expected some of {', '.join(sorted(known))}")
    if launched()[1] > 1:
        make_accelerator()  # joins the others, and gives this process its device, which `load` takes
    opened = run if run is None or isinstance(run, Run) else load(run)
    images = None if data is None else _source(data)
    folder = report_folder(opened, images, None if out is None else Path(out), split)
    group = joined()
    result = evaluate(
        opened,
        images,
        folder,
        _options(only, split, options),
        reporter or Reporter.of_process(group.main),
        group,
    )
    content: dict[str, Any] = json.loads(json.dumps(result or {}))  # lists where there are tuples
    return content


def _source(data: object) -> str:
    """The path or name of the images.

    Raises:
        UserError: something else, such as a tensor.
    """
    if isinstance(data, (str, Path)):
        return str(data)
    raise UserError(
        f"expected data to be the path of a folder or file, or the name of a data set, found {type(data).__name__}; "
        "write images of your own as files, for example with Pillow"
    )


def _preset(value: object) -> str | Config | None:
    if value is None or isinstance(value, (str, Config)):
        return value
    raise UserError(f"expected preset as a name or a Config, found {type(value).__name__}")


def _assignment(item: tuple[str, Any]) -> str:
    """A setting as KEY=VALUE.

    Raises:
        UserError: its value is none that a setting can have.
    """
    key, value = item
    try:
        return (
            f"{key}={json.dumps(str(value) if isinstance(value, Path) else plain(value), ensure_ascii=False)}"
        )
    except (TypeError, ValueError):
        raise UserError(
            f"{key}: expected a number, a text or a list of these, found {type(value).__name__}"
        ) from None


def _options(
    only: str | Sequence[str] | None, split: str | None, options: Mapping[str, Any]
) -> EvaluateOptions:
    """The options with their types: paths may be texts, settings mappings, and numbers those of any library.

    Raises:
        UserError: one has another type.
    """
    found = {name: plain(value) for name, value in options.items()}
    names = (only,) if isinstance(only, str) else tuple(only or ())
    try:
        return TypeAdapter(EvaluateOptions).validate_python({**found, "only": names, "split": split})
    except ValidationError as error:
        raise UserError(one_line(error)) from None
