"""The rules by which a run folder that exists may be used again, and its weights; `files/run_folder.py` says what it holds.

A stage is done when its model file (or manifest) exists. A setting that differs from the one that an existing stage was
trained with is refused, and the error shows both values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from pydantic import Field

from vqvae2.autoencoder.layers import channels_first
from vqvae2.autoencoder.model import VQVAE
from vqvae2.config.hardware import Hardware
from vqvae2.config.models import Config, ConfigError, parse
from vqvae2.config.overrides import differences, read_yaml
from vqvae2.data.images import ImageSet
from vqvae2.data.recorded import same_source, source_record
from vqvae2.files import atomic, tensor_file
from vqvae2.files.locate import no_run
from vqvae2.files.records import Record
from vqvae2.files.run_folder import RunError, RunFolder, refuse_links
from vqvae2.files.seen import await_seen
from vqvae2.modes import loading
from vqvae2.prior.hierarchy import HierarchicalPrior
from vqvae2.processes import joined
from vqvae2.train.derived import check_count, check_origin, compare_priors, prior_of
from vqvae2.train.longer import may_change, may_tune, record_ends, set_aside
from vqvae2.train.paths import from_anywhere, keep_places
from vqvae2.train.reference import check_device

REDO = "--redo-prior"

_FREE = re.compile(  # settings that may change at any time
    rf"data\.(workers|cache_gb|streaming|labels|image_root)|{'|'.join(Hardware.model_fields)}"
    r"|sampling"
    r"|train_prior\.\d+\.(checkpointing|accumulate)|(train_autoencoder|sharpen|train_prior\.\d+)\.save_minutes"
)
_COPIES = re.compile(r"train_prior\.\d+\.copies")  # of the codes, which all levels share
_FORM = ["data.size", "data.channels", "data.range"]  # what an autoencoder without a data set fixes


class _RunRecord(Record):
    """What `run` in config.yaml may hold; all of it is text but the format and the names of the classes."""

    version: str = ""
    format: int = 0
    command: str = ""
    source: str | None = None
    fingerprint: str | None = None
    imported: str | None = None
    classes: list[str] = Field(default_factory=list)
    class_counts: list[int] = Field(default_factory=list)  # training images of each class
    images: list[int] = Field(default_factory=list)  # numbers of training and of held-out images


@dataclass(frozen=True)
class Redo:
    """Priors that may be replaced.

    Attributes:
        levels: whose settings may change although their prior is trained; it is then moved aside.
        say: called with a line for each.
    """

    levels: Sequence[int] = ()
    say: Callable[[str], None] = print


@dataclass(frozen=True)
class Claim:
    """What is to become of a run folder, whose settings were found right; `settle` makes it so.

    Attributes:
        record, config: what RUN/config.yaml is to say.
        anew: priors that are replaced.
    """

    record: dict[str, Any]
    config: Config
    anew: Redo = field(default_factory=Redo)


def claim(
    folder: Path, data: str, config: Config, command: str, accelerator: Accelerator, redo: Redo | None = None
) -> Claim:
    """Check the settings against what RUN already holds, and write RUN/config.yaml if nothing is trained there.

    Where a stage was trained, the folder stays as it is until the images are known to be those of the run.

    Args:
        redo: priors that may be replaced.

    Raises:
        RunError: see `train`.
        ConfigError: see `PriorConfig.check_guidance`.
    """
    file = RunFolder(folder).config
    refuse_links(folder, config.autoencoder.levels)
    if wrong := [level for level in (redo or Redo()).levels if not 0 <= level < config.autoencoder.levels]:
        raise RunError(f"{REDO}: expected a level 0..{config.autoencoder.levels - 1}, found {wrong[0]}")
    config = from_anywhere(config)
    fixed, anew = tuple[str, ...](), Redo()
    record: dict[str, Any] = {
        "version": metadata.version("vqvae2"),
        "format": atomic.FORMAT,
        "command": command,
        **source_record(data, folder),
    }
    if file.exists():
        old_record, old = read_run(folder)
        fixed = begun(folder, old, old_record)
        old_value, new_value = old.model_dump(mode="json"), config.model_dump(mode="json")
        _keep_classes(new_value["prior"], old_value["prior"], fixed)
        keep_places(new_value, old_value)
        changed = [line for line in differences(old_value, new_value) if not _FREE.match(line)]
        replaced = _anew(changed, redo)
        priors = [level for level in range(old.autoencoder.levels) if RunFolder(folder).prior(level).begun()]
        shared = [] if {*priors} <= {*replaced} else [line for line in changed if _COPIES.match(line)]
        allowed = [line for line in changed if may_change(line) or may_tune(line, folder, old)]
        allowed += [line for line in changed if _of(line, replaced) and line not in shared]
        refused = [line for line in changed if line.startswith(fixed) and line not in allowed]
        if refused:
            raise RunError(
                f"{folder} was trained with other settings ({'; '.join(refused)}); "
                f"use the old settings, or another --run{_advice(refused)}"
            )
        config = parse(new_value)
        config.prior.check_guidance(config.sampling)
        record_ends(folder, old, changed, write=accelerator.is_main_process)
        anew = Redo([level for level in replaced if level in priors], (redo or Redo()).say)
        own = same_source(data, old_record, folder)
        record = {**old_record, **({"command": command} if changed else {})}
        # where a stage was trained, `check_images` compares the images themselves
        if not own and not (fixed and "fingerprint" in old_record):
            record |= {"command": command, **source_record(data, folder)}
    claimed = Claim(record, config, anew)
    if not fixed:
        settle(folder, claimed, accelerator)
    return claimed


def _keep_classes(new: dict[str, Any], old: dict[str, Any], fixed: Sequence[str]) -> None:
    """Leave the number of classes as it is, and `conditional` where a prior has begun on data that have no classes to learn by."""
    new["classes"] = old["classes"]
    if "prior.conditional" in fixed and old["conditional"] and not old["classes"]:
        new["conditional"] = True


def settle(folder: Path, claimed: Claim, accelerator: Accelerator) -> None:
    """Move the priors aside that are replaced, then write RUN/config.yaml; every process calls this.

    Raises:
        RunError: it cannot be written.
    """
    if accelerator.is_main_process:
        for line in set_aside(folder, list(claimed.anew.levels)):
            claimed.anew.say(line)
        try:
            write_config(folder, claimed.record, claimed.config)
        except atomic.FileError as error:
            raise RunError(f"cannot use {folder} as a run folder: {error}") from error
    joined().wait()
    await_seen([RunFolder(folder).config])


def same_images(folder: Path, data: str, config: Config) -> bool:
    """Whether DATA, its labels and its folder of images are spelled as RUN/config.yaml has them."""
    record, old = read_run(folder)
    places = [(each.data.labels, each.data.image_root) for each in (old, config)]
    return places[0] == places[1] and same_source(data, record, folder)


def _anew(changed: list[str], redo: Redo | None) -> list[int]:
    """The levels whose priors may be replaced and are to have other settings than they were trained with."""
    levels = redo.levels if redo else ()
    return [level for level in levels if any(_of(line, [level]) and not may_change(line) for line in changed)]


def _of(line: str, levels: Sequence[int]) -> bool:
    """Whether a changed setting belongs to the prior of one of the levels."""
    return any(line.startswith((f"prior.levels.{level}.", f"train_prior.{level}.")) for level in levels)


def _advice(refused: list[str]) -> str:
    """Whether priors can be trained anew for settings that are refused."""
    if not all(re.match(r"(prior\.levels|train_prior)\.\d+\.", line) for line in refused):
        return ""
    if any(_COPIES.match(line) for line in refused):
        return f"; {REDO} of every level that is trained makes all of them anew, because they share the codes"
    return f"; {REDO} LEVEL trains the prior of a level anew"


def write_config(folder: Path, record: dict[str, Any], config: Config) -> None:
    """Write RUN/config.yaml if its content would change: the record under `run`, then the settings."""
    file = RunFolder(folder).config
    text = yaml.safe_dump({"run": record, **config.model_dump(mode="json")}, sort_keys=False)
    if not (file.is_file() and file.read_text(encoding="utf-8") == text):
        atomic.write_text(file, text)


def read_run(folder: Path) -> tuple[dict[str, Any], Config]:
    """The record and the settings in RUN/config.yaml.

    Raises:
        RunError: not a run folder, or one of a newer version.
        ConfigError: damaged.
    """
    if not (file := RunFolder(folder).config).is_file():
        raise no_run(folder)
    value = read_yaml(file)
    record = value.pop("run", {})
    if not isinstance(record, dict):
        raise ConfigError(f"{file} is damaged: it has no record of the run")
    try:
        _RunRecord.of(record, file)
    except atomic.FileError as error:
        raise ConfigError(str(error)) from None
    if record.get("format", 0) > atomic.FORMAT:
        raise RunError(
            f"{folder} was made by vqvae2 {record.get('version')} (format {record['format']}); "
            f"this is {metadata.version('vqvae2')} (format {atomic.FORMAT}): please upgrade"
        )
    config = parse(value)
    if "classes" in record and len(record["classes"]) != config.prior.classes:
        raise ConfigError(
            f"{file} is damaged: expected the names of {config.prior.classes} classes, found {len(record['classes'])}"
        )
    return record, config


def model_file(folder: Path, level: int | None = None) -> Path:
    """The file with the weights of the autoencoder (level None) or of one level's prior."""
    return RunFolder(folder).stage(level).model


def samples_file(folder: Path, level: int) -> Path:
    """The picture of samples of the levels up to this one, drawn when its prior is trained."""
    return RunFolder(folder).prior(level).samples


def finished(folder: Path, config: Config) -> bool:
    """Whether every stage of the pipeline is done whose steps are not 0."""
    priors = [level for level, training in enumerate(config.train_prior) if training.steps]
    parts = [
        model_file(folder),
        RunFolder(folder).manifest,
        *([RunFolder(folder).sharpen.model] if config.sharpen.steps else []),
        *(model_file(folder, level) for level in priors),
    ]
    parts += [samples_file(folder, level) for place, level in enumerate(priors) if place == level]
    return all(part.exists() for part in parts)


def begun(folder: Path, config: Config, record: Mapping[str, Any]) -> tuple[str, ...]:
    """Prefixes of the settings that may no longer change, because a stage was trained with them.

    Args:
        folder: RUN.
        config: its settings.
        record: of the run. Without a fingerprint, an imported autoencoder has seen no data here, and only their form is fixed.
    """
    prefixes = []
    levels = range(config.autoencoder.levels)
    unseen = "imported" in record and "fingerprint" not in record
    if RunFolder(folder).autoencoder.begun():
        prefixes += ["seed", *(_FORM if unseen else ["data"]), "autoencoder", "train_autoencoder"]
    if RunFolder(folder).sharpen.begun():
        prefixes.append("sharpen")
    for level in levels:
        if RunFolder(folder).prior(level).begun():
            prefixes.append("prior.conditional")
            prefixes += [f"prior.levels.{level}", f"train_prior.{level}"]
            prefixes += [f"train_prior.{other}.copies" for other in levels]
    return tuple(prefixes)


def check_images(folder: Path, data: str, config: Config, fingerprint: str) -> None:
    """Refuse images that are not those on which a stage of the run was trained. Where they are does not matter.

    Raises:
        RunError: their fingerprint is another one.
    """
    record, _ = read_run(folder)
    known, source = record.get("fingerprint"), record.get("source")
    if not known or known == fingerprint or not begun(folder, config, record):
        return
    if same_source(data, record, folder):
        raise RunError(
            f"the images in {source} changed since the training of {folder} began; use another --run, or restore them"
        )
    raise RunError(
        f"{folder} was trained on the images in {source}, and found others in {data}; use those, or another --run"
    )


def with_classes(
    folder: Path, data: str, claimed: Claim, images: ImageSet, accelerator: Accelerator
) -> Config:
    """Settle what was claimed, and record where the data is, its fingerprint and its classes with their counts.

    Returns:
        The settings with the number of classes.

    Raises:
        RunError: see `check_images`, `check_count`.
        ConfigError: see `PriorConfig.check_guidance`.
    """
    config = claimed.config
    check_images(folder, data, config, images.fingerprint)
    check_count(folder, *read_run(folder), images)
    classes = list(images.classes) if config.prior.conditional else []
    counts = images.class_counts() if classes else []
    found = {"fingerprint": images.fingerprint, "classes": classes, "class_counts": counts}
    found["images"] = [len(images.train), len(images.heldout)]
    config = config.model_copy(update={"prior": config.prior.model_copy(update={"classes": len(classes)})})
    config.prior.check_guidance(config.sampling)
    record = claimed.record | source_record(data, folder) | found
    settle(folder, Claim(record, config, claimed.anew), accelerator)
    return config


@loading()
def load_autoencoder(folder: Path, config: Config, device: torch.device | str) -> tuple[VQVAE, str]:
    """The trained autoencoder of a run in eval mode, and the digest of its weights; warns if the device computes other codes.

    Raises:
        FileError: not trained yet, or damaged.
    """
    model, digest, metadata = _stored_autoencoder(folder, config, device)
    check_device(model, metadata, model_file(folder))
    return model, digest


def _stored_autoencoder(
    folder: Path, config: Config, device: torch.device | str
) -> tuple[VQVAE, str, dict[str, Any]]:
    """The trained autoencoder in eval mode, the digest of its weights, and their metadata."""
    model, tensors, metadata = tensor_file.load_network(lambda: VQVAE(config.autoencoder), model_file(folder))
    if not config.channels_last:
        channels_first(model)
    return model.to(device).eval(), tensor_file.digest(tensors), metadata


@loading()
def sharp_autoencoder(folder: Path, config: Config, device: torch.device | str) -> VQVAE:
    """The trained autoencoder of a run in eval mode, decoding with its sharpened decoder; it encodes as the plain one.

    The sharpened decoder has learned to decode all levels together. For images of the coarsest levels alone, use
    the plain one.

    Raises:
        FileError: not sharpened yet, damaged, or sharpened for other weights of the autoencoder.
    """
    file = RunFolder(folder).sharpen.model
    # the device was checked with the plain decoder
    model, digest, _ = _stored_autoencoder(folder, config, device)
    check_origin(file, digest, required=True)
    own = tensor_file.shapes_of(model.state_dict())
    tensor_file.compare_shapes(own, own | tensor_file.read_header(file).shapes, file)
    tensors, _ = tensor_file.load_tensors(file)
    tensor_file.load_weights(model, {**model.state_dict(), **tensors}, file)
    return model


@loading()
def load_prior(
    folder: Path,
    config: Config,
    device: torch.device | str,
    levels: int | None = None,
    autoencoder: str | None = None,
) -> HierarchicalPrior:
    """The trained priors of a run in eval mode, of its coarsest `levels` levels (None: all).

    Args:
        autoencoder: the digest of the run's autoencoder, if the priors are used with it; None does not compare.

    Raises:
        FileError: not trained yet, damaged, or trained on the codes of another autoencoder.
    """
    count = config.autoencoder.levels if levels is None else levels
    for level in range(count):
        if autoencoder is not None:
            check_origin(model_file(folder, level), autoencoder)
    compare_priors(folder, config, range(count))
    prior = prior_of(config, count)
    for level in range(count):
        tensors, _ = tensor_file.load_tensors(model_file(folder, level))
        tensor_file.load_weights(prior.level(level), tensors, model_file(folder, level))
    return prior.to(device).eval()
