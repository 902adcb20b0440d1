"""The chained pipeline: pictures -> autoencoder -> codes -> one prior per level, in one run folder, resumable.

    RUN/config.yaml        what was asked for, resolved, with version, command, source and fingerprint
    RUN/data/              decoded pictures, skipped.txt
    RUN/autoencoder/       model.safetensors, config.json, metrics.jsonl, checkpoints/, pictures/
    RUN/codes/             the code store
    RUN/prior/level-0/ ... as autoencoder/

Each stage is done when its model file (or manifest) is there. Called again, the pipeline goes on where it stopped;
a setting that contradicts what is already trained is refused with the difference.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator

from vqvae2 import checkpoint
from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes, Geometry
from vqvae2.config import Config, ConfigError, differences, parse, read_yaml
from vqvae2.data.batches import sequential
from vqvae2.data.grid import save_grid
from vqvae2.data.images import ImageSet, open_images
from vqvae2.data.store import CodeStore, StoreError, StoreWriter, open_store
from vqvae2.errors import UserError
from vqvae2.prior.hierarchy import HierarchicalPrior
from vqvae2.train.autoencoder import AutoencoderObjective, usage_figures
from vqvae2.train.loop import Objective, Outcome, fit, make_accelerator
from vqvae2.train.prior import PriorObjective, copies
from vqvae2.train.progress import Reporter

_FREE = (
    "data.workers",
    "data.cache_gb",
    "data.streaming",
    "precision",
    "compile",
    "sampling",
)  # may change at any time
_COLLAPSED = 0.10  # a level that uses fewer codes than this share is reported before stage 2


class RunError(UserError):
    """A run folder that cannot be used as asked."""


def train(
    data: str, folder: str | Path, config: Config, *, command: str = "", reporter: Reporter | None = None
) -> None:
    """Do what is not yet done of the whole pipeline.

    Args:
        data: see `open_images`.
        folder: RUN; created.
        config: every setting.
        command: what the user typed, for the record.
        reporter: where to speak.

    Raises:
        RunError: RUN cannot be written, is of a newer version, or holds something trained otherwise.
        DataError, TrainingError, CheckpointError, StoreError: see there. Interrupted: Ctrl-C.
    """
    folder = Path(folder)
    accelerator = make_accelerator(config.precision, config.compile)
    reporter = reporter or Reporter()
    if not accelerator.is_main_process:
        reporter = Reporter(quiet=True)
    config = claim(folder, data, config, command, accelerator)
    if finished(folder, config):
        reporter.say(f"{folder}: all is done; nothing to train")
        return
    images = _open(data, folder, config, accelerator, reporter)
    try:
        config = _with_classes(folder, config, images, accelerator)
        autoencoder, digest = _stage1(folder, config, images, accelerator, reporter)
        store = _codes(folder, config, images, autoencoder, digest, accelerator, reporter)
    finally:
        images.close()
    _health(store, reporter)
    for level in range(config.autoencoder.levels):
        if not model_file(folder, level).exists():
            _stage2(folder, config, store, autoencoder, level, accelerator, reporter)
        if accelerator.is_main_process and not _samples_file(folder, level).exists():
            _draw_level(folder, config, autoencoder, level)
        accelerator.wait_for_everyone()


def claim(folder: Path, data: str, config: Config, command: str, accelerator: Accelerator) -> Config:
    """Make RUN ours: refuse what contradicts it, write down the resolved configuration.

    Raises:
        RunError: see `train`.
    """
    file = folder / "config.yaml"
    record: dict[str, Any] = {
        "version": metadata.version("vqvae2"),
        "format": checkpoint.FORMAT,
        "command": command,
        "source": data,
    }
    if file.exists():
        old_record, old = read_run(folder)
        begun = _begun(folder, old)
        old_value, new_value = old.model_dump(mode="json"), config.model_dump(mode="json")
        new_value["prior"]["classes"] = old_value["prior"]["classes"]
        changed = [line for line in differences(old_value, new_value) if not line.startswith(_FREE)]
        refused = [line for line in changed if any(line.startswith(prefix) for prefix in begun)]
        if begun and old_record.get("source") != data:
            refused.insert(0, f"data: {old_record.get('source')} -> {data}")
        if refused:
            raise RunError(
                f"{folder} was trained with other settings ({'; '.join(refused)}); "
                f"use the old settings, or another --run"
            )
        config = parse(new_value)
        asked_anew = changed or old_record.get("source") != data
        record = {**old_record, **({"command": command} if asked_anew else {}), "source": data}
    if accelerator.is_main_process:
        try:
            write_config(folder, record, config)
        except checkpoint.CheckpointError as error:
            raise RunError(f"cannot use {folder} as a run folder: {error}") from error
    accelerator.wait_for_everyone()
    return config


def write_config(folder: Path, record: dict[str, Any], config: Config) -> None:
    """Write RUN/config.yaml, unless it says so already: the record under `run`, then the settings."""
    file = folder / "config.yaml"
    text = yaml.safe_dump({"run": record, **config.model_dump(mode="json")}, sort_keys=False)
    if not (file.is_file() and file.read_text(encoding="utf-8") == text):
        checkpoint.write_text(file, text)


def read_run(folder: Path) -> tuple[dict[str, Any], Config]:
    """The record and the settings in RUN/config.yaml.

    Raises:
        RunError: not a run folder, or one of a newer version.
        ConfigError: damaged.
    """
    if not (folder / "config.yaml").is_file():
        raise RunError(f"{folder} is no run folder: it has no config.yaml")
    value = read_yaml(folder / "config.yaml")
    record = value.pop("run", {})
    if not isinstance(record, dict) or not isinstance(record.get("format", 0), int):
        raise ConfigError(f"{folder / 'config.yaml'} is damaged: it has no record of the run")
    if record.get("format", 0) > checkpoint.FORMAT:
        raise RunError(
            f"{folder} was made by vqvae2 {record.get('version')} (format {record['format']}); "
            f"this is {metadata.version('vqvae2')} (format {checkpoint.FORMAT}): please upgrade"
        )
    return record, parse(value)


def model_file(folder: Path, level: int | None = None) -> Path:
    """The weights of the autoencoder (level None) or of one level's prior."""
    part = folder / "autoencoder" if level is None else folder / "prior" / f"level-{level}"
    return part / "model.safetensors"


def _samples_file(folder: Path, level: int) -> Path:
    return folder / "prior" / f"level-{level}" / "samples.png"


def finished(folder: Path, config: Config) -> bool:
    """Whether every stage of the pipeline is done."""
    levels = range(config.autoencoder.levels)
    parts = [
        model_file(folder),
        folder / "codes" / "manifest.json",
        *(model_file(folder, level) for level in levels),
        *(_samples_file(folder, level) for level in levels),
    ]
    return all(part.exists() for part in parts)


def extract(
    autoencoder: VQVAE, images: ImageSet, config: Config, folder: Path, digest: str, reporter: Reporter
) -> None:
    """Encode every picture into the code store `folder`: held-out ones once, training ones `copies` times.

    The first copy is not augmented; each further one is, as the data configuration says. The frozen model is in
    eval mode; labels travel along.
    """
    device = next(autoencoder.parameters()).device
    total = _total(images, config)
    autoencoder.eval()
    with (
        StoreWriter(
            folder, config.geometry, digest, total, classes=images.classes, fingerprint=images.fingerprint
        ) as writer,
        reporter.track("codes", total, unit="images") as tracker,
    ):
        done = 0
        passes = [
            (images.heldout, 1, None),
            *((images.train, 0, None if i == 0 else config.seed + i) for i in range(copies(config))),
        ]
        for indices, side, seed in passes:
            for pictures, labels in sequential(images, indices, config.data, batch=64, copies_seed=seed):
                codes = autoencoder.encode(pictures.to(device))
                writer.append(codes, labels.numpy(), np.full(len(labels), side, np.int8))
                done += len(labels)
                tracker.update(done)


def _total(images: ImageSet, config: Config) -> int:
    """How many pictures the code store holds."""
    return len(images.heldout) + copies(config) * len(images.train)


def _begun(folder: Path, config: Config) -> list[str]:
    """Prefixes of the settings that what is already trained depends on."""

    def started(part: Path) -> bool:
        return (part / "model.safetensors").exists() or (part / "checkpoints" / "last.safetensors").exists()

    prefixes = []
    levels = range(config.autoencoder.levels)
    if started(folder / "autoencoder"):
        prefixes += ["seed", "data", "autoencoder", "train_autoencoder"]
    for level in levels:
        if started(folder / "prior" / f"level-{level}"):
            prefixes += [f"prior.levels.{level}", f"train_prior.{level}"]
            prefixes += [f"train_prior.{other}.copies" for other in levels]  # all levels share the codes
    return prefixes


def _open(data: str, folder: Path, config: Config, accelerator: Accelerator, reporter: Reporter) -> ImageSet:
    with accelerator.main_process_first(), reporter.track("reading pictures", 1, unit="images") as tracker:

        def progress(done: int, total: int | None) -> None:
            tracker.total = total or done + 1  # of a stream nobody knows
            tracker.update(done)

        images = open_images(
            data, config.data, folder / "data", seed=config.seed, say=reporter.say, progress=progress
        )
    reporter.say(
        f"{len(images)} pictures of {config.data.size} px: {len(images.train)} to train, {len(images.heldout)} held out"
        + (f", {len(images.classes)} classes" if images.classes else ", no classes")
    )
    return images


def _with_classes(folder: Path, config: Config, images: ImageSet, accelerator: Accelerator) -> Config:
    """Write the data's fingerprint and classes down; refuse data that changed under a trained model."""
    record, _ = read_run(folder)
    known = record.get("fingerprint")
    if known and known != images.fingerprint and _begun(folder, config):
        raise RunError(
            f"the pictures in {record['source']} changed since {folder} was begun; use another --run, or restore them"
        )
    record |= {"fingerprint": images.fingerprint, "classes": list(images.classes)}
    config = config.model_copy(
        update={"prior": config.prior.model_copy(update={"classes": len(images.classes)})}
    )
    if accelerator.is_main_process:
        write_config(folder, record, config)
    accelerator.wait_for_everyone()
    return config


def _stage1(
    folder: Path, config: Config, images: ImageSet, accelerator: Accelerator, reporter: Reporter
) -> tuple[VQVAE, str]:
    part = folder / "autoencoder"
    if not model_file(folder).exists():
        objective = AutoencoderObjective(config, images)
        _fit(objective, config.train_autoencoder, part, accelerator, reporter, config, config.seed)
    return load_autoencoder(folder, config, accelerator.device)


def load_autoencoder(folder: Path, config: Config, device: torch.device | str) -> tuple[VQVAE, str]:
    """The trained autoencoder of a run in eval mode, and the digest of its weights.

    Raises:
        CheckpointError: not trained yet, or damaged.
    """
    tensors, _ = checkpoint.load_tensors(model_file(folder))
    model = VQVAE(config.autoencoder)
    checkpoint.load_weights(model, tensors, model_file(folder))
    return model.to(device).eval(), checkpoint.digest(tensors)


def load_prior(
    folder: Path, config: Config, device: torch.device | str, levels: int | None = None
) -> HierarchicalPrior:
    """The trained priors of a run in eval mode, of its coarsest `levels` levels (None: all).

    Raises:
        CheckpointError: not trained yet, or damaged.
    """
    count = config.autoencoder.levels if levels is None else levels
    whole = config.geometry
    geometry = Geometry(whole.grids[:count], whole.vocabulary[:count])
    prior = HierarchicalPrior(
        config.prior.model_copy(update={"levels": config.prior.levels[:count]}), geometry
    )
    for level in range(count):
        tensors, _ = checkpoint.load_tensors(model_file(folder, level))
        checkpoint.load_weights(prior.level(level), tensors, model_file(folder, level))
    return prior.to(device).eval()


def _draw_level(folder: Path, config: Config, autoencoder: VQVAE, level: int) -> None:
    """Samples of the levels that are trained so far, finer ones at their mean code: prior/level-L/samples.png."""
    device = next(autoencoder.parameters()).device
    count, classes = 64, config.prior.classes
    prior = load_prior(folder, config, device, level + 1)
    labels = torch.arange(count) % classes if classes else None
    drawn = prior.sample(count, labels, seed=config.seed, **config.sampling.model_dump())
    finer = config.geometry.grids[level + 1 :]
    rest = (torch.zeros(count, *grid, dtype=torch.int64, device=device) for grid in finer)
    pictures = autoencoder.decode(Codes((*drawn.levels, *rest)), level + 1)
    save_grid(pictures.cpu(), _samples_file(folder, level), columns=8)


def _codes(
    folder: Path,
    config: Config,
    images: ImageSet,
    model: VQVAE,
    digest: str,
    accelerator: Accelerator,
    reporter: Reporter,
) -> CodeStore:
    if accelerator.is_main_process:
        try:
            store = open_store(folder / "codes", digest=digest)
            if len(store) != _total(images, config):
                raise StoreError("train_prior.*.copies was changed")
        except StoreError:
            if any(model_file(folder, level).exists() for level in range(config.autoencoder.levels)):
                reporter.say("the code store is missing or does not fit the autoencoder: extracting anew")
            extract(model, images, config, folder / "codes", digest, reporter)
    accelerator.wait_for_everyone()
    return open_store(folder / "codes", digest=digest)


def _health(store: CodeStore, reporter: Reporter) -> None:
    """Report a collapsed level before stage 2 starts, with what to do."""
    for level, figures in enumerate(code_use(store)):
        if figures["usage"] < _COLLAPSED:
            reporter.say(
                f"warning: level {level} is collapsed: it uses {figures['usage']:.1%} of its codes "
                f"(perplexity {figures['perplexity']:.1f}). Its prior will have little to learn and samples will be poor. "
                f"Try fewer codes (--set autoencoder.codes=...), a larger stride for the finer level, or more training."
            )


def code_use(store: CodeStore) -> list[dict[str, float]]:
    """Per level, over the training pictures: share of codes used at all, and perplexity."""
    counts = [torch.zeros(k, dtype=torch.int64) for k in store.geometry.vocabulary]
    for start in range(0, len(store.train), 4096):
        for count, level in zip(counts, store.codes(store.train[start : start + 4096]).levels, strict=True):
            count += torch.bincount(level.flatten(), minlength=len(count))
    figures = usage_figures(counts)
    return [
        {"usage": figures[f"usage_{i}"], "perplexity": figures[f"perplexity_{i}"]} for i in range(len(counts))
    ]


def _stage2(
    folder: Path,
    config: Config,
    store: CodeStore,
    autoencoder: VQVAE,
    level: int,
    accelerator: Accelerator,
    reporter: Reporter,
) -> None:
    settings = config.train_prior[level]
    codebooks = [quantizer.embeddings for quantizer in autoencoder.quantizers[: level + 1]]
    objective = PriorObjective(config, store, level, codebooks)
    part = folder / "prior" / f"level-{level}"
    _fit(objective, settings, part, accelerator, reporter, config, config.seed + 1 + level)


def _fit(
    objective: Objective,
    settings: Any,
    part: Path,
    accelerator: Accelerator,
    reporter: Reporter,
    config: Config,
    seed: int,
) -> Outcome:
    """Train one stage and publish its model; the checkpoints are not needed after that."""
    outcome = fit(objective, settings, part, accelerator, reporter, seed)
    figures = {key: value for key, value in outcome.figures.items() if key != "score"}
    reporter.say(
        f"{objective.name}: step {outcome.best_step} is the best of {outcome.step}: " + _figures(figures)
    )
    if accelerator.is_main_process:
        checkpoint.write_json(
            part / "config.json", {"outcome": asdict(outcome), "config": config.model_dump(mode="json")}
        )
        checkpoint.save_tensors(
            part / "model.safetensors",
            objective.model.state_dict(),
            {"figures": figures, "step": outcome.best_step},
        )
        shutil.rmtree(part / "checkpoints", ignore_errors=True)
    accelerator.wait_for_everyone()
    return outcome


def _figures(figures: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in figures.items() if isinstance(value, float))


__all__ = [
    "ConfigError",
    "RunError",
    "claim",
    "code_use",
    "extract",
    "finished",
    "load_autoencoder",
    "load_prior",
    "model_file",
    "read_run",
    "train",
]
