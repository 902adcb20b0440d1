"""The causal layers: one step at a time is the whole grid, and each output sees exactly what it may."""

from __future__ import annotations

import pytest
import torch
from prior_helpers import TOLERANCE, area, influences, noise, positions, randomise
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vqvae2.prior import attention
from vqvae2.prior.attention import CausalAttention, attend
from vqvae2.prior.gated import GatedLayer, HorizontalConv, VerticalConv, gate
from vqvae2.prior.layers import ChannelNorm, Pointwise, PointwiseBlock

both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
kernels = pytest.mark.parametrize("kernel", [3, 5, 7])
grids = pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (5, 1), (3, 5), (6, 4)])


def close(a: Tensor, b: Tensor) -> bool:
    """To the precision of their type, and not because nothing is there."""
    assert a.shape == b.shape
    assert b.std() > 1e-3
    return bool((a - b).abs().max() < TOLERANCE[a.dtype])


# --- one step at a time ---


@both_precisions
@kernels
@grids
def test_vertical_steps_by_rows(dtype: torch.dtype, kernel: int, height: int, width: int) -> None:
    layer = randomise(VerticalConv(3, 4, kernel)).to(dtype)
    x = noise(2, 3, height, width, dtype=dtype)
    cache, rows = layer.start(x[:, :, 0]), []
    for r in range(height):
        y, cache = layer.step(x[:, :, r], cache)
        rows.append(y)
    assert close(torch.stack(rows, 2), layer(x))


@both_precisions
@kernels
@grids
def test_horizontal_steps_by_positions(dtype: torch.dtype, kernel: int, height: int, width: int) -> None:
    """Every row starts with an empty cache."""
    layer = randomise(HorizontalConv(3, 4, kernel)).to(dtype)
    x = noise(2, 3, height, width, dtype=dtype)
    outputs = []
    for r in range(height):
        cache = layer.start(x[:, :, 0, 0])
        for c in range(width):
            y, cache = layer.step(x[:, :, r, c], cache)
            outputs.append(y)
    assert close(torch.stack(outputs, 2).view(2, 4, height, width), layer(x))


@both_precisions
@grids
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_steps_by_positions(dtype: torch.dtype, height: int, width: int, heads: int) -> None:
    layer = randomise(CausalAttention(8, heads, 0.5)).to(dtype).eval()
    x = noise(2, 8, height, width, dtype=dtype)
    cache, outputs = layer.start(x[:, :, 0, 0], height * width), []
    for position, (r, c) in enumerate(positions(height, width)):
        y, cache = layer.step(x[:, :, r, c], cache, position)
        outputs.append(y)
    assert close(torch.stack(outputs, 2).view_as(x), layer(x))


@both_precisions
@kernels
@grids
@pytest.mark.parametrize("given", ["nothing", "one vector", "a map"])
def test_gated_layer_steps_by_rows_and_positions(
    dtype: torch.dtype, kernel: int, height: int, width: int, given: str
) -> None:
    layer = randomise(GatedLayer(6, 5, kernel, 0 if given == "nothing" else 3, 0.5)).to(dtype).eval()
    v, h = noise(2, 6, height, width, dtype=dtype), noise(2, 6, height, width, seed=2, dtype=dtype)
    context = {
        "nothing": None,
        "one vector": noise(2, 3, 1, 1, seed=3, dtype=dtype),
        "a map": noise(2, 3, height, width, seed=3, dtype=dtype),
    }[given]
    whole_v, whole_h = layer(v, h, context)
    above, rows, outputs = layer.vertical.start(v[:, :, 0]), [], []
    for r in range(height):
        row_context = None if context is None else context[:, :, r if given == "a map" else 0]
        row, features, above = layer.step_row(v[:, :, r], above, row_context)
        rows.append(row)
        left = layer.horizontal.start(h[:, :, 0, 0])
        for c in range(width):
            y, left = layer.step(h[:, :, r, c], features[:, :, c], left)
            outputs.append(y)
    assert close(torch.stack(rows, 2), whole_v)
    assert close(torch.stack(outputs, 2).view_as(h), whole_h)


@both_precisions
def test_pointwise_layers_are_one_function_of_grids_rows_and_positions(dtype: torch.dtype) -> None:
    x = noise(2, 6, 3, 5, dtype=dtype)
    for layer in (Pointwise(6, 4), Pointwise(6, 4, bias=False), PointwiseBlock(6, 5, 0.5), ChannelNorm(6)):
        layer = randomise(layer).to(dtype).eval()
        rows = torch.stack([layer(x[:, :, r]) for r in range(3)], 2)
        single = torch.stack([layer(x[:, :, r, c]) for r, c in positions(3, 5)], 2)
        whole = layer(x)
        assert close(rows, whole)
        assert close(single.view_as(whole), whole)


def test_steps_of_the_convolutions_leave_the_old_cache_alone() -> None:
    """So a state may be stepped twice, with another symbol each time."""
    for layer, x in (
        (randomise(VerticalConv(3, 4, 5)).double(), noise(2, 3, 6)),
        (randomise(HorizontalConv(3, 4, 5)).double(), noise(2, 3)),
    ):
        _, cache = layer.step(x, layer.start(x))
        before = cache.clone()
        first, _ = layer.step(2 * x, cache)
        layer.step(3 * x, cache)
        again, _ = layer.step(2 * x, cache)
        assert torch.equal(cache, before)
        assert torch.equal(first, again)


# --- who sees whom ---


@kernels
def test_vertical_sees_a_half_window_above(kernel: int) -> None:
    layer, s = randomise(VerticalConv(3, 4, kernel)).double(), kernel // 2
    x = noise(1, 3, 6, 7).requires_grad_()
    y = layer(x)
    for r, c in positions(6, 7):
        expected = area(6, 7, lambda i, j, r=r, c=c: r - s <= i <= r and abs(j - c) <= s)
        assert torch.equal(influences(y[:, :, r, c], x), expected)


@kernels
def test_horizontal_sees_a_half_row(kernel: int) -> None:
    layer, s = randomise(HorizontalConv(3, 4, kernel)).double(), kernel // 2
    x = noise(1, 3, 3, 7).requires_grad_()
    y = layer(x)
    for r, c in positions(3, 7):
        expected = area(3, 7, lambda i, j, r=r, c=c: i == r and c - s <= j <= c)
        assert torch.equal(influences(y[:, :, r, c], x), expected)


@both_precisions
def test_attention_sees_all_that_came_before_and_itself(dtype: torch.dtype) -> None:
    layer = randomise(CausalAttention(8, 2, 0.0)).to(dtype)
    x = noise(1, 8, 4, 5, dtype=dtype).requires_grad_()
    y = layer(x)
    for r, c in positions(4, 5):
        expected = area(4, 5, lambda i, j, r=r, c=c: (i, j) <= (r, c))
        assert torch.equal(influences(y[:, :, r, c], x), expected)


@kernels
def test_gated_layer_has_no_blind_spot_and_looks_at_nothing_later(kernel: int) -> None:
    """The horizontal stream sees the half row and, through the vertical one, the whole half window above."""
    layer, s = randomise(GatedLayer(6, 5, kernel, 0, 0.0)).double(), kernel // 2
    v, h = noise(1, 6, 5, 7).requires_grad_(), noise(1, 6, 5, 7, seed=2).requires_grad_()
    new_v, new_h = layer(v, h, None)
    for r, c in positions(5, 7):
        window = area(5, 7, lambda i, j, r=r, c=c: r - s <= i <= r and abs(j - c) <= s)
        half_row = area(5, 7, lambda i, j, r=r, c=c: i == r and c - s <= j <= c)
        assert torch.equal(influences(new_v[:, :, r, c], v), window)
        assert not influences(new_v[:, :, r, c], h).any()
        assert torch.equal(influences(new_h[:, :, r, c], v), window)
        assert torch.equal(influences(new_h[:, :, r, c], h), half_row)


def test_pointwise_block_sees_itself_only() -> None:
    block = randomise(PointwiseBlock(6, 5, 0.0)).double()
    x = noise(1, 6, 2, 3).requires_grad_()
    y = block(x)
    for r, c in positions(2, 3):
        assert torch.equal(influences(y[:, :, r, c], x), area(2, 3, lambda i, j, r=r, c=c: (i, j) == (r, c)))


def test_the_context_of_a_gate_reaches_both_streams() -> None:
    layer = randomise(GatedLayer(6, 5, 3, 4, 0.0)).double()
    context = noise(1, 4, 2, 3).requires_grad_()
    v, h = layer(noise(1, 6, 2, 3), noise(1, 6, 2, 3, seed=2), context)
    for r, c in positions(2, 3):
        assert influences(v[:, :, r, c], context)[r, c]
        (grad,) = torch.autograd.grad(h[:, :, r, c].sum(), context, retain_graph=True)
        assert (grad[0, :, r, c] != 0).all()


def test_images_do_not_see_each_other() -> None:
    """Norms and attention included."""
    layer, attention = randomise(GatedLayer(8, 5, 3, 0, 0.0)), randomise(CausalAttention(8, 2, 0.0))
    v, h = noise(3, 8, 3, 4, dtype=torch.float32), noise(3, 8, 3, 4, seed=2, dtype=torch.float32)
    for i in range(3):
        alone = slice(i, i + 1)
        for a, b in zip(layer(v, h, None), layer(v[alone], h[alone], None), strict=True):
            assert torch.allclose(a[alone], b, atol=1e-5)
        assert torch.allclose(attention(h)[alone], attention(h[alone]), atol=1e-5)


# --- what they compute ---


def test_norm_is_root_mean_square_over_channels() -> None:
    norm, x = ChannelNorm(6).double(), 5 * noise(2, 6, 3, 4)
    y = norm(x)
    assert torch.allclose(y.square().mean(1), torch.ones(2, 3, 4, dtype=torch.float64))
    assert torch.allclose(norm(3 * x), y)
    assert torch.allclose(y / y[:, :1], x / x[:, :1])
    nn.init.constant_(norm.gain, 2.0)
    assert torch.allclose(norm(x), 2 * y)
    assert norm(torch.zeros(1, 6)).eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norm_of_small_and_large_numbers_in_half_precision(dtype: torch.dtype) -> None:
    """The mean of squares is taken in float32: in float16 the square of 300 is infinite."""
    norm = ChannelNorm(64).to(dtype)
    for scale in (1e-2, 1.0, 1e3):
        x = (noise(4, 64) * scale).to(dtype)
        expected = x.double() / (x.double().square().mean(1, keepdim=True) + 1e-6).sqrt()
        assert norm(x).dtype == dtype
        assert torch.allclose(norm(x).double(), expected, rtol=2e-2, atol=1e-4)


def test_gate() -> None:
    a, b = noise(2, 3, 4), noise(2, 3, 4, seed=2)
    assert torch.allclose(gate(torch.cat([a, b], 1)), a.tanh() * b.sigmoid())


def test_attention_by_hand() -> None:
    """softmax(q k / sqrt(d)) v over positions 0 .. own, per head, added to the input."""
    layer = randomise(CausalAttention(6, 2, 0.0)).double()
    x = noise(1, 6, 2, 3)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2)[0].view(3, 2, 3, 6)
    mixed = torch.zeros(2, 3, 6, dtype=torch.float64)
    for head in range(2):
        for p in range(6):
            scores = torch.stack([q[head, :, p] @ k[head, :, j] for j in range(p + 1)]) / 3**0.5
            mixed[head, :, p] = (scores.softmax(0) * v[head, :, : p + 1]).sum(1)
    expected = x + layer.out(mixed.reshape(1, 6, 2, 3))
    assert torch.allclose(layer(x), expected, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_attention_is_the_fused_kernels_however_the_grid_lies_in_memory(layout: torch.memory_format) -> None:
    """Which keep no N x N scores; where they cannot be used, this raises."""
    x = noise(2, 8, 4, 5, dtype=torch.float32).to(memory_format=layout)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        CausalAttention(8, 2, 0.0)(x)


def test_gated_layer_by_hand() -> None:
    """The two formulas in its docstring, at a 1 x 1 grid, where both convolutions are their last tap."""
    layer = randomise(GatedLayer(4, 3, 3, 2, 0.0)).double()
    v, h, context = noise(1, 4, 1, 1), noise(1, 4, 1, 1, seed=2), noise(1, 2, 1, 1, seed=3)

    def tap(conv: nn.Conv2d, x: Tensor) -> Tensor:
        """The own position: the last row, and column 1, the middle of three or the last of two."""
        return nn.functional.conv2d(x, conv.weight[:, :, -1:, 1:2], conv.bias)

    assert layer.context is not None
    for_v, for_h = layer.context(context).chunk(2, 1)
    new_v = v + layer.out_v(gate(tap(layer.vertical.conv, layer.norm_v(v)) + for_v))
    inside = tap(layer.horizontal.conv, layer.norm_h(h)) + layer.link(new_v) + for_h
    for a, b in zip(layer(v, h, context), (new_v, h + layer.out_h(gate(inside))), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_pointwise_block_by_hand() -> None:
    block = randomise(PointwiseBlock(4, 3, 0.0)).double()
    x = noise(2, 4)
    inner, outer = block.inner.linear, block.outer.linear
    hidden = (block.norm(x) @ inner.weight.T + inner.bias).clamp(min=0)
    assert torch.allclose(block(x), x + hidden @ outer.weight.T + outer.bias, atol=1e-12)


def test_a_zero_layer_starts_at_zero() -> None:
    layer = Pointwise(4, 3, zero=True)
    assert layer(noise(2, 4, dtype=torch.float32)).eq(0).all()
    assert not Pointwise(4, 3).linear.weight.eq(0).any()


# --- dropout ---


def test_dropout_is_active_in_training_only() -> None:
    x = noise(4, 8, 4, 4)
    for rate, alike in ((0.5, False), (0.0, True)):
        layers = (
            (GatedLayer(8, 6, 3, 0, rate), lambda f: f(x, x, None)[0]),
            (GatedLayer(8, 6, 3, 0, rate), lambda f: f(x, x, None)[1]),
            (CausalAttention(8, 2, rate), lambda f: f(x)),
            (PointwiseBlock(8, 6, rate), lambda f: f(x)),
        )
        for layer, run in layers:
            layer = randomise(layer).double()
            calm = run(layer.eval())
            assert torch.equal(calm, run(layer))
            layer.train()
            assert torch.allclose(calm, run(layer), atol=1e-12) == alike
            assert torch.allclose(run(layer), run(layer), atol=1e-12) == alike


def test_dropout_is_on_the_attention_weights_too() -> None:
    """Dropout after the block alone would leave each output as it is, or doubled."""
    layer = randomise(CausalAttention(8, 2, 0.5)).double()
    x = noise(1, 8, 4, 4)
    calm = layer.eval()(x) - x
    torch.manual_seed(0)
    change = (layer.train()(x) - x) / 2
    kept = change != 0
    assert 0.2 < kept.double().mean() < 0.8
    assert not torch.isclose(change[kept], calm[kept]).any()


# --- without N x N scores ---


@pytest.mark.parametrize("part", [1, 5, 8, 20, 21])
def test_attention_in_parts_is_attention(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each query among the keys up to its own, wherever the parts end; so are its gradients."""
    monkeypatch.setattr(attention, "_PART", part)
    q, k, v = (noise(2, 3, 20, 4, seed=seed).requires_grad_() for seed in (1, 2, 3))
    whole, parts = attend(q, k, v, 0.0), attend(q, k, v, 1e-12)  # a dropout that never comes
    assert torch.allclose(whole, parts, atol=1e-9)
    mix = noise(*whole.shape, seed=4)
    for a, b in zip(*(torch.autograd.grad((y * mix).sum(), (q, k, v)) for y in (whole, parts)), strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_parts_drop_weights_and_drop_the_same_again_in_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What comes out is linear in the values, with the coefficients that are the gradient; on average nothing is lost."""
    monkeypatch.setattr(attention, "_PART", 4)
    torch.manual_seed(0)
    q, k, v = (noise(400, 1, 10, 4, seed=seed)[:1].expand(400, -1, -1, -1) for seed in (1, 2, 3))
    v = v.clone().requires_grad_()
    y = attend(q, k, v, 0.3)
    mix = noise(*y.shape, seed=4)
    (gradient,) = torch.autograd.grad((y * mix).sum(), v)
    assert torch.allclose((gradient * v).sum((1, 2, 3)), (y * mix).sum((1, 2, 3)), atol=1e-9)
    plain = attend(q[:1], k[:1], v[:1], 0.0)
    assert (y - plain).abs().mean() > 0.1
    error = (y.mean(0) - plain[0]).abs() / (y.std(0) / 20)
    assert error.max() < 5
