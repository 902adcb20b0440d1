"""Names of temporary files, and the removal of those that a killed process left behind.

A file that is being written is named `.NAME.HOST-PID.tmp`, beside its final name. The name says which process writes it,
so that another one can find out whether it is still needed.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from vqvae2.files.process import Process, host

_OURS = re.compile(
    r"\..+\.(?:(?P<host>[\w-]+)-)?(?P<pid>\d+)(?:-\w+)?\.tmp"
)  # earlier versions wrote no host
_LONGEST = 255  # bytes of a name, on the usual file systems
_OLD = 600.0  # seconds without a write after which a file of another machine is taken to be left behind


def temporary_name(path: Path) -> Path:
    """The name under which this process writes `path`; in the same folder, so that it can be renamed.

    Where it would be too long for a file system that takes `path`, the beginning and a digest stand for the name.
    """
    name, end = os.fsencode(path.name), f".{host()}-{os.getpid()}.tmp"
    room = _LONGEST - 1 - len(os.fsencode(end))
    short = f"{name[: room - 17].decode('utf-8', 'ignore')}-{hashlib.sha256(name).hexdigest()[:16]}"
    return path.with_name(f".{path.name if len(name) <= room else short}{end}")


def is_temporary_name(temporary: str, name: str) -> bool:
    """Whether `temporary` is a name under which some process writes the file `name`; earlier versions wrote no host."""
    pattern = rf"\.{re.escape(name)}\.(?:[\w-]{{1,32}}-)?[0-9]{{1,20}}\.tmp"
    return re.fullmatch(pattern, temporary, re.ASCII) is not None


def sweep(folder: Path, *, below: bool = False) -> list[Path]:
    """Remove the temporary files in a folder whose process is gone; links are not followed.

    A folder that holds `next.json` is left alone: it names temporary files that are whole and only have to be renamed
    (`data/store.py`).

    A file of this machine is removed if its process does not run. A file of another machine, or one that names none, is
    removed if it was not written to for ten minutes.

    Args:
        folder: need not exist.
        below: also in all folders below it.

    Returns:
        What was removed.
    """
    return [path for path in _candidates(folder, below) if _left_behind(path) and _removed(path)]


def _candidates(folder: Path, below: bool) -> Iterable[Path]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    whole = any(entry.name == "next.json" for entry in entries)
    for entry in entries:
        if below and entry.is_dir(follow_symlinks=False):
            yield from _candidates(Path(entry.path), below)
        elif not whole and entry.name.endswith(".tmp") and entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


def _left_behind(path: Path) -> bool:
    match = _OURS.fullmatch(path.name)
    if match is None:
        return False
    of_here = match["host"] in (None, host())
    if of_here and not Process(host(), int(match["pid"])).running():
        return True
    if match["host"] == host():
        return False
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > _OLD
    return False


def _removed(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True
