"""Where a command writes: folders that it makes, and files that it must not overwrite."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vqvae2.errors import UserError
from vqvae2.files.temporary import sweep


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


def refuse_to_overwrite(sources: Iterable[Path | None], written: Iterable[Path]) -> None:
    """Check that no file that is read (None is skipped) is one of those that will be written.

    Raises:
        UserError: one of them is.
    """
    targets = {path.resolve() for path in written}
    for source in sources:
        if source is not None and source.resolve() in targets:
            raise UserError(f"{source} would be overwritten; choose another --out")
