"""Batches on the device before they are needed: made in a background thread, copied while the device computes.

    batches (host) --thread, pinned memory--> queue --copy stream--> device

Batches keep their order and their values: this only moves them. Pixels travel as uint8 or int16 and codes as 16 bits; the
objective scales or widens them on the device.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor

Batch = Any
"""A tensor whose first axis is the batch, or a tuple of batches."""

_DEPTH = 3  # batches made ahead of the one that is being copied (our decision)


class Feed:
    """Iterates over batches on `device`; a context manager, whose end stops the thread.

    One batch is always on its way: asking for a batch starts the copy of the following one on a stream of its own, so that
    it runs under the work that the caller launches next.

    Args:
        batches: batches in host memory. Only the background thread iterates over them.
        device: where they go. On a CPU they are handed on as they are.
        pinned: whether they go to a CUDA card from pinned memory, one ahead; otherwise each goes when it is asked for.

    Raises:
        Exception: whatever making a batch raised, when that batch is asked for.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device, pinned: bool = True) -> None:
        self.batches, self.device = batches, device
        self.pinned = pinned and device.type == "cuda"
        self.copying = torch.cuda.Stream(device) if self.pinned else None
        self.free = threading.Semaphore(_DEPTH)
        self.made: queue.SimpleQueue[tuple[Batch, BaseException | None]] = queue.SimpleQueue()
        self.stopping = threading.Event()
        self.ahead: tuple[Batch, Any] | None = None
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._make, name="batches", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.free.release()
        self.thread.join()
        self.ahead = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self.copying is None:
            return self._take()
        batch, copied = self.ahead or self._copy()
        torch.cuda.current_stream(self.device).wait_event(copied)
        for tensor in tensors(batch):
            tensor.record_stream(torch.cuda.current_stream(self.device))
        self.ahead = None
        return batch

    def fetch_ahead(self) -> None:
        """Start the copy of the following batch now, while the device works; an error waits until it is asked for."""
        if self.copying is not None and self.ahead is None and self.failure is None:
            try:
                self.ahead = self._copy()
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self.failure = error

    def _copy(self) -> tuple[Batch, Any]:
        """The next batch, its copy under way, and the event that says when it is there."""
        batch = self._take()
        assert self.copying is not None
        with torch.cuda.stream(self.copying):
            there = mapped(batch, lambda tensor: tensor.to(self.device, non_blocking=True))
            copied = torch.cuda.Event()
            copied.record(self.copying)
        return there, copied

    def _take(self) -> Batch:
        if self.failure is not None:
            raise self.failure
        batch, self.failure = self.made.get()
        if self.failure is not None:
            raise self.failure
        self.free.release()
        if self.pinned or self.device.type == "cpu":
            return batch
        return mapped(batch, lambda tensor: tensor.to(self.device))

    def _make(self) -> None:
        """The background thread."""
        try:
            while True:
                self.free.acquire()
                if self.stopping.is_set():
                    return
                batch = next(self.batches)
                self.made.put((mapped(batch, Tensor.pin_memory) if self.pinned else batch, None))
        except BaseException as error:  # the caller raises it, in its own thread
            self.made.put((None, error))
        finally:
            close = getattr(self.batches, "close", None)
            if close is not None:
                close()


def mapped(batch: Batch, function: Any) -> Batch:
    """The batch with a function applied to each of its tensors."""
    if isinstance(batch, Tensor):
        return function(batch)
    return tuple(mapped(item, function) for item in batch)


def tensors(batch: Batch) -> Iterator[Tensor]:
    """The tensors of a batch, in order."""
    if isinstance(batch, Tensor):
        yield batch
    else:
        for item in batch:
            yield from tensors(item)


def parts(batch: Batch, count: int) -> list[tuple[float, Batch]]:
    """Cut a batch into at most `count` parts along its first axis, each with its share of the whole."""
    size = len(next(tensors(batch)))
    count = min(count, size)
    if count == 1:
        return [(1.0, batch)]
    sizes = [len(part) for part in torch.arange(size).tensor_split(count)]
    starts = [sum(sizes[:index]) for index in range(count)]
    return [
        (length / size, mapped(batch, lambda tensor, a=start, b=start + length: tensor[a:b]))
        for start, length in zip(starts, sizes, strict=True)
    ]
