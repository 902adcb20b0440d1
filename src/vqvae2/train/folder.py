"""What a run folder holds, and the rules by which a folder that exists may be used again.

    RUN/config.yaml        what was asked for, resolved, with version, command, source, fingerprint and classes
    RUN/data/              decoded pictures, skipped.txt
    RUN/autoencoder/       model.safetensors, config.json, metrics.jsonl, checkpoints/, pictures/
    RUN/codes/             the code store
    RUN/prior/level-0/ ... as autoencoder/, and samples.png

Each stage is done when its model file (or manifest) is there. A setting that contradicts what is already trained is
refused with the difference.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Geometry
from vqvae2.config.models import Config, ConfigError, parse
from vqvae2.config.overrides import differences, read_yaml
from vqvae2.data.images import ImageSet
from vqvae2.errors import UserError
from vqvae2.files import atomic, tensor_file
from vqvae2.prior.hierarchy import HierarchicalPrior

_FREE = re.compile(  # may change at any time
    r"data\.(workers|cache_gb|streaming)|precision|compile|capture|tf32|resident_gb|deterministic|sampling"
    r"|train_prior\.\d+\.checkpointing"
)


class RunError(UserError):
    """A run folder that cannot be used as asked."""


def claim(folder: Path, data: str, config: Config, command: str, accelerator: Accelerator) -> Config:
    """Make RUN ours: refuse what contradicts it, write down the resolved configuration.

    Raises:
        RunError: see `train`.
    """
    file = folder / "config.yaml"
    record: dict[str, Any] = {
        "version": metadata.version("vqvae2"),
        "format": atomic.FORMAT,
        "command": command,
        "source": data,
    }
    if file.exists():
        old_record, old = read_run(folder)
        fixed = begun(folder, old)
        old_value, new_value = old.model_dump(mode="json"), config.model_dump(mode="json")
        new_value["prior"]["classes"] = old_value["prior"]["classes"]
        changed = [line for line in differences(old_value, new_value) if not _FREE.match(line)]
        refused = [line for line in changed if any(line.startswith(prefix) for prefix in fixed)]
        if (
            fixed and "fingerprint" in old_record and old_record.get("source") != data
        ):  # an imported run has none
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
        except atomic.FileError as error:
            raise RunError(f"cannot use {folder} as a run folder: {error}") from error
    accelerator.wait_for_everyone()
    return config


def write_config(folder: Path, record: dict[str, Any], config: Config) -> None:
    """Write RUN/config.yaml, unless it says so already: the record under `run`, then the settings."""
    file = folder / "config.yaml"
    text = yaml.safe_dump({"run": record, **config.model_dump(mode="json")}, sort_keys=False)
    if not (file.is_file() and file.read_text(encoding="utf-8") == text):
        atomic.write_text(file, text)


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
    if record.get("format", 0) > atomic.FORMAT:
        raise RunError(
            f"{folder} was made by vqvae2 {record.get('version')} (format {record['format']}); "
            f"this is {metadata.version('vqvae2')} (format {atomic.FORMAT}): please upgrade"
        )
    return record, parse(value)


def model_file(folder: Path, level: int | None = None) -> Path:
    """The weights of the autoencoder (level None) or of one level's prior."""
    part = folder / "autoencoder" if level is None else folder / "prior" / f"level-{level}"
    return part / "model.safetensors"


def samples_file(folder: Path, level: int) -> Path:
    """Samples of the levels up to this one, drawn when its prior is trained."""
    return folder / "prior" / f"level-{level}" / "samples.png"


def finished(folder: Path, config: Config) -> bool:
    """Whether every stage of the pipeline is done."""
    levels = range(config.autoencoder.levels)
    parts = [
        model_file(folder),
        folder / "codes" / "manifest.json",
        *(model_file(folder, level) for level in levels),
        *(samples_file(folder, level) for level in levels),
    ]
    return all(part.exists() for part in parts)


def begun(folder: Path, config: Config) -> list[str]:
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


def with_classes(folder: Path, config: Config, images: ImageSet, accelerator: Accelerator) -> Config:
    """Write the data's fingerprint and classes down; refuse data that changed under a trained model."""
    record, _ = read_run(folder)
    known = record.get("fingerprint")
    if known and known != images.fingerprint and begun(folder, config):
        raise RunError(
            f"the pictures in {record['source']} changed since {folder} was begun; use another --run, or restore them"
        )
    classes = list(images.classes) if config.prior.conditional else []
    record |= {"fingerprint": images.fingerprint, "classes": classes}
    config = config.model_copy(update={"prior": config.prior.model_copy(update={"classes": len(classes)})})
    if accelerator.is_main_process:
        write_config(folder, record, config)
    accelerator.wait_for_everyone()
    return config


def load_autoencoder(folder: Path, config: Config, device: torch.device | str) -> tuple[VQVAE, str]:
    """The trained autoencoder of a run in eval mode, and the digest of its weights.

    Raises:
        FileError: not trained yet, or damaged.
    """
    tensors, _ = tensor_file.load_tensors(model_file(folder))
    model = VQVAE(config.autoencoder)
    tensor_file.load_weights(model, tensors, model_file(folder))
    return model.to(device).eval(), tensor_file.digest(tensors)


def load_prior(
    folder: Path, config: Config, device: torch.device | str, levels: int | None = None
) -> HierarchicalPrior:
    """The trained priors of a run in eval mode, of its coarsest `levels` levels (None: all).

    Raises:
        FileError: not trained yet, or damaged.
    """
    count = config.autoencoder.levels if levels is None else levels
    whole = config.geometry
    geometry = Geometry(whole.grids[:count], whole.vocabulary[:count])
    prior = HierarchicalPrior(
        config.prior.model_copy(update={"levels": config.prior.levels[:count]}), geometry
    )
    for level in range(count):
        tensors, _ = tensor_file.load_tensors(model_file(folder, level))
        tensor_file.load_weights(prior.level(level), tensors, model_file(folder, level))
    return prior.to(device).eval()
