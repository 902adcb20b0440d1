"""Atomic writing of files, and JSON.

A file is written under a temporary name in the same folder, flushed to the disk and renamed. A kill or a full disk at
any moment therefore leaves the last complete file in place.
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
    """A file that is missing, damaged, altered, or of a newer version."""


def write_atomic(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, flush it, and rename it to `path`.

    Raises:
        FileError: the disk is full or the folder cannot be written; an earlier file at `path` stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise FileError(f"cannot write {path}: {reason(error)}; what was there before is kept") from error
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    write_atomic(path, lambda temporary: _plain_write(temporary, text))


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, indented."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: str | Path) -> Any:
    """The value in a JSON file.

    Raises:
        FileError: missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"cannot read {path}: {reason(error)}") from error


def _plain_write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())
