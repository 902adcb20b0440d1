"""Recording the work of a CUDA card as a graph, and what is left when the card refuses.

There are two ways to fail. An operation may raise while the recording itself can still be ended in order, as where the memory does not
suffice; then the card is as before. Or CUDA declares the recording invalid, as where the host reads a number in it. Then torch
cannot end it: its allocator goes on as if something were being recorded and never frees what several streams used, and its random numbers
may be refused. Nothing public undoes that, so this process must not go on to train on the card.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class RecordingLostError(RuntimeError):
    """The recording could not be ended; the message is the first line of what the card refused."""


@contextmanager
def recorded(graph: torch.cuda.CUDAGraph, stream: Any, device: torch.device) -> Iterator[None]:
    """Record what is launched inside the block; nothing is computed meanwhile.

    Args:
        graph: is recorded.
        stream: on which is recorded; everything must have run on it once.
        device: whose present stream is current again afterwards, however recording ends.

    Raises:
        RecordingLostError: the recording was begun, or something in it was refused, and it could not be ended.
        RuntimeError: what the block raised; the recording was ended in order.
    """
    here = torch.cuda.stream(torch.cuda.current_stream(device))
    try:
        # other threads may allocate meanwhile, as the one that makes batches does when it pins memory
        with here, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            yield
    except RuntimeError as error:
        if _ended(graph):
            raise
        raise RecordingLostError(first_line(error.__context__ or error)) from error


def _ended(graph: torch.cuda.CUDAGraph) -> bool:
    """Whether a recording was ended in order; only then does it tell its pool of memory."""
    try:
        graph.pool()
    except RuntimeError:
        return False
    return True


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "unknown error"
