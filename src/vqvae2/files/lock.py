"""One command at a time writes into a folder: the file `.lock` in it names the host and the process of the command.

The file is created with O_CREAT and O_EXCL, which is atomic on local file systems and on NFS from version 3 on, so of
two commands that start together one is refused. It does not use the locks of the operating system (`flock`, `fcntl`), because
network file systems often lack them, or keep them on each machine for itself.

A lock is left behind by a process that is killed. It blocks nobody for long:

- On the same machine, the process is looked up by its number and its start. If it is gone, the lock is taken over at once.
- On another machine, that cannot be looked up. A living process touches its lock every 20 seconds. A lock that was
  not touched for two minutes, by the clock of the file system, is taken over. A command that finds a younger one waits
  until it is that old or is touched, because the job before it in a queue may have been killed a moment ago.
- Where no file can be written, nobody can tell how old such a lock is. A read-only file system needs no lock; elsewhere the
  command is refused at once.

What this cannot exclude: a process that is stopped for more than two minutes (SIGSTOP, a suspended machine, a file system
that hangs) loses its lock to another machine. It notices when it next calls `still_locked`.
"""

from __future__ import annotations

import errno
import functools
import inspect
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from vqvae2.errors import UserError
from vqvae2.files.process import Process, host
from vqvae2.files.temporary import sweep
from vqvae2.processes import launched

P = ParamSpec("P")
T = TypeVar("T")

NAME = ".lock"
_TOUCH = 20.0  # seconds between two touches of a lock that is held
_GONE = 120.0  # seconds without a touch after which a process of another machine is taken to be gone
_LOOK = 2.0  # seconds between two looks at the lock of another machine
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_BYTES = 4096  # of a lock file that are read, at most
_TRIES = 10  # of taking over a lock that others take over at the same time


class LockError(UserError):
    """Another command uses the folder, or this command has lost it."""


class Lock:
    """A folder that this process may write into; made by `locked`.

    Attributes:
        folder: the folder.
        held: whether there is a lock file of ours; False in a folder that nobody can write into.
    """

    def __init__(self, folder: Path, owner: Process, held: bool) -> None:
        self.folder, self.owner, self.held = folder, owner, held
        self.file = folder / NAME
        self.thread = threading.get_ident()
        self._ended = threading.Event()
        if held:
            threading.Thread(target=self._touch, name="lock", daemon=True).start()

    def check(self) -> None:
        """Raise unless the folder is still there and still locked by this process.

        Raises:
            LockError: the folder was removed, or another process has taken it over.
        """
        if not self.held:
            return
        found = _read(self.file)
        if found == self.owner:
            return
        if found is None:
            raise LockError(f"{self.folder} was removed or moved while it was written to: its work is lost")
        raise LockError(f"{self.folder} was taken over by {_who(found)} while this process stood still")

    def release(self) -> None:
        """Remove the lock file, if it is still ours."""
        self._ended.set()
        if self.held and _read(self.file) == self.owner:
            with suppress(OSError):
                self.file.unlink()

    def _touch(self) -> None:
        while not self._ended.wait(_TOUCH):
            with suppress(OSError):
                if _read(self.file) == self.owner:
                    os.utime(self.file)


_held: dict[Path, Lock] = {}  # by the resolved folder


@contextmanager
def locked(folder: str | Path) -> Iterator[Lock]:
    """Keep other commands from writing into a folder while the block runs.

    The folder is created. If it was not there and nothing was written into it, it is removed again. A folder on a read-only
    file system, or without the right to write into it, needs no lock and gets none. The thread that has locked a folder
    may lock it again. Of the processes that `torchrun` started, the first one locks the folder for all.

    Raises:
        LockError: another command uses the folder; the message names its host and process.
        UserError: the folder cannot be made, or the disk is full.
    """
    folder = Path(folder)
    if launched()[0] > 0:
        yield Lock(folder, Process.own(), held=False)
        return
    outer = _held.get(folder.resolve())
    if outer is not None and outer.thread == threading.get_ident():
        yield outer
        return
    made = _make(folder)
    place = folder.resolve()
    lock: Lock | None = None
    try:
        lock = _take(folder)
        _held[place] = lock
        yield lock
    finally:
        if lock is not None:
            del _held[place]
            lock.release()
        for path in made:
            with suppress(OSError):  # it holds something, or is gone
                path.rmdir()


def locks(argument: str, below: Sequence[str] = ()) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator of a function that writes into a folder: it runs with the folder locked, without the temporary files
    that a killed process left there, and ends with an error if the folder vanished meanwhile.

    Args:
        argument: name of the function's argument that is the folder, or "name.attribute".
        below: names of folders in it, in which and below which temporary files are removed too.
    """
    name, _, attribute = argument.partition(".")

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            value = signature.bind(*args, **kwargs).arguments[name]
            folder = Path(getattr(value, attribute) if attribute else value)
            with locked(folder) as lock:
                if lock.held:
                    for part in below:
                        sweep(folder / part, below=True)
                result = function(*args, **kwargs)
                lock.check()
                return result

        return wrapped

    return decorate


def still_locked(folder: str | Path) -> None:
    """Raise if this process has locked the folder and lost it; see `Lock.check`."""
    lock = _held.get(Path(folder).resolve())
    if lock is not None:
        lock.check()


def _make(folder: Path) -> list[Path]:
    """Make a folder; returns those that were not there, the innermost first."""
    from vqvae2.files.output import make_folder  # it loads torch

    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    return missing


def _take(folder: Path) -> Lock:
    owner, file = Process.own(), folder / NAME
    for _ in range(_TRIES):
        try:
            with suppress(FileExistsError):
                _create(file, owner)
                return Lock(folder, owner, held=True)
            _take_over(folder, file)
        except OSError as error:
            if error.errno in _READ_ONLY:
                return Lock(folder, owner, held=False)
            raise UserError(f"cannot write {file}: {error.strerror}") from None
    raise LockError(f"{folder} is being taken over by several commands at once; try again")


def _create(file: Path, owner: Process) -> None:
    """Write a lock file that is not there yet.

    Raises:
        FileExistsError: it is there.
        OSError: it cannot be written; nothing is left.
    """
    with file.open("x", encoding="utf-8") as opened:
        try:
            opened.write(json.dumps(owner.to_json()) + "\n")
            opened.flush()
            os.fsync(opened.fileno())
        except BaseException:
            with suppress(OSError):
                file.unlink()
            raise


def _take_over(folder: Path, file: Path) -> None:
    """Remove the lock of a process that is gone, so that it can be created anew.

    Raises:
        LockError: the process runs, or may run.
        OSError: the folder is only read here, and needs no lock.
    """
    owner = _read(file)
    near = owner is not None and owner.near()  # else it is of another machine, or not written yet
    try:
        age = _age(folder, file)
        if owner is not None and not near and age is not None and age <= _GONE:
            age = _watched(folder, file, owner, age)
            if age is not None and age <= _GONE:  # perhaps another one by now, whom the message names
                owner = _read(file) or owner
    except OSError as error:
        if not near and error.errno != errno.EROFS:
            raise LockError(
                f"{folder} is locked by {_who(owner)}, and whether it still runs cannot be told, because no file can be written there: "
                f"{error.strerror}"
            ) from None
        if error.errno in _READ_ONLY and (owner is None or not near or not owner.running()):
            raise
        age = 0.0
    if age is None:  # it was released meanwhile
        return
    in_use = age <= _GONE if owner is None or not near else owner.running()
    if in_use:
        seen = "" if near else f" (last seen {age:.0f} s ago; it counts as gone after {_GONE:.0f} s)"
        raise LockError(f"{folder} is in use by {_who(owner)}{seen}: wait for it, or use another folder")
    # Of several commands that found the same lock, one renames it; the name keeps the others from removing its successor.
    aside = file.with_name(f"{NAME}.{host()}-{os.getpid()}-t{threading.get_ident()}.tmp")
    try:
        with suppress(OSError):
            file.replace(aside)
            if _read(aside) != owner:  # already a successor's: give it back
                os.link(aside, file)
    finally:
        with suppress(OSError):
            aside.unlink()


def _watched(folder: Path, file: Path, owner: Process, age: float) -> float | None:
    """Wait until the lock of another machine shows whether its process lives; then its age, or None if it is gone."""
    from vqvae2.files.progress import Reporter  # it loads rich

    Reporter().say(
        f"{folder} was in use by {_who(owner)} {age:.0f} s ago: waiting for a sign of it, {_GONE - age:.0f} s at most"
    )
    touched, end = _touched(file), time.monotonic() + _GONE + _TOUCH
    while time.monotonic() < end and _touched(file) == touched and _read(file) == owner:
        time.sleep(_LOOK)
        now = _age(folder, file)
        if now is None or now > _GONE:
            return now
    return _age(folder, file)


def _touched(file: Path) -> int | None:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


def _age(folder: Path, file: Path) -> float | None:
    """Seconds since the lock was last touched, by the clock of its file system; None if it is gone.

    The clock is that of a file which is written now, because the clocks of two machines may differ by minutes.

    Raises:
        OSError: that file cannot be written.
    """
    probe = folder / f"{NAME}.{host()}-{os.getpid()}-now.tmp"
    try:
        touched = file.stat().st_mtime
    except OSError:
        return None
    try:
        probe.write_bytes(b"")
        now = probe.stat().st_mtime
    finally:
        with suppress(OSError):
            probe.unlink()
    return max(0.0, now - touched)


def _read(file: Path) -> Process | None:
    """Whom the lock file names; None if it is gone, not written yet or damaged. Links are not followed, nor pipes waited for."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        handle = os.open(file, flags)
        try:
            text = os.read(handle, _BYTES)
        finally:
            os.close(handle)
        return Process.from_json(json.loads(text))
    except (OSError, ValueError, RecursionError):
        return None


def _who(owner: Process | None) -> str:
    return f"process {owner.pid} on {owner.host}" if owner is not None else "another process"
