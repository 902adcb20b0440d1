"""The chain of levels: it is a probability distribution, and sampling draws from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import same_codes
from prior_helpers import (
    ATTENTIVE,
    KINDS,
    Grids,
    config,
    every_code,
    every_grid,
    geometry,
    hierarchy,
    naive_sample,
    positions,
    random_codes,
    random_labels,
    refused,
)
from torch import Tensor
from torch import distributed as dist
from torch_versions import needs_torch

from vqvae2.codes import Codes, CodesError
from vqvae2.config.models import PriorConfig
from vqvae2.prior.hierarchy import UNKNOWN, HierarchicalPrior
from vqvae2.prior.pixelcnn import PixelCNN
from vqvae2.prior.scan import scan
from vqvae2.prior.transformer import Transformer

TINY: list[tuple[Grids, int]] = [  # grids, size of the coarsest vocabulary
    (((1, 1), (2, 2)), 2),
    (((1, 2), (2, 2)), 2),
    (((2, 2),), 3),
    (((1, 1), (2, 1), (2, 2)), 2),
]


def prior_of(codes: int = 0, **options: Any) -> tuple[HierarchicalPrior, Codes]:
    """Two levels with two classes, and some codes."""
    prior = hierarchy(classes=2, **({"attention_every": 2} | options))
    return prior, random_codes(prior.geometry, codes or 3)


# --- probabilities ---


@pytest.mark.parametrize(("grids", "k"), TINY)
@pytest.mark.parametrize("classes", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_of_everything_sum_to_one(
    grids: Grids, k: int, classes: int, kind: dict[str, Any]
) -> None:
    prior = hierarchy(grids, classes, k, **kind)
    codes = every_code(prior.geometry)
    assert len(codes) == math.prod(
        k**n for k, n in zip(prior.geometry.vocabulary, prior.geometry.positions, strict=True)
    )
    for label in [None, *range(classes)]:
        labels = None if label is None else torch.full((len(codes),), label)
        with torch.no_grad():
            each = prior.log_prob(codes, labels)
        assert each.shape == (len(codes), len(grids))
        assert math.isclose(each.sum(1).exp().sum().item(), 1, abs_tol=1e-9)
        assert each.sum(1).std() > 1e-2


@pytest.mark.parametrize(("grids", "k"), TINY)
def test_each_levels_probabilities_sum_to_one_given_the_coarser(grids: Grids, k: int) -> None:
    prior = hierarchy(grids, 2, k, attention_every=1)
    for level, grid in enumerate(grids):
        every = every_grid(*grid, prior.geometry.vocabulary[level])
        for seed in range(4):
            fixed = random_codes(prior.geometry, 1, seed)
            levels = [x.expand(len(every), -1, -1) for x in fixed.levels]
            levels[level] = every
            with torch.no_grad():
                column = prior.log_prob(Codes(tuple(levels)), torch.full((len(every),), seed % 3))[:, level]
            assert math.isclose(column.exp().sum().item(), 1, abs_tol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [0, 2])
@pytest.mark.parametrize("kind", ATTENTIVE)
def test_log_prob_is_what_scan_reports(dtype: torch.dtype, classes: int, kind: dict[str, Any]) -> None:
    """Supplying the known symbols and adding up their log-probabilities, as a codec does."""
    prior = hierarchy(((2, 1), (2, 3), (4, 6)), classes, dtype=dtype, **kind)
    codes, labels = random_codes(prior.geometry, 3), random_labels(classes)
    with torch.no_grad():
        expected = prior.log_prob(codes, labels)
    for index, level in enumerate(codes.levels):
        total = torch.zeros(3, dtype=torch.float64)

        def choose(position: int, logits: Tensor, level: Tensor = level, total: Tensor = total) -> Tensor:
            symbols = level.flatten(1)[:, position]
            total += logits.double().log_softmax(1).gather(1, symbols[:, None])[:, 0]
            return symbols

        context = prior.level(index).context(codes.levels[:index], prior.check_labels(labels, 3))
        scan(prior.level(index), 3, context, choose)
        assert torch.allclose(
            total, expected[:, index].double(), rtol=0, atol=1e-9 if dtype == torch.float64 else 1e-3
        )


def test_log_prob_is_each_levels_own_given_the_coarser_ones() -> None:
    """Finer codes do not enter the probability of coarser ones; coarser enter that of finer ones."""
    prior = hierarchy(((1, 2), (2, 4), (4, 4)))
    a, b = random_codes(prior.geometry, 4, 1), random_codes(prior.geometry, 4, 2)
    whole = prior.log_prob(a)
    for k in (1, 2):
        mixed = prior.log_prob(Codes((*a.levels[:k], *b.levels[k:])))
        assert torch.allclose(mixed[:, :k], whole[:, :k], atol=1e-12)
        mixed = prior.log_prob(Codes((*b.levels[:k], *a.levels[k:])))
        assert (mixed[:, k:] - whole[:, k:]).abs().min() > 1e-6


def test_log_prob_from_the_logits() -> None:
    prior, codes = prior_of()
    labels = random_labels(2)
    expected = [
        sum(prior.logits(codes, level, labels)[0, :, r, c].log_softmax(0)[codes.levels[level][0, r, c]]
            for r, c in positions(*prior.geometry.grids[level]))
        for level in (0, 1)
    ]  # fmt: skip
    assert torch.allclose(prior.log_prob(codes, labels)[0], torch.stack(expected), atol=1e-9)  # type: ignore[arg-type]


def test_a_logarithm_without_loss_of_half_precision() -> None:
    prior, codes = prior_of(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert prior.log_prob(codes).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int32])
def test_codes_of_any_integer_type_are_alike(dtype: torch.dtype) -> None:
    prior, codes = prior_of()
    small = Codes(tuple(level.to(dtype) for level in codes.levels))
    assert torch.equal(prior.log_prob(small), prior.log_prob(codes))
    assert same_codes(
        prior.sample(3, given=Codes(small.levels[:1])), prior.sample(3, given=Codes(codes.levels[:1]))
    )


def test_an_empty_batch_of_codes() -> None:
    prior, _ = prior_of()
    empty = random_codes(prior.geometry, 0)
    assert prior.log_prob(empty).shape == (0, 2)
    assert prior.log_prob(empty, torch.zeros(0, dtype=torch.int64)).shape == (0, 2)


def test_scores_and_samples_do_not_depend_on_autocast() -> None:
    prior, codes = prior_of(dtype=torch.float32)
    with torch.no_grad():
        expected, sample = prior.log_prob(codes), prior.sample(9)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(prior.log_prob(codes), expected)
            assert same_codes(prior.sample(9), sample)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(prior.log_prob(codes), expected)  # with gradients, as in training


@needs_torch(2, 7)
def test_scoring_compiles_to_one_graph() -> None:
    prior, codes = prior_of()
    labels = random_labels(2)
    compiled = torch.compile(prior.log_prob, fullgraph=True, backend="eager")
    assert torch.equal(compiled(codes, labels), prior.log_prob(codes, labels))


# --- forward, which wrappers of networks call ---


def test_forward_is_log_prob_in_eval_mode() -> None:
    prior, codes = prior_of()
    labels = random_labels(2)
    assert torch.equal(prior(codes, labels), prior.log_prob(codes, labels))
    assert torch.equal(prior(codes), prior.log_prob(codes))
    refused(lambda: prior(random_codes(geometry(((1, 2), (4, 4)), 3))), "grids", CodesError)


def test_a_wrapped_prior_learns_the_same(tmp_path: Path) -> None:
    """`DistributedDataParallel` takes part in a training only where its own forward is called."""
    prior, codes = prior_of()
    labels = random_labels(2)

    def gradients(net: torch.nn.Module) -> list[Tensor]:
        prior.zero_grad()
        net(codes, labels).sum().backward()
        return [p.grad.clone() for p in prior.parameters() if p.grad is not None]

    expected = gradients(prior)
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        found = gradients(torch.nn.parallel.DistributedDataParallel(prior))
    finally:
        dist.destroy_process_group()
    assert len(found) == len(expected) > 10
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_training_by_forward_learns_no_label() -> None:
    """ "No label" learns the mean over the classes, and each label its own code; `log_prob` never hides one."""
    torch.manual_seed(0)
    plan = PriorConfig(levels=(config(label_dropout=0.5),), classes=2)
    prior = HierarchicalPrior(plan, geometry(((1, 1),), 2))
    labels = torch.tensor([0, 1] * 256)
    codes = Codes((labels[:, None, None],))  # the class is the code
    optimizer = torch.optim.Adam(prior.parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        (-prior(codes, labels).sum(1).mean()).backward()
        optimizer.step()
    with torch.no_grad():
        assert torch.allclose(prior.log_prob(codes), torch.tensor(0.5).log(), atol=0.3)
        assert prior.log_prob(codes, labels).min() > math.log(0.9)


def test_every_level_hides_its_own_share_of_labels() -> None:
    levels = (config(label_dropout=0.0), config(label_dropout=1.0))
    prior = HierarchicalPrior(PriorConfig(levels=levels, classes=2), geometry(((1, 2), (2, 4)), 3)).train()
    labels = torch.tensor([0, 1, 1])
    assert prior.level(0).dropped(labels).equal(labels)
    assert prior.level(1).dropped(labels).tolist() == [2, 2, 2]


# --- labels ---


def test_no_label_is_the_number_after_the_last_class() -> None:
    prior, codes = prior_of()
    none = prior.log_prob(codes)
    assert torch.equal(none, prior.log_prob(codes, torch.full((3,), 2)))
    for label in (0, 1):
        assert ((none - prior.log_prob(codes, torch.full((3,), label))).abs() > 1e-9).all()
    assert same_codes(prior.sample(5, seed=1), prior.sample(5, torch.full((5,), 2), seed=1))


def test_a_dropped_label_is_dropped_for_its_own_image_only() -> None:
    prior, codes = prior_of()
    mixed = prior.log_prob(codes, torch.tensor([0, 2, 1]))
    assert torch.allclose(mixed[0], prior.log_prob(codes, torch.tensor([0, 0, 0]))[0], atol=1e-12)
    assert torch.allclose(mixed[1], prior.log_prob(codes)[1], atol=1e-12)
    assert torch.allclose(mixed[2], prior.log_prob(codes, torch.tensor([1, 1, 1]))[2], atol=1e-12)


def test_without_classes_labels_are_ignored() -> None:
    prior = hierarchy()
    codes, labels = random_codes(prior.geometry, 3), torch.tensor([0, 5, -9])
    assert prior.check_labels(labels, 3) is None
    assert torch.equal(prior.log_prob(codes, labels), prior.log_prob(codes))
    assert same_codes(prior.sample(3, labels, guidance=3.0), prior.sample(3))


def test_labels_may_be_any_integers() -> None:
    prior, codes = prior_of()
    expected = prior.log_prob(codes, torch.tensor([0, 1, 1]))
    for labels in ([0, 1, 1], torch.tensor([0, 1, 1], dtype=torch.uint8), torch.tensor([0, 1, 1]).int()):
        assert torch.equal(prior.log_prob(codes, labels), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"expected 3 labels, found shape \(2,\)"),
        ([[0, 1, 0]], r"expected 3 labels, found shape \(1, 3\)"),
        ([0, 3, 1], r"expected class numbers 0\.\.1, or 2 for no label, found 0\.\.3"),
        ([0, -1, 1], r"expected class numbers 0\.\.1, or 2 for no label, found -1\.\.1"),
        ([0.9, 1.2, 0.0], r"expected class numbers that are integers, found torch\.float32"),
    ],
)
def test_labels_that_do_not_fit(labels: Any, message: str) -> None:
    prior, codes = prior_of()
    labels = torch.tensor(labels)
    refused(lambda: prior.log_prob(codes, labels), message)
    refused(lambda: prior.logits(codes, 0, labels), message)
    refused(lambda: prior.sample(3, labels), message)


# --- sampling draws from the distribution ---


def chi_square_fits(prior: HierarchicalPrior, codes: Codes, labels: Tensor | None = None) -> bool:
    """Whether the frequencies of codes over all outcomes are those of exp(log_prob), within 5 sigma."""
    every = every_code(prior.geometry)
    with torch.no_grad():
        p = prior.log_prob(every, None if labels is None else labels[:1].expand(len(every))).sum(1).exp()
    index = {tuple(row): i for i, row in enumerate(_rows(every))}
    counts = torch.zeros(len(every), dtype=torch.float64)
    for row in _rows(codes):
        counts[index[tuple(row)]] += 1
    rare = p * len(codes) < 5  # together one cell
    expected = torch.cat([p[~rare], p[rare].sum()[None]]) * len(codes) + 1e-12
    found = torch.cat([counts[~rare], counts[rare].sum()[None]])
    freedom = len(expected) - 1
    assert freedom > 5
    return bool(((found - expected).square() / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5)


def _rows(codes: Codes) -> list[list[int]]:
    rows: list[list[int]] = torch.cat([level.flatten(1) for level in codes.levels], 1).tolist()
    return rows


@pytest.mark.parametrize("label", [None, 0, 1])
def test_samples_have_the_frequencies_of_their_probabilities(label: int | None) -> None:
    prior = hierarchy(((1, 1), (2, 2)), 2, 2, attention_every=1)
    n = 3000
    labels = None if label is None else torch.full((n,), label)
    codes = prior.sample(n, labels, seed=4)
    assert chi_square_fits(prior, codes, labels)
    others = [other for other in (None, 0, 1) if other != label]
    for other in others:  # and the bound is sharp enough to tell the classes apart
        assert not chi_square_fits(prior, codes, None if other is None else torch.full((n,), other))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 0.0},
        {"top_k": 2},
        {"top_p": 0.6},
        {"guidance": 2.5},
        {"guidance": 0.4},
        {"temperature": 1.3, "top_k": 3, "top_p": 0.8, "guidance": 1.7},
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_sampling_is_the_slow_way_done_fast(kind: dict[str, Any], options: dict[str, float]) -> None:
    """One image at a time with whole-grid logits: the same codes."""
    prior, _ = prior_of(grids=((1, 2), (2, 4)), k=4, **kind)
    images, labels = [0, 3, 17], torch.tensor([1, 0, 2])
    fast = prior.sample(images, labels, seed=9, **options)  # type: ignore[arg-type]
    assert same_codes(fast, naive_sample(prior, images, labels, 9, **options))
    prior.geometry.check(fast)
    assert all(level.dtype == torch.int64 for level in fast.levels)


def test_sampling_a_chain_of_three_levels_the_slow_way() -> None:
    prior = hierarchy(((1, 1), (1, 3), (2, 3)))
    assert same_codes(prior.sample([5, 1], seed=2), naive_sample(prior, [5, 1], None, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_cold_sampling_takes_the_most_likely_code_each_time(kind: dict[str, Any]) -> None:
    prior, _ = prior_of(**kind)
    codes = prior.sample(4, torch.tensor([0, 1, 0, 1]), temperature=0.0, seed=1)
    for level in (0, 1):
        assert torch.equal(
            prior.logits(codes, level, torch.tensor([0, 1, 0, 1])).argmax(1), codes.levels[level]
        )
    assert same_codes(codes, prior.sample(4, torch.tensor([0, 1, 0, 1]), temperature=0.0, seed=2))
    assert same_codes(codes, prior.sample(4, torch.tensor([0, 1, 0, 1]), top_k=1, seed=3))
    assert same_codes(codes, prior.sample(4, torch.tensor([0, 1, 0, 1]), top_p=1e-9, seed=4))


# --- one random stream per image ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("kind", ATTENTIVE)
def test_an_image_is_the_same_in_any_batch(dtype: torch.dtype, guidance: float, kind: dict[str, Any]) -> None:
    prior = hierarchy(classes=2, dtype=dtype, **kind)
    labels = torch.tensor([0, 1, 2, 1, 0, 1])
    whole = prior.sample(6, labels, guidance=guidance, seed=11)
    for images in ([0], [5], [4, 2], [1, 3, 5, 0, 2], [3, 3]):
        part = prior.sample(images, labels[images], guidance=guidance, seed=11)
        assert same_codes(part, whole[images])
    assert same_codes(prior.sample(range(2, 5), labels[2:5], guidance=guidance, seed=11), whole[2:5])


def test_seeds_and_images_differ() -> None:
    prior, _ = prior_of(k=9)
    a, b = prior.sample(6, seed=1), prior.sample(6, seed=2)
    rows = _rows(a) + _rows(b)
    assert len({tuple(row) for row in rows}) == 12
    assert same_codes(a, prior.sample(6, seed=1))


def test_the_global_seed_does_not_matter_and_is_not_moved() -> None:
    prior, _ = prior_of()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a = prior.sample(4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same_codes(a, prior.sample(4))


# --- guidance ---


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_one_is_off(kind: dict[str, Any]) -> None:
    """Exactly one takes a short cut; as good as one does not, and draws the same."""
    prior, _ = prior_of(**kind)
    labels = torch.tensor([0, 1] * 4)
    plain = prior.sample(8, labels, seed=3)
    assert same_codes(plain, prior.sample(8, labels, seed=3, guidance=1.0))
    assert same_codes(plain, prior.sample(8, labels, seed=3, guidance=1 + 1e-12))
    assert not same_codes(plain, prior.sample(8, labels, seed=3, guidance=8.0))


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_zero_is_no_label(kind: dict[str, Any]) -> None:
    prior, _ = prior_of(**kind)
    labels = torch.tensor([0, 1] * 4)
    free = prior.sample(8, seed=3)
    assert same_codes(free, prior.sample(8, labels, seed=3, guidance=0.0))
    assert not same_codes(free, prior.sample(8, labels, seed=3))


def test_guidance_without_a_label_changes_nothing() -> None:
    prior, _ = prior_of()
    assert same_codes(prior.sample(8, seed=3, guidance=4.0), prior.sample(8, seed=3))
    assert same_codes(prior.sample(8, torch.full((8,), 2), seed=3, guidance=4.0), prior.sample(8, seed=3))


def test_guidance_makes_the_class_more_likely() -> None:
    """Ratio of the class's probability to that of no label, on average over samples."""
    prior = hierarchy(((1, 1), (2, 2)), 2, 3)
    labels = torch.zeros(200, dtype=torch.int64)
    ratios = []
    for guidance in (0.0, 1.0, 2.0, 4.0):
        codes = prior.sample(200, labels, guidance=guidance, seed=1)
        ratios.append((prior.log_prob(codes, labels) - prior.log_prob(codes)).sum(1).mean().item())
    assert ratios == sorted(ratios)
    assert ratios[0] < 0 < ratios[-1]


# --- given levels ---


def test_given_levels_are_kept_and_the_rest_drawn() -> None:
    prior = hierarchy(((1, 2), (2, 4), (4, 4)), 2)
    labels = torch.tensor([0, 1, 2, 0])
    whole, other = prior.sample(4, labels, seed=1), random_codes(prior.geometry, 4)
    for k in (1, 2, 3):
        assert same_codes(prior.sample(4, labels, seed=1, given=Codes(whole.levels[:k])), whole)
        mixed = prior.sample(4, labels, seed=1, given=Codes(other.levels[:k]))
        assert same_codes(Codes(mixed.levels[:k]), Codes(other.levels[:k]))
        if k < 3:
            assert not torch.equal(mixed.levels[2], whole.levels[2])
        prior.geometry.check(mixed)


def test_given_levels_with_guidance() -> None:
    prior, _ = prior_of()
    labels = torch.tensor([0, 1, 0, 1])
    whole = prior.sample(4, labels, seed=1, guidance=3.0)
    again = prior.sample(4, labels, seed=1, guidance=3.0, given=Codes(whole.levels[:1]))
    assert same_codes(again, whole)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_given_codes_are_kept_and_the_unknown_ones_drawn(kind: dict[str, Any], guidance: float) -> None:
    """Any positions of any levels; numbers belong to a position, so the same seed draws the same there."""
    prior = hierarchy(((1, 2), (2, 4), (4, 4)), 2, **kind)
    labels, holes = torch.tensor([0, 1, 0, 1]), random_codes(prior.geometry, 4, seed=5)
    whole = prior.sample(4, labels, seed=1, guidance=guidance)

    def with_holes(codes: Codes) -> Codes:
        pairs = zip(codes.levels, holes.levels, strict=True)
        return Codes(tuple(torch.where(hole % 2 == 0, UNKNOWN, level) for level, hole in pairs))

    again = prior.sample(4, labels, seed=1, guidance=guidance, given=with_holes(whole))
    assert same_codes(again, whole)
    other = prior.sample(4, labels, seed=2, guidance=guidance, given=with_holes(whole))
    prior.geometry.check(other)
    assert not same_codes(other, whole)
    for before, after, hole in zip(whole.levels, other.levels, holes.levels, strict=True):
        assert torch.equal(before[hole % 2 == 1], after[hole % 2 == 1])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_known_is_nothing_given(kind: dict[str, Any]) -> None:
    prior, codes = prior_of(4, **kind)
    unknown = Codes(tuple(torch.full_like(level, UNKNOWN) for level in codes.levels))
    assert same_codes(prior.sample(4, seed=1, given=unknown), prior.sample(4, seed=1))


@pytest.mark.parametrize("kind", KINDS)
def test_all_given_is_all_kept(kind: dict[str, Any]) -> None:
    prior, codes = prior_of(4, **kind)
    assert same_codes(prior.sample(4, seed=1, given=codes), codes)


@pytest.mark.parametrize(
    "case", ["grids", "levels", "more levels", "batch", "one for all", "codes", "negative"]
)
def test_given_levels_that_do_not_fit(case: str) -> None:
    """A user's error, not one of the depths."""
    prior, _ = prior_of()
    coarse, fine = random_codes(prior.geometry, 3).levels
    given = {
        "grids": Codes((fine,)),
        "levels": Codes((coarse, coarse)),
        "more levels": Codes((coarse, fine, fine)),
        "batch": Codes((coarse[:2],)),
        "one for all": Codes((coarse[:1],)),
        "codes": Codes((coarse + 3,)),
        "negative": Codes((coarse - 3,)),
    }[case]
    refused(lambda: prior.sample(3, given=given), ".", CodesError)


# --- arguments out of range ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "expected at least one image to sample, found n = 0"),
        ({"n": []}, "expected at least one image to sample"),
        ({"n": -2}, "expected at least one image to sample, found n = -2"),
        ({"n": [0, -1]}, "-1"),
        ({"seed": -1}, "expected a seed between 0"),
        ({"seed": 2**63}, "expected a seed between 0"),
        ({"temperature": -1.0}, "expected temperature >= 0"),
        ({"temperature": math.nan}, "expected temperature >= 0"),
        ({"top_k": -1}, "top_k >= 0"),
        ({"top_p": 0.0}, "0 < top_p <= 1"),
        ({"top_p": 1.5}, "0 < top_p <= 1"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    prior, _ = prior_of()
    refused(lambda: prior.sample(**({"n": 2} | options)), message)


@pytest.mark.parametrize("levels", [1, 3])
def test_as_many_priors_as_levels(levels: int) -> None:
    plan = PriorConfig(levels=(config(),) * levels)
    refused(
        lambda: HierarchicalPrior(plan, geometry(((1, 1), (2, 2)))),
        f"expected 2 level priors for this geometry, found {levels}",
    )


def test_grids_that_do_not_fit_each_other() -> None:
    refused(lambda: hierarchy(((2, 2), (3, 3))), "3x3 is no whole multiple of the coarser 2x2", CodesError)


def test_codes_that_do_not_fit_the_geometry() -> None:
    prior, codes = prior_of()
    coarse, fine = codes.levels
    for bad, message in (
        (Codes((coarse,)), "expected grids"),
        (Codes((fine, coarse)), "expected grids"),
        (Codes((coarse, fine, fine)), "expected grids"),
        (Codes((coarse + 3, fine)), r"level 0: expected codes in 0\.\.2"),
        (Codes((coarse, fine - 4)), r"level 1: expected codes in 0\.\.3"),
    ):
        refused(lambda bad=bad: prior.log_prob(bad), message, CodesError)


# --- modes and state ---


@pytest.mark.parametrize("training", [True, False])
def test_sampling_is_in_eval_mode_and_restores_the_mode(training: bool) -> None:
    prior, _ = prior_of(dropout=0.5)
    expected = prior.eval().sample(4, seed=1)
    prior.train(training)
    assert same_codes(prior.sample(4, seed=1), expected)
    assert all(module.training == training for module in prior.modules())


def test_sampling_restores_a_mixture_of_modes() -> None:
    prior, _ = prior_of()
    prior.train()
    prior.level(0).eval()
    modes = {name: module.training for name, module in prior.named_modules()}
    prior.sample(2)
    assert {name: module.training for name, module in prior.named_modules()} == modes


def test_sampling_restores_the_mode_after_an_error() -> None:
    prior, _ = prior_of()
    prior.train()
    refused(lambda: prior.sample(2, temperature=-1.0), "temperature")
    assert all(module.training for module in prior.modules())


def test_log_prob_is_calm_in_eval_mode_only() -> None:
    prior, codes = prior_of(dropout=0.5)
    assert torch.equal(prior.log_prob(codes), prior.log_prob(codes))
    prior.train()
    assert not torch.allclose(prior.log_prob(codes), prior.log_prob(codes))


def test_sampling_needs_and_leaves_no_gradient() -> None:
    prior, _ = prior_of()
    prior.sample(2, torch.tensor([0, 1]), guidance=2.0)
    assert torch.is_grad_enabled()
    assert all(p.grad is None and p.requires_grad for p in prior.parameters())


def test_sampling_changes_nothing_in_the_prior() -> None:
    prior, codes = prior_of()
    before = prior.log_prob(codes)
    state = {name: value.clone() for name, value in prior.state_dict().items()}
    prior.sample(3, torch.tensor([0, 1, 2]), guidance=2.0)
    assert all(torch.equal(state[name], value) for name, value in prior.state_dict().items())
    assert torch.equal(prior.log_prob(codes), before)


def test_a_state_dict_carries_everything() -> None:
    a, codes = prior_of(seed=0)
    b, _ = prior_of(seed=1)
    labels = random_labels(2)
    assert not torch.allclose(a.log_prob(codes, labels), b.log_prob(codes, labels))
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.log_prob(codes, labels), b.log_prob(codes, labels))
    assert same_codes(a.sample(4, seed=5), b.sample(4, seed=5))


@pytest.mark.parametrize("kind", KINDS)
def test_every_level_learns_from_log_prob_alone(kind: dict[str, Any]) -> None:
    """Each level's column trains that level's weights, and no other's."""
    prior, codes = prior_of(8, **kind)
    labels = random_labels(2, 8)
    for level in (0, 1):
        prior.zero_grad()
        prior.log_prob(codes, labels)[:, level].sum().backward()
        touched = {
            name.split(".")[1]
            for name, p in prior.named_parameters()
            if p.grad is not None and bool(p.grad.any())
        }
        assert touched == {str(level)}
        weights = list(prior.level(level).parameters())
        assert all(p.grad is not None and bool(p.grad.any()) for p in weights)


def test_levels_may_differ_in_everything() -> None:
    """Kinds, widths, depths, kernels, attention: each level has its own configuration."""
    torch.manual_seed(0)
    plan = PriorConfig(
        levels=(
            config(hidden=12, attention_every=1, heads=3),
            config(layers=3, kernel=5, output_layers=0),
            config(kind="transformer", layers=4),
        ),
        classes=2,
    )
    prior = HierarchicalPrior(plan, geometry(((1, 2), (2, 4), (4, 4)))).eval()
    assert len(prior.level(0).attentions) == 2
    assert [len(prior.level(i).layers) for i in range(3)] == [2, 3, 4]
    assert [type(level) for level in prior.levels] == [PixelCNN, PixelCNN, Transformer]
    codes = prior.sample(3, torch.tensor([0, 1, 2]))
    prior.geometry.check(codes)
    assert prior.log_prob(codes).isfinite().all()
