"""Cut photographs into square patches, as one parquet file for training a codec of photographs.

    python tools/build_photographs.py photos/ more-photos/ --out photographs.parquet
    python tools/build_photographs.py photos/ --also clothing.parquet --also-n 1500 --out photographs.parquet

Each photograph is resized with Pillow's Lanczos filter so that its short side has `--short` px (each of them that is not
longer than its own) and cut into patches of `--patch` px that touch, with the rest left out on both sides. So a patch
shows as much detail per pixel as a photograph of that size. About a twelfth of the photographs, chosen by their names, is held
out with all patches (`split` is "test"). Patches are stored as WebP of quality 95. Images of parquet files named
by `--also` (their column `image`) are added as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, ImageOps

from _parquet import BadInput, Kind, Row, image_value, run, write_parquet

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}
HELD_OUT = 12  # one photograph in so many, about
COLUMNS: dict[str, Kind] = {"image": "image", "split": "string"}


def split_of(name: str) -> str:
    """Train or test, by a hash of the name."""
    return "test" if hashlib.sha256(name.encode()).digest()[0] % HELD_OUT == 0 else "train"


def patches(photo: Image.Image, short: int, side: int) -> Iterator[Image.Image]:
    """The patches of a photograph whose short side is resized to `short` px; none if it is shorter."""
    if min(photo.size) < short:
        return
    scale = short / min(photo.size)
    width, height = (round(length * scale) for length in photo.size)
    small = photo.resize((width, height), Image.Resampling.LANCZOS)
    for top in range(height % side // 2, height - side + 1, side):
        for left in range(width % side // 2, width - side + 1, side):
            yield small.crop((left, top, left + side, top + side))


def photographs(folders: list[Path]) -> list[Path]:
    """The image files in the folders and below them, sorted."""
    found = [path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in ENDINGS]
    files = sorted(path for path in found if path.is_file() and not path.is_symlink())
    if not files:
        raise BadInput(f"no photographs in {', '.join(map(str, folders))}")
    return files


def cut(files: list[Path], shorts: list[int], side: int) -> Iterator[Row]:
    """The patches of all photographs."""
    for path in files:
        try:
            with Image.open(path) as opened:
                photo = ImageOps.exif_transpose(opened).convert("RGB")
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error}") from None
        for short in shorts:
            for number, patch in enumerate(patches(photo, short, side)):
                buffer = io.BytesIO()
                patch.save(buffer, "WEBP", quality=95, method=2)
                value = image_value(buffer.getvalue(), f"{path.stem}-{short}-{number}.webp")
                yield {"image": value, "split": split_of(path.name)}


def check(path: Path) -> None:
    """Raise `BadInput` unless this is a parquet file with a column of images."""
    try:
        columns = pq.read_schema(path).names
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    if "image" not in columns:
        raise BadInput(f"{path} has no column image")


def also(path: Path, count: int) -> Iterator[Row]:
    """The first images of a parquet file, as they are."""
    left = count
    for batch in pq.ParquetFile(path).iter_batches(256, columns=["image"]):
        for row in batch.to_pylist()[:left]:
            name = f"{path.parent.name}-{path.stem}-{count - left}.webp"
            yield {"image": image_value(row["image"]["bytes"], name), "split": split_of(name)}
            left -= 1
        if not left:
            return


def main() -> None:
    """Read the arguments, write the file, say how many images it holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="folders with photographs")
    parser.add_argument("--short", type=int, nargs="+", default=[512, 768], help="short sides in px")
    parser.add_argument("--patch", type=int, default=256, help="height and width of a patch in px")
    parser.add_argument("--also", type=Path, action="append", default=[], help="parquet file; repeatable")
    parser.add_argument("--also-n", type=int, default=1000, help="images taken of each of these files")
    parser.add_argument("--out", type=Path, default=Path("photographs.parquet"))
    args = parser.parse_args()
    files = photographs(args.folders)
    for path in args.also:
        check(path)

    def rows() -> Iterator[Row]:
        yield from cut(files, args.short, args.patch)
        for path in args.also:
            yield from also(path, args.also_n)

    print(f"{args.out}: {write_parquet(args.out, rows(), COLUMNS)} images, of {len(files)} photographs")


if __name__ == "__main__":
    run(main)
