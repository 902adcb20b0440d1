"""The report of `vqvae2 demo`: one HTML page with its pictures, and the figures as JSON."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vqvae2.autoencoder.codebook_usage import CodebookUsage, stored_usage
from vqvae2.data.batches import sequential
from vqvae2.data.grid import grid, save_picture
from vqvae2.data.images import ImageSet, open_images
from vqvae2.data.store import open_store
from vqvae2.evaluate.neighbours import nearest_images
from vqvae2.evaluate.report import Curve, Page
from vqvae2.files.atomic import FileError, write_json
from vqvae2.files.locate import zoo
from vqvae2.files.progress import Reporter
from vqvae2.files.records import Record
from vqvae2.run import Run, load
from vqvae2.train.loop import read_metrics

SHIPPED = "emoji64"  # the model of the package whose samples are shown for comparison
_SAMPLES = 72  # about so many: the same number of each class


class _Outcome(Record):
    """How long a training took."""

    seconds: float


class _Ended(Record):
    """The record of a stage."""

    outcome: _Outcome


@dataclass
class DemoResult:
    """What the demo measured, and where its pictures are.

    Attributes:
        figures: by name; `table` lists them as text.
        paths: by what they show; `report` is the page.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)


def write_report(folder: Path, command: str, reporter: Reporter) -> DemoResult:
    """Draw samples of a trained demo and write RUN/samples and RUN/report.

    Args:
        folder: RUN, trained on the embedded data.
        command: what the user typed.
        reporter: where to speak.
    """
    run = load(folder, "cpu")
    images = open_images("emoji64", run.config.data, run.paths.data, seed=run.config.seed, say=reporter.say)
    report = _Report(run, images)
    report.page.text(
        f"A two-stage model of {len(images.train)} emoji at {run.config.data.shape_text} px, made by `{command}` on this machine. "
        f"Stage 1 turned each image into grids of integers; stage 2 learnt the distribution of these grids. The samples "
        f"below are new images drawn from it."
    )
    samples, labels, seconds = _draw(run, _SAMPLES // max(1, len(run.classes)) * max(1, len(run.classes)))
    report.add_reconstructions()
    report.add_samples(samples, labels)
    report.add_neighbours(samples)
    report.add_shipped_model()
    report.add_curves()
    report.add_figures(seconds)
    result = report.result
    result.paths["report"] = run.paths.report / "index.html"
    report.page.save(result.paths["report"])
    write_json(run.paths.report / "report.json", result.figures)
    return result


def _draw(run: Run, n: int) -> tuple[Tensor, Tensor, float]:
    """n samples, their classes, and the seconds for each."""
    begun = time.perf_counter()
    batches = list(run.draw(n, None, 0, run.sampling.replace(batch=n)))
    seconds = (time.perf_counter() - begun) / n
    images = torch.cat([batch.images for batch in batches])
    labels = torch.cat([batch.labels for batch in batches if batch.labels is not None])
    return images, labels, seconds


class _Report:
    """The page, section by section.

    Attributes:
        page: what is shown.
        result: what is measured and saved on the way.
    """

    def __init__(self, run: Run, images: ImageSet) -> None:
        self.run, self.images = run, images
        self.page, self.result = Page("vqvae2 demo"), DemoResult()
        self.zoom = max(1, 64 // max(run.config.data.shape))

    def add_reconstructions(self) -> None:
        heldout = self.images.heldout
        chosen = heldout[:: max(1, len(heldout) // 12)][:12]
        originals, _ = next(iter(sequential(self.images, chosen, self.run.config.data, batch=12)))
        levels = self.run.config.autoencoder.levels
        rows = [originals, *(self.run.reconstruct(originals, level + 1) for level in range(levels))]
        self.page.heading("Reconstructions of held-out images")
        caption = "top row: originals; then decoded from the coarsest level alone"
        caption += ", with one more level in each further row" * (levels > 1)
        self._show(grid(torch.cat(rows), len(originals), zoom=self.zoom), "reconstructions", caption)

    def add_samples(self, samples: Tensor, labels: Tensor) -> None:
        order = labels.argsort(stable=True)
        columns = len(samples) // len(self.run.classes)
        self.page.heading("Samples, a row per class, unselected")
        caption = "rows: " + ", ".join(self.run.classes)
        self._show(grid(samples[order], columns, zoom=self.zoom), "samples-per-class", caption)

    def add_neighbours(self, samples: Tensor) -> None:
        shown, images, data = samples[:18], self.images, self.run.config.data
        nearest, distance = nearest_images(shown, images, data)
        heldout, _ = next(iter(sequential(images, images.heldout[::3], data, batch=len(images.heldout))))
        _, real = nearest_images(heldout, images, data)
        medians = float(distance.median()), float(real.median())
        self.page.heading("Does it memorise? Samples above their nearest training images")
        rows = torch.cat([shown[:9], nearest[:9], shown[9:], nearest[9:]])
        caption = (
            f"odd rows: samples; even rows: the training image (or its mirror image) nearest in pixels; median distance "
            f"{medians[0]:.3f} for samples, {medians[1]:.3f} for held-out real images (root mean square, range 2)"
        )
        self.result.figures["neighbour_distance_samples"] = medians[0]
        self.result.figures["neighbour_distance_heldout"] = medians[1]
        self._show(grid(rows, 9, zoom=self.zoom), "nearest-neighbours", caption)

    def add_shipped_model(self) -> None:
        if SHIPPED not in zoo():
            return
        model = load(SHIPPED, "cpu")
        samples = model.sample(64, seed=0)
        self.page.heading("What longer training gives: the model shipped in the package")
        caption = f"64 unselected samples of `{SHIPPED}`, classes in turn: `vqvae2 sample {SHIPPED} --n 64 --out out`"
        zoom = max(1, 64 // max(model.config.data.shape))
        self._show(grid(samples, 8, zoom=zoom), "shipped-model", caption)

    def add_curves(self) -> None:
        self.page.heading("Loss curves")
        paths = self.run.paths
        lines = read_metrics(paths.autoencoder.metrics)
        curves = {"train": _column(lines, "mse"), "held out": _column(lines, "heldout_mse")}
        self.page.curves(curves, "stage 1: mean squared error, pixels in [-1, 1], against steps", log=True)
        for level in range(self.run.config.autoencoder.levels):
            lines = read_metrics(paths.prior(level).metrics)
            curves = {"train": _column(lines, "train_bits"), "held out": _column(lines, "heldout_bits")}
            self.page.curves(curves, f"stage 2, level {level}: bits per code, against steps")

    def add_figures(self, seconds: float) -> None:
        run, result = self.run, self.result
        stages = run.paths.networks(run.config.autoencoder.levels).values()
        done = [_Ended.read(stage.record) for stage in stages if stage.done()]
        trained = sum(record.outcome.seconds for record in done)
        psnr = _figure(run.figures(), "heldout_psnr")
        result.figures |= {"heldout_psnr": psnr, "seconds_per_sample": seconds, "training_seconds": trained}
        rows = [("held-out PSNR (dB, of the mean error)", f"{psnr:.2f}")]
        for level, usage in enumerate(stored_usage(open_store(run.paths.codes))):
            rows += self._level_rows(level, usage)
        rows.append((f"seconds per sample (batch of {_SAMPLES})", f"{seconds:.3f}"))
        rows.append(("training time", f"{trained / 60:.1f} min"))
        self.page.heading("Measured")
        self.page.table(("figure", "value"), rows)
        result.figures["table"] = rows

    def _level_rows(self, level: int, usage: CodebookUsage) -> list[tuple[str, str]]:
        height, width = self.run.config.geometry.grids[level]
        bits, uniform = (_figure(self.run.figures(level), name) for name in ("heldout_bits", "uniform_bits"))
        self.result.figures[f"usage_{level}"] = usage.used
        self.result.figures[f"heldout_bits_{level}"] = bits
        self.result.figures[f"uniform_bits_{level}"] = uniform
        name, codes = f"level {level} ({height}x{width})", self.run.config.autoencoder.codes[level]
        used = f"{usage.used:.1%}, perplexity {usage.perplexity:.0f} of {codes}"
        return [
            (f"{name}: codes used", used),
            (f"{name}: held-out bits per code", f"{bits:.2f} (uniform {uniform:.0f})"),
        ]

    def _show(self, picture: Image.Image, name: str, caption: str) -> None:
        path = self.run.paths.sheets / f"{name}.png"
        save_picture(picture, path)
        self.result.paths[name.replace("-", " ")] = path
        self.page.picture(picture, caption)


def _figure(figures: dict[str, Any], name: str) -> float:
    if name not in figures:
        raise FileError(f"the run is damaged: no {name} was measured")
    return float(figures[name])


def _column(lines: list[dict[str, Any]], key: str) -> Curve:
    return [(line["step"], line[key]) for line in lines if type(line.get(key)) in (int, float)]
