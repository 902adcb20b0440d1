"""Frequencies, range coder, packing and header: round trips, exact sizes, and the same integers everywhere."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqvae2.codec.container import Header, agree, code_checks, read_header
from vqvae2.codec.errors import CodecError
from vqvae2.codec.frequencies import BITS, EDGE, STEPS, _table, frequencies, on_grid, uniform
from vqvae2.codec.packed import pack, packed_size, unpack
from vqvae2.codec.range_coder import Decoder, Encoder


@given(st.integers(0, 2**32), st.integers(2, 700), st.integers(1, 40), st.floats(0, 12))
@settings(max_examples=150)
def test_codes_come_back_and_cost_what_their_frequencies_say(
    seed: int, k: int, n: int, spread: float
) -> None:
    random = np.random.default_rng(seed)
    weights = frequencies(on_grid(torch.from_numpy(random.normal(size=(n, k)) * spread))[0])
    assert weights.min() >= 0
    assert (weights.sum(1) == 2**BITS - k).all()
    p = (weights + 1) / 2**BITS
    codes = np.array([random.choice(k, p=row) for row in p])
    coder = Encoder()
    for begin in range(0, n, 7):
        coder.encode(codes[begin : begin + 7], weights[begin : begin + 7])
    data = coder.finish()
    decoder = Decoder(data)
    assert [int(decoder.decode(weights[i : i + 1])[0]) for i in range(n)] == codes.tolist()
    bits = -np.log2(p[np.arange(n), codes]).sum()
    assert len(data) <= bits / 8 + 1.01
    assert not data.endswith(b"\0")


def test_nothing_encoded_is_no_byte() -> None:
    assert Encoder().finish() == b""


def test_the_range_coder_takes_integer_frequencies_as_they_are() -> None:
    """A code of frequency 1 out of 2^24 can be coded, whatever the library rounds."""
    weights = np.zeros((1, 4))
    weights[0, 2] = 2**BITS - 4
    for code in range(4):
        coder = Encoder()
        coder.encode(np.full(20, code), weights.repeat(20, 0))
        data = coder.finish()
        assert np.array_equal(Decoder(data).decode(weights.repeat(20, 0)), np.full(20, code))
        assert len(data) <= (1 if code == 2 else 20 * BITS / 8 + 1)


def test_the_table_is_the_exponential_in_integers() -> None:
    exact = [math.floor(2**30 * math.exp(-d / STEPS)) for d in range(len(_table()) - 1)]
    assert np.abs(_table()[:-1] - exact).max() <= 1
    assert hashlib.sha256(_table().astype("<i8").tobytes()).hexdigest() == (
        "ac71eb8cf5dba4b8deb2775d26ebf0bcbea3aa262310721d5503577568a89453"
    )


def test_the_frequencies_are_near_the_softmax() -> None:
    """Rounding to the grid costs far below a thousandth of a bit per code."""
    logits = torch.randn(500, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    p = logits.softmax(1).numpy()
    q = (frequencies(on_grid(logits)[0]) + 1) / 2**BITS
    assert 0 < (p * np.log2(p / q)).sum(1).mean() < 5e-4


def test_a_logit_at_an_edge_is_reported() -> None:
    middle = torch.full((5, 4), 1.0, dtype=torch.float64)
    middle[1, 2] = 0.5 / STEPS  # between 0 and 1 sixteenth
    middle[2, 2] = 0.5 / STEPS + 0.9 * EDGE
    middle[3, 2] = 0.5 / STEPS + 1.1 * EDGE
    middle[4] = torch.tensor([1.0, 0.0, -40.0 - 0.5 / STEPS, 0.0])  # too small to matter
    assert on_grid(middle)[1].tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("k", [2, 3, 500, 512, 65536])
def test_uniform_frequencies_add_up(k: int) -> None:
    assert uniform(k).sum() == 2**BITS - k


@given(st.integers(0, 2**32), st.integers(2, 70000), st.integers(0, 700))
@settings(max_examples=60)
def test_packed_codes_take_log2_k_bits(seed: int, k: int, n: int) -> None:
    codes = np.random.default_rng(seed).integers(0, k, n)
    data = pack(codes, k)
    assert len(data) == packed_size(n, k)
    assert len(data) <= n * math.log2(k) / 8 + math.ceil(n / 256)
    assert np.array_equal(unpack(data, n, k), codes)


def test_packed_bytes_outside_the_codebook_are_damage() -> None:
    assert pack(np.full(7, 499), 500) < b"\xff" * packed_size(7, 500)
    with pytest.raises(CodecError, match="outside the codebook"):
        unpack(b"\xff" * packed_size(7, 500), 7, 500)


headers = st.builds(
    lambda prior, size, label, lengths, gaps, checks: Header(
        "prior" if prior else "packed",
        b"abcd",
        size,
        label if prior else None,
        tuple(lengths) if prior else (),
        tuple(tuple(np.cumsum(level).tolist()) for level in gaps) if prior else (),
        tuple(checks),
    ),
    st.booleans(),
    st.none() | st.tuples(st.integers(1, 2**16), st.integers(1, 2**16)),
    st.none() | st.integers(0, 1000),
    st.lists(st.integers(0, 10**6), min_size=2, max_size=2),
    st.lists(st.lists(st.integers(1, 300), max_size=4), min_size=2, max_size=2),
    st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=2),
)


def digest(mode: str) -> bytes:
    """Of the model, in `headers`."""
    return b"abcd"


@given(headers)
def test_a_header_comes_back(header: Header) -> None:
    data = header.pack()
    found, end = read_header(data + b"more", 2, digest)
    assert end == len(data)
    low = (header.checks[0] & 0xFFFFFF, header.checks[1])
    listed = header.listed if any(header.listed) else ()
    assert found == Header(header.mode, header.digest, header.size, header.label, header.lengths, listed, low)
    assert agree(header.checks, found)
    assert not agree((header.checks[0] ^ 1, header.checks[1]), found)
    longest = max((*header.lengths, *(header.size or ())), default=0)
    if not listed and (header.label or 0) < 128 and longest < 16384:
        assert len(data) <= 24
    for cut in range(len(data)):
        with pytest.raises(CodecError):
            read_header(data[:cut], 2, digest)


def test_the_check_covers_mode_size_and_class() -> None:
    grid = [np.arange(6).reshape(2, 3)]
    checks = {code_checks(grid, *rest) for rest in (
        ("prior", (2, 3), None), ("packed", (2, 3), None), ("prior", (3, 2), None), ("prior", (2, 3), 0),
    )}  # fmt: skip
    assert len(checks) == 4
