"""Worker processes that decode images ahead of the caller."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from vqvae2.config.models import DataConfig
from vqvae2.data.decoding import Decoded, decode_many
from vqvae2.data.handover import Parcel, dropped, opened, packed
from vqvae2.data.listing import Payload
from vqvae2.data.pixels import Pixels

_Sent = tuple[Pixels | Parcel, list[str | None], Counter[str]]


class Decoder:
    """Decodes lists of encoded images in order, ahead of the caller, in worker processes once `start` was called.

    Several threads may use one decoder: training reads in one thread while the main thread evaluates.

    Args:
        config: says how images are decoded, and with `workers` by how many processes; -1 takes one process for each
            core that this process may use, divided among the training processes of this machine.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.count = _cores() if config.workers < 0 else config.workers
        self.pool: ProcessPoolExecutor | None = None
        self.lock = threading.Lock()

    def map(self, tasks: Iterable[Sequence[Payload | None]]) -> Iterator[Decoded]:
        """`decode_many` of each task, in order; up to two tasks per worker are under way."""
        waiting: deque[tuple[Sequence[Payload | None], Future[_Sent] | None]] = deque()
        try:
            for task in tasks:
                waiting.append((task, self._submit(task)))
                while waiting and (waiting[-1][1] is None or len(waiting) > 2 * self.count):
                    yield self._result(*waiting.popleft())
            while waiting:
                yield self._result(*waiting.popleft())
        finally:  # of a caller that needs no more
            for _, future in waiting:
                if future is not None:
                    future.add_done_callback(_drop)

    def start(self) -> None:
        """Use worker processes from now on (none when config.workers is 0)."""
        with self.lock:
            if self.pool is None and self.count:
                context = multiprocessing.get_context("spawn")
                self.pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_start_worker)

    def close(self) -> None:
        """End the worker processes."""
        with self.lock:
            pool, self.pool = self.pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, task: Sequence[Payload | None]) -> Future[_Sent] | None:
        pool = self.pool
        if pool is None:
            return None
        try:
            return pool.submit(_decode, task, self.config)
        except RuntimeError:  # broken, or just shut down by another thread that found it broken
            self._without()
            return None

    def _result(self, task: Sequence[Payload | None], future: Future[_Sent] | None) -> Decoded:
        if future is not None:
            try:
                pixels, reasons, remarks = future.result()
                return Decoded(opened(pixels), reasons, remarks)
            except (BrokenProcessPool, CancelledError):
                self._without()
        return decode_many(task, self.config)

    def _without(self) -> None:
        """The worker processes died (a script without a main guard, too little memory): decode in this process."""
        self.count = 0
        self.close()


def _decode(task: Sequence[Payload | None], config: DataConfig) -> _Sent:
    """`decode_many` in a worker."""
    pixels, reasons, remarks = decode_many(task, config)
    return packed(pixels), reasons, remarks


def _drop(future: Future[_Sent]) -> None:
    """Give back what a worker sent and nobody took."""
    if not future.cancelled() and future.exception() is None:
        dropped(future.result()[0])


def _cores() -> int:
    """The cores that this process may use, divided among the processes that `torchrun` started on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _start_worker() -> None:
    """Leave Ctrl-C and the end of the terminal to the parent, and end when the parent does."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: Any) -> None:
    parent.join()
    os._exit(1)
