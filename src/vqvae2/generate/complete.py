"""Completion: some codes of an image are kept, the others are drawn. It fills in a masked area, or draws variations.

    image, mask --blank, encode--> codes, UNKNOWN in every cell that holds a masked pixel --+
    image, N --encode--> codes, UNKNOWN at all but the N coarsest levels -------------------+--> Kept
    Kept --pass 1: prior.sample--> codes --passes 2, 3, ...: Metropolis-Hastings--> codes --decode, paste--> images

Pass 1 draws in raster order, from coarse to fine. A position is conditioned on the kept codes above it, to its left and at
the coarser levels, but not on the kept codes to its right, below it or at the finer levels. Every further pass corrects
this: it proposes changes and accepts or rejects each by the probability of the whole image (`fill`).

Shapes: B completions, C image channels, H W image size, h w grid of a level, L levels, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes
from vqvae2.config.numbers import whole
from vqvae2.config.sampling import Sampling
from vqvae2.data.pixels import finite
from vqvae2.errors import UserError
from vqvae2.modes import eval_mode
from vqvae2.prior.captured import StepGraphs
from vqvae2.prior.draw import check_seed, exact, guided, probabilities, uniforms
from vqvae2.prior.hierarchy import UNKNOWN, HierarchicalPrior

_SEGMENTS = (
    8  # into how many segments a pass cuts a level's unknown positions; shorter ones are accepted more often
)


@dataclass(frozen=True)
class Kept:
    """What is kept of an image.

    Attributes:
        image: [C, H, W] in [-1, 1], the image.
        mask: [H, W] bool, True where it is to be filled in; None if whole levels are kept.
        shown: [C, H, W], a picture of what is known: the image with the masked area in the mean colour of the rest, or the
            image decoded from the kept levels.
        codes: of this one image, [1, h, w] per level; `UNKNOWN` where a code is to be drawn.
    """

    image: Tensor
    mask: Tensor | None
    shown: Tensor
    codes: Codes

    @property
    def redrawn(self) -> tuple[Tensor, ...]:
        """[h, w] bool per level: where codes are drawn."""
        return tuple(level[0] == UNKNOWN for level in self.codes.levels)


@dataclass(frozen=True)
class Completed:
    """One batch of completions.

    Attributes:
        numbers: which completions of the seed they are.
        labels: [B], their classes; None for "no label".
        codes: of all levels, [B, h, w] each.
        decoded: [B, C, H, W] in [-1, 1], the decoded codes.
        images: `decoded` with the pixels of the image itself outside the mask; without a mask, `decoded`.
        bits: [passes, B, 2, L], -log2 p of the codes of each level after each pass, every code conditioned on those before it
            and on the class. Index 0 of the third axis is the sum over all codes, index 1 that over the kept codes: fewer bits
            of the kept codes mean that the drawn codes fit them better (see `fill`).
        accepted: [passes - 1, B] in 0 .. 1, the share of the moves of each further pass that were accepted, on the CPU.

    All tensors but `accepted` are on the device of the networks.
    """

    numbers: range
    labels: Tensor | None
    codes: Codes
    decoded: Tensor
    images: Tensor
    bits: Tensor
    accepted: Tensor


def keep_outside(autoencoder: VQVAE, image: Tensor, mask: Tensor) -> Kept:
    """Keep the codes of every cell without a masked pixel.

    The encoder does not see the masked pixels: they are replaced by the mean colour of the others (0 if there are none).

    Args:
        image: [C, H, W] in [-1, 1].
        mask: [H, W] bool, True where the image is to be filled in.

    Raises:
        UserError: a mask of another size or type.
        ConfigError: the strides do not divide the size, the channels differ, or the numbers are no floating-point ones.
        DataError: a number outside the mask is NaN or infinite.
    """
    _check_one(image)
    autoencoder.check_images(image[None])
    if mask.dtype != torch.bool or mask.shape != image.shape[1:]:
        raise UserError(
            f"expected a bool mask {list(image.shape[1:])}, found {mask.dtype} {list(mask.shape)}"
        )
    outside = finite(image[:, ~mask])
    mean = outside.mean(1) if outside.numel() else image.new_zeros(len(image))
    shown = torch.where(mask, mean[:, None, None], image)
    codes = autoencoder.encode(shown[None])
    levels = []
    for level in codes.levels:
        h, w = level.shape[1:]
        cells = mask.view(h, mask.shape[0] // h, w, mask.shape[1] // w).any(3).any(1)
        levels.append(level.masked_fill(cells, UNKNOWN))
    return Kept(image, mask, shown, Codes(tuple(levels)))


def _check_one(image: Tensor) -> None:
    if image.ndim != 3:
        raise UserError(f"expected one image [C, H, W], found shape {list(image.shape)}")


def keep_coarse(autoencoder: VQVAE, image: Tensor, count: int) -> Kept:
    """Keep the codes of the `count` coarsest levels.

    Args:
        image: [C, H, W] in [-1, 1].
        count: 1 .. L - 1.

    Raises:
        UserError: `count` is out of range.
        ConfigError, DataError: as `keep_outside`.
    """
    levels, count = autoencoder.config.levels, whole(count, "the number of levels")
    if not 1 <= count < levels:
        expected = f"1..{levels - 1}" if levels > 1 else "a mask, as there is one level only"
        raise UserError(f"number of coarse levels to keep: expected {expected}, found {count}")
    _check_one(image)
    codes = autoencoder.encode(finite(image)[None])
    finer = (torch.full_like(level, UNKNOWN) for level in codes.levels[count:])
    kept = Codes((*codes.levels[:count], *finer))
    return Kept(image, None, autoencoder.decode(codes, count)[0], kept)


@dataclass(frozen=True)
class Passes:
    """How many passes are made, and who is told of each.

    Attributes:
        count: at least 1.
        done: called after each pass over a batch.
    """

    count: int
    done: Callable[[], None]


def complete(
    autoencoder: VQVAE,
    prior: HierarchicalPrior,
    kept: Kept,
    n: int,
    labels: list[int] | None,
    seed: int,
    sampling: Sampling,
    passes: int | Passes = 1,
) -> Iterator[Completed]:
    """Complete an image n times, batch by batch; completion i of a seed is the same for any n and batch size.

    Args:
        kept: from `keep_outside` or `keep_coarse`.
        labels: class number of each completion; None for "no label".
        seed: 0 .. 2^63 - 1.
        passes: see `fill`; a `Passes` is told of each.

    Raises:
        UserError: n, passes or seed out of range; several passes at temperature 0; no label, or guidance, if a prior never
            learned "no label" (`PriorConfig.lacks_unlabelled`).
    """
    seed = check_seed(seed)
    if labels is None:
        prior.config.check_unlabelled()
    else:
        prior.config.check_guidance(sampling)
    count = passes.count if isinstance(passes, Passes) else passes
    n, count = whole(n, "the number of completions"), whole(count, "the number of passes")
    if n < 1 or count < 1:
        raise UserError(
            f"expected at least 1 completion and at least 1 pass, found n = {n} and passes = {count}"
        )
    levels, device = prior.geometry.levels, next(autoencoder.parameters()).device
    if count > 1 and any(sampling.level(index, levels)[0] == 0 for index in range(levels)):
        raise UserError(
            "expected temperature > 0 for more than one pass: at temperature 0 every proposal is the same"
        )

    def parts() -> Iterator[Completed]:
        for start in range(0, n, sampling.batch):
            numbers = range(start, min(n, start + sampling.batch))
            classes = None if labels is None else torch.tensor([labels[i] for i in numbers], device=device)
            codes, bits, accepted = fill(prior, kept.codes, numbers, classes, seed, sampling, passes)
            decoded = autoencoder.decode(codes)
            images = decoded if kept.mask is None else torch.where(kept.mask, decoded, kept.image)
            yield Completed(numbers, classes, codes, decoded, images, bits, accepted)

    return parts()


@torch.no_grad()
def fill(
    prior: HierarchicalPrior,
    known: Codes,
    numbers: Sequence[int],
    labels: Tensor | None,
    seed: int,
    sampling: Sampling,
    passes: int | Passes = 1,
) -> tuple[Codes, Tensor, Tensor]:
    """Draw the unknown codes of an image; the known ones never change.

    Pass 1 is `prior.sample`. Each further pass goes through the levels, from coarse to fine, and cuts the unknown positions
    of a level, in raster order, into segments with a random offset. A move draws the codes of one segment again, together
    with the unknown codes in the same cells at finer levels, in the way of pass 1. Its acceptance probability is

        min(1, p(new) q(old | new) / p(old) q(new | old))        (Hastings 1970)

    where q is the probability of the draw, and p the probability of all codes under the same settings without top-k and
    top-p. The segments do not depend on the codes, so the moves leave p(unknown | known) invariant. With temperature 1 and without
    guidance, top-k or top-p, p is the prior's own distribution. In the limit of many passes the known codes, each conditioned on the
    codes before it, are then on average at least as likely as after pass 1. top-k and top-p only restrict what is proposed, so the chain stays within their support.

    Args:
        prior: drawn from and scored in eval mode, whatever its own.
        known: codes of one image, [1, h, w] per level; `UNKNOWN` where one is to be drawn.
        numbers: which completions; B is their number.
        labels: [B] class numbers; None for "no label".
        seed: completion i of a seed is the same at any batch size.
        passes: at least 1; more need a temperature above 0. A `Passes` is told of each.

    Returns:
        The codes of B images; their bits and the share of moves that were accepted, as in `Completed`.
    """
    if not isinstance(passes, Passes):
        passes = Passes(passes, lambda: None)
    with eval_mode(prior):
        chain = _Chain(prior, known, numbers, labels, seed, sampling)
        bits, accepted = [chain.bits()], []
        passes.done()
        for number in range(1, passes.count):
            accepted.append(chain.turn(number))
            bits.append(chain.bits())
            passes.done()
    moves = torch.stack(accepted) if accepted else torch.zeros(0, len(numbers))
    return chain.codes, torch.stack(bits), moves


class _Chain:
    """B Markov chains in one batch, each a function of the seed and its number; the arguments are those of `fill`.

    Attributes:
        codes: their current states.
        scores: the log-probabilities of `codes`, see `_score`; empty until the first move.
    """

    def __init__(
        self,
        prior: HierarchicalPrior,
        known: Codes,
        numbers: Sequence[int],
        labels: Tensor | None,
        seed: int,
        sampling: Sampling,
    ) -> None:
        self.prior, self.numbers, self.labels = prior, numbers, labels
        self.seed, self.sampling = seed, sampling
        self.graphs = StepGraphs()  # of all draws, whose shapes are the same
        kept = Codes(tuple(level.expand(len(numbers), -1, -1) for level in known.levels))
        self.codes = self._draw(kept, seed)
        self.unknown = [level[0] == UNKNOWN for level in known.to(self.codes.levels[0].device).levels]
        self.scores: list[tuple[Tensor, Tensor]] = []

    def bits(self) -> Tensor:
        """[B, 2, L], as in `Completed`, under the prior's own distribution, whatever the settings."""
        maps = self.prior.log_prob_map(self.codes, self.labels)
        pairs = zip(maps, self.unknown, strict=True)
        sums = [torch.stack([p.sum((1, 2)), p.masked_fill(hole, 0).sum((1, 2))], 1) for p, hole in pairs]
        return -torch.stack(sums, 2) / math.log(2)

    def turn(self, number: int) -> Tensor:
        """One pass over all unknown positions; the share of moves that were accepted, [B]."""
        tried, accepted = torch.zeros(2, len(self.numbers))
        for level, mask in enumerate(self.unknown):
            start = uniforms(_seed(self.seed, number, level, 0), self.numbers, 0, 1)[:, 0]
            for index, segment in enumerate(_segments(mask, start), 1):
                accept = self._move(level, segment, _seed(self.seed, number, level, index))
                moved = segment.flatten(1).any(1).cpu()
                tried += moved
                accepted += moved & accept.cpu()
        share: Tensor = accepted / tried.clamp_min(1)
        return share

    def _move(self, level: int, segment: Tensor, seed: int) -> Tensor:
        """Propose new codes for a segment [B, h, w] and the finer codes in its cells; which chains accepted, [B] bool."""
        self.scores = self.scores or self._score(self.codes, 0)
        holes = _below(segment, self.unknown[level:])
        around = (
            x.masked_fill(hole, UNKNOWN) for x, hole in zip(self.codes.levels[level:], holes, strict=True)
        )
        proposal = self._draw(Codes((*self.codes.levels[:level], *around)), seed)
        scores = self._score(proposal, level)
        terms = [
            (p - p_old + torch.where(hole.to(p.device), q_old - q, 0.0)).sum((1, 2))
            for (p, q), (p_old, q_old), hole in zip(scores, self.scores[level:], holes, strict=True)
        ]
        ratio = torch.stack(terms).sum(
            0
        )  # not a number if old and new are both outside the support: rejected
        uniform = uniforms(seed, self.numbers, self.prior.geometry.levels, 1)[:, 0]
        accept = uniform.log().to(ratio.device) < ratio
        self.scores[level:] = [
            (_choose(accept, p, p_old), _choose(accept, q, q_old))
            for (p, q), (p_old, q_old) in zip(scores, self.scores[level:], strict=True)
        ]
        pairs = zip(proposal.levels, self.codes.levels, strict=True)
        self.codes = Codes(tuple(_choose(accept, new, old) for new, old in pairs))
        return accept

    def _draw(self, known: Codes, seed: int) -> Codes:
        return self.prior.sample(
            self.numbers, self.labels, self.sampling, seed=seed, given=known, graphs=self.graphs
        )

    def _score(self, codes: Codes, first: int) -> list[tuple[Tensor, Tensor]]:
        """Per level from `first` on, [B, h, w] float64: log p of each code without top-k and top-p, and with them."""
        prior = self.prior
        scores = []
        for level, symbols in enumerate(codes.levels[first:], first):
            temperature, top_k, top_p, guidance = self.sampling.level(level, prior.geometry.levels)
            logits = prior.logits(codes, level, self.labels).permute(0, 2, 3, 1)
            if prior.guides(self.labels, guidance):
                logits = guided(logits, prior.logits(codes, level).permute(0, 2, 3, 1), guidance)
            logits = exact(logits)
            index = symbols.to(logits.device)[..., None]
            p = q = (logits / temperature).log_softmax(-1).gather(-1, index)[..., 0]
            if top_k or top_p < 1:
                truncated = probabilities(logits.flatten(0, 2), temperature, top_k, top_p)
                q = truncated.log().view_as(logits).gather(-1, index)[..., 0]
            scores.append((p, q))
        return scores


def _choose(accept: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(accept.to(new.device)[:, None, None], new, old)


def _segments(unknown: Tensor, start: Tensor) -> Iterator[Tensor]:
    """Cut the unknown positions [h, w], in raster order, into segments, [B, h, w] bool each.

    Args:
        start: [B] in [0, 1), shifts the segments of each chain.
    """
    count = int(unknown.sum())
    length = max(1, -(-count // _SEGMENTS))
    rank = unknown.flatten().cumsum(0) - 1
    segment = (rank + (start * length).long().to(rank.device)[:, None]) // length
    for number in range((count + length - 2) // length + 1 if count else 0):
        yield ((segment == number) & unknown.flatten()).view(-1, *unknown.shape)


def _below(segment: Tensor, unknown: Sequence[Tensor]) -> list[Tensor]:
    """A segment of a level [B, h, w], and the unknown positions in its cells at each finer level.

    Args:
        unknown: [h, w] bool of this level and of each finer one.
    """
    h, w = segment.shape[1:]
    return [
        segment.repeat_interleave(mask.shape[0] // h, 1).repeat_interleave(mask.shape[1] // w, 2) & mask
        for mask in unknown
    ]


def _seed(seed: int, *move: int) -> int:
    """A seed of its own for each move (pass, level, segment) of a seed."""
    words = np.random.SeedSequence((seed % 2**32, seed >> 32, *move)).generate_state(1, np.uint64)
    return int(words[0]) >> 1
