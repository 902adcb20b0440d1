"""From labels to images: coarse-to-fine sampling of the priors, batch by batch, then the decoder.

    labels --sample_labels--> class number of each sample --prior.sample--> Codes --autoencoder.decode--> images

Shapes: B batch, C image channels, H W image size.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes
from vqvae2.config.numbers import whole
from vqvae2.config.sampling import Sampling
from vqvae2.data.labels import plain_name
from vqvae2.errors import UserError, listed
from vqvae2.files.parts import cut
from vqvae2.prior.captured import StepGraphs
from vqvae2.prior.draw import check_seed
from vqvae2.prior.hierarchy import HierarchicalPrior


@dataclass(frozen=True)
class Drawn:
    """One batch of samples.

    Attributes:
        numbers: which samples of the seed they are.
        labels: int64 [B], their classes; None without classes.
        codes: their codes, [B, h, w] per level.
        images: [B, C, H, W] in [-1, 1].

    All tensors are on the device of the networks.
    """

    numbers: range
    labels: Tensor | None
    codes: Codes
    images: Tensor


def class_number(label: str | int, classes: Sequence[str]) -> int:
    """The number of a class.

    Args:
        label: a number, or a name. A name that matches exactly is preferred to one that differs in case, in surrounding
            spaces or in its Unicode form; a text of digits that is no name is a number.
        classes: names of the classes.

    Raises:
        UserError: no such class; the message lists similar names.
    """
    if not classes:
        raise UserError(f"this run has no classes, so it has no label {label!r}; leave it out")
    if isinstance(label, str):
        names = [plain_name(name) for name in classes]
        text = plain_name(label)
        if label in classes:
            return list(classes).index(label)
        if text in names:
            return names.index(text)
        if text.isdecimal() and len(text.lstrip("0")) < 10 and int(text) < len(classes):
            return int(text)
    elif hasattr(label, "__index__"):
        with suppress(TypeError):  # a tensor or an array of another kind has it too
            if 0 <= operator.index(label) < len(classes):
                return operator.index(label)
    folded = {plain_name(name): name for name in classes}
    near = difflib.get_close_matches(plain_name(str(label)), list(folded), 3)
    hint = listed([folded[name] for name in near] or classes[:12])
    raise UserError(f"no class {label!r}: expected a number 0..{len(classes) - 1} or a name such as {hint}")


def sample_labels(
    labels: Sequence[str | int] | str | int | None, n: int, classes: Sequence[str]
) -> list[int] | None:
    """The class number of each of n samples; None for a model without classes.

    Args:
        labels: class names or numbers. One label is for all samples; several are repeated in turn; None repeats all
            classes in turn.

    Raises:
        UserError: n is below 1, no label in the list, or no such class.
    """
    n = whole(n, "the number of samples")
    if n < 1:
        raise UserError(f"expected at least 1 sample, found n = {n}")
    if labels is None:
        return [i % len(classes) for i in range(n)] if classes else None
    numbers = class_numbers(labels, classes)
    return [numbers[i % len(numbers)] for i in range(n)]


def class_numbers(labels: Sequence[str | int] | str | int, classes: Sequence[str]) -> list[int]:
    """The number of the class of each label; of one label alone, a list of one.

    Raises:
        UserError: no label in the list, or no such class.
    """
    given: list[str | int] = [labels] if _single(labels) else list(labels)  # type: ignore[list-item, arg-type]
    if not given:
        raise UserError("expected at least one label, found an empty list")
    return [class_number(label, classes) for label in given]


def _single(labels: Any) -> bool:
    """Whether this is one label and not several; so is what can be neither, such as a float."""
    one = hasattr(labels, "__index__") and not getattr(labels, "ndim", 0)
    return isinstance(labels, str) or one or not hasattr(labels, "__iter__")


def image_labels(
    labels: Sequence[str | int | None] | str | int | None, n: int, classes: Sequence[str]
) -> list[int] | None:
    """The class number of each of n given images, and the number of classes for "no label"; None: "no label" for all.

    Args:
        labels: a class name or number for all images, or one for each of them; None is "no label", for all or in the list.

    Raises:
        UserError: neither one label nor n of them, or no such class.
    """
    if labels is None:
        return None
    given: list[str | int | None] = [labels] * n if _single(labels) else list(labels)  # type: ignore[list-item, arg-type]
    if len(given) != n:
        raise UserError(f"expected one label, or one for each of {n} images, found {len(given)}")
    if all(label is None for label in given):
        return None
    return [len(classes) if label is None else class_number(label, classes) for label in given]


def proportional_labels(counts: Sequence[int], n: int) -> list[int]:
    """The class number of each of n samples, in proportion to the counts of the classes.

    Each sample is of the class that lacks most of its share so far. So no class is ever ahead of its share by a whole sample, a
    larger n only adds samples, n = sum(counts) gives the counts themselves, and equal counts give all classes in turn.

    Args:
        counts: of each class, at least 0, and not all 0.
        n: at least 1.

    Raises:
        UserError: n is below 1.
    """
    n = whole(n, "the number of samples")
    if n < 1:
        raise UserError(f"expected at least 1 sample, found n = {n}")
    shares = np.array(counts, np.int64)
    lacking, total = np.zeros_like(shares), shares.sum()
    labels = []
    for _ in range(n):
        lacking += shares
        labels.append(int(lacking.argmax()))
        lacking[labels[-1]] -= total
    return labels


def batches(numbers: Iterable[range], size: int) -> list[range]:
    """Cut ranges of numbers into ranges of at most `size` numbers."""
    return [part for each in numbers for part in cut(len(each), size, each.start)]


def draw_samples(
    autoencoder: VQVAE,
    prior: HierarchicalPrior,
    n: int,
    labels: list[int] | None,
    seed: int,
    sampling: Sampling,
    ranges: Iterable[range] | None = None,
) -> Iterator[Drawn]:
    """Draw samples 0 .. n - 1 of a seed, batch by batch.

    Sample i of a seed is the same whatever n and the batch size, because its random numbers depend on the seed, i and the
    level alone. On a card, sums have another order at other batch sizes, and a code whose random number lies on an edge of
    float32 may be another one.

    Args:
        labels: class number of each sample, from `sample_labels`; None for "no label".
        seed: 0 .. 2^63 - 1.
        ranges: the numbers of those to draw, each range one batch; None draws all.

    Raises:
        UserError: the seed, a setting or a number of `ranges` is out of range.
    """
    seed = check_seed(seed)

    @torch.no_grad()
    def drawn() -> Iterator[Drawn]:
        graphs = StepGraphs(sampling.dtype)  # so that a GPU records each level only once
        device = next(autoencoder.parameters()).device
        for numbers in cut(n, sampling.batch) if ranges is None else ranges:
            if len(numbers) and not 0 <= min(numbers) <= max(numbers) < n:
                raise UserError(
                    f"expected samples of 0..{n - 1}, found the range {numbers[0]}..{numbers[-1]}"
                )
            classes = None if labels is None else torch.tensor([labels[i] for i in numbers], device=device)
            codes = prior.sample(numbers, classes, sampling, seed=seed, graphs=graphs)
            yield Drawn(numbers, classes, codes, autoencoder.decode(codes))

    return drawn()
