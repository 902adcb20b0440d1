"""Progress of long jobs: a bar with the rate and the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vqvae2.errors import printable

_LINE_SECONDS = 20.0  # time between plain lines when the output is no terminal


class Reporter:
    """Prints messages and progress to standard error, which leaves standard output free for results.

    Args:
        quiet: print nothing, for all processes but the first of a group and for callers that want no output.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print one line; control characters are shown as escapes."""
        if not self.quiet:
            self.console.print(printable(text), markup=False)

    def track(self, title: str, total: int, done: int = 0, unit: str = "steps") -> Tracker:
        """A context manager that shows the progress of a job.

        Args:
            title: name of the job.
            total: number of units of the whole job.
            done: units that were done before, when the job is resumed; they do not count for the rate.
            unit: name of a unit, in the plural.
        """
        return Tracker(self, title, total, done, unit)


class Tracker:
    """The progress of one job, which `Reporter.track` makes; a line every 20 seconds where there is no terminal.

    Attributes:
        total: number of units; may be corrected when it becomes known later.
        done: units done so far.
    """

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
        """Show that `done` units of the job are done.

        Args:
            done: all units so far, including those of earlier runs of the job.
            text: a short text behind the figures, such as the loss.
            scale, scaled_unit: the rate is shown in another unit, of which `scale` make one unit of progress: with
                32 and "images", steps of 32 images each are shown in images per second.
        """
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
