"""What must not spoil a quantiser: vectors that are not finite, forward passes that are repeated, memory without values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparing import state_of
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from vqvae2.autoencoder.base import Quantizer
from vqvae2.autoencoder.fsq import FiniteScalarQuantizer
from vqvae2.autoencoder.model import VQVAE
from vqvae2.autoencoder.quantizer import VectorQuantizer
from vqvae2.config.models import AutoencoderConfig
from vqvae2.errors import UserError

OPTIONS: list[dict[str, Any]] = [
    {}, {"init": "sonnet"}, {"revive": False}, {"entropy_penalty": 0.2}, {"decay": 0.0}, {"ema": False},
]  # fmt: skip
BAD = (math.nan, math.inf, -math.inf, 3e38)  # the last one is finite, but its square is not
BUILDERS: list[Callable[[], Quantizer]] = [
    *(lambda options=options: VectorQuantizer(16, 4, **options) for options in OPTIONS),
    lambda: FiniteScalarQuantizer(16, 4),
]


def vectors(seed: int, rows: int = 40) -> Tensor:
    """Noise around a centre that moves, so that codes fall idle and are revived."""
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed)) + 5 * (seed // 3)


def state(quantizer: torch.nn.Module) -> dict[str, Tensor]:
    """All buffers and parameters, copied, except what is known of the last batch."""
    return {name: value for name, value in state_of(quantizer).items() if "last_" not in name}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


# --- vectors that are not finite ---


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("options", OPTIONS[:5], ids=str)
def test_they_are_left_out_of_every_statistic(options: dict[str, Any], bad: float) -> None:
    """The codebook is that of a training without these rows; revival aside, which draws by the number of a row."""
    options = options | {"revive": False}
    torch.manual_seed(0)
    spoilt, clean = VectorQuantizer(16, 4, **options), VectorQuantizer(16, 4, **options)
    clean.load_state_dict(spoilt.state_dict())
    for step in range(6):
        good = vectors(step)
        clean(good)
        spoilt(torch.cat([good, torch.full((3, 4), bad)]) if step else good)
    assert int(spoilt.not_finite) == 15
    assert int(clean.not_finite) == 0
    for name in ("embeddings", "ema_count", "ema_sum", "distortion"):
        torch.testing.assert_close(getattr(spoilt, name), getattr(clean, name))
    assert torch.equal(spoilt.usage, clean.usage)
    assert int(spoilt.counter) == int(clean.counter)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("first", [False, True])
def test_a_codebook_outlives_them(options: dict[str, Any], bad: float, first: bool) -> None:
    """In the first batch, from which the codebook is drawn, or later; a few vectors, or one number of each."""
    vq = VectorQuantizer(16, 4, **options)
    for step in range(0 if first else 4):
        vq(vectors(step))
    few, everywhere = vectors(4), vectors(4)
    few[::3] = bad
    everywhere[:, 2] = bad
    for batch in (few, everywhere):
        result = vq(batch)
        assert not result.loss.isfinite(), "it does not go unnoticed"
        assert vq.embeddings.isfinite().all()
    assert int(vq.not_finite) == 54
    for step in range(5, 9):
        result = vq(vectors(step))
    assert result.loss.isfinite()
    assert all(value.isfinite().all() for value in state(vq).values())
    assert int(vq.usage.sum()) == (8 if not first else 4) * 40 + 26


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("options", OPTIONS[:5], ids=str)
def test_a_batch_without_a_finite_vector_changes_nothing(options: dict[str, Any], bad: float) -> None:
    for before in (0, 3):
        vq = VectorQuantizer(16, 4, **options)
        for step in range(before):
            vq(vectors(step))
        expected = state(vq)
        vq(torch.full((40, 4), bad))
        after = state(vq)
        assert int(after.pop("not_finite")) == 40
        expected.pop("not_finite")
        assert_same(after, expected)


@pytest.mark.parametrize("bad", BAD[:3])
def test_a_lattice_does_not_count_them(bad: float) -> None:
    fsq = FiniteScalarQuantizer(16, 4)
    z = vectors(0)
    z[:4] = bad
    z[4, 0] = bad  # in one component alone
    out = fsq(z)
    indices = out.encoding_indices
    assert ((indices >= 0) & (indices < 16)).all()
    assert (int(fsq.not_finite), int(fsq.usage.sum())) == (5, 35)
    assert out.quantize.isfinite().all(1).tolist() == [False] * 5 + [True] * 35
    assert fsq.ema_count.isfinite().all()


# --- activation checkpointing ---


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("build", BUILDERS)
def test_a_repeated_forward_pass_updates_nothing(build: Callable[[], Quantizer], reentrant: bool) -> None:
    """Statistics, codebook and gradients are those of a training without checkpointing, bit for bit."""
    torch.manual_seed(0)
    plain, other = build(), build()
    other.load_state_dict(plain.state_dict())
    for step in range(5):
        inputs = [vectors(step).requires_grad_() for _ in range(2)]
        results = [
            plain(inputs[0]),
            checkpoint(lambda z: vars(other(z)), inputs[1], use_reentrant=reentrant, preserve_rng_state=False)
            if not reentrant
            else checkpoint(lambda z: tuple(vars(other(z)).values()), inputs[1], use_reentrant=True),
        ]
        losses = [results[0].quantize.square().sum() + results[0].loss]
        quantize, loss = (results[1]["quantize"], results[1]["loss"]) if not reentrant else results[1][:2]
        losses.append(quantize.square().sum() + loss)
        for value in losses:
            value.backward()
        assert torch.equal(losses[0], losses[1])
        assert torch.equal(inputs[0].grad, inputs[1].grad)
        assert_same(state(plain), state(other))


def test_a_checkpointed_autoencoder_learns_the_same() -> None:
    config = AutoencoderConfig(strides=(2, 2), codes=(16, 12), code_dim=4, hidden=8, residual=4)
    torch.manual_seed(0)
    plain, other = VQVAE(config), VQVAE(config)
    other.load_state_dict(plain.state_dict())
    for step in range(3):
        batch = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(step)) * 2 - 1
        plain(batch).images.square().sum().backward()
        checkpoint(lambda x: other(x).images, batch, use_reentrant=False).square().sum().backward()
    assert_same(state(plain), state(other))
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


# --- memory without values ---


@pytest.mark.parametrize("way", ["to_empty", "to_empty, loaded", "assigned", "emptied again, loaded"])
@pytest.mark.parametrize("build", BUILDERS)
def test_buffers_outside_the_state_dict_are_defined(build: Callable[[], Quantizer], way: str) -> None:
    source = build()
    for step in range(3):
        source(vectors(step))
    fresh = dict(build().first_values())
    if way == "emptied again, loaded":
        quantizer = build()
        quantizer(vectors(0))
        quantizer.to_empty(device="cpu")
        quantizer.usage.fill_(-7)  # whatever the memory held
    else:
        with torch.device("meta"):
            quantizer = build()
    if way in ("to_empty", "to_empty, loaded"):
        holder = torch.nn.ModuleList([quantizer]).to_empty(device="cpu")
        assert holder[0] is quantizer
    if way != "to_empty":
        quantizer.load_state_dict(source.state_dict(), assign=way == "assigned")
    if "last_embeddings" in fresh:
        fresh["last_embeddings"] = quantizer.codebook()
    for name, value in fresh.items():
        assert torch.allclose(getattr(quantizer, name), value, rtol=0, atol=0, equal_nan=True), name
    assert quantizer.usage.dtype == torch.int64
    assert set(quantizer.state_dict()) == set(source.state_dict())
    if way != "to_empty":
        assert torch.equal(quantizer.codebook(), source.codebook())
        z = vectors(7)
        assert torch.equal(quantizer.eval()(z).encoding_indices, source.eval()(z).encoding_indices)


# --- what would go wrong in silence ---


def test_second_derivatives_of_the_loss() -> None:
    """The loss is beta / n ||z - sg[q]||^2, whose Hessian is 2 beta / n times the identity."""
    for options in ({}, {"ema": False}):
        vq = VectorQuantizer(5, 3, commitment_cost=0.5, **options).double().eval()
        z = vectors(1)[:2, :3].double()
        hessian = torch.autograd.functional.hessian(lambda x, vq=vq: vq(x).loss, z).reshape(6, 6)
        assert torch.allclose(hessian, torch.eye(6, dtype=torch.float64) * (2 * 0.5 / 6))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # of torch itself
@pytest.mark.parametrize("training", [True, False])
def test_derivatives_in_forward_mode_are_refused_and_not_zero(training: bool) -> None:
    vq = VectorQuantizer(5, 4).train(training)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward"):
        vq(forward_ad.make_dual(vectors(1), vectors(2)))


def test_second_derivatives_through_the_codes() -> None:
    """The gradient passes the codes unchanged, so a second derivative is that of what follows, at the codes."""
    vq = VectorQuantizer(5, 3).double().eval()
    z = vectors(1)[:2, :3].double()
    hessian = torch.autograd.functional.hessian(lambda x: vq(x).quantize.pow(3).sum(), z).reshape(6, 6)
    assert torch.allclose(hessian, torch.diag(6 * vq(z).quantize.flatten()))


@pytest.mark.parametrize("build", [
    lambda: VectorQuantizer(6, 4), lambda: VectorQuantizer(6, 4, ema=False), lambda: FiniteScalarQuantizer(6, 4),
])  # fmt: skip
def test_a_frozen_quantiser_learns_nothing_until_it_is_let(build: Callable[[], Quantizer]) -> None:
    model = torch.nn.Sequential(build()).train()
    quantizer = model[0]
    assert isinstance(quantizer, Quantizer)
    model(vectors(0)[:, :4])
    quantizer.frozen = True
    before = state(quantizer)
    z = vectors(1)[:, :4].requires_grad_()
    model.train()(z).quantize.sum().backward()
    assert_same(state(quantizer), before)
    assert z.grad is not None
    assert z.grad.abs().sum() > 0
    assert "frozen" in repr(quantizer)
    quantizer.frozen = False
    model.train()(z)
    assert not torch.equal(quantizer.ema_count, before["ema_count"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_codebook_of_half_precision_does_not_train(dtype: torch.dtype) -> None:
    """70,000 vectors of one code are more than float16 can count."""
    vq = VectorQuantizer(6, 4).to(dtype)
    with pytest.raises(UserError, match="autocast"):
        vq(vectors(0)[:, :4].to(dtype))
    vq.eval()(vectors(0)[:, :4].to(dtype))


@pytest.mark.parametrize("build", [VectorQuantizer, FiniteScalarQuantizer])
def test_integers_and_decays_out_of_range_are_refused(build: Callable[..., Quantizer]) -> None:
    with pytest.raises(ValueError, match="floating-point"):
        build(6, 2)(torch.tensor([[1, 2]]))
    for decay in (5.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="decay"):
            build(6, 2, decay=decay)


def test_every_argument_is_printed() -> None:
    said = repr(VectorQuantizer(6, 4, 0.5, 0.9, 1e-3, "sonnet", False, True, 0.25))
    for part in ("6, 4", "0.5", "0.9", "0.001", "'sonnet'", "revive=False", "ema=True", "0.25"):
        assert part in said
    assert "6, 4, decay=0.9" in repr(FiniteScalarQuantizer(6, 4, 0.9))
