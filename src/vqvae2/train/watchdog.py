"""One of several processes that stands still lets the others wait in a collective, for 12 hours; this ends them earlier."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Self

from vqvae2.files.process import host
from vqvae2.processes import joined

_LIMIT = 1800.0  # seconds without a step after which a process ends, at the earliest (our decision)
_TIMES = 10  # as long as the longest step so far, it may stand still
_TICK = 10.0  # seconds between two looks


class Watchdog:
    """A thread that ends this process if its training stands still; a context manager. A process alone is not watched.

    Time in which this process is stopped (SIGSTOP, a suspended machine) does not count, because the thread stands still too.

    Args:
        what: the name of the training.
        end: ends the process after one line.
    """

    def __init__(self, what: str, end: Callable[[str], None] | None = None) -> None:
        self.what, self.end = what, end or _end
        self.watching = False
        self.step, self.doing, self.first = 0, "", -1
        self.waited = self.longest = 0.0
        self.compiled = 0.0  # the longest wait of the first step, which says something of the second one only
        self._over = threading.Event()

    def __enter__(self) -> Self:
        if joined().count > 1:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.watching = False

    def at(self, step: int, doing: str) -> None:
        """The training goes on.

        Args:
            step: steps done. The first one of a sitting may take any time, because networks are compiled in it.
            doing: what this process does now, or waits for.
        """
        self.first = step if self.first < 0 else self.first
        self._stop_counting()
        self.step, self.doing, self.watching = step, doing, True

    def rest(self) -> None:
        """What comes until the next `at` may take any time."""
        self._stop_counting()
        self.watching = False

    def _stop_counting(self) -> None:
        if self.step > self.first:
            self.longest = max(self.longest, self.waited)
        else:
            self.compiled = max(self.compiled, self.waited)
        self.waited = 0.0

    def passed(self, seconds: float) -> None:
        """So many seconds have passed since the last call."""
        self.waited = self.waited + seconds if self.watching else 0.0
        compiled = self.compiled if self.step == self.first + 1 else 0.0
        limit = max(_LIMIT, _TIMES * max(self.longest, compiled))
        if self.waited >= limit and self.step > self.first:
            self.end(
                f"{self.what}: process {joined().rank} on {host()} has stood still for {limit / 60:.0f} minutes after step "
                f"{self.step:,}, {self.doing}, and ends; the same command goes on from the saved state"
            )

    def _watch(self) -> None:
        while not self._over.wait(_TICK):
            self.passed(_TICK)


def _end(line: str) -> None:
    """At once: the main thread waits in a collective, where no exception reaches it; torchrun then ends the other processes."""
    sys.stderr.write(f"vqvae2: {line}\n")
    sys.stderr.flush()
    os._exit(1)
