"""Several rates with one trained model: how many bytes and decibels the weight of a code's bits when codes are chosen is worth.

    python benchmarks/codec_rate.py [--run emoji64] [--data emoji64] [--images 32]

`entropy_penalty` is a setting of the training, but it may be changed when images are encoded, too: a larger one takes likelier codes that
are further from the features. The weights stay as they are, and so files of every rate decode with the same run. The images are those
that `vqvae2 evaluate --only compression` takes. WebP, which is the nearest of the other formats, is measured at the PSNR of each rate.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from _common import keep

from vqvae2.autoencoder.quantizer import VectorQuantizer
from vqvae2.data.images import open_images
from vqvae2.data.pixels import psnr, to_float, to_uint8
from vqvae2.evaluate.other_codecs import other_codecs
from vqvae2.evaluate.parts.compression import _compared
from vqvae2.evaluate.sets import shuffled
from vqvae2.run import load

PENALTIES = (0.0, 0.2, 1.0, 2.0, 4.0, 8.0)


def main() -> int:
    """Compress with each penalty and keep the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="emoji64")
    parser.add_argument("--data", default="emoji64")
    parser.add_argument("--images", type=int, default=32)
    options = parser.parse_args()
    run = load(options.run, "cpu")
    with tempfile.TemporaryDirectory() as name:
        images = open_images(options.data, run.config.data, Path(name) / "data", seed=0)
        chosen = shuffled(images.heldout, 0)[: options.images]
        originals, labels = to_float(images.pixels(chosen)), images.labels_of(chosen).tolist()
        images.close()
    webp = next(other for other in other_codecs() if other.name == "WebP")
    rows = []
    for penalty in PENALTIES:
        for quantizer in run.autoencoder.quantizers:
            assert isinstance(quantizer, VectorQuantizer), "expected codebooks of moving averages"
            quantizer.entropy_penalty = penalty
        files = run.codec.compress(list(originals), labels)
        decoded = torch.stack(run.codec.decode(run.codec.decompress(files)))
        decibels = psnr(to_float(to_uint8(decoded)), originals).numpy()
        sizes = np.array([len(file) for file in files], np.float64)
        other, _ = _compared(webp, list(originals), {"bytes": sizes, "psnr": decibels}, None)
        row = {"entropy_penalty": penalty, "bytes": float(sizes.mean()), "psnr": float(decibels.mean())}
        rows.append(row | {"webp": other["bytes_at_equal_psnr"]})
        print(rows[-1], flush=True)
    keep("codec-rate", {"run": Path(options.run).name, "images": len(chosen), "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
