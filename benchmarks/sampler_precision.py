"""Bits of held-out images' codes by the steps that draw, with weights in float32 and in bfloat16.

    python benchmarks/sampler_precision.py [--model emoji64] [--data emoji64] [--n 0]

The codes are given, not drawn, so both precisions score the same ones. On a GPU if there is one, with its fused kernels, not
recorded; else with one thread on the CPU. Keeps results/sampler-precision.json.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _common import keep
from _gpu_drawing import DEVICE, static_logits
from torch import Tensor
from torch.nn import functional

import vqvae2
from vqvae2.codes import Codes
from vqvae2.data.batches import sequential, spread
from vqvae2.data.images import open_images
from vqvae2.modes import eval_mode
from vqvae2.prior.hierarchy import HierarchicalPrior
from vqvae2.tf32 import without_tf32

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCH = 64


@torch.no_grad()
def bits_by_steps(
    prior: HierarchicalPrior, codes: Codes, labels: Tensor | None, level: int, weights: torch.dtype
) -> Tensor:
    """Bits per code [B] of a level's codes, by the static steps with weights of that type."""
    own, device = codes.levels[level], codes.levels[level].device
    with eval_mode(prior), without_tf32(device):
        context = prior.level(level).context(codes.levels[:level], prior.check_labels(labels, len(codes)))
        logits = static_logits(prior.level(level), own, context, weights)
    nats = functional.cross_entropy(logits.double(), own.long(), reduction="none")
    return nats.mean((1, 2)) / math.log(2)


@torch.no_grad()
def measured(model: str, data: str, count: int) -> dict[str, Any]:
    """Per level: mean bits per code in both precisions, and how they differ; `count` held-out images, 0 = all."""
    run = vqvae2.load(model, DEVICE)
    found: dict[tuple[int, str], list[Tensor]] = {}
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        images = open_images(data, run.config.data, Path(folder) / "data", say=lambda _: None)
        chosen = spread(images.heldout, count or len(images.heldout))
        for pixels, labels in sequential(images, chosen, run.config.data, batch=BATCH):
            codes = run.autoencoder.encode(pixels.to(DEVICE))
            for level in range(run.config.geometry.levels):
                for name, weights in PRECISIONS.items():
                    bits = bits_by_steps(run.prior, codes, labels, level, weights).cpu()
                    found.setdefault((level, name), []).append(bits)
    figures: dict[str, Any] = {"model": model, "data": data, "device": DEVICE, "held-out images": len(chosen)}
    for level in range(run.config.geometry.levels):
        single, half = (torch.cat(found[level, name]) for name in PRECISIONS)
        figures[f"level {level}"] = {
            "bits per code, float32": single.mean().item(),
            "bits per code, bfloat16": half.mean().item(),
            "difference of the means": (half - single).mean().item(),
            "largest difference of an image": (half - single).abs().max().item(),
        }
    return figures | {"seconds": round(time.perf_counter() - begun, 1)}


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="emoji64", help="a model of the package, or a run folder")
    parser.add_argument("--data", default="emoji64", help="the images that it was trained on")
    parser.add_argument("--n", type=int, default=0, help="held-out images, evenly spread; 0 = all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep("sampler-precision", measured(options.model, options.data, options.n))


if __name__ == "__main__":
    main()
