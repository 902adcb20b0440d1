"""Where a command writes: folders that it makes, and files that it must not overwrite."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vqvae2.config.overrides import differences
from vqvae2.errors import UserError
from vqvae2.files.atomic import FileError, read_json, read_object, write_json
from vqvae2.files.temporary import sweep

_ORIGINS_LIMIT = 2**28  # bytes of a record of origins that are read, at most


def make_folder(path: Path) -> None:
    """Make a folder, with the folders above it; in one that exists, remove the temporary files that killed commands left.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}") from None
    sweep(path)


def claim_files(record: Path, files: Iterable[Path], option: str = "--out") -> None:
    """Note in a record of a folder that files in it are this verb's, so that it may replace them when it is called again.

    Args:
        record: the JSON file, a list of names; its folder exists.
        files: what will be written into the folder.
        option: names the folder, for the message.

    Raises:
        UserError: one of the files exists and is not in the record.
        FileError: the record cannot be read or written, or is none.
    """
    held = read_json(record, _ORIGINS_LIMIT) if record.exists() else []
    if not isinstance(held, list) or not all(isinstance(name, str) for name in held):
        raise FileError(f"{record} exists, and is no record of this command; choose another {option}")
    own, wanted = set(held), list(files)
    refuse_to_replace((file for file in wanted if file.name not in own), option)
    write_json(record, sorted(own | {file.name for file in wanted}))


def claim_origins(record: Path, origins: Mapping[Path, dict[str, str]]) -> None:
    """Note in a record of a folder what each file is made of, so that only another one of the same may replace it.

    Args:
        record: the JSON file, an object of origins by name; its folder exists.
        origins: by each file that will be written into the folder.

    Raises:
        UserError: one of the files exists, and is of another origin by the record or not in it.
        FileError: the record cannot be read or written, or is none.
    """
    held = read_object(record, _ORIGINS_LIMIT) if record.exists() else {}
    if not all(isinstance(origin, dict) for origin in held.values()):
        raise FileError(f"{record} exists, and is no record of this command; choose another --out")
    refuse_to_replace(file for file in origins if file.name not in held)
    for file, origin in origins.items():
        if file.exists() and (changed := differences(held[file.name], origin)):
            raise UserError(f"{file} is of another origin ({'; '.join(changed)}); choose another --out")
    write_json(record, {**held, **{file.name: origin for file, origin in origins.items()}})


def refuse_to_overwrite(sources: Iterable[Path | None], written: Iterable[Path]) -> None:
    """Check that no file that is read (None is skipped) is one of those that will be written.

    Raises:
        UserError: one of them is.
    """
    targets = {path.resolve() for path in written}
    for source in sources:
        if source is not None and source.resolve() in targets:
            raise UserError(f"{source} would be overwritten; choose another --out")


def refuse_to_replace(written: Iterable[Path], option: str = "--out") -> None:
    """Check that none of the files that will be written is there.

    Args:
        option: names where they are written, for the message.

    Raises:
        UserError: one of them is.
    """
    if taken := next((file for file in written if file.exists()), None):
        raise UserError(f"{taken} exists, and would be overwritten; choose another {option}")


def refuse_to_replace_others(result: Path, keys: Iterable[str]) -> None:
    """Check that a JSON file that will be written is not there yet, or is an earlier result of the same command.

    Args:
        keys: of the object that the command writes.

    Raises:
        UserError: the file is there, and is something else.
    """
    if not result.exists():
        return
    try:
        own = read_object(result, _ORIGINS_LIMIT).keys() >= set(keys)
    except FileError:
        own = False
    if not own:
        refuse_to_replace([result])


def claim(
    record: Path,
    about: dict[str, Any],
    what: str,
    written: Iterable[Path] = (),
    former: dict[str, Any] | None = None,
) -> None:
    """Write a record of what a folder is made for, or check that the one that is there says the same.

    Args:
        record: the JSON file.
        about: JSON-ready.
        what: what the folder would hold if it were made for something else, for the message: "images of other codes".
        written: the files that the folder will get; without a record, none of them may be there.
        former: what the records of former versions leave out, as it was then.

    Raises:
        UserError: it was made for something else; the message lists the differences. Or a file would be overwritten.
        FileError: the record cannot be read or written.
    """
    if not record.exists():
        refuse_to_replace(written)
        write_json(record, about)
        return
    stored = {**(former or {}), **read_object(record)}
    if changed := differences(stored, json.loads(json.dumps(about))):
        raise UserError(f"{record.parent} holds {what} ({'; '.join(changed)}); use another --out")
