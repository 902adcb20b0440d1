"""The PixelCNN's own: what its convolutions can see, and where its attention stands."""

from __future__ import annotations

import pytest
import torch
from prior_helpers import area, embedded, geometry, influences, inputs, level_prior, positions, random_codes
from torch import Tensor, nn


def local(height: int, width: int, r: int, c: int, reach: int) -> Tensor:
    """What the convolutions can see from (r, c): `reach` steps and the shift; a row begins with the end of the one above."""

    def seen(i: int, j: int) -> bool:
        if i == r:
            return c - 1 - reach <= j < c
        above = r - 1 - reach <= i < r and abs(j - c) <= reach
        return above or (c <= reach and (i, j) == (r - 1, width - 1))

    return area(height, width, seen)


@pytest.mark.parametrize(("kernel", "layers"), [(3, 1), (3, 2), (5, 1)])
@pytest.mark.parametrize("classes", [0, 2])
def test_without_attention_a_position_sees_the_window_before_it(
    kernel: int, layers: int, classes: int
) -> None:
    """Exactly no gradient from itself and all later ones; some from every earlier one that the layers can reach."""
    height, width = 6, 7
    prior = level_prior(((height, width),), None, classes, kernel=kernel, layers=layers)
    codes, coarser, labels = inputs(prior, ((height, width),), 1)
    logits, e = embedded(prior, codes, coarser, labels)
    for r, c in positions(height, width):
        expected = local(height, width, r, c, layers * (kernel // 2))
        assert torch.equal(influences(logits[:, :, r, c], e), expected), (r, c)


def test_the_place_in_the_grid_matters() -> None:
    """Row and column are told apart even where all codes are alike and nothing is near an edge."""
    prior = level_prior(((9, 9),), layers=1)
    with torch.no_grad():
        middle = prior(torch.zeros(1, 9, 9, dtype=torch.int64))[0, :, 3:6, 3:6]
    assert len({tuple(v.tolist()) for v in middle.flatten(1).T}) == 9


def test_a_constant_shift_of_grids_is_what_it_looks_like_without_places() -> None:
    """Without the place embeddings the network is a convolution: away from the edges it does not know where it is."""
    prior = level_prior(((9, 9),), layers=1)
    nn.init.zeros_(prior.place_rows)
    nn.init.zeros_(prior.place_columns)
    codes = random_codes(geometry(((9, 9),)), 2).levels[0]
    with torch.no_grad():
        a, b = prior(codes), prior(codes.roll((1, 1), (1, 2)))
    assert torch.allclose(a[:, :, 3:6, 3:6], b[:, :, 4:7, 4:7], atol=1e-12)


@pytest.mark.parametrize(
    ("layers", "every", "after"),
    [(4, 0, ()), (4, 1, (0, 1, 2, 3)), (5, 2, (1, 3)), (6, 3, (2, 5)), (2, 3, ())],
)
def test_attention_stands_after_every_so_many_layers(layers: int, every: int, after: tuple[int, ...]) -> None:
    prior = level_prior(layers=layers, attention_every=every)
    assert prior.attention_after == after
    assert len(prior.attentions) == len(after)
