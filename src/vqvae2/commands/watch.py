"""`vqvae2 inspect RUN --watch`: the curves of a training that is going on, in the terminal."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from vqvae2.files.progress import duration
from vqvae2.train.follow import Follower
from vqvae2.train.longer import settings_of, wanted
from vqvae2.train.stored_run import StoredRun

_BLOCKS = "▁▂▃▄▅▆▇█"
_FIGURES = ("loss", "heldout_psnr", "heldout_bits", "train_bits", "lr")
_SECONDS = 2.0


def watch(
    run: Path,
    console: Console,
    wait: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> None:
    """Show the curves of a run's stages until all stages are done, or Ctrl-C.

    Args:
        run: RUN.
        console: where it is shown; without a terminal, it is printed once.
        wait: waits the given number of seconds.
        clock: seconds since some time, for the time since the last line.
    """
    stored = StoredRun(run)
    follower = Follower(run, stored.config.autoencoder.levels)
    lines: dict[str, list[dict[str, Any]]] = {}
    seen = clock()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            news = follower.news()
            if news:
                seen = clock()
            for item in news:
                known = [] if item.anew else lines.get(item.stage, [])
                first = item.lines[0]["step"] if item.lines else 0
                lines[item.stage] = [line for line in known if line["step"] <= first] + item.lines
            live.update(_picture(stored, lines, console.width, clock() - seen), refresh=True)
            if all(_done(stored).values()) or not console.is_terminal:
                return
            wait(_SECONDS)


def _done(stored: StoredRun) -> dict[str, bool]:
    """Which stages are done and are not to be trained further; a prior of 0 steps, which is not to be trained, is left out."""
    further, steps = wanted(stored.folder, stored.config), _steps(stored)
    return {
        name: done and name not in further
        for name, done in stored.done().items()
        if done or steps.get(name, 1)  # the codes have no steps
    }


def _steps(stored: StoredRun) -> dict[str, int]:
    """The steps of each stage that is trained."""
    return {name: training.steps for name, (_, training) in settings_of(stored.config).items()}


def _picture(stored: StoredRun, lines: dict[str, list[dict[str, Any]]], width: int, idle: float) -> Group:
    """All stages, one below the other."""
    steps, done, parts = _steps(stored), _done(stored), []
    for name, known in lines.items():
        table = Table.grid(padding=(0, 2))
        for figure in _FIGURES:
            values = [(line["step"], float(line[figure])) for line in known if figure in line]
            if values:
                curve = sparkline([value for _, value in values], max(10, width - 45))
                table.add_row(figure, curve, f"{values[0][1]:.4g} → {values[-1][1]:.4g}")
        last = known[-1]["step"] if known else 0
        state = (
            "done" if done.get(name) else f"step {last} of {steps[name]}, {last / max(1, steps[name]):.0%}"
        )
        parts.append(Panel(table, title=f"{name}: {state}", title_align="left", width=min(width, 120)))
    missing = [name for name, finished in done.items() if not finished]
    text = "all stages are done" if not missing else f"to do: {', '.join(missing)}"
    if missing and lines:
        text += f"; nothing new for {duration(idle)}" if idle > 30 else ""
    return Group(*parts, Text(f"{stored.folder}: {text}"))


def sparkline(values: list[float], width: int) -> str:
    """A curve in one line of blocks: the lowest value is the lowest block; each block is the mean of some values."""
    finite = [
        value for value in values if abs(value) < float("inf")
    ]  # which also leaves out what is no number
    count = min(width, len(finite))
    if not count:
        return ""
    edges = [index * len(finite) // count for index in range(count + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)
