"""Sampling codes: against rosinality, the machine's limit and pixel space, as the grid grows, and the largest preset.

    python benchmarks/sampling.py peer --rosinality FOLDER [--repeats 3]
    python benchmarks/sampling.py limit [--repeats 5]
    python benchmarks/sampling.py growth
    python benchmarks/sampling.py ffhq1024
    python benchmarks/sampling.py pixels [--repeats 3] [--sides 32 64]

Weights are random: time does not depend on them. Each part keeps its own JSON, sampling-PART.json.

peer: rosinality's default priors for 32x32 (attention) and 64x64 (conditional), 256 channels, 4 blocks of 4. Ours has the
same channels, as many gated layers (16), attention after as many of them, the same filter, and as many parameters (its
inner width is chosen for that). Ours draws whole grids. Theirs reruns rows 0 .. r at every position of row r, so a whole
grid takes hours: positions of some rows are timed as sample.py runs them, rows between are interpolated linearly, and the
grid is the sum. One repetition takes both in turn.

limit: the time of a position is at least the larger of (bytes of the weights that it reads / memory bandwidth) and (its
FLOPs / matrix-product peak), both measured in the same turns. What is done once a row counts 1/W each position.

pixels: the model emoji64, decoding included, against a PixelCNN over pixel values. A picture of H x W pixels is a grid of
H x 3W values of 256, red, green and blue of a pixel side by side, so each is drawn given those before it. The same budget:
channels, inner width, layers, filter and output stack are those of the fine level's prior of emoji64. It has neither class
nor attention, which over 12,288 positions would make it slower still. All grids are drawn whole, by `prior.sample`. A
training step is one of AdamW on 16 pictures (of pixels four at once, for memory) of all priors of a model; that of the
autoencoder stands beside.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _common import count, interleaved, keep
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes, Geometry
from vqvae2.config.models import LevelPriorConfig, PriorConfig
from vqvae2.config.presets import preset
from vqvae2.prior.hierarchy import HierarchicalPrior, make_level
from vqvae2.prior.level import LevelPrior
from vqvae2.prior.pixelcnn import PixelCNN
from vqvae2.prior.scan import scan
from vqvae2.run import load

GRIDS = Geometry(((32, 32), (64, 64)), (512, 512))
LAYERS, CHANNELS, KERNEL = 16, 256, 5
BATCH = 16  # of pixels


def ours(level: int, residual: int) -> PixelCNN:
    """Our prior of that level: attention at the coarse one, three conditioning blocks at the fine one."""
    config = LevelPriorConfig(
        hidden=CHANNELS,
        residual=residual,
        layers=LAYERS,
        kernel=KERNEL,
        attention_every=0 if level else LAYERS // 4,
        heads=8,
        output_layers=0,
        condition_blocks=3 * level,
    )
    return PixelCNN(config, GRIDS, level, 0).eval()


def as_large(build: Callable[[int], LevelPrior], widths: range, parameters: int) -> int:
    """The inner width that brings a prior nearest to so many parameters."""
    with torch.device("meta"):
        return min(widths, key=lambda width: abs(count(build(width)) - parameters))


def sampler(prior: PixelCNN, batch: int) -> Callable[[], Tensor]:
    """Draws whole grids."""
    coarser = tuple(
        torch.randint(k, (batch, *grid))
        for grid, k in zip(GRIDS.grids[: prior.level], GRIDS.vocabulary, strict=False)
    )

    @torch.no_grad()
    def call() -> Tensor:
        def choose(_: int, logits: Tensor) -> Tensor:
            return torch.multinomial(logits.softmax(-1), 1)[:, 0]

        return scan(prior, batch, prior.context(coarser, None), choose)

    return call


def peer(folder: Path, repeats: int) -> None:
    """Ours against rosinality's."""
    sys.path.insert(0, str(folder))
    kind = importlib.import_module("pixelsnail").PixelSNAIL
    found: dict[str, Any] = {}
    settings = {
        0: ([32, 32], {"attention": True, "dropout": 0.1}, (0, 7, 15, 23, 31)),
        1: ([64, 64], {"attention": False, "dropout": 0.1, "n_cond_res_block": 3, "cond_res_channel": 256}, (0, 31, 63)),
    }  # fmt: skip
    for level, (shape, options, rows) in settings.items():
        theirs = kind(shape, 512, CHANNELS, KERNEL, 4, 4, 256, **options).eval()
        mine = ours(level, as_large(partial(ours, level), range(64, 1025, 32), count(theirs)))
        for batch, times in ((1, repeats), (16, 1)):
            name = f"{shape[0]}x{shape[1]}, batch {batch}"
            cases: dict[str, Callable[[], object]] = {"ours": sampler(mine, batch)}
            cases |= {f"row {row}": rerun(theirs, level, batch, shape[1], row) for row in rows}
            seconds = {
                k: statistics.median(v) for k, v in interleaved(cases, times, warmup=batch == 1).items()
            }
            whole = grid_seconds({row: seconds[f"row {row}"] for row in rows}, shape[1])
            found[name] = {
                "parameters": {"ours": count(mine), "rosinality": count(theirs)},
                "residual": mine.config.residual,
                "repeats": times,
                "ours, whole grid, s": seconds["ours"],
                "rosinality, a position of row r, s": {row: seconds[f"row {row}"] for row in rows},
                "rosinality, whole grid (estimated), s": whole,
                "ratio": whole / seconds["ours"],
            }
            print(name, found[name], flush=True)
    keep("sampling-peer", {"found": found})


def rerun(net: nn.Module, level: int, batch: int, width: int, row: int) -> Callable[[], object]:
    """One position in the middle of row `row`, as sample.py does it."""
    codes = torch.randint(512, (batch, row + 1, width))
    condition = torch.randint(512, (batch, width // 2, width // 2)) if level else None
    place = width // 2
    cache: dict[str, Any] = {}
    if condition is not None:
        with torch.no_grad():
            net(codes[:, :1], condition=condition, cache=cache)  # sample.py computes the condition once

    @torch.no_grad()
    def call() -> object:
        out, _ = net(codes, condition=condition, cache=cache)
        return torch.multinomial(torch.softmax(out[:, :, row, place], 1), 1)

    return call


def grid_seconds(rows: dict[int, float], width: int) -> float:
    """Seconds of a whole grid of that width from those of a position in some rows, linear in between."""
    known = sorted(rows)
    total = 0.0
    for low, high in itertools.pairwise(known):
        for row in range(low, high):
            share = (row - low) / (high - low)
            total += width * (rows[low] * (1 - share) + rows[high] * share)
    return total + width * rows[known[-1]]


def limit(repeats: int) -> None:
    """The time of a position against what memory and arithmetic allow."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    large = torch.randn(2**27)  # 512 MiB
    base: dict[str, Callable[[], object]] = {"product": lambda: a @ b, "read": large.sum}
    found: dict[str, Any] = {}
    for residual in (256, 512):
        prior = ours(0, residual)
        steps = 4 * prior.width
        for batch in (1, 64):
            rows = Rows(prior, batch, steps)
            seconds = {
                k: statistics.median(v) for k, v in interleaved({"ours": rows, **base}, repeats).items()
            }
            bandwidth, peak = 4 * large.numel() / seconds["read"], 2 * 2048**3 / seconds["product"]
            weights, flops = rows.weights(), rows.flops()
            least = max(weights / bandwidth, flops / peak)
            found[f"residual {residual}, batch {batch}"] = {
                "ours, a position, ms": 1e3 * seconds["ours"] / steps,
                "least, ms": 1e3 * least,
                "times the least": seconds["ours"] / steps / least,
                "bytes of weights": weights,
                "FLOP": flops,
                "bandwidth, GB/s": bandwidth / 1e9,
                "product, GFLOP/s": peak / 1e9,
            }
    keep("sampling-limit", {"found": found})


class Rows:
    """The first `steps` positions of a grid."""

    def __init__(self, prior: LevelPrior, batch: int, steps: int) -> None:
        self.prior, self.batch, self.steps = prior, batch, steps

    @torch.no_grad()
    def __call__(self) -> None:
        cache = self.prior.start(self.batch, self.prior.context((), None))
        previous: Tensor | None = None
        for position in range(self.steps):
            logits, cache = self.prior.step(cache, position, previous)
            previous = torch.multinomial(logits.softmax(-1), 1)[:, 0]

    def weights(self) -> float:
        """Bytes of weights read a position; those of the vertical stream are read once a row."""
        total = 0.0
        for name, p in self.prior.named_parameters():
            if name.startswith(("place", "condition", "embedding")) and name != "embedding.weight":
                continue
            once_a_row = any(
                part in name for part in (".vertical.", ".link.", ".out_v.", ".context.", ".norm_v.")
            )
            total += 4 * p.numel() / (self.prior.width if once_a_row else 1)
        return total

    def flops(self) -> float:
        """FLOPs a position, all images of the batch."""
        with FlopCounterMode(display=False) as counter:
            self()
        return counter.get_total_flops() / self.steps


def growth() -> None:
    """Seconds a position and bytes of the cache from 16x16 to 128x128: PixelCNN without attention, transformer."""
    config = LevelPriorConfig(hidden=128, residual=128, layers=8, kernel=5, output_layers=2)

    def built(side: int, **settings: Any) -> LevelPrior:
        return make_level(config.model_copy(update=settings), Geometry(((side, side),), (512,)), 0, 0).eval()

    width = as_large(
        lambda width: built(16, kind="transformer", residual=width), range(64, 2049, 8), count(built(16))
    )
    kinds: dict[str, dict[str, Any]] = {
        "pixelcnn": {},
        "transformer": {"kind": "transformer", "residual": width},
    }
    sides = (16, 32, 64, 128)
    priors = {(kind, side): built(side, **settings) for kind, settings in kinds.items() for side in sides}
    cases: dict[str, Callable[[], object]] = {
        f"{kind} {side}x{side}": Rows(prior, 1, side * side) for (kind, side), prior in priors.items()
    }
    seconds = {k: statistics.median(v) for k, v in interleaved(cases, 3, warmup=1).items()}
    found = {
        kind: {
            f"{side}x{side}": {
                "a position, ms": 1e3 * seconds[f"{kind} {side}x{side}"] / side**2,
                "cache, bytes": cache_bytes(priors[kind, side]),
            }
            for side in sides
        }
        for kind in kinds
    }
    weights = {kind: count(priors[kind, 16]) for kind in kinds}
    keep(
        "sampling-growth",
        {"config": config.model_dump(), "kinds": kinds, "parameters": weights, "found": found},
    )


def cache_bytes(prior: LevelPrior) -> int:
    """Bytes of the cache in the middle of the second row, codes included."""
    with torch.no_grad():
        cache = prior.start(1, None)
        previous: Tensor | None = None
        for position in range(prior.width + 2):
            logits, cache = prior.step(cache, position, previous)
            previous = logits.argmax(-1)
    kept = [*cache.attention]
    if isinstance(prior, PixelCNN):
        kept += [cache.row, *cache.vertical, *cache.features, *cache.horizontal]
    return sum(t.numel() * t.element_size() for t in kept) + 8 * prior.positions


def ffhq1024() -> None:
    """One 1024-px picture from the paper's largest preset with random weights."""
    config = preset("ffhq1024")
    begun = time.perf_counter()
    autoencoder = VQVAE(config.autoencoder).eval()
    prior = HierarchicalPrior(config.prior, config.geometry).eval()
    built = time.perf_counter()
    codes = prior.sample(1, seed=0)
    drawn = time.perf_counter()
    image = autoencoder.decode(codes)
    done = time.perf_counter()
    keep("sampling-ffhq1024", {
        "parameters": {"autoencoder": count(autoencoder), "priors": count(prior)},
        "positions": sum(level.numel() for level in codes.levels),
        "image": list(image.shape),
        "build, s": built - begun,
        "draw, s": drawn - built,
        "decode, s": done - drawn,
        "peak memory of the process, GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    })  # fmt: skip


class Training:
    """Steps of every level's prior on random codes of 16 pictures, `part` of them at once."""

    def __init__(self, prior: HierarchicalPrior, part: int) -> None:
        grids = zip(prior.geometry.grids, prior.geometry.vocabulary, strict=True)
        self.codes = Codes(tuple(torch.randint(k, (BATCH, *grid)) for grid, k in grids))
        self.prior, self.part = prior.train(), part
        self.optimizer = torch.optim.AdamW(prior.parameters(), 1e-4)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        for start in range(0, BATCH, self.part):
            codes = self.codes[start : start + self.part]
            for level, values in enumerate(codes.levels):
                functional.cross_entropy(self.prior.logits(codes, level), values).backward()
        self.optimizer.step()


def autoencoder_training(autoencoder: VQVAE, side: int) -> Callable[[], None]:
    """Steps on 16 random pictures."""
    images = torch.rand(BATCH, 3, side, side) * 2 - 1
    autoencoder.train()
    optimizer = torch.optim.AdamW(autoencoder.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        out = autoencoder(images)
        (functional.mse_loss(out.images, images) + out.commitment).backward()
        optimizer.step()

    return step


def pixels(repeats: int, sides: list[int]) -> None:
    """Code space against pixel space."""
    config = load("emoji64", "cpu").config
    level = config.prior.levels[-1].model_copy(update={"attention_every": 0, "condition_blocks": 0})
    found: dict[str, Any] = {}
    for side in sides:
        geometry, raster = config.autoencoder.geometry(side, side), Geometry(((side, 3 * side),), (256,))
        autoencoder = VQVAE(config.autoencoder).eval()
        codes = HierarchicalPrior(config.prior, geometry).eval()
        values = HierarchicalPrior(PriorConfig(levels=(level,)), raster).eval()
        figures: dict[str, Any] = {
            "positions": {"codes": sum(geometry.positions), "pixels": sum(raster.positions)},
            "parameters": {"codes": [count(prior) for prior in codes.levels], "pixels": count(values)},
        }
        for batch in (1, BATCH):
            drawing: dict[str, Callable[[], object]] = {
                "codes": lambda n=batch, net=autoencoder, prior=codes: net.decode(prior.sample(n)),
                "pixels": lambda n=batch, prior=values: prior.sample(n),
            }
            figures[f"drawing, batch {batch}"] = an_image(drawing, repeats, batch)
        training: dict[str, Callable[[], object]] = {
            "codes": Training(codes, BATCH),
            "pixels": Training(values, BATCH // 4),
            "autoencoder": autoencoder_training(autoencoder, side),
        }
        figures["a training step"] = an_image(training, repeats, BATCH)
        found[f"{side} px"] = figures
        print(f"{side} px", figures, flush=True)
    keep("sampling-pixels", {"repeats": repeats, "pixel prior": level.model_dump(), "found": found})


def an_image(cases: dict[str, Callable[[], object]], repeats: int, batch: int) -> dict[str, float]:
    """Seconds an image of each case, and how many times as long pixels take as codes."""
    medians = {k: statistics.median(v) / batch for k, v in interleaved(cases, repeats).items()}
    return {f"{k}, s": v for k, v in medians.items()} | {"ratio": medians["pixels"] / medians["codes"]}


def main() -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "part", nargs="?", choices=["peer", "limit", "growth", "ffhq1024", "pixels"], default="limit"
    )
    parser.add_argument("--rosinality", type=Path, help="a checkout of rosinality/vq-vae-2-pytorch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--sides", type=int, nargs="*", default=[32, 64], help="pixels: sizes of the pictures"
    )
    options = parser.parse_args()
    if options.part == "peer":
        if not options.rosinality:
            parser.error("peer needs --rosinality FOLDER")
        peer(options.rosinality, options.repeats)
    elif options.part == "limit":
        limit(options.repeats)
    elif options.part == "growth":
        growth()
    elif options.part == "pixels":
        pixels(options.repeats, options.sides)
    else:
        ffhq1024()


if __name__ == "__main__":
    main()
