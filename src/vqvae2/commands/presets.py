"""`vqvae2 presets`: the presets with their sizes."""

from __future__ import annotations

from typing import Any

import typer

from vqvae2.commands.options import Json, print_json


def presets() -> list[dict[str, Any]]:
    """Of each preset: name, image, grids, codebooks, kinds of priors, steps of the autoencoder, the priors and the sharpening, and for which images it is chosen."""
    from vqvae2.config.presets import chosen_for, preset
    from vqvae2.config.presets import presets as names

    found = []
    for name in names():
        config = preset(name)
        found.append(
            {
                "name": name,
                "image": list(config.data.shape),
                "grids": [list(grid) for grid in config.geometry.grids],
                "codes": list(config.geometry.vocabulary),
                "priors": [level.kind for level in config.prior.levels],
                "steps": [item.steps for item in (config.train_autoencoder, *config.train_prior)],
                "sharpening_steps": config.sharpen.steps,
                "chosen_for": chosen_for(name),
            }
        )
    return found


def command(as_json: Json = False) -> None:
    """List the presets with their sizes."""
    found = presets()
    if as_json:
        print_json(found)
        return
    for item in found:
        grids = " + ".join(f"{h}x{w}" for h, w in item["grids"])
        height, width = item["image"]
        size = str(height) if height == width else f"{height}x{width}"
        steps = ", ".join(map(str, item["steps"]))
        sharpening = f", sharpening {item['sharpening_steps']}" if item["sharpening_steps"] else ""
        typer.echo(
            f"{item['name']:12s} {size} px, grids {grids}, {item['codes'][0]} codes, steps {steps}{sharpening}"
        )
