"""Frechet distance, kernel distance and class score of each set of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vqvae2.evaluate.context import Context
from vqvae2.evaluate.features import FeatureNetwork, Features
from vqvae2.evaluate.large_sets import hint, large_moments
from vqvae2.evaluate.large_sets import prepare as prepare_large
from vqvae2.evaluate.metrics import Moments, class_score, frechet_distance, kernel_distance, too_few
from vqvae2.evaluate.parts.base import Part, PartResult, Picture
from vqvae2.evaluate.parts.drawing import SHOWN, sheet
from vqvae2.evaluate.sets import NamedImages

AGAINST_RECONSTRUCTIONS = {name: f"{name} against reconstructions" for name in ("reconstructions", "samples")}
"""Sets that are also compared with the reconstructed reference, and the names of these rows."""
AGAINST_ORIGINALS = "reconstructions against their originals"
"""The row of reconstructions that are compared with the very images that were encoded."""


def distances(
    network: FeatureNetwork,
    reference: Features,
    sets: Mapping[str, Features],
    *,
    again: Mapping[str, tuple[str, Features]] | None = None,
    large: Mapping[str, Moments] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> PartResult:
    """Compare each set with the reference in the features of one network.

    Args:
        reference: of training images.
        sets: of held-out images, of reconstructions, of samples, by name.
        again: further rows by name, each a set and what else it is compared with: reconstructed training images (the paper's
            FID*), or the originals of reconstructions (rFID).
        large: sets of an n of their own, which are compared with the reference.
        seed: of what the kernel distance and the score draw.
        device: where moments and kernels are computed.
    """
    size = min(1000, len(reference), *(len(features) for features in sets.values()))
    result = PartResult(
        {
            "network": network.name,
            "reference_n": len(reference),
            "dimension": network.dimension,
            "sets": {},
            "kernel_subset_size": size,
        }
    )
    base = Moments.of(reference.pooled, device=device)
    moments = {name: Moments.of(features.pooled, device=device) for name, features in sets.items()}
    warned: dict[str, list[str]] = {}
    for name, features in sets.items():
        kernel = kernel_distance(reference.pooled, features.pooled, size=size, seed=seed, device=device)
        figures: dict[str, Any] = {
            "n": len(features),
            "frechet": frechet_distance(base, moments[name]),
            "kernel": kernel.mean,
            "kernel_deviation": kernel.standard_deviation,
        }
        if features.logits is not None:
            score = class_score(features.logits.double().softmax(1), splits=min(10, len(features)), seed=seed)
            figures |= {"score": score.mean, "score_deviation": score.standard_deviation}
        result.figures["sets"][name] = figures
    large = large or {}
    counts = {name: own.count for name, own in {**moments, **large}.items()}
    for name, count in counts.items():
        if warning := too_few(min(count, len(reference)), network.dimension):
            warned.setdefault(warning, []).append(name)
    result.warnings += [f"{'; '.join(names)}: {warning}" for warning, names in warned.items()]
    for title, (name, other) in (again or {}).items():
        distance = frechet_distance(Moments.of(other.pooled, device=device), moments[name])
        result.figures["sets"][title] = {"n": len(sets[name]), "frechet": distance}
    for name, own in large.items():
        result.figures["sets"][name] = {"n": own.count, "frechet": frechet_distance(base, own)}
    return result


def _first_of_each(sets: Sequence[NamedImages]) -> Picture:
    n = min(SHOWN, *map(len, sets))
    images = torch.cat([named.images(0, n) for named in sets])
    names = tuple(named.name for named in sets)
    return Picture("the first images of each set, a row for each", sheet(images, n), names)


def measure(context: Context) -> PartResult:
    """All compared sets; reconstructions also against their originals, reconstructions and samples also against the
    reconstructed reference, and large sets if --n asks for them."""
    features = {name: context.features(images) for name, images in context.compared.items()}
    large = large_moments(context)
    result = distances(
        context.network,
        context.features(context.reference),
        features,
        again=_again(context, features),
        large=large,
        seed=context.options.seed,
        device=context.device,
    )
    if large:
        result.warnings.append(
            f"{' and '.join(large)}: no figure of held-out images stands beside these, because there are only "
            f"{len(context.heldout):,}; compare them only with figures at the same n"
        )
    elif (line := hint(context)) is not None:
        result.warnings.append(line)
    result.pictures.append(_first_of_each(list(context.compared.values())))
    return result


def _again(context: Context, features: Mapping[str, Features]) -> dict[str, tuple[str, Features]]:
    """Rows by name: a set, and what else it is compared with. In the features of Inception they are called FID* and rFID."""
    inception = context.options.network == "inception"
    rows: dict[str, tuple[str, Features]] = {}
    for suffix in context.encoders if context.run is not None else ():
        title = f"{AGAINST_ORIGINALS}{' (rFID)' * inception}{suffix}"
        rows[title] = (f"reconstructions{suffix}", features["held out"])
    if (reconstructed := context.reconstructed_reference) is not None:
        for name, title in AGAINST_RECONSTRUCTIONS.items():
            rows[title + " (FID*)" * inception] = (name, reconstructed)
    return rows


def prepare(context: Context) -> None:
    """The features of all these sets, by all processes."""
    context.make_features()
    prepare_large(context)


PART = Part(
    "distances",
    "Distances from the training images",
    measure,
    needs=("sets", "network"),
    prepare=prepare,
)
