"""Codes and geometry: which codes fit, the messages when they do not, and that selecting and joining lose nothing."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparing import same_codes
from hypothesis import given
from hypothesis import strategies as st

from vqvae2.codes import Codes, CodesError, Geometry

GEOMETRIES = st.lists(
    st.tuples(st.tuples(st.integers(1, 5), st.integers(1, 5)), st.integers(1, 70_000)), min_size=1, max_size=4
).map(lambda levels: Geometry(tuple(grid for grid, _ in levels), tuple(size for _, size in levels)))


def drawn(geometry: Geometry, count: int, seed: int = 0) -> Codes:
    """Random codes that fit a geometry."""
    generator = torch.Generator().manual_seed(seed)
    return Codes(
        tuple(
            torch.randint(size, (count, *grid), generator=generator)
            for grid, size in zip(geometry.grids, geometry.vocabulary, strict=True)
        )
    )


# --- geometry ---


@given(GEOMETRIES)
def test_a_geometry_survives_json(geometry: Geometry) -> None:
    assert Geometry.from_json(json.loads(json.dumps(geometry.to_json()))) == geometry


def test_the_geometry_of_the_paper() -> None:
    geometry = Geometry(((32, 32), (64, 64)), (512, 512))
    assert geometry.levels == 2
    assert geometry.positions == (1024, 4096)
    assert geometry.bits == 5120 * 9


@given(GEOMETRIES)
def test_bits_count_the_possible_codes(geometry: Geometry) -> None:
    """2 ** bits is the number of different codes of one image."""
    assert geometry.levels == len(geometry.grids) == len(geometry.positions)
    possible = math.prod(
        size**count for size, count in zip(geometry.vocabulary, geometry.positions, strict=True)
    )
    assert geometry.bits == pytest.approx(math.log2(possible))


@pytest.mark.parametrize(
    ("grids", "vocabulary", "message"),
    [
        ((), (), "one vocabulary per grid, found 0 grids and 0"),
        (((2, 2),), (5, 5), "found 1 grids and 2 vocabularies"),
        (((2, 2), (4, 4)), (5,), "found 2 grids and 1 vocabularies"),
        (((0, 2),), (5,), "at least 1"),
        (((2, -1),), (5,), "at least 1"),
        (((2, 2), (4, 4)), (5, 0), "at least 1"),
        (((2.5, 2),), (5,), "expected grids as pairs of integers"),
        (((2, 2, 2),), (5,), "expected grids as pairs of integers"),
        (((2, 2),), (5.5,), "vocabularies as integers"),
    ],
)
def test_no_such_geometry(
    grids: tuple[tuple[int, int], ...], vocabulary: tuple[int, ...], message: str
) -> None:
    with pytest.raises(CodesError, match=message) as caught:
        Geometry(grids, vocabulary)
    assert "\n" not in str(caught.value)


@given(GEOMETRIES, st.integers(0, 3), st.integers(0, 9), st.data())
def test_a_single_code_outside_is_refused(
    geometry: Geometry, count: int, seed: int, data: st.DataObject
) -> None:
    codes = drawn(geometry, count, seed)
    geometry.check(codes)
    if not count:
        return
    level = data.draw(st.integers(0, geometry.levels - 1))
    position = data.draw(st.integers(0, codes.levels[level].numel() - 1))
    for wrong in (-1, geometry.vocabulary[level]):
        bad = Codes(tuple(grid.clone() for grid in codes.levels))
        bad.levels[level].view(-1)[position] = wrong
        with pytest.raises(CodesError, match=rf"level {level}: expected codes in 0\.\.") as caught:
            geometry.check(bad)
        assert str(wrong) in str(caught.value)


def test_grids_that_differ_are_named() -> None:
    geometry = Geometry(((1, 2), (2, 4)), (5, 6))
    codes = drawn(geometry, 2)
    coarse, fine = codes.levels
    for levels in ((coarse,), (fine, coarse), (coarse, fine, fine), (coarse, fine.transpose(1, 2))):
        grids = tuple(tuple(level.shape[1:]) for level in levels)
        with pytest.raises(CodesError, match=re.escape(f"expected grids {geometry.grids}")) as caught:
            geometry.check(Codes(levels))
        assert str(grids) in str(caught.value)


# --- codes ---


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((), "at least one level"),
        ((torch.zeros(2, 2, 2),), r"level 0: .* found torch\.float32 \(2, 2, 2\)"),
        ((torch.zeros(2, 2, 2, dtype=torch.complex64),), r"found torch\.complex64"),
        ((torch.zeros(2, 2, 2, dtype=torch.bool),), r"found torch\.bool"),
        (
            (torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64)),
            r"level 1: .*int64",
        ),
        ((torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(2, 2, 2, dtype=torch.int64)), r"\[1, 2\]"),
    ],
    ids=["none", "float", "complex", "bool", "shape", "batch"],
)
def test_no_such_codes(levels: tuple[torch.Tensor, ...], message: str) -> None:
    with pytest.raises(CodesError, match=message) as caught:
        Codes(levels)
    assert "\n" not in str(caught.value)


@given(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=4), st.integers(0, 9))
def test_joining_undoes_cutting(count: int, cuts: list[int], seed: int) -> None:
    codes = drawn(Geometry(((1, 2), (3, 4)), (7, 300)), count, seed)
    borders = [0, *sorted(min(cut, count) for cut in cuts), count]
    batches = [codes[low:high] for low, high in itertools.pairwise(borders)]
    assert sum(len(batch) for batch in batches) == len(codes) == count
    assert same_codes(Codes.cat(batches), codes)


def test_selecting_chooses_the_same_images_at_every_level() -> None:
    """Each way to choose images chooses the same ones of every level."""
    numbers = torch.arange(6)
    codes = Codes((numbers[:, None, None].expand(6, 1, 2), numbers[:, None, None].expand(6, 3, 4)))
    chosen: list[tuple[slice | torch.Tensor | list[int], list[int]]] = [
        (slice(1, 5, 2), [1, 3]),
        ([5, 0, 5], [5, 0, 5]),
        (torch.tensor([2, 1]), [2, 1]),
        (numbers > 3, [4, 5]),
    ]
    for index, expected in chosen:
        selected = codes[index]
        assert len(selected) == len(expected)
        for level, whole in zip(selected.levels, codes.levels, strict=True):
            assert level.shape[1:] == whole.shape[1:]
            assert [set(image.flatten().tolist()) for image in level] == [{number} for number in expected]


def test_one_index_gives_a_batch_of_one() -> None:
    codes = drawn(Geometry(((1, 2), (2, 4)), (70, 70)), 3)
    for number in (1, -2, np.int64(1), torch.tensor(1)):
        assert codes[number] == codes[1:2]  # type: ignore[index]
    assert list(codes) == [codes[:1], codes[1:2], codes[2:]]
    for number in (3, -4):
        with pytest.raises(IndexError):
            codes[number]


def test_codes_are_equal_by_value() -> None:
    codes = drawn(Geometry(((1, 2), (2, 4)), (70, 70)), 3)
    coarse, fine = codes.levels
    assert codes == Codes((coarse.clone(), fine.to(torch.uint8)))
    other = fine.clone()
    other[2, 1, 3] += 1
    for levels in ((coarse, other), (coarse,), (coarse, fine.transpose(1, 2)), (coarse[:2], fine[:2])):
        assert codes != Codes(levels)
    assert codes != (coarse, fine)
    with pytest.raises(TypeError):
        hash(codes)


def test_codes_and_geometries_survive_torch_load(tmp_path: Path) -> None:
    geometry = Geometry(((1, 2), (2, 4)), (70, 70))
    codes = drawn(geometry, 3)
    torch.save({"codes": codes, "geometry": geometry}, tmp_path / "codes.pt")
    loaded = torch.load(tmp_path / "codes.pt", weights_only=True)
    assert loaded == {"codes": codes, "geometry": geometry}


@pytest.mark.parametrize("levels", [torch.zeros(2, 4, 4, dtype=torch.int64), ([[1]],)])
def test_codes_that_are_no_tuple_of_tensors(levels: Any) -> None:
    with pytest.raises(CodesError, match=r"expected a tuple of one tensor|found list"):
        Codes(levels)


def test_a_geometry_of_lists() -> None:
    grids: Any = [[1, 2], (2, 4)]
    geometry = Geometry(grids, [7, 8])  # type: ignore[arg-type]
    assert geometry == Geometry(((1, 2), (2, 4)), (7, 8))
    geometry.check(drawn(geometry, 2))


def test_levels_may_be_any_sequence() -> None:
    levels = drawn(Geometry(((1, 2), (2, 4)), (7, 8)), 3).levels
    for value in (list(levels), (level for level in levels)):
        codes = Codes(value)  # type: ignore[arg-type]
        assert type(codes.levels) is tuple
        assert codes == Codes(levels)
        assert len(codes) == 3


def test_batches_of_other_grids_are_not_joined() -> None:
    one, other = (drawn(Geometry((grid,), (7,)), 2) for grid in ((1, 2), (2, 4)))
    with pytest.raises(CodesError, match=r"equal grids, found \[\[\(1, 2\)\], \[\(2, 4\)\]\]"):
        Codes.cat([one, other])


def test_nothing_to_join() -> None:
    with pytest.raises(CodesError, match="at least one level"):
        Codes.cat([])


def test_moving_keeps_values_and_types() -> None:
    codes = Codes((torch.tensor([[[1, 2]]], dtype=torch.int8), torch.tensor([[[300]]], dtype=torch.int16)))
    moved = codes.to("cpu")
    assert same_codes(moved, codes)
    assert [level.dtype for level in moved.levels] == [torch.int8, torch.int16]
    assert [level.device.type for level in codes.to("meta").levels] == ["meta", "meta"]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32])
def test_codes_as_files_hold_them(dtype: torch.dtype) -> None:
    """Torch has few operations for them, and takes the largest for -1, which stands for a code that is not known."""
    largest = torch.iinfo(dtype).max
    codes = Codes((torch.tensor([[[0, largest]]]).to(dtype),))
    assert codes.levels[0].tolist() == [[[0, largest]]]
    assert codes.levels[0].dtype == torch.int64
    Geometry(((1, 2),), (largest + 1,)).check(codes)
    assert not (codes.levels[0] == -1).any()
