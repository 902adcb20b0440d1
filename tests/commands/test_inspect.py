"""What `inspect` says: checked against direct counts."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from vqvae2.autoencoder.model import VQVAE
from vqvae2.commands.costs import Cost, Costs, kept_bytes, measure, seconds_of
from vqvae2.commands.inspect import describe
from vqvae2.commands.options import read_changes, resolve
from vqvae2.commands.train import choose_config
from vqvae2.config.models import Config, parse
from vqvae2.config.overrides import override
from vqvae2.config.presets import preset, presets
from vqvae2.data.store import open_store
from vqvae2.files.progress import Reporter, duration
from vqvae2.prior.hierarchy import HierarchicalPrior
from vqvae2.run import load
from vqvae2.train.sharpen import Sharpening
from vqvae2.train.state import read_metrics

ROOT = Path(__file__).parents[2]
FLOPS = "FLOPs per image (2 per multiply-add)"
MEMORY = "memory, activations per image"
COST = "cost of training"
PREFIXES = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21}
PLAIN = ("prior.levels.*.attention_every=0", "prior.levels.*.dropout=0")
TRANSFORMER = ("prior.levels.*.kind=transformer",)


def changed(*assignments: str, base: str = "tiny") -> Config:
    """A preset with some settings changed."""
    return parse(override(preset(base).model_dump(mode="json"), assignments))


def count(net: nn.Module) -> int:
    """Number of weights that are trained."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def number(text: str) -> float:
    """ "1.234 GFLOP" as a number."""
    value, unit = text.split()
    return float(value) * PREFIXES[unit.removesuffix("FLOP")]


def flops(config: Config) -> dict[str, float]:
    """The table of FLOPs as numbers."""
    return {name: number(text) for name, text in describe(config)[FLOPS].items()}


PEAKS: dict[Config, int] = {}


def peak() -> int:
    """The most memory that this process had so far, in bytes; 0 on Windows."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@cache
def known(config: Config) -> Costs:
    """`measure`, once for each configuration, because it takes seconds; PEAKS has by how much the memory's peak rose."""
    before = peak()
    found = measure(config)
    PEAKS[config] = peak() - before
    return found


@pytest.fixture(autouse=True)
def measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`describe` and the tests share what was measured."""
    monkeypatch.setattr("vqvae2.commands.costs.measure", known)


def counted(call: Callable[[], object]) -> int:
    """FLOPs of a call."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def step(config: Config, level: int | None, net: nn.Module, batch: int) -> Tensor:
    """The loss of the autoencoder, or of a prior, on a batch of nothing in particular; on real tensors."""
    if level is None:
        images = torch.rand(batch, config.data.channels, config.data.size, config.data.size)
        out = net(images)
        loss: Tensor = (out.images.float() - images).square().mean() + out.commitment
        return loss
    grids = [torch.zeros(batch, h, w, dtype=torch.int64) for h, w in config.geometry.grids]
    return functional.cross_entropy(net(grids[level], tuple(grids[:level])).float(), grids[level])


def saved(config: Config, level: int | None, net: nn.Module, batch: int, bf16: bool) -> int:
    """Bytes that a real step saves for the backward pass, each piece of memory once."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        step(config, level, net, batch)
    return sum(storage.nbytes() for storage in storages.values())


def networks(config: Config) -> list[tuple[int | None, nn.Module, Cost]]:
    """(None for the autoencoder or the level, the real network, what was measured of it)."""
    autoencoder, prior = VQVAE(config.autoencoder).eval(), HierarchicalPrior(config.prior, config.geometry)
    measured = known(config)
    nets = zip(
        (None, *range(len(prior.levels))), (autoencoder, *prior.levels), measured.networks, strict=True
    )
    return list(nets)


@pytest.mark.parametrize("config", [
    changed(),
    changed("prior.classes=7"),
    changed("data.channels=1", "autoencoder.channels=1", "autoencoder.codes=[16, 1024]"),
    changed("autoencoder.ema=false", "autoencoder.entropy_penalty=0"),
    changed(base="small64"),
    changed(*TRANSFORMER),
], ids=["tiny", "classes", "grey", "gradient codebooks", "small64", "transformer"])  # fmt: skip
def test_parameters_are_a_direct_count(config: Config) -> None:
    table = describe(config)["parameters"]
    autoencoder, prior = VQVAE(config.autoencoder), HierarchicalPrior(config.prior, config.geometry)
    assert table["autoencoder"] == count(autoencoder)
    assert [table[f"prior level {i}"] for i in range(config.autoencoder.levels)] == [
        count(level) for level in prior.levels
    ]
    codebooks = sum(k * config.autoencoder.code_dim for k in config.autoencoder.codes)
    assert [value for name, value in table.items() if name.startswith("codebooks")] == [codebooks]


@pytest.mark.parametrize(("config", "rows"), [
    (changed(), {"image": "32x32, 3 channels", "level 0": "4x4 grid, 64 codes", "level 1": "8x8 grid, 64 codes",
                 "codes per image": 80, "bytes per image at fixed length": 60.0, "smaller than 8-bit pixels by": "51.2 x"}),
    (changed("data.size=48", "autoencoder.strides=[2, 3]", "autoencoder.codes=[32, 1024]"),
     {"level 0": "8x8 grid, 32 codes", "level 1": "24x24 grid, 1024 codes", "codes per image": 640,
      "bytes per image at fixed length": 760.0, "smaller than 8-bit pixels by": "9.1 x"}),
    (changed("prior.levels.*.layers=1", "prior.levels.*.attention_every=0", base="large256"), {"level 0": "32x32 grid, 512 codes", "level 1": "64x64 grid, 512 codes",
                                "codes per image": 5120}),
])  # fmt: skip
def test_geometry(config: Config, rows: dict[str, Any]) -> None:
    found = describe(config)["geometry"]
    assert {name: found.get(name) for name in rows} == rows
    assert list(found)[: 1 + config.autoencoder.levels] == [
        "image",
        *(f"level {i}" for i in range(config.autoencoder.levels)),
    ]


@pytest.mark.parametrize("options", [(), TRANSFORMER], ids=["pixelcnn", "transformer"])
def test_flops_are_a_direct_count(options: tuple[str, ...]) -> None:
    """Of real networks on real tensors; training without attention, whose fused backward pass does some work twice."""
    config = changed(*options)
    autoencoder, prior = VQVAE(config.autoencoder).eval(), HierarchicalPrior(config.prior, config.geometry)
    image = torch.zeros(1, 3, 32, 32)
    codes = autoencoder.encode(image)
    found = known(config)
    assert found.encode == counted(lambda: autoencoder.encode(image))
    assert found.decode == counted(lambda: autoencoder.decode(codes))
    levels = [counted(lambda level=level: prior.logits(codes, level)) for level in (0, 1)]  # type: ignore[misc]
    assert [level.forward for level in found.priors] == levels
    assert found.sample == found.decode + sum(levels)


def test_flops_of_training_are_a_direct_count() -> None:
    """Without attention: its fused backward pass computes the scores anew."""
    config = changed(*PLAIN)
    for level, net, work in networks(config):
        with FlopCounterMode(display=False) as counter:
            step(config, level, net, 1).backward()
        assert work.training == counter.get_total_flops()
        assert 2.8 * work.forward < work.training <= 3 * work.forward


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_flops_of_sharpening_are_a_direct_count(penalty: float) -> None:
    """Without the penalty of real tensors on which torch counts; with it at least one more pass through the discriminator."""
    options = ("sharpen.steps=2", "sharpen.width=8", "sharpen.depth=2")
    config = changed(*options, f"sharpen.penalty={penalty}")
    found = known(config)
    assert found.sharpening is not None
    assert found.networks[1] is found.sharpening
    net = Sharpening(VQVAE(config.autoencoder), changed(*options, "sharpen.penalty=0")).requires_grad_(True)
    assert found.sharpening.parameters == count(net)
    vectors = [torch.zeros(1, config.autoencoder.code_dim, h, w) for h, w in config.geometry.grids]
    with FlopCounterMode(display=False) as counter:
        net(vectors, torch.zeros(1, 3, 32, 32))[0].backward()
    plain = found.encode + counter.get_total_flops()
    judge = counted(lambda: net.discriminator(torch.zeros(1, 3, 32, 32)))
    assert found.sharpening.training == plain if penalty == 0 else found.sharpening.training > plain + judge
    assert known(changed()).sharpening is None


@pytest.mark.parametrize("side", [32, 64])
def test_flops_of_attention_by_hand(side: int) -> None:
    """N^2 scores of C products, twice, beside four C x C products at each position; backward 2.5 times the scores."""
    size = f"data.size={side}"
    without, one = (known(changed(size, f"prior.levels.0.attention_every={n}")).priors[0] for n in (0, 2))
    positions, width = (side // 8) ** 2, 32
    scores, products = 4 * positions**2 * width, 2 * 4 * width**2 * positions
    assert one.forward - without.forward == scores + products
    assert one.training - without.training == 3.5 * scores + 3 * products


def test_flops_of_a_transformer_by_hand() -> None:
    """At each of N positions: per block 4 C^2 of attention's projections, 2 C R of the MLP, N C scores twice; C^2 + C K."""
    config = changed(*TRANSFORMER)
    level, k, n = config.prior.levels[0], config.geometry.vocabulary[0], config.geometry.positions[0]
    c, r = level.hidden, level.residual
    blocks = level.layers * (4 * c * c + 2 * c * r + 2 * n * c)
    assert known(config).priors[0].forward == 2 * n * (blocks + c * c + c * k)


def test_the_table_of_flops() -> None:
    config = changed()
    found = known(config)
    coarse, fine = found.priors
    expected = {
        "encode": found.encode,
        "decode": found.decode,
        "autoencoder training step": found.autoencoder.training,
        "prior level 0 training step": coarse.training,
        "prior level 0 whole grid (= sampling it incrementally)": coarse.forward,
        "prior level 1 training step": fine.training,
        "prior level 1 whole grid (= sampling it incrementally)": fine.forward,
        "one sample, decode included": found.sample,
    }
    assert flops(config) == {name: pytest.approx(value, rel=1e-3) for name, value in expected.items()}


def test_flops_of_a_convolution_by_hand() -> None:
    """Twice the multiplications, so that what the heading says is so."""
    layer = nn.Conv2d(3, 5, 3, padding=1)
    assert counted(lambda: layer(torch.zeros(1, 3, 8, 8))) == 2 * 5 * 3 * 9 * 64


@pytest.mark.parametrize(("small", "large"), [
    ((), ("data.size=64",)),
    ((), ("autoencoder.hidden=64", "autoencoder.residual=32", "prior.levels.*.residual=64")),
    (("prior.levels.*.layers=1", "autoencoder.blocks=1"), ("prior.levels.*.layers=4", "autoencoder.blocks=2")),
], ids=["pictures", "width", "depth"])  # fmt: skip
def test_more_of_anything_costs_more(small: tuple[str, ...], large: tuple[str, ...]) -> None:
    less, more = flops(changed(*small)), flops(changed(*large))
    assert list(less) == list(more)
    assert all(0 < less[name] < more[name] < math.inf for name in less)


def test_four_times_the_pixels_cost_four_times_as_much() -> None:
    """Exactly, without attention; in memory a little less, because margins are kept with the maps."""
    less, more = known(changed(*PLAIN)), known(changed("data.size=64", *PLAIN))
    assert (more.encode, more.decode, more.sample) == (4 * less.encode, 4 * less.decode, 4 * less.sample)
    for small, large in zip(less.networks, more.networks, strict=True):
        assert (large.forward, large.training) == (4 * small.forward, 4 * small.training)
        assert 3.8 * small.kept < large.kept <= 4 * small.kept
        assert 3.8 * small.kept_bf16 < large.kept_bf16 <= 4 * small.kept_bf16


# --- memory ---


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_what_is_kept_is_what_a_real_step_saves(bf16: bool) -> None:
    config = changed(*PLAIN)
    for level, net, work in networks(config):
        two, three = (saved(config, level, net, batch, bf16) for batch in (2, 3))
        assert (work.kept_bf16 if bf16 else work.kept) == three - two


def test_memory_grows_with_the_batch_alone() -> None:
    """By the same number of bytes for each image; only a remainder, the weights, is there without one."""
    layer = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 1, 1))

    def loss(batch: int) -> Tensor:
        result: Tensor = layer(torch.zeros(batch, 3, 8, 8)).sum()
        return result

    one, two, four = (kept_bytes(loss, batch) for batch in (1, 2, 4))
    weights = 4 * (3 * 5 * 9 + 5)
    assert two - weights == 2 * (one - weights)
    assert four - weights == 4 * (one - weights)
    assert one - weights == 4 * (3 + 5) * 64  # the image and the ReLU's output, which is the next one's input


@pytest.mark.parametrize("rate", [0, 0.1])
@pytest.mark.parametrize("attention", ["prior.levels.*.attention_every=1", *TRANSFORMER])
def test_attention_keeps_no_scores(attention: str, rate: float) -> None:
    """Four times the positions, four times the memory and not sixteen; nor do the scores' dropout masks stay."""
    less, more = (
        known(
            changed(
                f"data.size={side}", attention, "prior.levels.*.layers=1", f"prior.levels.*.dropout={rate}"
            )
        )
        for side in (64, 128)
    )
    for small, large in zip(less.priors, more.priors, strict=True):
        assert 3.8 * small.kept < large.kept <= 4 * small.kept


def test_dropout_keeps_a_mask() -> None:
    """A byte for each element of what enters the projections back and leaves the output stack."""
    without, with_ = (
        known(changed("prior.levels.*.attention_every=0", f"prior.levels.*.dropout={rate}")).priors[0]
        for rate in (0, 0.5)
    )
    layers, blocks, width, positions = 2, 2, 32, 16
    masks = 2 * layers + blocks + 1
    assert with_.kept - without.kept >= masks * width * positions
    assert with_.kept - without.kept <= 5 * masks * width * positions


@pytest.mark.parametrize("average", [0, 0.99])
def test_weights_gradients_and_moments(average: float) -> None:
    for level, net, work in networks(changed(f"train_prior.*.average={average}")):
        copies = 5 if average and level is not None else 4
        buffers = sum(b.numel() * b.element_size() for b in net.buffers())
        assert work.state == 4 * copies * count(net) + buffers


def test_the_table_of_memory() -> None:
    config = changed("train_prior.1.average=0", base="small64")
    table, found = describe(config)[MEMORY], known(config)
    for part in found.networks:
        for name, value in (
            ("activations, fp32", part.kept),
            ("activations, bf16", part.kept_bf16),
            ("weights, gradients, AdamW", part.state),
        ):
            text, unit = table[f"{part.name}, {name}"].removesuffix(", average included").split()
            assert (float(text) * 2**20, unit) == (pytest.approx(value, rel=1e-3), "MiB")


def test_a_batch_is_cut_until_it_fits() -> None:
    """The fewest parts such that state and activations of one part fit into nine tenths of 80 GB."""
    small, paper = known(preset("small64")), known(preset("ffhq1024"))
    assert [part.accumulate_on(1) for part in small.networks] == [1, 1, 1, 1]
    for part in paper.networks:
        batch, count = part.settings.batch, part.accumulate_on(1)
        assert count
        assert part.state + math.ceil(batch / count) * part.kept_bf16 <= 72e9
        if count > 1:
            assert part.state + math.ceil(batch / (count - 1)) * part.kept_bf16 > 72e9
    assert describe(preset("ffhq1024"))[COST]["prior level 0, on 80 GB"] == (
        f"accumulate: {paper.priors[0].accumulate_on(1)}"
    )
    giant = dataclasses.replace(paper.priors[0], kept_bf16=10**12)
    assert giant.accumulate_on(1) is None


# --- cost ---


def test_cost_is_steps_times_batch_times_flops_over_speed() -> None:
    config = changed(
        "train_autoencoder.steps=1000000000", "train_prior.1.batch=7", "train_prior.0.steps=3000"
    )
    found = known(config)
    for part, training in zip(found.networks, (config.train_autoencoder, *config.train_prior), strict=True):
        work = training.batch * part.training
        assert part.total == training.steps * work
        assert part.step_seconds(1, captured=True) == seconds_of(work, captured=True)
        assert part.seconds(1, captured=True) == training.steps * part.step_seconds(1, captured=True)
    table = describe(config)[COST]
    seconds = found.autoencoder.seconds(1, captured=True)
    assert seconds > 3600
    assert table["autoencoder, 1 H100"] == duration(seconds)
    assert table["autoencoder, step, ms"] == pytest.approx(seconds / 1e6, rel=0.01)
    assert table["autoencoder, 64 H100s"] == "not possible with this batch"
    factors, total = table["autoencoder"].split(" = ")
    steps, batch, each = factors.split(" x ")
    assert (steps, batch) == ("1,000,000,000", "32")
    assert number(total) == pytest.approx(1e9 * 32 * number(each), rel=1e-3)
    assert "989 TFLOP/s" in table["assumed of an H100"]
    assert "35%" in table["assumed of an H100"]
    assert table["GPU-hours"] == pytest.approx(
        sum(part.seconds(1, captured=True) for part in found.networks) / 3600, rel=0.01
    )


def test_the_time_of_a_step_is_about_what_was_measured() -> None:
    """Every training step of the benchmark of one card, both stages, small and large, captured and not."""
    figures = json.loads((ROOT / "results" / "gpu-h200.json").read_text())["figures"]
    rows = {name: row for name, row in figures.items() if isinstance(row, dict) and "TFLOP/s" in row}
    assert len(rows) == 16
    for name, row in rows.items():
        said = seconds_of(1e12 * row["TFLOP/s"] / row["steps/s"], name.endswith("captured"))
        assert 1 / 1.5 < said * row["steps/s"] < 1.5, name


def test_the_time_of_a_real_training() -> None:
    """The seconds of clothing128 on one H200 for 12,000 steps of stage 1 and 8,000 of the sharpening (docs/gpu.md)."""
    file = ROOT / "recipes" / "clothing128-gpu.yaml"
    found = known(resolve(preset("small64"), read_changes(file), []))
    assert found.sharpening
    assert found.autoencoder.seconds(1, captured=True) == pytest.approx(103, rel=0.5)
    assert found.sharpening.seconds(1, captured=True) == pytest.approx(8000 * 32 / 3060, rel=0.5)


def test_what_slows_a_step_down_and_what_ends_a_stage() -> None:
    """Steps that are not captured, parts of a batch, minutes; many cards share a batch that they can divide."""
    table = describe(changed("train_autoencoder.batch=128", "train_prior.*.batch=64"))[COST]
    assert table["autoencoder, step, ms"] == 6
    assert table["autoencoder, 1 H100"] == "0 s"
    assert table["autoencoder, 64 H100s"] == "2 s"
    for setting, expected in (
        ("capture=false", 40),
        ("deterministic=true", 40),
        ("train_autoencoder.accumulate=4", 160),
    ):
        assert describe(changed(setting))[COST]["autoencoder, step, ms"] == expected
    limited = describe(changed("train_autoencoder.steps=1000000", "train_autoencoder.minutes=3"))[COST]
    assert limited["autoencoder, 1 H100"] == "3.0 min"


def test_memory_of_a_step_and_the_sharpening_are_shown() -> None:
    config = changed("train_autoencoder.accumulate=4", "sharpen.steps=1000")
    table, part = describe(config)[COST], known(config).autoencoder
    assert part.memory(bf16=False) == part.state + 8 * part.kept
    assert part.memory(bf16=True) == part.state + 2 * part.parameters + 8 * part.kept_bf16
    assert table["autoencoder, memory, GB"] == pytest.approx(part.memory(bf16=True) / 1e9, rel=0.01)
    assert table["sharpening, 1 H100"] == "6 s"
    assert table["sharpening, memory, GB"] > 0
    assert "evaluations" in table["not counted"]


# --- the paper's models ---


def test_the_papers_autoencoder_has_the_known_number_of_weights() -> None:
    """With shallow priors, which are measured sooner."""
    found, larger = (
        known(changed("prior.levels.*.layers=1", base=name)) for name in ("imagenet256", "ffhq1024")
    )
    assert found.autoencoder.parameters == 1_716_803
    assert found.codebooks == 2 * 512 * 64
    assert larger.codebooks == 3 * 512 * 64


def test_the_largest_presets_are_measured_without_their_memory() -> None:
    config = preset("ffhq1024")
    assert sum(part.state for part in known(config).networks) > 20 * 2**30
    assert PEAKS[config] < 2**30


def test_attention_on_a_wide_grid() -> None:
    """128x128 positions: nothing is as large as all pairs of positions."""
    wide = known(changed("data.size=512", "prior.levels.1.attention_every=1", "prior.levels.1.heads=1"))
    fine = wide.priors[1]
    assert wide.priors[1].forward > 2 * 4 * (128 * 128) ** 2 * 32
    assert fine.kept_bf16 < fine.kept < (128 * 128) ** 2 * 4


def test_the_papers_presets_stand_in_order_of_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without their memory, which takes most of the time of `measure`."""
    monkeypatch.setattr("vqvae2.commands.costs.kept_bytes", lambda *_, **__: 0)
    names = ("large256", "ffhq1024", "imagenet256")
    totals = [sum(part.total for part in measure.__wrapped__(preset(name)).networks) for name in names]
    assert totals == sorted(totals)
    assert presets()[-3:] == names


def test_looking_changes_nothing() -> None:
    first = describe(changed())
    assert describe(changed()) == first
    assert set(first) == {"geometry", "parameters", FLOPS, MEMORY, COST}
    assert torch.is_grad_enabled()


# --- runs ---


def test_a_finished_run(trained: Path) -> None:
    run = load(trained, "cpu")
    tables = describe(run.config, run)
    assert tables["parameters"]["autoencoder"] == count(run.autoencoder)
    assert [tables["parameters"][f"prior level {i}"] for i in (0, 1)] == [count(p) for p in run.prior.levels]
    assert set(tables["done"].values()) == {"yes"}
    assert list(tables["done"]) == ["autoencoder", "codes", "prior level 0", "prior level 1"]
    measured = {name: float(value) for name, value in tables["stage 1, held out"].items()}
    assert measured == {k: pytest.approx(v, rel=1e-3) for k, v in run.figures().items()}
    for level in (0, 1):
        shown = tables[f"prior level {level}"]
        for figure in ("heldout_bits", "heldout_accuracy"):
            assert float(shown[figure]) == pytest.approx(run.figures(level)[figure], rel=1e-3)
        assert "heldout_accuracy" in read_metrics(run.paths.prior(level).metrics)[-1]
    assert json.loads(json.dumps(tables)) == tables


def test_codes_used(trained: Path) -> None:
    """The share of codes that occur in the training pictures, counted here."""
    run = load(trained, "cpu")
    table = describe(run.config, run)["codes used, training images"]
    store = open_store(trained / "codes")
    for level, grid in enumerate(store.codes(store.train).levels):
        share = len(grid.unique()) / 16
        p = torch.bincount(grid.flatten(), minlength=16).double() / grid.numel()
        perplexity = float(torch.exp(-(p * p.clamp_min(1e-30).log()).sum()))
        assert table[f"level {level}"] == f"{share:.1%}, perplexity {perplexity:.1f}"


def test_a_half_done_run(half: Path) -> None:
    run = load(half, "cpu")
    tables = describe(run.config, run)
    assert tables["done"] == {
        "autoencoder": "yes",
        "codes": "yes",
        "prior level 0": "yes",
        "prior level 1": "no",
    }
    assert "prior level 0" in tables
    assert "prior level 1" not in tables
    assert tables["parameters"]["prior level 1"] > 0


def test_a_run_that_has_only_been_begun(half: Path) -> None:
    for part in ("autoencoder", "codes", "prior"):
        for file in sorted((half / part).rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
    run = load(half, "cpu")
    tables = describe(run.config, run)
    assert set(tables["done"].values()) == {"no"}
    assert set(tables) == {"geometry", "parameters", FLOPS, MEMORY, COST, "classes", "done"}
    assert list(tables["classes"].values()) == list(run.classes)


# --- a preset with settings of one's own ---


def test_a_changed_preset_costs_what_a_training_with_these_settings_would(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    """A file, assignments and a size, with the meaning and the order that they have in `train`."""
    file = tmp_path / "own.yaml"
    file.write_text("run: {version: '0'}\nautoencoder: {hidden: 16}\ntrain_autoencoder: {steps: 7}\n")
    options = ("--config", file, "--set", "autoencoder.hidden=24", "--set", "data.size=16", "--size", "32x64")
    said = command("inspect", "--preset", "tiny", *options, "--json")
    own = changed("autoencoder.hidden=24", "train_autoencoder.steps=7", "data.size=[32, 64]")
    assert said.code == 0, said.err
    assert json.loads(said.out) == json.loads(json.dumps(describe(own)))
    resolved = choose_config(
        "nowhere",
        tmp_path / "run",
        "tiny",
        file,
        ["autoencoder.hidden=24", "data.size=16", "data.size=32x64"],
        None,
        False,
        Reporter(quiet=True),
    )
    assert resolved == own


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--preset", "tiny", "--set", "autoencoder.width=3"), "autoencoder.width"),
        (("--preset", "tiny", "--size", "33"), "must be multiples of 8"),
        (
            ("--preset", "tiny", "--set", "autoencoder.codes=16"),
            "1 to 4 levels with one stride and one codebook",
        ),
        (("--preset", "tiny", "--config", "nowhere.yaml"), "cannot read the configuration nowhere.yaml"),
        (("RUN", "--set", "data.size=8"), "own settings, so --set has no effect"),
        (
            ("RUN", "--config", "own.yaml", "--size", "8"),
            "own settings, so --config and --size have no effect",
        ),
        (("RUN", "--watch", "--size", "8"), "so --size has no effect"),
    ],
)
def test_settings_that_cannot_be_inspected(
    command: Callable[..., Any], trained: Path, options: tuple[str, ...], part: str
) -> None:
    said = command("inspect", *(trained if option == "RUN" else option for option in options))
    assert (said.code, said.err.count("\n")) == (2, 1), said.err
    assert part in said.err
