"""The data set inside the package: `emoji64`, 64-px emoji in nine classes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from vqvae2.data.table_files import TableFiles, parquet_files

EMBEDDED = "emoji64"


def recognise_embedded(data: str, run: Path) -> TableFiles | None:
    """The embedded data set, if `data` is its name."""
    if data != EMBEDDED:
        return None
    return parquet_files(data, None, [Path(str(files("vqvae2.data") / "emoji64.parquet"))])
