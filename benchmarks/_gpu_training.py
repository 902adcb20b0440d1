"""The rows of `gpu.py` about training: both stages, captured and not, fed with real images, and what must be equal."""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from _gpu_common import CUDA, DEVICE, Report, free, peak, sync
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes, Geometry
from vqvae2.config.models import AutoencoderConfig, Config, LevelPriorConfig, parse
from vqvae2.config.presets import preset
from vqvae2.config.training import PriorTrainConfig, TrainConfig
from vqvae2.data.images import open_images
from vqvae2.data.store import open_store
from vqvae2.data.store_writer import StoreWriter
from vqvae2.files.progress import Reporter
from vqvae2.train.autoencoder import AutoencoderObjective
from vqvae2.train.device import Choices, make_accelerator, make_optimizer, switches
from vqvae2.train.feed import Feed
from vqvae2.train.loop import fit
from vqvae2.train.prior import PriorObjective
from vqvae2.train.resident import TrainingImages
from vqvae2.train.step import TrainingStep

try:
    from vqvae2.prior.kinds import make_level
except ImportError:
    from vqvae2.prior.hierarchy import make_level

EAGER = Choices(DEVICE, bf16=CUDA, tf32=True)  # bfloat16 is emulated on most CPUs
CAPTURED = replace(EAGER, static=True, captured=CUDA)
VARIANTS = {
    "eager": EAGER,
    "captured": CAPTURED,
    "compiled": replace(EAGER, compiled=True),
    "compiled and captured": replace(CAPTURED, compiled=True),
}


class Synthetic:
    """The objective of a stage on one batch that does not change."""

    def __init__(self, model: nn.Module, batch: Any, loss: Callable[[nn.Module, Any], Any]) -> None:
        self.model, self.batch, self._loss = model, batch, loss

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """As an `Objective`."""
        return self._loss(model, batch)


def autoencoder_case(config: AutoencoderConfig, size: int, batch: int, seed: int = 0) -> Synthetic:
    """Stage 1 on random pixels, which lie on the device as uint8."""
    torch.manual_seed(seed)
    stage = AutoencoderObjective.__new__(AutoencoderObjective)
    stage.config = SimpleNamespace(  # type: ignore[assignment]
        autoencoder=config, train_autoencoder=SimpleNamespace(perceptual=0.0)
    )
    stage.distance = None
    stage.training = TrainingImages(None, None, batch, 0)  # type: ignore[arg-type] # whose batches are not asked for
    model = VQVAE(config).to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels = torch.randint(0, 256, (batch, size, size, config.channels), dtype=torch.uint8).to(DEVICE)
    return Synthetic(model, (pixels, torch.zeros(batch, dtype=torch.int64, device=DEVICE)), stage.loss)


def prior_case(
    level: LevelPriorConfig, geometry: Geometry, number: int, batch: int, classes: int = 0, seed: int = 0
) -> Synthetic:
    """Stage 2 of one level on random codes, which lie on the device as 16 bits."""
    torch.manual_seed(seed)
    with torch.device(DEVICE):
        model = make_level(level, geometry, number, classes)
    model = model.to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    codes = tuple(
        torch.randint(k, (batch, *grid), device=DEVICE).to(torch.int16)
        for k, grid in zip(geometry.vocabulary[: number + 1], geometry.grids[: number + 1], strict=True)
    )
    stage = PriorObjective.__new__(PriorObjective)
    stage.config = SimpleNamespace(prior=SimpleNamespace(levels=[level] * (number + 1)))  # type: ignore[assignment]
    stage.level, stage.classes, stage.resident = number, classes, None
    stage.settings = PriorTrainConfig()
    stage.store = SimpleNamespace(geometry=geometry)  # type: ignore[assignment]
    labels = torch.randint(max(classes, 1), (batch,), device=DEVICE)
    return Synthetic(model, (codes, labels), stage.loss)


def stepper(
    case: Synthetic, config: TrainConfig, choices: Choices
) -> tuple[Callable[[], None], TrainingStep]:
    """A function that does the next training step, and the step that it does."""
    model: Any = torch.compile(case.model) if choices.compiled else case.model
    optimizer = make_optimizer(case.model, config, choices)
    step = TrainingStep(case, model, case.model, optimizer, config, choices)
    numbers = itertools.count()

    def work() -> None:
        number = next(numbers)
        step(case.batch, number, 1e-4, number)

    return work, step


def flops(case: Synthetic) -> float:
    """TFLOP of forward and backward of one batch."""
    with FlopCounterMode(display=False) as counter, EAGER.autocast():
        case.loss(case.model.train(), case.batch)[0].backward()
    case.model.zero_grad()
    return counter.get_total_flops() / 1e12


def measured(
    report: Report, name: str, make: Callable[[], Synthetic], config: TrainConfig, variants: list[str]
) -> None:
    """Time the training step of a case, each variant with a fresh model."""
    work_of_one = 0.0
    for variant in variants:
        with report.part(f"{name}, {variant}"), switches(VARIANTS[variant]):
            case = make()
            size = len(case.batch[1])
            work_of_one = work_of_one or flops(case)
            free()
            work, step = stepper(case, config, VARIANTS[variant])
            began = time.perf_counter()
            for _ in range(5):  # the warm-up, and the capture
                work()
            sync()
            begun = time.perf_counter() - began
            ms = report.ms(work, warmup=1)
            host = time.perf_counter()
            work()
            host = (time.perf_counter() - host) * 1e3
            value = {
                "steps/s": 1e3 / ms,
                "images/s": size * 1e3 / ms,
                "TFLOP/s": work_of_one * 1e3 / ms,
                "peak GB": peak(),
                "first five steps, s": begun,
                "host ms a step": host,
            }
            if step.refused:
                value["not captured"] = step.refused
            report(f"{name}, {variant}", value)
            del case, work, step


def paper(report: Report) -> tuple[Config, int, int]:
    """The configuration, the image size and the batch of the rows about imagenet256."""
    return (preset("tiny"), 32, 4) if report.tiny else (preset("imagenet256"), 256, 128)


def stage1(report: Report, variants: list[str], rosinality: Path | None) -> None:
    """imagenet256, batch 128; the same with rosinality's widths; rosinality's own network."""
    config, size, batch = paper(report)
    settings = config.train_autoencoder
    measured(
        report,
        "paper's widths",
        lambda: autoencoder_case(config.autoencoder, size, batch),
        settings,
        variants,
    )
    widths = config.autoencoder.model_copy(update={"residual": 32}) if not report.tiny else config.autoencoder
    measured(report, "rosinality's widths", lambda: autoencoder_case(widths, size, batch), settings, variants)
    if rosinality is not None and "eager" in variants:
        with report.part("rosinality's own"):
            ours = autoencoder_case(widths, size, batch)
            report(
                "rosinality's own network, its step",
                {"images/s": batch * 1e3 / report.ms(_theirs(rosinality, ours.batch[0]))},
            )


def _theirs(folder: Path, pixels: Tensor) -> Callable[[], None]:
    sys.path.insert(0, str(folder))
    import vqvae as rosinality  # type: ignore[import-not-found]

    model = rosinality.VQVAE().to(DEVICE).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-4)
    images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1

    def step() -> None:
        with EAGER.autocast():
            out, latent = model(images)
            loss = functional.mse_loss(out, images) + 0.25 * latent.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def stage2(report: Report, variants: list[str]) -> None:
    """imagenet256's priors, 970 M and 569 M weights."""
    config, _, _ = paper(report)
    for number, batch in ((0, 16), (1, 4)):
        level = config.prior.levels[number]
        classes = 10 if report.tiny else 1000
        name, settings = f"imagenet256 level {number}, batch {batch}", config.train_prior[number]
        measured(
            report,
            name,
            lambda n=number, b=batch, c=classes, v=level: prior_case(v, config.geometry, n, b, c),
            settings,
            variants,
        )


def small(report: Report, variants: list[str]) -> None:
    """small128: stage 1 at batch 64, each prior at batch 32."""
    config = preset("tiny" if report.tiny else "small128")
    measured(
        report,
        "small128 stage 1, batch 64",
        lambda: autoencoder_case(config.autoencoder, config.data.size, 64),
        config.train_autoencoder,
        variants,
    )
    for number, level in enumerate(config.prior.levels):
        measured(
            report,
            f"small128 prior level {number}, batch 32",
            lambda n=number, v=level: prior_case(v, config.geometry, n, 32),
            config.train_prior[number],
            variants,
        )


def synchronisations(report: Report) -> None:
    """How often the host waits for the card in an eager step, and where."""
    if not CUDA:
        return
    config = preset("tiny" if report.tiny else "small128")
    cases = {
        "stage 1": (autoencoder_case(config.autoencoder, config.data.size, 16), config.train_autoencoder),
        "prior": (prior_case(config.prior.levels[1], config.geometry, 1, 8), config.train_prior[1]),
    }
    for name, (case, settings) in cases.items():
        with report.part(name):
            work, _ = stepper(case, settings, EAGER)
            for _ in range(3):
                work()
            sync()
            torch.cuda.set_sync_debug_mode("warn")
            try:
                with warnings.catch_warnings(record=True) as seen:
                    warnings.simplefilter("always")
                    work()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            waits = [w for w in seen if "synchroniz" in str(w.message)]
            places = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in waits})
            report(f"{name}, a step", {"synchronisations": len(waits), "where": places})


def laws(report: Report) -> None:
    """Captured against eager after eight steps; and deterministic trainings, twice."""
    config = preset("tiny" if report.tiny else "small64")
    cases: dict[str, tuple[Callable[[], Synthetic], TrainConfig]] = {
        "stage 1": (
            lambda: autoencoder_case(config.autoencoder, config.data.size, 16),
            config.train_autoencoder,
        ),
        "prior": (lambda: prior_case(config.prior.levels[1], config.geometry, 1, 16), config.train_prior[1]),
    }
    strict = replace(EAGER, deterministic=True)
    for name, (make, settings) in cases.items():
        weights: dict[str, Tensor] = {}
        losses: dict[str, float] = {}
        for label, choices in (
            ("eager", EAGER),
            ("again", EAGER),
            ("captured", CAPTURED),
            ("strict", strict),
            ("strict again", strict),
        ):
            with report.part(f"{name}, {label}"), switches(choices):
                case = make()
                work, step = stepper(case, settings, choices)
                for _ in range(8):
                    work()
                sync()
                weights[label] = torch.cat(
                    [v.detach().double().flatten() for v in case.model.state_dict().values()]
                ).cpu()
                losses[label] = float(step.sums["loss"]) / step.taken
                if step.refused:
                    report(f"{name}, not captured", step.refused)
        for a, b in (("eager", "again"), ("eager", "captured"), ("strict", "strict again")):
            if a in weights and b in weights:
                difference = float((weights[a] - weights[b]).abs().max())
                report(
                    f"{name}, largest difference of a weight, {a} - {b}",
                    {"weights": difference, "losses": [losses[a], losses[b]]},
                )


def feeding(report: Report) -> None:
    """Stage 1 fed with images from the card, from the cache and from JPEG files, against a batch that stays."""
    for size, batch, count in ((64, 128, 1024), (256, 128, 512)) if not report.tiny else ((32, 4, 24),):
        config = parse(preset("tiny" if report.tiny else f"small{size}").model_dump(mode="json"))
        widths = config.autoencoder if report.tiny else preset("imagenet256").autoencoder
        with tempfile.TemporaryDirectory() as scratch, report.part(f"{size} px"):
            files = Path(scratch) / "images"
            files.mkdir()
            rng = np.random.default_rng(0)
            for number in range(count):
                smooth = rng.integers(0, 256, (size // 8, size // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
                Image.fromarray(smooth).save(files / f"{number:05}.jpg", quality=90)
            case = autoencoder_case(widths, size, batch)
            rates = {}
            for way in ("synthetic", "on the card", "cache", "jpeg"):
                with report.part(f"{size} px, {way}"), switches(CAPTURED):
                    rates[way] = _fed(report, case, config, files, Path(scratch) / way, way, batch)
                    report(
                        f"{size} px, {way}",
                        {"images/s": rates[way], "of synthetic": rates[way] / rates["synthetic"]},
                    )


def fed_priors(report: Report) -> None:
    """small128's priors fed with the codes of 4,591 images, which lie on the card, against a batch that stays."""
    config, count = (preset("tiny"), 64) if report.tiny else (preset("small128"), 4591)
    geometry = config.geometry
    with tempfile.TemporaryDirectory() as scratch:
        generator = torch.Generator().manual_seed(0)
        with StoreWriter(Path(scratch), geometry, "benchmark", count) as writer:
            levels = [
                torch.randint(k, (count, *grid), generator=generator)
                for k, grid in zip(geometry.vocabulary, geometry.grids, strict=True)
            ]
            writer.append(Codes(tuple(levels)), np.zeros(count, np.int64), np.zeros(count, np.int8))
        store = open_store(Path(scratch))
        for number, training in enumerate(config.train_prior):
            settings = training.model_copy(update={"batch": 32})
            with report.part(f"level {number}"), switches(CAPTURED):
                case = prior_case(config.prior.levels[number], geometry, number, 32)
                work, _ = stepper(case, settings, CAPTURED)
                still = report.ms(work, warmup=5)
                trainings = [
                    settings if index == number else other for index, other in enumerate(config.train_prior)
                ]
                stage = PriorObjective(
                    config.model_copy(update={"train_prior": tuple(trainings)}), store, number
                )
                stage.model.to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
                stage.keep_on(DEVICE, 10**10)
                optimizer = make_optimizer(stage.model, settings, CAPTURED)
                step = TrainingStep(stage, stage.model, stage.model, optimizer, settings, CAPTURED)
                fed = 1 / _steps(report, step, stage.batches(0, 0, 1))
                report(
                    f"level {number}, batch 32",
                    {"steps/s": 1 / fed, "of a batch that stays": still / 1e3 / fed},
                )


def _steps(report: Report, step: TrainingStep, batches: Iterator[Any]) -> float:
    """Steps a second of a training that is fed with these batches."""
    with Feed(batches, DEVICE) as feed:
        done, began = 0, 0.0
        for number in itertools.count():
            step(next(feed), number, 1e-4, number)
            feed.fetch_ahead()
            if number == 12:  # decoders are started, the step is captured
                sync()
                done, began = number + 1, time.perf_counter()
            if began and time.perf_counter() - began > 2 * report.seconds and number > 20:
                break
        sync()
        return (number + 1 - done) / (time.perf_counter() - began)


def _fed(
    report: Report, case: Synthetic, config: Config, files: Path, folder: Path, way: str, batch: int
) -> float:
    """Images a second of training steps whose batches come from there."""
    data = config.data.model_copy(update={"cache_gb": 0.0 if way == "jpeg" else 8.0, "flip": True})
    settings = config.train_autoencoder.model_copy(update={"batch": batch})
    whole = config.model_copy(update={"data": data, "train_autoencoder": settings})
    if way == "synthetic":
        work, _ = stepper(case, settings, CAPTURED)
        for _ in range(5):
            work()
        return batch * 1e3 / report.ms(work)
    images = open_images(str(files), data, folder, say=lambda text: None)
    try:
        stage = AutoencoderObjective(whole, images)
        stage.model = case.model  # type: ignore[assignment]
        # without room on the card, the card cuts what the host sends
        stage.keep_on(DEVICE, 10**10 if way == "on the card" else 0)
        step = TrainingStep(
            stage, case.model, case.model, make_optimizer(case.model, settings, CAPTURED), settings, CAPTURED
        )
        return batch * _steps(report, step, stage.batches(0, 0, 1))
    finally:
        images.close()


def whole(report: Report) -> None:
    """`fit` as the pipeline calls it: small128 on as many images as the photographs have, with its lines and one evaluation."""
    name, count = ("tiny", 40) if report.tiny else ("small128", 4591)
    config = preset(name)
    steps = 12 if report.tiny else 600
    with tempfile.TemporaryDirectory() as scratch, report.part(name):
        place = Path(scratch)
        (place / "images").mkdir()
        rng = np.random.default_rng(0)
        for number in range(count):
            smooth = rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(16, 0).repeat(16, 1)
            Image.fromarray(smooth).save(place / "images" / f"{number:05}.bmp")
        images = open_images(str(place / "images"), config.data, place / "data", say=lambda text: None)
        training = config.train_autoencoder.model_copy(
            update={"steps": steps, "batch": 64, "evaluate_every": steps}
        )
        whole_config = config.model_copy(update={"train_autoencoder": training})
        lines: list[str] = []
        reporter = Reporter(quiet=True)
        reporter.say = lines.append  # type: ignore[method-assign]
        stage = AutoencoderObjective(whole_config, images)
        began = time.perf_counter()
        fit(stage, training, place / "stage", make_accelerator("auto"), reporter, 0)
        seconds = time.perf_counter() - began
        report(
            f"fit, {name} stage 1, {steps} steps of 64",
            {
                "images/s": steps * 64 / seconds,
                "seconds": seconds,
                "said": lines[:2],
            },
        )
        images.close()
