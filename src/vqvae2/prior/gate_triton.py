# mypy: disable-error-code="import-not-found, no-untyped-def, untyped-decorator"
"""The gate of training as one Triton kernel forward and one backward.

In plain PyTorch the sum before a gate, its two halves, their nonlinearities and their product are six passes over memory forward
and about ten backward. Here each is one.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _tanh(a):
    small = tl.exp(-2.0 * tl.abs(a))
    result = (1.0 - small) / (1.0 + small)
    return tl.where(a < 0, -result, result)


@triton.jit
def _forward(x, y, z, out, inner, HAS_Y: tl.constexpr, BR: tl.constexpr):
    m = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1) * BR + tl.arange(0, BR)
    inside = r < inner
    first, second = m * 2 * inner + r, m * 2 * inner + inner + r
    a = tl.load(x + first, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(x + second, mask=inside, other=0.0).to(tl.float32)
    if HAS_Y:
        a += tl.load(y + first, mask=inside, other=0.0).to(tl.float32)
        s += tl.load(y + second, mask=inside, other=0.0).to(tl.float32)
        tl.store(z + first, a.to(z.dtype.element_ty), mask=inside)
        tl.store(z + second, s.to(z.dtype.element_ty), mask=inside)
    result = _tanh(a) / (1.0 + tl.exp(-s))
    tl.store(out + m * inner + r, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(z, grad, grad_z, inner, BR: tl.constexpr):
    m = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1) * BR + tl.arange(0, BR)
    inside = r < inner
    first, second = m * 2 * inner + r, m * 2 * inner + inner + r
    tanh = _tanh(tl.load(z + first, mask=inside, other=0.0).to(tl.float32))
    sigmoid = 1.0 / (1.0 + tl.exp(-tl.load(z + second, mask=inside, other=0.0).to(tl.float32)))
    g = tl.load(grad + m * inner + r, mask=inside, other=0.0).to(tl.float32)
    d_a = g * sigmoid * (1.0 - tanh * tanh)
    d_s = g * tanh * sigmoid * (1.0 - sigmoid)
    tl.store(grad_z + first, d_a.to(grad_z.dtype.element_ty), mask=inside)
    tl.store(grad_z + second, d_s.to(grad_z.dtype.element_ty), mask=inside)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor | None) -> Tensor:
        batch, channels, height, width = x.shape
        z = x if y is None else torch.empty_like(x, memory_format=torch.channels_last)
        out = torch.empty(
            (batch, channels // 2, height, width),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        grid, block = _grid(x)
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            _forward[grid](x, x if y is None else y, z, out, channels // 2, y is not None, block)
        ctx.save_for_backward(z)
        ctx.both = y is not None
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None]:
        (z,) = ctx.saved_tensors
        grad_z = torch.empty_like(z, memory_format=torch.channels_last)
        grid, block = _grid(z)
        grad = grads[0].to(z.dtype).contiguous(memory_format=torch.channels_last)
        with torch.cuda.device_of(z):  # type: ignore[no-untyped-call]
            _backward[grid](z, grad, grad_z, z.shape[1] // 2, block)
        return grad_z, grad_z if ctx.both else None


def _grid(x: Tensor) -> tuple[tuple[int, int], int]:
    inner = x.shape[1] // 2
    block = min(int(triton.next_power_of_2(inner)), 1024)
    return (x.numel() // x.shape[1], triton.cdiv(inner, block)), block


def fused_gate(x: Tensor, y: Tensor | None) -> Tensor:
    """`gated.gate` of x + y, or of x alone; [B, 2R, H, W] each, of one type, channels contiguous in memory."""
    result: Tensor = _Gate.apply(x, y)  # type: ignore[no-untyped-call]
    return result
