"""Drawing settings chosen by measure: temperature, top-p and guidance of each level.

The held-out images are split into two halves. Settings are chosen on the reconstructions of the first half: the samples of the
chosen settings have the lowest kernel distance from them among the settings that keep enough recall. The figures that are
reported come from the other half and from samples of another seed, so that the choice cannot flatter itself. Reconstructions are
compared, and not the images, because what the codes lose is the same for every setting and would hide the differences. All of
this is our decision; the paper draws with temperature 1.

The search begins with the model's own distribution and changes one setting of one level at a time, coarsest level first. Every
candidate draws the same uniform numbers, so that settings are compared and not luck. top-k is not searched: top-p adapts
to the distribution of each position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vqvae2.config.sampling import Sampling
from vqvae2.evaluate.context import Context
from vqvae2.evaluate.features import Features
from vqvae2.evaluate.manifolds import manifolds
from vqvae2.evaluate.metrics import kernel_distance
from vqvae2.evaluate.own_samples import own_samples
from vqvae2.evaluate.parts.base import Part, PartResult, Plot
from vqvae2.evaluate.sets import NamedImages, real_images, shuffled

VALUES = {
    "guidance": (1.0, 1.5, 2.0, 3.0),
    "top_p": (1.0, 0.97, 0.93, 0.85),
    "temperature": (1.0, 0.95, 0.9, 0.8),
}
"""The values that are tried; the first of each is the model's own distribution."""
KEPT_RECALL = 0.75
"""Settings must keep this share of the recall of the model's own distribution."""
_LEAST = 20  # images of a half
_OTHER_SEED = 1_000_003  # added to the seed for the samples of the report


@dataclass(frozen=True)
class Trial:
    """One setting and how its samples compare with a set of images, in features.

    Attributes:
        kernel: distance, see `kernel_distance`.
        precision, recall: see `manifolds`.
    """

    sampling: Sampling
    kernel: float
    precision: float
    recall: float

    def row(self) -> dict[str, Any]:
        """For a table."""
        return {
            **self.sampling.about(),
            "kernel": self.kernel,
            "precision": self.precision,
            "recall": self.recall,
        }


def best(trials: Sequence[Trial], least_recall: float) -> Trial:
    """The trial of the lowest kernel distance among those whose recall is at least `least_recall`; of equals the first.

    If there is none, the trial of the highest recall.
    """
    allowed = [trial for trial in trials if trial.recall >= least_recall]
    if not allowed:
        return max(trials, key=lambda trial: trial.recall)
    return min(allowed, key=lambda trial: trial.kernel)


def search(
    measure: Callable[[Sampling], Trial], levels: int, conditional: bool, start: Sampling
) -> list[Trial]:
    """Change one setting of one level at a time and keep what is best, coarsest level first.

    Args:
        measure: draws with some settings and compares.
        conditional: whether guidance is searched; without classes it has no effect, and a prior that never learned "no label"
            has none.
        start: whose other settings (the batch) are kept.

    Returns:
        The trials in their order; the first is the model's own distribution. `best` chooses among them.
    """
    names = [name for name in VALUES if conditional or name != "guidance"]
    own: dict[str, Any] = {name: (values[0],) * levels for name, values in VALUES.items()}
    trials = [measure(start.replace(top_k=0, **own))]
    least = KEPT_RECALL * trials[0].recall
    for level, name in ((level, name) for level in range(levels) for name in names):
        chosen = best(trials, least).sampling
        trials += [measure(changed) for changed in _changes(chosen, name, level, levels)]
    return trials


def _changes(sampling: Sampling, name: str, level: int, levels: int) -> Iterator[Sampling]:
    """The settings with the other values of one setting of one level."""
    current = [sampling.at(name, index, levels) for index in range(levels)]
    for value in VALUES[name]:
        if value != current[level]:
            yield sampling.replace(**{name: (*current[:level], value, *current[level + 1 :])})


def compare(
    sampling: Sampling, real: Features, samples: Features, seed: int, device: torch.device | str = "cpu"
) -> Trial:
    """Samples of some settings against as many images, on a device."""
    n = min(len(real), len(samples))
    ours, theirs = real.pooled[:n], samples.pooled[:n]
    shares = manifolds(ours, theirs, device=device)
    kernel = kernel_distance(ours, theirs, subsets=1, size=n, seed=seed, device=device)
    return Trial(sampling, kernel.mean, shares.precision, shares.recall)


def _half(context: Context, number: int) -> NamedImages:
    """Every second held-out image in their shuffled order, as many as are compared."""
    order = shuffled(context.images.heldout, context.options.seed)[number::2]
    name = ("first", "other")[number]
    return real_images(
        f"{name} half of the held-out images", context.images, order, context.data, context.batch
    )


def _hindered(context: Context) -> str | None:
    """A half would have fewer than 20 images."""
    if len(context.images.heldout) < 2 * _LEAST:
        return f"tuning needs {2 * _LEAST} held-out images, found {len(context.images.heldout)}"
    return f"tuning needs --n {_LEAST} or more" if context.options.most < _LEAST else None


def measure(context: Context) -> PartResult:
    """Choose on one half of the held-out images, report on the other."""
    run = context.run
    assert run is not None
    halves = [_half(context, number).first(context.options.most) for number in (0, 1)]
    n = min(map(len, halves))
    seeds = (context.options.seed, context.options.seed + _OTHER_SEED)
    decoded = [
        context.features(context.encoder.reconstructed(f"reconstructions of the {half.name}", half))
        for half in halves
    ]

    def drawn(sampling: Sampling, number: int) -> Features:
        options = replace(context.options, sampling=sampling, seed=seeds[number])
        samples = own_samples(run, n, context.images, options, context.cache, context.reporter)
        samples = replace(samples, name=f"samples {samples.key[:12]}")
        features = context.features(samples)
        context.forget(samples)  # their scores are enough; those of all trials take gigabytes
        return features

    def compared(sampling: Sampling, number: int) -> Trial:
        return compare(sampling, decoded[number], drawn(sampling, number), seeds[number], context.device)

    levels = run.config.autoencoder.levels
    trials = search(
        lambda sampling: compared(sampling, 0),
        levels,
        run.config.prior.classes > 0 and not run.config.prior.lacks_unlabelled(),
        run.sampling,
    )
    chosen = best(trials, KEPT_RECALL * trials[0].recall)
    rows = {"the model's own distribution": trials[0].sampling}
    reason = run.config.prior.lacks_guidance(run.sampling)
    if reason is None:
        rows["the run's settings"] = run.sampling
    reported = {
        f"other half: {name}": compared(sampling, 1).row()
        for name, sampling in {**rows, "chosen": chosen.sampling}.items()
    }
    tried = {f"trial {number}": trial.row() for number, trial in enumerate(trials, 1)}
    result = PartResult({"n": n, "kept_recall": KEPT_RECALL, "chosen": chosen.row(), **reported, **tried})
    if reason is not None:
        result.warnings.append(
            f"the run's settings are not compared: their guidance cannot be used, because {reason}"
        )
    points = sorted((trial.recall, trial.kernel) for trial in trials)
    caption = "kernel distance against recall, one point for each trial"
    result.plots.append(Plot(caption, {"trials": points}, "recall", "kernel distance"))
    return result


PART = Part(
    "tuning",
    "Drawing settings chosen by measure",
    measure,
    needs=("run", "priors", "samples", "network"),
    on_request=True,
    hindered=_hindered,
)
