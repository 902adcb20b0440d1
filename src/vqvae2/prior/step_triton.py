# mypy: disable-error-code="import-not-found, no-untyped-def, untyped-decorator"
# ruff: noqa: PLR0913 - a kernel takes each pointer and size as an argument of its own
"""The operations of a static step as fused Triton kernels, for NVIDIA and AMD GPUs: see `step_ops.StepOps` for what each computes.

At small batches a step is bound by the latency of its kernels and by reading the weights, so each kernel does as much as it
can without waiting for another: a gated layer is two kernels, an attention layer three. Every program holds a few outputs of
a few images and reads the weights' rows once; sums are in float32. Their order depends on the size of the batch (1, up to 16, more:
`_blocks`), so the same image drawn in batches of two sizes has logits that differ by float32 rounding. At batches above `LARGE_BATCH`
the library's matrix products are faster, and only what lies between them is fused.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from vqvae2.prior.chooser import Chooser
from vqvae2.prior.layers import EPSILON
from vqvae2.prior.step_ops import StepOps

LARGE_BATCH = 64
"""Above this many rows, products are the library's."""

_CHOICES = 16384  # codes of which one program can choose
_ACTIVATIONS = {"": 0, "relu": 1, "gelu": 2}


@triton.jit
def _gated(a, s):
    small = tl.exp(-2.0 * tl.abs(a))
    tanh = (1.0 - small) / (1.0 + small)
    return tl.where(a < 0, -tanh, tanh) / (1.0 + tl.exp(-s))


@triton.jit
def _norm_gate(
    h, weight, before, normed, out, batch, inner, before_stride, normed_stride,
    C: tl.constexpr, EPS: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    b = tl.program_id(1) * BB + tl.arange(0, BB)
    in_n, in_b = n < inner, b < batch
    tanh_sum = tl.zeros([BB, BN, BK], tl.float32)
    sigmoid_sum = tl.zeros([BB, BN, BK], tl.float32)
    squares = tl.zeros([BB, BK], tl.float32)
    for start in tl.static_range(0, C, BK):
        k = start + tl.arange(0, BK)
        in_k = k < C
        x = tl.load(h + b[:, None] * C + k[None, :], mask=in_b[:, None] & in_k[None, :], other=0.0)
        squares += x * x
        rows = n[:, None] * C + k[None, :]
        in_rows = in_n[:, None] & in_k[None, :]
        w = tl.load(weight + rows, mask=in_rows, other=0.0).to(tl.float32)
        tanh_sum += x[:, None, :] * w[None, :, :]
        w = tl.load(weight + inner * C + rows, mask=in_rows, other=0.0).to(tl.float32)
        sigmoid_sum += x[:, None, :] * w[None, :, :]
    scale = tl.rsqrt(tl.sum(squares, 1) / C + EPS)
    in_out = in_b[:, None] & in_n[None, :]
    cell = b[:, None] * before_stride + n[None, :]
    a = tl.sum(tanh_sum, 2) * scale[:, None]
    a += tl.load(before + cell, mask=in_out, other=0.0).to(tl.float32)
    s = tl.sum(sigmoid_sum, 2) * scale[:, None]
    s += tl.load(before + inner + cell, mask=in_out, other=0.0).to(tl.float32)
    y = _gated(a, s)
    tl.store(out + b[:, None] * inner + n[None, :], y.to(out.dtype.element_ty), mask=in_out)
    if tl.program_id(0) == 0:
        for start in tl.static_range(0, C, BK):
            k = start + tl.arange(0, BK)
            inside = in_b[:, None] & (k < C)[None, :]
            x = tl.load(h + b[:, None] * C + k[None, :], mask=inside, other=0.0) * scale[:, None]
            tl.store(
                normed + b[:, None] * normed_stride + k[None, :], x.to(normed.dtype.element_ty), mask=inside
            )


@triton.jit
def _linear_add(
    x, weight, bias, h, batch, outputs,
    N: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    b = tl.program_id(1) * BB + tl.arange(0, BB)
    in_n, in_b = n < outputs, b < batch
    total = tl.zeros([BB, BN, BK], tl.float32)
    for start in tl.static_range(0, N, BK):
        k = start + tl.arange(0, BK)
        in_k = k < N
        v = tl.load(x + b[:, None] * N + k[None, :], mask=in_b[:, None] & in_k[None, :], other=0.0)
        w = tl.load(weight + n[:, None] * N + k[None, :], mask=in_n[:, None] & in_k[None, :], other=0.0)
        total += v.to(tl.float32)[:, None, :] * w.to(tl.float32)[None, :, :]
    in_out = in_b[:, None] & in_n[None, :]
    cell = h + b[:, None] * outputs + n[None, :]
    y = tl.sum(total, 2) + tl.load(bias + n, mask=in_n, other=0.0)[None, :]
    tl.store(cell, tl.load(cell, mask=in_out, other=0.0) + y, mask=in_out)


@triton.jit
def _norm_linear(
    h, weight, bias, out, batch, outputs,
    C: tl.constexpr, EPS: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    BB: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    b = tl.program_id(1) * BB + tl.arange(0, BB)
    in_n, in_b = n < outputs, b < batch
    total = tl.zeros([BB, BN, BK], tl.float32)
    squares = tl.zeros([BB, BK], tl.float32)
    for start in tl.static_range(0, C, BK):
        k = start + tl.arange(0, BK)
        in_k = k < C
        x = tl.load(h + b[:, None] * C + k[None, :], mask=in_b[:, None] & in_k[None, :], other=0.0)
        squares += x * x
        w = tl.load(weight + n[:, None] * C + k[None, :], mask=in_n[:, None] & in_k[None, :], other=0.0)
        total += x[:, None, :] * w.to(tl.float32)[None, :, :]
    y = tl.sum(total, 2) * tl.rsqrt(tl.sum(squares, 1) / C + EPS)[:, None]
    if HAS_BIAS:
        y += tl.load(bias + n, mask=in_n, other=0.0)[None, :]
    if ACTIVATION == 1:
        y = tl.maximum(y, 0.0)
    if ACTIVATION == 2:
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    in_out = in_b[:, None] & in_n[None, :]
    tl.store(out + b[:, None] * outputs + n[None, :], y.to(out.dtype.element_ty), mask=in_out)


@triton.jit
def _norm_rows(x, out, rows, out_stride, C: tl.constexpr, EPS: tl.constexpr, BC: tl.constexpr):
    m = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BC)
    inside = c < C
    v = tl.load(x + m * C + c, mask=inside, other=0.0)
    v = v * tl.rsqrt(tl.sum(v * v, 0) / C + EPS)
    tl.store(out + m * out_stride + c, v.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gate_rows(x, out, inner, BR: tl.constexpr):
    m = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1) * BR + tl.arange(0, BR)
    inside = r < inner
    a = tl.load(x + m * 2 * inner + r, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(x + m * 2 * inner + inner + r, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + m * inner + r, _gated(a, s).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _add_rows(h, y, bias, C: tl.constexpr, BC: tl.constexpr):
    m = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BC)
    inside = c < C
    v = tl.load(h + m * C + c, mask=inside, other=0.0) + tl.load(y + m * C + c, mask=inside, other=0.0).to(
        tl.float32
    )
    tl.store(h + m * C + c, v + tl.load(bias + c, mask=inside, other=0.0), mask=inside)


@triton.jit(do_not_specialize=["column"])
def _attend(
    qkv, cache, row, out, column, width, positions, batch, heads,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64)  # of image and head
    image, head = pair // heads, pair % heads
    position = (tl.load(row) * width + column).to(tl.int32)
    d = tl.arange(0, BD)
    in_d = d < D
    own = qkv + image * 3 * heads * D + head * D + d
    q = tl.load(own, mask=in_d, other=0.0).to(tl.float32)
    own_k = tl.load(own + heads * D, mask=in_d, other=0.0)
    own_v = tl.load(own + 2 * heads * D, mask=in_d, other=0.0)
    keys = cache + pair * positions * D
    values = keys + tl.cast(batch, tl.int64) * heads * positions * D
    tl.store(keys + position * D + d, own_k, mask=in_d)
    tl.store(values + position * D + d, own_v, mask=in_d)
    top = tl.sum(q * own_k.to(tl.float32), 0)
    total = 1.0
    mixed = own_v.to(tl.float32)
    for start in range(0, position, BN):
        n = start + tl.arange(0, BN)
        inside = (n < position)[:, None] & in_d[None, :]
        cells = n[:, None] * D + d[None, :]
        k = tl.load(keys + cells, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(values + cells, mask=inside, other=0.0).to(tl.float32)
        scores = tl.where(n < position, tl.sum(k * q[None, :], 1), float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 0))
        shrink = tl.exp(top - new_top)
        p = tl.exp(scores - new_top)
        total = total * shrink + tl.sum(p, 0)
        mixed = mixed * shrink + tl.sum(p[:, None] * v, 0)
        top = new_top
    tl.store(out + pair * D + d, (mixed / total).to(out.dtype.element_ty), mask=in_d)


@triton.jit(do_not_specialize=["column"])
def _embed(codes, table, rows, columns, row, out, column, width, batch, C: tl.constexpr, BC: tl.constexpr):
    b = tl.program_id(0)
    c = tl.arange(0, BC)
    inside = c < C
    r = tl.load(row)
    code = tl.load(codes + (r * width + width + column - 1) * batch + b)
    x = tl.load(rows + r * C + c, mask=inside, other=0.0) + tl.load(
        columns + column * C + c, mask=inside, other=0.0
    )
    x += tl.load(table + code * C + c, mask=inside, other=0.0)
    tl.store(out + b * C + c, x, mask=inside)


@triton.jit
def _largest(p, bits, least, BY_COUNT: tl.constexpr):
    """Zero all of `p` but the fewest largest that are `least` in number, or that sum up to `least`.

    Bisection over the bits of the threshold: as integers, positive floating-point numbers have the same order.
    """
    low = tl.min(bits, 0) - 1  # here it holds that what is larger reaches `least`; at `high` it does not
    high = tl.max(bits, 0)
    while high - low > 1:
        middle = low + (high - low) // 2
        larger = bits > middle
        if BY_COUNT:
            reached = tl.sum(tl.where(larger, 1.0, 0.0), 0) >= least
        else:
            reached = tl.sum(tl.where(larger, p, 0.0), 0) >= least
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle)
    return tl.where(bits >= high, p, 0.0)


@triton.jit(do_not_specialize=["column"])
def _choose(
    logits, uniforms, known, settings, codes, row, column, width, batch,
    K: tl.constexpr, BK: tl.constexpr, GREEDY: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr,
    GUIDED: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    k = tl.arange(0, BK)
    inside = k < K
    position = tl.load(row) * width + column
    x = tl.load(logits + b * K + k, mask=inside, other=0.0).to(tl.float64)
    if GUIDED:
        free = tl.load(logits + (batch + b) * K + k, mask=inside, other=0.0).to(tl.float64)
        x = free + tl.load(settings + 1) * (x - free)
    x = tl.where(inside, x, float("-inf"))
    top = tl.max(x, 0)
    if GREEDY:
        code = tl.min(tl.where(x == top, k, BK), 0).to(tl.int64)
    else:
        p = tl.exp((x - top) / tl.load(settings))
        p = tl.where(inside, p, 0.0)
        if TOP_K:
            p = _largest(p, p.to(tl.int64, bitcast=True), tl.load(settings + 2), True)
        if TOP_P:
            p = _largest(p, p.to(tl.int64, bitcast=True), tl.load(settings + 3) * tl.sum(p, 0), False)
        edges = tl.cumsum(p, 0)
        target = tl.load(uniforms + position * batch + b) * tl.max(edges, 0)
        code = tl.sum(tl.where((edges <= target) & inside, 1, 0), 0)
        code = tl.minimum(code, tl.max(tl.where(p > 0, k, 0), 0)).to(tl.int64)
    kept = tl.load(known + position * batch + b)
    code = tl.where(kept < 0, code, kept)
    doubled = 2 * batch if GUIDED else batch
    tl.store(codes + (position + width) * doubled + b, code)
    if GUIDED:
        tl.store(codes + (position + width) * doubled + batch + b, code)


def _power(n: int) -> int:
    return int(triton.next_power_of_2(n))


class TritonStepOps(StepOps):
    """`StepOps` for float32 streams. Arguments and results are those of `StepOps`; `h` is written in place."""

    def __init__(self, large_batch: int = LARGE_BATCH) -> None:
        self.large_batch = large_batch

    def norm(self, x: Tensor, out: Tensor) -> None:
        """As `StepOps.norm`; the rows of `out` may be apart."""
        channels = x.shape[-1]
        rows = x.numel() // channels
        apart = out.stride(0) if out.ndim == 2 else channels
        _norm_rows[(rows,)](
            x, out, rows, apart, channels, EPSILON, _power(channels), num_warps=_warps(channels)
        )

    def norm_gate(self, h: Tensor, weight: Tensor, before: Tensor, normed: Tensor) -> Tensor:
        """As `StepOps.norm_gate`."""
        batch, channels = h.shape
        if batch > self.large_batch:
            self.norm(h, normed)
            return self.gate(torch.addmm(before, normed, weight.T))
        inner = len(weight) // 2
        out = torch.empty(batch, inner, dtype=weight.dtype, device=h.device)
        bb, bn, bk = _blocks(batch, channels)
        _norm_gate[(triton.cdiv(inner, bn), triton.cdiv(batch, bb))](
            h, weight, before, normed, out, batch, inner, before.stride(0), normed.stride(0),
            channels, EPSILON, bb, bn, bk,
        )  # fmt: skip
        return out

    def gate(self, x: Tensor) -> Tensor:
        """As `StepOps.gate`."""
        rows, inner = x.shape[0], x.shape[1] // 2
        out = torch.empty(rows, inner, dtype=x.dtype, device=x.device)
        block = min(_power(inner), 1024)
        _gate_rows[(rows, triton.cdiv(inner, block))](x, out, inner, block)
        return out

    def linear_add(self, x: Tensor, weight: Tensor, bias: Tensor, h: Tensor) -> Tensor:
        """As `StepOps.linear_add`."""
        batch, inputs = x.shape
        outputs = len(weight)
        if batch > self.large_batch:
            _add_rows[(batch,)](h, functional.linear(x, weight), bias, outputs, _power(outputs))
            return h
        bb, bn, bk = _blocks(batch, inputs)
        grid = (triton.cdiv(outputs, bn), triton.cdiv(batch, bb))
        _linear_add[grid](x, weight, bias, h, batch, outputs, inputs, bb, bn, bk)
        return h

    def norm_linear(self, h: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """As `StepOps.norm_linear`."""
        batch, channels = h.shape
        if batch > self.large_batch:
            return super().norm_linear(h, weight, bias, activation)
        out = torch.empty(batch, len(weight), dtype=weight.dtype, device=h.device)
        bb, bn, bk = _blocks(batch, channels)
        grid = (triton.cdiv(len(weight), bn), triton.cdiv(batch, bb))
        _norm_linear[grid](
            h, weight, h if bias is None else bias, out, batch, len(weight),
            channels, EPSILON, bias is not None, _ACTIVATIONS[activation], bb, bn, bk,
        )  # fmt: skip
        return out

    def attend(self, qkv: Tensor, cache: Tensor, row: Tensor, column: int, width: int) -> Tensor:
        """As `StepOps.attend`, over the positions so far only."""
        _, batch, heads, positions, depth = cache.shape
        out = torch.empty(batch, heads * depth, dtype=qkv.dtype, device=qkv.device)
        _attend[(batch * heads,)](
            qkv, cache, row, out, column, width, positions, batch, heads, depth, _power(depth), 128
        )
        return out

    def embed(
        self, codes: Tensor, table: Tensor, rows: Tensor, columns: Tensor, row: Tensor, column: int
    ) -> Tensor:
        """As `StepOps.embed`."""
        (width, channels), batch = columns.shape, codes.shape[1]
        out = torch.empty(batch, channels, dtype=table.dtype, device=table.device)
        _embed[(batch,)](
            codes, table, rows, columns, row, out, column, width, batch, channels, _power(channels)
        )
        return out

    def choose(
        self, chooser: Chooser, logits: Tensor, codes: Tensor, row: Tensor, column: int, width: int
    ) -> None:
        """As `StepOps.choose`; symbols of exactly equal probability at the edge of top-k or top-p are all kept."""
        choices, rule = logits.shape[1], chooser.rule
        if choices > _CHOICES:
            super().choose(chooser, logits, codes, row, column, width)
            return
        batch = chooser.uniforms.shape[1]
        options: dict[str, Any] = {
            "GREEDY": rule.temperature == 0,
            "TOP_K": 0 < rule.top_k < choices,
            "TOP_P": rule.top_p < 1,
            "GUIDED": rule.guided,
        }
        _choose[(batch,)](
            logits, chooser.uniforms, chooser.known, chooser.settings, codes, row, column, width, batch,
            choices, _power(choices), num_warps=_warps(choices), **options,
        )  # fmt: skip


def _blocks(batch: int, inputs: int) -> tuple[int, int, int]:
    """Images, outputs and inputs that a program of 128 threads holds at once."""
    if batch == 1:
        return 1, 4, min(_power(inputs), 512)
    return (4, 8, min(_power(inputs), 128)) if batch <= 16 else (8, 8, min(_power(inputs), 64))


def _warps(elements: int) -> int:
    return 4 if elements <= 2048 else 8
