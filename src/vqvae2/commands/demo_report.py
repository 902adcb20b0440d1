"""The report of `vqvae2 demo`: that of its training, with samples by class, their nearest training images and the shipped model."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae2.commands.training_report import TrainingReport
from vqvae2.data.batches import sequential
from vqvae2.data.grid import grid
from vqvae2.data.images import ImageSet, open_images
from vqvae2.evaluate.neighbours import nearest_images
from vqvae2.evaluate.report import Cell
from vqvae2.files.locate import zoo
from vqvae2.files.progress import Reporter
from vqvae2.run import Run, load

SHIPPED = "emoji64"  # the model of the package whose samples are shown for comparison
_SAMPLES = 72  # about so many: the same number of each class
_SHOWN = 9  # samples above their nearest training images, and in a row of samples without classes


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
    """Draw samples of a trained demo and write RUN/samples, RUN/report/demo.html and demo.json.

    Args:
        folder: RUN, trained on the embedded data.
        command: what the user typed.
        reporter: where to speak.
    """
    run = load(folder, "cpu")
    images = open_images("emoji64", run.config.data, run.paths.data, seed=run.config.seed, say=reporter.say)
    report = TrainingReport(run, "The demo of vqvae2")
    report.page.text(
        f"A two-stage model of {len(images.train):,} emoji at {run.config.data.shape_text} px, made by `{command}` on this machine. "
        f"Stage 1 turned each image into grids of integers (codes); stage 2 learned the distribution of these grids. The samples "
        f"below are new images drawn from it."
    )
    samples, labels, seconds = _draw(run, _SAMPLES // max(1, len(run.classes)) * max(1, len(run.classes)))
    report.measure()
    report.figures["seconds_per_sample"] = seconds
    about = f"Drawing the codes of an image and decoding them, in a batch of {_SAMPLES}."
    report.rows.append((Cell("seconds per sample", about, "lower"), f"{seconds:.3f}"))
    report.add_figures()
    zoom = max(1, 64 // max(run.config.data.shape))
    _add_reconstructions(report, images, zoom)
    _add_samples(report, samples, labels, zoom)
    _add_neighbours(report, samples, images, zoom)
    _add_shipped_model(report)
    report.add_curves()
    return DemoResult(report.figures, {**report.paths, "report": report.save("demo")})


def _draw(run: Run, n: int) -> tuple[Tensor, Tensor | None, float]:
    """n samples, their classes (None without), and the seconds for each."""
    begun = time.perf_counter()
    batches = list(run.draw(n, None, 0, run.sampling.replace(batch=n)))
    seconds = (time.perf_counter() - begun) / n
    images = torch.cat([batch.images for batch in batches])
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return images, torch.cat(labels) if labels else None, seconds


def _add_reconstructions(report: TrainingReport, images: ImageSet, zoom: int) -> None:
    run = report.run
    chosen = images.heldout[:: max(1, len(images.heldout) // 12)][:12]
    originals, _ = next(iter(sequential(images, chosen, run.config.data, batch=12)))
    levels = run.config.autoencoder.levels
    rows = [originals, *(run.reconstruct(originals, level + 1) for level in range(levels))]
    names = ["originals", *(f"{n} coarsest level{'s' * (n > 1)}" for n in range(1, levels)), "all levels"]
    report.page.heading("Reconstructions of held-out images", "What the codes keep of an image.")
    caption = "originals, and the same images decoded from more and more levels"
    report.show(grid(torch.cat(rows), len(originals), zoom=zoom), "reconstructions", caption, tuple(names))


def _add_samples(report: TrainingReport, samples: Tensor, labels: Tensor | None, zoom: int) -> None:
    if labels is None:
        report.page.heading("Samples", "New images; none was selected.")
        report.show(grid(samples, _SHOWN, zoom=zoom), "samples", f"{len(samples)} samples")
        return
    order = labels.argsort(stable=True)
    columns = len(samples) // len(report.run.classes)
    report.page.heading(
        "Samples of each class", "New images, in the order in which they were drawn; none was selected."
    )
    caption = f"{columns} samples of each of {len(report.run.classes)} classes"
    picture = grid(samples[order], columns, zoom=zoom)
    report.show(picture, "samples-per-class", caption, report.run.classes)


def _add_neighbours(report: TrainingReport, samples: Tensor, images: ImageSet, zoom: int) -> None:
    shown, data = samples[: 2 * _SHOWN], report.run.config.data
    nearest, distance = nearest_images(shown, images, data)
    heldout, _ = next(iter(sequential(images, images.heldout[::3], data, batch=len(images.heldout))))
    _, real = nearest_images(heldout, images, data)
    medians = float(distance.median()), float(real.median())
    report.figures["neighbour_distance_samples"] = medians[0]
    report.figures["neighbour_distance_heldout"] = medians[1]
    report.page.heading(
        "Does it memorise?",
        f"Copies would be nearer to training images than held-out images are. The median distance is {medians[0]:.3f} for samples "
        f"and {medians[1]:.3f} for held-out images (root mean square of pixel values from -1 to 1).",
    )
    parts = [part for start in (0, _SHOWN) for part in (shown[start:][:_SHOWN], nearest[start:][:_SHOWN])]
    names = ("samples", "nearest in training") * 2
    caption = "samples, and below each the training image (or its mirror image) that is nearest in pixels"
    report.show(grid(torch.cat(parts), _SHOWN, zoom=zoom), "nearest-neighbours", caption, names)


def _add_shipped_model(report: TrainingReport) -> None:
    if SHIPPED not in zoo():
        return
    model = load(SHIPPED, "cpu")
    columns = 8
    labels = [label for label in range(len(model.classes)) for _ in range(columns)]
    samples = model.sample(len(labels), labels=labels, seed=0)
    report.page.heading(
        "What longer training gives",
        f"Unselected samples of the model `{SHIPPED}`, which is in the package: `vqvae2 sample {SHIPPED} --n 64 --out out`.",
    )
    zoom = max(1, 64 // max(model.config.data.shape))
    caption = f"{columns} samples of each class of the model {SHIPPED}"
    report.show(grid(samples, columns, zoom=zoom), "shipped-model", caption, model.classes)
