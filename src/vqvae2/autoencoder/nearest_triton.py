"""The search for the nearest code as one Triton kernel: product, running least distance and its index, fused.

The N x K distances exist in registers only. Each program keeps a block of vectors, walks over the codebook in tiles and
remembers, per column of a tile, the least value of ||e||^2 + penalty - 2 z.e and the tile it came from; the columns are
compared at the end. Import this file only where `triton` is installed.

Precision: "ieee" multiplies with fused multiply-adds of float32. "bf16x6" splits every number into three bfloat16
parts, which hold all of its 24 bits, and adds the six products of parts that matter on tensor cores; "tf32x3" is
Triton's own scheme of three TF32 products. In an emulation (D 64, normal vectors) the squared distances were off by at
most 3.8 (ieee), 2.7 (bf16x6) and 6.7 (tf32x3) units of 2^-24 of ||z||^2 + ||e||^2, so all three are exact to float32's
rounding. Plain TF32 was off by 3,100 units and chose other codes: it is not offered.

Shapes: N vectors, D code dimension, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_DIM = (
    128  # beyond it a block of vectors and a tile of codes no longer fit into a core's shared memory
)
_PREPARED = 32  # codes that one program of `_prepare` reads


@dataclass(frozen=True)
class Launch:
    """How the kernel is launched; powers of two, found by measuring.

    Attributes:
        vectors: rows of a block.
        codes: codes of a tile.
        warps: per block.
        stages: tiles in flight.
    """

    vectors: int = 64
    codes: int = 64
    warps: int = 4
    stages: int = 2


_WIDE = Launch(codes=32)  # beyond 64 dimensions: fits the 99 KiB that a core of a small card shares
LAUNCHES = {"ieee": Launch(), "bf16x6": Launch(vectors=128, warps=8), "tf32x3": Launch()}


def nearest_code(
    vectors: Tensor,
    codebook: Tensor,
    penalty: Tensor | None = None,
    precision: str = "bf16x6",
    launch: Launch | None = None,
) -> Tensor:
    """Index of the nearest code of each vector (least squared distance plus penalty), ties to the lowest index.

    Args:
        vectors: [N, D] float32, D at most 128.
        codebook: [K, D] float32.
        penalty: [K] float32, added to the squared distances; None adds nothing.
        precision: how products are computed: "ieee", "bf16x6" or "tf32x3"; see the top of this file.
        launch: the launch; None takes the one of `LAUNCHES`, or a smaller one beyond 64 dimensions.

    Returns:
        [N] int64. A vector that is not finite gets some code of the codebook.

    Raises:
        ValueError: another dtype, a D that is too large, or an unknown precision.
    """
    (count, dim), size = vectors.shape, codebook.shape[0]
    if not vectors.dtype == codebook.dtype == torch.float32 or dim > LARGEST_DIM:
        raise ValueError(
            f"expected float32 and at most {LARGEST_DIM} dimensions, found {vectors.dtype}, {dim} dimensions"
        )
    if precision not in LAUNCHES:
        raise ValueError(f"expected a precision of {', '.join(LAUNCHES)}, found {precision!r}")
    how = launch or (LAUNCHES[precision] if dim <= 64 else _WIDE)
    # Triton's interpreter, which runs the kernels on a CPU for tests, cannot multiply bfloat16
    part = torch.float32 if vectors.device.type == "cpu" else torch.bfloat16
    shared = {
        "SIZE": size,
        "DIM": dim,
        "WIDTH": max(16, triton.next_power_of_2(dim)),
        "PRECISION": precision,
        "PART": tl.float32 if part == torch.float32 else tl.bfloat16,
    }
    vectors, codebook = vectors.contiguous(), codebook.contiguous()
    norms = codebook.new_empty(size)
    parts = codebook.new_empty(3 * codebook.numel() if precision == "bf16x6" else 1, dtype=part)
    indices = torch.empty(count, dtype=torch.int64, device=vectors.device)
    if count:
        with torch.cuda.device_of(vectors):
            priced = {"CODES": _PREPARED, "PENALTY": penalty is not None}
            grid = (triton.cdiv(size, _PREPARED),)
            _prepare[grid](codebook, norms if penalty is None else penalty, norms, parts, **shared, **priced)
            blocks = {"VECTORS": how.vectors, "CODES": how.codes}
            blocks |= {"num_warps": how.warps, "num_stages": how.stages}
            codes = parts if precision == "bf16x6" else codebook
            grid = (triton.cdiv(count, how.vectors),)
            _search[grid](vectors, codes, norms, indices, count, **shared, **blocks)
    return indices


@triton.jit
def _split(x, PART: tl.constexpr):
    """x float32 = a + b + c, three bfloat16 numbers of falling size, held in the dtype PART."""
    a = x.to(tl.bfloat16)
    rest = x - a.to(tl.float32)
    b = rest.to(tl.bfloat16)
    c = (rest - b.to(tl.float32)).to(tl.bfloat16)
    return a.to(PART), b.to(PART), c.to(PART)


@triton.jit
def _prepare(
    codebook,
    penalty,
    norms,
    parts,
    SIZE: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    PART: tl.constexpr,
    CODES: tl.constexpr,
    PENALTY: tl.constexpr,
):
    """codebook [SIZE, DIM] -> norms [SIZE] with the penalty in them, and its bfloat16 parts [3, SIZE, DIM]."""
    codes = tl.program_id(0) * CODES + tl.arange(0, CODES)
    columns = tl.arange(0, WIDTH)
    places = codes[:, None] * DIM + columns[None, :]
    inside = (codes[:, None] < SIZE) & (columns[None, :] < DIM)
    e = tl.load(codebook + places, mask=inside, other=0.0)
    norm = tl.sum(e * e, 1)
    if PENALTY:
        norm += tl.load(penalty + codes, mask=codes < SIZE, other=0.0)
    tl.store(norms + codes, norm, mask=codes < SIZE)
    if PRECISION == "bf16x6":
        first, second, third = _split(e, PART)
        tl.store(parts + places, first, mask=inside)
        tl.store(parts + SIZE * DIM + places, second, mask=inside)
        tl.store(parts + 2 * SIZE * DIM + places, third, mask=inside)


@triton.jit
def _search(
    vectors,
    codebook,
    norms,
    indices,
    count,
    SIZE: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    PART: tl.constexpr,
    VECTORS: tl.constexpr,
    CODES: tl.constexpr,
):
    """vectors [count, DIM], codebook [SIZE, DIM] or its parts [3, SIZE, DIM], norms [SIZE] -> indices [count]."""
    rows = tl.program_id(0).to(tl.int64) * VECTORS + tl.arange(0, VECTORS)
    columns = tl.arange(0, WIDTH)
    tile = tl.arange(0, CODES)
    inside = columns[None, :] < DIM
    z = tl.load(
        vectors + rows[:, None] * DIM + columns[None, :], mask=(rows[:, None] < count) & inside, other=0.0
    )
    if PRECISION == "bf16x6":
        z1, z2, z3 = _split(z, PART)
    least = tl.full((VECTORS, CODES), float("inf"), tl.float32)
    start_of_least = tl.zeros((VECTORS, CODES), tl.int32)
    for start in range(0, SIZE, CODES):
        codes = start + tile
        known = (codes[:, None] < SIZE) & inside
        address = codebook + codes[:, None] * DIM + columns[None, :]
        if PRECISION == "bf16x6":  # from the smallest products to the largest
            e1 = tl.trans(tl.load(address, mask=known, other=0.0))
            e2 = tl.trans(tl.load(address + SIZE * DIM, mask=known, other=0.0))
            e3 = tl.trans(tl.load(address + 2 * SIZE * DIM, mask=known, other=0.0))
            product = tl.dot(z3, e1)
            product = tl.dot(z1, e3, product)
            product = tl.dot(z2, e2, product)
            product = tl.dot(z2, e1, product)
            product = tl.dot(z1, e2, product)
            product = tl.dot(z1, e1, product)
        else:
            e = tl.load(address, mask=known, other=0.0)
            product = tl.dot(z, tl.trans(e), input_precision=PRECISION)
        norm = tl.load(norms + codes, mask=codes < SIZE, other=float("inf"))
        distance = norm[None, :] - 2.0 * product
        nearer = distance < least  # false for NaN, and for an equal code of a later tile
        least = tl.where(nearer, distance, least)
        start_of_least = tl.where(nearer, start, start_of_least)
    best = tl.min(least, 1)
    chosen = tl.where(least == best[:, None], start_of_least + tile[None, :], SIZE - 1)
    tl.store(indices + rows, tl.minimum(tl.min(chosen, 1), SIZE - 1).to(tl.int64), mask=rows < count)
