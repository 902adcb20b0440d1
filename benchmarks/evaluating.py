"""The measures of 10,000 samples against 10,000 real images: time and memory of each, and the time of the features.

    python benchmarks/evaluating.py [--n 10000] [--images 256]

Features are random vectors of 1,280 numbers, kept in memory (51 MB a set); each measure runs in a separate process, so that its
peak memory can be read. The feature network is timed on `--images` images of 64 px: the whole of `extract` against the forward
pass of the network alone on images that are already resized, alternating.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from _common import interleaved, keep

from vqvae2.evaluate.features import extract
from vqvae2.evaluate.manifolds import manifolds, nearest
from vqvae2.evaluate.metrics import Moments, class_score, frechet_distance, kernel_distance
from vqvae2.evaluate.networks.by_name import feature_network

DIMENSION, CLASSES = 1280, 1000


def vectors(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets [n, D] of about a hundred effective dimensions."""
    random = torch.Generator().manual_seed(0)
    mix = torch.randn(100, DIMENSION, generator=random)
    return torch.randn(n, 100, generator=random) @ mix, torch.randn(n, 100, generator=random) @ mix


MEASURES: dict[str, Callable[[torch.Tensor, torch.Tensor], object]] = {
    "nothing": lambda real, samples: None,
    "frechet distance": lambda real, samples: frechet_distance(Moments.of(real), Moments.of(samples)),
    "kernel distance, 100 draws of 1,000": kernel_distance,
    "precision, recall, density, coverage": manifolds,
    "nearest real picture": lambda real, samples: nearest(samples, real),
    "score": lambda real, samples: class_score((samples[:, :CLASSES] / 10).softmax(1)),
}


def one(name: str, n: int) -> None:
    """Print the seconds of a measure and the peak memory of this process."""
    real, samples = vectors(n)
    begun = time.perf_counter()
    MEASURES[name](real, samples)
    seconds = time.perf_counter() - begun
    print(
        json.dumps({"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})
    )


def main() -> None:
    """All measures, then the network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        one(options.measure, options.n)
        return
    results: dict[str, Any] = {}
    for name in MEASURES:
        command = [sys.executable, __file__, "--n", str(options.n), "--measure", name]
        results[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        results[name]["beside_the_sets_mb"] = results[name]["peak_mb"] - results["nothing"]["peak_mb"]
    network: Any = feature_network()
    images = torch.rand(options.images, 3, 64, 64) * 2 - 1
    ready = torch.randn(16, 3, network.size, network.size).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward() -> None:
        for _ in range(options.images // 16):
            network.net._fc(network.net.extract_features(ready).mean((2, 3)))

    seconds = interleaved({"extract": lambda: extract(network, images.split(64)), "network": forward}, 5)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    keep("evaluating", {
        "n": options.n, "dimension": DIMENSION, "measures": results,
        "features": {
            "network": network.name,
            "extract, ms a picture": 1e3 * medians["extract"] / options.images,
            "network alone, ms a picture": 1e3 * medians["network"] / options.images,
            "share of the network": medians["network"] / medians["extract"],
        },
    })  # fmt: skip


if __name__ == "__main__":
    main()
