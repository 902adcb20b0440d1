"""The rows of tables that the library `datasets` opened, as a listing or a stream of images.

    tables, each with its split --choose columns--> Listing (random access) or Stream (of the Hub, in order)

`datasets` is imported only when it is needed, because that takes a second; it leaves the images encoded.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vqvae2.config.models import DataConfig
from vqvae2.data.columns import Columns, Table, payload_of
from vqvae2.data.errors import DataError
from vqvae2.data.labels import held_of
from vqvae2.data.listing import Listing, Payload, Row, Stream

_LOOKED = 1000  # rows of a table in which a column of classes is looked for


class OpenedTable(NamedTuple):
    """One table.

    Attributes:
        table: its rows.
        held: its split: 1 = held out, 0 = training, None = the data names none so far.
        folder: to which the paths of images in its rows are relative; None = for a data set of the Hub.
    """

    table: Table
    held: int | None
    folder: Path | None = None


@dataclass
class Tables:
    """Opened tables.

    Attributes:
        tables: at least one, all with the same columns.
        revision: the commit that the Hub served; "" for local data.
        split: a split that is to be read but still has to be looked up in a column; None = none.
    """

    tables: list[OpenedTable]
    revision: str = ""
    split: str | None = None


@contextmanager
def reading(data: str) -> Iterator[None]:
    """Hide progress bars and log lines of `datasets`, and turn whatever it raises into a `DataError` of one line."""
    try:
        import datasets

        bars, level = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)
        try:
            yield
        finally:
            datasets.logging.set_verbosity(level)
            if bars:
                datasets.enable_progress_bars()
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"too little memory to read {data!r}") from error
    except Exception as error:  # its many layers raise many kinds of exceptions
        raise DataError(f"cannot read {data!r}: {type_and_line(error)}") from error


def type_and_line(error: BaseException) -> str:
    """The type of an exception and the first line of its message."""
    cause = error.__cause__ or error  # `datasets` wraps what happened in a general error
    if type(cause).__name__ == "CastError" or "Failed to parse string" in str(cause):
        return "its files do not all have the same columns of the same types"
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0].strip()}" if lines else type(cause).__name__


def list_rows(opened: Tables, data: str, config: DataConfig) -> Listing:
    """All rows of the tables, with random access to their images.

    Args:
        opened: the tables, all with the same columns.
        data: DATA as the user wrote it, for messages.
        config: `image_column` and `label_column` are used.

    Raises:
        DataError: no column of images, or a chosen column or split does not exist.
    """
    import datasets

    columns = Columns.choose(opened.tables[0].table, data, config)
    extra = [columns.split] if columns.split else []
    whole = datasets.concatenate_datasets([_cut(table, columns, *extra) for table, *_ in opened.tables])
    held = [split for table, split, _ in opened.tables for _ in range(len(table))]
    keep, left = list(range(len(whole))), list[str]()
    if opened.split or (columns.split and held.count(None)):
        held, left = held_of(_split_values(whole, columns.split), opened.split, data)
        keep = [number for number in keep if held[number] is not None]
        if 1 not in held:
            held = [None] * len(held)
    texts = {name: whole[name][:] for name in columns.texts()}
    names, paths, refused = _paths(opened, whole, columns, config)
    rows, skipped = [], []
    for number in keep:
        cells = {name: texts[name][number] for name in texts}
        row = columns.row(number, {**cells, columns.image: {"path": names[number]}}, held[number])
        if number in refused:
            skipped.append((row.name, refused[number]))
        else:
            rows.append(row)
    keep = [number for number in keep if number not in refused]
    listing = columns.listing(rows)

    def payloads(indices: Sequence[int]) -> list[Payload | None]:
        numbers = [keep[index] for index in indices]
        cells = whole[numbers][columns.image]
        found = zip(numbers, (cell or {} for cell in cells), strict=True)
        return [payload_of({**cell, "path": paths[number]}) for number, cell in found]

    listing.payloads, listing.skipped, listing.revision = payloads, skipped, opened.revision
    listing.notes = [*_notes(listing, opened.tables[0].table, columns, config), *left]
    return listing


def _notes(listing: Listing, table: Table, columns: Columns, config: DataConfig) -> list[str]:
    """What was understood, and which columns could be the classes if none was found."""
    first = f"understood as {len(listing)} images, {len(listing.classes) or 'no'} classes"
    if columns.label:
        first += f" (column {columns.label!r})"
    if listing.held is None:
        first += ", no split"
    else:
        held = int(listing.held.sum())
        first += f", split of the data: {len(listing) - held} to train, {held} held out"
    if columns.label or config.label_column == "none":
        return [first]
    looked = table[:_LOOKED]
    texts = [
        name for name in columns.candidates(table) if 1 < len(set(looked[name])) <= len(looked[name]) / 2
    ]
    return [first, *(f"the column {name!r} could be the classes: data.label_column={name}" for name in texts)]


def _paths(
    opened: Tables, whole: Table, columns: Columns, config: DataConfig
) -> tuple[list[str | None], list[str | None], dict[int, str]]:
    """Per row the path in its cell; where it leads, for local tables; and, by row, why it is not followed.

    A path may not lead out of that folder, or out of `config.image_root`, because a table of somebody else could
    otherwise have any image of this machine read.
    """
    chunks = whole.data.column(columns.image).chunks
    names = [path for chunk in chunks for path in chunk.field("path").to_pylist()]
    paths = list(names)
    inside = [valid for chunk in chunks for valid in chunk.field("bytes").is_valid().to_pylist()]
    folders = [folder for table, _, folder in opened.tables for _ in range(len(table))]
    refused: dict[int, str] = {}
    for number, (path, has_bytes, folder) in enumerate(zip(names, inside, folders, strict=True)):
        if has_bytes or not path or folder is None:
            continue
        root = os.path.realpath(config.image_root or folder)
        there = os.path.realpath(os.path.join(root, path))  # noqa: PTH118 - the path is a text
        paths[number] = there
        if os.path.commonpath([root, there]) != root:
            refused[number] = f"its path leads out of {root}; data.image_root names another folder"
    return names, paths, refused


def stream_rows(opened: Tables, data: str, config: DataConfig) -> Stream:
    """The rows of streamed tables, one table after the other; at most `config.limit` of them.

    Raises:
        DataError: no column of images, or a chosen column does not exist; from the rows, when the stream breaks.
    """
    columns = Columns.choose(opened.tables[0].table, data, config)
    return Stream(_rows(opened, columns, config), columns.listing, opened.revision)


def _cut(table: Table, columns: Columns, *more: str) -> Table:
    """The table with the columns that are read only, and with its images left encoded."""
    import datasets

    return table.select_columns([columns.image, *columns.texts(), *more]).cast_column(
        columns.image, datasets.Image(decode=False)
    )


def _split_values(table: Table, column: str | None) -> list[str | None]:
    """The name of each row's split, None = it has none; [] without such a column."""
    if column is None:
        return []
    values, names = table[column][:], getattr(table.features[column], "names", None)
    return [None if value is None else str(names[value] if names else value) for value in values]


def _rows(opened: Tables, columns: Columns, config: DataConfig) -> Iterator[Row]:
    number, read = 0, Counter[int | None]()
    for table, held, _ in opened.tables:
        most = _rows_of_split(config, held)
        try:
            for values in itertools.islice(_cut(table, columns), None if most is None else most - read[held]):
                yield columns.row(number, values, held)
                number, read[held] = number + 1, read[held] + 1
        except Exception as error:
            raise DataError(f"the stream broke after {number} images: {type_and_line(error)}") from error


def _rows_of_split(config: DataConfig, held: int | None) -> int | None:
    """How many rows of a stream are read; with a named split, the held-out share of `config.limit` or the rest."""
    if config.limit is None or held is None:
        return config.limit
    heldout = max(1, round(config.limit * config.holdout))
    return heldout if held else max(1, config.limit - heldout)
