"""The autoencoder against rosinality's, both with its exact architecture, and against the machine's peak.

    python benchmarks/autoencoder.py [--rosinality FOLDER] [--compile] [--repeats 7]

256 px, batches of 8, float32: encoding, and a training step (forward, loss, backward, Adam). Cases run in turn in one
process. The roofline is the rate of a large matrix product and of a 3x3 convolution of 128 channels, measured in the same
turns; how far the training step is from it is its FLOPs (counted) over its time over that rate.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import interleaved, keep, summary
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from vqvae2.autoencoder.model import VQVAE
from vqvae2.config.models import AutoencoderConfig

SIZE, BATCH = 256, 8
CONFIG = AutoencoderConfig(residual=32)  # rosinality's defaults; the paper's residual units are 64


def ours(images: torch.Tensor, compiled: bool) -> dict[str, Callable[[], object]]:
    """Encode and training step as the pipeline does them: channels last."""
    model = VQVAE(CONFIG).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, weight_decay=0)
    call: Any = torch.compile(model) if compiled else model

    def step() -> None:
        out = call(images)
        (functional.mse_loss(out.images, images) + out.commitment).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    still = VQVAE(CONFIG).to(memory_format=torch.channels_last).eval()
    encode: Any = torch.compile(still.encode) if compiled else still.encode
    return {"encode": lambda: encode(images), "step": step}


def theirs(images: torch.Tensor, folder: Path) -> dict[str, Callable[[], object]]:
    """The same two of rosinality's, as its train_vqvae.py does them."""
    sys.path.insert(0, str(folder))
    kind = importlib.import_module("vqvae").VQVAE
    model, still = kind(), kind().eval()
    optimizer = torch.optim.Adam(model.parameters(), 3e-4)

    def step() -> None:
        model.zero_grad()
        out, latent = model(images)
        (functional.mse_loss(out, images) + 0.25 * latent.mean()).backward()
        optimizer.step()

    @torch.no_grad()
    def encode() -> object:
        return still.encode(images)

    return {"encode": encode, "step": step}


def roofline() -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """A matrix product and a convolution, and the FLOPs of each."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    convolution = (
        nn.Conv2d(128, 128, 3, padding=1).to(memory_format=torch.channels_last).requires_grad_(False)
    )
    x = torch.randn(8, 128, 64, 64).to(memory_format=torch.channels_last)
    cases: dict[str, Callable[[], object]] = {"GEMM": lambda: a @ b, "convolution": lambda: convolution(x)}
    return cases, {"GEMM": 2 * 2048**3, "convolution": 2 * 9 * 128 * 128 * 8 * 64 * 64}


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rosinality", type=Path, help="a checkout of rosinality/vq-vae-2-pytorch")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--repeats", type=int, default=7, help="counted repetitions (default 7)")
    options = parser.parse_args()
    torch.manual_seed(0)
    images = torch.rand(BATCH, 3, SIZE, SIZE) * 2 - 1
    cases, flops = roofline()
    own = ours(images.to(memory_format=torch.channels_last), False)
    with FlopCounterMode(display=False) as counter:
        own["step"]()
    flops["step"] = counter.get_total_flops()
    cases |= {f"vqvae2 {name}": case for name, case in own.items()}
    figures: dict[str, Any] = {"size": SIZE, "batch": BATCH}
    if options.rosinality:
        cases |= {f"rosinality {name}": case for name, case in theirs(images, options.rosinality).items()}
    if options.compile:
        began = time.perf_counter()
        compiled = ours(images.to(memory_format=torch.channels_last), True)  # compiles the step
        stepped = time.perf_counter()
        compiled["encode"]()
        done = time.perf_counter()
        figures["first call of the compiled, s"] = {"step": stepped - began, "encode": done - stepped}
        cases |= {f"vqvae2 compiled {name}": case for name, case in compiled.items()}
    seconds = interleaved(cases, options.repeats)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    figures["images/s"] = {name: summary(values, BATCH) for name, values in seconds.items() if " " in name}
    peak = {name: flops[name] / median[name] / 1e9 for name in ("GEMM", "convolution")}
    figures["peak, GFLOP/s"] = peak
    figures["training step"] = {
        "GFLOP per image": flops["step"] / BATCH / 1e9,
        "GFLOP/s": flops["step"] / median["vqvae2 step"] / 1e9,
        "share of the better peak": flops["step"] / median["vqvae2 step"] / 1e9 / max(peak.values()),
    }
    figures["ratios to rosinality"] = {
        name: median[f"rosinality {name.split()[-1]}"] / median[name]
        for name in median
        if name.startswith("vqvae2") and options.rosinality
    }
    keep("autoencoder", figures)


if __name__ == "__main__":
    main()
