"""Worker processes that decode images ahead of the caller."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, NamedTuple

from vqvae2.config.models import DataConfig
from vqvae2.data.decoding import Decoded, decode_many
from vqvae2.data.handover import Parcel, dropped, opened, packed
from vqvae2.data.listing import Payload
from vqvae2.data.pixels import Pixels
from vqvae2.files.progress import Reporter
from vqvae2.processes import launched
from vqvae2.stopping import SIGNALS

_RESTARTS = 3  # times that workers which died are replaced

_Sent = tuple[Pixels | Parcel, list[str | None], Counter[str]]


class _Worker(SpawnProcess):
    """A process that a pool can end although it ignores SIGTERM: a pool one of whose workers died ends the others."""

    def terminate(self) -> None:
        """As `kill`."""
        self.kill()


class _Context(SpawnContext):
    """Starts such processes."""

    Process = _Worker


class _Task(NamedTuple):
    """A list of encoded images, and the answer that a pool of workers owes; None for both if this process decodes them."""

    payloads: Sequence[Payload | None]
    future: Future[_Sent] | None = None
    pool: ProcessPoolExecutor | None = None


class Decoder:
    """Decodes lists of encoded images in order, ahead of the caller, in worker processes once `start` was called.

    Several threads may use one decoder: training reads in one thread while the main thread evaluates. When a worker dies, for
    want of memory for example, the others end too; half as many are started, three times at most. Then, or when they died before
    they decoded anything, as those of a script without a main guard do, this process decodes alone.

    Args:
        config: says how images are decoded, and with `workers` by how many processes; -1 takes one process for each
            core that this process may use, divided among the training processes of this machine.
        say: called with one line of text when workers died; None says nothing.
    """

    def __init__(self, config: DataConfig, say: Callable[[str], None] | None = None) -> None:
        self.config, self.say = config, say
        self.count = _cores() if config.workers < 0 else config.workers
        self.pool: ProcessPoolExecutor | None = None
        self.lock = threading.Lock()
        self.served, self.deaths = False, 0

    def map(self, tasks: Iterable[Sequence[Payload | None]]) -> Iterator[Decoded]:
        """`decode_many` of each task, in order; up to two tasks per worker are under way."""
        waiting: deque[_Task] = deque()
        try:
            for task in tasks:
                waiting.append(self._submit(task))
                while waiting and (waiting[-1].future is None or len(waiting) > 2 * self.count):
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)
        finally:  # of a caller that needs no more
            for left in waiting:
                if left.future is not None:
                    left.future.add_done_callback(_drop)

    def start(self) -> None:
        """Use worker processes from now on (none when config.workers is 0)."""
        with self.lock:
            if self.pool is None and self.count:
                self.pool = ProcessPoolExecutor(self.count, mp_context=_Context(), initializer=_start_worker)

    def close(self) -> None:
        """End the worker processes."""
        with self.lock:
            pool, self.pool = self.pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, payloads: Sequence[Payload | None]) -> _Task:
        pool = self.pool
        if pool is None:
            return _Task(payloads)
        try:
            return _Task(payloads, pool.submit(_decode, payloads, self.config), pool)
        except RuntimeError:  # broken, or just shut down by another thread that found it broken
            self._lost(pool)
            return _Task(payloads)

    def _next(self, waiting: deque[_Task]) -> Decoded:
        """The result of the first task that waits. If its workers died, it is decoded here, and others decode what they left."""
        payloads, future, pool = waiting.popleft()
        if future is not None:
            try:
                pixels, reasons, remarks = future.result()
                self.served = True
                return Decoded(opened(pixels), reasons, remarks)
            except (BrokenProcessPool, CancelledError):
                self._lost(pool)
            again = [
                task if task.pool is not pool or _answered(task) else self._submit(task.payloads)
                for task in waiting
            ]
            waiting.clear()
            waiting.extend(again)
        return decode_many(payloads, self.config)

    def _lost(self, pool: ProcessPoolExecutor | None) -> None:
        """The workers of a pool died, or another thread ended it, which then has seen to the rest."""
        with self.lock:
            found = pool is not None and self.pool is pool
            if found:
                self.pool, self.deaths = None, self.deaths + 1
                self.count = max(1, self.count // 2) if self.served and self.deaths <= _RESTARTS else 0
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        if found:
            self.start()
            left = (
                f"{self.count} take their place"
                if self.count
                else "this process decodes alone, which is slower"
            )
            self._report(f"processes that decode images died, perhaps for want of memory: {left}")

    def _report(self, text: str) -> None:
        """Say a line, of the other processes of `torchrun` too, whose reporters are quiet: any of them holds up all."""
        if rank := launched()[0]:
            Reporter().say(f"process {rank}: {text}")
        elif self.say is not None:
            self.say(text)


def _decode(task: Sequence[Payload | None], config: DataConfig) -> _Sent:
    """`decode_many` in a worker."""
    pixels, reasons, remarks = decode_many(task, config)
    return packed(pixels), reasons, remarks


def _answered(task: _Task) -> bool:
    """Whether its worker decoded it, or found why that cannot be; waits for that."""
    try:
        return task.future is None or not isinstance(task.future.exception(), BrokenProcessPool)
    except CancelledError:
        return False


def _drop(future: Future[_Sent]) -> None:
    """Give back what a worker sent and nobody took."""
    if not future.cancelled() and future.exception() is None:
        dropped(future.result()[0])


def _cores() -> int:
    """The cores that this process may use, divided among the processes that `torchrun` started on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _start_worker() -> None:
    """Leave to the parent what signals the whole group, as Ctrl-C, the end of the terminal and `torchrun` do; end when it does."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: Any) -> None:
    parent.join()
    os._exit(1)
