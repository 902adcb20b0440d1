"""The quantiser's training forward and its memory against the limit of the machine and against the peers.

    python benchmarks/quantizer.py [--rosinality FOLDER] [--repeats 7]
    python benchmarks/quantizer.py --gpu [--launches]

65,536 vectors of 64, codebooks of 512 and of 8,192, float32. All cases of one codebook size run in turn in one process, so
ratios hold on a noisy machine. L0 is the matrix product alone, L1 the product and the index of the least, in the best of
five torch forms. Each peer runs as its users run it: rosinality's `Quantize` from a checkout given by path, and
vector-quantize-pytorch's `VectorQuantize`. Both allocate N x K temporaries anew at each call, so what glibc does with
freed memory decides much of their time: everything is measured once under its defaults and, for the small codebook, once with the heap kept.
Memory is the growth of the process's peak, each case in a process of its own.

With --gpu: 262,144 vectors on a CUDA device, milliseconds by CUDA events: the training forward, the search in chunks, and
the fused kernel in every precision with the error of its choices; with --launches, the kernel's launches too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
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
LAUNCHES = tuple(product((64, 128, 256), (32, 64, 128), (4, 8), (2, 3)))  # of the kernel: see its `Launch`
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


def gpu(launches: bool) -> dict[str, Any]:
    """Milliseconds on a CUDA device: training and evaluation forward, and the search in all its forms."""
    from vqvae2.autoencoder import nearest, nearest_triton

    def milliseconds(case: Case, repeats: int = 10) -> float:
        for _ in range(3):
            case()
        spent = []
        for _ in range(repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            case()
            end.record()
            end.synchronize()
            spent.append(begin.elapsed_time(end))
        return statistics.median(spent)

    figures: dict[str, Any] = {"device": torch.cuda.get_device_name(), "vectors": 4 * N, "dimension": D}
    for size in SIZES:
        z, codes = torch.randn(4 * N, D, device="cuda"), torch.randn(size, D, device="cuda")
        training, still = VectorQuantizer(size, D).cuda(), VectorQuantizer(size, D).cuda().eval()
        learning = z.clone().requires_grad_()
        compiled = torch.compile(VectorQuantizer(size, D).cuda())
        rows: dict[str, Any] = {
            "training forward": milliseconds(lambda q=training, x=learning: q(x)),
            "training forward, compiled": milliseconds(lambda q=compiled, x=learning: q(x)),
            "evaluation forward": milliseconds(lambda q=still, x=z: q(x)),
            "search in chunks": milliseconds(lambda x=z, e=codes: nearest._chunks(x, e, None)),
        }
        some = z[:4096].double()
        cost = torch.cdist(some, codes.double()).square()
        scale = some.square().sum(1) + codes.double().square().sum(1).max()
        for precision in nearest_triton.LAUNCHES:
            search = partial(nearest_triton.nearest_code, z, codes, None, precision)
            excess = cost.gather(1, search()[:4096, None])[:, 0] - cost.amin(1)
            rows[f"kernel, {precision}"] = {
                "ms": milliseconds(search),
                "largest excess, 2^-24 of |z|^2 + |e|^2": float((excess / scale).max()) * 2**24,
            }
            for vectors, tile, warps, stages in LAUNCHES if launches else ():
                launch = nearest_triton.Launch(vectors, tile, warps, stages)
                try:
                    rows[f"kernel, {precision}, {launch}"] = milliseconds(partial(search, launch=launch))
                except Exception as error:  # too much shared memory for this card
                    rows[f"kernel, {precision}, {launch}"] = " ".join(str(error).split())[:80]
        figures[f"K = {size}"] = rows
    return figures


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
    parser.add_argument("--gpu", action="store_true", help="on a CUDA device instead")
    parser.add_argument("--launches", action="store_true", help="with --gpu: every launch of the kernel")
    options = parser.parse_args()
    if options.gpu:
        keep("quantizer-gpu", gpu(options.launches))
        return
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
