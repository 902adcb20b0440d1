"""Held-out bits per code of our prior and of rosinality's PixelSNAIL: same codes, same order, same time, a core each.

    python benchmarks/priors.py RUN --rosinality FOLDER --level 0 [--minutes 30] [--judge-every 100] [--lr 3e-4] [--set KEY=VALUE ...]

RUN is a run folder with a code store (`vqvae2 train`). Both are scaled to about 3 million parameters: theirs by its width,
with its other defaults and its training loop (Adam, constant rate, no clipping); ours by the settings below, with the inner
width that brings it nearest to theirs, trained by our loop. Neither is given the classes, which theirs cannot take, unless --classes gives them to ours. Both run at once, each in a
process of its own with one thread on one core. The clock counts the processor's time of that thread, which other work on
the machine does not change, and stands still while held-out pictures are judged. The weights of the best judgement count, for
both. Keeps results/priors-NAME-level-L.json, NAME being the run folder's.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _common import count, keep
from accelerate import Accelerator
from torch import nn
from torch.nn import functional

from vqvae2.config.models import Config, parse
from vqvae2.config.overrides import override
from vqvae2.data.store import CodeStore, open_store
from vqvae2.files.progress import Reporter
from vqvae2.prior.hierarchy import make_level
from vqvae2.train.device import make_accelerator
from vqvae2.train.folder import read_run
from vqvae2.train.loop import fit
from vqvae2.train.prior import PriorObjective
from vqvae2.train.state import read_metrics

PARAMETERS = 3_000_000
OURS = {
    "hidden": 128, "residual": 128, "layers": 8, "kernel": 3, "attention_every": 2, "heads": 4, "dropout": 0.1,
    "output_layers": 2, "condition_blocks": 3,
}  # fmt: skip
TRAINING = {
    "steps": 10**6, "batch": 32, "lr": 1e-3, "warmup": 100, "weight_decay": 0.05, "average": 0.99,
    "log_every": 50, "patience": 0,
}  # fmt: skip


def settings(options: argparse.Namespace, residual: int = 128) -> Config:
    """The run's configuration with the prior of this comparison, of that inner width."""
    value = read_run(options.run)[1].model_dump(mode="json")
    level = options.level
    value["prior"]["levels"][level] |= OURS | ({"attention_every": 0} if level else {"condition_blocks": 0})
    value["prior"]["levels"][level]["residual"] = residual
    value["train_prior"][level] |= TRAINING | {
        "minutes": options.minutes,
        "evaluate_every": options.judge_every,
    }
    if not options.classes:
        value["prior"]["classes"] = 0
    return parse(override(value, options.set))


class Judged(PriorObjective):
    """Ours, with a clock that stands still while it is judged and drawn."""

    spent = 0.0

    def clock(self) -> float:
        """Seconds of this thread."""
        return time.process_time() - self.spent

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, Any]:
        """As it is, off the clock."""
        begun = time.process_time()
        figures = super().evaluate(model, accelerator)
        self.spent += time.process_time() - begun
        return figures

    def draw(self, model: nn.Module, path: Path) -> None:
        """Nothing."""


def ours(options: argparse.Namespace, store: CodeStore) -> dict[str, Any]:
    """Train ours."""
    aim = count(their_model(options, store))

    def size(residual: int) -> int:
        config = settings(options, residual)
        with torch.device("meta"):
            return count(
                make_level(
                    config.prior.levels[options.level], store.geometry, options.level, config.prior.classes
                )
            )

    config = settings(options, min(range(64, 257, 4), key=lambda residual: abs(size(residual) - aim)))
    objective = Judged(config, store, options.level)
    training = config.train_prior[options.level]
    with tempfile.TemporaryDirectory() as folder:
        outcome = fit(
            objective, training, Path(folder), make_accelerator(), Reporter(), config.seed, objective.clock
        )
        lines = read_metrics(Path(folder) / "metrics.jsonl")
    curve = [(line["step"], line["heldout_bits"]) for line in lines if "heldout_bits" in line]
    return {
        "parameters": count(objective.model), "steps": outcome.step, "bits": outcome.figures["heldout_bits"], "curve": curve,
        "seconds": outcome.seconds, "prior": config.prior.levels[options.level].model_dump(),
        "training": training.model_dump(),
    }  # fmt: skip


def their_model(options: argparse.Namespace, store: CodeStore) -> nn.Module:
    """rosinality's of the width that brings it nearest to PARAMETERS."""
    sys.path.insert(0, str(options.rosinality))
    kind = importlib.import_module("pixelsnail").PixelSNAIL
    shape, codes = list(store.geometry.grids[options.level]), store.geometry.vocabulary[options.level]

    def build(width: int) -> nn.Module:
        more = {"attention": False, "n_cond_res_block": 3, "cond_res_channel": width} if options.level else {}
        net: nn.Module = kind(shape, codes, width, 5, 4, 4, width, dropout=0.1, **more)
        return net

    return min((build(width) for width in range(40, 81, 8)), key=lambda net: abs(count(net) - PARAMETERS))


def theirs(options: argparse.Namespace, store: CodeStore) -> dict[str, Any]:
    """Train rosinality's as its train_pixelsnail.py does, on the same batches."""
    config, level = settings(options), options.level
    torch.manual_seed(config.seed)
    model = their_model(options, store)
    optimizer = torch.optim.Adam(model.parameters(), options.lr)
    source = PriorObjective(config, store, level)
    batches, batch = source.batches(0, 0, 1), config.train_prior[level].batch

    def logits(grids: tuple[torch.Tensor, ...]) -> torch.Tensor:
        condition = grids[level - 1] if level else None
        out: torch.Tensor = model(grids[level], condition=condition)[0]
        return out

    @torch.no_grad()
    def judge() -> float:
        model.eval()
        total = 0.0
        for start in range(0, len(store.heldout), batch):
            grids = tuple(g.long() for g in store.codes(store.heldout[start : start + batch]).levels)
            total += float(functional.cross_entropy(logits(grids), grids[level], reduction="sum"))
        model.train()
        return total / len(store.heldout) / math.prod(store.geometry.grids[level]) / math.log(2)

    curve: list[tuple[int, float]] = []
    step, spent, model = 0, 0.0, model.train()
    while spent < 60 * options.minutes:
        began = time.process_time()
        grids = tuple(g.long() for g in next(batches)[0])
        optimizer.zero_grad()
        functional.cross_entropy(logits(grids), grids[level]).backward()
        optimizer.step()
        step, spent = step + 1, spent + time.process_time() - began
        if step % options.judge_every == 0 or spent >= 60 * options.minutes:
            curve.append((step, judge()))
            print(
                f"rosinality: step {step}, {spent / 60:.1f} min, {curve[-1][1]:.3f} bits",
                file=sys.stderr,
                flush=True,
            )
    return {
        "parameters": count(model), "steps": step, "bits": min(bits for _, bits in curve),
        "curve": curve, "seconds": spent, "lr": options.lr,
    }  # fmt: skip


def main() -> None:
    """Both sides at once, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder with codes")
    parser.add_argument(
        "--rosinality", type=Path, required=True, help="a checkout of rosinality/vq-vae-2-pytorch"
    )
    parser.add_argument("--level", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument(
        "--lr", type=float, default=3e-4, help="rosinality's learning rate (its default 3e-4)"
    )
    parser.add_argument(
        "--judge-every", type=int, default=100, help="steps between judgements, which the clock leaves out"
    )
    parser.add_argument("--classes", action="store_true", help="give ours the classes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of ours")
    parser.add_argument("--side", choices=["ours", "rosinality"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        torch.set_num_threads(1)
        store = open_store(options.run / "codes")
        print(json.dumps((ours if options.side == "ours" else theirs)(options, store)))
        return
    cores = sorted(os.sched_getaffinity(0))[:2]
    running = {
        side: subprocess.Popen(
            ["taskset", "-c", str(core), sys.executable, __file__, *sys.argv[1:], "--side", side],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True,
        )
        for side, core in zip(("ours", "rosinality"), cores, strict=True)
    }  # fmt: skip
    found = {side: json.loads(process.communicate()[0]) for side, process in running.items()}
    fewer = 1 - found["ours"]["bits"] / found["rosinality"]["bits"]
    store = open_store(options.run / "codes")
    about = {
        "level": options.level,
        "minutes": options.minutes,
        "pictures": [len(store.train), len(store.heldout)],
    }
    keep(f"priors-{options.run.name}-level-{options.level}", {**about, "fewer bits": fewer, **found})


if __name__ == "__main__":
    main()
