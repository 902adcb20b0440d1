"""The raster loop: order, contract with the callback, and that nothing of it stays behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from prior_helpers import KINDS, Grids, geometry, level_prior, random_codes, random_labels, stepped
from torch import Tensor

from vqvae2.prior.level import LevelPrior
from vqvae2.prior.scan import scan

GRIDS: Grids = ((2, 3), (4, 3))


def conditioned(prior: LevelPrior, seed: int, n: int = 2) -> Tensor | None:
    """The context of some coarser codes and labels."""
    coarser = random_codes(geometry(GRIDS), n, seed).levels[:1]
    return prior.context(coarser, random_labels(prior.classes, n))


def one_by_one(prior: LevelPrior, codes: Tensor, context: Tensor | None) -> Iterator[Tensor]:
    """The logits of each position; between two of them, anything may happen."""
    cache, previous = prior.start(len(codes), context), None
    for position in range(prior.positions):
        logits, cache = prior.step(cache, position, previous)
        previous = codes.flatten(1)[:, position]
        yield logits


def greedy(_: int, logits: Tensor) -> Tensor:
    """The most likely symbol."""
    return logits.argmax(1)


def test_positions_are_visited_once_in_raster_order() -> None:
    prior = level_prior(((2, 3),))
    seen: list[tuple[int, tuple[int, ...]]] = []

    def choose(position: int, logits: Tensor) -> Tensor:
        seen.append((position, tuple(logits.shape)))
        return torch.full((4,), position % 5)

    result = scan(prior, 4, None, choose)
    assert seen == [(p, (4, 5)) for p in range(6)]
    assert result.dtype == torch.int64
    assert torch.equal(result, torch.tensor([[0, 1, 2], [3, 4, 0]]).expand(4, 2, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_chosen_is_fed_back(kind: dict[str, Any]) -> None:
    """The logits that the callback sees are those of the whole grid of its own choices."""
    prior = level_prior(GRIDS, None, 2, **kind)
    context = conditioned(prior, 1)
    coarser, labels = random_codes(geometry(GRIDS), 2, 1).levels[:1], random_labels(2, 2)
    chosen = scan(prior, 2, context, lambda position, logits: logits.argsort(1)[:, position % 6])
    with torch.no_grad():
        order = prior(chosen, coarser, labels).argsort(1).flatten(2)
    expected = torch.stack([order[:, p % 6, p] for p in range(prior.positions)], 1)
    assert torch.equal(chosen.flatten(1), expected)
    assert chosen.unique().numel() > 3


def test_no_gradient_is_kept() -> None:
    prior = level_prior(attention_every=1)

    def choose(position: int, logits: Tensor) -> Tensor:
        assert not logits.requires_grad
        assert not torch.is_grad_enabled()
        return greedy(position, logits)

    scan(prior, 2, None, choose)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_the_same_alone_and_in_a_batch(kind: dict[str, Any]) -> None:
    prior = level_prior(GRIDS, None, 2, **kind)
    context = conditioned(prior, 1, 3)
    assert context is not None
    codes = random_codes(geometry(GRIDS), 3, 2).levels[1]
    whole = stepped(prior, codes, context)
    for i in ([1], [2, 0]):
        assert torch.allclose(stepped(prior, codes[i], context[i]), whole[i], atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_choice_at_the_last_position_is_not_fed_back_anywhere(kind: dict[str, Any]) -> None:
    """And every other one is: it changes some later logits."""
    prior = level_prior(((3, 2),), **kind)
    codes = random_codes(geometry(((3, 2),))).levels[0]
    before = stepped(prior, codes, None).flatten(2)
    for p in range(6):
        other = codes.clone().flatten(1)
        other[:, p] = (other[:, p] + 1) % 5
        after = stepped(prior, other.view_as(codes), None).flatten(2)
        assert torch.equal(after[:, :, : p + 1], before[:, :, : p + 1])
        assert (after[:, :, p + 1 :] != before[:, :, p + 1 :]).any() == (p < 5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch(kind: dict[str, Any]) -> None:
    prior = level_prior(**kind)
    codes = scan(prior, 0, None, greedy)
    assert codes.shape == (0, 3, 5)
    assert prior(codes).shape == (0, 5, 3, 5)


# --- nothing stays behind ---


@pytest.mark.parametrize("kind", KINDS)
def test_interleaved_scans_are_as_separate_ones(kind: dict[str, Any]) -> None:
    """Two of one prior, step in turn; of other batch sizes, contexts and codes."""
    prior = level_prior(GRIDS, None, 2, **kind)
    contexts = [conditioned(prior, 1, 2), conditioned(prior, 2, 3)]
    codes = [random_codes(geometry(GRIDS), n, 5 + n).levels[1] for n in (2, 3)]
    with torch.no_grad():
        separate = [list(one_by_one(prior, *pair)) for pair in zip(codes, contexts, strict=True)]
        first, second = (one_by_one(prior, *pair) for pair in zip(codes, contexts, strict=True))
        together = [(next(first), next(second)) for _ in range(prior.positions)]
    for position, pair in enumerate(together):
        for which in (0, 1):
            assert torch.equal(pair[which], separate[which][position])
    for logits, grid, context in zip(separate, codes, contexts, strict=True):
        assert torch.equal(torch.stack(logits, 2), stepped(prior, grid, context).flatten(2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_scan_within_a_scan(kind: dict[str, Any]) -> None:
    prior = level_prior(**kind)
    alone = scan(prior, 2, None, greedy)
    inner: list[Tensor] = []

    def least(_: int, logits: Tensor) -> Tensor:
        return logits.argmin(1)

    least_alone = scan(prior, 1, None, least)

    def choose(position: int, logits: Tensor) -> Tensor:
        inner.append(scan(prior, 1, None, least))
        return greedy(position, logits)

    assert torch.equal(scan(prior, 2, None, choose), alone)
    assert all(torch.equal(found, least_alone) for found in inner)
    assert not torch.equal(alone[:1], least_alone)


@pytest.mark.parametrize("kind", KINDS)
def test_an_abandoned_scan_leaves_no_trace(kind: dict[str, Any]) -> None:
    prior = level_prior(**kind)
    before = scan(prior, 2, None, greedy)

    def choose(position: int, logits: Tensor) -> Tensor:
        if position == 7:
            raise KeyboardInterrupt
        return logits.argmin(1)

    with pytest.raises(KeyboardInterrupt):
        scan(prior, 2, None, choose)
    assert torch.equal(scan(prior, 2, None, greedy), before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_module_holds_no_state(kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """No buffer, no attribute and no weight changes, and the caches are gone with the scan."""
    prior = level_prior(GRIDS, None, 2, **kind)
    context = conditioned(prior, 1)
    attributes = {name: set(vars(module)) for name, module in prior.named_modules()}
    weights = {name: value.clone() for name, value in prior.state_dict().items()}
    caches: list[weakref.ref[Any]] = []

    def remembered(original: Any) -> Any:
        def call(*args: Any) -> Any:
            result = original(*args)
            cache = result[1] if isinstance(result, tuple) else result
            caches.append(weakref.ref(cache))
            for name, value in vars(cache).items():
                if name != "context":  # which is the caller's
                    caches.extend(map(weakref.ref, [value] if isinstance(value, Tensor) else value))
            return result

        return call

    with monkeypatch.context() as patch:
        patch.setattr(prior, "start", remembered(prior.start))
        patch.setattr(prior, "step", remembered(prior.step))
        scan(prior, 2, context, greedy)
    gc.collect()
    assert len(caches) > prior.positions
    assert [ref() for ref in caches if ref() is not None] == []
    for method in ("start", "step"):  # what monkeypatch put back, with some versions of torch
        vars(prior).pop(method, None)
    assert {name: set(vars(module)) for name, module in prior.named_modules()} == attributes
    assert weights.keys() == prior.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in prior.state_dict().items())
    assert list(prior.buffers()) == []
