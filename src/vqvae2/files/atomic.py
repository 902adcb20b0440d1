"""Writing files atomically, and reading and writing text and JSON.

A file is written under a temporary name in the same folder, flushed to the disk and renamed, and then the folder is
flushed too, so that the new name survives a loss of power. When the process is killed or the disk is full, the last
complete file is therefore still there.

What is read may come from a stranger. Every reader here takes bounded memory, and raises a `FileError` that names the
file and the reason, whatever is in the file.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vqvae2.errors import UserError
from vqvae2.files.temporary import temporary_name

FORMAT = 1  # of run folders and weight files; a larger number was written by a newer version
TEXT_LIMIT = 2**24
"""Bytes of a text or JSON file that is read, at most, unless a reader says otherwise."""


class FileError(UserError):
    """A file that is missing, damaged, altered, of a newer version, or that cannot be written."""


class OtherFileError(FileError):
    """A file that is whole, but was written by a newer version or belongs to something else."""


class WriteError(FileError):
    """A file that cannot be written; the disk may be full."""


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it to `path`.

    A link at `path` is replaced and not followed.

    Args:
        path: the file; its folder is created when missing.
        write: called with the temporary path; writes the file there.

    Raises:
        FileError: the disk is full or the folder cannot be written; an earlier file at `path` is kept.
    """
    path = Path(path)
    if path.is_dir():  # also ".", which has no name
        raise FileError(f"cannot write {path}: Is a directory")
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # it may be a link
        temporary.touch()
        mode = (
            temporary.stat().st_mode
        )  # what the umask allows; safetensors makes files that only their owner may read
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        publish(temporary, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise WriteError(f"cannot write {path}: {reason(error)}; an earlier file is kept") from error
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished and flushed file to its final name, and flush the folder."""
    temporary.replace(path)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that the names in it survive a loss of power; nothing where that is not possible."""
    with suppress(OSError):  # Windows, and some network file systems
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file atomically."""
    write_atomic(path, lambda temporary: temporary.write_bytes(data))


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically (UTF-8); the bytes of a name that is no UTF-8 become escapes such as `\\udce9`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON, indented, atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def append_text(path: Path, text: str) -> None:
    """Append to a text file (UTF-8), which is made when missing.

    Raises:
        FileError: the path is a link, which may lead to any file of the user, or no regular file.
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise FileError(f"cannot append to {path}: it is a link or no regular file; delete it")
    data = text.encode()
    with path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            with suppress(OSError):  # half a line would hide those after it
                file.truncate(before)
            raise


def read_text(path: str | Path, limit: int = TEXT_LIMIT) -> str:
    """The text in a regular file (UTF-8).

    Args:
        limit: the largest size that is read, in bytes.

    Raises:
        FileError: the file is missing, no regular file, larger, or no UTF-8.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise FileError(f"cannot read {path}: expected at most {limit:,} bytes, found {size:,}")
            text: bytes = file.read(limit)
            return text.decode("utf-8")
    except FileError:
        raise
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a name with a null character
        raise FileError(f"cannot read {path}: {reason(error)}") from error


def open_regular(path: str | Path) -> BufferedReader:
    """Open a file for reading, at once: a pipe of a stranger, whose other end nobody opens, would stop the program for ever.

    Raises:
        FileError: it is a pipe, a device or the like.
        OSError: it cannot be opened.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - the caller closes it
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise FileError(f"cannot read {path}: expected a regular file")


def read_json(path: str | Path, limit: int = TEXT_LIMIT) -> Any:
    """The value in a JSON file.

    Args:
        limit: see `read_text`.

    Raises:
        FileError: the file is missing or damaged.
    """
    return parse_json(read_text(path, limit), path)


def read_object(path: str | Path, limit: int = TEXT_LIMIT) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        limit: see `read_text`.

    Raises:
        FileError: the file is missing, damaged, or holds another value than an object.
    """
    value = read_json(path, limit)
    if not isinstance(value, dict):
        raise FileError(f"{path} is damaged: expected a JSON object, found {type(value).__name__}")
    return value


def parse_json(text: str, source: str | Path) -> Any:
    """The value of a JSON text.

    Args:
        source: the file that the text is from, for the message.

    Raises:
        FileError: the text is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise FileError(f"cannot read {source}: its JSON is nested too deeply") from None
    except ValueError as error:
        raise FileError(f"cannot read {source}: {reason(error)}") from error


def _without_waiting(path: str, flags: int) -> int:
    """Open without waiting for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def reason(error: BaseException) -> str:
    """The message of an exception on one line of at most 300 characters; of the operating system only its description."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 300 else words[:297] + "..."
