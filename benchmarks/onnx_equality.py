"""How equal onnxruntime's results are to ours: codes and images of 1,000 emoji, and grids drawn at temperature 0.

    python benchmarks/onnx_equality.py [--images 1000] [--out results/onnx.json]

Two programs add up in different orders, so a code can differ where two codes are equally near to within rounding. The same
happens in torch between batch sizes; both are counted. Of the codes that differ, the distances are given.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

import vqvae2
from vqvae2.autoencoder.base import Quantizer
from vqvae2.autoencoder.quantizer import VectorQuantizer
from vqvae2.codes import Codes
from vqvae2.data.batches import sequential
from vqvae2.data.images import open_images
from vqvae2.export.onnx_files import export_onnx
from vqvae2.run import Run

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "onnx_sampling.py"
GRIDS = 9


def compare(run: Run, folder: Path, count: int, cache: Path) -> dict[str, Any]:
    """Codes and images of `count` emoji, held-out ones first."""
    encoder, decoder = (
        onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("encoder", "decoder")
    )
    images = open_images("emoji64", run.config.data, cache, say=lambda _: None)
    chosen = np.sort(np.concatenate([images.heldout, images.train])[:count])
    codes = differ = differ_in_torch = 0
    furthest = 0.0
    margins: list[dict[str, float]] = []
    vectors: dict[int, Tensor] = {}  # by level, what is quantised
    for level, quantizer in enumerate(run.autoencoder.quantizers):
        quantizer.register_forward_pre_hook(lambda _, given, level=level: vectors.update({level: given[0]}))
    for batch, _ in sequential(images, chosen, run.config.data, batch=50):
        ours = run.autoencoder.encode(batch)
        theirs = encoder.run(None, {"images": batch.numpy()})
        for level, other in enumerate(theirs):
            quantizer = run.autoencoder.quantizers[level]
            margins += margin(vectors[level], quantizer, ours.levels[level], torch.from_numpy(other))
        single = Codes.cat([run.autoencoder.encode(one) for one in batch.split(7)])
        for own, other, alone in zip(ours.levels, theirs, single.levels, strict=True):
            codes += own.numel()
            differ += int((own.numpy() != other).sum())
            differ_in_torch += int((own != alone).sum())
        (decoded,) = decoder.run(None, {f"codes_{i}": level.numpy() for i, level in enumerate(ours.levels)})
        furthest = max(furthest, float(np.abs(run.autoencoder.decode(ours).numpy() - decoded).max()))
    return {
        "images": len(chosen),
        "codes": codes,
        "codes_that_differ": differ,
        "where_they_differ": margins,
        "codes_that_differ_in_torch_between_batches_of_50_and_7": differ_in_torch,
        "largest_difference_of_a_pixel_value": furthest,
    }


def margin(vectors: Tensor, quantizer: Quantizer, own: Tensor, other: Tensor) -> list[dict[str, float]]:
    """Where two grids of codes [B, h, w] differ: by how much one code is a better choice for the vector [B, h, w, D].

    Returns:
        Of each such place, in float64, the cost of both codes (squared distance plus entropy penalty), their squared distances,
        and the squared length of the vector. Costs are computed as differences of terms as large as that length, so rounding is
        relative to it.
    """
    where = own != other
    pair = torch.stack([own[where], other[where]]).long()
    squares = (quantizer.codebook().double()[pair] - vectors[where].double()).square().sum(2)
    penalty = quantizer._penalty() if isinstance(quantizer, VectorQuantizer) else None
    costs = squares if penalty is None else squares + penalty.double()[pair]
    lengths = vectors[where].double().square().sum(1)
    return [
        {
            "cost_ours": float(ours),
            "cost_onnxruntime": float(theirs),
            "distance_ours": float(near),
            "distance_onnxruntime": float(far),
            "vector": float(length),
        }
        for ours, theirs, near, far, length in zip(*costs, *squares, lengths, strict=True)
    ]


def draw(run: Run, folder: Path) -> dict[str, Any]:
    """Grids at temperature 0, by examples/onnx_sampling.py and by the package."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(folder), str(GRIDS), "0"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    seconds = time.perf_counter() - begun
    ours = run.prior.sample(GRIDS, torch.arange(GRIDS), temperature=0.0)
    pairs = zip(ours.levels, json.loads(done.stdout), strict=True)
    differ = sum(int((level != torch.tensor(other)).sum()) for level, other in pairs)
    return {"grids": GRIDS, "codes_that_differ": differ, "seconds_with_start": seconds}


def main() -> None:
    """Export, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    run = vqvae2.load("emoji64", "cpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "onnx"
        export_onnx(run, folder, vqvae2.Reporter())
        result = {
            "model": "emoji64",
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "autoencoder": compare(run, folder, options.images, Path(temporary) / "data"),
            "drawn_at_temperature_0": draw(run, folder),
        }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
