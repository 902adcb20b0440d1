"""Where a training begins: the weights of another run, for fine-tuning, and what stage 1 needs beside images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vqvae2.autoencoder.model import VQVAE
from vqvae2.autoencoder.perceptual import PerceptualDistance
from vqvae2.config.models import Config
from vqvae2.config.overrides import differences
from vqvae2.files import tensor_file
from vqvae2.files.locate import find_run
from vqvae2.files.run_folder import RunError, RunFolder
from vqvae2.prior.kinds import make_level
from vqvae2.train.folder import model_file, read_run
from vqvae2.train.longer import settings_of

_LABELS = "label.weight"  # of a prior: an embedding for each class, then one for "no label"


Until = Literal["autoencoder", "codes", "sharpen", "prior"]  # the stage after which a training stops


def trained_until(name: str, until: str) -> bool:
    """Whether a stage, by its name, is trained before a training stops after the stage `until`."""
    return until == "prior" or name in ("autoencoder", until)


def check_end(config: Config, until: str) -> None:
    """Check that there is a stage after which a training is to stop.

    Raises:
        RunError: it is to stop after the sharpening, and there is none.
    """
    if until == "sharpen" and not config.sharpen.steps:
        raise RunError("sharpen.steps is 0, so there is no sharpening to stop after; raise sharpen.steps")


def due(
    folder: Path,
    config: Config,
    further: Iterable[str],
    anew: Iterable[int],
    until: Until,
) -> dict[str, bool]:
    """The stages that are to be trained.

    Args:
        further: names of finished stages that are trained further.
        anew: levels whose priors are replaced.
        until: the last stage of these.

    Returns:
        Their names, in order, and of each whether it begins at its starting point: not if it is trained further or goes on
        from a saved state. What comes after an autoencoder that is trained further is made anew.
    """
    longer = {*further}
    replaced = {f"prior level {level}" for level in anew}
    stages = RunFolder(folder).networks(config.autoencoder.levels)
    found = {}
    for name, (_, training) in settings_of(config).items():
        first, stage = name == "autoencoder", stages[name]
        if not training.steps or not trained_until(name, until):
            continue
        again = name in replaced or (not first and "autoencoder" in longer)
        if again or name in longer or not stage.done():
            found[name] = again or not stage.begun()
    return found


def check_starts(config: Config, stages: Mapping[str, bool]) -> None:
    """Check that the runs from which stages start fit the settings, before anything is trained.

    Args:
        stages: of `due`; a run from which none of them begins need not be there.

    Raises:
        RunError: no such run, one whose prior is not trained, other networks, or codebooks of another decay.
        FileError: the weights of a prior are damaged.
    """
    first = config.train_autoencoder.start
    begins = _find(first) if first and stages.get("autoencoder") else None
    if begins is not None and RunFolder(begins).exists():
        decays = [each.autoencoder.decay for each in (read_run(begins)[1], config)]
        if decays[0] != decays[1]:  # the averages are divided by 1 - decay^updates
            raise RunError(
                f"train_autoencoder.start: expected autoencoder.decay {decays[0]:g}, with which the codebooks of {first} were "
                f"trained, found {decays[1]:g}"
            )
    for level, training in enumerate(config.train_prior):
        if training.start and stages.get(f"prior level {level}"):
            _check_prior(config, level, training.start)


def _check_prior(config: Config, level: int, name: str) -> None:
    """Check that the prior of a level may start from that of the run of this name; their classes may differ."""
    start = find_run(name)
    _, theirs = read_run(start)
    ours = config.autoencoder
    same = (theirs.autoencoder.codes, theirs.autoencoder.strides) == (ours.codes, ours.strides)
    if not same or theirs.autoencoder.code_dim != ours.code_dim:
        raise RunError(
            f"train_prior.{level}.start: expected the codes of {name} "
            f"({_codes(theirs)}), found {_codes(config)}; leave autoencoder as it is there"
        )
    stage = RunFolder(start).prior(level)
    if not stage.done():
        raise RunError(f"train_prior.{level}.start: the prior of level {level} of {name} is not trained")
    with torch.device("meta"):
        own = make_level(
            config.prior.levels[level], config.geometry, level, theirs.prior.classes
        ).state_dict()
    expected, found = tensor_file.shapes_of(own), tensor_file.read_header(stage.model).shapes
    old, new = _network(theirs, level), _network(config, level)
    if _unseen(old) != _unseen(new) or (expected != found and old != new):
        raise RunError(
            f"train_prior.{level}.start: expected the priors of {name}, found others ({'; '.join(differences(old, new))}); "
            f"leave prior.levels and data.size as they are there, or begin anew: --set 'train_prior.{level}.start=\"\"'"
        )
    tensor_file.compare_shapes(expected, found, stage.model)


def _network(config: Config, level: int) -> dict[str, Any]:
    """The settings by which the network of a level's prior may differ from another one."""
    settings = config.prior.levels[level].model_dump(mode="json", exclude={"dropout", "label_dropout"})
    return {"data.size": config.data.shape_text, **settings}


def _unseen(network: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of these settings the weights mean without a shape that shows it."""
    if network["kind"] == "transformer":
        return network["kind"], network["heads"]
    return network["kind"], network["attention_every"], network["attention_every"] and network["heads"]


def check_processes(config: Config, stages: Iterable[str], processes: int) -> None:
    """Check that the processes can share out the batches of all stages that are to be trained, and cut up priors where asked for.

    Args:
        stages: of `due`.
        processes: how many there are.

    Raises:
        RunError: a batch is no multiple of their number, or this torch is too old to cut up priors.
    """
    for name in stages:
        key, training = settings_of(config)[name]
        if training.batch % processes:
            raise RunError(
                f"{key}.batch: {training.batch} images cannot be shared out evenly to {processes} processes; "
                f"take a multiple of {processes}"
            )
        sharded = config.shard and processes > 1 and name.startswith("prior")
        version = [int(part) for part in torch.__version__.split(".")[:2]]
        if sharded and version < [2, 8]:  # it leaves the weights whole after an evaluation
            raise RunError(
                f"shard needs torch 2.8 or newer, and this is {torch.__version__}; leave it out, or update torch"
            )


def _codes(config: Config) -> str:
    own = config.autoencoder
    return f"codes {list(own.codes)}, strides {list(own.strides)}, code_dim {own.code_dim}"


def begin_prior(model: nn.Module, start: str, level: int, classes: list[str]) -> int:
    """Take over the weights of another run's prior. Classes of the same name keep their embedding.

    If only one of the two knows classes, what only theirs has is left out, and what only ours has stays as it is.

    Args:
        model: the prior of one level.
        start: a run folder, a model of the package, or a Hub id.
        level: 0 is the coarsest.
        classes: names of the classes of the new run.

    Returns:
        How many classes are new; their embeddings stay random. 0 for a prior that knows no classes.

    Raises:
        RunError, FileError: no such run, or its weights do not fit.
    """
    folder = find_run(start)
    record, _ = read_run(folder)
    file = RunFolder(folder).prior(level).model
    tensors, _ = tensor_file.load_tensors(file)
    own = model.state_dict()
    known = {name: index for index, name in enumerate(record.get("classes", ()))}
    theirs = tensors.pop(_LABELS, None)
    if (_LABELS in own) != (theirs is not None):
        tensors = {name: tensors.get(name, value) for name, value in own.items()}
    if _LABELS in own:
        tensors[_LABELS] = own[_LABELS] if theirs is None else _rows(own[_LABELS], theirs, classes, known)
    tensor_file.load_weights(model, tensors, file)
    return sum(name not in known for name in classes) if _LABELS in own else 0


def _rows(own: Tensor, theirs: Tensor, classes: list[str], known: dict[str, int]) -> Tensor:
    """The embeddings [classes + 1, D]: those of the other run where it knows the class, and its "no label"."""
    table = own.clone()
    for index, name in enumerate(classes):
        if name in known:
            table[index] = theirs[known[name]].to(table.dtype)
    table[-1] = theirs[-1].to(table.dtype)
    return torch.as_tensor(table)


def stage1_inputs(config: Config, begins: bool) -> tuple[PerceptualDistance | None, dict[str, Tensor]]:
    """What stage 1 needs beside images: the perceptual distance or None, and the initial weights ({} means random ones).

    Args:
        begins: whether it begins at its starting point; otherwise that is not looked at.
    """
    settings = config.train_autoencoder
    weights, start = settings.perceptual_weights, settings.start if begins else ""
    distance = read_distance(weights)
    begin = tensor_file.load_tensors(model_file(_find(start)))[0] if start else {}
    if begin:
        tensor_file.load_weights(VQVAE(config.autoencoder), begin, start)  # raises where they do not fit
    return distance, begin


def read_distance(weights: str) -> PerceptualDistance | None:
    """The perceptual distance with these weights; None without."""
    return PerceptualDistance.read(weights) if weights else None


def _find(start: str) -> Path:
    """The folder of a run that is named as a starting point; a folder that is no run folder is looked into all the same."""
    return find_run(start) if RunFolder(Path(start)).exists() or not Path(start).exists() else Path(start)
