"""`vqvae2 explain`: how good a run is, what limits it, and what to change, from its own figures."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from vqvae2.commands.options import Json, RunName, print_json

if TYPE_CHECKING:
    from vqvae2.run import Run


def explain(run: Run, name: str | None = None) -> dict[str, Any]:
    """The verdict, the advice and what is not known, JSON-ready.

    Args:
        run: trained, or partly trained.
        name: what the commands in the advice call it; None is its folder.

    Returns:
        `verdict`: sentences; `advice`: `rule`, `finding` and `change` of each; `unknown`: what was not measured.

    Raises:
        FileError: a file of the run is damaged.
    """
    from vqvae2.commands.run_facts import collect
    from vqvae2.evaluate.advice import advise, unknown
    from vqvae2.evaluate.verdict import verdict
    from vqvae2.files.locate import public_name

    facts, public = collect(run), public_name(run.folder) is not None  # such a report needs --out
    return {
        "run": str(run.folder),
        "verdict": verdict(facts),
        "advice": [asdict(item) for item in advise(facts)],
        "unknown": [
            line.replace("RUN", (name or str(run.folder)) + (" --out DIR" if public else ""))
            for line in unknown(facts)
        ],
    }


def command(run: RunName, as_json: Json = False) -> None:
    """Say what limits a run and what to change, from the figures that it has: nothing is computed anew.

    Each rule and its threshold is listed in the documentation, page Reports.
    """
    from vqvae2.run import load

    found = explain(load(run, "cpu"), run)
    if as_json:
        print_json(found)
        return
    for line in found["verdict"] or ["nothing is trained yet"]:
        typer.echo(line)
    for item in found["advice"]:
        typer.echo("")
        typer.echo(f"{item['rule']}: {item['finding']}")
        typer.echo(textwrap.indent(textwrap.fill(item["change"].replace("`", ""), 100), "    "))
    if not found["advice"]:
        typer.echo("no rule finds anything to change")
    if found["unknown"]:
        typer.echo("\nnot known:")
        for line in found["unknown"]:
            typer.echo(f"  {line.replace('`', '')}")
