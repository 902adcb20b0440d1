"""Long work of the web page: it runs in one thread, one job after the other, and is asked how far it has come.

A job is a generator of steps. What it has made so far can be seen while it runs, and it can be stopped between two steps.
"""

from __future__ import annotations

import json
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
_KEPT = 32  # jobs that are remembered
_MOST = 512 * 2**20  # bytes of the results that are kept, of all jobs together

Step = tuple[int, list[Any]]
"""How many units of the job are done, and what this step has made, JSON-ready."""


class FairLock:
    """A lock that goes to who has waited longest; `threading.Lock` may go to its last holder again and again."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._given = self._next = 0  # numbers: of who has the lock or takes it next, and of who asks next

    def __enter__(self) -> None:
        with self._changed:
            own, self._next = self._next, self._next + 1
            self._changed.wait_for(lambda: self._given == own)

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._given += 1
            self._changed.notify_all()


@dataclass
class Job:
    """One piece of work.

    Attributes:
        total: units of the whole job.
        done: units so far.
        results: what the steps have made so far, without the first `dropped`.
        bytes: of `results` as JSON.
        state: "waiting", "running", "done", "stopped" or "failed".
        error: one line, if it failed.
    """

    total: int
    done: int = 0
    results: list[Any] = field(default_factory=list)
    dropped: int = 0
    bytes: int = 0
    state: str = "waiting"
    error: str = ""
    stop: bool = False

    def drop(self) -> None:
        """Forget the results."""
        self.dropped, self.results, self.bytes = self.dropped + len(self.results), [], 0

    def to_json(self, first: int = 0) -> dict[str, Any]:
        """What the page is told; of the results those from number `first` on.

        Raises:
            UserError: they are no longer kept.
        """
        if first < self.dropped:
            raise UserError("the images of this job are no longer kept; start it again")
        return {
            "state": self.state,
            "done": self.done,
            "total": self.total,
            "results": self.results[first - self.dropped :],
            "error": self.error,
        }


class Jobs:
    """Runs jobs one after the other in a thread.

    Attributes:
        lock: held during each step; whoever else uses the model takes it too.
    """

    def __init__(self) -> None:
        self.lock = FairLock()
        self._own = threading.Lock()  # of the jobs and their results
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
        with self._own:
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
        job = self._jobs.get(name)
        if job is None:
            raise UserError("no such job; it may be long gone")
        return job

    def answer(self, name: str, first: int) -> dict[str, Any]:
        """As `Job.to_json`, of a job by its name."""
        with self._own:
            return self.find(name).to_json(first)

    def close(self) -> None:
        """Stop all jobs after their present step."""
        with self._own:
            for job in self._jobs.values():
                job.stop = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _keep(self, job: Job, done: int, results: list[Any]) -> None:
        """Add the results of a step, in place of those of the oldest other jobs if they are too many.

        Raises:
            UserError: the job alone makes too many.
        """
        size = len(json.dumps(results))
        with self._own:
            kept = job.bytes + size
            if kept > _MOST:
                raise UserError(f"its images take more than {_MOST // 2**20} MiB; ask for fewer")
            others = [other for other in self._jobs.values() if other is not job]
            for other in others:  # the oldest first; only those that are over have results
                if kept + sum(other.bytes for other in others) > _MOST:
                    other.drop()
            job.done, job.bytes = done, kept
            job.results += results

    def _run(self, job: Job, steps: Callable[[], Iterator[Step]]) -> None:
        job.state = "running"
        try:
            made = steps()
            while not job.stop:
                with self.lock:
                    step = next(made, None)
                if step is None:
                    break
                self._keep(job, *step)
            job.state = "stopped" if job.stop and job.done < job.total else "done"
        except UserError as error:
            job.state, job.error = "failed", " ".join(str(error).split())
        except Exception as error:  # the page must be told, and the next job must run
            logging.getLogger(__name__).exception("a job failed")
            job.state, job.error = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
