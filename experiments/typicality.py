"""How well typicality distinguishes a run's held-out images from others: the area under the ROC curve, as JSON.

    python experiments/typicality.py RUN --in DATA --out DATA... [--n 120]

DATA is anything that `vqvae2 train` accepts, with images of any size; they are resized and converted as the run's own are.
Every second held-out image of --in defines what is typical (`evaluate.typicality.Typical`). The others are to be
distinguished from images of each --out and from uniform noise. The same is done with the bits alone, which rate images
that are too likely as typical. No labels are used.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from vqvae2.data.batches import sequential
from vqvae2.data.images import open_images
from vqvae2.errors import UserError
from vqvae2.evaluate.typicality import Typical
from vqvae2.run import Run, load


def log_prob(run: Run, data: str, n: int, heldout: bool) -> Tensor:
    """[at most n, L] log-probability in nats of the held-out images of a data set, or of any of its images, evenly spaced."""
    settings = run.config.data.model_copy(
        update={"cache_gb": 0, "workers": 0}
    )  # decodes no more than is asked for
    with tempfile.TemporaryDirectory() as folder:
        images = open_images(data, settings, Path(folder) / "data", say=lambda _: None)
        chosen = images.heldout if heldout else np.arange(len(images))
        chosen = chosen[np.linspace(0, len(chosen) - 1, min(n, len(chosen))).astype(np.int64)]
        parts = [run.log_prob(part) for part, _ in sequential(images, chosen, run.config.data, batch=64)]
        images.close()
    return torch.cat(parts)


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Area under the ROC curve: the share of pairs whose score outside is the higher one; ties count half."""
    ranks = mannwhitneyu(outside, inside, method="asymptotic")
    return float(ranks.statistic) / (len(inside) * len(outside))


def distinguished(usual: Tensor, inside: Tensor, outside: Tensor) -> dict[str, Any]:
    """AUROC of the typicality score, of the score of each level alone, and of the bits."""
    levels = [slice(None), *(slice(level, level + 1) for level in range(usual.shape[1]))]
    scores = []
    for level in levels:
        typical = Typical(usual[:, level])
        scores.append(auroc(typical.score(inside[:, level]), typical.score(outside[:, level])))
    return {
        "n": len(outside),
        "bits": (-outside.mean(0) / np.log(2)).tolist(),
        "auroc": scores[0],
        "auroc_per_level": scores[1:],
        "auroc_of_bits": auroc(-inside.sum(1), -outside.sum(1)),
    }


def measure(run: Run, data: str, others: Sequence[str], n: int) -> dict[str, Any]:
    """How well noise and images of other data sets are distinguished from the held-out images of the run's own data.

    Raises:
        UserError: fewer than four images are held out.
    """
    heldout = log_prob(run, data, n, heldout=True)
    if len(heldout) < 4:
        raise UserError(f"expected at least 4 held-out images of {data}, found {len(heldout)}")
    usual, inside = heldout[::2], heldout[1::2]
    shape = (len(inside), run.config.data.channels, run.config.data.size, run.config.data.size)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    outside = {"uniform noise": run.log_prob(noise)}
    outside |= {other: log_prob(run, other, n, heldout=False) for other in others}
    return {
        "usual": len(usual),
        "in": {"data": data, "n": len(inside), "bits": (-heldout.mean(0) / np.log(2)).tolist()},
        "out": {name: distinguished(usual, inside, other) for name, other in outside.items()},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--in", dest="inside", required=True, help="the run's own data")
    parser.add_argument("--out", nargs="*", default=[], help="other data")
    parser.add_argument("--n", type=int, default=120, help="maximum number of images of each")
    options = parser.parse_args()
    try:
        figures = measure(load(options.run, "cpu"), options.inside, options.out, options.n)
    except UserError as error:
        parser.error(str(error))
    print(json.dumps({"run": options.run, **figures}, indent=1))


if __name__ == "__main__":
    main()
