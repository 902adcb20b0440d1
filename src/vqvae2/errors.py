"""The base class of all errors that the user can correct; the message is one line: what was expected, what was found."""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Iterable

_UNSAFE = (
    re.compile(  # control characters, bidirectional overrides, separators of lines, halves of surrogate pairs
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
    )
)

_LONGEST = 2000  # characters of a message


def printable(text: str) -> str:
    """Text that is safe to print on a terminal: what could steer it is replaced by an escape such as `\\x1b`.

    Names of files and of classes come from strangers, and a terminal obeys the control characters in them. Line ends,
    tabs and all visible characters stay as they are.
    """
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def listed(names: Iterable[str]) -> str:
    """Names with commas between them; a name that has a comma itself is quoted."""
    return ", ".join(repr(name) if "," in name else name for name in names)


def suggested(*words: object) -> str:
    """A command of ours for a message, in backquotes: `suggested("train", "DATA")`; words are quoted where a shell needs it."""
    return f"`{shlex.join(['vqvae2', *map(str, words)])}`"


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BAD_PATH = (
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EILSEQ,
)
_OUT_OF_MEMORY = (  # of torch's allocators on the host and on accelerators, of Python's threads, of oneDNN
    "DefaultCPUAllocator: can't allocate memory",
    "out of memory",
    "can't start new thread",
    "could not create a primitive",
)


class UserError(ValueError):
    """A mistake of the user; the command prints the message as one line and ends with exit code 2.

    The message is made `printable`, put on one line and, where a name in it is very long, shortened in the middle.
    """

    def __init__(self, *details: object) -> None:
        super().__init__(*(_one_line(item) if isinstance(item, str) else item for item in details))


def _one_line(text: str) -> str:
    line = printable(text).replace("\n", " ")
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 500]} ... {line[-400:]}"


def bad_path(error: Exception) -> str:
    """Which path the system does not let this program use, and why, in one line; "" for any other exception."""
    if isinstance(error, OSError) and error.filename is not None and error.errno in _BAD_PATH:
        return str(UserError(f"cannot use {error.filename}: {error.strerror}"))
    return ""


def shortage(error: Exception) -> str:
    """What the machine has too little of, memory or space on the disk, in one line; "" for any other exception."""
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return f"cannot write {error.filename or 'a file'}: {error.strerror}"
    known = isinstance(error, RuntimeError) and any(part in str(error) for part in _OUT_OF_MEMORY)
    if (
        known
        or isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    ):
        return f"not enough memory: {str(error) or 'Python could get no more'}"
    return ""
