"""Where a training begins: the weights of another run, for fine-tuning, and what stage 1 needs beside images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vqvae2.autoencoder.model import VQVAE
from vqvae2.autoencoder.perceptual import PerceptualDistance
from vqvae2.config.models import Config
from vqvae2.files import tensor_file
from vqvae2.files.locate import find_run
from vqvae2.files.run_folder import RunError, RunFolder
from vqvae2.train.folder import model_file, read_run
from vqvae2.train.longer import settings_of

_LABELS = "label.weight"  # of a prior: an embedding for each class, then one for "no label"


def check_starts(folder: Path, config: Config, priors: bool = True) -> None:
    """Check that the runs from which stages start fit the settings, before anything is trained.

    Args:
        priors: whether priors are to be trained; otherwise the runs from which they start need not be there yet.

    Raises:
        RunError: no such run, one whose prior is not trained, other networks, or codebooks of another decay.
    """
    first = config.train_autoencoder.start
    begins = _find(first) if first and not RunFolder(folder).autoencoder.done() else None
    if begins is not None and RunFolder(begins).exists():
        decays = [each.autoencoder.decay for each in (read_run(begins)[1], config)]
        if decays[0] != decays[1]:  # the averages are divided by 1 - decay^updates
            raise RunError(
                f"train_autoencoder.start: expected autoencoder.decay {decays[0]:g}, with which the codebooks of {first} were "
                f"trained, found {decays[1]:g}"
            )
    for level, training in enumerate(config.train_prior if priors else ()):
        if not training.start or RunFolder(folder).prior(level).done():
            continue
        start = find_run(training.start)
        _, theirs = read_run(start)
        ours = config.autoencoder
        same = (theirs.autoencoder.codes, theirs.autoencoder.strides) == (ours.codes, ours.strides)
        if not same or theirs.autoencoder.code_dim != ours.code_dim:
            raise RunError(
                f"train_prior.{level}.start: expected the codes of {training.start} "
                f"({_codes(theirs)}), found {_codes(config)}; leave autoencoder as it is there"
            )
        networks = [
            (own.kind, own.hidden, own.residual, own.layers)
            for own in (theirs.prior.levels[level], config.prior.levels[level])
        ]
        if networks[0] != networks[1]:
            raise RunError(
                f"train_prior.{level}.start: expected the priors of {training.start} (kind, hidden, residual, layers {networks[0]}), "
                f"found {networks[1]}; leave prior.levels as it is there, or set train_prior.{level}.start to nothing"
            )
        if not RunFolder(start).prior(level).done():
            raise RunError(
                f"train_prior.{level}.start: the prior of level {level} of {training.start} is not trained"
            )


def check_batches(folder: Path, config: Config, further: list[str], processes: int) -> None:
    """Check that the processes can share out the batches of all stages that are still to be trained, before images are read.

    Args:
        further: names of finished stages that are trained further.
        processes: how many there are.

    Raises:
        RunError: a batch is no multiple of their number.
    """
    stages = RunFolder(folder).networks(config.autoencoder.levels)
    for name, (key, training) in settings_of(config).items():
        todo = training.steps and (name in further or not stages[name].done())
        if todo and training.batch % processes:
            raise RunError(
                f"{key}.batch: {training.batch} images cannot be shared out evenly to {processes} processes; "
                f"take a multiple of {processes}"
            )


def _codes(config: Config) -> str:
    own = config.autoencoder
    return f"codes {list(own.codes)}, strides {list(own.strides)}, code_dim {own.code_dim}"


def begin_prior(model: nn.Module, start: str, level: int, classes: list[str]) -> int:
    """Take over the weights of another run's prior. Classes of the same name keep their embedding.

    Args:
        model: the prior of one level.
        start: a run folder, a model of the package, or a Hub id.
        level: 0 is the coarsest.
        classes: names of the classes of the new run.

    Returns:
        How many classes are new; their embeddings stay random.

    Raises:
        RunError, FileError: no such run, or its weights do not fit.
    """
    folder = find_run(start)
    record, _ = read_run(folder)
    file = RunFolder(folder).prior(level).model
    tensors, _ = tensor_file.load_tensors(file)
    own = model.state_dict()
    known = {name: index for index, name in enumerate(record.get("classes", ()))}
    new = [name for name in classes if name not in known]
    theirs = tensors.pop(_LABELS, None)
    if _LABELS in own:
        tensors[_LABELS] = own[_LABELS] if theirs is None else _rows(own[_LABELS], theirs, classes, known)
    tensor_file.load_weights(model, tensors, file)
    return len(new)


def _rows(own: Tensor, theirs: Tensor, classes: list[str], known: dict[str, int]) -> Tensor:
    """The embeddings [classes + 1, D]: those of the other run where it knows the class, and its "no label"."""
    table = own.clone()
    for index, name in enumerate(classes):
        if name in known:
            table[index] = theirs[known[name]].to(table.dtype)
    table[-1] = theirs[-1].to(table.dtype)
    return torch.as_tensor(table)


def stage1_inputs(config: Config) -> tuple[PerceptualDistance | None, dict[str, Tensor]]:
    """What stage 1 needs beside images: the perceptual distance or None, and the initial weights ({} means random ones)."""
    settings = config.train_autoencoder
    weights, start = settings.perceptual_weights, settings.start
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
