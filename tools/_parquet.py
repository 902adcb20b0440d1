"""What the data-set scripts share: parquet files that Hugging Face `datasets` opens with images and classes.

A file is written with pyarrow alone. The features go into the schema metadata under the key `huggingface`, so
`datasets.load_dataset("parquet", data_files=PATH)` gives `Image` and `ClassLabel` columns by itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]
Kind = str | Sequence[str]
"""A column is "image", "string" or "bool", or the list of class names of a label column."""

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ROW_GROUP = 1000


class BadInput(Exception):
    """Something the caller can put right; its text is the one line that the user sees."""


def run(main: Callable[[], None]) -> None:
    """Call `main`; bad input ends as one line on stderr and exit code 2, never as a traceback."""
    try:
        main()
    except (BadInput, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def image_value(data: bytes, path: str) -> dict[str, bytes | str]:
    """An encoded image as the struct that the `Image` feature reads."""
    return {"bytes": data, "path": path}


def make_schema(columns: Mapping[str, Kind]) -> pa.Schema:
    """The arrow schema of `columns`, with the same features written down for `datasets`."""
    fields: list[pa.Field] = []
    features: dict[str, dict[str, object]] = {}
    for name, kind in columns.items():
        if kind == "image":
            fields.append(pa.field(name, IMAGE_TYPE))
            features[name] = {"_type": "Image"}
        elif isinstance(kind, str):
            fields.append(pa.field(name, {"string": pa.string(), "bool": pa.bool_()}[kind]))
            features[name] = {"dtype": kind, "_type": "Value"}
        else:
            fields.append(pa.field(name, pa.int64()))
            features[name] = {"names": list(kind), "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema(fields, metadata=metadata)


def write_parquet(path: Path, rows: Iterable[Row], columns: Mapping[str, Kind]) -> int:
    """Write `rows` as they come (a large set never lies in memory as a whole) and return their number.

    Images are compressed already, so the pages are stored with a light zstd and images without a dictionary.
    The file appears under its name only when it is complete.
    """
    schema = make_schema(columns)
    plain = [name for name, kind in columns.items() if kind != "image"]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    count = 0
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=plain) as writer:
            for batch in _batches(rows):
                writer.write_table(pa.Table.from_pylist(batch, schema=schema), row_group_size=ROW_GROUP)
                count += len(batch)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, ROW_GROUP)):
        yield batch
