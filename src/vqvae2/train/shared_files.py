"""Files that one process of a training has written, and that the processes on other machines see later."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from vqvae2.processes import joined
from vqvae2.train.device import TrainingError

_PATIENCE = 90.0  # seconds; NFS keeps for up to 60 that a file does not exist
_POLL = 0.5  # seconds between two looks


def await_seen(files: Iterable[Path]) -> None:
    """Return when this process sees files that the main process sees.

    Raises:
        TrainingError: it still does not after a while.
    """
    end = time.monotonic() + _PATIENCE
    for file in files:
        while not file.exists():
            if time.monotonic() > end:
                raise TrainingError(
                    f"process {joined().rank} does not see {file}, which the first one does: RUN must be on a file system "
                    "that all processes see; run the same command again"
                )
            time.sleep(_POLL)
