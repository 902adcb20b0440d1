"""What a long job says while it runs: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_SECONDS = 20.0  # time between plain lines when the output is no terminal


class Reporter:
    """Where a job speaks. `quiet` says nothing (the other processes of a group, or a caller that wants none)."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line."""
        if not self.quiet:
            self.console.print(text, markup=False)

    def track(self, title: str, total: int, done: int = 0, unit: str = "steps") -> Tracker:
        """A bar over `total` units of which `done` are behind us; a context manager."""
        return Tracker(self, title, total, done, unit)


class Tracker:
    """One bar; `update` it with the units done so far and a short text."""

    def __init__(self, reporter: Reporter, title: str, total: int, done: int, unit: str) -> None:
        self.reporter, self.title, self.total, self.unit = reporter, title, total, unit
        self.begin, self.done = done, done
        self.started = self.last_line = time.monotonic()
        self.bar: Progress | None = None
        if reporter.console.is_terminal and not reporter.quiet:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=reporter.console,
                transient=False,
            )
            self.task = self.bar.add_task(title, total=total, completed=done, unit=unit, rate="", text="")

    def __enter__(self) -> Tracker:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()
        sys.stderr.flush()

    def update(self, done: int, text: str = "", scale: float = 1.0, scaled_unit: str | None = None) -> None:
        """Say how far we are; the rate is in `scaled_unit` = `scale` x units (e.g. images per step)."""
        self.done = done
        now = time.monotonic()
        rate = (done - self.begin) / max(now - self.started, 1e-9)
        shown = f"{rate * scale:.1f} {scaled_unit or self.unit}/s"
        if self.bar:
            self.bar.update(self.task, completed=done, total=self.total, rate=shown, text=text)
        elif now - self.last_line >= _LINE_SECONDS or done >= self.total:
            self.last_line = now
            left = 0.0 if done >= self.total else (self.total - done) / rate if rate else float("inf")
            self.reporter.say(
                f"{self.title}: {done}/{self.total} {self.unit}, {shown}, {left / 60:.1f} min left  {text}"
            )
