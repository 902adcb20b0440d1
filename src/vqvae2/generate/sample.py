"""From labels to pictures: coarse-to-fine sampling of the prior, batch by batch, then the decoder.

Shapes: B batch, C image channels, H W image size.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes
from vqvae2.errors import UserError
from vqvae2.prior.draw import LevelSampling, check_seed, per_level, probabilities
from vqvae2.prior.hierarchy import HierarchicalPrior


@dataclass(frozen=True)
class Sampling:
    """How to draw. Each of the first four is one number for all levels, or one per level, coarsest first.

    Attributes:
        temperature: divides the logits; 1 is the model's own distribution (the paper), 0 the most likely code.
        top_k: keep the k most likely codes; 0 keeps all.
        top_p: keep the fewest codes whose probability reaches p, 0 < p <= 1.
        guidance: classifier-free guidance; 1 is off, more is closer to the class and less diverse.
        batch: pictures drawn side by side; changes speed and memory, not the pictures.
    """

    temperature: float | Sequence[float] = 1.0
    top_k: int | Sequence[int] = 0
    top_p: float | Sequence[float] = 1.0
    guidance: float | Sequence[float] = 1.0
    batch: int = 64

    def __post_init__(self) -> None:
        asked = (self.temperature, self.top_k, self.top_p, self.guidance)
        for temperature, top_k, top_p, guidance in itertools.product(*map(_values, asked)):
            probabilities(torch.zeros(1, 2), temperature, int(top_k), top_p)  # says what is out of range
            if self.batch < 1 or not 0 <= guidance < math.inf:
                raise UserError(f"expected batch >= 1 and guidance >= 0, found {self.batch} and {guidance}")

    def per_level(self, levels: int) -> list[LevelSampling]:
        """The settings of each of `levels` levels.

        Raises:
            UserError: neither one value nor `levels` values.
        """
        return per_level(self.temperature, self.top_k, self.top_p, self.guidance, levels)


def _values(value: float | Sequence[float]) -> Sequence[float]:
    return value if isinstance(value, Sequence) else (value,)


@dataclass(frozen=True)
class Drawn:
    """Some of the samples: their numbers, their classes (None without classes), codes and pictures in [-1, 1]."""

    numbers: range
    labels: Tensor | None
    codes: Codes
    images: Tensor


def class_number(label: str | int, classes: Sequence[str]) -> int:
    """The number of a class given by name (as written, else whatever the case) or by number; an int is a number.

    Raises:
        UserError: no such class; names the nearest ones.
    """
    if not classes:
        raise UserError(f"this run has no classes, so label {label!r} means nothing; leave it out")
    if isinstance(label, str):
        names = [name.strip().casefold() for name in classes]
        text = label.strip().casefold()
        if label in classes:
            return list(classes).index(label)
        if text in names:
            return names.index(text)
        if text.isdecimal() and int(text) < len(classes):
            return int(text)
    elif 0 <= label < len(classes):
        return int(label)
    folded = {name.strip().casefold(): name for name in classes}
    near = difflib.get_close_matches(str(label).strip().casefold(), list(folded), 3, 0.4)
    hint = ", ".join([folded[name] for name in near] or classes[:12])
    raise UserError(f"no class {label!r}: expected a number 0..{len(classes) - 1} or a name such as {hint}")


def label_plan(
    labels: Sequence[str | int] | str | int | None, n: int, classes: Sequence[str]
) -> list[int] | None:
    """The class number of each of n samples; None for a model without classes.

    One label is for all; several are taken in turn; None takes all classes in turn.
    """
    if n < 1:
        raise UserError(f"expected at least 1 sample, found n = {n}")
    if labels is None:
        return [i % len(classes) for i in range(n)] if classes else None
    given = [labels] if isinstance(labels, str | int) else list(labels)
    if not given:
        raise UserError("expected at least one label, found an empty list")
    numbers = [class_number(label, classes) for label in given]
    return [numbers[i % len(numbers)] for i in range(n)]


def batches(numbers: Iterable[range], size: int) -> list[range]:
    """The same numbers in ranges of at most `size`."""
    return [run[start : start + size] for run in numbers for start in range(0, len(run), size)]


@torch.no_grad()
def draw_samples(
    autoencoder: VQVAE,
    prior: HierarchicalPrior,
    n: int,
    plan: list[int] | None,
    seed: int,
    sampling: Sampling,
    parts: Iterable[range] | None = None,
) -> Iterator[Drawn]:
    """Draw samples 0 .. n - 1 of a seed, batch by batch.

    Args:
        plan: from `label_plan`.
        seed: 0 .. 2^63 - 1.
        parts: the numbers of those to draw, each range one batch; None: all of them.
    """
    check_seed(seed)
    for numbers in batches([range(n)], sampling.batch) if parts is None else parts:
        labels = None if plan is None else torch.tensor([plan[i] for i in numbers])
        codes = prior.sample(
            numbers,
            labels,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            guidance=sampling.guidance,
            seed=seed,
        )
        yield Drawn(numbers, labels, codes, autoencoder.decode(codes))
