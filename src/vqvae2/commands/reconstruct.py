"""`vqvae2 reconstruct`: images through the codes and back, with all levels and with the coarsest ones alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vqvae2.commands.options import ImageFolder, ImagePaths, Json, RunName, print_json

if TYPE_CHECKING:
    from vqvae2.run import Run


def reconstruct(run: Run, paths: Sequence[Path], out: Path) -> list[dict[str, Any]]:
    """Write NAME.png and NAME-levels.png (the original, the coarsest level alone, ... all levels) of each image.

    No image that is read is overwritten, and nothing is written if one of them cannot be read.

    Args:
        paths: image files, or folders with image files.
        out: folder for the results; created.

    Returns:
        Per image: `source`, `file`, `levels` (the sheet), and `psnr` in dB with 1, 2, ... levels.

    Raises:
        UserError: a missing file, or a folder that cannot be made.
        DataError: a file that cannot be used.
    """
    import torch

    from vqvae2.commands.images import image_files, load_images
    from vqvae2.data.grid import save_grid, save_picture
    from vqvae2.data.pixels import psnr, to_pil
    from vqvae2.files.output import make_folder

    autoencoder, size = run.autoencoder, run.config.data.size
    files = image_files(paths)
    originals = load_images(run, files)
    make_folder(out)
    taken = {file.name.casefold() for file in files if file.resolve().parent == out.resolve()}
    results: list[dict[str, Any]] = []
    for file, image in zip(files, originals, strict=True):
        original = image[None]
        codes = autoencoder.encode(original.to(run.device))
        counts = range(1, run.config.autoencoder.levels + 1)
        decoded = [autoencoder.decode(codes, count).cpu() for count in counts]
        stem = _free_name(file.stem, taken)
        whole, sheet = out / f"{stem}.png", out / f"{stem}-levels.png"
        save_picture(to_pil(decoded[-1])[0], whole)
        save_grid(torch.cat([original, *decoded]), sheet, columns=1 + len(decoded), zoom=max(1, 128 // size))
        decibels = [float(psnr(some, original)[0]) for some in decoded]
        results.append({"source": str(file), "file": str(whole), "levels": str(sheet), "psnr": decibels})
    return results


def _free_name(stem: str, taken: set[str]) -> str:
    """`stem`, or `stem` with a number, such that neither NAME.png nor NAME-levels.png is in `taken`; both are added."""
    for name in itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2))):
        files = {f"{name}.png".casefold(), f"{name}-levels.png".casefold()}
        if not files & taken:
            taken |= files
            return name
    raise AssertionError("the numbers never end")


def command(run: RunName, images: ImagePaths, out: ImageFolder, as_json: Json = False) -> None:
    """Encode images and decode them: NAME.png, and NAME-levels.png (original, coarsest level alone, ... all levels)."""
    from vqvae2.run import load

    loaded = load(run)
    results = reconstruct(loaded, images, out)
    if as_json:
        print_json(results)
        return
    for item in results:
        where = f"{item['source']}: {item['file']}"
        typer.echo(f"{where}  PSNR {item['psnr'][-1]:.2f} dB at {loaded.config.data.size} px")
