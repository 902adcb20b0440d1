"""The quantiser's training forward and its memory against the limit of the machine and against the peers.

    python benchmarks/quantizer.py [--rosinality FOLDER] [--repeats 7]

65,536 vectors of 64, codebooks of 512 and of 8,192, float32. All cases of one codebook size run in turn in one process, so
ratios hold on a noisy machine. L0 is the matrix product alone, L1 the product and the index of the least, in the best of
five torch forms. Each peer runs as its users run it: rosinality's `Quantize` from a checkout given by path, and
vector-quantize-pytorch's `VectorQuantize`. Both allocate N x K temporaries anew at each call, so what glibc does with
freed memory decides much of their time: everything is measured once under its defaults and, for the small codebook, once with the heap kept.
Memory is the growth of the process's peak, each case in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import interleaved, keep, summary

from vqvae2.autoencoder.quantizer import VectorQuantizer

N, D = 65_536, 64
SIZES = (512, 8192)
ALLOCATORS = {
    "glibc defaults": {},
    "heap kept": {"MALLOC_MMAP_THRESHOLD_": str(8 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)},
}
LARGE = 4096  # codes from which the peers' kept heaps do not fit into 24 GiB together
Case = Callable[[], object]


def limits(size: int) -> dict[str, Case]:
    """L0 and the forms of L1, on buffers that are there already."""
    z, codes = torch.randn(N, D), torch.randn(size, D)
    norms, index = codes.square().sum(1), torch.empty(N, dtype=torch.int64)
    whole = torch.empty(N, size)

    def chunked(elements: int, search: bool) -> Case:
        rows = elements // size
        held = whole[:rows]

        def run() -> None:
            for start in range(0, N, rows):
                torch.addmm(norms, z[start : start + rows], codes.T, alpha=-2, out=held)
                if search:
                    torch.argmin(held, 1, out=index[start : start + rows])

        return run

    return {
        "L0 whole": lambda: torch.mm(z, codes.T, out=whole),
        "L0 2 MiB": chunked(1 << 19, False),
        "L0 8 MiB": chunked(1 << 21, False),
        "L1 whole, mm": lambda: torch.argmin(torch.mm(z, codes.T, out=whole), 1, out=index),
        "L1 whole, addmm": lambda: torch.argmin(
            torch.addmm(norms, z, codes.T, alpha=-2, out=whole), 1, out=index
        ),
        "L1 0.5 MiB": chunked(1 << 17, True),
        "L1 2 MiB": chunked(1 << 19, True),
        "L1 8 MiB": chunked(1 << 21, True),
    }


def layers(size: int, rosinality: Path | None) -> dict[str, Case]:
    """The training forward of ours and of the peers that are here; the input requires a gradient."""
    z = torch.randn(N, D, requires_grad=True)
    ours = VectorQuantizer(size, D)
    ours(z)  # the first call starts the codebook
    cases: dict[str, Case] = {"vqvae2": lambda: ours(z)}
    plain = VectorQuantizer(size, D).eval()
    cases["vqvae2, evaluation"] = lambda: plain(z)
    if rosinality is not None:
        sys.path.insert(0, str(rosinality))
        theirs = importlib.import_module("vqvae").Quantize(D, size)
        cases["rosinality"] = lambda: theirs(z[None])
    if importlib.util.find_spec("vector_quantize_pytorch"):
        from vector_quantize_pytorch import VectorQuantize

        other = VectorQuantize(dim=D, codebook_size=size, decay=0.99, commitment_weight=0.25)
        cases["vector-quantize-pytorch"] = lambda: other(z[None])
    return cases


def timed(size: int, rosinality: Path | None, repeats: int) -> dict[str, Any]:
    """Milliseconds of every case, and the ratios that matter."""
    torch.manual_seed(0)
    seconds = interleaved({**limits(size), **layers(size, rosinality)}, repeats)
    ms = {name: summary([1e3 * v for v in values]) for name, values in seconds.items()}
    for figures in ms.values():  # `summary` gives rates; here the time itself is wanted
        figures["median"], figures["least"], figures["most"] = (
            1 / figures["median"],
            1 / figures["most"],
            1 / figures["least"],
        )
    least = {
        which: min(figures["median"] for name, figures in ms.items() if name.startswith(which))
        for which in ("L0", "L1")
    }
    own = ms["vqvae2"]["median"]
    ratios = {"of L1": own / least["L1"], "of L0": own / least["L0"]}
    ratios |= {
        f"faster than {name}": ms[name]["median"] / own
        for name in ("rosinality", "vector-quantize-pytorch")
        if name in ms
    }
    return {"ms": ms, "training forward, ratios": ratios}


def peak(size: int, name: str, rosinality: Path | None) -> float:
    """MiB by which three training forwards raise the peak of this process."""
    case = layers(size, rosinality if name == "rosinality" else None)[name]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is held now

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    held = status("VmRSS")
    for _ in range(3):
        case()
    return (status("VmHWM") - held) / 1024


def child(options: argparse.Namespace, *arguments: str, **environment: str) -> Any:
    """The JSON that this script prints in a process of its own."""
    command = [sys.executable, __file__, *arguments, "--repeats", str(options.repeats)]
    if options.rosinality:
        command += ["--rosinality", str(options.rosinality)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rosinality", type=Path, help="a checkout of rosinality/vq-vae-2-pytorch")
    parser.add_argument("--repeats", type=int, default=7, help="counted repetitions (default 7)")
    parser.add_argument("--timed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.timed:
        repeats = options.repeats if options.timed < LARGE else max(3, options.repeats // 2)
        print(json.dumps(timed(options.timed, options.rosinality, repeats)))
        return
    if options.peak:
        print(json.dumps(peak(int(options.peak[0]), options.peak[1], options.rosinality)))
        return
    figures: dict[str, Any] = {"vectors": N, "dimension": D}
    names = ["vqvae2", "vector-quantize-pytorch"] + (["rosinality"] if options.rosinality else [])
    for size in SIZES:
        timings = {
            name: child(options, "--timed", str(size), **environment)
            for name, environment in ALLOCATORS.items()
            if size < LARGE or not environment
        }
        memory = {name: round(child(options, "--peak", str(size), name), 1) for name in names}
        figures[f"K = {size}"] = {**timings, "extra peak memory, MiB": memory}
    keep("quantizer", figures)


if __name__ == "__main__":
    main()
