"""Which process on which machine: what a lock file and the name of a temporary file say of who made them."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

_CLOCK = (
    60.0  # seconds by which two readings of a process's start may differ, because the machine's clock was set
)


@dataclass(frozen=True)
class Process:
    """A process, as another one can recognise it.

    Attributes:
        host: name of the machine.
        pid: number of the process.
        started: when it started, in seconds since 1970 as its machine measures it; 0.0 = unknown. A later process may have
            the same number, but not the same start.
        space: in which numbering of processes `pid` counts (on Linux, the name of its namespace): two containers may have
            the same host name and number their processes from 1 each.
    """

    host: str
    pid: int
    started: float = 0.0
    space: str = ""

    @classmethod
    def own(cls) -> Process:
        """This process."""
        pid = os.getpid()
        return cls(host(), pid, _started(pid) or 0.0, _space())

    @classmethod
    def from_json(cls, value: Any) -> Process | None:
        """What `to_json` gave; None if it is something else."""
        match value:
            case {
                "host": str(host),
                "pid": int(pid),
                "started": int() | float() as started,
                "space": str(space),
            }:
                return cls(host, pid, float(started), space)
        return None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def near(self) -> bool:
        """Whether it runs, or ran, where this process runs, so that `running` is certain."""
        return self.host == host() and self.space == _space()

    def running(self) -> bool:
        """Whether a near process still runs."""
        started = _started(self.pid)
        return started is not None and (not self.started or abs(started - self.started) < _CLOCK)


def host() -> str:
    """The name of this machine, of at most 32 characters that may stand in file names and messages."""
    return re.sub(r"[^\w-]", "-", socket.gethostname(), flags=re.ASCII)[:32] or "unknown"


def _started(pid: int) -> float | None:
    """When the process started; None if there is none of this number."""
    with suppress(psutil.Error, OSError, OverflowError, ValueError):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return float(process.create_time())
    return None


def _space() -> str:
    with suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""
