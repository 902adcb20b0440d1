"""Long work of the web page: it runs in one thread, one job after the other, and is asked how far it has come.

A job is a generator of steps. What it has made so far can be seen while it runs, and it can be stopped between two steps.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from vqvae2.errors import UserError

_WAITING = 4  # jobs that may wait; more are refused
_KEPT = 32  # jobs whose results are kept

Step = tuple[int, list[Any]]
"""How many units of the job are done, and what this step has made, JSON-ready."""


@dataclass
class Job:
    """One piece of work.

    Attributes:
        total: units of the whole job.
        done: units so far.
        results: what the steps have made so far.
        state: "waiting", "running", "done", "stopped" or "failed".
        error: one line, if it failed.
    """

    total: int
    done: int = 0
    results: list[Any] = field(default_factory=list)
    state: str = "waiting"
    error: str = ""
    stop: bool = False

    def to_json(self) -> dict[str, Any]:
        """What the page is told."""
        return {
            "state": self.state,
            "done": self.done,
            "total": self.total,
            "results": self.results,
            "error": self.error,
        }


class Jobs:
    """Runs jobs one after the other in a thread.

    Attributes:
        lock: held during each step; whoever else uses the model takes it too.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, "vqvae2-job")
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    def start(self, total: int, steps: Callable[[], Iterator[Step]]) -> str:
        """Start a job as soon as the ones before it are done.

        Args:
            total: how many units it has.
            steps: makes the generator; called in the thread.

        Returns:
            The name of the job.

        Raises:
            UserError: too many jobs wait.
        """
        if sum(job.state in ("waiting", "running") for job in self._jobs.values()) > _WAITING:
            raise UserError("other work is still waiting; try again when it is done")
        name, job = secrets.token_urlsafe(8), Job(total)
        self._jobs[name] = job
        while len(self._jobs) > _KEPT:
            self._jobs.popitem(last=False)
        self._pool.submit(self._run, job, steps)
        return name

    def find(self, name: str) -> Job:
        """A job by its name.

        Raises:
            UserError: there is none, or it is long gone.
        """
        if name not in self._jobs:
            raise UserError("no such job; it may be long gone")
        return self._jobs[name]

    def close(self) -> None:
        """Stop all jobs after their present step."""
        for job in self._jobs.values():
            job.stop = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, job: Job, steps: Callable[[], Iterator[Step]]) -> None:
        job.state = "running"
        try:
            made = steps()
            while not job.stop:
                with self.lock:
                    step = next(made, None)
                if step is None:
                    break
                job.done, results = step
                job.results += results
            job.state = "stopped" if job.stop and job.done < job.total else "done"
        except UserError as error:
            job.state, job.error = "failed", " ".join(str(error).split())
        except Exception as error:  # the page must be told, and the next job must run
            logging.getLogger(__name__).exception("a job failed")
            job.state, job.error = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
