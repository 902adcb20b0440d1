"""What `inspect` says: checked against direct counts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vqvae2.autoencoder.model import VQVAE
from vqvae2.catalogue import preset
from vqvae2.config import Config, override, parse
from vqvae2.data.store import open_store
from vqvae2.inspection import describe
from vqvae2.prior.hierarchy import HierarchicalPrior
from vqvae2.run import load

FLOPS = "FLOPs per image (2 per multiply-add)"


def changed(*assignments: str, base: str = "tiny") -> Config:
    """A preset with some settings changed."""
    return parse(override(preset(base).model_dump(mode="json"), assignments))


def count(net: nn.Module) -> int:
    """Number of weights that are trained."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def flops(config: Config) -> dict[str, float]:
    """The table of FLOPs as numbers."""
    return {name: float(value) for name, value in describe(config)[FLOPS].items()}


def counted(call: Any) -> int:
    """FLOPs of a call."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("config", [
    changed(),
    changed("prior.classes=7"),
    changed("data.channels=1", "autoencoder.channels=1", "autoencoder.codes=[16, 1024]"),
    changed("autoencoder.ema=false", "autoencoder.rate=0"),
    changed(base="small64"),
], ids=["tiny", "classes", "grey", "gradient codebooks", "small64"])  # fmt: skip
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
    (changed(base="large256"), {"level 0": "32x32 grid, 512 codes", "level 1": "64x64 grid, 512 codes",
                                "codes per image": 5120}),
])  # fmt: skip
def test_geometry(config: Config, rows: dict[str, Any]) -> None:
    found = describe(config)["geometry"]
    assert {name: found.get(name) for name in rows} == rows
    assert list(found)[: 1 + config.autoencoder.levels] == [
        "image",
        *(f"level {i}" for i in range(config.autoencoder.levels)),
    ]


def test_flops_are_a_direct_count() -> None:
    config = changed()
    autoencoder, prior = VQVAE(config.autoencoder).eval(), HierarchicalPrior(config.prior, config.geometry)
    image = torch.zeros(1, 3, 32, 32)
    codes = autoencoder.encode(image)
    encode, decode = counted(lambda: autoencoder.encode(image)), counted(lambda: autoencoder.decode(codes))
    levels = [counted(lambda level=level: prior.logits(codes, level)) for level in (0, 1)]
    found = flops(config)
    expected = {
        "encode": encode,
        "decode": decode,
        "autoencoder training step (about 3 x)": 3 * (encode + decode),
        "prior level 0, whole grid (= sampling it incrementally)": levels[0],
        "prior level 1, whole grid (= sampling it incrementally)": levels[1],
        "one sample, decode included": decode + sum(levels),
    }
    assert found == {name: pytest.approx(value, rel=1e-3) for name, value in expected.items()}


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
    less, more = flops(changed()), flops(changed("data.size=64"))
    for name in ("encode", "decode"):
        assert more[name] == pytest.approx(4 * less[name], rel=0.02)


def test_looking_changes_nothing() -> None:
    first = describe(changed())
    assert describe(changed()) == first
    assert set(first) == {"geometry", "parameters", FLOPS}
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
        assert float(shown["heldout_bits"]) == pytest.approx(run.figures(level)["heldout_bits"], rel=1e-3)
    assert json.loads(json.dumps(tables)) == tables


def test_codes_used(trained: Path) -> None:
    """The share of codes that occur in the training pictures, counted here."""
    run = load(trained, "cpu")
    table = describe(run.config, run)["codes used, training pictures"]
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
    assert set(tables) == {"geometry", "parameters", FLOPS, "done"}
