"""A training step never waits for the device: no value of a tensor is read on the host, and no shape depends on one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dispatch_modes import NoFloat64, NoSynchronisation
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from vqvae2.autoencoder import base, revival
from vqvae2.autoencoder.fsq import FiniteScalarQuantizer
from vqvae2.autoencoder.model import VQVAE
from vqvae2.autoencoder.quantizer import VectorQuantizer
from vqvae2.config.models import AutoencoderConfig

QUANTIZERS: list[dict[str, Any]] = [
    {}, {"init": "sonnet"}, {"revive": False}, {"ema": False}, {"entropy_penalty": 0.5}, {"init": "sonnet", "entropy_penalty": -0.5},
]  # fmt: skip
MODELS: list[dict[str, Any]] = [
    {}, {"entropy_penalty": 0.2, "nested_dropout": 0.5}, {"quantizer": "fsq"}, {"init": "sonnet", "revive": False}, {"ema": False},
]  # fmt: skip


def autoencoder(options: dict[str, Any]) -> VQVAE:
    """A small one."""
    small: dict[str, Any] = {"strides": (2, 2), "codes": (16, 12), "code_dim": 4, "hidden": 8, "residual": 4}
    return VQVAE(AutoencoderConfig(**(small | options)))


def steps(net: nn.Module, batches: list[Tensor]) -> None:
    """A training step for each batch: forward, loss, backward."""
    for batch in batches:
        out = net(batch)
        loss = out.images.sum() + out.commitment if hasattr(out, "images") else out.quantize.sum() + out.loss
        loss.backward()


def vectors(device: str = "cpu") -> list[Tensor]:
    """Batches around a centre that moves, so that codes fall idle and are revived."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(40, 4, generator=generator) + 5 * (step // 3)).to(device).requires_grad_()
        for step in range(9)
    ]


def images(device: str = "cpu") -> list[Tensor]:
    """Three batches of noise."""
    return [torch.rand(4, 3, 16, 16, device=device) * 2 - 1 for _ in range(3)]


@pytest.mark.parametrize("options", QUANTIZERS, ids=str)
def test_a_step_of_the_quantiser_reads_nothing(options: dict[str, Any]) -> None:
    vq = VectorQuantizer(16, 4, **options)
    with NoSynchronisation():
        steps(vq, vectors())
        vq.eval()(vectors()[0])


@pytest.mark.parametrize("options", MODELS, ids=str)
def test_a_step_of_the_autoencoder_reads_nothing(options: dict[str, Any]) -> None:
    net = autoencoder(options)
    with NoSynchronisation():
        steps(net, images())
        net.eval()(images()[0])


@pytest.mark.parametrize("read", [
    lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: bool((x > 0).any()),
    lambda x: x.long().abs().bincount(), lambda x: x.unique(), lambda x: x.index_put_((x > 0,), torch.zeros(())),
])  # fmt: skip
def test_the_check_sees_what_waits(read: Any) -> None:
    with NoSynchronisation(), pytest.raises(AssertionError, match="wait"):
        read(torch.randn(5))


def test_a_mode_that_forbids_float64_does() -> None:
    with NoFloat64(), pytest.raises(AssertionError, match="makes a float64"):
        torch.ones(2).double()


@pytest.mark.parametrize("options", MODELS, ids=str)
def test_a_step_needs_no_value_and_no_other_device(options: dict[str, Any]) -> None:
    """Tensors of the device "meta" have no values and refuse to meet others: what runs on it stays on one device."""
    net = autoencoder(options).to("meta")
    steps(net, images("meta"))
    assert all(p.grad is None or p.grad.device.type == "meta" for p in net.parameters())


@pytest.mark.parametrize("options", MODELS, ids=str)
def test_no_float64_where_the_device_has_none(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MPS has no float64. Here the CPU pretends to be such a device, and every operator's results are looked at."""
    monkeypatch.setattr(base, "widest_float", lambda device: torch.float32)
    net = autoencoder(options)
    with NoFloat64():
        steps(net, images())
        net.eval()
        net.decode(net.encode(images()[0]), 1)


def test_the_widest_float_of_a_device() -> None:
    assert base.widest_float(torch.device("mps")) == torch.float32
    assert base.widest_float(torch.device("cpu")) == base.widest_float(torch.device("cuda")) == torch.float64


# --- the quantiser's own random numbers ---


def test_the_noise_is_uniform_and_new_at_every_step() -> None:
    noise = torch.stack([
        revival.hashed_uniform(torch.tensor(step), 0, 4096) for step in range(64)
    ]).double()  # fmt: skip
    assert (noise > 0).all()
    assert (noise <= 1).all()
    share = torch.histc(noise, 32, 0, 1) / noise.numel()
    assert (share * 32 - 1).abs().max() < 0.05, "262,144 numbers, 8,192 in each of 32 bins, give or take 90"
    centred = noise - noise.mean()
    between_steps = centred @ centred.T / centred.square().sum(1)
    assert (between_steps - torch.eye(64)).abs().max() < 0.1, "1 / sqrt(4096) is .016"
    for lag in (1, 2, 64):
        along = (centred[:, lag:] * centred[:, :-lag]).mean() / centred.square().mean()
        assert along.abs() < 0.02


def test_the_noise_belongs_to_the_row_of_the_global_batch() -> None:
    step = torch.tensor(7)
    whole = revival.hashed_uniform(step, 0, 100)
    assert torch.equal(torch.cat([revival.hashed_uniform(step, 50 * rank, 50) for rank in (0, 1)]), whole)


def test_the_noise_is_the_hash_and_no_index_overflows_in_its_graph() -> None:
    """Compiled code turns a product with `arange` into an index; one beyond 63 bits is undefined in C++, and a loop over it never ended."""
    step, start, wrap = 3, 2**30, 2**64
    found = revival.hashed_uniform(torch.tensor(step), start, 100)

    def signed(number: int) -> int:
        return (number + 2**63) % wrap - 2**63

    for row in range(100):
        mixed = signed((start + row) * revival._ROW + step * revival._STEP)
        mixed = signed((mixed ^ (mixed >> 32)) * revival._MIX)
        assert found[row] == torch.tensor((mixed >> 33) & 0x7FFFFFFF).float().add(0.5) * 2.0**-31
    graph = make_fx(lambda step: revival.hashed_uniform(step, start, 100))(torch.tensor(step)).graph
    rows = {node for node in graph.nodes if "arange" in str(node.target)}
    factors = [node.args[1] for node in graph.nodes if "mul" in str(node.target) and node.args[0] in rows]
    assert len(factors) == 2
    assert all(isinstance(factor, int) and abs(factor) < 2**32 for factor in factors)


@pytest.mark.parametrize("first", [0, 1000])
def test_vectors_are_drawn_in_proportion_to_their_error(first: int) -> None:
    """The first of two draws is a plain draw by weight; in 2,000 steps every vector is drawn about as often as it should."""
    flat = torch.arange(5.0)[:, None]
    error = torch.tensor([0.0, 1.0, 2.0, 5.0, torch.inf])
    drawn = torch.zeros(5)
    for step in range(first, first + 2000):
        found, count = revival.draw_by_error(flat, error, 4, torch.tensor(step))
        assert int(count) == 3, "error 0 is already a code, and an error that is not finite is no candidate"
        assert found[:3].unique().numel() == 3
        drawn[int(found[0])] += 1
    assert drawn[0] == drawn[4] == 0
    assert torch.allclose(drawn[1:4] / 2000, torch.tensor([1.0, 2.0, 5.0]) / 8, atol=0.04)


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (7, 3), (64, 8), (100, 64), (8, 8), (3, 8), (1, 5)])
def test_the_first_codes_are_distinct_rows_from_all_over_the_batch(rows: int, count: int) -> None:
    flat = torch.arange(float(rows))[:, None]
    jitter = revival.hashed_uniform(torch.tensor(0), 0, count)
    drawn = revival.spread_rows(flat, jitter)[:, 0].long()
    assert drawn.shape == (count,)
    least = min(rows, count)
    assert len(drawn.unique()) == least, "every row before any row twice"
    assert (drawn[:least].diff() > 0).all()
    assert (drawn[:least] * count // rows - torch.arange(least)).abs().max() <= 1 or rows < count


# --- compiled ---


@pytest.mark.parametrize("options", QUANTIZERS, ids=str)
def test_the_quantiser_compiles_without_a_break(options: dict[str, Any]) -> None:
    """And the compiled one does what the other does, step by step, also when the number of vectors changes."""
    torch.manual_seed(0)
    plain = VectorQuantizer(16, 4, **options)
    other = VectorQuantizer(16, 4, **options)
    other.load_state_dict(plain.state_dict())
    torch.compiler.reset()
    compiled = torch.compile(other, fullgraph=True, backend="eager")
    for batch in [*vectors(), *(vectors()[8].detach()[:rows].requires_grad_() for rows in (25, 11, 0))]:
        a, b = plain(batch), compiled(batch)
        assert torch.equal(a.encoding_indices, b.encoding_indices)
        assert torch.equal(a.quantize, b.quantize)
        torch.testing.assert_close(a.loss, b.loss)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value)
    plain.eval(), other.eval()
    assert torch.equal(plain(vectors()[8]).quantize, compiled(vectors()[8]).quantize)


def test_fsq_compiles_without_a_break() -> None:
    torch.manual_seed(0)
    fsq = FiniteScalarQuantizer(24, 4)
    torch.compiler.reset()
    compiled = torch.compile(fsq, fullgraph=True, backend="eager")
    batch = vectors()[0]
    assert torch.equal(fsq(batch).quantize, compiled(batch).quantize)
