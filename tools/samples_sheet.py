"""A picture of unselected samples, each above the training image nearest to it and a held-out image of its class.

    python tools/samples_sheet.py clothing128 clothing-128.parquet --columns 17 --out docs/images/clothing128-nearest.webp

Sample i has class i modulo the number of classes, so a sheet begins with every class once. "Nearest" is the Euclidean distance in
the features of lite0, which no loss of ours uses; training images count mirrored too, if training mirrored them. Held-out images are those that come first.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import vqvae2
from vqvae2.data.batches import sequential
from vqvae2.data.grid import grid
from vqvae2.data.images import ImageSet, open_images
from vqvae2.evaluate.features import FeatureNetwork
from vqvae2.evaluate.neighbours import nearest_images
from vqvae2.evaluate.networks.by_name import feature_network
from vqvae2.run import Run


def features(images: Tensor, network: FeatureNetwork) -> Tensor:
    """Pooled features [B, F] of images [B, C, H, W] in [-1, 1]."""
    with torch.no_grad():
        return torch.cat([network(batch)[0].flatten(1) for batch in images.split(64)])


def heldout_of(labels: list[int], run: Run, images: ImageSet) -> Tensor:
    """For each label the next held-out image of that class, in the order of the data; the last one again when all were taken."""
    of: dict[int, list[Tensor]] = {}
    for batch, classes in sequential(images, images.heldout, run.config.data, batch=64):
        assert classes is not None
        for image, label in zip(batch, classes.tolist(), strict=True):
            of.setdefault(label, []).append(image)
    taken = dict.fromkeys(of, 0)
    shown = []
    for label in labels:
        shown.append(of[label][min(taken[label], len(of[label]) - 1)])
        taken[label] += 1
    return torch.stack(shown)


def main() -> None:
    """Draw the samples, search their neighbours, write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", help="run folder or shipped model")
    parser.add_argument("data", help="the images it was trained on")
    parser.add_argument("--columns", type=int, default=16)
    parser.add_argument(
        "--rows", type=int, default=1, help="rows of samples, each above its two rows of neighbours"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    run, network = vqvae2.load(options.run, "cpu"), feature_network("lite0", None)
    labels = [i % len(run.classes) for i in range(options.rows * options.columns)]
    with tempfile.TemporaryDirectory() as folder:
        images = open_images(options.data, run.config.data, Path(folder), say=print)
        samples = run.sample(len(labels), labels=torch.tensor(labels), seed=options.seed)
        parts = (
            samples,
            nearest_images(samples, images, run.config.data, partial(features, network=network))[0],
            heldout_of(labels, run, images),
        )
        rows = [
            part[i : i + options.columns] for i in range(0, len(labels), options.columns) for part in parts
        ]
        grid(torch.cat(rows), options.columns).save(options.out, quality=88)


if __name__ == "__main__":
    main()
