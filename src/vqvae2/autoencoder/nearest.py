"""The search for the nearest code of every vector: exact, in chunks on a CPU, fused on a GPU where Triton is installed.

Shapes: N vectors, D code dimension, K codes.
"""

from __future__ import annotations

import math
from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from vqvae2.fused import triton_works
from vqvae2.tf32 import without_tf32

_CHUNK_ELEMENTS = (
    512 * 1024
)  # distances held at once on a CPU: 2 MiB in float32, so that they stay in its cache
_GROUP = 64  # codes of a group, at least


def nearest_code(vectors: Tensor, codebook: Tensor, penalty: Tensor | None = None) -> Tensor:
    """Index of the nearest code of each vector (least squared distance plus penalty), ties to the lowest index.

    Distances are computed in the dtype of the inputs; on a GPU float32 products never use TF32, whatever
    `torch.backends.cuda.matmul` allows, because its 10 bits would choose wrong codes. `torch.compile` sees the search
    as one operator; `torch.export` sees plain operators, which other programs know too.

    Args:
        vectors: [N, D].
        codebook: [K, D], same dtype.
        penalty: [K], added to the squared distances; None adds nothing.

    Returns:
        [N] int64. A vector that is not finite gets some code of the codebook.
    """
    if _exporting():
        norms = codebook.square().sum(1)
        norms = norms if penalty is None else norms + penalty
        return torch.addmm(norms, vectors, codebook.T, alpha=-2).argmin(1)
    if torch.compiler.is_compiling():
        return torch.ops.vqvae2.nearest_code(vectors, codebook, penalty)  # type: ignore[no-any-return]
    return _search(vectors, codebook, penalty)


def _exporting() -> bool:
    """Whether `torch.export` is tracing; before torch 2.7 it could not be asked."""
    asked = getattr(torch.compiler, "is_exporting", None)
    return bool(asked and asked())


@torch.library.custom_op(
    "vqvae2::nearest_code",
    mutates_args=(),
    schema="(Tensor vectors, Tensor codebook, Tensor? penalty) -> Tensor",
)
def _compiled(vectors: Tensor, codebook: Tensor, penalty: Tensor | None) -> Tensor:
    return _search(vectors, codebook, penalty)


@_compiled.register_fake
def _(vectors: Tensor, codebook: Tensor, penalty: Tensor | None) -> Tensor:
    return vectors.new_empty(vectors.shape[0], dtype=torch.int64)


@torch.no_grad()
def _search(vectors: Tensor, codebook: Tensor, penalty: Tensor | None) -> Tensor:
    if vectors.is_cuda and vectors.dtype == torch.float32:
        fused = _fused(vectors.device)
        if fused is not None and vectors.shape[1] <= fused.LARGEST_DIM:
            return fused.nearest_code(vectors, codebook, penalty)  # type: ignore[no-any-return]
    return _chunks(vectors, codebook, penalty)


@cache
def _fused(device: torch.device) -> ModuleType | None:
    """The file of the fused kernel; None where Triton does not work, or for a GPU older than Ampere."""
    if torch.cuda.get_device_capability(device) < (8, 0) or not triton_works(device):
        return None
    from vqvae2.autoencoder import nearest_triton

    return nearest_triton


def _chunks(vectors: Tensor, codebook: Tensor, penalty: Tensor | None) -> Tensor:
    """The search by torch's own operators, in chunks of vectors, so that the N x K distances never exist at once.

    On a CPU the chunks fit into the cache. The minimum is then searched in two passes: the least distance of each group of
    codes, then the code within the best group. One `argmin` over all codes would be slower, because torch computes minima
    as fast as it reads memory but their indices several times as slowly.
    """
    size, device = codebook.shape[0], codebook.device
    norms = codebook.square().sum(1)
    if penalty is not None:
        norms = norms + penalty
    group = 1
    if device.type == "cpu" and size > _GROUP:
        group = max(_GROUP, 1 << (size.bit_length() // 2))  # about the root of K
        missing = -size % group
        codebook = functional.pad(codebook, (0, 0, 0, missing))
        norms = functional.pad(norms, (0, missing), value=math.inf)
    padded = codebook.shape[0]
    rows = max(1, (_CHUNK_ELEMENTS if device.type == "cpu" else 32 * _CHUNK_ELEMENTS) // padded)
    rows = min(rows, max(1, vectors.shape[0]))
    held = torch.empty(rows, padded, dtype=norms.dtype, device=device)
    positions = torch.arange(rows, device=device)
    indices = torch.empty(vectors.shape[0], dtype=torch.int64, device=device)
    with without_tf32(device):
        for start in range(0, vectors.shape[0], rows):
            chunk = vectors[start : start + rows]
            # ||z||^2 is the same for every code
            distances = torch.addmm(norms, chunk, codebook.T, alpha=-2, out=held[: len(chunk)])
            if group == 1:
                torch.argmin(distances, 1, out=indices[start : start + rows])
                continue
            groups = distances.view(len(chunk), -1, group)
            best = groups.amin(2).argmin(1)
            within = groups[positions[: len(chunk)], best].argmin(1)
            indices[start : start + rows] = within.add_(best, alpha=group)
    return indices.clamp_max_(size - 1)  # beyond K only for vectors that are not finite
