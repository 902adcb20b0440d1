"""The laws of batches: pure functions of seed and step, complete, in order."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import LIVELY, config, same, take
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vqvae2.data.batches import Shuffle, TrainingOrder, pixel_batches, sequential
from vqvae2.data.errors import DataError
from vqvae2.data.images import ImageSet
from vqvae2.data.pixels import to_float


def test_shape_range_and_type(images: ImageSet) -> None:
    for pictures, labels in take(images):
        assert pictures.shape == (8, 3, 8, 8)
        assert pictures.dtype == torch.float32
        assert pictures.is_contiguous()
        assert pictures.abs().max() <= 1
        assert labels.shape == (8,)
        assert labels.dtype == torch.int64


@settings(deadline=None, max_examples=20)
@given(start=st.integers(0, 9), batch=st.integers(1, 50), seed=st.integers(0, 2**63 - 1))
def test_any_start_gives_the_same_steps(images: ImageSet, start: int, batch: int, seed: int) -> None:
    whole = take(images, batch=batch, seed=seed)
    assert same(whole[start:], take(images, batch=batch, seed=seed, start=start))


@pytest.mark.parametrize(("batch", "world"), [(8, 2), (8, 3), (7, 4), (4, 4)])
def test_ranks_join_to_the_whole(images: ImageSet, batch: int, world: int) -> None:
    ranks = [take(images, batch=batch, rank=rank, world=world) for rank in range(world)]
    joined = [
        (torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))
        for parts in zip(*ranks, strict=True)
    ]
    assert same(joined, take(images, batch=batch))


def test_seeds_differ_and_repeat(images: ImageSet) -> None:
    assert same(take(images), take(images))
    assert not same(take(images), take(images, seed=4))


def test_endless(images: ImageSet) -> None:
    stream = pixel_batches(images, TrainingOrder(images.train, 8, 3), config(**LIVELY), start=2)
    assert same([(to_float(x), y) for x, y in itertools.islice(stream, 7)], take(images, start=2))


@settings(deadline=None)
@given(count=st.integers(1, 40), batch=st.integers(1, 100), seed=st.integers(0, 2**40))
def test_epochs_are_permutations_laid_end_to_end(count: int, batch: int, seed: int) -> None:
    indices = np.arange(count) * 3
    shuffle = Shuffle(indices, seed)
    steps = -(-3 * count // batch)
    order = np.concatenate([shuffle(np.arange(step * batch, (step + 1) * batch)) for step in range(steps)])
    for epoch in range(3):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == indices.tolist()
    if count > 20:
        assert order[:count].tolist() != order[count : 2 * count].tolist()


def test_without_augmentation_batches_are_the_pictures(images: ImageSet) -> None:
    shuffle = Shuffle(images.train, 3)
    for step, (pictures, labels) in enumerate(take(images, augment=False)):
        chosen = shuffle(np.arange(step * 8, step * 8 + 8))
        assert torch.equal(pictures, to_float(images.pixels(chosen)))
        assert images.labels is not None
        assert labels.tolist() == images.labels[chosen].tolist()


def test_nothing_to_make_batches_of(images: ImageSet) -> None:
    for options in ({"batch": 2, "world": 3}, {"rank": 2, "world": 2}, {"batch": 0}):
        with pytest.raises(DataError, match="cannot make batches"):
            take(images, **options)
    with pytest.raises(DataError, match="from 0 images"):
        TrainingOrder([], 2, 0)


def test_sequential_is_in_order_and_complete(images: ImageSet) -> None:
    found = list(sequential(images, images.train, config(**LIVELY), batch=7))
    assert torch.equal(torch.cat([x for x, _ in found]), to_float(images.pixels(images.train)))
    assert images.labels is not None
    assert torch.cat([y for _, y in found]).tolist() == images.labels[images.train].tolist()
    assert list(sequential(images, [], config(), batch=7)) == []


def test_copies_are_functions_of_seed_and_index(images: ImageSet) -> None:
    def copies(seed: int, indices: Any, batch: int) -> Tensor:
        found = sequential(images, indices, config(**LIVELY), batch=batch, copies_seed=seed)
        return torch.cat([pictures for pictures, _ in found])

    whole = copies(1, images.train, 7)
    assert torch.equal(whole, copies(1, images.train, 3))
    assert torch.equal(whole[5:9], copies(1, images.train[5:9], 2))
    assert not torch.equal(whole, copies(2, images.train, 7))
