"""The feed hands batches on in order, raises what making them raised, and leaves no thread behind."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vqvae2.train.feed import Feed, mapped, parts, tensors

CPU = torch.device("cpu")


def numbers(stop: int | None = None) -> Iterator[tuple[Tensor]]:
    """Batches of one number each."""
    for number in itertools.count() if stop is None else range(stop):
        yield (torch.tensor([number]),)


def threads() -> set[str]:
    """The names of the threads that run."""
    return {thread.name for thread in threading.enumerate()}


def test_batches_come_in_order_from_another_thread() -> None:
    makers: set[str] = set()

    def noted() -> Iterator[tuple[Tensor]]:
        for batch in numbers():
            makers.add(threading.current_thread().name)
            yield batch

    with Feed(noted(), CPU) as feed:
        assert [int(next(feed)[0]) for _ in range(50)] == list(range(50))
        feed.fetch_ahead()
        assert int(next(feed)[0]) == 50
    assert makers == {"batches"}
    assert "batches" not in threads()


def test_an_interrupt_while_a_batch_is_fetched_ahead_is_not_kept_for_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the last batch nobody asks for another one, and Ctrl+C had no effect."""

    def interrupted(self: Feed) -> None:
        raise KeyboardInterrupt

    with Feed(numbers(), CPU) as feed:
        monkeypatch.setattr(feed, "copying", object())
        monkeypatch.setattr(Feed, "_copy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            feed.fetch_ahead()


def test_a_few_batches_are_made_ahead_and_no_more() -> None:
    made: list[int] = []

    def noted() -> Iterator[int]:
        for number in itertools.count():
            made.append(number)
            yield torch.tensor([number])

    with Feed(noted(), CPU) as feed:  # type: ignore[arg-type]
        for taken in range(4):
            deadline = time.monotonic() + 5
            while len(made) < taken + 3 and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)
            assert made == list(range(taken + 3))
            assert int(next(feed)) == taken


def test_an_error_is_raised_where_the_batch_is_asked_for() -> None:
    def broken() -> Iterator[tuple[Tensor]]:
        yield from numbers(2)
        raise OSError("the disk is gone")

    with Feed(broken(), CPU) as feed:
        assert [int(next(feed)[0]) for _ in range(2)] == [0, 1]
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                next(feed)
    assert "batches" not in threads()


def test_it_ends_where_the_batches_end() -> None:
    with Feed(numbers(3), CPU) as feed:
        assert [int(batch[0]) for batch in feed] == [0, 1, 2]


def test_batches_that_are_left_over_are_closed() -> None:
    closed: list[str] = []

    def noted() -> Iterator[tuple[Tensor]]:
        try:
            yield from numbers()
        finally:
            closed.append(threading.current_thread().name)

    with Feed(noted(), CPU) as feed:
        next(feed)
    assert closed == ["batches"]


@settings(deadline=None)
@given(size=st.integers(1, 20), count=st.integers(1, 30))
def test_parts_join_to_the_batch(size: int, count: int) -> None:
    batch = (torch.arange(size), (torch.arange(size) * 2, torch.arange(3 * size).view(size, 3)))
    cut = parts(batch, count)
    assert len(cut) == min(size, count)
    assert sum(share for share, _ in cut) == pytest.approx(1)
    assert all(share * size == pytest.approx(len(part[0])) for share, part in cut)
    joined = [torch.cat(pieces) for pieces in zip(*(tensors(part) for _, part in cut), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(joined, tensors(batch), strict=True))


def test_mapped_keeps_the_nesting() -> None:
    batch = (torch.ones(2), (torch.ones(2), torch.zeros(2)))
    twice = mapped(batch, lambda tensor: tensor * 2)
    assert [t.tolist() for t in tensors(twice)] == [[2, 2], [2, 2], [0, 0]]
    assert isinstance(twice[1], tuple)
