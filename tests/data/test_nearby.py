"""The shuffle of images that are stored near each other: exactly once in an epoch, near, and the same for any processes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vqvae2.data.batches import TrainingOrder
from vqvae2.data.nearby import NearbyShuffle


@given(count=st.integers(1, 300), batch=st.integers(1, 24), buffer=st.integers(1, 50), seed=st.integers(0, 9))
def test_no_index_twice_in_an_epoch(count: int, batch: int, buffer: int, seed: int) -> None:
    """Of n indices an epoch has all but n % lanes, which are fewer than the lanes."""
    indices = np.arange(count) * 3 + 1
    shuffle = NearbyShuffle(indices, seed, batch, buffer)
    each = batch // shuffle.lanes
    steps = -(-2 * shuffle.length // each)
    found = shuffle(np.arange(steps * batch)).reshape(steps, shuffle.lanes, each)
    by_lane = found.transpose(1, 0, 2).reshape(shuffle.lanes, -1)
    for epoch in range(2):
        seen = by_lane[:, epoch * shuffle.length : (epoch + 1) * shuffle.length].flatten()
        assert len(set(seen.tolist())) == shuffle.length * shuffle.lanes
        assert set(seen.tolist()) <= set(indices.tolist())
        assert count - len(seen) < shuffle.lanes


@given(world=st.sampled_from([2, 3, 4, 6, 12]), start=st.integers(0, 40), buffer=st.integers(1, 40))
def test_any_processes_share_the_batches_of_one(world: int, start: int, buffer: int) -> None:
    """From any step on, as after a kill."""
    indices = np.arange(100)
    whole = [chosen for _, chosen in TrainingOrder(indices, 12, 1, buffer=buffer).steps(0, start + 5)]
    orders = [
        TrainingOrder(indices, 12, 1, rank, world, buffer).steps(start, start + 5) for rank in range(world)
    ]
    for step, parts in enumerate(zip(*orders, strict=True), start):
        assert np.concatenate([chosen for _, chosen in parts]).tolist() == whole[step].tolist()


def test_what_is_read_is_near() -> None:
    """A lane reads a window from as many stretches as it has blocks; epochs differ."""
    shuffle = NearbyShuffle(np.arange(4096), 0, 4, 64)
    places = np.arange(0, 64 * 4, 4)  # the first lane of 64 steps
    first = np.sort(shuffle(places))
    assert (np.diff(first) > 1).sum() <= 9
    assert not np.array_equal(first, np.sort(shuffle(places + 4096)))
    assert not np.array_equal(shuffle(places), first), "within the window they are mixed"
