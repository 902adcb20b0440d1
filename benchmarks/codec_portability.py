"""Whether files compressed in one process decode to the same codes in others that compute differently, and by how much their logits differ.

    python benchmarks/codec_portability.py [--run emoji64] [--data emoji64] [--images 64] [--alone 16] [--keep codec-portability] [--card]

One process compresses images of the data, held-out ones first (16 side by side, one thread). Further processes decode them: all
combinations of 1 and 2 threads, batches of 1 and 16, `ATEN_CPU_CAPABILITY=default` and `avx2`, and oneDNN on and off. With a batch of 1
only `--alone` images are decoded. Each process also writes the logits that the prior gives along the known codes of `--alone`
images, and they are compared with those of the first process. `--card` compares a CPU with a GPU instead: each writes the files, both decode them, 64 side by side.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import keep
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.codec import prior_coding
from vqvae2.codec.errors import CodecError
from vqvae2.codec.frequencies import EDGE, STEPS
from vqvae2.data.images import open_images
from vqvae2.data.pixels import to_float
from vqvae2.run import Run, load


class Kept:
    """Notes the logits of the first lanes while files are decoded."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.usual = prior_coding.on_grid
        prior_coding.on_grid = self  # type: ignore[assignment]

    def __call__(self, logits: Tensor) -> Any:
        self.rows.append(logits.clone())
        return self.usual(logits)


def decode(run: Run, folder: Path, out: Path, batch: int, alone: int) -> None:
    """Decode the files of a folder; write the codes and the logits of the first `alone` images."""
    files = sorted(folder.glob("*.vq"))[: alone if batch == 1 else None]
    contents = [file.read_bytes() for file in files]
    kept, codes, logits = Kept(), [], []
    with contextlib.suppress(CodecError):
        run.codec.decompress(contents[:1])  # so that the time is without preparations
    begun = time.perf_counter()
    positions = sum(run.codec.geometry.positions)
    for at in range(0, len(contents), batch):
        kept.rows = []
        part = contents[at : at + batch]
        try:
            found, rows = _codes(run, part), kept.rows
        except CodecError:  # the logits of positions that were not reached are unknown
            rows = kept.rows + [torch.full_like(kept.rows[0], math.nan)] * (positions - len(kept.rows))
            found = [_codes_if_right(run, data, positions) for data in part]
        codes += found
        if at < alone:  # [B, positions of all levels, K]
            logits.append(torch.stack(rows, 1).cpu().numpy())
    seconds = time.perf_counter() - begun
    np.savez(out, codes=np.stack(codes), logits=np.concatenate(logits)[:alone], seconds=seconds)


def _codes(run: Run, contents: list[bytes]) -> list[NDArray[Any]]:
    """The codes of each file, all levels in a row."""
    return [
        np.concatenate([grid.reshape(-1) for grid in one.grids]) for one in run.codec.decompress(contents)
    ]


def _codes_if_right(run: Run, data: bytes, positions: int) -> NDArray[Any]:
    """The codes of a file; -1 everywhere if what is decoded is refused because it is not what was written."""
    try:
        return _codes(run, [data])[0]
    except CodecError:
        return np.full(positions, -1)


def worker(options: argparse.Namespace) -> None:
    """One process with settings of its own."""
    torch.set_num_threads(options.threads)
    torch.backends.mkldnn.enabled = options.onednn == "on"  # type: ignore[assignment]
    run = load(options.run, options.device)
    folder = Path(options.worker)
    if options.write:
        images = open_images(options.data, run.config.data, folder / "data", seed=0)
        chosen = np.concatenate([images.heldout, images.train])[: options.images]
        some, labels = to_float(images.pixels(chosen)), images.labels_of(chosen).tolist()
        begun = time.perf_counter()
        for at in range(0, len(some), 16):
            for number, data in enumerate(run.codec.compress(list(some[at : at + 16]), labels[at : at + 16])):
                (folder / f"{at + number:04d}.vq").write_bytes(data)
        (folder / "seconds").write_text(str(time.perf_counter() - begun))
        return
    decode(run, folder, Path(options.out), options.batch, options.alone)


def start(options: argparse.Namespace, folder: Path, capability: str, **settings: Any) -> None:
    """Run a worker and wait for it."""
    words = [f"--{name}={value}" for name, value in settings.items()]
    names = ("images", "alone", "run", "data")
    words += [f"--{name}={getattr(options, name)}" for name in names]
    own = {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": str(settings["threads"])}
    subprocess.run(
        [sys.executable, __file__, f"--worker={folder}", *words],
        check=True,
        env={**os.environ, **own, "OMP_WAIT_POLICY": "passive"},
    )


def card(options: argparse.Namespace) -> dict[str, Any]:
    """Files written on the CPU and on the card, each decoded on both: how many images have equal codes, and how far logits differ."""
    rows = []
    for writer in ("cpu", "cuda"):
        with tempfile.TemporaryDirectory() as name:
            folder, found = Path(name), {}
            start(options, folder, "avx2", threads=4, write=1, device=writer)
            for reader in ("cpu", "cuda"):
                out = folder / f"{reader}.npz"
                start(options, folder, "avx2", threads=4, batch=64, out=out, device=reader)
                with np.load(out) as file:
                    found[reader] = {key: file[key] for key in file.files}
            ours, theirs = found["cpu"], found["cuda"]
            apart = np.abs(ours["logits"] - theirs["logits"])
            rows.append(
                {
                    "written on": writer,
                    "images": len(ours["codes"]),
                    "equal": int((ours["codes"] == theirs["codes"]).all(1).sum()),
                    "largest": float(np.nanmax(apart)),
                    "mean": float(np.nanmean(apart)),
                    "seconds": {reader: float(found[reader]["seconds"]) for reader in found},
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return {"run": Path(options.run).name, "card": torch.cuda.get_device_name(), "rows": rows}


def main() -> int:
    """Compress, decode in every combination, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="emoji64")
    parser.add_argument("--images", type=int, default=64, help="images that are decoded 16 side by side")
    parser.add_argument("--alone", type=int, default=16, help="images that are decoded one by one")
    parser.add_argument("--data", default="emoji64", help="the images")
    parser.add_argument("--keep", default="codec-portability", help="name of the file in results/")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--write", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--out", default="", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=16, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--onednn", default="on", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    parser.add_argument("--card", action="store_true", help="only CPU against CUDA: each writes, both decode")
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return 0
    if options.card:
        keep(options.keep, card(options))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start(options, folder, "avx2", threads=1, write=1)
        sizes = [file.stat().st_size for file in folder.glob("*.vq")]
        listed = sum(bool(file.read_bytes()[2] & 8) for file in folder.glob("*.vq"))
        rows, first = [], None
        for capability, threads, onednn, batch in itertools.product(
            ("avx2", "default"), (1, 2), ("on", "off"), (16, 1)
        ):
            out = folder / "found.npz"
            start(options, folder, capability, threads=threads, onednn=onednn, batch=batch, out=out)
            with np.load(out) as found:
                codes, logits, seconds = found["codes"], found["logits"], float(found["seconds"])
            first = (codes, logits) if first is None else first
            apart = np.abs(logits - first[1])
            row = {"capability": capability, "threads": threads, "onednn": onednn, "batch": batch}
            row |= {"images": len(codes), "equal": int((codes == first[0][: len(codes)]).all(1).sum())}
            row |= {"largest": float(apart.max()), "mean": float(apart.mean()), "seconds": seconds}
            rows.append(row)
            print(json.dumps(row), flush=True)
    # an edge lies between two logits that differ by d with probability d x STEPS; of the images, all logits count
    logits_per_image = int(np.prod(first[1].shape[1:]))
    worst = max(row["mean"] for row in rows)
    result = {
        "run": Path(options.run).name,
        "bytes": float(np.mean(sizes)),
        "files with listed positions": listed,
        "logits per image": logits_per_image,
        "crossings per image without a list": worst * STEPS * logits_per_image,
        "edge": EDGE,
        "edge over the largest difference": EDGE / max(row["largest"] for row in rows),
        "rows": rows,
    }
    keep(options.keep, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
