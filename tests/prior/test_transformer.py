"""The transformer's own: it is the textbook's, and its cache is as large as it must be."""

from __future__ import annotations

import torch
from prior_helpers import config, geometry, inputs, level_prior, random_codes
from torch import Tensor
from torch.nn import functional

from vqvae2.prior.hierarchy import make_level

GRIDS = ((2, 3), (4, 3))


def rms(x: Tensor, gain: Tensor) -> Tensor:
    """Root-mean-square norm over the last axis."""
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def test_it_is_the_textbooks_transformer() -> None:
    """Pre-normed, with explicit scores and an explicit mask, on tokens [B, N, C] in raster order."""
    prior = level_prior(GRIDS, None, 2, kind="transformer")
    codes, coarser, labels = inputs(prior, GRIDS)
    w, heads, n = dict(prior.named_parameters()), prior.config.heads, prior.positions
    context = prior.context(coarser, labels)
    assert context is not None
    before = functional.pad(w["embedding.weight"][codes.flatten(1)], (0, 0, 1, 0))[:, :-1]
    places = (w["place_rows"] + w["place_columns"]).flatten(1).T
    x = before + places + context.flatten(2).transpose(1, 2)
    later = torch.ones(n, n, dtype=torch.bool).triu(1)
    for layer in range(prior.config.layers):
        a, m = f"layers.{layer}.attention.", f"layers.{layer}.mlp."
        qkv = rms(x, w[a + "norm.gain"]) @ w[a + "qkv.linear.weight"].T
        q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, 2))
        scores = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).masked_fill(later, float("-inf"))
        mixed = (scores.softmax(3) @ v).transpose(1, 2).flatten(2)
        x = x + mixed @ w[a + "out.linear.weight"].T + w[a + "out.linear.bias"]
        inner = rms(x, w[m + "norm.gain"]) @ w[m + "inner.linear.weight"].T + w[m + "inner.linear.bias"]
        x = x + functional.gelu(inner) @ w[m + "outer.linear.weight"].T + w[m + "outer.linear.bias"]
    x = rms(x, w["output.0.gain"]) @ w["output.2.linear.weight"].T + w["output.2.linear.bias"]
    logits = x @ w["embedding.weight"].T + w["bias"]
    assert torch.allclose(prior(codes, coarser, labels).flatten(2), logits.transpose(1, 2), atol=1e-9)


def test_at_first_every_block_passes_its_input_on() -> None:
    torch.manual_seed(0)
    prior = make_level(config(kind="transformer", layers=3), geometry(GRIDS), 1, 0)
    x = torch.randn(2, 8, 4, 3)
    for layer in prior.layers:  # type: ignore[union-attr]
        assert torch.equal(layer(x), x)


def test_keys_and_values_are_written_into_one_place() -> None:
    """Allocated once for the whole grid; a step fills its own position and leaves the later ones zero."""
    prior = level_prior(GRIDS, None, 0, kind="transformer")
    codes = random_codes(geometry(GRIDS), 2)
    with torch.no_grad():
        cache = prior.start(2, prior.context(codes.levels[:1], None))
        first = [part.data_ptr() for part in cache.attention]
        assert [part.shape for part in cache.attention] == [(2, 2, 2, 12, 4)] * 2
        for position in range(prior.positions):
            previous = codes.levels[1].flatten(1)[:, position - 1] if position else None
            _, cache = prior.step(cache, position, previous)
            for part in cache.attention:
                assert (part[..., : position + 1, :] != 0).all()
                assert (part[..., position + 1 :, :] == 0).all()
    assert [part.data_ptr() for part in cache.attention] == first
