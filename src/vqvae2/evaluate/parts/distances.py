"""Frechet distance, kernel distance and class score of each set of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vqvae2.evaluate.context import Context
from vqvae2.evaluate.features import FeatureNetwork, Features
from vqvae2.evaluate.metrics import Moments, class_score, frechet_distance, kernel_distance, too_few
from vqvae2.evaluate.parts.base import Part, PartResult, Picture
from vqvae2.evaluate.parts.drawing import SHOWN, sheet
from vqvae2.evaluate.sets import NamedImages

AGAINST_RECONSTRUCTIONS = {name: f"{name} against reconstructions" for name in ("reconstructions", "samples")}
"""Sets that are also compared with the reconstructed reference, and the names of these rows."""


def distances(
    network: FeatureNetwork,
    reference: Features,
    sets: Mapping[str, Features],
    *,
    titles: Mapping[str, str] | None = None,
    reconstructed: Features | None = None,
    seed: int = 0,
) -> PartResult:
    """Compare each set with the reference in the features of one network.

    Args:
        reference: of training images.
        sets: of held-out images, of reconstructions, of samples, by name.
        titles: names of sets that are also compared with `reconstructed`, and of these rows.
        reconstructed: of reconstructed training images; the paper's FID* compares with these.
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
    base = Moments.of(reference.pooled)
    moments = {name: Moments.of(features.pooled) for name, features in sets.items()}
    warned: dict[str, list[str]] = {}
    for name, features in sets.items():
        kernel = kernel_distance(reference.pooled, features.pooled, size=size, seed=seed)
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
        if warning := too_few(min(len(features), len(reference)), network.dimension):
            warned.setdefault(warning, []).append(name)
    result.warnings += [f"{'; '.join(names)}: {warning}" for warning, names in warned.items()]
    if reconstructed is not None:
        base = Moments.of(reconstructed.pooled)
        for name, title in (titles or {}).items():
            distance = frechet_distance(base, moments[name])
            result.figures["sets"][title] = {"n": len(sets[name]), "frechet": distance}
    return result


def _first_of_each(sets: Sequence[NamedImages]) -> Picture:
    n = min(SHOWN, *map(len, sets))
    images = torch.cat([named.images(0, n) for named in sets])
    names = tuple(named.name for named in sets)
    return Picture("the first images of each set, a row for each", sheet(images, n), names)


def measure(context: Context) -> PartResult:
    """All compared sets; reconstructions and samples also against the reconstructed reference."""
    suffix = " (FID*)" * (context.options.network == "inception")
    result = distances(
        context.network,
        context.features(context.reference),
        {name: context.features(images) for name, images in context.compared.items()},
        titles={name: title + suffix for name, title in AGAINST_RECONSTRUCTIONS.items()},
        reconstructed=context.reconstructed_reference,
        seed=context.options.seed,
    )
    result.pictures.append(_first_of_each(list(context.compared.values())))
    return result


PART = Part(
    "distances",
    "Distances from the training images",
    measure,
    needs=("sets", "network"),
    prepare=Context.compare,
)
