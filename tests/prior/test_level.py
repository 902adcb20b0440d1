"""One level's prior: steps equal the whole grid, and each position sees what came before it, all of it, and no more."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from contextlib import nullcontext
from typing import Any, Literal

import pytest
import torch
from prior_helpers import (
    ATTENTIVE,
    KINDS,
    TOLERANCE,
    Grids,
    area,
    config,
    embedded,
    every_grid,
    geometry,
    influences,
    inputs,
    level_prior,
    noise,
    positions,
    random_codes,
    refused,
    saved_bytes,
    stepped,
)
from torch import Tensor, nn

from vqvae2.codes import CodesError, Geometry
from vqvae2.prior.kinds import make_level
from vqvae2.prior.layers import ChannelNorm
from vqvae2.prior.level import ConditionBlock

LEVELS: list[Grids] = [  # none, one and two coarser levels; no square, and steps of other heights than widths
    ((3, 5),),
    ((2, 3), (4, 3)),
    ((2, 1), (2, 3), (4, 6)),
]


# --- one step at a time ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [*KINDS, {"kernel": 5}, {"kernel": 5, "attention_every": 1}])
@pytest.mark.parametrize("classes", [0, 2])
@pytest.mark.parametrize("grids", LEVELS)
def test_steps_are_the_whole_grid(
    dtype: torch.dtype, kind: dict[str, Any], classes: int, grids: Grids
) -> None:
    prior = level_prior(grids, None, classes, dtype, **kind)
    codes, coarser, labels = inputs(prior, grids)
    with torch.no_grad():
        whole = prior(codes, coarser, labels)
        steps = stepped(prior, codes, prior.context(coarser, labels))
    assert whole.dtype == dtype
    assert whole.std((2, 3)).min() > 1e-3
    assert (whole - steps).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (1, 7), (2, 1), (7, 1), (2, 2), (6, 4)])
@pytest.mark.parametrize(
    "options",
    [
        {"layers": 1, "output_layers": 0},
        {"layers": 5, "attention_every": 2, "heads": 1},
        {"layers": 3, "attention_every": 3, "heads": 8, "kernel": 7, "output_layers": 3},
        {"layers": 2, "attention_every": 5},
        {"kind": "transformer", "layers": 1, "heads": 8},
        {"kind": "transformer", "layers": 5, "heads": 1},
    ],
)
def test_steps_are_the_whole_grid_at_the_edges(grid: tuple[int, int], options: dict[str, Any]) -> None:
    prior = level_prior((grid,), **options)
    codes, _, _ = inputs(prior, (grid,))
    with torch.no_grad():
        assert (prior(codes) - stepped(prior, codes, None)).abs().max() < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_the_whole_grid_at_every_level_of_a_hierarchy(kind: dict[str, Any]) -> None:
    grids = LEVELS[2]
    for level in range(3):
        prior = level_prior(grids, level, 2, condition_blocks=2, **kind)
        codes, coarser, labels = inputs(prior, grids)
        assert codes.shape[1:] == grids[level]
        with torch.no_grad():
            whole = prior(codes, coarser, labels)
            assert (whole - stepped(prior, codes, prior.context(coarser, labels))).abs().max() < 1e-9


# --- who sees whom ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ATTENTIVE)
@pytest.mark.parametrize("grid", [(5, 3), (6, 2), (1, 6), (6, 1), (4, 9)])
def test_with_attention_a_position_sees_all_before_it(
    dtype: torch.dtype, kind: dict[str, Any], grid: tuple[int, int]
) -> None:
    """However wide the grid: the end of the row above comes in at the start of a row."""
    prior = level_prior((grid,), dtype=dtype, **kind)
    codes, _, _ = inputs(prior, (grid,), 1)
    logits, e = embedded(prior, codes)
    for r, c in positions(*grid):
        expected = area(*grid, lambda i, j, r=r, c=c: (i, j) < (r, c))
        assert torch.equal(influences(logits[:, :, r, c], e), expected), (r, c)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grids", LEVELS)
def test_another_code_changes_later_logits_only(kind: dict[str, Any], grids: Grids) -> None:
    prior = level_prior(grids, None, 2, **kind)
    codes, coarser, labels = inputs(prior, grids, 2)
    height, width = grids[-1]
    with torch.no_grad():
        before = prior(codes, coarser, labels)
        for p, (r, c) in enumerate(positions(height, width)):
            changed = codes.clone()
            changed[:, r, c] = (codes[:, r, c] + 1) % prior.vocabulary
            after = prior(changed, coarser, labels)
            differs = (before != after).any(1).flatten(1)
            assert not differs[:, : p + 1].any()
            if p + 1 < height * width:
                assert differs[:, p + 1 :].any(1).all()
            if r + 1 < height:
                assert differs.view(-1, height, width)[:, r + 1, c].all()
            if c + 1 < width:
                assert differs[:, p + 1].all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grids", LEVELS[1:])
def test_coarser_codes_reach_every_position(kind: dict[str, Any], grids: Grids) -> None:
    """Each level's code over a position reaches it directly, and so do the codes beside it, through the blocks."""
    prior = level_prior(grids, condition_blocks=3, **kind)
    codes, coarser, _ = inputs(prior, grids, 1)
    with torch.no_grad():
        before = prior(codes, coarser)
        for level, grid in enumerate(coarser):
            for r, c in positions(*grids[level]):
                other = grid.clone()
                other[:, r, c] = (grid[:, r, c] + 1) % (5 + level)
                after = prior(codes, (*coarser[:level], other, *coarser[level + 1 :]))
                assert (before != after).any(1).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coarser", ["all", "next"])
def test_which_coarser_codes_are_seen(kind: dict[str, Any], coarser: Literal["all", "next"]) -> None:
    """The others change nothing, to the last bit; a code of one that is seen changes every position."""
    geo = geometry(((1, 1), (2, 1), (2, 3), (4, 6)))
    prior = level_prior(geo.grids, coarser=coarser, **kind)
    codes, given, _ = inputs(prior, geo.grids, 1)
    assert prior.condition is not None
    for level in range(3):
        others = [torch.cat([given[i], (given[i] + 1) % geo.vocabulary[i]]) for i in range(3)]
        mixed = [others[i] if i == level else given[i].expand(2, -1, -1) for i in range(3)]
        one, other = prior(codes.expand(2, -1, -1), tuple(mixed))
        if coarser == "next" and level < 2:
            assert torch.equal(one, other)
        else:
            assert (one != other).any(0).all()
    assert len(prior.condition.embeddings) == {"all": 3, "next": 1}[coarser]


def test_at_the_first_finer_level_the_next_coarser_is_all() -> None:
    every, one = (level_prior(LEVELS[1], coarser=coarser) for coarser in ("all", "next"))
    codes, given, _ = inputs(every, LEVELS[1])
    assert torch.equal(every(codes, given), one(codes, given))


@pytest.mark.parametrize("grids", LEVELS[1:])
def test_without_blocks_a_coarser_code_lies_over_its_own_part_of_the_grid(grids: Grids) -> None:
    """The up-sampling keeps places: code (r, c) of a coarser h x w grid is context for its 1/h x 1/w of the finer."""
    prior = level_prior(grids, condition_blocks=0)
    _, coarser, _ = inputs(prior, grids, 1)
    height, width = grids[-1]
    with torch.no_grad():
        before = prior.context(coarser, None)
        assert before is not None
        assert before.shape == (1, 8, height, width)
        for level, (h, w) in enumerate(grids[:-1]):
            for r, c in positions(h, w):
                other = coarser[level].clone()
                other[:, r, c] = (other[:, r, c] + 1) % (5 + level)
                after = prior.context((*coarser[:level], other, *coarser[level + 1 :]), None)
                expected = area(
                    height, width, lambda i, j, at=(r, c), h=h, w=w: (i * h // height, j * w // width) == at
                )
                assert torch.equal((before != after).any(1)[0], expected)


def test_every_finer_part_of_an_upsampled_code_is_its_own() -> None:
    """The four fine positions under one coarse code are told different things."""
    prior = level_prior(((1, 1), (2, 2)), condition_blocks=0)
    context = prior.context((torch.tensor([[[3]]]),), None)
    assert context is not None
    assert len({tuple(v.tolist()) for v in context[0].flatten(1).T}) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_reaches_every_position(kind: dict[str, Any]) -> None:
    for grids in LEVELS:
        prior = level_prior(grids, None, 3, **kind)
        codes, coarser, _ = inputs(prior, grids, 1)
        with torch.no_grad():
            all_logits = [prior(codes, coarser, torch.tensor([label])) for label in range(4)]
        for a, b in itertools.combinations(all_logits, 2):
            assert (a != b).any(1).all()


# --- labels ---


@pytest.mark.parametrize("kind", KINDS)
def test_without_classes_labels_are_ignored(kind: dict[str, Any]) -> None:
    for grids in LEVELS:
        prior = level_prior(grids, **kind)
        codes, coarser, _ = inputs(prior, grids)
        assert torch.equal(prior(codes, coarser, torch.tensor([0, 7, 99])), prior(codes, coarser))
        assert prior.label is None


@pytest.mark.parametrize("kind", KINDS)
def test_no_label_is_a_class_of_its_own(kind: dict[str, Any]) -> None:
    """It has an embedding that learns, from the images without a label alone."""
    prior = level_prior(classes=3, **kind)
    codes, _, _ = inputs(prior, ((3, 5),))
    prior(codes, (), torch.tensor([3, 0, 3])).square().sum().backward()
    assert prior.label is not None
    assert prior.label.weight.grad is not None
    assert [bool(row.any()) for row in prior.label.weight.grad] == [True, False, False, True]


# --- the distribution ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("grid", "k"), [((2, 2), 5), ((1, 3), 5), ((3, 1), 5)])
def test_probabilities_of_all_grids_sum_to_one(kind: dict[str, Any], grid: tuple[int, int], k: int) -> None:
    prior = level_prior((grid,), **kind)
    codes = every_grid(*grid, k)
    with torch.no_grad():
        each = prior(codes).log_softmax(1).gather(1, codes[:, None]).sum((1, 2, 3))
    assert math.isclose(each.exp().sum().item(), 1, abs_tol=1e-9)
    assert each.std() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_images_do_not_see_each_other(kind: dict[str, Any]) -> None:
    grids = LEVELS[1]
    prior = level_prior(grids, None, 2, torch.float32, **kind)
    codes, coarser, labels = inputs(prior, grids, 3)
    assert labels is not None
    with torch.no_grad():
        whole = prior(codes, coarser, labels)
        for i in ([0], [2, 1]):
            part = prior(codes[i], tuple(level[i] for level in coarser), labels[i])
            assert torch.allclose(part, whole[i], atol=1e-5)


# --- construction ---


@pytest.mark.parametrize(
    ("grids", "found"),
    [
        (((2, 2), (3, 4)), "3x4 is no whole multiple of the coarser 2x2"),
        (((2, 2), (4, 5)), "4x5 is no whole multiple of the coarser 2x2"),
        (((4, 4), (2, 2)), "2x2 is no whole multiple of the coarser 4x4"),
        (((2, 3), (4, 6), (6, 6)), "6x6 is no whole multiple of the coarser 4x6"),
    ],
)
def test_grids_that_do_not_fit(grids: Grids, found: str) -> None:
    refused(lambda: level_prior(grids), found, CodesError)
    level_prior(grids, 0)  # the coarsest has nothing to fit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grids", LEVELS)
def test_every_weight_learns(kind: dict[str, Any], grids: Grids) -> None:
    prior = level_prior(grids, None, 2, **kind).train()
    codes, coarser, labels = inputs(prior, grids, 12)
    nn.functional.cross_entropy(prior(codes, coarser, labels), codes).backward()
    without = [n for n, p in prior.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert without == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_prior_predicts_the_same_everywhere(kind: dict[str, Any]) -> None:
    """The last layer starts at zero, so training starts at about log K nats, whatever the depth."""
    torch.manual_seed(0)
    fresh = make_level(config(**kind), geometry(((3, 5),)), 0, 0)
    logits = fresh(random_codes(geometry(((3, 5),))).levels[0])
    assert torch.equal(logits, logits[:1, :, :1, :1].expand_as(logits))


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_steps_learn(kind: dict[str, Any]) -> None:
    """A checkerboard with a random first code has one bit, in the first position."""
    torch.manual_seed(0)
    prior = make_level(config(hidden=16, residual=16, **kind), geometry(((4, 4),), 2), 0, 0)
    board = area(4, 4, lambda r, c: (r + c) % 2 == 1).long()
    codes = torch.stack([board, 1 - board])
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    for _ in range(80):
        loss = nn.functional.cross_entropy(prior(codes), codes, reduction="sum") / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert math.log(2) - 1e-3 < loss.item() < math.log(2) + 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_carries_everything(kind: dict[str, Any]) -> None:
    grids = LEVELS[1]
    a, b = (level_prior(grids, None, 2, seed=seed, **kind) for seed in (0, 1))
    codes, coarser, labels = inputs(a, grids)
    assert not torch.allclose(a(codes, coarser, labels), b(codes, coarser, labels))
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(codes, coarser, labels), b(codes, coarser, labels))


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_active_in_training_only(kind: dict[str, Any]) -> None:
    grids = LEVELS[1]
    prior = level_prior(grids, None, 2, dropout=0.3, **kind)
    given = inputs(prior, grids)
    assert torch.equal(prior(*given), prior(*given))
    calm = prior(*given)
    prior.train()
    assert not torch.allclose(prior(*given), prior(*given))
    assert not torch.allclose(prior(*given), calm)
    assert torch.equal(prior.eval()(*given), calm)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_checkpointing_changes_the_memory_and_nothing_else(
    kind: dict[str, Any], precision: torch.dtype | None
) -> None:
    """Loss and gradients to the last bit, dropout included; without it, 12 layers keep several times as much."""
    grids = LEVELS[1]
    prior = level_prior(grids, None, 2, torch.float32, layers=12, dropout=0.3, **kind).train()
    codes, coarser, labels = inputs(prior, grids)
    found, kept, calm = [], [], []

    def loss() -> Tensor:
        torch.manual_seed(5)
        return nn.functional.cross_entropy(prior(codes, coarser, labels).float(), codes)

    for prior.checkpointing in (False, True):
        kept.append(saved_bytes(loss))
        prior.zero_grad()
        with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
            value = loss()
        value.backward()
        found.append([value, *(p.grad for p in prior.parameters())])
        prior.eval()
        calm.append(saved_bytes(loss))
        prior.train()
    assert kept[1] < kept[0] / 2
    assert calm[1] == calm[0], "nothing is computed anew where nothing is trained"
    for plain, again in zip(*found, strict=True):
        assert plain is not None
        assert torch.equal(plain, again)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_without_dropout_leaves_random_states_alone(
    kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card refuses to tell its own while a step is recorded, so older versions of torch did not record such a prior's steps."""
    grids = LEVELS[1]

    def refused() -> Tensor:
        raise RuntimeError("Cannot call CUDAGeneratorImpl::current_seed during CUDA graph capture")

    monkeypatch.setattr(torch, "get_rng_state", refused)  # torch reads it where it reads that of the card
    for dropout in (0.0, 0.3):
        prior = level_prior(grids, None, 2, torch.float32, dropout=dropout, **kind).train()
        prior.checkpointing = True
        codes, coarser, labels = inputs(prior, grids)
        with pytest.raises(RuntimeError, match="during CUDA graph capture") if dropout else nullcontext():
            prior(codes, coarser, labels).sum().backward()


def test_dropout_is_in_the_conditioning_and_before_the_logits_too() -> None:
    block = ConditionBlock(8, 6, 0.5).double()
    x = noise(2, 8, 3, 3)
    assert torch.equal(block.eval()(x), block(x))
    assert not torch.allclose(block.train()(x), block(x))
    prior = level_prior(dropout=0.5, output_layers=0)
    codes, _, _ = inputs(prior, ((3, 5),))
    prior.output.train()  # the layers before it are in eval mode
    assert not torch.allclose(prior(codes), prior(codes))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_autocast_is_near_and_trains(kind: dict[str, Any]) -> None:
    grids = LEVELS[1]
    prior = level_prior(grids, None, 2, torch.float32, **kind)
    codes, coarser, labels = inputs(prior, grids)
    whole = prior(codes, coarser, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = prior(codes, coarser, labels)
        loss = nn.functional.cross_entropy(logits.float(), codes)
    assert (logits.float() - whole).abs().max() < 0.2 * whole.std() + 0.1
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in prior.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grids", LEVELS)
def test_under_autocast_the_residual_streams_are_in_its_type(kind: dict[str, Any], grids: Grids) -> None:
    """Nothing turns them into float32 again, so no layer has to cast them."""
    prior = level_prior(grids, None, 2, torch.float32, **kind)
    codes, coarser, labels = inputs(prior, grids)
    norms = [module for module in prior.modules() if isinstance(module, ChannelNorm)]
    types: list[torch.dtype] = []
    for norm in norms:
        norm.register_forward_hook(lambda _, given, y: types.extend((given[0].dtype, y.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prior(codes, coarser, labels)
    assert types == [torch.bfloat16] * (2 * len(norms))


_TRAIN_64 = """
import sys
from resource import RUSAGE_SELF, getrusage
import torch
from vqvae2.codes import Geometry
from vqvae2.config.models import LevelPriorConfig
from vqvae2.prior.kinds import make_level

def peak():
    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

before = peak()
options = {"hidden": 32, "residual": 32, "heads": 4, "layers": 1, "attention_every": 1, "kernel": 3, "output_layers": 0}
config = LevelPriorConfig(kind=sys.argv[1], dropout=float(sys.argv[2]), **options)
prior = make_level(config, Geometry(((64, 64),), (64,)), 0, 0).train()
codes = torch.randint(64, (2, 64, 64))
torch.nn.functional.cross_entropy(prior(codes), codes).backward()
print(before, peak())
"""


@pytest.mark.parametrize("kind", ["pixelcnn", "transformer"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_grid_of_64x64_attends_in_little_memory(kind: str, dropout: float) -> None:
    """A training step on 2 x 4,096 positions takes less than its attention scores alone would: 512 MiB a layer.

    Each case has a process of its own, because memory that an earlier one freed may stay with the process in pieces.
    """
    pytest.importorskip("resource", reason="not on Windows")
    done = subprocess.run(
        [sys.executable, "-c", _TRAIN_64, kind, str(dropout)],
        capture_output=True, text=True, timeout=900, check=True,
    )  # fmt: skip
    before, peak = map(int, done.stdout.split())
    assert peak - before < 2 * 4 * 4096 * 4096 * 4, (before, peak)


# --- before training ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grids", LEVELS)
def test_an_untrained_prior_knows_nothing(kind: dict[str, Any], grids: Grids) -> None:
    """Every code is equally likely, whatever came before: training starts at log K nats, not above."""
    prior = make_level(config(**kind), geometry(grids), len(grids) - 1, 2)
    codes, coarser, labels = inputs(prior, grids)
    assert prior(codes, coarser, labels).eq(0).all()


@pytest.mark.parametrize("coarser", ["all", "next"])
def test_codes_that_mean_nearly_the_same_start_nearly_the_same(coarser: str) -> None:
    """Distances between embeddings follow those between the codes, of this level and of the coarser ones it sees."""
    geo = Geometry(((1, 1), (2, 2), (4, 4)), (50, 40, 60))
    prior = make_level(config(hidden=64, coarser=coarser), geo, 2, 0)
    codebooks = [
        torch.randn(k, 3, generator=torch.Generator().manual_seed(k)) * 5 + 9 for k in geo.vocabulary
    ]
    torch.manual_seed(0)
    prior.start_from(codebooks)
    assert prior.condition is not None
    seen = codebooks if coarser == "all" else codebooks[1:]
    for embedding, codebook in zip([*prior.condition.embeddings, prior.embedding], seen, strict=True):
        assert isinstance(embedding, nn.Embedding)
        assert embedding.weight.std().item() == pytest.approx(1, abs=0.1)
        both = torch.stack([torch.pdist(embedding.weight.detach()), torch.pdist(codebook)])
        assert torch.corrcoef(both)[0, 1] > 0.6
