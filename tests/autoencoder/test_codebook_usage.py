"""Codebook usage: counts against a plain count, perplexity of known counts, codes outside the codebook."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqvae2.autoencoder.codebook_usage import code_counts, codebook_usage
from vqvae2.codes import CodesError


@given(st.lists(st.integers(0, 5), max_size=30), st.lists(st.integers(0, 5), max_size=30))
def test_counts_of_batches_add_up(first: list[int], second: list[int]) -> None:
    total = code_counts(torch.tensor(first, dtype=torch.int64), 6)
    total += code_counts(torch.tensor(second, dtype=torch.int16), 6)
    expected = Counter(first + second)
    assert total.tolist() == [expected[code] for code in range(6)]
    found = codebook_usage(total)
    assert found.used == pytest.approx(len(expected) / 6)
    assert found.order.tolist() == sorted(range(6), key=lambda code: (-expected[code], code))


def test_perplexity_of_known_counts() -> None:
    assert codebook_usage(torch.tensor([7, 7, 7, 7])).perplexity == pytest.approx(4, rel=1e-6)
    assert codebook_usage(torch.tensor([0, 9, 0, 0])).perplexity == pytest.approx(1, rel=1e-6)
    assert codebook_usage(torch.tensor([2, 1, 1, 0])).perplexity == pytest.approx(2**1.5, rel=1e-6)
    assert codebook_usage(torch.zeros(3, dtype=torch.int64)).used == 0


@pytest.mark.parametrize("bad", [[-1, 0], [0, 4]])
def test_codes_outside_the_vocabulary(bad: list[int]) -> None:
    with pytest.raises(CodesError, match=r"expected codes in 0..3"):
        code_counts(torch.tensor(bad), 4)
