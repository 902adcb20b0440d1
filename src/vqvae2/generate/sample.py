"""From labels to pictures: coarse-to-fine sampling of the prior, batch by batch, then the decoder.

Shapes: B batch, C image channels, H W image size.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes
from vqvae2.config.sampling import Sampling
from vqvae2.errors import UserError
from vqvae2.prior.draw import check_seed
from vqvae2.prior.hierarchy import HierarchicalPrior


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
        codes = prior.sample(numbers, labels, sampling, seed=seed)
        yield Drawn(numbers, labels, codes, autoencoder.decode(codes))
