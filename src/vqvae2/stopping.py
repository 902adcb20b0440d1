"""Signals that ask a command to stop: SIGINT (Ctrl-C), SIGTERM, and SIGHUP (its terminal was closed).

A command calls `interrupt_on_signals` first of all. From then on each of them raises KeyboardInterrupt in the main thread,
as Ctrl-C always does, so that half-written files are removed on the way out. `exit_code` is 128 plus the number of the
signal, as a shell reports it: 130, 143, 129. A signal that the parent process told us to ignore (`nohup` does so with
SIGHUP) stays ignored. The training loop listens itself (`stop_requests`), because it saves its state first.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from vqvae2.processes import launched

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_POLL = 0.05  # seconds between two looks whether an import has ended
_LONGEST = 60.0  # seconds for which an import keeps a signal waiting
_REPEATED = 2.0  # seconds in which a second SIGTERM under `torchrun` is the same request

_received: list[int] = []
_waiting: list[float] = []  # when the first signal arrived during an import
_ending: list[bool] = []


class StopSignal(KeyboardInterrupt):
    """One of `SIGNALS` arrived.

    A plain KeyboardInterrupt that passes through `exec` or `eval` of a string makes CPython end the process with SIGINT
    even if it was handled (`unhandled_keyboard_interrupt` is set); a subclass does not.
    """


def exit_code() -> int:
    """The exit code of a command that was interrupted: 128 plus the number of the signal, 130 if none was noted."""
    return 128 + (_received[-1] if _received else signal.SIGINT)


def name(number: int) -> str:
    """The name of a signal, such as "SIGTERM"."""
    return signal.Signals(number).name


def interrupt_on_signals() -> None:
    """Have each of `SIGNALS` raise KeyboardInterrupt in this process, unless it is ignored; call it in the main thread."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def end() -> None:
    """The command has said its last word: a further signal ends the process at once and in silence."""
    _ending.append(True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _ending:
        os._exit(128 + number)
    if _importing(frame):
        # An exception in the middle of importing torch can leave C++ half initialised, which aborts the process.
        began = _waiting[0] if _waiting else time.monotonic()
        if not _waiting:
            _waiting.append(began)
        if time.monotonic() - began < _LONGEST:
            again = threading.Timer(_POLL, _send, [number])
            again.daemon = True
            again.start()
            return
    _received.append(number)
    raise StopSignal


def _send(number: int) -> None:
    """Send this process a signal from a thread that is not the main one, so that it also ends a wait."""
    main = threading.main_thread().ident
    if main is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, number)
    else:
        _thread.interrupt_main(signal.Signals(number))


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported in this frame or in one that called it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@dataclass
class StopRequest:
    """Whether this process was asked to stop.

    Attributes:
        number: of the first signal that asked for it; 0 = none did.
    """

    number: int = 0


@contextmanager
def stop_requests(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """The first signal is noted and confirmed in one line, the second one is confirmed too and acts as usual.

    Only a main thread can listen. A signal that arrives when the block no longer looks at the request acts as usual when
    the block ends, so that it is not lost.

    Args:
        say: prints one line.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    usual = {number: signal.getsignal(number) for number in SIGNALS}
    usual = {number: handler for number, handler in usual.items() if handler is not signal.SIG_IGN}
    first = 0.0  # when the first signal came

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not request.number:
            request.number, first = number, time.monotonic()
            say(f"{name(number)}: the state is saved after this step; a second signal stops at once")
            return
        if (
            number == request.number != signal.SIGINT
            and launched()[1] > 1
            and time.monotonic() - first < _REPEATED
        ):
            return  # a scheduler signals every process, and torchrun hands its own signal on
        restore()
        say(
            f"{name(number)}, the second signal: stopping at once, the steps since the last saved state are lost"
        )
        signal.raise_signal(number)

    for number in usual:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        restore()
    if request.number:  # nothing was raised, so nobody has acted on it
        signal.raise_signal(request.number)
