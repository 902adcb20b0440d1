"""`vqvae2 presets`: the presets with their sizes."""

from __future__ import annotations

import typer


def command() -> None:
    """List the presets with their sizes."""
    from vqvae2.config.presets import preset, presets

    for name in presets():
        config = preset(name)
        grids = " + ".join(f"{h}x{w}" for h, w in config.geometry.grids)
        steps = ", ".join(str(item.steps) for item in (config.train_autoencoder, *config.train_prior))
        typer.echo(
            f"{name:12s} {config.data.shape_text} px, grids {grids}, {config.autoencoder.codes[0]} codes, steps {steps}"
        )
