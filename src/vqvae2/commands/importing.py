"""`vqvae2 import`: an autoencoder trained elsewhere becomes a run folder. The job itself is `train.rosinality`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vqvae2.commands.options import Json, command_line, print_json, print_text, summary
from vqvae2.errors import suggested


def rosinality_command(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="a vqvae_NNN.pt of rosinality/vq-vae-2-pytorch")
    ],
    run: Annotated[Path, typer.Option("--run", help="run folder to make; nothing trained is overwritten")],
    size: Annotated[
        int, typer.Option(min=8, help="height and width of the images in px, a multiple of 8")
    ] = 256,
    as_json: Json = False,
) -> None:
    """Import a stage-1 checkpoint of rosinality/vq-vae-2-pytorch; `vqvae2 train DATA --run RUN` adds the priors."""
    from vqvae2.run import load
    from vqvae2.train.rosinality import import_rosinality

    config = import_rosinality(checkpoint, run, size, command_line())
    if as_json:
        print_json(summary(load(run, "cpu")))
        return
    grids = " + ".join(f"{h}x{w}" for h, w in config.geometry.grids)
    print_text(
        f"{run}: autoencoder imported, {size} px, grids {grids}; {suggested('train', 'DATA', '--run', run)} adds the priors"
    )
