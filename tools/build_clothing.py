"""Shrink a folder of parquet files of images with classes to one smaller parquet file with a split column.

    python tools/build_clothing.py --train train-256.parquet --test test-256.parquet --size 128 --out clothing-128.parquet

It was written for the Clothing dataset of A. Grigorev (CC0 1.0; 4,591 training and 505 test photographs of garments in
17 classes) and reads any pair of parquet files with the columns `image` (encoded bytes) and `label` (a class name).
The short side is resized to `--size` px with Pillow's Lanczos filter, the centre square is cropped, and the result is
stored as WebP of quality 95.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, ImageOps

from _parquet import BadInput, Kind, Row, image_value, run, write_parquet


def shrink(data: bytes, size: int) -> bytes:
    """An encoded image as WebP: RGB, `size` x `size` px, the centre square of the original."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    buffer = io.BytesIO()
    ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=95, method=6)
    return buffer.getvalue()


def read(path: Path, split: str, size: int, classes: list[str]) -> Iterator[Row]:
    """The rows of one file, shrunk."""
    for batch in pq.ParquetFile(path).iter_batches(256, columns=["image", "label"]):
        for number, row in enumerate(batch.to_pylist()):
            name = str(row["image"].get("path") or f"{split}-{number}")
            value = image_value(shrink(row["image"]["bytes"], size), f"{Path(name).stem}.webp")
            yield {"image": value, "label": classes.index(row["label"]), "split": split}


def class_names(paths: list[Path]) -> list[str]:
    """The sorted class names of all files."""
    names: set[str] = set()
    for path in paths:
        try:
            missing = {"image", "label"} - {*pq.read_schema(path).names}
        except (OSError, ValueError) as error:
            raise BadInput(f"cannot read {path}: {str(error).splitlines()[0]}") from None
        if missing:
            raise BadInput(f"{path} has no column {min(missing)}")
        names |= set(pq.read_table(path, columns=["label"])["label"].to_pylist())
    if not all(isinstance(name, str) for name in names):
        raise BadInput("expected the column label to hold class names")
    return sorted(names)


def main() -> None:
    """Read the arguments, write the file, say how many images it holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--train", type=Path, required=True, help="parquet file of training images")
    parser.add_argument("--test", type=Path, required=True, help="parquet file of test images")
    parser.add_argument("--size", type=int, default=128, help="height and width in px")
    parser.add_argument("--out", type=Path, default=Path("clothing-128.parquet"))
    args = parser.parse_args()
    classes = class_names([args.train, args.test])
    columns: dict[str, Kind] = {"image": "image", "label": classes, "split": "string"}

    def rows() -> Iterator[Row]:
        yield from read(args.train, "train", args.size, classes)
        yield from read(args.test, "test", args.size, classes)

    print(f"{args.out}: {write_parquet(args.out, rows(), columns)} images, {len(classes)} classes")


if __name__ == "__main__":
    run(main)
