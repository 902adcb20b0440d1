"""The paper's two autoencoders on this machine: one training step of one picture, and encoding and decoding it.

    python benchmarks/paper_models.py PICTURE

PICTURE is resized and cropped to the preset's size (256 and 1024 px). Each preset runs in a process of its own; memory is
the growth of the process's peak over what it held with the weights loaded, seconds are of the second of two calls.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import keep
from torch.nn import functional

from vqvae2.autoencoder.model import VQVAE
from vqvae2.config.models import DataConfig
from vqvae2.config.presets import preset
from vqvae2.data.decoding import load_image
from vqvae2.data.pixels import to_float

PRESETS = ("imagenet256", "ffhq1024")


def status(field: str) -> float:
    """A line of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measured(call: Callable[[], object]) -> dict[str, float]:
    """Peak growth of memory in the first call, seconds of the second."""
    Path("/proc/self/clear_refs").write_text("5")
    held = status("VmRSS")
    call()
    grown = status("VmHWM") - held
    began = time.perf_counter()
    call()
    return {"extra peak memory, MiB": round(grown, 1), "seconds": round(time.perf_counter() - began, 3)}


def picture(path: str, size: int) -> torch.Tensor:
    """[1, 3, size, size] in [-1, 1], read as the trainer reads it."""
    return to_float(torch.from_numpy(load_image(path, DataConfig(size=size)))[None])


def one(name: str, path: str) -> dict[str, Any]:
    """The figures of one preset."""
    config = preset(name)
    images = picture(path, config.data.size)
    torch.manual_seed(0)
    model = VQVAE(config.autoencoder).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)

    def step() -> None:
        out = model(images)
        (functional.mse_loss(out.images, images) + out.commitment).backward()
        optimizer.step()
        optimizer.zero_grad()

    model.eval()
    figures: dict[str, Any] = {
        "grids": config.geometry.grids,
        "encode": measured(lambda: model.encode(images)),  # before the step, whose freed memory it would use
    }
    codes = model.encode(images)
    figures["decode"] = measured(lambda: model.decode(codes))
    model.train()
    figures["training step"] = measured(step)
    model.eval()
    codes = model.encode(images)
    with torch.no_grad():
        again = model(images).images.clamp(-1, 1)
    figures["decode(encode) equals the reconstruction to"] = float((model.decode(codes) - again).abs().max())
    return figures


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", help="an image file")
    parser.add_argument("--preset", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.preset:
        print(json.dumps(one(options.preset, options.picture)))
        return
    figures = {}
    for name in PRESETS:
        line = [sys.executable, __file__, options.picture, "--preset", name]
        done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
        figures[name] = json.loads(done.stdout)
    keep("paper_models", figures)


if __name__ == "__main__":
    main()
