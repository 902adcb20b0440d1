"""Improved precision and recall, density and coverage of each set of images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vqvae2.evaluate.context import Context
from vqvae2.evaluate.features import Features
from vqvae2.evaluate.manifolds import manifolds, nearest
from vqvae2.evaluate.parts.base import Part, PartResult
from vqvae2.evaluate.parts.distances import AGAINST_RECONSTRUCTIONS


def precision_recall(
    reference: Features,
    sets: Mapping[str, Features],
    k: int = 3,
    k_coverage: int = 5,
    device: torch.device | str = "cpu",
) -> PartResult:
    """Compare each set with as many images of the reference, on a device."""
    result = PartResult({"k": k, "k_coverage": k_coverage, "sets": {}})
    neighbours: dict[int, Tensor] = {}  # of the first n reference images among themselves, by n
    for name, features in sets.items():
        n = min(len(features), len(reference))
        real = reference.pooled[:n]
        if n not in neighbours:
            neighbours[n] = nearest(real, real, max(k, k_coverage), itself=True, device=device)[0]
        shares = manifolds(real, features.pooled[:n], k, k_coverage, neighbours[n], device=device)
        result.figures["sets"][name] = {"n": n, **shares._asdict()}
    return result


def measure(context: Context) -> PartResult:
    """All compared sets; reconstructions and samples also against the reconstructed reference."""
    sets = {name: context.features(images) for name, images in context.compared.items()}
    result = precision_recall(context.features(context.reference), sets, device=context.device)
    if (reconstructed := context.reconstructed_reference) is not None:
        again = {title: sets[name] for name, title in AGAINST_RECONSTRUCTIONS.items()}
        further = precision_recall(reconstructed, again, device=context.device)
        result.figures["sets"] |= further.figures["sets"]
    return result


PART = Part(
    "precision",
    "Precision and recall, density and coverage",
    measure,
    needs=("sets", "network"),
    prepare=Context.make_features,
)
