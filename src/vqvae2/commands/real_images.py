"""The real images of `vqvae2 evaluate`: those that a run was trained on, others, and a split that is measured instead."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from vqvae2.config.base import one_line
from vqvae2.config.models import ConfigError, DataConfig
from vqvae2.data.images import ImageSet
from vqvae2.data.other_split import known_images, open_split
from vqvae2.data.peek import peek
from vqvae2.data.recorded import find_source, open_other, open_source, same_source
from vqvae2.errors import UserError
from vqvae2.evaluate.context import Context
from vqvae2.evaluate.options import EvaluateOptions
from vqvae2.files.run_folder import leads_out
from vqvae2.generate.sample_folder import holds_arrays, read_samples
from vqvae2.run import Run


def open_real(
    run: Run | None, data: str | None, config: DataConfig, cache: Path, say: Callable[[str], None]
) -> ImageSet:
    """The real images.

    Args:
        run: see `evaluate`.
        data: see `open_images`; None takes those that the run was trained on.
        config: how the run sees images.
        cache: folder for decoded images that do not belong into the run.
        say: see `open_images`.

    Raises:
        UserError: see `open_images`.
    """
    seed = run.config.seed if run else 0
    if run is not None and (data is None or _is_own(run, data)):
        return open_source(run.record, run.folder, config, _decoded(run, cache), cache / "data", seed, say)
    assert data is not None  # by `evaluate.report_folder`
    own = run.record.get("fingerprint") if run else None
    return open_other(data, config, cache / "data", seed=seed, say=say, own=own)


def config_of_samples(options: EvaluateOptions, out: Path) -> DataConfig:
    """Without a run: images of the size of the samples, half of them held out.

    Raises:
        ConfigError: no run has images of this size, or of so many channels.
    """
    assert options.samples is not None
    if options.size is None and holds_arrays(options.samples):
        channels, *shape = next(iter(read_samples(options.samples).images(0, 1))).shape[1:]
        own = {"size": shape, "channels": channels}
    else:
        own = {"size": options.size or peek(str(options.samples), DataConfig(), out).side}
    try:
        return DataConfig.model_validate(own | {"flip": False, "shift": 0, "holdout": 0.5})
    except ValidationError as error:
        raise ConfigError(f"{options.samples}: {one_line(error, 'data')}") from None


def fitted_to(run: Run, images: ImageSet) -> list[str]:
    """Number the classes of the real images as the run does; returns what the reader of the report has to know of the images."""
    found = [number_as_in(run.classes, images)]
    if run.record.get("fingerprint") not in (None, images.fingerprint):
        found.append(
            "these are not the images that the run was trained on, so it never saw those that are called training images"
        )
    return [line for line in found if line]


def number_as_in(classes: Sequence[str], images: ImageSet) -> str | None:
    """Number the classes of images as others do. If these do not know them all they are dropped, and why is returned."""
    if not classes or not images.classes or images.labels is None or images.classes == classes:
        return None
    unknown = [name for name in images.classes if name not in classes]
    if unknown:
        images.classes, images.labels = (), None
        return f"the run does not know the class {unknown[0]} of these images, so their classes are not used"
    numbers = np.array([*(classes.index(name) for name in images.classes), -1])
    images.classes, images.labels = tuple(classes), numbers[images.labels]
    return None


def measure_split(context: Context, run: Run, data: str | None) -> None:
    """Put all images of the split that the options name in place of the held-out ones. All processes call this.

    Args:
        data: see `open_real`.

    Raises:
        UserError: the images are gone; there is no such split; or the run was trained on it.
    """
    name, say = str(context.options.split), context.reporter.say
    place = data or find_source(run.record, run.folder)
    if place is None:
        raise UserError(
            f"the split {name!r} cannot be read: the images that {run.folder} was trained on are not in "
            f"{run.record.get('source')} any more; name them with --data"
        )
    with context.group.main_first():
        split = open_split(name, place, context.images.config, context.cache / "split", say)
    say(f"the held-out images of this report are all {len(split.heldout):,} of the split {name!r}")
    remarks = [number_as_in(context.images.classes, split)]
    if context.images.classes and not split.classes:
        remarks.append(
            f"the images of the split {name!r} have no classes, so likelihoods are those without a class"
        )
    if not context.images.classes:
        split.classes, split.labels = (), None
    if context.group.main:
        remarks += known_images(context.images, split, name, context.data)
    context.measured = split
    context.warnings += filter(None, remarks)


def _is_own(run: Run, data: str) -> bool:
    """Whether these are the run's own images, whose decoded copies are with the run; others must not replace them."""
    return run.done()["codes"] and same_source(data, run.record, run.folder)


def _decoded(run: Run, cache: Path) -> Path:
    """Where the run's own images are kept: with the run if they are there already, or if it can be written."""
    kept = (run.paths.data / "index.json").exists()
    write = run.done()["codes"] and os.access(run.folder, os.W_OK)
    linked = leads_out(run.paths.data, run.folder)
    return run.paths.data if (kept or write) and not linked else cache / "data"
