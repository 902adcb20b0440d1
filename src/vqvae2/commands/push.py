"""`vqvae2 push`: a trained run on the Hugging Face Hub. The job itself is `sharing.push`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vqvae2.commands.options import Json, print_json
from vqvae2.errors import UserError


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder whose training is finished")],
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="the repository; created if it does not exist")
    ],
    license: Annotated[
        str | None,
        typer.Option(
            help="licence of the weights as the Hub abbreviates it, e.g. apache-2.0, cc-by-nc-4.0, other; asked for on a "
            "terminal if not given"
        ),
    ] = None,
    data: Annotated[
        str, typer.Option(help="a sentence for the model card about the training images and their licence")
    ] = "",
    private: Annotated[bool, typer.Option(help="a repository that is created is private")] = False,
    revision: Annotated[str | None, typer.Option(help="branch to upload to [default: main]")] = None,
    message: Annotated[str, typer.Option(help="of the commit")] = "",
    dry_run: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="upload nothing; write what would be uploaded into this new folder"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Upload weights, settings and a model card, so that `vqvae2.load("OWNER/NAME")` works anywhere.

    Images, codes and logs are not uploaded. It needs a token of the Hub: `hf auth login`, or HF_TOKEN.
    """
    from vqvae2.sharing import Card, push, stage
    from vqvae2.train.stored_run import StoredRun

    stored = StoredRun(run)
    if license is None:
        if not sys.stdin.isatty():
            raise UserError("expected --license, the licence of the weights, e.g. --license apache-2.0")
        license = typer.prompt(
            "Licence of the weights (as the Hub abbreviates it, e.g. apache-2.0)", err=True
        )
    card = Card(str(license), data)
    if dry_run is not None:
        if dry_run.exists():
            raise UserError(f"{dry_run} exists already; name a new folder")
        stage(stored, dry_run, card, repository)
        where = str(dry_run)
    else:
        where = push(stored, repository, card, private, message, revision)
    if as_json:
        print_json({"repository": repository, "written": where})
        return
    typer.echo(where if dry_run is None else f"{where}: what would be uploaded to {repository}; nothing was")
