"""The demo: the whole pipeline on the embedded emoji, and one page that shows what came out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vqvae2.autoencoder.codebook_usage import stored_usage
from vqvae2.config.models import Config
from vqvae2.data.batches import sequential
from vqvae2.data.grid import grid, save_picture
from vqvae2.data.images import ImageSet, open_images
from vqvae2.data.store import open_store
from vqvae2.evaluate.neighbours import nearest_images
from vqvae2.evaluate.report import Curve, Page
from vqvae2.files.atomic import read_json, write_json
from vqvae2.files.progress import Reporter
from vqvae2.run import Run, load, zoo
from vqvae2.train.loop import read_metrics
from vqvae2.train.pipeline import train

SHIPPED = "emoji64"  # the model of the package that is shown beside the demo's own


@dataclass
class DemoResult:
    """What the demo measured, and where its pictures are."""

    figures: dict[str, Any] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)


def demo(folder: Path, config: Config, command: str, reporter: Reporter) -> DemoResult:
    """Train on the embedded data in `folder` (or go on, or do nothing if done) and write the report.

    Raises:
        as `train`.
    """
    train("emoji64", folder, config, command=command, reporter=reporter)
    run = load(folder, "cpu")
    images = open_images("emoji64", run.config.data, folder / "data", seed=run.config.seed, say=reporter.say)
    result = DemoResult()
    page = Page("vqvae2 demo")
    page.text(
        f"A two-stage model of {len(images.train)} emoji at {run.config.data.size} px, made by `{command}` on this machine. "
        f"Stage 1 turned each picture into grids of integers; stage 2 learnt the grids; the samples below are new draws."
    )
    samples, labels, seconds = _sample(run, 72 // max(1, len(run.classes)) * max(1, len(run.classes)))
    _reconstructions(run, images, folder, page, result)
    _samples(run, samples, labels, folder, page, result)
    _neighbours(samples, labels, images, run, folder, page, result)
    _shipped(run, folder, page, result, reporter)
    _curves(run, folder, page)
    _figures(run, folder, seconds, page, result)
    result.paths["report"] = folder / "report" / "index.html"
    page.save(result.paths["report"])
    write_json(folder / "report" / "report.json", result.figures)
    return result


def _sample(run: Run, n: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    begun = time.perf_counter()
    parts = list(run.draw(n, None, 0, run.sampling.replace(batch=n)))
    seconds = (time.perf_counter() - begun) / n
    return (
        torch.cat([p.images for p in parts]),
        torch.cat([p.labels for p in parts if p.labels is not None]),
        seconds,
    )


def _show(
    picture: Image.Image, name: str, caption: str, folder: Path, page: Page, result: DemoResult
) -> None:
    path = folder / "samples" / f"{name}.png"
    save_picture(picture, path)
    result.paths[name.replace("-", " ")] = path
    page.picture(picture, caption)


def _zoom(run: Run) -> int:
    return max(1, 64 // run.config.data.size)


def _reconstructions(run: Run, images: ImageSet, folder: Path, page: Page, result: DemoResult) -> None:
    chosen = images.heldout[:: max(1, len(images.heldout) // 12)][:12]
    originals, _ = next(iter(sequential(images, chosen, run.config.data, batch=12)))
    levels = run.config.autoencoder.levels
    rows = [originals, *(run.reconstruct(originals, level + 1) for level in range(levels))]
    page.heading("Reconstructions of held-out pictures")
    caption = "top: originals; then decoded from the coarsest level alone" + ", adding one level a row" * (
        levels > 1
    )
    _show(
        grid(torch.cat(rows), len(originals), zoom=_zoom(run)),
        "reconstructions",
        caption,
        folder,
        page,
        result,
    )


def _samples(
    run: Run, samples: torch.Tensor, labels: torch.Tensor, folder: Path, page: Page, result: DemoResult
) -> None:
    order = labels.argsort(stable=True)
    columns = len(samples) // len(run.classes)
    page.heading("Samples, a row per class, unselected")
    caption = "rows: " + ", ".join(run.classes)
    _show(grid(samples[order], columns, zoom=_zoom(run)), "samples-per-class", caption, folder, page, result)


def _neighbours(
    samples: torch.Tensor,
    labels: torch.Tensor,
    images: ImageSet,
    run: Run,
    folder: Path,
    page: Page,
    result: DemoResult,
) -> None:
    shown = samples[:18]
    found, distance = nearest_images(shown, images, run.config.data)
    heldout, _ = next(
        iter(sequential(images, images.heldout[::3], run.config.data, batch=len(images.heldout)))
    )
    _, real = nearest_images(heldout, images, run.config.data)
    page.heading("Does it memorise? Samples above their nearest training pictures")
    rows = torch.cat([shown[:9], found[:9], shown[9:], found[9:]])
    caption = (
        f"odd rows: samples; even rows: the training picture (or its mirror image) nearest in pixels; median distance "
        f"{float(distance.median()):.3f} for samples, {float(real.median()):.3f} for held-out real pictures (RMS, range 2)"
    )
    result.figures["neighbour_distance_samples"] = float(distance.median())
    result.figures["neighbour_distance_heldout"] = float(real.median())
    _show(grid(rows, 9, zoom=_zoom(run)), "nearest-neighbours", caption, folder, page, result)


def _shipped(run: Run, folder: Path, page: Page, result: DemoResult, reporter: Reporter) -> None:
    if SHIPPED not in zoo():
        return
    model = load(SHIPPED, "cpu")
    images = model.sample(64, seed=0)
    page.heading("What more training gives: the model shipped in the package")
    caption = (
        f"64 unselected samples of `{SHIPPED}`, classes in turn: `vqvae2 sample {SHIPPED} --n 64 --out out`"
    )
    _show(grid(images, 8, zoom=_zoom(model)), "shipped-model", caption, folder, page, result)


def _curves(run: Run, folder: Path, page: Page) -> None:
    def column(lines: list[dict[str, Any]], key: str) -> Curve:
        return [(line["step"], line[key]) for line in lines if key in line]

    page.heading("Loss curves")
    lines = read_metrics(folder / "autoencoder" / "metrics.jsonl")
    curves = {"train": column(lines, "mse"), "held out": column(lines, "heldout_mse")}
    page.curves(curves, "stage 1: mean squared error, pixels in [-1, 1], against steps", log=True)
    for level in range(run.config.autoencoder.levels):
        lines = read_metrics(folder / "prior" / f"level-{level}" / "metrics.jsonl")
        curves = {"train": column(lines, "train_bits"), "held out": column(lines, "heldout_bits")}
        page.curves(curves, f"stage 2, level {level}: bits per code, against steps")


def _figures(run: Run, folder: Path, seconds: float, page: Page, result: DemoResult) -> None:
    stage1 = run.figures()
    usages = stored_usage(open_store(folder / "codes"))
    rows: list[tuple[str, str]] = [("held-out PSNR (dB, of the mean error)", f"{stage1['heldout_psnr']:.2f}")]
    result.figures |= {"heldout_psnr": stage1["heldout_psnr"], "seconds_per_sample": seconds}
    for level, grid_size in enumerate(run.config.geometry.grids):
        figures = run.figures(level)
        name = f"level {level} ({grid_size[0]}x{grid_size[1]})"
        rows.append(
            (
                f"{name}: codes used",
                f"{usages[level].used:.1%}, perplexity {usages[level].perplexity:.0f} of {run.config.autoencoder.codes[level]}",
            )
        )
        rows.append(
            (
                f"{name}: held-out bits per code",
                f"{figures['heldout_bits']:.2f} (uniform {figures['uniform_bits']:.0f})",
            )
        )
        result.figures[f"usage_{level}"] = usages[level].used
        result.figures[f"heldout_bits_{level}"] = figures["heldout_bits"]
        result.figures[f"uniform_bits_{level}"] = figures["uniform_bits"]
    rows.append(("seconds per sample (batch of 72)", f"{seconds:.3f}"))
    trained = sum(_seconds(folder, level) for level in (None, *range(run.config.autoencoder.levels)))
    rows.append(("training time", f"{trained / 60:.1f} min"))
    result.figures["training_seconds"] = trained
    page.heading("Measured")
    page.table(("figure", "value"), rows)
    result.figures["table"] = rows


def _seconds(folder: Path, level: int | None) -> float:
    part = folder / "autoencoder" if level is None else folder / "prior" / f"level-{level}"
    return float(read_json(part / "config.json")["outcome"]["seconds"])
