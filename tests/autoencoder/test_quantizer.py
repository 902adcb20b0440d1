"""The quantizer: Sonnet's figures to the last digit, and the known bugs of other implementations."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from comparing import same_tensors, state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vqvae2.autoencoder import nearest
from vqvae2.autoencoder import quantizer as module
from vqvae2.autoencoder.base import Quantized, perplexity
from vqvae2.autoencoder.nearest import nearest_code
from vqvae2.autoencoder.quantizer import VectorQuantizer

# computed by dm-sonnet 2.0.2 in float64; Sonnet's columns are our rows
E0 = [[1, 0], [-1, 1], [0, -2], [3, 3]]
X1 = [[0.9, 0.1], [1.2, -0.3], [-0.8, 0.7], [-1.1, 1.4], [-0.5, 0.9], [0.2, -1.6]]
X2 = [[1, 0.2], [0.7, 0.1], [-0.9, 1.1], [0.1, -1.9], [0.3, -2.2], [-0.2, -1.8]]
X3 = [[(a + b) / 2 for a, b in zip(p, q, strict=True)] for p, q in zip(X1, X2, strict=True)]
SONNET = [
    (
        X1, [0, 0, 1, 1, 1, 2], 0.018958333333, 2.749459273172, [2, 3, 1, 0],
        [[1.050001750, -0.100000167], [-0.800002667, 1.000003333], [0.199999333, -1.599994667], [0, 0]],
    ),
    (
        X2, [0, 0, 1, 2, 2, 2], 0.019687740972, 2.749459273172, [2, 1.994974874, 2.005025126, 0],
        [[0.949499070, 0.025628183], [-0.825190282, 1.025190613], [0.099749541, -1.875692373], [0, 0]],
    ),
    (
        X3, [0, 0, 1, 3, 3, 2], 0.017361610072, 3.779763148173, [2, 1.659977779, 1.666644221, 0.673378001],
        [[0.949668261, 0.025416695], [-0.830221818, 0.999797815], [0.079598445, -1.840198394],
         [-0.299997545, -0.449996317]],
    ),
]  # fmt: skip


def exact(values: object) -> Tensor:
    """A float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def sonnet(ema: bool = True) -> VectorQuantizer:
    """The quantiser whose figures are above."""
    vq = VectorQuantizer(4, 2, 0.25, 0.99, 1e-5, init="sonnet", revive=False, ema=ema).double()
    with torch.no_grad():
        vq.embeddings.copy_(exact(E0))
    return vq


def close(found: Tensor, expected: object, tolerance: float = 1e-9) -> bool:
    """Whether no element is further off than `tolerance`, which counts the digits that are printed."""
    return bool((found - exact(expected)).abs().max() <= tolerance)


def blobs(n: int, dim: int, centre: float = 0.0, seed: int = 0) -> Tensor:
    """`n` normal vectors around a centre."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + centre


# --- Sonnet's figures ---


def test_sonnet_training_steps() -> None:
    vq = sonnet()
    for x, indices, loss, figure, counts, codes in SONNET:
        out = vq(exact(x))
        assert out.encoding_indices.tolist() == indices
        assert close(out.loss, loss)
        assert close(out.perplexity, figure)
        debias = 1 - 0.99 ** int(vq.counter)
        assert close(vq.ema_count / debias, counts)
        assert close(vq.embeddings, codes)
    vq.eval()
    before = state_of(vq)
    out = vq(exact(X1))
    assert out.encoding_indices.tolist() == [0, 0, 1, 1, 1, 2]
    assert close(out.loss, 0.014406741900)
    assert same_tensors(before, state_of(vq))


def test_sonnet_hidden_counts_after_one_step() -> None:
    vq = sonnet()
    vq(exact(X1))
    assert close(vq.ema_count, [0.02, 0.03, 0.01, 0.0], 1e-15)


def test_sonnet_gradient() -> None:
    z = exact(X1).requires_grad_()
    out = sonnet()(z)
    ((out.quantize * exact([1, 2])).sum() + out.loss).backward()
    assert z.grad is not None
    assert close(z.grad, [
        [0.995833333, 2.004166667], [1.008333333, 1.9875], [1.008333333, 1.9875],
        [0.995833333, 2.016666667], [1.020833333, 1.995833333], [1.008333333, 2.016666667],
    ])  # fmt: skip


def test_sonnet_by_gradient() -> None:
    vq = sonnet(ema=False)
    z = exact(X1).requires_grad_()
    out = vq(z)
    out.loss.backward()
    assert close(out.loss, 0.094791666667)
    assert isinstance(vq.embeddings, torch.nn.Parameter)
    assert vq.embeddings.grad is not None
    assert z.grad is not None
    assert close(
        vq.embeddings.grad, [[-0.016666667, 0.033333333], [-0.1, 0], [-0.033333333, -0.066666667], [0, 0]]
    )
    assert close(z.grad[0], [-0.004166667, 0.004166667])
    assert torch.equal(vq.embeddings, exact(E0)), "training without EMA leaves the step to the optimiser"


def test_sonnet_initial_range() -> None:
    vq = VectorQuantizer(4096, 64, init="sonnet")
    limit = (3 / 64) ** 0.5
    assert vq.embeddings.abs().max() <= limit
    assert vq.embeddings.abs().max() > 0.99 * limit
    assert vq.embeddings.std() == pytest.approx(0.125, rel=0.01)


@pytest.mark.parametrize("options", [
    {"num_embeddings": 0}, {"embedding_dim": 0}, {"decay": 1.0}, {"decay": -0.1}, {"init": "zeros"},
])  # fmt: skip
def test_arguments_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        VectorQuantizer(**({"num_embeddings": 4, "embedding_dim": 2} | options))  # type: ignore[arg-type]


def test_wrong_last_axis() -> None:
    with pytest.raises(ValueError, match=r"vectors of 2 on the last axis, found shape \(3, 4\)"):
        VectorQuantizer(4, 2)(torch.zeros(3, 4))


# --- nearest code ---


def brute_force(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The definition: all distances, the first of the smallest."""
    return (vectors[:, None] - codebook[None]).square().sum(2).argmin(1)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 40),
    k=st.integers(1, 30),
    d=st.integers(1, 12),
    seed=st.integers(0, 999),
    rows=st.integers(1, 50),
)
def test_nearest_code_is_brute_force(n: int, k: int, d: int, seed: int, rows: int) -> None:
    """Small integers: every sum is exact, ties are frequent and go to the lowest index, whatever the chunks."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randint(-2, 3, (n, d), generator=generator).float()
    codebook = torch.randint(-2, 3, (k, d), generator=generator).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_CHUNK_ELEMENTS", rows * k)
        found = nearest_code(vectors, codebook)
    assert found.dtype == torch.int64
    assert torch.equal(found, brute_force(vectors, codebook))


def test_ties_go_to_the_lowest_index() -> None:
    vq = VectorQuantizer(600, 3, init="sonnet").eval()
    vq.embeddings.zero_()
    assert vq(torch.randn(50, 3)).encoding_indices.unique().tolist() == [0]
    vq.embeddings[:7] = 9.0
    assert vq(torch.zeros(50, 3)).encoding_indices.unique().tolist() == [7]


# --- forward ---


@pytest.mark.parametrize("training", [True, False])
def test_the_gradient_goes_straight_through(training: bool) -> None:
    vq = VectorQuantizer(8, 3).train(training)
    z = blobs(20, 3).requires_grad_()
    weight = blobs(20, 3, seed=1)
    (vq(z).quantize * weight).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, weight)


def test_what_was_returned_stays_when_the_codebook_moves_on() -> None:
    vq = VectorQuantizer(6, 3)
    out = vq(blobs(30, 3))
    kept = out.quantize.clone()
    vq(blobs(30, 3, centre=5))
    assert torch.equal(out.quantize, kept)


@pytest.mark.parametrize("ema", [True, False])
def test_backward_after_the_update(ema: bool) -> None:
    """Two calls, then one backward: the update in place must not spoil the graph."""
    vq = VectorQuantizer(6, 3, ema=ema)
    z = blobs(30, 3).requires_grad_()
    (vq(z).loss + vq(z * 2).loss).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


# --- the empty batch ---


@pytest.mark.parametrize("init", ["data", "sonnet"])
def test_an_empty_first_batch_is_as_if_it_had_not_been(init: str) -> None:
    torch.manual_seed(0)
    a = VectorQuantizer(8, 3, init=init)  # type: ignore[arg-type]
    torch.manual_seed(0)
    b = VectorQuantizer(8, 3, init=init)  # type: ignore[arg-type]
    a(torch.zeros(0, 3))
    z = blobs(40, 3, centre=20)
    a(z)
    b(z)
    assert same_tensors(state_of(a), state_of(b))


# --- known bugs of other implementations ---


@settings(max_examples=25, deadline=None)
@given(
    k=st.integers(1, 40),
    n=st.integers(1, 60),
    decay=st.sampled_from([0.0, 0.5, 0.99]),
    revive=st.booleans(),
    seed=st.integers(0, 99),
)
def test_codes_stay_in_the_box_around_the_data(k: int, n: int, decay: float, revive: bool, seed: int) -> None:
    """Every code is a weighted mean of vectors that were seen; in particular none drifts to the origin."""
    vq = VectorQuantizer(k, 2, decay=decay, revive=revive).double()
    low, high = torch.full((2,), torch.inf), torch.full((2,), -torch.inf)
    for step in range(12):
        z = blobs(n, 2, centre=7 + step, seed=seed + step).double()
        vq(z)
        low, high = torch.minimum(low, z.amin(0)), torch.maximum(high, z.amax(0))
        assert (vq.embeddings >= low - 1e-9).all()
        assert (vq.embeddings <= high + 1e-9).all()


def idle_quantizer(revive: bool, steps: int) -> tuple[VectorQuantizer, Tensor]:
    """Two clusters at first, around -30 and 30; then for `steps` steps only the second. Returns the first's codes."""
    vq = VectorQuantizer(8, 2, revive=revive)
    for seed in range(20):
        vq(torch.cat([blobs(32, 2, -30, seed), blobs(32, 2, 30, seed + 100)]))
    first = (vq.embeddings.mean(1) < 0).nonzero()[:, 0]
    assert 1 <= len(first) < 8
    for seed in range(steps):
        vq(blobs(64, 2, 30, seed % 50))
    return vq, first


def test_idle_codes_stay_and_are_used_again() -> None:
    """Sonnet's codes are halved after 1,150 idle steps and at the origin after 2,000. Ours stay, and
    follow the data at once when they come back."""
    vq, first = idle_quantizer(revive=False, steps=2000)
    assert (vq.embeddings[first].norm(dim=1) > 30).all()
    assert (vq.embeddings[first] + 30).abs().max() < 5
    for seed in range(30):
        out = vq(blobs(64, 2, -20, seed))
        assert torch.isin(out.encoding_indices, first).all()
    used = out.encoding_indices.unique()
    assert (vq.embeddings[used] + 20).abs().max() < 3
    assert out.loss < 0.25 * 2


def test_idle_codes_move_to_where_the_data_are() -> None:
    """The default mode: every code ends in use, none at the origin."""
    vq, _ = idle_quantizer(revive=True, steps=600)
    assert (vq.embeddings > 20).all()
    assert len(vq.eval()(blobs(500, 2, 30)).encoding_indices.unique()) == 8


def test_revived_codes_bring_their_statistics() -> None:
    """A revived code keeps its new place in the next step (a restart that leaves N and m alone does not)."""
    vq = VectorQuantizer(16, 2, init="sonnet", decay=0.99)
    vq.embeddings.fill_(100.0)
    vq.embeddings[0] = 0.0
    z = blobs(64, 2)
    vq(z)
    moved = vq.embeddings.clone()
    assert (moved.norm(dim=1) < 10).all(), "all unused codes were moved onto the data"
    vq(z)
    assert (vq.embeddings - moved).norm(dim=1).max() < 1.0


def test_revival_draws_distinct_inputs_that_are_badly_represented() -> None:
    vq = VectorQuantizer(3, 2, init="sonnet", decay=0.0)
    vq.embeddings.copy_(torch.tensor([[0.0, 0.0], [500.0, 0.0], [0.0, 500.0]]))
    near = torch.zeros(50, 2)
    far = torch.tensor([[0.0, 9.0], [9.0, 0.0]])
    vq(torch.cat([near, far]))
    vq(torch.cat([near, far]))
    assert {tuple(row) for row in vq.embeddings.round(decimals=3).tolist()} == {
        (0.0, 0.0),
        (0.0, 9.0),
        (9.0, 0.0),
    }


def test_no_revival_onto_what_is_already_a_code() -> None:
    """Fewer different vectors than codes: the others wait, nothing is NaN, nothing is drawn twice for nothing."""
    vq = VectorQuantizer(10, 2)
    z = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat(8, 1)
    for _ in range(50):
        out = vq(z)
    assert out.loss < 1e-10
    assert vq.embeddings.isfinite().all()
    assert {tuple(row) for row in vq.embeddings.round().tolist()} == {(1.0, 2.0), (3.0, 4.0)}


def test_the_first_codebook_is_drawn_from_the_data() -> None:
    z = blobs(64, 3, centre=9).double()
    vq = VectorQuantizer(8, 3, revive=False).double()
    seen: list[Tensor] = []
    vq.register_forward_pre_hook(lambda m, a: seen.append(m.embeddings.clone()))  # type: ignore[arg-type,func-returns-value]
    out = vq(z)
    used = out.encoding_indices.unique()
    assert len(used) == 8, "distinct vectors, each its own code"
    means = torch.stack([z[out.encoding_indices == k].mean(0) for k in range(8)])
    assert torch.allclose(vq.embeddings, means)
    assert not torch.allclose(seen[0], vq.embeddings)


def test_averages_converge_to_the_cluster_means() -> None:
    """The fixed point is the mean of each cluster whatever gamma is."""
    z = torch.cat([blobs(100, 2, -8), blobs(50, 2, 8, seed=1)]).double()
    vq = VectorQuantizer(2, 2, decay=0.9, init="sonnet", revive=False).double()
    vq.embeddings.copy_(exact([[-1, -1], [1, 1]]))
    for _ in range(3):
        out = vq(z)
    assert torch.allclose(vq.embeddings, torch.stack([z[:100].mean(0), z[100:].mean(0)]), atol=1e-4)
    assert out.encoding_indices.tolist() == [0] * 100 + [1] * 50


def test_a_state_dict_goes_on_where_it_stopped() -> None:
    a = VectorQuantizer(16, 3)
    for seed in range(5):
        a(blobs(40, 3, seed=seed))
    b = VectorQuantizer(16, 3)
    b.load_state_dict(a.state_dict())
    for seed in range(5, 25):
        z = blobs(40, 3, seed % 3, seed)
        x, y = a(z), b(z)
        assert torch.equal(x.quantize, y.quantize)
    assert same_tensors(a.state_dict(), b.state_dict())


def test_the_global_random_state_is_left_alone() -> None:
    vq = VectorQuantizer(16, 3)
    before = torch.random.get_rng_state()
    for seed in range(3):
        vq(blobs(40, 3, seed=seed))
    assert torch.equal(before, torch.random.get_rng_state())


# --- figures ---


def test_perplexity_counts_equally_likely_codes() -> None:
    for k in (1, 2, 7):
        assert perplexity(
            torch.cat([torch.full((k,), 5), torch.zeros(4, dtype=torch.int64)])
        ).item() == pytest.approx(k, rel=1e-6)
    assert perplexity(torch.zeros(4, dtype=torch.int64)) == 1


def test_usage_counts_training_only() -> None:
    vq = VectorQuantizer(8, 3)
    counts = torch.zeros(8, dtype=torch.int64)
    for seed in range(4):
        counts += vq(blobs(40, 3, seed=seed)).encoding_indices.bincount(minlength=8)
    vq.eval()(blobs(40, 3))
    assert torch.equal(vq.usage, counts)
    assert "usage" not in vq.state_dict()


def test_the_mean_code_is_the_mean_quantised_vector() -> None:
    vq = VectorQuantizer(8, 3, decay=0.0, revive=False)
    out = vq(blobs(200, 3, centre=2))
    assert torch.allclose(vq.mean_code(), vq.lookup(out.encoding_indices).mean(0), atol=1e-5)


def test_a_codebook_that_is_trained_by_gradient_starts_from_the_data_and_is_counted() -> None:
    """Its first step is in the batch that it starts from; what is loaded, also of versions that did not count, goes on."""
    first = blobs(200, 3, centre=5)
    vq = VectorQuantizer(8, 3, decay=0.0, ema=False)
    start = vq(first)
    assert all((first == code).all(1).any() for code in vq.embeddings)
    assert torch.allclose(vq.mean_code(), vq.lookup(start.encoding_indices).mean(0), atol=1e-5)
    optimiser = torch.optim.SGD([vq.embeddings], lr=0.5)
    start.loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    moved = vq.embeddings.detach().clone()
    out = vq(blobs(200, 3, centre=2))
    assert torch.equal(vq.embeddings, moved)
    assert torch.allclose(vq.mean_code(), vq.lookup(out.encoding_indices).mean(0), atol=1e-5)
    later = VectorQuantizer(8, 3, ema=False)
    later.load_state_dict({**vq.state_dict(), "counter": torch.tensor(0), "ema_count": torch.zeros(8)})
    later(first)
    assert torch.equal(later.embeddings, moved)


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize("rows", [slice(None), slice(3, 4)])
def test_a_codebook_that_was_written_is_where_the_training_begins(
    ema: bool, loaded: bool, rows: slice
) -> None:
    """All of it or a part; far from the data, which would replace it at the first step otherwise."""
    vq, z = VectorQuantizer(8, 3, revive=False, ema=ema), blobs(64, 3)
    if loaded:
        vq.load_state_dict(VectorQuantizer(8, 3, ema=ema).state_dict())
    with torch.no_grad():
        vq.embeddings[rows] = blobs(8, 3, centre=5, seed=3)[rows]
    written = vq.codebook().clone()
    out = vq(z)
    assert torch.equal(out.encoding_indices, torch.cdist(z, written).argmin(1))
    unused = torch.bincount(out.encoding_indices, minlength=8) == 0
    assert torch.equal(vq.codebook()[unused], written[unused])


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("way", ["made", "loaded", "half", "to_empty"])
def test_a_codebook_that_was_not_written_comes_from_the_data(ema: bool, way: str) -> None:
    vq, z = VectorQuantizer(8, 3, revive=False, ema=ema), blobs(64, 3)
    if way == "loaded":
        vq.load_state_dict(VectorQuantizer(8, 3, ema=ema).state_dict())
    elif way == "half":
        vq = vq.half().float()
    elif way == "to_empty":
        with torch.device("meta"):
            vq = VectorQuantizer(8, 3, revive=False, ema=ema)
        vq.to_empty(device="cpu")
        with torch.no_grad():
            vq.counter.fill_(0 if ema else -1)
            vq.ema_count.zero_()
            vq.ema_sum.zero_()
    vq.eval()(z)  # which is no step of a training
    indices = vq.train()(z).encoding_indices
    first = vq.last_embeddings if ema else vq.codebook()
    assert (first[:, None] == z).all(2).any(1).all()
    assert torch.equal(indices, torch.cdist(z, first).argmin(1))


@pytest.mark.parametrize("ema", [True, False])
def test_the_mean_code_of_a_codebook_without_statistics(ema: bool) -> None:
    """Trained by gradient, or not yet: all codes count alike; a zero vector is no neutral input."""
    vq = VectorQuantizer(8, 3, ema=ema)
    with torch.no_grad():
        vq.embeddings.copy_(blobs(8, 3, centre=5))
    assert torch.allclose(vq.mean_code(), vq.embeddings.mean(0), atol=1e-6)


# --- several processes ---

_WORKER = """
import sys
import torch
from torch import distributed as dist
from vqvae2.autoencoder.quantizer import VectorQuantizer
rank, world, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=world)
found = {}
for kind in ("data", "sonnet", "gradient"):
    init = "sonnet" if kind == "sonnet" else "data"
    torch.manual_seed(rank if init == "data" else 0)  # drawn from the data, the first codebook needs no shared seed
    vq = VectorQuantizer(24, 3, decay=0.8, init=init, ema=kind != "gradient").double()
    indices, codes = [], []
    for step in range(50):
        centre = 4.0 * (step // 6)  # the data move, so that codes fall idle and are revived
        z = torch.randn(40, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64) + centre
        rows = 40 // world
        indices.append(vq(z[rank * rows : (rank + 1) * rows]).encoding_indices)
        codes.append(vq.embeddings.detach().clone())
    found[kind] = {"indices": indices, "codes": codes, "count": vq.ema_count, "sum": vq.ema_sum}
torch.save(found, f"{place}/{world}-{rank}.pt")
if world > 1:
    dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """What one process with the whole batch found, and each of two with half of it."""
    place = tmp_path_factory.mktemp("processes")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(rank), str(world), str(place)],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
        )
        for rank, world in ((0, 2), (1, 2), (0, 1))
    ]  # fmt: skip
    try:
        for worker in workers:
            _, said = worker.communicate(timeout=120)
            assert worker.returncode == 0, said
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    return [torch.load(place / f"{name}.pt") for name in ("1-0", "2-0", "2-1")]


@pytest.mark.parametrize("init", ["data", "sonnet"])
def test_two_processes_are_one_with_the_whole_batch(
    init: str, processes: list[dict[str, dict[str, Any]]]
) -> None:
    """First codebook, statistics and revival, 50 steps: the codebooks stay those of the big batch, on both ranks."""
    one, left, right = (found[init] for found in processes)
    assert len(one["codes"]) == 50
    for step in range(50):
        assert torch.equal(torch.cat([left["indices"][step], right["indices"][step]]), one["indices"][step])
        assert torch.equal(left["codes"][step], right["codes"][step]), "the ranks drift apart"
        assert torch.allclose(left["codes"][step], one["codes"][step], rtol=0, atol=1e-10)
    assert torch.allclose(left["count"], one["count"], atol=1e-10)
    assert torch.allclose(left["sum"], one["sum"], atol=1e-10)
    pairs = zip(one["codes"][1:], one["codes"][2:], strict=False)
    jumps = [float((after - before).norm(dim=1).max()) for before, after in pairs]
    assert sum(jump > 5 for jump in jumps) >= 3, "too few codes were revived: the test does not test it"


def test_two_processes_start_and_count_alike_without_moving_averages(
    processes: list[dict[str, dict[str, Any]]],
) -> None:
    one, left, right = (found["gradient"] for found in processes)
    assert torch.equal(left["codes"][-1], one["codes"][-1])
    assert torch.equal(right["codes"][-1], one["codes"][-1])
    assert torch.allclose(left["count"], one["count"], atol=1e-10)
    assert one["count"].sum() > 0


def test_it_agrees_with_vector_quantize_pytorch() -> None:
    """An independent implementation, as far as the two mean the same: indices, values, commitment loss."""
    library = pytest.importorskip("vector_quantize_pytorch")
    other = library.VectorQuantize(
        dim=5, codebook_size=12, commitment_weight=0.25, use_cosine_sim=False
    ).eval()
    vq = VectorQuantizer(12, 5, init="sonnet").eval()
    codes = blobs(12, 5)
    vq.embeddings.copy_(codes)
    other._codebook.embed.data.copy_(codes[None])
    other._codebook.initted.data.fill_(True)
    z = blobs(60, 5, seed=1)[None]
    out: Quantized = vq(z)
    values, indices, _ = other(z)
    assert torch.equal(out.encoding_indices, indices)
    assert torch.allclose(out.quantize, values, atol=1e-6)
    _, _, loss = other.train()(z, freeze_codebook=True)  # it has no loss in evaluation
    assert torch.allclose(out.loss, loss, rtol=1e-6)


# --- the entropy penalty ---


def test_with_a_penalty_the_least_sum_of_distance_and_bits_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """By brute force from the statistics, for a codebook whose codes are used unequally; half the way up the ramp."""
    monkeypatch.setattr(module, "_PENALTY_RAMP", 60)
    vq = VectorQuantizer(8, 3, entropy_penalty=0.3, revive=False).double()
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(400, 3, dtype=torch.float64, generator=generator).square()  # crowded near the origin
    for _ in range(30):
        vq(z)
    share = vq.ema_count / vq.ema_count.sum()
    error = vq.distortion / (1 - vq.decay**30)
    cost = torch.cdist(z, vq.embeddings).square() - 0.15 * error * share.clamp_min(0.01 / 8).log2()
    vq.eval()
    assert torch.equal(vq(z).encoding_indices, cost.argmin(1))
    assert not torch.equal(cost.argmin(1), torch.cdist(z, vq.embeddings).argmin(1))


@pytest.mark.parametrize("seed", [0, 3])
def test_a_penalty_buys_fewer_bits_with_more_error_whatever_the_scale(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(module, "_PENALTY_RAMP", 1)

    def trained(penalty: float, scale: float) -> tuple[float, float]:
        vq = VectorQuantizer(32, 2, entropy_penalty=penalty)
        z = torch.randn(2000, 2, generator=torch.Generator().manual_seed(seed)) * scale
        for _ in range(60):
            out = vq(z)
        return float(out.perplexity), float((out.quantize - z).square().mean()) / scale**2

    plain, cheap, large = trained(0, 1), trained(0.5, 1), trained(0.5, 100)
    assert cheap[0] < plain[0] * 0.9
    assert cheap[1] > plain[1]
    assert large == pytest.approx(cheap, rel=0.02)
    even = trained(-1, 1)
    assert 32 - even[0] < 0.75 * (32 - plain[0]), "below 0 frequent codes cost, so use is more even"


def test_the_running_error_is_the_mean_squared_distance() -> None:
    vq = VectorQuantizer(4, 3, revive=False).double()
    z = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = vq(z)
    assert (vq.distortion / (1 - vq.decay)).item() == pytest.approx(
        (out.quantize - z).square().sum(1).mean().item()
    )


@pytest.mark.parametrize(
    "options",
    [{"entropy_penalty": math.nan}, {"entropy_penalty": math.inf}, {"entropy_penalty": -0.1, "ema": False}],
)
def test_a_penalty_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected a finite entropy_penalty"):
        VectorQuantizer(4, 2, **options)
