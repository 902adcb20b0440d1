"""What can be known to be wrong with an evaluation before anything expensive starts."""

from __future__ import annotations

from pathlib import Path

import torch

from vqvae2.autoencoder.perceptual import PerceptualDistance
from vqvae2.errors import UserError
from vqvae2.evaluate.context import RESERVED_NAMES
from vqvae2.evaluate.critic import critic_file, read_record
from vqvae2.evaluate.features import FeatureNetwork
from vqvae2.evaluate.networks.by_name import feature_network
from vqvae2.evaluate.options import EvaluateOptions
from vqvae2.evaluate.parts.critic import same_backbone
from vqvae2.evaluate.parts.registry import PARTS, asked_parts, check_names
from vqvae2.evaluate.trained_run import TrainedRun

_DEFAULT = EvaluateOptions().network


def check_options(
    run: TrainedRun | None, options: EvaluateOptions, device: torch.device | str = "cpu"
) -> FeatureNetwork | None:
    """Check everything that the options name, without reading an image.

    Args:
        run: the run, if there is one.
        options: what is measured.
        device: where the feature network goes.

    Returns:
        The feature network if it was asked for, so that it need not be read again.

    Raises:
        UserError: nothing to measure, an unknown part, a reserved name, a missing folder, a number out of range, settings of
            sampling for another number of levels, or a critic whose backbone is the measuring network.
        RunError: the sharpened decoder is asked for and not trained.
        ConfigError: samples of the run would be drawn with guidance that it cannot use.
        FeatureError, PerceptualError, CriticError: weights that are missing or damaged.
    """
    check_names(options)
    if taken := sorted({*options.against} & RESERVED_NAMES):
        raise UserError(f"the report has a set named {', '.join(taken)}: another name is needed")
    if run is None and options.samples is None:
        raise UserError("expected a RUN or --samples DIR, or both")
    _check_split(run, options)
    named = {"samples": options.samples, "compress": options.compress, **options.against}
    for name, folder in named.items():
        if folder is not None:
            _check_folder(name, folder)
    _check_numbers(options)
    if run is not None:
        if options.size is not None:
            raise UserError("size has no effect with a run, at whose size images are measured; leave it out")
        run.decoder_name(options.decoder)
        (options.sampling or run.sampling).level(0, run.config.autoencoder.levels)
        _check_guidance(run, options)
    if options.perceptual is not None:
        PerceptualDistance.read(options.perceptual)
    network = None
    if options.network != _DEFAULT or options.weights is not None:
        network = feature_network(options.network, options.weights, device)
    if run is not None and (options.critic_fractions or "critic" in options.only):
        _check_critic(run, options, network)
    return network


def _check_guidance(run: TrainedRun, options: EvaluateOptions) -> None:
    """Tuning draws samples too, but leaves out what cannot be drawn."""
    asked = asked_parts(options) if options.only else {part.name for part in PARTS}
    drawing = {part.name for part in PARTS if {"samples", "sets", "classes"} & {*part.needs}} - {"tuning"}
    trained = all(done for name, done in run.done().items() if name.startswith("prior"))
    if options.samples is None and trained and asked & drawing:
        run.config.prior.check_guidance(options.sampling or run.sampling)


def _check_split(run: TrainedRun | None, options: EvaluateOptions) -> None:
    if options.split is None:
        return
    if not options.split.strip():
        raise UserError("expected the name of a split, found an empty text")
    if run is None:
        raise UserError(
            "a split is measured of the data of a RUN; without one, name the images of the split as DATA"
        )
    if "tuning" in options.only:
        raise UserError(
            "settings are tuned on the held-out images of the run: tune first, then measure the split without tuning"
        )


def _check_folder(name: str, folder: Path) -> None:
    if not str(folder) or not folder.is_dir():
        raise UserError(f"{name}: expected a folder of images, found no folder {folder}")


def _check_numbers(options: EvaluateOptions) -> None:
    least = {"n": 2, "reference": 2, "classifier_n": 2, "size": 8, "seed": 0}
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and (not isinstance(value, int) or value < bound):
            raise UserError(f"expected {name} as a whole number of at least {bound}, found {value!r}")
    for share in options.critic_fractions:
        if not 0 < share <= 1:
            raise UserError(f"expected shares with 0 < share <= 1, found {share}")


def _check_critic(run: TrainedRun, options: EvaluateOptions, network: FeatureNetwork | None) -> None:
    """Compare the backbone by its digest if the network was read, and by its name otherwise."""
    if not critic_file(run.folder).exists():
        return  # the part says how to fit one
    record = read_record(run.folder)
    same = (
        record.network.name == options.network if network is None else record.network.digest == network.digest
    )
    if same:
        raise same_backbone(options.network, run.folder)
