"""`vqvae2 demo`: the whole pipeline on the embedded emoji, and a page that shows the results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from vqvae2.commands.options import Settings, command_line, resolve
from vqvae2.files.progress import Reporter

if TYPE_CHECKING:
    from vqvae2.commands.demo_report import DemoResult
    from vqvae2.config.models import Config


def demo(
    folder: Path, config: Config, command: str = "vqvae2 demo", reporter: Reporter | None = None
) -> DemoResult:
    """Train on the embedded data in `folder` (or continue, or do nothing if it is done) and write the report.

    Args:
        folder: RUN; created.
        config: every setting.
        command: what the user typed, for the record.
        reporter: shows the progress; None takes a new one.

    Raises:
        UserError: as `train.pipeline.train`.
    """
    from vqvae2.commands.demo_report import write_report
    from vqvae2.files.lock import locked
    from vqvae2.train import pipeline

    reporter = reporter or Reporter()
    with locked(folder):
        pipeline.train("emoji64", folder, config, command=command, reporter=reporter)
        return write_report(folder, command, reporter)


def command(
    out: Annotated[Path, typer.Option(help="run folder of the demo")] = Path("runs/demo"),
    settings: Settings = None,
) -> None:
    """Run the whole pipeline on the embedded emoji: at most 10 minutes of training on two cores, then a report."""
    from vqvae2.commands.train import own_settings
    from vqvae2.config.presets import preset

    result = demo(out, resolve(own_settings(out, preset("demo")), None, settings), command_line())
    table = Table("figure", "value")
    for name, value in result.figures["table"]:
        table.add_row(name, value)
    console = Console(soft_wrap=True, emoji=False)
    console.print(table)
    for name, path in result.paths.items():
        console.print(f"{name}: {path}", markup=False, highlight=False)
