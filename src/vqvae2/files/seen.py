"""Whether all processes of a command see the same files, which may be on a file system that several machines share."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from vqvae2.errors import UserError
from vqvae2.files.process import host
from vqvae2.processes import joined

_PATIENCE = 90.0  # seconds; NFS keeps for up to 60 that a file does not exist
_POLL = 0.5  # seconds between two looks


class NotSeen(UserError):
    """A process does not see what another one sees; nothing is wrong with the files."""


def await_seen(files: Iterable[Path]) -> None:
    """Return when this process sees files that another process has written.

    Raises:
        NotSeen: it still does not after a while.
    """
    end = time.monotonic() + _PATIENCE
    for file in files:
        while not file.exists():
            if time.monotonic() > end:
                raise NotSeen(
                    f"process {joined().rank} does not see {file}, which another one has written: it must be on a file system "
                    "that all processes see; run the same command again"
                )
            time.sleep(_POLL)


def check_same(found: str, place: str | Path) -> None:
    """Compare in words what the processes found on the disk; a collective.

    Args:
        found: what is compared.
        place: where this process found it, for the message: the same folder may have another path on each machine.

    Raises:
        NotSeen: one of them found something else than the main process; raised in all of them.
    """
    first, *others = joined().gathered((host(), found, str(place)))
    for rank, (machine, other, there) in enumerate(others, 1):
        if other != first[1]:
            raise NotSeen(
                f"process {rank} on {machine} sees {other} in {there}, and the main process on {first[0]} sees {first[1]} in "
                f"{first[2]}; all processes must see the same files"
            )
