"""Copy a finished run into the package as a model of the zoo: weights, settings and a model card.

    python tools/ship_model.py runs/emoji64 emoji64 --card card.md

Only what `vqvae2.load` needs is copied: no images, no codes, no checkpoints. Weights are rounded to float16, which halves
the size; loading turns them into float32 again. For emoji64, on its 349 held-out images, PSNR is 27.0326 dB instead of
27.0334 and the codes take 1060.29 bits per image instead of 1060.39 (bfloat16: 27.0317 dB, 1060.37 bits). The text of the card comes from a file; the
table of measured figures below it is written from the run.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae2.files import tensor_file
from vqvae2.files.run_folder import RunFolder
from vqvae2.run import Run
from vqvae2.sharing import figure_table
from vqvae2.train.folder import model_file, write_config
from vqvae2.train.reference import reference_metadata

ZOO = Path(__file__).resolve().parents[1] / "src" / "vqvae2" / "zoo"
LIMIT = 30_000_000  # bytes of one model


def copy_weights(
    source: Path, target: Path, changes: Callable[[dict[str, Tensor]], dict[str, Any]] = lambda rounded: {}
) -> None:
    """Copy a model file with its floating-point tensors rounded to float16.

    Args:
        changes: of the rounded tensors, returns the metadata that differ in the copy.

    Raises:
        ValueError: a number is too large for float16.
        FileError: the file is damaged, or the copy cannot be written.
    """
    tensors, metadata = tensor_file.load_tensors(source)
    rounded = {name: _rounded(name, x) for name, x in tensors.items()}
    tensor_file.save_tensors(target, rounded, {**metadata, **changes(rounded)})


def copy_run(run: Run, target: Path) -> None:
    """Copy the settings of a run and the weights of all its networks.

    Raises:
        ValueError, FileError: as `copy_weights`.
    """
    shape = run.config.autoencoder
    copy_weights(
        model_file(run.folder), model_file(target), lambda rounded: reference_metadata(shape, rounded)
    )
    tensors, _ = tensor_file.load_tensors(model_file(target))
    belongs = {
        "autoencoder": tensor_file.digest(tensors)
    }  # what was derived from it names it, here the rounded one
    for level in range(run.config.autoencoder.levels):
        copy_weights(model_file(run.folder, level), model_file(target, level), lambda _: belongs)
    if RunFolder(run.folder).sharpen.model.exists():
        copy_weights(RunFolder(run.folder).sharpen.model, RunFolder(target).sharpen.model, lambda _: belongs)
    write_config(target, run.record, run.config)


def _rounded(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.to(torch.float16)
    if not half.isfinite().all():
        raise ValueError(f"{name} holds {float(tensor.abs().max()):g}, which is too large for float16")
    return half


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
    copy_run(run, target)
    text = options.card.read_text(encoding="utf-8").rstrip()
    (target / "README.md").write_text(f"{text}\n\n## Measured\n\n{figure_table(run)}\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")
    if size > LIMIT:
        parser.error(f"more than {LIMIT / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
