"""What holds for every input: brute force, Sonnet written out in numpy, and one test for each known bug of the field."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from comparing import same_tensors, state_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vqvae2.autoencoder import nearest
from vqvae2.autoencoder.nearest import nearest_code
from vqvae2.autoencoder.quantizer import VectorQuantizer

INITS: tuple[Literal["data", "sonnet"], ...] = ("data", "sonnet")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def generator(seed: int) -> torch.Generator:
    """A random generator."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def ramp(*shape: int) -> Tensor:
    """0, 1, 2, ... in float64, the inputs of Sonnet's conformance tests."""
    return torch.arange(int(np.prod(shape)), dtype=torch.float64).reshape(shape)


def with_codes(codes: Tensor, **options: Any) -> VectorQuantizer:
    """A quantizer in the dtype of the given codebook."""
    vq = VectorQuantizer(*codes.shape, **options).to(codes.dtype)
    with torch.no_grad():
        vq.embeddings.copy_(codes)
    return vq


# --- nearest code ---


def costs(vector: Tensor, codes: Tensor, penalty: Tensor | None = None) -> Tensor:
    """The definition, in float64: squared distance of one vector to every code, plus the penalty."""
    distance = (codes.double() - vector.double()).square().sum(1)
    return distance if penalty is None else distance + penalty.double()


def brute_force(vectors: Tensor, codes: Tensor, penalty: Tensor | None = None) -> list[int]:
    """The first code of the least cost, one vector after the other."""
    rows = vectors.reshape(-1, codes.shape[1])
    return [
        int((cost == cost.min()).nonzero()[0, 0]) for cost in (costs(row, codes, penalty) for row in rows)
    ]


def integers(low: int, high: int, *shape: int, seed: int, repeated: bool = True) -> Tensor:
    """Small whole numbers, whose distances are exact; `repeated` draws the rows from a sixth of them."""
    found = torch.randint(low, high + 1, shape, generator=generator(seed)).float()
    if repeated:
        found = found[torch.randint(0, 1 + len(found) // 6, (len(found),), generator=generator(seed + 1))]
    return found


def laid_out(z: Tensor, layout: str) -> Tensor:
    """The same values in another order of memory; "expanded" repeats the first vector instead."""
    if layout == "transposed":
        return z.movedim(-1, 0).contiguous().movedim(0, -1)
    if layout == "strided":
        return z.repeat_interleave(3, -1)[..., 1::3]
    if layout == "sliced" and z.ndim > 1:
        return torch.cat([z, z + 1], 0)[: len(z)].flip(0)[::2]
    if layout == "expanded":
        return z.reshape(-1, z.shape[-1])[:1].sum(0).expand(z.shape)
    return z


LEADING = st.one_of(
    st.sampled_from([(), (1,), (0,), (0, 3, 2), (3, 0)]), st.lists(st.integers(1, 3), max_size=3).map(tuple)
)
CODES = st.one_of(st.integers(1, 40), st.integers(1, 8192), st.sampled_from([511, 512, 513, 8191, 8192]))
DIMENSIONS = st.one_of(st.integers(1, 8), st.integers(1, 256), st.sampled_from([1, 255, 256]))


@settings(max_examples=120, deadline=None)
@given(
    leading=LEADING,
    k=CODES,
    d=DIMENSIONS,
    dtype=st.sampled_from(FLOATS),
    inner=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["plain", "transposed", "strided", "sliced", "expanded"]),
    span=st.integers(0, 3),
    seed=st.integers(0, 9999),
)
@example((3, 3), 8192, 256, torch.bfloat16, torch.float32, "transposed", 1, 0)
@example((9,), 8192, 1, torch.float64, torch.float32, "sliced", 3, 0)
@example((), 1, 256, torch.float16, torch.float64, "strided", 3, 0)
def test_any_input_against_brute_force(
    leading: tuple[int, ...],
    k: int,
    d: int,
    dtype: torch.dtype,
    inner: torch.dtype,
    layout: str,
    span: int,
    seed: int,
) -> None:
    """Whole numbers with repeated codes: indices and values to the bit, for any shape, dtype and memory order."""
    codes = integers(-span, span, k, d, seed=seed)
    flat = integers(-span, span, int(np.prod(leading)), d, seed=seed + 2, repeated=False)
    z = laid_out(flat.reshape(*leading, d).to(dtype), layout)
    vq = with_codes(codes.to(inner), init="sonnet").eval()
    out = vq(z)
    expected = brute_force(z, codes)
    assert out.encoding_indices.dtype == torch.int64
    assert out.encoding_indices.shape == z.shape[:-1]
    assert out.encoding_indices.reshape(-1).tolist() == expected
    assert out.quantize.shape == z.shape
    assert out.quantize.dtype == dtype
    assert torch.equal(out.quantize, codes[expected].reshape(z.shape).to(dtype))
    assert torch.equal(vq.lookup(out.encoding_indices).to(dtype), out.quantize)
    error = (codes[expected].reshape(z.shape).double() - z.double()).square()
    assert float(out.loss) == pytest.approx(0.25 * float(error.mean()) if error.numel() else 0.0, rel=1e-6)


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(0, 12),
    k=CODES,
    d=DIMENSIONS,
    weight=st.integers(0, 40),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 9999),
)
@example(9, 8192, 256, 40, torch.float32, 0)
@example(9, 8192, 1, 3, torch.float32, 0)
def test_a_penalty_against_brute_force(
    n: int, k: int, d: int, weight: int, dtype: torch.dtype, seed: int
) -> None:
    """Whole numbers, so that distance and penalty tie often; either sign; the lowest index wins."""
    codes = integers(-2, 2, k, d, seed=seed).to(dtype)
    z = integers(-2, 2, n, d, seed=seed + 2, repeated=False).to(dtype)
    penalty = integers(-weight, weight, k, seed=seed + 3).to(dtype)
    assert nearest_code(z, codes, penalty).tolist() == brute_force(z, codes, penalty)


def test_a_penalty_makes_and_breaks_ties() -> None:
    codes = torch.tensor([[3.0], [1.0], [-1.0], [1.0], [0.0]])
    z = torch.tensor([[0.0]])
    assert nearest_code(z, codes, torch.tensor([0.0, 0, 0, 0, 1])).tolist() == [1], "1, 2, 3 and 4 cost 1"
    assert nearest_code(z, codes, torch.tensor([-8.0, 0, 0, 0, 1])).tolist() == [0], "all cost 1"
    assert nearest_code(z, codes, torch.tensor([0.0, 0.5, 0.5, 0.25, 2])).tolist() == [3]
    assert nearest_code(z, codes, torch.tensor([0.0, 5, 5, 5, -1])).tolist() == [4]
    assert nearest_code(z, codes, torch.tensor([0.0, torch.inf, 0, 0, torch.inf])).tolist() == [2]


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(1, 12),
    k=CODES,
    d=DIMENSIONS,
    dtype=st.sampled_from(FLOATS),
    inner=st.sampled_from([torch.float32, torch.float64]),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
    centre=st.sampled_from([0.0, 3.0]),
    priced=st.booleans(),
    seed=st.integers(0, 9999),
)
@example(9, 8192, 256, torch.float32, torch.float32, 100.0, 3.0, True, 0)
@example(9, 8192, 1, torch.float32, torch.float32, 1.0, 0.0, False, 0)
def test_the_chosen_code_costs_the_least_but_for_rounding(
    n: int,
    k: int,
    d: int,
    dtype: torch.dtype,
    inner: torch.dtype,
    scale: float,
    centre: float,
    priced: bool,
    seed: int,
) -> None:
    """Real vectors: what was chosen is as near as the nearest, to a few roundings of the numbers that were summed."""
    codes = ((normal(k, d, seed=seed) + centre) * scale).to(inner)
    z = ((normal(n, d, seed=seed + 1) + centre) * scale).to(dtype).to(inner)
    penalty = (normal(k, seed=seed + 2) * scale**2).to(inner) if priced else None
    found = nearest_code(z, codes, penalty)
    rounding = torch.finfo(inner).eps * 4 * (d**0.5 + 4)
    for row, chosen in zip(z, found.tolist(), strict=True):
        cost = costs(row, codes, penalty)
        best = int(cost.argmin())
        summed = max(
            float(codes[i].double().square().sum()) + float(row.double().square().sum())
            for i in (chosen, best)
        ) + (float(penalty.abs().max()) if penalty is not None else 0.0)
        assert float(cost[chosen] - cost[best]) <= rounding * summed


@pytest.mark.parametrize("k", [1, 512, 3000, 8192])
def test_around_the_size_of_a_chunk(k: int) -> None:
    """One vector less than the rows of a chunk, as many, one more, and two chunks and one."""
    rows = nearest._CHUNK_ELEMENTS // k
    if k == 1:  # every vector has the only code; the values would be slow to make and prove nothing
        assert not nearest_code(torch.zeros(rows + 1, 1), torch.ones(1, 1)).any()
        return
    order = torch.randperm(k, generator=generator(k))
    codes = torch.stack([order // 91, order % 91], 1).float()  # points of a grid, exact in float32
    place = order.argsort()  # where each point of the grid stands
    for n in (rows - 1, rows, rows + 1, 2 * rows + 1):
        points = place[torch.randint(0, k, (n,), generator=generator(n))]
        assert torch.equal(nearest_code(codes[points] + 0.25, codes), points)


def test_more_codes_than_a_chunk_holds() -> None:
    k = nearest._CHUNK_ELEMENTS + 3
    codes = torch.zeros(k, 1)
    codes[[5, k - 2, k - 1]] = torch.tensor([[1.0], [2.0], [2.0]])
    assert nearest_code(torch.tensor([[2.0], [0.1], [1.2]]), codes).tolist() == [k - 2, 0, 5]


SPOILT = (torch.nan, torch.inf, -torch.inf, 3e38)


@pytest.mark.parametrize("bad", SPOILT)
@pytest.mark.parametrize("priced", [False, True])
@pytest.mark.parametrize("k", [1, 7, 600])
def test_a_spoilt_vector_spoils_no_other(bad: float, priced: bool, k: int) -> None:
    """It gets some code of the codebook, and its neighbours get theirs."""
    codes = integers(-3, 3, k, 4, seed=k)
    penalty = integers(0, 5, k, seed=k + 1) if priced else None
    z = integers(-3, 3, 40, 4, seed=2, repeated=False)
    expected = brute_force(z, codes, penalty)
    z[3] = bad
    z[17, 2] = bad
    z[20, :2] = torch.tensor([bad, -bad])
    found = nearest_code(z, codes, penalty)
    assert ((found >= 0) & (found < k)).all()
    kept = [i for i in range(40) if i not in (3, 17, 20)]
    assert found[kept].tolist() == [expected[i] for i in kept]


@pytest.mark.parametrize("bad", SPOILT)
def test_a_spoilt_codebook_still_gives_indices_in_range(bad: float) -> None:
    for rows in (1, 9):
        codes = normal(9, 4)
        codes[:rows] = bad
        found = nearest_code(normal(50, 4, seed=1), codes)
        assert ((found >= 0) & (found < 9)).all()


@pytest.mark.parametrize("bad", SPOILT)
@pytest.mark.parametrize("options", [
    {}, {"init": "sonnet"}, {"revive": False}, {"ema": False}, {"entropy_penalty": 0.5},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("every", [False, True])
def test_training_on_spoilt_vectors_does_not_crash(bad: float, options: dict[str, Any], every: bool) -> None:
    vq = VectorQuantizer(6, 3, **options)
    for step in range(4):
        z = normal(20, 3, seed=step)
        z[slice(None) if every else slice(4, 6)] = bad
        out = vq(z.requires_grad_())
        out.loss.backward()
        assert ((out.encoding_indices >= 0) & (out.encoding_indices < 6)).all()
    assert int(vq.usage.sum() + vq.not_finite) == 80
    assert int(vq.not_finite) == (80 if every else 8)


# --- Sonnet, written out ---


class Average:
    """Sonnet's zero-debiased `ExponentialMovingAverage`."""

    def __init__(self, decay: float) -> None:
        self.decay, self.counter, self.hidden = decay, 0, np.zeros(())

    def __call__(self, value: np.ndarray) -> np.ndarray:
        self.counter += 1
        self.hidden = self.hidden - (self.hidden - value) * (1 - self.decay)
        return self.hidden / (1 - self.decay**self.counter)


class Sonnet:
    """Both of Sonnet's quantizers line by line after its source, in numpy and float64; codes are columns."""

    def __init__(self, codes: np.ndarray, cost: float, decay: float | None, epsilon: float = 1e-5) -> None:
        self.codes, self.cost, self.ema, self.epsilon = codes, cost, decay is not None, epsilon
        self.cluster_size, self.dw = Average(decay or 0.0), Average(decay or 0.0)

    def __call__(self, inputs: np.ndarray, weight: np.ndarray, is_training: bool) -> dict[str, Any]:
        """The outputs, and the gradients of sum(weight x quantize) + loss."""
        dim, size = self.codes.shape
        x = inputs.reshape(-1, dim)
        distances = (x**2).sum(1, keepdims=True) - 2 * x @ self.codes + (self.codes**2).sum(0, keepdims=True)
        index = (-distances).argmax(1)
        encodings = np.eye(size)[index]
        q = self.codes.T[index].reshape(inputs.shape)
        latent = ((q - inputs) ** 2).mean()
        share = encodings.mean(0)
        found = {
            "distances": distances,
            "indices": index.reshape(inputs.shape[:-1]),
            "quantize": inputs + (q - inputs),
            "loss": self.cost * latent + (0 if self.ema else latent),
            "perplexity": np.exp(-(share * np.log(share + 1e-10)).sum()),
            "gradient": weight + 2 * self.cost * (inputs - q) / inputs.size,
            "codes gradient": 2 / inputs.size * ((self.codes @ encodings.T - x.T) @ encodings),
        }
        if self.ema and is_training:
            count, total = self.cluster_size(encodings.sum(0)), self.dw(x.T @ encodings)
            n = count.sum()
            self.codes = total / ((count + self.epsilon) / (n + size * self.epsilon) * n)
        return found


def check_step(vq: VectorQuantizer, sonnet: Sonnet, z: Tensor, weight: Tensor) -> None:
    """One call of both: all they return, all gradients and the codebook afterwards agree to 1e-9."""
    expected = sonnet(z.numpy(), weight.numpy(), vq.training)
    z = z.clone().requires_grad_()
    vq.zero_grad()
    out = vq(z)
    ((out.quantize * weight).sum() + out.loss).backward()
    assert z.grad is not None
    assert out.encoding_indices.tolist() == expected["indices"].tolist()
    for found, name in ((out.quantize, "quantize"), (out.loss, "loss"), (out.perplexity, "perplexity")):
        np.testing.assert_allclose(found.detach().numpy(), expected[name], rtol=1e-9, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(z.grad.numpy(), expected["gradient"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(vq.embeddings.detach().numpy().T, sonnet.codes, rtol=1e-9, atol=1e-9)
    if not vq.ema:
        assert vq.embeddings.grad is not None
        np.testing.assert_allclose(
            vq.embeddings.grad.numpy().T, expected["codes gradient"], rtol=0, atol=1e-9
        )


@settings(max_examples=60, deadline=None)
@given(
    leading=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    k=st.integers(1, 20),
    d=st.integers(1, 9),
    ema=st.booleans(),
    decay=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99]),
    cost=st.sampled_from([0.25, 0.5, 1.0]),
    epsilon=st.sampled_from([1e-5, 0.3]),
    seed=st.integers(0, 9999),
)
def test_sonnet_step_by_step(
    leading: tuple[int, ...],
    k: int,
    d: int,
    ema: bool,
    decay: float,
    cost: float,
    epsilon: float,
    seed: int,
) -> None:
    """Training and evaluation in turn, both quantizers: values, gradients, averages and codebook."""
    codes = normal(k, d, seed=seed, dtype=torch.float64)
    options: dict[str, Any] = {"commitment_cost": cost, "decay": decay, "epsilon": epsilon, "ema": ema}
    vq = with_codes(codes, init="sonnet", revive=False, **options)
    sonnet = Sonnet(codes.numpy().T.copy(), cost, decay if ema else None, epsilon)
    steps = 0
    for step in range(6):
        vq.train(step % 3 != 2)
        z = normal(*leading, d, seed=seed + 10 + step, dtype=torch.float64)
        check_step(vq, sonnet, z, normal(*leading, d, seed=seed + 20 + step, dtype=torch.float64))
        steps += vq.training and ema
        assert steps == sonnet.cluster_size.counter
        if steps:
            assert int(vq.counter) == steps
            np.testing.assert_allclose(vq.ema_count.numpy(), sonnet.cluster_size.hidden, rtol=0, atol=1e-12)
            np.testing.assert_allclose(vq.ema_sum.numpy().T, sonnet.dw.hidden, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("d", "k", "cost", "decay", "shape", "training"), [
    (4, 6, 0.25, None, (2, 3, 4), True), (5, 7, 0.5, 0.9, (2, 5), True), (3, 4, 0.5, 0.9, (2, 3), False),
    (4, 8, 0.25, None, (16, 4), False), (6, 13, 0.5, 0.1, (16, 6), False),
])  # fmt: skip
def test_sonnets_own_configurations(
    d: int, k: int, cost: float, decay: float | None, shape: tuple[int, ...], training: bool
) -> None:
    """Its three conformance cases on inputs 0, 1, 2, ... and the two of its testConstruct."""
    codes = normal(k, d, seed=k, dtype=torch.float64)
    vq = with_codes(
        codes, init="sonnet", revive=False, commitment_cost=cost, decay=decay or 0.0, ema=decay is not None
    ).train(training)
    assert vq.embeddings.shape == (k, d)
    for z in (ramp(*shape), normal(*shape, seed=1, dtype=torch.float64)):
        sonnet = Sonnet(vq.embeddings.detach().numpy().T.copy(), cost, decay)
        sonnet.cluster_size.counter = sonnet.dw.counter = int(vq.counter)
        sonnet.cluster_size.hidden, sonnet.dw.hidden = (
            vq.ema_count.numpy().copy(),
            vq.ema_sum.numpy().T.copy(),
        )
        check_step(vq, sonnet, z, torch.ones_like(z))


def test_sonnets_moving_average() -> None:
    """Decay 0.5, inputs 3 then 6 give 3 then 5, and 3 again after a reset, seen through a single code."""
    for _ in range(2):
        vq = VectorQuantizer(1, 2, decay=0.5, init="sonnet", revive=False).double()
        for value, average in ((3.0, 3.0), (6.0, 5.0)):
            vq(torch.full((4, 2), value, dtype=torch.float64))
            assert (vq.embeddings - average).abs().max() < 1e-12


def test_sonnets_distances() -> None:
    """The squared distances .02 4.42 5.22 12.82, which no call returns: a code wins as soon as it is ahead by a hair."""
    codes = torch.tensor([[1, 0], [-1, 1], [0, -2], [3, 3]], dtype=torch.float64)
    z = torch.tensor([[0.9, 0.1]], dtype=torch.float64)
    for k, further in enumerate((4.42 - 0.02, 5.22 - 0.02, 12.82 - 0.02), 1):
        penalty = torch.full((4,), 100.0, dtype=torch.float64)
        penalty[k] = 0.0
        for excess, winner in ((-1e-9, 0), (1e-9, k)):
            penalty[0] = further + excess
            assert nearest_code(z, codes, penalty).tolist() == [winner]
    loss = VectorQuantizer(1, 2, commitment_cost=1.0).double()(z).loss
    with_first = with_codes(codes[:1], commitment_cost=1.0, init="sonnet").eval()(z)
    assert float(with_first.loss) * 2 == pytest.approx(0.02, abs=1e-9)
    assert float(loss) == 0.0, "the first codebook is the data"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("init", INITS)
def test_ten_calls_of_training_and_ten_of_evaluation(
    dtype: torch.dtype, init: Literal["data", "sonnet"]
) -> None:
    """Sonnet's testEmaUpdating: each of the former changes the codebook, none of the latter does."""
    vq = VectorQuantizer(7, 6, commitment_cost=0.5, decay=0.1, init=init, revive=init == "data").to(dtype)
    for step in range(10):
        before = vq.embeddings.clone()
        vq(normal(16, 6, seed=step, dtype=dtype))
        assert not torch.equal(vq.embeddings, before)
    vq.eval()
    kept = state_of(vq)
    for step in range(10):
        vq(normal(16, 6, seed=100 + step, dtype=dtype))
        assert same_tensors(kept, state_of(vq))


# --- known bugs of the field ---


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("revive", [False, True])
def test_counts_that_start_at_zero(init: Literal["data", "sonnet"], revive: bool) -> None:
    """rosinality/vq-vae-2-pytorch (pull request 72) and nadavbh12/VQ-VAE (issue 11): unused codes explode at once."""
    centres = normal(512, 64, seed=1) * 3
    noise = normal(512, 8, 64, seed=2) * 0.1
    noise[::2] = 0.0  # equal vectors in half of the clusters: a codebook drawn from them has idle codes too
    z = (centres[:, None] + noise).reshape(-1, 64)[torch.randperm(4096, generator=generator(3))]
    largest = z.norm(dim=1).max()
    vq = VectorQuantizer(512, 64, init=init, revive=revive)
    start = vq.embeddings.clone()
    out = vq(z)
    assert len(z) == 4096
    assert len(out.encoding_indices.unique()) < 512, "no code was left unused: the test does not test it"
    assert vq.embeddings.norm(dim=1).max() <= largest * (1 + 1e-5)  # but for rounding

    indices = nearest_code(z, start)  # the bug itself, on the same data
    count = torch.bincount(indices, minlength=512) * 0.01
    total = 0.99 * start + 0.01 * torch.zeros_like(start).index_add_(0, indices, z)
    smooth = (count + 1e-5) / (count.sum() + 512e-5) * count.sum()
    assert (total / smooth[:, None]).norm(dim=1).max() > 1000 * largest


@pytest.mark.parametrize("init", INITS)
def test_idle_codes_drift_to_the_origin(init: Literal["data", "sonnet"]) -> None:
    """zalandoresearch/pytorch-vq-vae (issue 10), and Sonnet itself, which `init="sonnet"` repeats on purpose."""
    busy = torch.full((8, 2), -5.0)
    both = torch.cat([busy[:7], torch.tensor([[4.0, 3.0]])])
    vq = with_codes(torch.tensor([[4.0, 3.0], [-5.0, -5.0]]), init=init, revive=False)
    vq.init = "sonnet"  # the codebook is given, also where the rest is as with "data"
    vq.counter.zero_()
    sizes = []
    for step in range(3000):
        if step == 1:
            vq.init = init
        out = vq(busy if step else both)
        sizes.append(float(vq.embeddings[0].norm()))
    assert out.encoding_indices.unique().tolist() == [1]
    assert (vq.embeddings[1] + 5).abs().max() < 1e-3
    if init == "data":
        assert (vq.embeddings[0] - torch.tensor([4.0, 3.0])).abs().max() < 1e-2
    else:
        assert sizes[200] == pytest.approx(5, rel=0.02)
        assert sizes[-1] < 1e-3


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("revive", [False, True])
def test_quantising_with_the_updated_codebook(init: Literal["data", "sonnet"], revive: bool) -> None:
    """zalandoresearch/pytorch-vq-vae (issue 5): indices, values and loss belong to the codebook before the step."""
    vq = VectorQuantizer(6, 3, decay=0.5, init=init, revive=revive).double()
    vq(normal(30, 3, seed=99, dtype=torch.float64))
    for step in range(6):
        old = vq.embeddings.clone()
        z = normal(30, 3, seed=step, dtype=torch.float64) + step
        out = vq(z)
        assert out.encoding_indices.tolist() == brute_force(z, old)
        codes = old[out.encoding_indices]
        assert torch.allclose(out.quantize, codes, rtol=0, atol=1e-12)
        assert torch.allclose(out.loss, 0.25 * (codes - z).square().mean(), rtol=1e-12)
        assert (vq.embeddings[out.encoding_indices] - codes).abs().max() > 1e-3


@pytest.mark.parametrize("autocast", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("ema", [True, False])
def test_an_infinite_loss_under_autocast(
    autocast: torch.dtype, dtype: torch.dtype, training: bool, ema: bool
) -> None:
    """rosinality/vq-vae-2-pytorch (issue 65): squares of thousands overflow float16 and are coarse in bfloat16."""
    codes = normal(16, 8) * 3000
    vq = with_codes(codes, init="sonnet", revive=False, ema=ema).train(training)
    z = (normal(64, 8, seed=1) * 3000).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=autocast):
        out = vq(z)
        out.loss.backward()
    expected = brute_force(z.detach(), codes)
    error = (codes[expected].double() - z.detach().double()).square().mean()
    assert out.encoding_indices.tolist() == expected
    assert out.quantize.dtype == dtype
    assert torch.allclose(out.quantize, codes[expected].to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-2)
    assert out.loss.dtype == vq.embeddings.dtype == torch.float32
    assert error > 65504, "no overflow threatens: the test does not test it"
    assert float(out.loss.detach()) == pytest.approx(float(error) * (0.25 if ema else 1.25), rel=1e-5)
    assert vq.embeddings.isfinite().all()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert z.grad.abs().max() > 0


@pytest.mark.parametrize("options", [
    {}, {"init": "sonnet"}, {"revive": False}, {"ema": False}, {"entropy_penalty": 0.5},
], ids=str)  # fmt: skip
def test_codes_that_change_in_evaluation(options: dict[str, Any]) -> None:
    """Ports that update without asking for the mode; here nothing at all changes, and results repeat."""
    vq = VectorQuantizer(8, 3, **options)
    untouched = state_of(vq)
    vq.eval()(normal(40, 3))
    assert same_tensors(untouched, state_of(vq)), "not even the first codebook is drawn"
    vq.train()(normal(40, 3))
    vq.eval()
    before = state_of(vq)
    first = vq(normal(40, 3, seed=1))
    for step in range(10):
        vq(normal(40, 3, seed=step) * 9)
        assert same_tensors(before, state_of(vq))
    assert torch.equal(vq(normal(40, 3, seed=1)).encoding_indices, first.encoding_indices)


def test_the_codebook_as_a_parameter_of_the_optimiser() -> None:
    """dm-sonnet 2.0.0, whose codebook was trainable: weight decay and momentum moved it besides the averages."""
    model = nn.Sequential(nn.Linear(3, 3), VectorQuantizer(8, 3))
    vq = model[1]
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    assert set(vq.state_dict()) == {"embeddings", "ema_count", "ema_sum", "counter", "distortion"}
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for step in range(3):
        out = model(normal(40, 3, seed=step))
        before = state_of(vq)
        (out.quantize.square().sum() + out.loss).backward()
        optimiser.step()
        assert same_tensors(before, state_of(vq))
    by_gradient = VectorQuantizer(8, 3, ema=False)
    assert [name for name, _ in by_gradient.named_parameters()] == ["embeddings"]


@pytest.mark.parametrize("options", [
    {}, {"init": "sonnet"}, {"init": "sonnet", "revive": False}, {"decay": 0.0}, {"ema": False}, {"entropy_penalty": 0.5},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("shape", [(0, 3), (0, 5, 5, 3), (2, 0, 3)])
def test_nan_on_an_empty_batch(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Sonnet and its ports: 0 / 0 in the mean, the frequencies and the averages; here an empty batch is no step."""
    vq = VectorQuantizer(8, 3, **options)
    for batches in (0, 2):  # first of all, and later
        for step in range(batches):
            vq(normal(40, 3, seed=step))
        before = state_of(vq)
        for training in (True, False):
            z = torch.zeros(shape, requires_grad=True)
            out = vq.train(training)(z)
            (out.loss + out.quantize.sum()).backward()
            assert float(out.loss.detach()) == 0
            assert float(out.perplexity) == 1
            assert out.encoding_indices.shape == shape[:-1]
            assert out.quantize.shape == shape
        vq.train()
        assert same_tensors(before, state_of(vq))
        if not vq.ema:
            assert vq.embeddings.grad is not None
            assert not vq.embeddings.grad.any()
