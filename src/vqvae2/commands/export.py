"""`vqvae2 export`: a run for programs without PyTorch. The job itself is `export.onnx_files.export_onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vqvae2.commands.options import Json, RunName, print_json
from vqvae2.files.progress import Reporter


def command(
    run: RunName,
    onnx: Annotated[Path, typer.Option(metavar="DIR", help="new folder for the ONNX files and model.json")],
    as_json: Json = False,
) -> None:
    """Write a run as ONNX files: images to codes, codes to images, and of each prior the context, the row's start and one step.

    It needs the extra onnx: pip install 'vqvae2[onnx]'. examples/onnx_sampling.py draws images from the files without torch.
    """
    from vqvae2.export.onnx_files import export_onnx
    from vqvae2.run import load

    about = export_onnx(load(run, "cpu"), onnx, Reporter())
    if as_json:
        print_json(about)
        return
    size = sum(file.stat().st_size for file in onnx.iterdir())
    typer.echo(f"{onnx}: {', '.join(about['files'])}, model.json; {size / 1e6:.1f} MB")
