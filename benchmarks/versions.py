"""This checkout against another one, on the CPU: has a change made drawing or training slower or faster?

    python benchmarks/versions.py OTHER [--repeats 7] [--name NAME]

OTHER is another checkout of this repository, for example of an earlier commit (`git worktree add ../before COMMIT`). Both
do the same work in processes of their own, in turn, on one thread. What is compared is the time of the processor, which
other jobs on the machine change less than the clock's. The result is kept as results/NAME.json (default: versions.json).

The work, with the preset `demo` and random weights: drawing 8 grids of both levels (samples/draw), a training step of the
autoencoder on 32 images of 64 px, and a training step of each prior on 16 images.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import keep
from torch import nn
from torch.nn import functional

from vqvae2.autoencoder.model import VQVAE
from vqvae2.config.presets import preset
from vqvae2.prior.hierarchy import HierarchicalPrior

_CHILD = "--measure"  # the mode of the processes that this script starts


def jobs() -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    torch.manual_seed(0)
    config = preset("demo")
    autoencoder, images = VQVAE(config.autoencoder).train(), torch.rand(32, 3, 64, 64) * 2 - 1
    prior = HierarchicalPrior(config.prior.model_copy(update={"classes": 9}), config.geometry)
    labels = torch.arange(16) % 9
    grids = [torch.randint(512, (16, *grid)) for grid in config.geometry.grids]

    def draw() -> None:
        prior.eval()
        prior.sample(8, labels[:8], seed=0)

    def stage1(step: Callable[[torch.Tensor], None]) -> None:
        out = autoencoder(images)
        step((out.images - images).square().mean() + out.commitment)

    def stage2(level: int, step: Callable[[torch.Tensor], None]) -> None:
        net = prior.level(level).train()
        logits = net(grids[level], grids[:level], labels)
        classes = logits.shape.index(512)
        step(functional.cross_entropy(logits.movedim(classes, 1), grids[level]))

    return {
        "draw 8 samples": draw,
        "autoencoder, step": lambda: stage1(_step(autoencoder)),
        "prior level 0, step": lambda: stage2(0, _step(prior.level(0))),
        "prior level 1, step": lambda: stage2(1, _step(prior.level(1))),
    }


def _step(net: nn.Module) -> Callable[[torch.Tensor], None]:
    """Gradients of a loss; the optimiser is not ours and costs little."""

    def step(loss: torch.Tensor) -> None:
        net.zero_grad()
        loss.backward()

    return step


def measure() -> dict[str, float]:
    """Seconds of the processor for each job, the median of three after one to warm up."""
    torch.set_num_threads(1)
    found = {}
    for name, job in jobs().items():
        seconds = []
        for _ in range(4):
            began = time.process_time()
            job()
            seconds.append(time.process_time() - began)
        found[name] = statistics.median(seconds[1:])
    return found


def _measured(checkout: Path) -> dict[str, float]:
    """The same in a new process with the package of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, _CHILD]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def compare(other: Path, repeats: int) -> dict[str, Any]:
    """Seconds of both checkouts and, of each pair of turns, their ratio (above 1: this checkout is slower)."""
    own = Path(__file__).resolve().parents[1]
    turns = []
    for _ in range(repeats):
        turns.append((_measured(own), _measured(other)))
        print(json.dumps(turns[-1]), flush=True)
    table = {}
    for name in turns[0][0]:
        ratios = [mine[name] / theirs[name] for mine, theirs in turns]
        table[name] = {
            "this, s": statistics.median(mine[name] for mine, _ in turns),
            "other, s": statistics.median(theirs[name] for _, theirs in turns),
            "ratio": statistics.median(ratios),
            "ratios": sorted(ratios),
        }
    return {"this": _commit(own), "other": _commit(other), "repeats": repeats, "found": table}


def main() -> None:
    """Compare, or measure as one of the processes that compare."""
    if sys.argv[1:] == [_CHILD]:
        print(json.dumps(measure()))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--name", default="versions")
    options = parser.parse_args()
    keep(options.name, compare(options.other, options.repeats))


if __name__ == "__main__":
    main()
