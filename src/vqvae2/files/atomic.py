"""Writing files atomically, and reading and writing JSON.

A file is written under a temporary name in the same folder, flushed to the disk and renamed. When the process is
killed or the disk is full, the last complete file is therefore still there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vqvae2.errors import UserError

FORMAT = 1  # of run folders and weight files; a larger number was written by a newer version


class FileError(UserError):
    """A file that is missing, damaged, altered, of a newer version, or that cannot be written."""


def write_atomic(path: str | Path, write: Callable[[Path], None]) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it to `path`.

    Args:
        path: the file; its folder is created when missing.
        write: called with the temporary path; writes the file there.

    Raises:
        FileError: the disk is full or the folder cannot be written; an earlier file at `path` is kept.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = (
            temporary.stat().st_mode
        )  # what the umask allows; safetensors makes files that only their owner may read
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise FileError(f"cannot write {path}: {reason(error)}; an earlier file is kept") from error
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    write_atomic(path, lambda temporary: _plain_write(temporary, text))


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON, indented, atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: str | Path) -> Any:
    """The value in a JSON file.

    Raises:
        FileError: the file is missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"cannot read {path}: {reason(error)}") from error


def _plain_write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def reason(error: Exception) -> str:
    """The message of an exception on one line; of an error of the operating system only its description."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())
