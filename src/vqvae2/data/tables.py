"""The rows of tables that the library `datasets` opened, as a listing or a stream of images.

    tables, each with its split --choose columns--> Listing (random access) or Stream (of the Hub, in order)

`datasets` is imported only when it is needed, because that takes a second; it leaves the images encoded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vqvae2.config.models import DataConfig
from vqvae2.data.columns import Columns, Table, payload_of
from vqvae2.data.errors import DataError
from vqvae2.data.labels import assign_splits
from vqvae2.data.listing import Listing, Row, Stream


@dataclass
class Tables:
    """Opened tables.

    Attributes:
        tables: each with its split: 1 = held out, 0 = training, None = the data names none so far.
        revision: the commit that the Hub served; "" for local data.
        split: a split that is to be read but still has to be looked up in a column; None = none.
    """

    tables: list[tuple[Table, int | None]]
    revision: str = ""
    split: str | None = None


@contextmanager
def reading(data: str) -> Iterator[None]:
    """Hide the progress bars of `datasets`, and turn whatever it raises into a `DataError` of one line."""
    try:
        import datasets

        bars = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            if bars:
                datasets.enable_progress_bars()
    except DataError:
        raise
    except Exception as error:  # its many layers raise many kinds of exceptions
        raise DataError(f"cannot read {data!r}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The type of an exception and the first line of its message."""
    cause = error.__cause__ or error  # `datasets` wraps what happened in a general error
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

    columns = Columns.choose(opened.tables[0][0], data, config)
    extra = [columns.split] if columns.split else []
    whole = datasets.concatenate_datasets([_cut(table, columns, *extra) for table, _ in opened.tables])
    held = [split for table, split in opened.tables for _ in range(len(table))]
    keep = list(range(len(whole)))
    if opened.split or (columns.split and held.count(None)):
        values = _split_values(whole, columns.split)
        splits = assign_splits({value.lower(): value for value in set(values)}, opened.split, data)
        if splits:
            keep = [number for number in keep if values[number] in splits]
            held = [None if opened.split else splits.get(value) for value in values]
    texts = {name: whole[name][:] for name in columns.texts()}
    paths = [
        path for chunk in whole.data.column(columns.image).chunks for path in chunk.field("path").to_pylist()
    ]
    rows = []
    for number in keep:
        cells = {name: texts[name][number] for name in texts}
        rows.append(columns.row(number, {**cells, columns.image: {"path": paths[number]}}, held[number]))
    listing = columns.listing(rows)
    listing.payloads = lambda indices: [
        payload_of(cell or {}) for cell in whole[[keep[index] for index in indices]][columns.image]
    ]
    listing.revision = opened.revision
    return listing


def stream_rows(opened: Tables, data: str, config: DataConfig) -> Stream:
    """The rows of streamed tables, one table after the other; at most `config.limit` of them.

    Raises:
        DataError: no column of images, or a chosen column does not exist; from the rows, when the stream breaks.
    """
    columns = Columns.choose(opened.tables[0][0], data, config)
    return Stream(_rows(opened, columns, config), columns.listing, opened.revision)


def _cut(table: Table, columns: Columns, *more: str) -> Table:
    """The table with the columns that are read only, and with its images left encoded."""
    import datasets

    return table.select_columns([columns.image, *columns.texts(), *more]).cast_column(
        columns.image, datasets.Image(decode=False)
    )


def _split_values(table: Table, column: str | None) -> list[str]:
    """The name of each row's split; [] without such a column."""
    if column is None:
        return []
    values, names = table[column][:], getattr(table.features[column], "names", None)
    return [str(names[value] if names and value is not None else value) for value in values]


def _rows(opened: Tables, columns: Columns, config: DataConfig) -> Iterator[Row]:
    number = 0
    for table, held in opened.tables:
        try:
            for values in itertools.islice(_cut(table, columns), _rows_of_split(config, held)):
                yield columns.row(number, values, held)
                number += 1
        except Exception as error:
            raise DataError(f"the stream broke after {number} images: {first_line(error)}") from error


def _rows_of_split(config: DataConfig, held: int | None) -> int | None:
    """How many rows of a stream are read; with a named split, the held-out share of `config.limit` or the rest."""
    if config.limit is None or held is None:
        return config.limit
    heldout = max(1, round(config.limit * config.holdout))
    return heldout if held else max(1, config.limit - heldout)
