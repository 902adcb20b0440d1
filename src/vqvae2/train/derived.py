"""What of a run was derived from its autoencoder, and whether it still fits: digests and shapes, by the headers of files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Geometry
from vqvae2.config.models import Config
from vqvae2.data.images import ImageSet
from vqvae2.files import atomic, tensor_file
from vqvae2.files.run_folder import RunError, RunFolder
from vqvae2.prior.hierarchy import HierarchicalPrior
from vqvae2.train.state import saying_what_to_do


def check_origin(file: Path, digest: str, required: bool = False) -> None:
    """Check that what a file holds was derived from the run's autoencoder.

    Args:
        file: weights, or the state of a training; their metadata name the autoencoder's digest as `autoencoder`.
        digest: of the weights of the run's autoencoder.
        required: refuse a file that names none. Priors of former versions named none.

    Raises:
        FileError: it was derived from another one, or is damaged.
    """
    state = file.parent.name == "checkpoints"
    with saying_what_to_do(file) if state else nullcontext():
        found = tensor_file.read_header(file).metadata.get("autoencoder")
    if found != digest and (required or found is not None):
        part = file.parent.parent if state else file.parent
        raise atomic.FileError(
            f"{file} belongs to another autoencoder than the one in this run; delete {part}, and `vqvae2 train` makes it anew"
        )


def check_count(folder: Path, record: Mapping[str, Any], config: Config, images: ImageSet) -> None:
    """Check that a run which has begun goes on with as many images, which their fingerprint does not say.

    Decoded images that are kept lack the broken ones; images that are decoded while training have others in their place.

    Args:
        record: of the run. One that an earlier version made does not say how many images there were, and is not checked.
        config: the settings that it has had.

    Raises:
        RunError: there are more or fewer now.
    """
    known, found = record.get("images"), [len(images.train), len(images.heldout)]
    same = record.get("fingerprint") == images.fingerprint
    if known and same and [*known] != found and RunFolder(folder).autoencoder.begun():
        place, before = RunFolder(folder).data, config.data.cache_gb
        more = sum(found) > sum(known)
        if more and not images.kept:
            why = (
                "broken files, which are replaced while training, were left out then, when the decoded images were kept; "
                f"delete {place}, and use a larger data.cache_gb as then"
            )
        elif more:
            why = f"files that were left out then, because they could not be used, no longer are: restore them as they were and delete {place}"
        elif images.config.cache_gb > before:
            why = (
                f"data.cache_gb decides whether broken files are left out before, or replaced while training; delete {place}, and use "
                f"data.cache_gb={before:g} as before"
            )
        else:
            why = (
                f"files that were used then cannot be used now: mend what {place / 'skipped.txt'} lists, with the reasons, and delete "
                f"{place}"
            )
        raise RunError(
            f"{folder} was trained on {known[0]:,} images, with {known[1]:,} held out, and these are {found[0]:,} and {found[1]:,} of "
            f"the same data: {why}, or use another --run"
        )


def check_derived(folder: Path, config: Config) -> None:
    """Check that what is trained of a run was derived from its autoencoder, finished or not.

    Raises:
        FileError: it was derived from another one, or the autoencoder is gone and will be trained anew.
    """
    paths = RunFolder(folder)
    digest = None
    if paths.autoencoder.done():
        digest = tensor_file.digest(tensor_file.load_tensors(paths.autoencoder.model)[0])
    for name, stage in paths.networks(config.autoencoder.levels).items():
        files = [] if name == "autoencoder" else [stage.model, stage.checkpoint]
        for file in filter(Path.exists, files):
            if digest is None:
                raise atomic.FileError(
                    f"{file} was derived from an autoencoder that {folder} no longer holds; delete {stage.path}, or restore "
                    f"{paths.autoencoder.model}"
                )
            check_origin(file, digest)


def check_shapes(folder: Path, config: Config) -> None:
    """Compare the settings with the headers of the weights that are there; neither the networks nor the weights are made.

    Raises:
        FileError: they do not fit, or a file is damaged.
    """
    stages = RunFolder(folder)
    if stages.autoencoder.done():
        with torch.device("meta"):
            own = VQVAE(config.autoencoder).state_dict()
        shapes = tensor_file.read_header(stages.autoencoder.model).shapes
        tensor_file.compare_shapes(tensor_file.shapes_of(own), shapes, stages.autoencoder.model)
    levels = range(config.autoencoder.levels)
    compare_priors(folder, config, [level for level in levels if stages.prior(level).done()])


def compare_priors(folder: Path, config: Config, levels: Iterable[int]) -> None:
    """Compare the settings with the shapes in the files of these levels' priors.

    Raises:
        FileError: a file is damaged or does not fit.
    """
    wanted = list(levels)
    with torch.device("meta"):
        prior = prior_of(config, max(wanted) + 1) if wanted else None
    for level in wanted:
        assert prior is not None
        own = tensor_file.shapes_of(prior.level(level).state_dict())
        file = RunFolder(folder).prior(level).model
        tensor_file.compare_shapes(own, tensor_file.read_header(file).shapes, file)


def prior_of(config: Config, levels: int) -> HierarchicalPrior:
    """The priors of the coarsest levels, with any weights."""
    geometry = Geometry(config.geometry.grids[:levels], config.geometry.vocabulary[:levels])
    settings = config.prior.model_copy(update={"levels": config.prior.levels[:levels]})
    return HierarchicalPrior(settings, geometry)
