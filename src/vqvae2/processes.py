"""The processes that `torchrun` starts for one command: how they share work, wait for each other, and end together.

launched()  how many processes there are, and which one this is, before they have joined
Group       the same after they have joined, with what they do together
first_to_fail(), another_ended()    one of them fails, all end, and one line is written
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

_PATIENCE = 5.0  # seconds in which the main process has said what it has to say
_KEY = "vqvae2/first to fail"


@dataclass(frozen=True)
class Group:
    """The processes of one command; by default this process alone. Its methods but `share` are collectives: all processes call them.

    Attributes:
        rank: number of this process, 0 for the main one.
        count: how many processes there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the main process, which writes what is written once."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when every process has called this."""
        if self.count > 1:
            from torch import distributed as dist

            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process runs the block first, then the others do, who find on the disk what it has made.

        If the block fails in the main process, the others run it all the same, and find the same mistake.
        """
        if not self.main:
            self.wait()
        try:
            yield
        except Exception:
            if self.main:
                self.wait()
            raise
        if self.main:
            self.wait()

    def agreed(self, value: T) -> T:
        """The main process's value, on every process; it must be possible to pickle it."""
        if self.count == 1:
            return value
        from torch import distributed as dist

        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def gathered(self, value: T) -> list[T]:
        """The values of all processes in the order of their ranks, on every process; it must be possible to pickle them."""
        if self.count == 1:
            return [value]
        from torch import distributed as dist

        values: list[T] = [value] * self.count
        dist.all_gather_object(values, value)
        return values

    def share(self, items: list[T]) -> list[T]:
        """Every `count`-th item, from item `rank` on; no process waits here."""
        return items[self.rank :: self.count]


def joined() -> Group:
    """The process group that this process has joined, or this process alone."""
    from vqvae2.noise import world  # it loads torch

    return Group(*world())


def launched() -> tuple[int, int]:
    """This process's rank and the number of processes, as `torchrun` says in the environment; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def first_to_fail() -> bool:
    """Whether this process is the first of its group to call this, and so the one that says why the command ends.

    Before the processes have joined, it is the main one. A process whose group can no longer be asked counts as the first,
    so that a failure is never passed over in silence.
    """
    rank, count = launched()
    if count == 1:
        return True
    from torch import distributed as dist
    from torch.distributed import distributed_c10d

    if not (dist.is_available() and dist.is_initialized()):
        if rank:
            time.sleep(
                _PATIENCE
            )  # torchrun ends the main process when this one has ended, which may be too early
        return rank == 0
    try:
        store = distributed_c10d._get_default_store()
        return bool(store.compare_set(_KEY, "", str(rank)).decode() == str(rank))
    except (RuntimeError, ValueError, AttributeError):
        return True


def another_ended(error: BaseException) -> bool:
    """Whether an exception says that a process of the group no longer answers."""
    if launched()[1] == 1 or not isinstance(error, RuntimeError):
        return False
    from torch import distributed as dist

    text = str(error)
    signs = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, dist.DistError) or any(sign in text for sign in signs)
