"""How many images a second tar shards give through fsspec, against the same images in memory.

    python benchmarks/shards.py [--count 400] [--side 512]

The images of `benchmarks/decoding.py` are packed into four shards and read in whole epochs of batches of 32, resized to
64 px: from a local disk and from fsspec's memory file system, with 0 and 2 worker processes; as files in a folder; and, decoded
once, from the cache.
`share of cache` is the rate over that of the cache in the same repetition, and `share of files` over that of the files in the folder, with
as many workers: median, least and most, which bear a busy machine better than the rates do. A network as slow as that of an
object store is not part of this.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import fsspec
from _common import interleaved, keep, summary
from decoding import BATCH, epoch, make_pictures

from vqvae2.config.models import DataConfig
from vqvae2.data.images import open_images

SHARDS = 4
SIZE = 64


def pack(pictures: Path, address: str) -> None:
    """The files of a folder in shards below an address."""
    files, path = fsspec.core.url_to_fs(address)
    files.makedirs(path, exist_ok=True)
    names = sorted(pictures.glob("*.jpg"))
    for number in range(SHARDS):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for file in names[number * len(names) // SHARDS : (number + 1) * len(names) // SHARDS]:
                tar.add(file, file.name)
        files.pipe_file(f"{path}/{number:04d}.tar", packed.getvalue())


def share(base: list[float], values: list[float]) -> dict[str, float]:
    """The rate over that of the base, repetition by repetition."""
    ratios = [one / other for one, other in zip(base, values, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=400, help="images (default 400)")
    parser.add_argument("--side", type=int, default=512, help="their height and width in px (default 512)")
    parser.add_argument("--repeats", type=int, default=5, help="counted repetitions (default 5)")
    options = parser.parse_args()
    figures: dict[str, Any] = {"count": options.count, "side": options.side, "unit": "images/s"}
    figures["load"] = os.getloadavg()[0]  # of the machine, before
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_pictures(root / "pictures", options.count, options.side)
        cases, opened = {}, []
        for place, address in (("local disk", f"file://{root}/shards"), ("memory", "memory://shards")):
            pack(root / "pictures", address)
            for workers in (0, 2):
                config = DataConfig(size=SIZE, cache_gb=0, workers=workers, shuffle_buffer=64)
                folder = root / f"{place} {workers}" / "data"
                images = open_images(f"{address}/*.tar", config, folder, say=lambda _: None)
                opened.append(images)
                cases[f"shards, {place}, {workers} workers"] = epoch(images, config)
        for workers in (0, 2):
            config = DataConfig(size=SIZE, cache_gb=0, workers=workers)
            folder = root / f"files {workers}" / "data"
            images = open_images(str(root / "pictures"), config, folder, say=lambda _: None)
            opened.append(images)
            cases[f"files in a folder, {workers} workers"] = epoch(images, config)
        config = DataConfig(size=SIZE, workers=0)
        images = open_images(str(root / "pictures"), config, root / "cache" / "data", say=lambda _: None)
        opened.append(images)
        cases["cache"] = epoch(images, config)
        served = len(opened[0].train) // BATCH * BATCH
        seconds = interleaved(cases, options.repeats)
        for name, values in seconds.items():
            figures[name] = {**summary(values, served), "share of cache": share(seconds["cache"], values)}
            if name.startswith("shards"):
                files = seconds[f"files in a folder, {name.rpartition(', ')[2]}"]
                figures[name]["share of files"] = share(files, values)
        for images in opened:
            images.close()
    keep("shards", figures)


if __name__ == "__main__":
    main()
