"""Collects what is known of a run: the figures in its files, and those of its report if there is one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from vqvae2.evaluate.facts import Facts, LevelFacts, from_report
from vqvae2.evaluate.plot import Curve
from vqvae2.files.records import Record

if TYPE_CHECKING:
    from vqvae2.run import Run

_EMPTY = 0.03
"""Standard deviation of the pixel values (0 to 1) of an image, below which it counts as empty."""
_MARGIN = 2  # px between the images of a sheet


class _Figures(Record):
    """What is read of one set of images."""

    frechet: float | None = None
    recall: float | None = None
    nearer_than_any_heldout: float | None = None


class _Sets(Record):
    """What is read of a part that compares sets."""

    sets: dict[str, _Figures] = Field(default_factory=dict)


class _Parts(Record):
    """What is read of the parts of a report."""

    distances: _Sets = _Sets()
    precision: _Sets = _Sets()
    memorisation: dict[str, _Figures] = Field(default_factory=dict)


class _Measured(Record):
    """Which run was measured."""

    weights: dict[str, str] = Field(default_factory=dict)


class _Protocol(Record):
    """What was measured."""

    run: _Measured = _Measured()
    samples: str = "of the run"
    data: dict[str, Any] = Field(default_factory=dict)


class _Report(Record):
    """What is read of report.json."""

    protocol: _Protocol = _Protocol()
    parts: _Parts


def collect(run: Run) -> Facts:
    """The facts of a run folder, or of a model of the package, which has fewer.

    Figures of RUN/report/report.json count only if they were measured on the weights that the run has now.

    Raises:
        FileError: the record of a stage is damaged.
    """
    sharp = run.figures("sharpen")
    plain = run.figures()
    lines = _lines(run.paths.autoencoder.metrics)
    facts = Facts(
        classes=len(run.classes),
        training=_training(run),
        psnr=plain.get("heldout_psnr"),
        psnr_curve=curve(lines, "heldout_psnr"),
        sharpness=(sharp or plain).get("heldout_sharpness"),
        sharpened=bool(sharp),
        levels=tuple(_level(run, level, plain) for level in range(run.config.autoencoder.levels)),
        ended_by_minutes=tuple(_ended_by_minutes(run)),
        **_empty(run),
    )
    return replace(facts, **_reported(run))


def _level(run: Run, level: int, plain: dict[str, Any]) -> LevelFacts:
    from vqvae2.train.longer import ended

    figures, config = run.figures(level), run.config
    temperature, _, top_p, guidance = run.sampling.level(level, config.autoencoder.levels)
    used, perplexity = _usage(run, level, plain)
    outcome = ended(run.paths.prior(level))
    return LevelFacts(
        positions=config.geometry.positions[level],
        codes=config.autoencoder.codes[level],
        used=used,
        perplexity=perplexity,
        heldout_bits=figures.get("heldout_bits"),
        train_bits=figures.get("train_bits"),
        uniform_bits=figures.get("uniform_bits"),
        curve=curve(_lines(run.paths.prior(level).metrics), "heldout_bits"),
        step=outcome.step or None,
        best_step=outcome.best_step or None,
        copies=config.train_prior[level].copies,
        dropout=config.prior.levels[level].dropout,
        guidance=guidance,
        temperature=temperature,
        top_p=top_p,
    )


def _usage(run: Run, level: int, plain: dict[str, Any]) -> tuple[float | None, float | None]:
    """Share of codes used and perplexity: of the stored codes, else of the held-out images."""
    from vqvae2.autoencoder.codebook_usage import stored_usage
    from vqvae2.data.store import StoreError, open_store

    if run.paths.manifest.exists():
        try:
            usage = stored_usage(open_store(run.paths.codes))[level]
            return usage.used, usage.perplexity
        except StoreError:
            pass
    return plain.get(f"heldout_usage_{level}"), plain.get(f"heldout_perplexity_{level}")


def _training(run: Run) -> int | None:
    from vqvae2.data.store import StoreError, open_store
    from vqvae2.train.prior import copies

    if not run.paths.manifest.exists():
        return None
    try:
        return len(open_store(run.paths.codes).train) // copies(run.config)
    except StoreError:
        return None


def _lines(path: Path) -> list[dict[str, Any]]:
    from vqvae2.train.state import read_metrics

    return read_metrics(path)


def curve(lines: list[dict[str, Any]], key: str) -> Curve:
    """The values of a figure in the lines of metrics, with their steps."""
    return [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]


def _ended_by_minutes(run: Run) -> Iterator[str]:
    from vqvae2.train.longer import ended, settings_of

    stages = run.paths.networks(run.config.autoencoder.levels)
    for name, (_, training) in settings_of(run.config).items():
        stage = stages[name]
        if not training.minutes or not stage.done():
            continue
        outcome = ended(stage)
        if outcome.seconds >= 60 * training.minutes and outcome.step < training.steps:
            yield name


def _reported(run: Run) -> dict[str, Any]:
    """The figures of RUN/report/report.json if they are of the present weights, the run's own samples and its own images.

    A split that was measured instead may be the test split, which must not decide what is changed.
    """
    from vqvae2.files.atomic import FileError

    try:
        report = _Report.read(run.paths.report / "report.json")
    except FileError:
        return {}
    protocol, images = report.protocol, run.record.get("fingerprint")
    own = protocol.run.weights == run.digests() and protocol.samples == "of the run"
    own = own and images in (None, protocol.data.get("fingerprint")) and "split" not in protocol.data
    found = from_report(report.parts.model_dump(exclude_unset=True)) if own else {}
    found.pop("psnr", None)  # the run's own figure is of the same images
    return found


def _empty(run: Run) -> dict[str, Any]:
    """The share of samples, and of held-out images, that have hardly any contrast, counted on sheets of the run."""
    last = run.paths.prior(run.config.autoencoder.levels - 1).samples
    sheets = sorted(run.paths.autoencoder.pictures.glob("step-*.png"))
    if not last.exists() or not sheets:
        return {}
    shape = run.config.data.shape
    samples = _contrasts(last, shape)
    real = _contrasts(sheets[-1], shape)
    originals = [row for number, row in enumerate(real) if number % 2 == 0]
    shares = {"empty": [*chain(*samples)], "empty_real": [*chain(*originals)]}
    return {
        name: sum(value < _EMPTY for value in values) / len(values)
        for name, values in shares.items()
        if values
    }


def _contrasts(sheet: Path, shape: tuple[int, int]) -> list[list[float]]:
    """Per row of a sheet, the standard deviation of each image's pixel values."""
    import numpy as np
    from PIL import Image

    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("RGB"), np.float64) / 255
    height, width = shape
    return [
        [
            float(pixels[y : y + height, x : x + width].std((0, 1)).max())
            for x in range(_MARGIN, pixels.shape[1] - width, width + _MARGIN)
        ]
        for y in range(_MARGIN, pixels.shape[0] - height, height + _MARGIN)
    ]
