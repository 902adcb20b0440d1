"""The processes that `torchrun` starts for one command: how they share work, wait for each other, and end together.

launched()  how many processes there are, and which one this is, before they have joined
Group       the same after they have joined, with what they do together
first_to_fail(), group_error()  one of them fails, all end, and one line is written
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
_GONE = ("closed by peer", "reset by peer", "Broken pipe", "remote process exit")  # of gloo and NCCL


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
            import torch
            from torch import distributed as dist

            # without being told, NCCL may take the card whose number is the rank, which is another one's on several machines
            cards = [torch.cuda.current_device()] if dist.get_backend() == "nccl" else None
            dist.barrier(device_ids=cards)

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
    return Group(*world())


def world() -> tuple[int, int]:
    """The rank of this process and the number of processes that have joined."""
    from torch import distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


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


def group_error(error: BaseException) -> str:
    """One sentence for an exception of the communication between the processes; "" for any other one, and without `torchrun`.

    What says that another process no longer answers is told from what keeps the processes from working together at all, such as a card
    that two of them were given, or too little shared memory in a container.
    """
    if launched()[1] == 1 or not isinstance(error, RuntimeError):
        return ""
    from torch import distributed as dist

    text = str(error)
    if isinstance(error, dist.DistNetworkError) or any(sign in text for sign in _GONE):
        return "another process of this command ended; the same command goes on where it stopped"
    if not isinstance(error, dist.DistError) and not any(library in text for library in ("gloo", "NCCL")):
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines.index("Last error:") + 1 if "Last error:" in lines else len(lines)
    told = dict.fromkeys([*lines[:1], *lines[last : last + 1]])
    return f"the processes cannot work together: {'; '.join(told)}"
