"""How far two processes drift from one in the training of an autoencoder: rounding, and what makes it grow.

    python benchmarks/processes.py [--steps 96]

The preset `tiny` at 32 px on 96 made-up images (batch 8, learning rate 0.003 from the first step, one thread). Counted is the
largest difference of any weight or codebook statistic after 4, 24, 48 and 96 steps, and the share of codes that are chosen
alike: in float32; in float32 with the codes chosen as in one process; and in float64.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import keep
from PIL import Image
from torch import Tensor
from torch.distributed import TCPStore

from vqvae2.autoencoder import quantizer
from vqvae2.config.models import parse
from vqvae2.config.overrides import merge
from vqvae2.config.presets import preset
from vqvae2.data.images import open_images
from vqvae2.files.progress import Reporter
from vqvae2.train.autoencoder import AutoencoderObjective
from vqvae2.train.device import make_accelerator
from vqvae2.train.loop import fit

WAYS = ("float32", "float32, codes chosen as in one process", "float64")
SHOWN = (4, 24, 48, 96)


def make_pictures(folder: Path) -> None:
    """96 images of coarse noise, 32 px."""
    folder.mkdir()
    for number in range(96):
        coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")


def train(place: Path, way: str, steps: int) -> None:
    """One process, or one of two: train, and keep the state after each step; two compare with what one has kept."""
    torch.set_num_threads(1)
    accelerator = make_accelerator("no")
    rank, world = accelerator.process_index, accelerator.num_processes
    settings = {"steps": steps, "evaluate_every": steps, "batch": 8, "warmup": 0, "lr": 3e-3}
    patch = {"data": {"size": 32, "workers": 0}, "train_autoencoder": settings}
    config = parse(merge(preset("tiny").model_dump(mode="json"), patch))
    images = open_images(str(place / "pictures"), config.data, place / "data", say=lambda _: None)
    objective = AutoencoderObjective(config, images)
    if way == "float64":
        objective.model.double()

    def loss(model: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        x = objective.training.scaled(batch, torch.device("cpu")).to(next(model.parameters()).dtype)
        out = model(x)
        return (out.images - x).square().mean() + out.commitment, {}

    chosen: list[Tensor] = []
    known = torch.load(place / f"codes {way}.pt") if world > 1 else []
    usual, alike, states = quantizer.nearest_code, [], []

    def nearest(flat: Tensor, codebook: Tensor, penalty: Tensor | None = None) -> Tensor:
        codes = usual(flat, codebook, penalty)
        if objective.model.training:
            chosen.append(codes)
            if world > 1:
                theirs = known[len(chosen) - 1][rank * len(codes) : (rank + 1) * len(codes)]
                alike.append(float((theirs == codes).double().mean()))
                return theirs if "as in one" in way else codes
        return codes

    def after_step(step: int, _: Any) -> dict[str, Any]:
        states.append({name: value.clone() for name, value in objective.model.state_dict().items()})
        return {}

    quantizer.nearest_code = nearest
    stubs = {
        "loss": loss,
        "after_step": after_step,
        "evaluate": lambda *_: {"score": 0.0},
        "draw": lambda *_: None,
    }
    for name, function in stubs.items():
        setattr(objective, name, function)
    fit(objective, config.train_autoencoder, place / f"{way} {world}", accelerator, Reporter(quiet=True), 0)
    if world == 1:
        torch.save(chosen, place / f"codes {way}.pt")
        torch.save(states, place / f"states {way}.pt")
    elif rank == 0:
        torch.save(_differences(torch.load(place / f"states {way}.pt"), states, alike), place / f"{way}.pt")


def _differences(one: list[Any], two: list[Any], alike: list[float]) -> dict[str, Any]:
    found = {}
    for step in (step for step in SHOWN if step <= len(one)):
        pairs = [(one[step - 1][name].double(), two[step - 1][name].double()) for name in one[0]]
        each = len(alike) // len(one)  # levels
        codes = sum(alike[(step - 1) * each : step * each]) / each
        largest = max(float((a - b).abs().max()) for a, b in pairs)
        found[f"step {step}"] = {"largest difference": largest, "codes chosen alike": codes}
    return found


def _start(arguments: list[str], processes: int) -> None:
    """Run this file in so many processes."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(processes)}
    group |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, *arguments],
            env=os.environ | (group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}),
        )
        for rank in range(processes)
    ]
    for process in started:
        if process.wait():
            raise SystemExit(1)


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=96, help="steps of each training (default 96)")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        train(options.place, options.way, options.steps)
        return
    figures: dict[str, Any] = {"steps": options.steps, "preset": "tiny, 32 px"}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        make_pictures(place / "pictures")
        for way in WAYS:
            arguments = ["--steps", str(options.steps), "--way", way, "--place", scratch]
            for processes in (1, 2):
                _start(arguments, processes)
            figures[way] = torch.load(place / f"{way}.pt")
    keep("processes", figures)


if __name__ == "__main__":
    main()
