"""`vqvae2 models`: the models that the package ships."""

from __future__ import annotations

from typing import Any

import typer

from vqvae2.commands.options import Json, print_json


def models() -> list[dict[str, Any]]:
    """The models of the package: name, image size, grids, codes, classes, bytes on the disk, and held-out figures.

    `heldout_psnr` is in dB, of the plain decoder; `heldout_bits` is per code of each level, coarsest first.
    """
    from vqvae2.files.locate import find_run, zoo
    from vqvae2.train.stored_run import StoredRun

    found = []
    for name in zoo():
        run = StoredRun(find_run(name))
        geometry = run.config.geometry
        found.append(
            {
                "name": name,
                "image": [run.config.autoencoder.channels, *run.config.data.shape],
                "grids": [list(grid) for grid in geometry.grids],
                "codes": list(geometry.vocabulary),
                "classes": list(run.classes),
                "decoders": ["plain", "sharp"] if run.paths.sharpen.done() else ["plain"],
                "bytes": sum(file.stat().st_size for file in run.folder.rglob("*") if file.is_file()),
                "heldout_psnr": run.figures().get("heldout_psnr"),
                "heldout_bits": [run.figures(level).get("heldout_bits") for level in range(geometry.levels)],
            }
        )
    return found


def command(as_json: Json = False) -> None:
    """List the models of the package, with their size and held-out figures; their cards are in the package."""
    found = models()
    if as_json:
        print_json(found)
        return
    for model in found:
        channels, height, width = model["image"]
        grids = " + ".join(f"{h}x{w}" for h, w in model["grids"])
        codes = ", ".join(sorted({*map(str, model["codes"])}))
        bits = " + ".join(f"{value:.2f}" for value in model["heldout_bits"])
        typer.echo(
            f"{model['name']:12s} {height}x{width}x{channels}, grids {grids} of {codes} codes, {len(model['classes'])} classes, "
            f"{model['bytes'] / 1e6:.1f} MB; held out: PSNR {model['heldout_psnr']:.2f} dB, {bits} bits per code"
        )
