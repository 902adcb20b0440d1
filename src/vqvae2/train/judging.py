"""Which held-out images an evaluation looks at, and in which batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vqvae2.config.training import TrainConfig
from vqvae2.data.batches import spread

T = TypeVar("T")


class HeldOut:
    """The held-out images of one stage.

    Args:
        images: indices [n] of all of them.
        config: of the stage's training.
    """

    def __init__(self, images: NDArray[np.int64], config: TrainConfig) -> None:
        self.images, self.config = images, config
        self._poll: Callable[[], None] = _nothing
        self._whole = False

    @property
    def chosen(self) -> NDArray[np.int64]:
        """Indices of those to look at: `evaluate_on` of them, evenly spread and always the same, or all."""
        limit = 0 if self._whole else self.config.evaluate_on
        return spread(self.images, limit) if limit else self.images

    def size(self, processes: int) -> int:
        """Images in a batch of one process: at most as many as a part of a training step holds, whose gradients take more."""
        return max(1, -(-self.config.batch // (processes * self.config.accumulate)))

    def polled(self, batches: Iterable[T], images: int, processes: int) -> Iterator[T]:
        """This process's batches of at most `size`, which are its share of so many images.

        Before each it asks whether to stop, a collective; so a process with fewer batches than another one asks as often.
        """
        rounds, rest = -(-images // (processes * self.size(processes))), iter(batches)
        for _ in range(rounds):
            self._poll()
            yield from [batch for batch in [next(rest, None)] if batch is not None]

    @contextmanager
    def asking(self, poll: Callable[[], None], whole: bool = False) -> Iterator[None]:
        """Within the block, evaluations call `poll` between batches.

        Args:
            poll: raises an exception to end the evaluation, on every process alike.
            whole: whether to look at all images, whatever `evaluate_on` says.
        """
        self._poll, self._whole = poll, whole
        try:
            yield
        finally:
            self._poll, self._whole = _nothing, False


def _nothing() -> None:
    pass
