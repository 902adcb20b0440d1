"""The report of a training: one HTML page with its figures, curves and last pictures, and the figures as JSON.

`vqvae2 train` writes it as it is when it ends, from what the run folder holds; the demo adds sections of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from vqvae2.autoencoder.codebook_usage import stored_usage
from vqvae2.commands.run_facts import collect, curve
from vqvae2.data.grid import save_picture
from vqvae2.data.store import open_store
from vqvae2.errors import listed, suggested
from vqvae2.evaluate.advice import advise
from vqvae2.evaluate.report import Cell, Page
from vqvae2.evaluate.verdict import verdict
from vqvae2.files.atomic import write_json
from vqvae2.run import Run
from vqvae2.train.longer import ended
from vqvae2.train.state import read_metrics


class TrainingReport:
    """The page of one training, section by section, and what is measured on the way.

    Attributes:
        run: what was trained.
        page: what is shown.
        figures: by name, JSON-ready.
        paths: of the pictures that are saved as files, by what they show.
        rows: of the table of figures: the name, and the value as text.
    """

    def __init__(self, run: Run, title: str) -> None:
        self.run, self.page = run, Page(title)
        self.facts = collect(run)
        self.page.verdict(verdict(self.facts))
        self.figures: dict[str, Any] = {}
        self.paths: dict[str, Path] = {}
        self.rows: list[tuple[Cell, str]] = []

    def save(self, name: str) -> Path:
        """Write RUN/report/NAME.html and NAME.json; returns the page's path."""
        page = self.run.paths.report / f"{name}.html"
        self.page.save(page)
        write_json(page.with_suffix(".json"), self.figures)
        return page

    def show(self, picture: Image.Image, name: str, caption: str, rows: tuple[str, ...] = ()) -> None:
        """Put a picture on the page and save it in RUN/samples."""
        path = self.run.paths.sheets / f"{name}.png"
        save_picture(picture, path)
        self.paths[name.replace("-", " ")] = path
        self.page.picture(picture, caption, rows)

    def add_pictures(self) -> None:
        """The last sheet of reconstructions, and the samples that the pipeline drew."""
        sheets = sorted(self.run.paths.autoencoder.pictures.glob("step-*.png"))
        if sheets:
            self.page.heading("Reconstructions of held-out images")
            with Image.open(sheets[-1]) as image:
                rows = max(2, round(image.height / (self.run.config.data.shape[0] + 2)))
            names = tuple(("originals", "reconstructions")[row % 2] for row in range(rows))
            self.page.picture(
                sheets[-1], "originals, and below each its reconstruction by the plain decoder", names
            )
        samples = self.run.paths.prior(self.run.config.autoencoder.levels - 1).samples
        if samples.exists():
            self.page.heading("Samples")
            order = ", classes in turn, row by row: " + listed(self.run.classes) if self.run.classes else ""
            self.page.picture(samples, f"64 samples, unselected{order}")

    def add_curves(self) -> None:
        """The error of the autoencoder and the bits of each prior, against steps."""
        self.page.heading(
            "Loss curves",
            "Training and held-out curves that part mean overfitting; curves that still fall mean that more steps help.",
        )
        paths = self.run.paths
        lines = read_metrics(paths.autoencoder.metrics)
        if lines:
            curves = {"training": curve(lines, "mse"), "held out": curve(lines, "heldout_mse")}
            y_title = "mean squared error, pixel values from -1 to 1"
            self.page.curves(curves, "the autoencoder; lower is better", log=True, y_title=y_title)
        for level in range(self.run.config.autoencoder.levels):
            lines = read_metrics(paths.prior(level).metrics)
            if lines:
                curves = {
                    "training": curve(lines, "train_bits"),
                    "held out": curve(lines, "heldout_bits"),
                }
                caption = f"the prior of level {level}; lower is better"
                self.page.curves(curves, caption, y_title="bits per code")

    def measure(self) -> None:
        """Collect the figures of the run's files."""
        run = self.run
        stages = run.paths.networks(run.config.autoencoder.levels).values()
        seconds = sum(ended(stage).seconds for stage in stages if stage.done())
        self.figures["training_seconds"] = seconds
        if self.facts.psnr is not None:
            self.figures["heldout_psnr"] = self.facts.psnr
            about = "Peak signal-to-noise ratio of the mean squared error over held-out images."
            self.rows.append((Cell("held-out PSNR", about, "higher"), f"{self.facts.psnr:.2f} dB"))
        if self.facts.sharpness is not None:
            self.figures["heldout_sharpness"] = self.facts.sharpness
            about = "Fine detail in reconstructions, as a share of the originals' (energy of the Laplacian)."
            self.rows.append((Cell("sharpness", about, "higher"), f"{self.facts.sharpness:.0%}"))
        if run.paths.manifest.exists():
            for level in range(run.config.autoencoder.levels):
                self._measure_level(level)
        about = "Of all stages together, over all sittings."
        self.rows.append((Cell("training time", about), f"{seconds / 60:,.1f} min"))

    def _measure_level(self, level: int) -> None:
        height, width = self.run.config.geometry.grids[level]
        usage = stored_usage(open_store(self.run.paths.codes))[level]
        self.figures[f"usage_{level}"] = usage.used
        name, codes = f"level {level} ({height}x{width})", self.run.config.autoencoder.codes[level]
        about = "Share of the codebook that occurs; the perplexity says how many codes are in use if all were equally frequent."
        used = f"{usage.used:.1%}, perplexity {usage.perplexity:,.0f} of {codes:,}"
        self.rows.append((Cell(f"{name}: codes used", about, "higher"), used))
        figures = self.run.figures(level)
        if figures:
            bits, uniform = figures["heldout_bits"], figures["uniform_bits"]
            self.figures |= {f"heldout_bits_{level}": bits, f"uniform_bits_{level}": uniform}
            about = "What the prior needs for one code; in brackets, what a code costs without a prior."
            words = f"{bits:.2f} (without a prior {uniform:.0f})"
            self.rows.append((Cell(f"{name}: held-out bits per code", about, "lower"), words))

    def add_figures(self) -> None:
        """The table of the figures, and what to change by the rules of `vqvae2 explain`."""
        self.page.heading("Figures")
        self.page.table(("", "value"), self.rows)
        self.figures["table"] = [(str(name), value) for name, value in self.rows]
        if advice := advise(self.facts):
            self.page.heading("What to change", f"By the rules of {suggested('explain', self.run.folder)}.")
            for item in advice:
                self.page.subheading(item.finding)
                self.page.text(item.change)


def write_training_report(run: Run) -> Path | None:
    """Write RUN/report/training.html and training.json from what the run folder holds; nothing is drawn or computed anew.

    An imported autoencoder has no figures and no curve.

    Returns:
        The page; None if not even the autoencoder is trained.

    Raises:
        FileError, StoreError: a file of the run is damaged.
    """
    if not run.paths.autoencoder.done():
        return None
    report = TrainingReport(run, f"Training of {run.folder.name}")
    data = f" on `{run.record['source']}`" if "source" in run.record else ""
    report.page.text(
        f"A model of images of {run.config.data.shape_text} px, trained{data}. Stage 1, the autoencoder, turns each image into grids of "
        "integers (codes); stage 2, a prior for each level, learns the distribution of these grids, from which new images are drawn."
    )
    report.measure()
    report.add_figures()
    report.add_pictures()
    report.add_curves()
    return report.save("training")
