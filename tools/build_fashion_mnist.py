"""Build Fashion-MNIST (Zalando, MIT licence) as one parquet file: 70,000 grey images of 28x28 px.

    python tools/build_fashion_mnist.py --out fashion_mnist.parquet
    python tools/build_fashion_mnist.py --idx-dir /usr/share/datasets/fashion-mnist

Without `--idx-dir` it fetches the Debian package dataset-fashion-mnist (31 MB) with `apt-get download` and
unpacks it in a temporary folder; nothing is installed. It needs pillow and pyarrow.
"""

from __future__ import annotations

import argparse
import gzip
import io
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from _parquet import BadInput, Kind, Row, image_value, run, write_parquet

PACKAGE = "dataset-fashion-mnist"
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
PARTS = {"train": "train", "test": "t10k"}
COLUMNS: dict[str, Kind] = {"image": "image", "label": CLASSES, "split": "string"}


def fetch(folder: Path) -> Path:
    """Download and unpack the Debian package in `folder`; return the folder of the IDX files."""
    call(["apt-get", "download", PACKAGE], folder)
    archives = list(folder.glob(f"{PACKAGE}_*.deb"))
    if not archives:
        raise BadInput(f"apt-get download {PACKAGE} left no file")
    call(["dpkg-deb", "-x", str(archives[0]), "tree"], folder)
    return folder / "tree" / "usr" / "share" / "datasets" / "fashion-mnist"


def call(command: list[str], folder: Path) -> None:
    """Run a Debian tool; if it fails, report the first line of its error."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise BadInput(f"{command[0]} is not installed; give the IDX files with --idx-dir") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or error.stdout).strip().splitlines()
        raise BadInput(f"{' '.join(command)} failed: {reason[0] if reason else 'no message'}") from None


def read_idx(folder: Path, name: str) -> tuple[tuple[int, ...], bytes]:
    """Shape and bytes of an IDX file of unsigned bytes, plain or with gzip.

    The header is two zeros, the type (8: unsigned byte), the number of axes, and each axis as a big-endian
    int32.
    """
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise BadInput(f"no {name} or {name}.gz in {folder}")
    data = path.read_bytes()
    try:
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError) as error:
        raise BadInput(f"{path}: {error}") from None
    axes = data[3] if len(data) > 3 and data[:3] == b"\0\0\x08" else 0
    start = 4 + 4 * axes
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4))
    size = 1
    for side in shape:
        size *= side
    if not axes or len(data) != start + size:
        raise BadInput(f"{path} is not a whole IDX file of unsigned bytes")
    return shape, data[start:]


def read_split(folder: Path, split: str, side: int) -> Iterator[Row]:
    """The rows of one split; images smaller than `side` are centred in a black square of that side."""
    shape, pixels = read_idx(folder, f"{PARTS[split]}-images-idx3-ubyte")
    (count, *_), labels = read_idx(folder, f"{PARTS[split]}-labels-idx1-ubyte")
    if len(shape) != 3 or shape[0] != count or max(labels, default=0) >= len(CLASSES):
        raise BadInput(f"images and labels of {split} in {folder} do not match")
    height, width = shape[1:]
    for index, label in enumerate(labels):
        start = index * height * width
        image = Image.frombytes("L", (width, height), pixels[start : start + height * width])
        if side > max(width, height):
            square = Image.new("L", (side, side))
            square.paste(image, ((side - width) // 2, (side - height) // 2))
            image = square
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        yield {
            "image": image_value(buffer.getvalue(), f"{split}-{index:05}.png"),
            "label": label,
            "split": split,
        }


def build(folder: Path, out: Path, side: int = 0) -> None:
    """Write both splits and print how large they are."""
    for split in PARTS:
        read_idx(folder, f"{PARTS[split]}-labels-idx1-ubyte")  # fail before the long part, not in its middle
    rows = (row for split in PARTS for row in read_split(folder, split, side))
    count = write_parquet(out, rows, COLUMNS)
    print(f"{out}: {count} images, {out.stat().st_size / 1e6:.1f} MB, MIT licence, Zalando SE")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Build Fashion-MNIST (28x28 px, 10 classes) as one parquet file."
    )
    out = Path("fashion_mnist.parquet")
    parser.add_argument(
        "--out", type=Path, default=out, help="output file, or a folder (default: %(default)s)"
    )
    padding = (
        "side in px of the black square in which each image is centred, e.g. 32 (default: 28, as they are)"
    )
    parser.add_argument("--pad", type=int, default=0, help=padding)
    source = "folder with the four IDX files, plain or .gz (default: fetch the Debian package, 31 MB)"
    parser.add_argument("--idx-dir", type=Path, help=source)
    return parser.parse_args()


def main() -> None:
    """Build from the given folder, or from a fresh download."""
    args = parse_args()
    out = args.out / "fashion_mnist.parquet" if args.out.is_dir() else args.out
    if args.idx_dir is not None:
        build(args.idx_dir, out, args.pad)
        return
    with tempfile.TemporaryDirectory() as folder:
        build(fetch(Path(folder)), out, args.pad)


if __name__ == "__main__":
    run(main)
