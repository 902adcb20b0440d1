"""Copy a finished run into the package as a model of the zoo: weights, settings and a model card.

    python tools/ship_model.py runs/emoji64 emoji64 --card card.md

Only what `vqvae2.load` needs is copied: no images, no codes, no checkpoints. The text of the card comes from a file; the
table of measured figures below it is written from the run.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from vqvae2.run import Run
from vqvae2.train.folder import model_file, write_config

ZOO = Path(__file__).resolve().parents[1] / "src" / "vqvae2" / "zoo"
LIMIT = 40_000_000  # bytes of one model


def figures(run: Run) -> str:
    """A Markdown table of the figures that the run measured on held-out images."""
    rows = ["| figure | value |", "| --- | --- |"]
    stage1 = run.figures()
    rows.append(f"| held-out PSNR (of the mean squared error, peak 2) | {stage1['heldout_psnr']:.2f} dB |")
    for level, (height, width) in enumerate(run.config.geometry.grids):
        prior = run.figures(level)
        rows += [
            f"| level {level} ({height}x{width}): codes used by held-out images | {stage1[f'heldout_usage_{level}']:.1%} |",
            f"| level {level}: bits per code, held out (uniform {prior['uniform_bits']:.0f}) | {prior['heldout_bits']:.3f} |",
            f"| level {level}: bits per code, training images | {prior['train_bits']:.3f} |",
        ]
    return "\n".join(rows)


def main() -> None:
    """Copy the model, write its card and print its size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--card", type=Path, required=True, help="Markdown text of the card, without figures")
    options = parser.parse_args()
    run = Run(options.run, "cpu")
    if not all(done for part, done in run.done().items() if part != "codes"):
        parser.error(f"{options.run} is not finished")
    target = ZOO / options.name
    shutil.rmtree(target, ignore_errors=True)
    for level in (None, *range(run.config.autoencoder.levels)):
        file = model_file(target, level)
        file.parent.mkdir(parents=True)
        shutil.copyfile(model_file(run.folder, level), file)
    write_config(target, run.record, run.config)
    text = options.card.read_text(encoding="utf-8").rstrip()
    (target / "README.md").write_text(f"{text}\n\n## Measured\n\n{figures(run)}\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")
    if size > LIMIT:
        parser.error(f"more than {LIMIT / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
