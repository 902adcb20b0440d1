"""The fused Triton kernels compute what the plain operations do: on a GPU, or in Triton's interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch
from prior_helpers import Grids, inputs, level_prior, noise, static_logits

from vqvae2.prior.chooser import Chooser, Rule
from vqvae2.prior.gated import gate
from vqvae2.prior.step_ops import StepOps

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton"),
    *([] if INTERPRETED else [pytest.mark.gpu]),
]
DEVICE = "cpu" if INTERPRETED else "cuda"
types = pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
batches = pytest.mark.parametrize("batch", [1, 3, 20, 80])


def fused() -> StepOps:
    """The kernels."""
    from vqvae2.prior.step_triton import TritonStepOps

    return TritonStepOps()


def some(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers on the device."""
    return noise(*shape, seed=seed, dtype=dtype).to(DEVICE)


def close(a: torch.Tensor, b: torch.Tensor, weights: torch.dtype) -> bool:
    """Up to the order of sums in float32, or up to rounding to bfloat16."""
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    bound = 1e-5 if weights == torch.float32 else 3e-2
    return bool(((a.float() - b.float()).abs() <= bound * (1 + b.float().abs().max())).all())


@types
@batches
def test_norm_and_gate(batch: int, weights: torch.dtype) -> None:
    channels, inner = 12, 10
    h, weight = some(batch, channels), some(2 * inner, channels, seed=2, dtype=weights)
    before = some(batch, 2 * inner, seed=3, dtype=weights)
    wide = [torch.zeros(batch, 3, channels, dtype=weights, device=DEVICE) for _ in range(2)]
    results = [
        ops.norm_gate(h.clone(), weight, before, kept[:, 1])
        for ops, kept in zip((StepOps(), fused()), wide, strict=True)
    ]
    assert close(results[1], results[0], weights)
    assert close(wide[1], wide[0], weights)


@types
@batches
def test_linear_add(batch: int, weights: torch.dtype) -> None:
    h, x = some(batch, 12), some(batch, 150, seed=2, dtype=weights)
    weight, bias = some(12, 150, seed=3, dtype=weights), some(12, seed=4)
    plain, quick = (ops.linear_add(x, weight, bias, h.clone()) for ops in (StepOps(), fused()))
    assert close(quick, plain, weights)


@types
@batches
@pytest.mark.parametrize("activation", ["", "relu", "gelu"])
@pytest.mark.parametrize("biased", [True, False])
def test_norm_linear(batch: int, weights: torch.dtype, activation: str, biased: bool) -> None:
    h, weight = some(batch, 70), some(9, 70, seed=3, dtype=weights)
    bias = some(9, seed=4) if biased else None
    plain, quick = (ops.norm_linear(h.clone(), weight, bias, activation) for ops in (StepOps(), fused()))
    assert close(quick, plain, weights)


@types
def test_norm_and_gate_of_many_rows(weights: torch.dtype) -> None:
    x = some(7, 5, 12)
    plain, quick = (torch.zeros(7, 5, 12, dtype=weights, device=DEVICE) for _ in range(2))
    StepOps().norm(x, plain)
    fused().norm(x, quick)
    assert close(quick, plain, weights)
    y = some(9, 26, dtype=weights)
    assert close(fused().gate(y), StepOps().gate(y), weights)


@types
@pytest.mark.parametrize("depth", [4, 6])
def test_attention(weights: torch.dtype, depth: int) -> None:
    batch, heads, width, height = 2, 3, 20, 8
    caches = [
        torch.zeros(2, batch, heads, width * height, depth, dtype=weights, device=DEVICE) for _ in range(2)
    ]
    for position in (0, 1, 2, 19, 20, 140):
        row, column = torch.tensor([position // width], device=DEVICE), position % width
        qkv = some(batch, 3 * heads * depth, seed=position, dtype=weights)
        plain, quick = (
            ops.attend(qkv, cache, row, column, width)
            for ops, cache in zip((StepOps(), fused()), caches, strict=True)
        )
        assert close(quick, plain, weights)
        assert torch.equal(caches[0], caches[1])
        filled = some(*caches[0].shape, seed=position, dtype=weights)
        for cache in caches:
            cache[:, :, :, : position + 7] = filled[:, :, :, : position + 7]


def test_embedding() -> None:
    codes = torch.arange(12, device=DEVICE).view(6, 2) % 5
    table, rows, columns = some(6, 10), some(2, 10, seed=2), some(2, 10, seed=3)
    for row in (0, 1):
        for column in (0, 1):
            arguments = codes, table, rows, columns, torch.tensor([row], device=DEVICE), column
            assert torch.equal(fused().embed(*arguments), StepOps().embed(*arguments))


@pytest.mark.parametrize("choices", [5, 300])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7},
        {"top_k": 3},
        {"top_k": 1},
        {"top_p": 0.6},
        {"top_p": 1e-9},
        {"temperature": 1.3, "top_k": 4, "top_p": 0.8},
    ],
)
def test_the_choice(choices: int, guided: bool, options: dict[str, Any]) -> None:
    """The same codes as the plain choice, at many uniform numbers."""
    images, width = 40, 2
    rule = Rule(guidance=1.7 if guided else 1.0, guided=guided, **options)
    uniforms = torch.rand(images, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    uniforms[0], uniforms[1] = 0.0, 1 - 2.0**-53
    known = torch.full((images, 4), -1)
    known[3::4] = 2
    chooser = Chooser(uniforms, known.to(DEVICE), rule)
    doubled = images * (1 + guided)
    logits = 2 * some(doubled, choices)
    plain, quick = (torch.full((6, doubled), -9, device=DEVICE) for _ in range(2))
    for row in (0, 1):
        for column in (0, 1):
            place = torch.tensor([row], device=DEVICE), column, width
            StepOps().choose(chooser, logits, plain, *place)
            fused().choose(chooser, logits, quick, *place)
    assert torch.equal(plain, quick)
    assert plain[2:].unique().numel() > 1


@types
@pytest.mark.parametrize(
    "kind",
    [
        {"attention_every": 2, "layers": 3},
        {"kernel": 5, "output_layers": 0, "hidden": 12, "heads": 3},
        {"kind": "transformer"},
    ],
)
def test_a_whole_grid(kind: dict[str, Any], weights: torch.dtype) -> None:
    """All operations together: the logits are those of the plain operations."""
    grids: Grids = ((1, 2), (2, 4))
    prior = level_prior(grids, None, 2, torch.float32, **kind).to(DEVICE)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(0.5)
        codes, coarser, labels = inputs(prior, grids, 2)
        assert labels is not None
        context = prior.context(tuple(c.to(DEVICE) for c in coarser), labels.to(DEVICE))
        plain, quick = (
            static_logits(prior, codes.to(DEVICE), context, weights, ops) for ops in (StepOps(), fused())
        )
    assert plain.std() > 1e-2
    assert close(quick, plain, weights)


@types
@pytest.mark.parametrize("both", [True, False])
def test_the_gate_of_training_and_its_gradients(weights: torch.dtype, both: bool) -> None:
    """As autograd through the plain formula, in float64."""
    from vqvae2.prior.gate_triton import fused_gate

    shape = (2, 12, 3, 2)
    x, y = (
        some(*shape, seed=seed, dtype=weights).contiguous(memory_format=torch.channels_last)
        for seed in (1, 2)
    )
    x.requires_grad_()
    y.requires_grad_()
    out = fused_gate(x, y if both else None)
    assert out.is_contiguous(memory_format=torch.channels_last)
    mix = some(*out.shape, seed=3, dtype=weights)
    found = torch.autograd.grad((out * mix).sum(), (x, y) if both else (x,))
    exact = [t.detach().double().requires_grad_() for t in (x, y)]
    plain = gate(exact[0] + exact[1] if both else exact[0])
    expected = torch.autograd.grad((plain * mix.double()).sum(), exact if both else exact[:1])
    assert close(out, plain.to(weights), weights)
    for a, b in zip(found, expected, strict=True):
        assert close(a, b.to(weights), weights)
