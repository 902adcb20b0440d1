"""The fused search against brute force: on a GPU, or with TRITON_INTERPRET=1 in Triton's interpreter on a CPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from vqvae2.autoencoder import nearest
from vqvae2.autoencoder.quantizer import VectorQuantizer

pytest.importorskip("triton", reason="Triton is not installed")
nearest_triton: Any = pytest.importorskip("vqvae2.autoencoder.nearest_triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PRECISIONS = ("ieee", "bf16x6", "tf32x3")
SHAPES = [
    (1, 1, 1),
    (5, 3, 2),
    (130, 70, 64),
    (300, 513, 5),
    (0, 4, 4),
    (129, 64, 100),
    (10, 65, 128),
    (64, 600, 16),
]


@pytest.fixture(params=[
    pytest.param("cuda", marks=pytest.mark.gpu),
    pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET is not 1")),
])  # fmt: skip
def device(request: pytest.FixtureRequest) -> str:
    """Where the kernel runs."""
    if request.param == "cuda" and INTERPRETED:
        pytest.skip("TRITON_INTERPRET is 1")
    return str(request.param)


def costs(vectors: Tensor, codebook: Tensor, penalty: Tensor | None) -> Tensor:
    """The definition, [N, K] in float64 on the CPU."""
    distance = torch.cdist(vectors.cpu().double(), codebook.cpu().double()).square()
    return distance if penalty is None else distance + penalty.cpu().double()


def whole(low: int, high: int, *shape: int, seed: int, device: str) -> Tensor:
    """Small whole numbers, whose distances are exact in every precision."""
    return (
        torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float().to(device)
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("n", "k", "d"), SHAPES)
@pytest.mark.parametrize("priced", [False, True])
def test_whole_numbers_to_the_bit(n: int, k: int, d: int, priced: bool, precision: str, device: str) -> None:
    """Ties are frequent and go to the lowest index."""
    vectors, codebook = whole(-2, 2, n, d, seed=n, device=device), whole(-2, 2, k, d, seed=k, device=device)
    penalty = whole(-9, 9, k, seed=d, device=device) if priced else None
    found = nearest_triton.nearest_code(vectors, codebook, penalty, precision)
    expected = costs(vectors, codebook, penalty).round().argmin(1)
    assert found.dtype == torch.int64
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("centre", [0.0, 3.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_real_vectors_to_the_rounding_of_float32(
    precision: str, centre: float, scale: float, device: str
) -> None:
    """The chosen code costs at most 8 roundings more than the best, which no TF32 product would reach (by a factor of 60)."""
    generator = torch.Generator().manual_seed(0)
    n = 200 if INTERPRETED else 20_000
    vectors = ((torch.randn(n, 64, generator=generator) + centre) * scale).to(device)
    codebook = ((torch.randn(512, 64, generator=generator) + centre) * scale).to(device)
    cost = costs(vectors, codebook, None)
    found = nearest_triton.nearest_code(vectors, codebook, None, precision).cpu()
    excess = cost.gather(1, found[:, None])[:, 0] - cost.amin(1)
    summed = vectors.cpu().double().square().sum(1) + codebook.cpu().double().square().sum(1).max()
    assert (excess <= 8 * 2.0**-24 * summed).all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter computes with NumPy
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_vectors_that_are_not_finite_spoil_no_other(device: str) -> None:
    vectors, codebook = whole(-3, 3, 40, 4, seed=0, device=device), whole(-3, 3, 70, 4, seed=1, device=device)
    expected = costs(vectors, codebook, None).round().argmin(1)
    for row, bad in ((3, torch.nan), (17, torch.inf), (20, -torch.inf), (25, 3e38)):
        vectors[row] = bad
    found = nearest_triton.nearest_code(vectors, codebook).cpu()
    assert ((found >= 0) & (found < 70)).all()
    kept = [row for row in range(40) if row not in (3, 17, 20, 25)]
    assert torch.equal(found[kept], expected[kept])


def test_what_it_refuses(device: str) -> None:
    z = torch.zeros(4, 8, device=device)
    with pytest.raises(ValueError, match="ieee, bf16x6, tf32x3, found 'tf32'"):
        nearest_triton.nearest_code(z, z, precision="tf32")
    with pytest.raises(ValueError, match="at most 128 dimensions"):
        nearest_triton.nearest_code(torch.zeros(4, 129, device=device), torch.zeros(4, 129, device=device))
    with pytest.raises(ValueError, match="float64"):
        nearest_triton.nearest_code(z.double(), z.double())


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [64, 130])
def test_the_search_on_a_gpu_ignores_tf32(dim: int) -> None:
    """The kernel, and the chunks beyond its dimensions, choose the same codes whatever products of matrices may do."""
    vectors, codebook = torch.randn(5000, dim, device="cuda") + 3, torch.randn(512, dim, device="cuda") + 3
    expected = nearest.nearest_code(vectors, codebook)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert torch.equal(nearest.nearest_code(vectors, codebook), expected)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    cost = costs(vectors, codebook, None)
    excess = cost.gather(1, expected.cpu()[:, None])[:, 0] - cost.amin(1)
    assert (excess <= 1e-5 * cost.amin(1)).all()


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options", [{}, {"entropy_penalty": 0.5}, {"init": "sonnet", "revive": False}], ids=str
)
def test_a_training_step_can_be_captured(options: dict[str, Any]) -> None:
    """A step replayed as a CUDA graph leaves the statistics that the same eager steps leave, from the first one on."""
    torch.manual_seed(0)
    eager = VectorQuantizer(32, 8, **options).cuda()
    graphed = VectorQuantizer(32, 8, **options).cuda()
    graphed.load_state_dict(eager.state_dict())
    start = {name: value.clone() for name, value in graphed.state_dict().items()}
    z = torch.zeros(256, 8, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # compiles the kernel
        graphed(z)
    torch.cuda.synchronize()
    graphed.load_state_dict(start)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = graphed(z)
    for step in range(30):
        batch = torch.randn(256, 8, device="cuda") + 3 * (step // 10)
        z.copy_(batch)
        graph.replay()
        expected = eager(batch)
        assert torch.equal(out.encoding_indices, expected.encoding_indices)
        torch.testing.assert_close(graphed.embeddings, eager.embeddings, rtol=1e-4, atol=1e-4)
        graphed.load_state_dict(eager.state_dict())  # sums are added in any order: keep the two together
