"""The static step, which a GPU records: it draws what plain steps draw and computes what the whole grid computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from card_stand_ins import FORBIDDEN, unrecordable
from comparing import same_codes
from prior_helpers import Grids, hierarchy, inputs, level_prior, random_codes, static_logits, stepped

from vqvae2.codes import Codes
from vqvae2.prior.captured import StepGraphs
from vqvae2.prior.chooser import UNKNOWN, Chooser, Rule
from vqvae2.prior.kinds import static_kind
from vqvae2.prior.step_ops import StepOps, StepSpec

KINDS = [
    pytest.param({}, id="pixelcnn"),
    pytest.param({"kernel": 5, "attention_every": 1}, id="with attention"),
    pytest.param({"kernel": 7, "attention_every": 2, "layers": 3, "output_layers": 0}, id="wide kernel"),
    pytest.param({"kind": "transformer"}, id="transformer"),
]
LEVELS: list[Grids] = [((3, 5),), ((2, 3), (4, 3)), ((2, 1), (2, 3), (4, 6))]


def graphs(**options: Any) -> StepGraphs:
    """As on a GPU, but nothing is recorded."""
    return StepGraphs(devices=("cpu",), least_positions=1, **options)


def test_what_was_recorded_for_other_batches_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A last, smaller batch needs its own recording, for which there may be no memory beside that of the others."""
    prior, kept, allocated = hierarchy(((2, 3),), 0), graphs(), list[int]()
    first, second = (prior.sample(n, seed=1) for n in (4, 3))
    record, full = StepGraphs._record, [False]

    def limited(self: StepGraphs, *arguments: Any) -> Any:
        if full[0] and self._recordings:
            raise torch.OutOfMemoryError("out of memory")
        allocated.append(len(self._recordings))
        return record(self, *arguments)

    monkeypatch.setattr(StepGraphs, "_record", limited)
    assert same_codes(prior.sample(4, seed=1, graphs=kept), first)
    full[0] = True
    assert same_codes(prior.sample(3, seed=1, graphs=kept), second)
    assert allocated == [0, 0]
    monkeypatch.setattr(
        StepGraphs, "_record", lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError("none"))
    )
    with pytest.raises(torch.OutOfMemoryError):
        prior.sample(5, seed=1, graphs=graphs())


def test_rows_that_cannot_be_recorded_are_drawn_without_a_recording(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a kind of prior reads a number on the host. One line says so, and no other recording is begun."""
    prior = hierarchy(((2, 3), (4, 3)), 0)
    expected = prior.sample(4, seed=1, graphs=StepGraphs(devices=()))
    graphs, drawn = unrecordable(monkeypatch)
    kept = StepGraphs(kernels="torch", devices=("cpu",), least_positions=1)
    for _ in range(2):
        assert same_codes(prior.sample(4, seed=1, graphs=kept), expected)
    assert kept.lost
    assert len(graphs) == 1
    assert len(drawn) == 1 + 2 * (2 + 4), "one row before the recording, and then each row of each grid"
    assert [record.getMessage() for record in caplog.records] == [
        f"drawing could not be captured as a CUDA graph and runs eagerly: CUDA error: {FORBIDDEN}"
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [0, 2])
@pytest.mark.parametrize("grids", LEVELS)
def test_static_steps_are_plain_steps_and_the_whole_grid(
    dtype: torch.dtype, kind: dict[str, Any], classes: int, grids: Grids
) -> None:
    prior = level_prior(grids, None, classes, dtype, **kind)
    codes, coarser, labels = inputs(prior, grids)
    with torch.no_grad():
        context, whole = prior.context(coarser, labels), prior(codes, coarser, labels)
        static = static_logits(prior, codes, context)
    bound = 1e-10 if dtype == torch.float64 else 1e-5 * max(1.0, whole.abs().max().item())
    assert whole.std() > 1e-2
    assert (static - whole).abs().max() < bound
    assert (static - stepped(prior, codes, context)).abs().max() < bound


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grids", [((3, 5),), ((2, 1), (2, 3), (4, 6))])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 3},
        {"top_p": 0.6},
        {"guidance": 2.5},
        {"guidance": 0.0, "top_p": 0.9},
    ],
)
def test_the_static_step_draws_the_codes_of_plain_steps(
    kind: dict[str, Any], grids: Grids, options: dict[str, Any]
) -> None:
    prior = hierarchy(grids, 2, 4, **kind)
    labels = torch.tensor([0, 1, 2, 1])
    plain = prior.sample([0, 3, 17, 4], labels, seed=3, **options)
    assert same_codes(prior.sample([0, 3, 17, 4], labels, seed=3, graphs=graphs(), **options), plain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_known_codes_are_kept(kind: dict[str, Any], guidance: float) -> None:
    prior = hierarchy(((1, 2), (2, 4), (4, 4)), 2, **kind)
    labels, holes = torch.tensor([0, 1, 0, 1]), random_codes(prior.geometry, 4, seed=5)
    some = Codes(tuple(torch.where(hole % 2 == 0, UNKNOWN, hole) for hole in holes.levels))
    plain = prior.sample(4, labels, seed=1, guidance=guidance, given=some)
    assert same_codes(prior.sample(4, labels, seed=1, guidance=guidance, given=some, graphs=graphs()), plain)
    for hole, level in zip(holes.levels, plain.levels, strict=True):
        assert torch.equal(level[hole % 2 == 1], hole[hole % 2 == 1])


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_the_same_at_any_batch_size(kind: dict[str, Any]) -> None:
    prior = hierarchy(((2, 2), (4, 4)), 2, dtype=torch.float32, **kind)
    labels, kept = torch.tensor([0, 1, 2, 1, 0]), graphs()
    whole = prior.sample(5, labels, seed=2, graphs=kept)
    for i in range(5):
        assert same_codes(prior.sample([i], labels[i : i + 1], seed=2, graphs=kept), whole[[i]])


@pytest.mark.parametrize("kind", KINDS)
def test_one_preparation_serves_many_batches_and_follows_the_weights(kind: dict[str, Any]) -> None:
    """Nothing of a grid stays behind for the next; weights changed in place or replaced are those that draw."""
    prior, kept = hierarchy(((2, 2), (4, 4)), 2, **kind), graphs()
    labels = torch.tensor([0, 1, 0])
    for seed in (1, 2, 1):
        assert same_codes(prior.sample(3, labels, seed=seed, graphs=kept), prior.sample(3, labels, seed=seed))
    before = prior.sample(3, labels, seed=1)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(1.5)
    changed = prior.sample(3, labels, seed=1)
    assert not same_codes(changed, before)
    assert same_codes(prior.sample(3, labels, seed=1, graphs=kept), changed)
    for module in list(prior.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(parameter.detach() / 1.5))
    assert same_codes(prior.sample(3, labels, seed=1, graphs=kept), before)


def test_preparations_are_kept_for_each_batch_and_rule_and_freed_with_the_prior() -> None:
    prior, kept = hierarchy(((2, 2), (4, 4)), 2), graphs()
    for _ in range(2):
        prior.sample(3, seed=1, graphs=kept)
        prior.sample(2, seed=1, graphs=kept, temperature=0.5)
    assert [len(by_spec) for by_spec in kept._recordings.values()] == [2, 2]
    del prior
    assert len(kept._recordings) == 0


def test_short_grids_and_other_devices_take_plain_steps() -> None:
    prior = level_prior(((3, 5),))
    assert not StepGraphs().takes(prior, 2, 10**6)
    assert not StepGraphs(devices=("cpu",), least_positions=16).takes(prior, 2, 15)
    assert StepGraphs(devices=("cpu",), least_positions=15).takes(prior, 2, 15)
    assert not StepGraphs(devices=("cpu",), least_positions=0).takes(prior, 0, 15)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_weights_are_near_and_the_stream_stays_float32(kind: dict[str, Any]) -> None:
    prior = level_prior(((2, 3), (4, 6)), None, 2, torch.float32, hidden=32, residual=32, **kind)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(0.4)
        codes, coarser, labels = inputs(prior, ((2, 3), (4, 6)))
        whole = prior(codes, coarser, labels)
        logits = static_logits(prior, codes, prior.context(coarser, labels), torch.bfloat16)
    assert logits.dtype == torch.float32
    assert 0 < (logits - whole).abs().max() < 0.05 * whole.std() + 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_static_step_copies_nothing_to_or_from_the_host(kind: dict[str, Any]) -> None:
    """On the meta device a value cannot be looked at, so whatever asks for one fails."""
    prior = level_prior(((2, 3), (4, 6)), None, 2, torch.float32, **kind).to("meta")
    context = torch.zeros(2, 8, 4, 6, device="meta")
    spec = StepSpec(2, tuple(context.shape), torch.float32, torch.float32, context.device)
    kind_of = static_kind(prior)
    assert kind_of is not None
    static = kind_of(prior, spec, StepOps())
    chooser = Chooser.__new__(Chooser)
    chooser.rule = Rule(0.9, 3, 0.8, 1.0, False)
    chooser.uniforms = torch.zeros(24, 2, dtype=torch.float64, device="meta")
    chooser.known = torch.zeros(24, 2, dtype=torch.int64, device="meta")
    with torch.no_grad():
        static.load(prior, context)
        static.draw_row(chooser)


def test_a_clone_of_a_chooser_has_memory_of_its_own() -> None:
    known = torch.full((2, 3), UNKNOWN)
    first = Chooser(torch.zeros(2, 3, dtype=torch.float64), known, Rule())
    copy = first.clone()
    copy.copy_(Chooser(torch.ones(2, 3, dtype=torch.float64), known + 1, Rule()))
    assert first.uniforms.eq(0).all()
    assert first.known.eq(UNKNOWN).all()
    assert copy.uniforms.eq(1).all()
    assert copy.known.eq(0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["fused", "torch"])
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_rows_draw_the_codes_of_plain_steps(kind: dict[str, Any], kernels: str) -> None:
    """On a GPU, at any batch size, for several batches of one recording, with and without guidance."""
    prior = hierarchy(((2, 2), (4, 4)), 2, 9, torch.float32, hidden=32, residual=32, **kind).cuda()
    labels, kept = torch.tensor([0, 1, 2, 0, 1]), StepGraphs(kernels=kernels, least_positions=1)
    for options in ({}, {"temperature": 0.0}, {"guidance": 2.0, "top_k": 5}, {"top_p": 0.8}):
        for seed in (1, 2):
            plain = prior.sample(5, labels, seed=seed, graphs=StepGraphs(devices=()), **options)  # type: ignore[arg-type]
            assert same_codes(prior.sample(5, labels, seed=seed, graphs=kept, **options), plain)  # type: ignore[arg-type]
        alone = prior.sample([3], labels[3:4], seed=2, graphs=kept, **options)  # type: ignore[arg-type]
        assert same_codes(alone, plain[[3]])
