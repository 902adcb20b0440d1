"""What one GPU does: every row of training, encoding and drawing, in under five minutes.

    python benchmarks/gpu.py [--only ROWS] [--seconds 0.4] [--budget 240] [--rosinality FOLDER] [--out FILE] [--tiny]

Rows begin in the order of ROWS below until the budget is spent; each figure is written to the file at once, and a row that
fails leaves its traceback there. Weights and inputs are random. Medians of about --seconds each, timed by CUDA events.
`--tiny` runs small sizes, on a CPU if there is no GPU, to check the script.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _gpu_training as training
import torch
from _common import RESULTS
from _gpu_common import CUDA, DEVICE, Report, peak, short
from torch import Tensor

from vqvae2.autoencoder.quantizer import VectorQuantizer
from vqvae2.train.device import switches


def ceilings(report: Report) -> None:
    """What the card can do: large products, and copies."""
    side = 256 if report.tiny else 8192
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            a, b = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
            report(f"{name} product, TFLOP/s", 2 * side**3 / report.ms(lambda a=a, b=b: a @ b) / 1e9)
        finally:
            torch.set_float32_matmul_precision(before)
    x = torch.empty(2**20 if report.tiny else 2**30, dtype=torch.uint8, device=DEVICE)
    y = torch.empty_like(x)
    report("copy, TB/s read and written", 2 * x.numel() / report.ms(lambda: y.copy_(x)) / 1e9)


def quantizer(report: Report) -> None:
    """N = 262,144 vectors of 64: ours, and a chunked product with argmin, which does the search alone."""
    count, dim = (2048 if report.tiny else 262_144), 64
    for size in (64,) if report.tiny else (512, 8192):
        z, codebook = torch.randn(count, dim, device=DEVICE), torch.randn(size, dim, device=DEVICE)
        ms: dict[str, Any] = {}
        with report.part(f"K {size}"), torch.no_grad():
            ms["chunked product and argmin"] = report.ms(lambda e=codebook, z=z: chunked(z, e))
            ms["product alone"] = report.ms(lambda e=codebook, z=z: [part @ e.T for part in z.split(32768)])
        for name, options in (
            ("training forward", {}),
            ("without revival", {"revive": False}),
            ("entropy penalty 0.2", {"entropy_penalty": 0.2}),
        ):
            with report.part(f"K {size}, {name}"), torch.no_grad():
                ours = VectorQuantizer(size, dim, **options).to(DEVICE).train()
                ours(z)
                ms[f"ours, {name}"] = report.ms(lambda q=ours, z=z: q(z))
                if not options:
                    ours.eval()
                    ms["ours, forward outside training"] = report.ms(lambda q=ours, z=z: q(z))
                    ms["ours, training forward, captured"] = replayed(report, ours.train(), z)
                    ms["GB"] = peak()
        for name, search in searches().items():
            with report.part(f"K {size}, {name}"), torch.no_grad():
                ms[name] = report.ms(lambda s=search, e=codebook, z=z: s(z, e))
                ms[f"{name}: codes that differ from float64's"] = differing(search, z, codebook)
        report(f"K {size}, N {count}, ms", ms)


def chunked(z: Tensor, codebook: Tensor) -> list[Tensor]:
    """The search as a product and an argmin, in chunks whose distances fit a cache of the card."""
    norms = codebook.square().sum(1)
    rows = 32768 if len(codebook) <= 512 else 8192
    return [torch.addmm(norms, part, codebook.T, alpha=-2).argmin(1) for part in z.split(rows)]


def replayed(report: Report, module: torch.nn.Module, z: Tensor) -> float:
    """Milliseconds of the module as a replayed CUDA graph; nan without a card."""
    if not CUDA:
        return float("nan")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            module(z)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        module(z)
    return report.ms(graph.replay)


def searches() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The searches of the project that this machine can run, by name."""
    found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
    try:
        from vqvae2.autoencoder import nearest

        found["search, as chosen"] = nearest.nearest_code
        found["search, torch's"] = lambda z, e: nearest._chunks(z, e, None)
    except (ImportError, AttributeError):
        from vqvae2.autoencoder import quantizer as old

        found["search, as chosen"] = old.nearest_code  # type: ignore[attr-defined]
    try:
        from vqvae2.autoencoder import nearest_triton

        for precision in nearest_triton.LAUNCHES:
            found[f"search, Triton {precision}"] = functools.partial(
                nearest_triton.nearest_code, precision=precision
            )
    except (ImportError, AttributeError):
        pass
    return found


def differing(search: Callable[[Tensor, Tensor], Tensor], z: Tensor, codebook: Tensor) -> int:
    """How many of the first 16,384 vectors get another code than in float64."""
    part = z[:16384]
    wide, exact = part.double(), codebook.double()
    expected = (exact.square().sum(1) - 2 * wide @ exact.T).argmin(1)
    return int((search(part, codebook) != expected).sum())


def codec(report: Report) -> None:
    """Encoding and decoding 256 px, batch 128, by precision."""
    config, size, batch = training.paper(report)
    case = training.autoencoder_case(config.autoencoder, size, batch)
    model = case.model.eval()
    images = (case.batch[0].permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(
        memory_format=torch.channels_last
    )
    for name, bf16 in (("bf16", True), ("float32 (decoding TF32)", False)):
        choices = training.replace(training.EAGER, bf16=bf16)
        with report.part(name), switches(choices), torch.no_grad(), choices.autocast():
            codes = model.encode(images)
            encode = report.ms(lambda: model.encode(images))
            decode = report.ms(lambda c=codes: model.decode(c))
            report(
                f"{size} px, batch {batch}, {name}, images/s",
                {"encode": batch * 1e3 / encode, "decode": batch * 1e3 / decode},
            )


def process(report: Report) -> None:
    """`vqvae2 sample emoji64 --n 64` as a user runs it, twice: the second time Triton's kernels are compiled and files are read."""
    count = 1 if report.tiny else 64
    for name in ("first", "second"):
        with tempfile.TemporaryDirectory() as scratch, report.part(name):
            command = [
                sys.executable,
                "-m",
                "vqvae2",
                "sample",
                "emoji64",
                "--n",
                str(count),
                "--out",
                scratch,
            ]
            began = time.perf_counter()
            subprocess.run([*command, "--quiet"], check=True, stdout=subprocess.DEVNULL)
            report(f"sample emoji64 --n {count}, {name} process, s", time.perf_counter() - began)


def drawing(report: Report) -> None:
    """The rows of `_gpu_drawing.py`, in half of the time that is left; the compiled rows come after it."""
    import _gpu_drawing  # type: ignore[import-not-found]

    left = report.budget - report.spent()
    _gpu_drawing.rows(report, tiny=report.tiny, seconds=max(20.0, left / 2))


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", default="", help="rows, separated by commas; default all: see --help of ROWS in the file"
    )
    parser.add_argument("--seconds", type=float, default=0.4, help="time of one measurement (default 0.4)")
    parser.add_argument(
        "--budget", type=float, default=240.0, help="begin no row after so many seconds (default 240)"
    )
    parser.add_argument("--rosinality", type=Path, help="a checkout of rosinality/vq-vae-2-pytorch")
    parser.add_argument("--out", type=Path, help="the JSON (default results/gpu-CARD.json)")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to check the script")
    options = parser.parse_args()
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # before the first product, for the row `laws`
    card = torch.cuda.get_device_name().replace(" ", "-").lower() if CUDA else "none"
    report = Report(
        options.out or RESULTS / f"gpu-{card}.json", options.seconds, options.tiny, options.budget
    )
    plain, fast = ["eager", "captured"], ["compiled", "compiled and captured"]
    rows: dict[str, Callable[[], None]] = {
        "ceilings": lambda: ceilings(report),
        "laws": lambda: training.laws(report),
        "syncs": lambda: training.synchronisations(report),
        "small": lambda: training.small(report, plain),
        "stage1": lambda: training.stage1(report, plain, options.rosinality),
        "quantizer": lambda: quantizer(report),
        "stage2": lambda: training.stage2(report, plain),
        "codec": lambda: codec(report),
        "fit": lambda: training.whole(report),
        "feeding": lambda: training.feeding(report),
        "fed-priors": lambda: training.fed_priors(report),
        "process": lambda: process(report),
        "drawing": lambda: drawing(report),
        "stage1-compiled": lambda: training.stage1(report, fast, None),
        "small-compiled": lambda: training.small(report, fast),
        "stage2-compiled": lambda: training.stage2(report, fast[:1]),
    }
    chosen = options.only.split(",") if options.only else list(rows)
    unknown = [name for name in chosen if name not in rows]
    if unknown:
        parser.error(f"no row {unknown[0]!r}: expected some of {', '.join(rows)}")
    for name in chosen:
        report.row = name
        if report.late():
            report("not run", "the time was spent")
            continue
        began = report.spent()
        with report.part("row"):
            rows[name]()
        report("seconds", round(report.spent() - began, 1))
    report.row = ""
    print("\n" + "\n".join(f"{name:<70} {short(value)}" for name, value in report.figures.items()))
    for name, text in report.failures.items():
        print(f"\n--- {name}\n{text}")


if __name__ == "__main__":
    main()
