"""Filling in: what is kept stays, the rest is the prior's, and further passes sample p(unknown | known)."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import torch
from comparing import same_codes
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sample import models, refused
from torch import Tensor

from vqvae2.codes import Codes
from vqvae2.config.models import ConfigError
from vqvae2.config.sampling import Sampling
from vqvae2.generate import complete as module
from vqvae2.generate.complete import Completed, Kept, complete, fill, keep_coarse, keep_outside
from vqvae2.prior.hierarchy import UNKNOWN, HierarchicalPrior

sys.path.append(str(Path(__file__).parents[1] / "prior"))

from prior_helpers import every_code, hierarchy, random_codes

Kind = Literal["pixelcnn", "transformer"]
kinds = pytest.mark.parametrize("kind", get_args(Kind))
ALL, NONE = torch.ones(8, 4, dtype=torch.bool), torch.zeros(8, 4, dtype=torch.bool)


def picture(seed: int = 0) -> Tensor:
    """[3, 8, 4] in [-1, 1]."""
    return torch.rand(3, 8, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def corner() -> Tensor:
    """A mask of the lower right 5 x 2 pixels."""
    mask = NONE.clone()
    mask[3:, 2:] = True
    return mask


def completed(
    kept: Kept,
    n: int = 5,
    labels: list[int] | None = None,
    seed: int = 0,
    passes: int = 1,
    classes: int = 2,
    kind: Kind = "pixelcnn",
    **options: Any,
) -> Completed:
    """All parts in one."""
    parts = list(complete(*models(classes, kind=kind), kept, n, labels, seed, Sampling(**options), passes))
    return Completed(
        range(n),
        None if labels is None else torch.cat([p.labels for p in parts if p.labels is not None]),
        Codes.cat([p.codes for p in parts]),
        torch.cat([p.decoded for p in parts]),
        torch.cat([p.images for p in parts]),
        torch.cat([p.bits for p in parts], 1),
        torch.cat([p.accepted for p in parts], 1),
    )


def kept_stay(kept: Kept, codes: Codes) -> bool:
    """Whether every code that is known is in all completions."""
    pairs = zip(kept.codes.levels, codes.levels, strict=True)
    return all(bool(((level == UNKNOWN) | (level == found)).all()) for level, found in pairs)


# --- what is kept ---


@kinds
def test_an_empty_mask_keeps_the_pictures_codes(kind: Kind) -> None:
    autoencoder, _ = models(kind=kind)
    image = picture()
    kept = keep_outside(autoencoder, image, NONE)
    assert same_codes(kept.codes, autoencoder.encode(image[None]))
    assert torch.equal(kept.shown, image)
    found = completed(kept, passes=2, kind=kind)
    assert same_codes(found.codes, Codes(tuple(level.expand(5, -1, -1) for level in kept.codes.levels)))
    assert torch.equal(found.images, image.expand(5, -1, -1, -1))
    assert torch.equal(found.bits[:, :, 0], found.bits[:, :, 1])
    assert found.accepted.tolist() == [[0] * 5]


def test_a_full_mask_keeps_nothing() -> None:
    autoencoder, _ = models()
    kept = keep_outside(autoencoder, picture(), ALL)
    assert all(bool(where.all()) for where in kept.redrawn)
    assert not kept.shown.any(), "grey, as there is no colour outside"


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 31), max_size=31))
def test_a_code_is_redrawn_if_a_pixel_of_its_cell_is_masked(pixels: set[int]) -> None:
    autoencoder, _ = models()
    mask = torch.tensor([i in pixels for i in range(32)]).view(8, 4)
    kept = keep_outside(autoencoder, picture(), mask)
    for side, where in zip((4, 2), kept.redrawn, strict=True):
        assert where.shape == (8 // side, 4 // side)
        for r, c in itertools.product(range(8 // side), range(4 // side)):
            cell = mask[r * side : (r + 1) * side, c * side : (c + 1) * side]
            assert bool(where[r, c]) == bool(cell.any())


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 31)), st.integers(1, 1000))
def test_what_is_under_the_mask_does_not_matter(pixels: set[int], seed: int) -> None:
    autoencoder, _ = models()
    mask = torch.tensor([i in pixels for i in range(32)]).view(8, 4)
    image, other = picture(), torch.where(mask, picture(seed), picture())
    a, b = (keep_outside(autoencoder, x, mask) for x in (image, other))
    assert same_codes(a.codes, b.codes)
    assert torch.equal(a.shown, b.shown)


def test_the_mask_is_shown_in_the_mean_colour_outside() -> None:
    autoencoder, _ = models()
    image, mask = picture(), corner()
    kept = keep_outside(autoencoder, image, mask)
    assert torch.equal(kept.shown[:, ~mask], image[:, ~mask])
    for channel in range(3):
        assert torch.allclose(kept.shown[channel, mask], image[channel, ~mask].mean())


def test_coarse_levels_are_kept() -> None:
    autoencoder, _ = models()
    image = picture()
    kept, whole = keep_coarse(autoencoder, image, 1), autoencoder.encode(image[None])
    assert torch.equal(kept.codes.levels[0], whole.levels[0])
    assert [bool(where.any()) for where in kept.redrawn] == [False, True]
    assert bool(kept.redrawn[1].all())
    assert torch.equal(kept.shown, autoencoder.decode(whole, 1)[0])
    found = completed(kept)
    assert kept_stay(kept, found.codes)
    assert torch.equal(found.images, found.decoded)
    assert len({tuple(codes.flatten().tolist()) for codes in found.codes.levels[1]}) > 1


@pytest.mark.parametrize("count", [-1, 0, 2, 3])
def test_levels_that_cannot_be_kept(count: int) -> None:
    autoencoder, _ = models()
    refused(lambda: keep_coarse(autoencoder, picture(), count), rf"expected 1\.\.1, found {count}")


@pytest.mark.parametrize(
    "mask",
    [NONE.float(), NONE.long(), NONE[:, :2], NONE.T, NONE[None]],
    ids=lambda m: f"{m.dtype}{list(m.shape)}",
)
def test_masks_that_do_not_fit(mask: Tensor) -> None:
    autoencoder, _ = models()
    refused(lambda: keep_outside(autoencoder, picture(), mask), r"expected a bool mask \[8, 4\], found")


def test_a_picture_of_another_size_or_colour() -> None:
    autoencoder, _ = models()
    for image in (picture()[:, :6], picture()[:1]):
        with pytest.raises(ConfigError):
            keep_outside(autoencoder, image, torch.zeros(image.shape[1:], dtype=torch.bool))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_picture_of_no_numbers(bad: float) -> None:
    """Only under the mask, where nobody sees them."""
    autoencoder, _ = models()
    image, mask = picture(), corner()
    spoilt = torch.where(mask, bad, image)
    assert same_codes(
        keep_outside(autoencoder, spoilt, mask).codes, keep_outside(autoencoder, image, mask).codes
    )
    refused(lambda: keep_outside(autoencoder, spoilt, NONE), "found NaN or infinity")
    refused(lambda: keep_outside(autoencoder, spoilt, ~mask), "found NaN or infinity")
    refused(lambda: keep_coarse(autoencoder, spoilt, 1), "found NaN or infinity")
    whole = image.mul(127).to(torch.uint8)
    refused(lambda: keep_outside(autoencoder, whole, mask), "floating-point numbers .* found torch.uint8")


# --- the first pass ---


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.5}, {"guidance": 4.0}]
)
@kinds
def test_a_full_mask_is_sampling(kind: Kind, options: dict[str, Any]) -> None:
    autoencoder, prior = models(kind=kind)
    labels = [0, 1, 1, 0, 1]
    kept = keep_outside(autoencoder, picture(), ALL)
    for seed in (3, 4):
        found = completed(kept, labels=labels, seed=seed, kind=kind, **options)
        assert same_codes(found.codes, prior.sample(5, torch.tensor(labels), seed=seed, **options))
    assert torch.allclose(found.images, autoencoder.decode(found.codes), atol=1e-5)


def test_without_a_class() -> None:
    autoencoder, prior = models(classes=0)
    found = completed(keep_outside(autoencoder, picture(), ALL), classes=0, seed=3)
    assert same_codes(found.codes, prior.sample(5, seed=3))
    assert found.labels is None


@pytest.mark.parametrize("passes", [1, 3])
@kinds
def test_kept_codes_and_pixels_stay(kind: Kind, passes: int) -> None:
    autoencoder, _ = models(kind=kind)
    image, mask = picture(), corner()
    kept = keep_outside(autoencoder, image, mask)
    found = completed(kept, passes=passes, kind=kind)
    assert kept_stay(kept, found.codes)
    assert torch.allclose(found.decoded, autoencoder.decode(found.codes), atol=1e-5)
    assert torch.equal(found.images[:, :, ~mask], image[:, ~mask].expand(5, -1, -1))
    assert torch.equal(found.images[:, :, mask], found.decoded[:, :, mask])
    assert not torch.equal(found.decoded[:, :, ~mask], found.images[:, :, ~mask])


@pytest.mark.parametrize(
    ("passes", "seed", "options"), [(1, 7, {}), (3, 8, {}), (3, 9, {"guidance": 3.0, "top_p": 0.9})]
)
def test_completions_are_the_same_at_any_batch_size(passes: int, seed: int, options: dict[str, Any]) -> None:
    autoencoder, _ = models()
    kept, labels = keep_outside(autoencoder, picture(), corner()), [0, 1, 1, 0, 1]
    whole = completed(kept, 5, labels, seed, passes, **options)
    for n, batch in ((5, 1), (5, 2), (3, 64)):
        other = completed(kept, n, labels, seed, passes, batch=batch, **options)
        assert same_codes(other.codes, whole.codes[:n])
        assert torch.allclose(other.bits, whole.bits[:, :n], atol=1e-3)
        assert torch.equal(other.accepted, whole.accepted[:, :n])
    assert not same_codes(completed(kept, 5, labels, seed + 1, passes, **options).codes, whole.codes)


def test_bits_are_the_priors_own() -> None:
    autoencoder, prior = models()
    labels = [0, 1, 1, 0, 1]
    kept = keep_outside(autoencoder, picture(), corner())
    for passes in (1, 4):
        found = completed(kept, labels=labels, passes=passes, temperature=0.8, guidance=2.0, top_p=0.9)
        assert found.bits.shape == (passes, 5, 2, 2)
        assert found.accepted.shape == (passes - 1, 5)
        with torch.no_grad():
            nats = prior.log_prob(found.codes, torch.tensor(labels))
        assert torch.allclose(found.bits[-1, :, 0], -nats / torch.tensor(2.0).log(), atol=1e-3)
        assert not found.bits[:, :, 1, 0].any(), "no coarse code is kept"
        assert ((found.bits[:, :, 1, 1] > 0) & (found.bits[:, :, 1, 1] < found.bits[:, :, 0, 1])).all()
        assert ((found.accepted >= 0) & (found.accepted <= 1)).all()


def test_a_longer_chain_begins_as_a_shorter_one() -> None:
    kept = keep_outside(models()[0], picture(), corner())
    short, long = completed(kept, passes=2), completed(kept, passes=4)
    assert torch.equal(short.bits, long.bits[:2])
    assert torch.equal(short.accepted, long.accepted[:1])


@pytest.mark.parametrize(("options", "found"), [
    ({"n": 0}, "n = 0"),
    ({"passes": 0}, "passes = 0"),
    ({"seed": -1}, "expected a seed"),
    ({"passes": 2, "temperature": 0.0}, "temperature > 0 for more than one pass"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_said_before_anything_is(options: dict[str, Any], found: str) -> None:
    n, passes, seed = options.pop("n", 1), options.pop("passes", 1), options.pop("seed", 0)
    kept = keep_outside(models()[0], picture(), corner())
    refused(lambda: complete(*models(), kept, n, None, seed, Sampling(**options), passes), found)


# --- further passes ---


def conditional(
    prior: HierarchicalPrior, known: Codes, label: int | None, temperature: float, guidance: float
) -> dict[tuple[int, ...], float]:
    """p(unknown | known) of every filling, from the logits of all codes there are."""
    every = every_code(prior.geometry)
    labels = None if label is None else torch.full((len(every),), label)
    nats = torch.zeros(len(every), dtype=torch.float64)
    for level, symbols in enumerate(every.levels):
        free = prior.logits(every, level).log_softmax(1)
        logits = free + guidance * (prior.logits(every, level, labels).log_softmax(1) - free)
        nats += (logits / temperature).log_softmax(1).gather(1, symbols[:, None]).sum((1, 2, 3))
    fits = torch.ones(len(every), dtype=torch.bool)
    for level, symbols in zip(known.levels, every.levels, strict=True):
        fits &= ((level == UNKNOWN) | (level == symbols)).flatten(1).all(1)
    p = nats[fits].softmax(0).tolist()
    return dict(zip(fillings(every[fits], known), p, strict=True))


def fillings(codes: Codes, known: Codes) -> list[tuple[int, ...]]:
    """The codes at the unknown positions of each."""
    pairs = zip(codes.levels, known.levels, strict=True)
    rows = torch.cat([level[:, where[0] == UNKNOWN] for level, where in pairs], 1)
    return [tuple(row) for row in rows.tolist()]


def distance(codes: Codes, known: Codes, p: dict[tuple[int, ...], float]) -> float:
    """Total variation between the share of each filling and its probability."""
    rows = fillings(codes, known)
    return sum(abs(rows.count(key) / len(rows) - value) for key, value in p.items()) / 2


def vivid(grids: Any, classes: int = 0) -> HierarchicalPrior:
    """A tiny prior whose codes depend on each other strongly."""
    prior = hierarchy(grids, classes, k=3, seed=3)
    with torch.no_grad():
        for name, p in prior.named_parameters():
            p.mul_(3 if "embedding" in name or "condition" in name else 1)
    return prior


def with_holes(prior: HierarchicalPrior, *holes: list[tuple[int, int]]) -> Codes:
    """Codes of one picture, unknown at (row, column) of each level."""
    codes = random_codes(prior.geometry, 1, seed=2)
    for level, places in zip(codes.levels, holes, strict=True):
        for r, c in places:
            level[0, r, c] = UNKNOWN
    return codes


@pytest.mark.parametrize(("segments", "seed"), [(1, 0), (2, 1), (8, 2)])
def test_the_chain_ends_at_the_exact_conditional(
    segments: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2x2 codes, the first two unknown: what one pass draws is far from p(unknown | known), a long chain is at it."""
    monkeypatch.setattr(module, "_SEGMENTS", segments)
    prior = vivid(((2, 2),))
    known = with_holes(prior, [(0, 0), (0, 1)])
    p = conditional(prior, known, None, 1.0, 1.0)
    first, _, _ = fill(prior, known, range(2000), None, seed, Sampling())
    last, bits, accepted = fill(prior, known, range(2000), None, seed, Sampling(), 9)
    assert len(p) == 9
    assert bits[-1, :, 1].mean() < bits[0, :, 1].mean() - 0.1, "what is known fits what is drawn better"
    assert distance(first, known, p) > 0.15
    assert distance(last, known, p) < 0.04
    assert 0.1 < accepted.mean() < 0.99


@pytest.mark.parametrize(
    ("label", "temperature", "guidance", "n", "passes", "seed"),
    [(None, 1.0, 1.0, 2000, 9, 0), (1, 0.7, 1.5, 900, 20, 1)],
)
def test_the_chain_goes_through_all_levels(
    label: int | None, temperature: float, guidance: float, n: int, passes: int, seed: int
) -> None:
    """A coarse code and two fine ones unknown; temperature and guidance belong to what is sampled."""
    prior = vivid(((1, 1), (2, 2)), 2)
    known = with_holes(prior, [(0, 0)], [(0, 1), (1, 0)])
    p = conditional(prior, known, label, temperature, guidance)
    labels = None if label is None else torch.full((n,), label)
    how = Sampling(temperature=temperature, guidance=guidance)
    first, _, _ = fill(prior, known, range(n), labels, seed, how)
    last, _, _ = fill(prior, known, range(n), labels, seed, how, passes)
    assert len(p) == 3 * 4 * 4
    assert distance(first, known, p) > 0.25
    assert distance(last, known, p) < 0.07


@pytest.mark.parametrize("seed", [0, 1])
def test_top_k_restricts_what_is_proposed_and_not_what_is_sampled(seed: int) -> None:
    """Within the support of top-k, the shares are those of p(unknown | known)."""
    prior = vivid(((2, 2),))
    known = with_holes(prior, [(0, 1)])
    p = conditional(prior, known, None, 1.0, 1.0)
    last, _, _ = fill(prior, known, range(2000), None, seed, Sampling(top_k=2), 9)
    found = set(fillings(last, known))
    assert len(found) == 2
    inside = {key: value / sum(p[key] for key in found) for key, value in p.items() if key in found}
    assert distance(last, known, inside) < 0.04


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 23), max_size=24), st.floats(0, 1, exclude_max=True))
def test_segments_visit_every_unknown_position_once(places: set[int], start: float) -> None:
    unknown = torch.tensor([i in places for i in range(24)]).view(4, 6)
    segments = list(module._segments(unknown, torch.tensor([start, 0.0], dtype=torch.float64)))
    total = sum((segment.long() for segment in segments), torch.zeros(2, 4, 6, dtype=torch.int64))
    assert torch.equal(total, unknown.long().expand(2, -1, -1))
    order = sorted(places)
    for segment in segments:
        for row in segment.flatten(1):
            found = [order.index(i) for i in row.nonzero()[:, 0].tolist()]
            assert found == list(range(found[0], found[0] + len(found))) if found else True
