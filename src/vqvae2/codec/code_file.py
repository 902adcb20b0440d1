"""Codes of images as data: a parquet, safetensors or npz file, or a folder of .npy arrays, written and read in batches.

    name          text, the image's path in its folder, or its name or row in a table
    label         int64, the number of its class; only where the data has classes (-1 = unlabelled)
    heldout       bool, whether the data holds the image out
    level_0 ...   integers [h, w] of 16 bits, coarsest level first (of 32 bits for more than 65536 codes)
    before_0 ...  float32 [h, w, D], the vectors before quantisation, if they were asked for
    after_0 ...   float32 [h, w, D], the code vectors, if they were asked for

These are the columns of the table, or the arrays with one more axis [n, ...] in front. In parquet each image has one row, and its
arrays are flattened. Beside them stands one JSON text, `about`: the geometry, the classes and the digest of the autoencoder. It is
the metadata "vqvae2" of parquet and safetensors files, the array `about` of npz files, and about.json of a folder. A safetensors file
holds no text, so the names are its metadata "name".

Whatever the form, at most one part of the rows is in memory at a time.

Shapes: n images, b images of a part, h w the grid of a level, D code dimension.
"""

from __future__ import annotations

import json
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from vqvae2.codes import Codes, CodesError, Geometry
from vqvae2.data.array_writer import ArrayWriter, write_header
from vqvae2.errors import UserError, printable
from vqvae2.files.arrays import open_members, write_members
from vqvae2.files.atomic import FileError, read_json, reason, write_atomic, write_json

Form = Literal["parquet", "safetensors", "npz", "folder"]
Part = dict[str, NDArray[Any]]
"""The columns of b images by name."""

FORMAT = 1  # of `about`; a larger number was written by a newer version
_ABOUT = "about.json"
_HEADER_LIMIT = 100_000_000  # bytes of the header of a safetensors file that its library reads
_TYPES = {"int64": "I64", "bool": "BOOL", "uint16": "U16", "uint32": "U32", "float32": "F32"}  # safetensors


def form_of(path: Path) -> Form:
    """The form that a path's suffix asks for; without a suffix, or of a folder that exists, it is a folder.

    Raises:
        UserError: another suffix.
    """
    suffix = path.suffix.lower()
    if path.is_dir() or not suffix:
        return "folder"
    forms: dict[str, Form] = {".parquet": "parquet", ".safetensors": "safetensors", ".npz": "npz"}
    if suffix not in forms:
        raise UserError(f"expected a .parquet, .safetensors or .npz file, or a folder, found {path.name}")
    return forms[suffix]


def holds_codes(path: Path) -> bool:
    """Whether codes are there."""
    return (path / _ABOUT).is_file() if form_of(path) == "folder" else path.is_file()


@dataclass(frozen=True)
class CodeFile:
    """Codes in a file or folder; only `about` was read.

    Attributes:
        path: the file or folder.
        about: the JSON that stands beside the columns: `format`, `n`, `digest` of the autoencoder's weights, `geometry`,
            `shape` of the images in px, `classes`, `fingerprint` of the data, `vectors`.
    """

    path: Path
    about: dict[str, Any]

    @property
    def n(self) -> int:
        """The number of images."""
        n: int = self.about["n"]
        return n

    @property
    def geometry(self) -> Geometry:
        """Of one image."""
        return Geometry.from_json(self.about["geometry"])

    def batches(self, size: int) -> Iterator[tuple[list[str], Codes]]:
        """Names and codes (int64) of the images in order, at most `size` at a time.

        Raises:
            FileError: the file is damaged.
        """
        geometry = self.geometry
        levels = [f"level_{index}" for index in range(geometry.levels)]
        seen = 0
        with _reading(self.path):
            for part in _READERS[form_of(self.path)](self.path, ["name", *levels], size):
                grids = zip(levels, geometry.grids, strict=True)
                tensors = (part[name].reshape(-1, *grid).astype(np.int64) for name, grid in grids)
                codes = Codes(tuple(torch.from_numpy(level) for level in tensors))
                geometry.check(codes)
                if len(part["name"]) != len(codes):
                    raise CodesError(f"it has {len(part['name'])} names for {len(codes)} images")
                seen += len(codes)
                yield [str(name) for name in part["name"]], codes
        if seen != self.n:
            raise FileError(f"{self.path} is damaged: expected {self.n} images, found {seen}")


def open_codes(path: Path) -> CodeFile:
    """Read the description of codes.

    Raises:
        FileError: no codes of `encode` are there, or they are damaged or of a newer version.
        UserError: a suffix of another kind of file.
    """
    form = form_of(path)
    if not holds_codes(path):
        raise FileError(f"no codes at {path}")
    with _reading(path):
        text = _DESCRIPTIONS[form](path)
        about = json.loads(text) if text else {}
        if not isinstance(about, dict) or not about.keys() >= {"format", "n", "digest", "geometry"}:
            raise FileError(f"{path} holds no codes: expected a file that `vqvae2 encode` wrote")
        if int(about["format"]) > FORMAT:
            raise FileError(
                f"{path} was written by a newer vqvae2 (format {about['format']}, read: {FORMAT})"
            )
        about["n"] = int(about["n"])
        Geometry.from_json(about["geometry"])
    return CodeFile(path, about)


def write_codes(path: Path, about: dict[str, Any], parts: Sequence[Callable[[], Part]]) -> None:
    """Write codes in the form that the suffix of `path` asks for, atomically.

    Args:
        about: JSON-ready; `format` and `n` are added.
        parts: each reads one part of the rows anew; they have the same columns, in order.

    Raises:
        FileError: the file cannot be written.
        UserError: more names than the header of a safetensors file can hold.
    """
    columns: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    n = 0
    for part in parts:
        arrays = part()
        n += len(arrays["name"])
        for name, array in arrays.items():
            known = columns.get(name, (array.dtype, array.shape[1:]))[0]
            columns[name] = (np.promote_types(known, array.dtype), array.shape[1:])
    table = _Table(n, columns, parts, json.dumps({**about, "format": FORMAT, "n": n}))
    form = form_of(path)
    if form == "folder":
        _write_folder(path, table)
    else:
        write_atomic(path, lambda temporary: _WRITERS[form](temporary, table))


def write_part(path: Path, part: Part) -> None:
    """Write the columns of some rows to a file of their own, atomically."""
    write_atomic(path, lambda temporary: write_members(temporary, part))


def read_part(path: Path) -> Part:
    """The columns that `write_part` wrote."""
    with _reading(path), np.load(path) as arrays:
        return {name: arrays[name] for name in arrays}


@dataclass(frozen=True)
class _Table:
    n: int
    columns: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
    parts: Sequence[Callable[[], Part]]
    about: str

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        """The values of a column, part by part."""
        dtype, _ = self.columns[name]
        for part in self.parts:
            yield np.ascontiguousarray(part()[name], dtype)


def _write_parquet(path: Path, table: _Table) -> None:
    import pyarrow
    from pyarrow import parquet

    def column(array: NDArray[Any]) -> Any:
        if array.dtype.kind == "U":  # the type is named, because a part without rows would have none
            return pyarrow.array([*map(printable, array.tolist())], pyarrow.string())
        if array.ndim == 1:
            return pyarrow.array(array)
        width = int(np.prod(array.shape[1:]))
        return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(array.reshape(-1)), width)

    writer = None
    try:
        for part in table.parts:
            arrays = {name: column(array) for name, array in part().items()}
            rows = pyarrow.table(arrays).replace_schema_metadata({"vqvae2": table.about})
            writer = writer or parquet.ParquetWriter(path, rows.schema, compression="zstd")
            writer.write_table(rows)
    finally:
        if writer is not None:
            writer.close()


def _write_safetensors(path: Path, table: _Table) -> None:
    names = [str(name) for block in table.blocks("name") for name in block]
    listed = json.dumps(names, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    header: dict[str, Any] = {"__metadata__": {"vqvae2": table.about, "name": listed}}
    arrays = [name for name in table.columns if name != "name"]
    # as the library orders tensors: larger elements first, so that every tensor is aligned
    arrays.sort(key=lambda name: (-table.columns[name][0].itemsize, name))
    end = 0
    for name in arrays:
        dtype, tail = table.columns[name]
        begin, end = end, end + table.n * int(np.prod(tail)) * dtype.itemsize
        header[name] = {
            "dtype": _TYPES[dtype.name],
            "shape": [table.n, *tail],
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _HEADER_LIMIT:
        raise UserError(
            f"the names of {table.n:,} images make a header of {len(text):,} bytes, and a safetensors file is read with at most "
            f"{_HEADER_LIMIT:,}; write a .parquet file"
        )
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in arrays:
            for block in table.blocks(name):
                file.write(block.astype(block.dtype.newbyteorder("<"), copy=False).data)


def _write_npz(path: Path, table: _Table) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, (dtype, tail) in table.columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                write_header(file, (table.n, *tail), dtype)
                for block in table.blocks(name):
                    file.write(block.tobytes())
        text = np.array(table.about)
        with archive.open("about.npy", "w") as file:
            write_header(file, (), text.dtype)
            file.write(text.tobytes())


def _write_folder(path: Path, table: _Table) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name, (dtype, tail) in table.columns.items():
            writer = ArrayWriter(path / f"{name}.npy", tail, dtype)
            try:
                for block in table.blocks(name):
                    writer.append(block)
                writer.finish()
                writer.publish()
            finally:
                writer.abandon()
    except OSError as error:
        raise FileError(f"cannot write {path}: {reason(error)}") from error
    write_json(path / _ABOUT, json.loads(table.about))


def _read_parquet(path: Path, names: Sequence[str], size: int) -> Iterator[Part]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(size, columns=list(names)):
            columns = {}
            for name in names:
                column = batch.column(name)
                if name == "name":
                    columns[name] = np.array(column.to_pylist())
                else:
                    columns[name] = column.flatten().to_numpy(zero_copy_only=False)
            yield columns


def _read_safetensors(path: Path, names: Sequence[str], size: int) -> Iterator[Part]:
    with safe_open(path, framework="np") as file:
        texts = json.loads(file.metadata()["name"])
        for begin in range(0, len(texts), size):
            rows = slice(begin, min(begin + size, len(texts)))
            arrays = {name: file.get_slice(name)[rows] for name in names if name != "name"}
            yield {"name": np.array(texts[rows]), **arrays}


def _read_npz(path: Path, names: Sequence[str], size: int) -> Iterator[Part]:
    with open_members(path) as members:
        for blocks in zip(*(members.blocks(name, size) for name in names), strict=True):
            yield dict(zip(names, blocks, strict=True))


def _read_folder(path: Path, names: Sequence[str], size: int) -> Iterator[Part]:
    arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    for begin in range(0, len(arrays["name"]), size):
        yield {name: np.asarray(array[begin : begin + size]) for name, array in arrays.items()}


def _about_parquet(path: Path) -> str:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return str((file.schema_arrow.metadata or {}).get(b"vqvae2", b"").decode())


def _about_safetensors(path: Path) -> str:
    with safe_open(path, framework="np") as file:
        return str((file.metadata() or {}).get("vqvae2", ""))


def _about_npz(path: Path) -> str:
    with open_members(path) as members:
        return str(members["about"]) if "about" in members else ""


_WRITERS: dict[Form, Callable[[Path, _Table], None]] = {
    "parquet": _write_parquet,
    "safetensors": _write_safetensors,
    "npz": _write_npz,
}
_READERS: dict[Form, Callable[[Path, Sequence[str], int], Iterator[Part]]] = {
    "parquet": _read_parquet,
    "safetensors": _read_safetensors,
    "npz": _read_npz,
    "folder": _read_folder,
}
_DESCRIPTIONS: dict[Form, Callable[[Path], str]] = {
    "parquet": _about_parquet,
    "safetensors": _about_safetensors,
    "npz": _about_npz,
    "folder": lambda path: json.dumps(read_json(path / _ABOUT)),
}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file raises into a `FileError`."""
    try:
        yield
    except FileError:
        raise
    except CodesError as error:
        raise FileError(f"{path} is damaged: {error}") from error
    except (
        *(EOFError, KeyError, IndexError, OSError, TypeError, ValueError, AttributeError, OverflowError),
        *(SafetensorError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError),
        *(SyntaxError, tokenize.TokenError),  # of numpy, for a header that is no literal
    ) as error:  # pyarrow's errors are ValueErrors, OSErrors and KeyErrors
        raise FileError(f"{path} is damaged ({type(error).__name__}: {reason(error)[:200]})") from error
