"""Progress of long jobs: a bar with the rate and the time left on a terminal, plain lines elsewhere.

A job does not end because nobody listens any more: when the terminal is closed, or the reader of a pipe has gone, the
reporter falls silent.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vqvae2.errors import printable

_LINE_SECONDS = 20.0  # time between plain lines when the output is no terminal
_FIRST_SECONDS = 4.0  # time to the first of them
_TICK_SECONDS = 1.0  # time between two signs of life of `Tracker.tick`


class Plan:
    """How long all jobs of a command will take, from the work that each is and from how long the first ones took.

    Args:
        measure: returns, by title and in order, the work that each job is (in any unit that all of them share) and the
            seconds after which it ends in any case. Called once, when a job has run for some seconds.
    """

    def __init__(self, measure: Callable[[], dict[str, tuple[float, float]]]) -> None:
        self._measure = measure
        self.spent: dict[str, tuple[float, float]] = {}  # by title: seconds, and the work done in them

    @cached_property
    def jobs(self) -> dict[str, tuple[float, float]]:
        """By title: the work and the limit."""
        return self._measure()

    def left(
        self, title: str, seconds: float, share: float, rest: float, earlier: float = 0.0
    ) -> tuple[float, float]:
        """Seconds until this job ends, and until all of the plan do.

        Args:
            title: of the job.
            seconds: since it was begun or resumed.
            share: of it that was done in these seconds.
            rest: share of it that is still to be done.
            earlier: seconds that it had taken when it was resumed.
        """
        work, limit = self.jobs[title]
        self.spent[title] = seconds, share * work
        own = min(seconds * rest / share if share else float("inf"), max(0.0, limit - earlier - seconds))
        total, done = (sum(values) for values in zip(*self.spent.values(), strict=True))
        rate = total / done if done else float("inf")
        later = list(self.jobs.values())[list(self.jobs).index(title) + 1 :]
        return own, own + sum(min(work * rate, limit) for work, limit in later)


class Reporter:
    """Prints messages and progress to standard error, which leaves standard output free for results.

    Args:
        quiet: print nothing, for all processes but the first of a group and for callers that want no output. None is
            quiet if the environment variable VQVAE2_QUIET is set and not empty.
    """

    def __init__(self, quiet: bool | None = None) -> None:
        quiet = bool(os.environ.get("VQVAE2_QUIET")) if quiet is None else quiet
        self.quiet = quiet
        self.plan: Plan | None = None
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True, emoji=False)

    @classmethod
    def of_process(cls, main: bool) -> Reporter:
        """One for a command that several processes run: all but the main one are quiet."""
        return cls(quiet=None if main else True)

    def say(self, text: str) -> None:
        """Print one line; control characters are shown as escapes."""
        if not self.quiet:
            with self.listening():
                self.console.print(printable(text), markup=False)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Be quiet from now on if what is printed in the block cannot be written."""
        try:
            yield
        except OSError:
            self.quiet = self.console.quiet = True

    def track(
        self, title: str, total: int, done: int = 0, unit: str = "steps", earlier: float = 0.0
    ) -> Tracker:
        """A context manager that shows the progress of a job.

        Args:
            title: name of the job.
            total: number of units of the whole job.
            done: units that were done before, when the job is resumed; they do not count for the rate.
            unit: name of a unit, in the plural.
            earlier: seconds that these took, which count for the time after which the job ends in any case.
        """
        return Tracker(self, title, total, done, unit, earlier)


class Tracker:
    """The progress of one job, which `Reporter.track` makes; a line every 20 seconds where there is no terminal.

    Attributes:
        total: number of units; may be corrected when it becomes known later.
        done: units done so far.
    """

    def __init__(
        self, reporter: Reporter, title: str, total: int, done: int, unit: str, earlier: float
    ) -> None:
        self.reporter, self.title, self.total, self.unit = reporter, title, total, unit
        self.earlier = earlier
        self.begin, self.done = done, done
        self.started = self.ticked = time.monotonic()
        self.last_line = self.started - _LINE_SECONDS + _FIRST_SECONDS
        self.text = ""
        self.bar: Progress | None = None
        if reporter.console.is_terminal and not reporter.quiet:
            self.bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}", markup=False),
                TextColumn("{task.fields[rate]}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}", markup=False),
                console=reporter.console,
                transient=False,
            )
            self.task = self.bar.add_task(
                printable(title), total=total, completed=done, unit=unit, rate="", text=""
            )

    def __enter__(self) -> Tracker:
        if self.bar:
            with self.reporter.listening():
                self.bar.start()
            if self.reporter.quiet:
                self.bar = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.reporter.listening():
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
        self.done, self.text = done, text
        now = self.ticked = time.monotonic()
        rate = (done - self.begin) / max(now - self.started, 1e-9)
        shown = f"{rate * scale:.1f} {scaled_unit or self.unit}/s"
        left = 0.0 if done >= self.total else (self.total - done) / rate if rate else float("inf")
        whole = ""
        plan = self.reporter.plan
        if (
            plan is not None
            and now - self.started >= _FIRST_SECONDS
            and self.title in plan.jobs
            and self.total
        ):
            share, rest = (done - self.begin) / self.total, max(0.0, 1 - done / self.total)
            left, everything = plan.left(self.title, now - self.started, share, rest, self.earlier)
            whole = f"{everything / 60:.1f} min for all"
        if self.bar:
            shown_text = f"{text}  {whole}".strip()
            with self.reporter.listening():
                self.bar.update(self.task, completed=done, total=self.total, rate=shown, text=shown_text)
        elif now - self.last_line >= _LINE_SECONDS or done >= self.total:
            self.last_line = now
            ahead = f"{left / 60:.1f} min left" + (f" ({whole})" if whole else "")
            self.reporter.say(f"{self.title}: {done}/{self.total} {self.unit}, {shown}, {ahead}  {text}")

    def tick(self, done: int, scale: float = 1.0, scaled_unit: str | None = None) -> None:
        """As `update` with the text of the last one, at most once a second; cheap enough for every step."""
        if time.monotonic() - self.ticked >= _TICK_SECONDS:
            self.update(done, self.text, scale, scaled_unit)


def duration(seconds: float) -> str:
    """Words for a time: 40 s, 2.5 min, 12 min, 3.5 h, 4 days, 3 years."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.{0 if seconds >= 600 else 1}f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    days = seconds / 86400
    return f"{days:.0f} days" if days < 1000 else f"{days / 365:,.0f} years"
