"""Drawing codes on a GPU: plain steps against recorded rows, and whole images. `python benchmarks/_gpu_drawing.py [--tiny] [--out FILE]`

The priors of the first rows have the size of rosinality's: 32x32 with attention (85 M weights) and 64x64 conditional (97 M).
Weights are random, which does not change the time; emoji64 is the shipped model. `--tiny` runs every row on small models, on the
CPU if there is no GPU, to check the script itself.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import RESULTS
from _gpu_common import Report as Kept
from torch import Tensor, nn

import vqvae2
from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes, Geometry
from vqvae2.config.models import AutoencoderConfig, LevelPriorConfig, PriorConfig
from vqvae2.config.presets import preset
from vqvae2.prior.captured import StepGraphs, ops_for
from vqvae2.prior.chooser import UNKNOWN, Chooser, Rule
from vqvae2.prior.draw import uniforms
from vqvae2.prior.hierarchy import HierarchicalPrior
from vqvae2.prior.kinds import make_level, static_kind
from vqvae2.prior.level import LevelPrior
from vqvae2.prior.scan import scan
from vqvae2.prior.step_ops import StepSpec
from vqvae2.tf32 import without_tf32

Report = Callable[[str, Any], None]
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def rows(report: Report, tiny: bool = False, seconds: float = 180.0, only: str = "") -> None:
    """Run every row; `report(name, value)` is called as soon as one is measured.

    Args:
        tiny: small models, to check the script.
        seconds: rows that have not begun by then are skipped, and reported so.
        only: names of rows, separated by commas; "" for all.
    """
    begun = time.perf_counter()
    parts: list[tuple[str, Callable[[Report, bool], None]]] = [
        ("checks", checks),
        ("32x32 prior", lambda say, small: level_rows(say, small, 0)),
        ("64x64 prior", lambda say, small: level_rows(say, small, 1)),
        ("256 px with both priors", both_priors),
        ("emoji64", emoji),
        ("large64", lambda say, small: preset_images(say, small, "large64", (1, 256))),
        ("ffhq1024", lambda say, small: preset_images(say, small, "ffhq1024", (1,))),
        ("imagenet256", lambda say, small: preset_images(say, small, "imagenet256", (1, 256))),
    ]
    names = [name for name, _ in parts]
    chosen = only.split(",") if only else names
    if unknown := sorted({*chosen} - {*names}):
        raise SystemExit(f"no row {unknown[0]!r}: expected some of {', '.join(names)}")
    for name, part in (part for part in parts if part[0] in chosen):
        if time.perf_counter() - begun > seconds:
            report(f"drawing: {name}", "skipped: out of time")
            continue
        try:
            part(lambda key, value, name=name: report(f"drawing: {name}: {key}", value), tiny)
        except Exception as error:
            traceback.print_exc()
            report(f"drawing: {name}", f"failed: {error!r}"[:400])
        if CUDA:
            torch.cuda.empty_cache()
    report("drawing: seconds", round(time.perf_counter() - begun, 1))


def graphs(precision: str = "float32", kernels: str = "fused") -> StepGraphs:
    """Recorded rows on a GPU; without one, static steps that are not recorded."""
    return StepGraphs(precision, kernels, (DEVICE,), 1)  # type: ignore[arg-type]


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    if CUDA:
        torch.cuda.synchronize()
    begun = time.perf_counter()
    call()
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def randomised(net: nn.Module) -> nn.Module:
    """`net` on the device, with the projections that start at zero drawn anew, so that its logits differ."""
    net = net.to(DEVICE).eval()
    generator = torch.Generator(DEVICE).manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 2 and not parameter.any():
                noise = torch.randn(parameter.shape, generator=generator, device=DEVICE)
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
    return net


def rosinality_level(level: int, tiny: bool) -> tuple[LevelPriorConfig, Geometry]:
    """The configuration of that level's prior, and the grids."""
    config = LevelPriorConfig(
        hidden=32 if tiny else 256,
        residual=64 if tiny else 512,
        layers=2 if tiny else 16,
        kernel=5,
        attention_every=0 if level else (1 if tiny else 4),
        heads=8,
        output_layers=0,
        condition_blocks=3 * level,
    )
    side = 4 if tiny else 32
    return config, Geometry(((side, side), (2 * side, 2 * side)), (512, 512))


def coarser_codes(prior: LevelPrior, geometry: Geometry, batch: int) -> tuple[Tensor, ...]:
    """Random codes of the coarser levels."""
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randint(512, (batch, *grid), generator=generator).to(DEVICE)
        for grid in geometry.grids[: prior.level]
    )


def chooser(prior: LevelPrior, batch: int, rule: Rule = Rule()) -> Chooser:  # noqa: B008
    """Draws every code of the images 0 .. batch - 1 of seed 0."""
    count = batch // (2 if rule.guided else 1)
    unknown = torch.full((count, prior.positions), UNKNOWN, device=DEVICE)
    return Chooser(uniforms(0, range(count), prior.level, prior.positions), unknown, rule)


@torch.no_grad()
def level_rows(report: Report, tiny: bool, level: int) -> None:
    """Milliseconds of a plain step and seconds of a grid, by batch, precision and kind of kernels."""
    config, geometry = rosinality_level(level, tiny)
    prior = randomised(make_level(config, geometry, level, 0))
    assert isinstance(prior, LevelPrior)
    report("weights, M", sum(p.numel() for p in prior.parameters()) / 1e6)
    for batch in (1, 16, 64):
        context, choose = prior.context(coarser_codes(prior, geometry, batch), None), chooser(prior, batch)
        few = min(64, prior.positions)
        scan(prior, batch, context, choose, 8)
        plain = timed(lambda b=batch, c=context, f=choose, n=few: scan(prior, b, c, f, n)) / few
        report(f"batch {batch}, plain steps, ms a position", 1e3 * plain)
        cases = [("float32", "fused"), ("bfloat16", "fused")]
        cases += [("float32", "torch")] if batch == 64 or (batch == 1 and level == 0) else []
        for precision, kernels in cases:
            try:
                kept = graphs(precision, kernels)

                def draw(b=batch, c=context, f=choose, kept=kept) -> None:  # type: ignore[no-untyped-def]
                    scan(prior, b, c, f, None, kept)

                first, others = timed(draw), sorted(timed(draw) for _ in range(2))
                fused = "fused" if kernels == "fused" else "torch's"
                report(
                    f"batch {batch}, {precision}, {fused} kernels",
                    {
                        "s a grid": others[0],
                        "again": others[1],
                        "recording, s": first - others[1],
                        "worth it from positions": (first - others[1]) / plain,
                    },
                )
            except Exception as error:
                traceback.print_exc()
                report(f"batch {batch}, {precision}, {kernels}", f"failed: {error!r}"[:400])


SETTINGS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("fused", "streams", {}),
    ("fused", "temperature 0", {"temperature": 0.0}),
    ("fused", "top-k, top-p", {"top_k": 50, "top_p": 0.9, "temperature": 0.8}),
    ("fused", "guidance", {"guidance": 2.0}),
    ("torch", "streams", {}),
)


@torch.no_grad()
def checks(report: Report, tiny: bool) -> None:
    """Recorded rows draw the codes of plain steps; steps compute what the whole grid does."""
    side = 4 if tiny else 16
    grids, classes = ((side // 2, side // 2), (side, side)), 3
    plain_level = {"hidden": 64, "residual": 96, "layers": 4, "heads": 4, "output_layers": 1, "kernel": 5}
    kinds = {
        "pixelcnn": LevelPriorConfig(**plain_level, attention_every=2, condition_blocks=1),
        "transformer": LevelPriorConfig(**plain_level, kind="transformer", condition_blocks=1),
    }
    for kind, config in kinds.items():
        prior = randomised(
            HierarchicalPrior(PriorConfig(levels=(config,) * 2, classes=classes), Geometry(grids, (300, 512)))
        )
        assert isinstance(prior, HierarchicalPrior)
        count = 3 if tiny else 16
        labels = torch.arange(count) % classes
        for kernels, name, settings in SETTINGS if kind == "pixelcnn" else SETTINGS[:2]:
            kept = graphs(kernels=kernels)
            plain = prior.sample(count, labels, seed=1, graphs=StepGraphs(devices=()), **settings)
            recorded = prior.sample(count, labels, seed=1, graphs=kept, **settings)
            found = {
                "of": sum(level.numel() for level in plain.levels),
                "from plain steps": differences(recorded, plain),
                "replayed again": differences(
                    recorded, prior.sample(count, labels, seed=1, graphs=kept, **settings)
                ),
            }
            if not settings:
                chosen = [0, count // 2, count - 1]
                alone = [prior.sample([i], labels[[i]], seed=1, graphs=kept) for i in chosen]
                found["alone and in a batch"] = differences(recorded[chosen], Codes.cat(alone))
            report(f"{kind}, {kernels} kernels, {name}: codes that differ", found)
        report(f"{kind}: share of images that differ from those of batches of 16", by_batch(prior, tiny))
        codes = prior.sample(count, labels, seed=2)
        for level in (0, 1):
            report(f"{kind}, level {level}", step_and_grid(prior, codes, labels, level))


def by_batch(prior: HierarchicalPrior, tiny: bool) -> dict[str, dict[str, float]]:
    """The share of the same images with another code somewhere, by kernels and by batch: their sums have another order."""
    counts, total = ((3,), 4) if tiny else ((1, 64, 200), 200)
    labels = torch.arange(total) % prior.classes
    found: dict[str, dict[str, float]] = {}
    for kernels in ("fused", "torch"):
        kept, drawn = graphs(kernels=kernels), dict[int, Codes]()
        for count in (16, *counts):
            images = range(32 if count == 1 and not tiny else total)
            parts = [images[start : start + count] for start in range(0, len(images), count)]
            drawn[count] = Codes.cat(
                [prior.sample(part, labels[list(part)], seed=1, graphs=kept) for part in parts]
            )
        found[kernels] = {
            f"batches of {count}": images_that_differ(drawn[count], drawn[16][: len(drawn[count])])
            for count in counts
        }
    return found


def images_that_differ(a: Codes, b: Codes) -> float:
    """The share of images with another code somewhere."""
    other = [(x != y).flatten(1).any(1) for x, y in zip(a.levels, b.levels, strict=True)]
    return torch.stack(other).any(0).float().mean().item()


def differences(a: Codes, b: Codes) -> int:
    """How many codes differ."""
    return sum(int((x != y).sum()) for x, y in zip(a.levels, b.levels, strict=True))


def step_and_grid(
    prior: HierarchicalPrior, codes: Codes, labels: Tensor | None, level: int
) -> dict[str, float]:
    """Largest difference of logits between static steps and the whole grid, and of bits between the two precisions."""
    known = prior.check_labels(labels, len(codes))
    with without_tf32(torch.device(DEVICE)):
        context = prior.level(level).context(codes.levels[:level], known)
    whole = prior.logits(codes, level, labels)
    result: dict[str, float] = {"standard deviation of the logits": whole.std().item()}
    direct = prior.level(level)(codes.levels[level], codes.levels[:level], known)
    result["grid with the library's default of TF32"] = (direct - whole).abs().max().item()
    bits = {}
    for precision in (torch.float32, torch.bfloat16):
        with without_tf32(torch.device(DEVICE)):
            logits = static_logits(prior.level(level), codes.levels[level], context, precision)
        name = str(precision).removeprefix("torch.")
        result[f"{name}, step against grid"] = (logits - whole).abs().max().item()
        entropy = nn.functional.cross_entropy(logits.double(), codes.levels[level].long())
        bits[name] = entropy.item() / 0.6931471805599453
    return result | {"bits a code, float32": bits["float32"], "bfloat16": bits["bfloat16"]}


def static_logits(prior: LevelPrior, codes: Tensor, context: Tensor | None, weights: torch.dtype) -> Tensor:
    """Logits [B, K, H, W] of the static steps over known codes, not recorded."""
    shape = None if context is None else tuple(context.shape)
    spec = StepSpec(len(codes), shape, weights, torch.float32, codes.device)
    kind = static_kind(prior)
    assert kind is not None
    static = kind(prior, spec, ops_for(spec, "fused"))
    known = Chooser(uniforms(0, range(len(codes)), 0, prior.positions), codes.flatten(1).long(), Rule())
    seen: list[Tensor] = []
    static.load(prior, context)
    for _ in range(prior.height):
        static.start_row()
        for column in range(prior.width):
            seen.append(static.step(column))
            static.ops.choose(known, seen[-1], static.codes, static.row, column, prior.width)
        static.row += 1
    assert torch.equal(static.result(), codes)
    return torch.stack(seen, 2).view(len(codes), -1, prior.height, prior.width)


@torch.no_grad()
def images_row(
    report: Report, prior: HierarchicalPrior, autoencoder: VQVAE, labels: Tensor | None, batch: int
) -> None:
    """Seconds and images a second of drawing and decoding one batch, after one that recorded the rows."""
    large = sum(p.numel() for p in prior.parameters()) > 1e9  # float32 would take a minute
    for precision in ("bfloat16",) if large else ("float32", "bfloat16"):
        try:
            kept = graphs(precision)

            def draw(precision: str = precision, kept: StepGraphs = kept) -> None:
                codes = prior.sample(batch, labels, graphs=kept)
                with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bfloat16"):
                    autoencoder.decode(codes)

            first, second = timed(draw), timed(draw)
            report(
                f"batch {batch}, {precision}",
                {
                    "s a batch": second,
                    "images a second": batch / second,
                    "first batch, s": first,
                    "memory, GB": torch.cuda.max_memory_allocated() / 1e9 if CUDA else 0.0,
                },
            )
        except Exception as error:
            traceback.print_exc()
            report(f"batch {batch}, {precision}", f"failed: {error!r}"[:400])
        kept = draw = None  # type: ignore[assignment]
        if CUDA:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def both_priors(report: Report, tiny: bool) -> None:
    """Images of 256 px from the two priors of rosinality's size and the decoder of `imagenet256`."""
    levels = tuple(rosinality_level(level, tiny)[0] for level in (0, 1))
    geometry = rosinality_level(0, tiny)[1]
    prior = randomised(HierarchicalPrior(PriorConfig(levels=levels), geometry))
    small = AutoencoderConfig(hidden=8, residual=8, code_dim=8)
    autoencoder = VQVAE(small if tiny else preset("imagenet256").autoencoder).to(DEVICE).eval()
    assert isinstance(prior, HierarchicalPrior)
    for batch in (4,) if tiny else (256, 64):
        images_row(report, prior, autoencoder, None, batch)


@torch.no_grad()
def emoji(report: Report, tiny: bool) -> None:
    """The shipped model: its images, and what bfloat16 costs in bits on the codes that it draws."""
    run = vqvae2.load("emoji64", DEVICE)
    prior, autoencoder = run.prior.eval(), run.autoencoder.eval()
    for batch in (2,) if tiny else (1, 64, 256):
        labels = torch.arange(batch) % prior.classes if prior.classes else None
        images_row(report, prior, autoencoder, labels, batch)
    count = 2 if tiny else 64
    labels = torch.arange(count) % prior.classes if prior.classes else None
    codes = prior.sample(count, labels, seed=3)
    for level in range(len(codes.levels)):
        report(f"level {level}, precision", step_and_grid(prior, codes, labels, level))


def preset_images(report: Report, tiny: bool, name: str, batches: tuple[int, ...]) -> None:
    """Images of a preset with random weights; the paper's in bfloat16 only, for time."""
    config = preset("tiny" if tiny else name)
    autoencoder = VQVAE(config.autoencoder).to(DEVICE).eval()
    with torch.device(DEVICE):
        prior = HierarchicalPrior(config.prior, config.geometry)
    prior = randomised(prior)
    assert isinstance(prior, HierarchicalPrior)
    labels = None
    for batch in (2,) if tiny else batches:
        images_row(report, prior, autoencoder, labels, batch)


def main() -> None:
    """Print every figure, and keep it in the file at once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small models, to check the script")
    parser.add_argument("--seconds", type=float, default=180.0, help="begin no row after so long")
    parser.add_argument("--only", default="", help="rows, separated by commas; default all")
    parser.add_argument("--out", type=Path, help="the JSON (default results/gpu-drawing-CARD.json)")
    options = parser.parse_args()
    if not CUDA:
        torch.set_num_threads(1)
    card = torch.cuda.get_device_name().replace(" ", "-").lower() if CUDA else "none"
    file = options.out or RESULTS / f"gpu-drawing-{card}.json"
    rows(
        Kept(file, 0.0, options.tiny, options.seconds),
        tiny=options.tiny,
        seconds=options.seconds,
        only=options.only,
    )


if __name__ == "__main__":
    main()
