"""The critic's trade of diversity for fidelity: figures of the samples that it keeps (the paper's curves)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae2.errors import UserError, suggested
from vqvae2.evaluate.context import Context
from vqvae2.evaluate.critic import load_critic
from vqvae2.evaluate.features import FeatureNetwork, Features
from vqvae2.evaluate.parts.base import Part, PartResult, Plot
from vqvae2.evaluate.parts.distances import AGAINST_RECONSTRUCTIONS, distances
from vqvae2.evaluate.parts.precision import precision_recall
from vqvae2.evaluate.sets import digest
from vqvae2.generate.reject import best_of_each

_FRACTIONS = (1.0, 0.5, 0.25, 0.1, 0.05)


@dataclass(frozen=True)
class Candidates:
    """Samples among which the critic chooses.

    Attributes:
        scores, labels: [M].
        features: of the M candidates, in a network that is not the critic's backbone.
    """

    scores: Tensor
    labels: Tensor
    features: Features


def critic_curves(
    candidates: Candidates,
    fractions: Sequence[float],
    wanted: int,
    network: FeatureNetwork,
    reference: Features,
    reconstructed: Features | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> PartResult:
    """Distances, and precision against recall, as the critic keeps a smaller fraction.

    For each fraction the first wanted / fraction candidates are ranked. Of each class the best are kept, as many as the first
    `wanted` candidates have of it, so that all rows have the same n and the same class counts. Features are compared on the
    device, with those of the reference and, if there are any, with those of its reconstructions (the paper's FID*).
    """
    quota = torch.bincount(candidates.labels[:wanted], minlength=int(candidates.labels.max()) + 1)
    kept: dict[str, Features] = {}
    rows: dict[str, dict[str, Any]] = {}
    for fraction in fractions:
        count = min(len(candidates.scores), round(wanted / fraction))
        chosen = best_of_each(candidates.scores[:count], candidates.labels[:count], quota)
        features = candidates.features
        logits = None if features.logits is None else features.logits[chosen]
        name = f"critic's {fraction:g}"
        kept[name] = Features(features.pooled[chosen], logits, 0.0)
        rows[name] = {
            "rate": float(fraction),
            "candidates": count,
            "kept": len(chosen),
            "least_score": float(candidates.scores[chosen].min()),
        }
    again = {} if reconstructed is None else {f"{name}*": (name, reconstructed) for name in kept}
    far = distances(network, reference, kept, again=again, seed=seed, device=device)
    near = precision_recall(reference, kept, device=device)
    for title, (name, _) in again.items():
        rows[name]["frechet_reconstructions"] = far.figures["sets"][title]["frechet"]
    table = [{**row, **far.figures["sets"][name], **near.figures["sets"][name]} for name, row in rows.items()]
    result = PartResult({"network": network.name, "rows": table}, warnings=far.warnings)
    points = sorted(table, key=lambda row: row["rate"])
    plotted = {"Frechet distance": ("rate", "frechet"), str(network.score_name): ("rate", "score")}
    for label, (x, y) in plotted.items():
        if y in table[0]:
            curves = {"samples": [(row[x], row[y]) for row in points]}
            if y == "frechet" and again:
                starred = [(row[x], row["frechet_reconstructions"]) for row in points]
                curves[AGAINST_RECONSTRUCTIONS["samples"]] = starred
            caption = f"{label} against the fraction that the critic keeps"
            result.plots.append(Plot(caption, curves, "fraction kept", label))
    curve = [(row["recall"], row["precision"]) for row in points]
    caption = "precision against recall, one point for each fraction"
    result.plots.append(Plot(caption, {"samples": curve}, "recall", "precision"))
    return result


def same_backbone(network: str, run: Path) -> UserError:
    """The error where the network that measures, of this name, is the backbone of the run's critic."""
    return UserError(
        f"the critic's backbone is {network}, which measures here; measure with another --network, "
        f"or fit the critic on another: {suggested('critic', 'fit', run, '--features', 'resnet')}"
    )


def _candidates(context: Context) -> Candidates:
    """Enough samples that n are kept at the smallest fraction, by all processes.

    Raises:
        UserError: the critic's backbone is the network that measures.
    """
    assert context.run is not None
    critic = load_critic(context.run.folder, context.device)
    network = context.network
    if critic.backbone_digest == network.digest:
        raise same_backbone(network.name, context.run.folder)
    drawn = replace(context.draw(round(context.n / min(_fractions(context)))), name="candidates")
    labels = drawn.labels
    assert labels is not None

    def some(rows: range) -> dict[str, Tensor]:
        scores, at = [], rows.start
        for batch in drawn.source(slice(rows.start, rows.stop)):
            scores.append(critic(batch.to(context.device), labels[at : at + len(batch)]).cpu())
            at += len(batch)
        return {"scores": torch.cat(scores)}

    key = digest("scores", drawn.key, critic.digest)
    scores = context.together("scores of candidates", key, len(drawn), some)["scores"]
    return Candidates(scores, labels, context.features(drawn))


def _fractions(context: Context) -> Sequence[float]:
    return context.options.critic_fractions or _FRACTIONS


def prepare(context: Context) -> None:
    """The candidates, and the features of the reference and of its reconstructions."""
    _candidates(context)
    context.features(context.reference)
    context.reconstructed_reference  # noqa: B018 - makes it


def measure(context: Context) -> PartResult:
    """Of enough samples that n are kept at the smallest fraction.

    Raises:
        UserError: the critic's backbone is the network that measures.
    """
    candidates, reference = _candidates(context), context.features(context.reference)
    seed, device = context.options.seed, context.device
    starred = context.reconstructed_reference
    return critic_curves(
        candidates, _fractions(context), context.n, context.network, reference, starred, seed, device
    )


PART = Part(
    "critic",
    "The critic: fidelity against diversity",
    measure,
    needs=("run", "priors", "classes", "critic", "sets", "network"),
    on_request=True,
    prepare=prepare,
)
