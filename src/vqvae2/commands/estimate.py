"""How long a training will take on this machine and how much memory it needs, before it begins.

FLOPs and memory follow from the configuration (`commands/costs.py`). The speed is measured: one training step of each network on
random images, after one for warming up: on a CPU a few, on a card a whole batch. On a card the training is faster, because
its steps are captured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch.nn import functional

from vqvae2.autoencoder.model import VQVAE
from vqvae2.commands.costs import Cost, measure
from vqvae2.config.models import Config
from vqvae2.files.atomic import FileError
from vqvae2.files.progress import Reporter, duration
from vqvae2.files.run_folder import RunFolder, StageFolder
from vqvae2.modes import seeded
from vqvae2.prior.hierarchy import make_level
from vqvae2.train.beginning import trained_until
from vqvae2.train.device import chosen_precision
from vqvae2.train.longer import ended, wanted
from vqvae2.train.state import Outcome, saved

_WORK = 20e9  # FLOPs of the step that is timed on a CPU, at most, if one image takes no more
_TOO_MUCH = 200e9  # FLOPs of one image from which a CPU is not timed; the last speed is taken instead
_SHORT = (
    200  # steps of every stage up to which there is no estimate, because it would take longer than they do
)


@dataclass(frozen=True)
class StageEstimate:
    """What one stage will take.

    Attributes:
        name: of the stage.
        steps: that are left.
        seconds: for these, or until its minutes are over; None if no speed could be measured.
        memory: bytes of weights, optimiser and activations; the program itself is not counted.
    """

    name: str
    steps: int
    seconds: float | None
    memory: int


def estimate(config: Config, folder: Path, device: torch.device, until: str = "prior") -> list[StageEstimate]:
    """An estimate for each stage that is not done, or that is trained further or made anew.

    Args:
        config: every setting.
        folder: RUN, which may not exist.
        device: where it is trained.
        until: the last stage that is trained.
    """
    costs = measure(config)
    stages = RunFolder(folder).networks(config.autoencoder.levels)
    further = wanted(folder, config)
    found, rate = [], None
    for cost in costs.networks:
        name = cost.stage
        stage = stages[name]
        anew = "autoencoder" in further and name != "autoencoder"  # because the codes change
        done = stage.done() and name not in further and not anew
        if done or not cost.settings.steps or not trained_until(name, until):
            continue
        if cost is not costs.sharpening or rate is None:  # which is about as fast as the autoencoder
            timed = costs.autoencoder if cost is costs.sharpening else cost
            rate = _rate(config, timed, device) or rate
            _empty_cache(device)  # what was timed leaves its memory to the next one, and to the training
        so_far = Outcome() if anew else _so_far(stage)
        left = max(0, cost.settings.steps - so_far.step)
        seconds = None if rate is None else left * cost.settings.batch * cost.training / rate
        if cost.settings.minutes and seconds is not None:
            seconds = min(seconds, max(0.0, 60 * cost.settings.minutes - so_far.seconds))
        found.append(StageEstimate(cost.name, left, seconds, _memory(cost, config)))
    return found


def say_estimate(
    config: Config, folder: Path, device: torch.device, reporter: Reporter, until: str = "prior"
) -> None:
    """One line with the time and the memory, and one more if the memory will not do; nothing if all is done.

    Args:
        config, folder, device: see `estimate`.
        reporter: where it is said.
        until: the last stage that is trained.
    """
    trainings = (config.train_autoencoder, config.sharpen, *config.train_prior)
    if all(training.steps <= _SHORT for training in trainings):
        return
    stages = estimate(config, folder, device, until)
    if not stages:
        return
    memory = max(stage.memory for stage in stages)
    where = device.type if device.type != "cpu" else f"cpu, {torch.get_num_threads()} threads"
    bound = "at most" if device.type == "cuda" else "about"  # trainings are captured, what was timed is not
    parts = ", ".join(
        f"{stage.name} {'?' if stage.seconds is None else duration(stage.seconds)} ({stage.steps:,} steps)"
        for stage in stages
    )
    known = [stage.seconds for stage in stages if stage.seconds is not None]
    whole = duration(sum(known)) if len(known) == len(stages) else "unknown"
    reporter.say(
        f"estimate for this machine ({where}): {bound} {whole} and {amount(memory)} of memory. {parts}. "
        "Decoding the images and evaluations come on top; patience may end a stage earlier"
    )
    free = free_memory(device)
    if memory > free:
        reporter.say(
            f"warning: only {amount(free)} are free; less is needed with accumulate, for the same batch, where a stage has not begun "
            "(`--set train_autoencoder.accumulate=4`), with checkpointing of a prior at any time (`--set train_prior.*.checkpointing=true`), "
            "or with a smaller preset"
        )
        return
    data = min(int(config.resident_gb * 1e9), free // 2) if device.type == "cuda" else 0
    if memory + data > free:
        reporter.say(
            f"warning: {amount(free)} are free, and the training data may take up to {amount(data)} of them; "
            "`--set resident_gb=0` keeps them off the card"
        )


def amount(size: int) -> str:
    """Words for a number of bytes: 85 MB, 1.2 GB."""
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    return min(free, int(torch.mps.recommended_max_memory())) if device.type == "mps" else free


def _empty_cache(device: torch.device) -> None:
    """Give back the memory that torch keeps of freed tensors, which does not count as free."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _so_far(stage: StageFolder) -> Outcome:
    """How far a stage that was interrupted, or is trained further, has come; a state that is damaged counts as none."""
    if stage.done():
        further = _so_far(stage.longer)
        return further if further.step else ended(stage)
    with suppress(FileError):
        if stage.checkpoint.exists():
            return Outcome(**saved(stage.checkpoint).outcome.model_dump())
    return Outcome()


def _memory(cost: Cost, config: Config) -> int:
    return cost.memory(chosen_precision(config.precision) == "bf16")


def _rate(config: Config, cost: Cost, device: torch.device) -> float | None:
    """FLOP/s of a training step of a network on this machine; None if even one image is too much to try."""
    if cost.training > _TOO_MUCH and device.type == "cpu":
        return None
    images = _timed_images(config, cost, device)
    mixed = chosen_precision(config.precision) == "bf16"
    with seeded(0), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        step = (
            _autoencoder(config, images, device)
            if cost.name == "autoencoder"
            else _prior(config, cost.name, images, device)
        )
        for _ in range(2):  # the first one is the warm-up
            begun = time.perf_counter()
            step()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
        return images * cost.training / (time.perf_counter() - begun)


def _timed_images(config: Config, cost: Cost, device: torch.device) -> int:
    """How many images the step has that is timed: on a card, whose speed depends on it, the batch if it takes half of the free memory
    at most."""
    batch = max(1, cost.settings.batch // cost.settings.accumulate)
    if device.type == "cpu":
        return max(1, min(batch, int(_WORK // cost.training)))
    return max(1, min(batch, int(batch * free_memory(device) / (2 * _memory(cost, config)))))


def _autoencoder(config: Config, images: int, device: torch.device) -> Callable[[], None]:
    data = config.data
    model = VQVAE(config.autoencoder).to(device).train()
    pixels = torch.rand(images, data.channels, *data.shape, device=device) * 2 - 1

    def step() -> None:
        out = model(pixels)
        loss: Tensor = (out.images.float() - pixels).square().mean() + out.commitment
        loss.backward()  # type: ignore[no-untyped-call]

    return step


def _prior(config: Config, name: str, images: int, device: torch.device) -> Callable[[], None]:
    level, geometry = int(name.split()[-1]), config.geometry
    model = make_level(config.prior.levels[level], geometry, level, config.prior.classes).to(device).train()
    model.checkpointing = config.train_prior[level].checkpointing
    codes = [
        torch.randint(k, (images, *grid), device=device)
        for k, grid in zip(geometry.vocabulary[: level + 1], geometry.grids[: level + 1], strict=True)
    ]
    labels = torch.zeros(images, dtype=torch.int64, device=device) if config.prior.classes else None

    def step() -> None:
        logits = model(codes[-1], tuple(codes[:-1]), labels)
        functional.cross_entropy(logits.float(), codes[-1]).backward()  # type: ignore[no-untyped-call]

    return step
