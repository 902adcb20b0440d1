"""`vqvae2 serve`: a web page for one run. The page and its server are in `web/`."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from vqvae2.commands.options import RunName
from vqvae2.errors import UserError
from vqvae2.files.progress import Reporter


def command(
    run: RunName,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0 takes a free one")] = 7860,
    host: Annotated[
        str,
        typer.Option(
            help="address to listen on; the page has no password, so anything but this machine's own 127.0.0.1 lets everybody "
            "who reaches the address use it"
        ),
    ] = "127.0.0.1",
) -> None:
    """Open a run in the browser: draw samples, look into the codes of an image, fill in and vary parts of it, read the report.

    It needs the extra web: pip install 'vqvae2[web]'. The page works without a network.
    """
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} is not installed: pip install 'vqvae2[web]'")
    from vqvae2.run import load
    from vqvae2.web.app import serve

    loaded = load(run)
    serve(loaded, lambda data: loaded.load_images([data])[0], host, port, Reporter().say)
