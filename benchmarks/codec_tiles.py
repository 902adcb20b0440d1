"""What tiles cost: the bits of the same codes at the left edge of a tile and in the middle of one.

    python benchmarks/codec_tiles.py RUN IMAGES.parquet [--images 24]

The images have twice the run's size and a column `image`. The codes of a whole image are cut into tiles twice: once such that column
S starts a tile, once such that it is in the middle of one. Codes in the right half of the image are compared.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from pathlib import Path

import numpy as np
import torch
from _common import keep
from PIL import Image
from pyarrow import parquet
from torch import Tensor

from vqvae2.codes import Codes
from vqvae2.data.pixels import to_float
from vqvae2.run import Run, load


def bits(run: Run, codes: Codes, size: int, top: int, left: int) -> list[Tensor]:
    """-log2 p of the codes of one tile [h, w] per level."""
    levels = []
    for level, (height, width) in zip(codes.levels, run.config.geometry.grids, strict=True):
        stride = size // level.shape[1]
        y, x = top // stride, left // stride
        levels.append(level[:, y : y + height, x : x + width])
    return [-level[0] / math.log(2) for level in run.prior.log_prob_map(Codes(tuple(levels)))]


def main() -> int:
    """Measure and keep the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=24)
    options = parser.parse_args()
    run = load(options.run, "cpu")
    side = run.config.data.size
    found: list[list[list[float]]] = [[] for _ in run.config.geometry.grids]
    table = parquet.read_table(options.data).slice(0, options.images).to_pylist()
    for row in table:
        with Image.open(io.BytesIO(row["image"]["bytes"])) as opened:
            pixels = np.array(opened.convert("RGB"))
        assert pixels.shape[:2] == (2 * side, 2 * side), "expected images of twice the run's size"
        with torch.no_grad():
            codes = run.autoencoder.encode(to_float(torch.from_numpy(pixels)[None]))
            starts = bits(run, codes, 2 * side, side // 2, side)
            middles = bits(run, codes, 2 * side, side // 2, side // 2)
        for level, (start, middle) in enumerate(zip(starts, middles, strict=True)):
            half = start.shape[1] // 2
            pairs = [(start[:, c], middle[:, half + c]) for c in (0, 1)]
            pairs.append((start[:, :half], middle[:, half:]))
            found[level].append([float(values.mean()) for pair in pairs for values in pair])
    names = ["first column of a tile", "second column of a tile", "first half of a tile"]
    keys = [text for name in names for text in (name, f"{name}: the same codes in the middle of one")]
    levels = [dict(zip(keys, np.mean(level, 0).tolist(), strict=True)) for level in found]
    keep("codec-tiles", {"run": Path(options.run).name, "images": len(table), "bits per code": levels})
    return 0


if __name__ == "__main__":
    sys.exit(main())
