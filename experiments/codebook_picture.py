"""The moving-average update of the codebook against the gradient update, on two-dimensional vectors that can be drawn.

    python experiments/codebook_picture.py [--steps 1500]

The vectors lie around eight centres on a ring, with different frequencies, in batches of 64; there are sixteen codes. In one
case the ring stays fixed. In the other it turns and grows while the codes learn, as an encoder moves its vectors during
training. The moving averages and the gradient of the codebook loss ||sg[z] - e||^2 (mean over all elements) start from the
same codes and see the same batches. The figures of three seeds are written to results/codebook-ema-2d.json, a drawing of
seed 0 to docs/images/codebook-ema-2d.svg. This takes about a minute on one core.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae2.autoencoder.nearest import nearest_code
from vqvae2.autoencoder.quantizer import VectorQuantizer
from vqvae2.evaluate.plot import svg

ROOT = Path(__file__).parents[1]
CODES, BATCH, SEEDS, EVERY, N = 16, 64, (0, 1, 2), 25, 4096
WEIGHTS = torch.tensor([30.0, 20, 15, 12, 10, 8, 4, 1])  # percentage of the vectors at each centre
DECAYS = (0.9, 0.99, 0.999)
RATES = {"SGD": (0.1, 1.0, 10.0), "Adam": (3e-4, 3e-3, 3e-2)}
SHOWN = ("EMA 0.99", "SGD 1", "Adam 0.0003")
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf")


def vectors(n: int, turn: float, generator: torch.Generator) -> Tensor:
    """[n, 2] around the ring, which turns by up to 100 degrees and grows by up to a half as `turn` goes from 0 to 1."""
    index = torch.multinomial(WEIGHTS, n, replacement=True, generator=generator)
    angle = index * (2 * math.pi / len(WEIGHTS)) + turn * math.radians(100)
    centre = torch.stack([angle.cos(), angle.sin()], 1)
    return (1 + turn / 2) * (centre + 0.12 * torch.randn(n, 2, generator=generator))


@dataclass
class Path2D:
    """The history of one codebook: its codes every `EVERY` steps [T, K, 2], with the error and the number of dead codes.

    `off` is the final distance of the used codes from the mean of their vectors: of the less used half, of the other half.
    """

    codes: Tensor
    mse: list[float]
    dead: list[int]
    off: tuple[float, float]


def start(seed: int) -> Tensor:
    """[K, 2], Sonnet's uniform initialisation: some codes lie where there are no vectors."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return (torch.rand(CODES, 2, generator=generator) * 2 - 1) * math.sqrt(3 / 2)


def averaged(codes: Tensor, decay: float, revive: bool = False) -> VectorQuantizer:
    """Our quantizer, starting from these codes instead of vectors of the first batch."""
    quantizer = VectorQuantizer(*codes.shape, decay=decay, revive=revive).to(codes.dtype)
    quantizer.embeddings.copy_(codes)
    quantizer.counter += 1  # as if there had been a first batch of no weight
    return quantizer


def learner(kind: str, value: float, codes: Tensor) -> tuple[VectorQuantizer, Callable[[Tensor], Any]]:
    """A codebook that starts from `codes`, and the function that updates it with one batch."""
    if kind.startswith("EMA"):
        quantizer = averaged(codes, value, revive=kind.endswith("revival"))
        return quantizer, quantizer
    quantizer = VectorQuantizer(*codes.shape, commitment_cost=0.0, init="sonnet", ema=False)
    with torch.no_grad():
        quantizer.embeddings.copy_(codes)
    optimizer = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam}[kind]([quantizer.embeddings], lr=value)

    def step(batch: Tensor) -> None:
        optimizer.zero_grad()
        quantizer(batch).loss.backward()
        optimizer.step()

    return quantizer, step


def learn(kind: str, value: float, moves: bool, seed: int, steps: int) -> Path2D:
    """Train one codebook, and measure it on separate vectors around the ring of the same step."""
    quantizer, step = learner(kind, value, start(seed))
    batches = torch.Generator().manual_seed(seed)
    path, mse, dead = [], [], []
    for index in range(steps + 1):
        turn = index / steps if moves else 0.0
        if index % EVERY == 0:
            codes = quantizer.embeddings.detach().clone()
            test = vectors(N, turn, torch.Generator().manual_seed(2000 + seed))
            chosen = nearest_code(test, codes)
            path.append(codes)
            mse.append(float((test - codes[chosen]).square().sum(1).mean()))
            dead.append(int((torch.bincount(chosen, minlength=CODES) == 0).sum()))
        step(vectors(BATCH, turn, batches))
    count = torch.bincount(chosen, minlength=CODES)
    order = count.argsort()[dead[-1] :]
    off = (codes - lloyd(test, codes)).norm(dim=1)[order]
    return Path2D(
        torch.stack(path), mse, dead, (float(off[: len(off) // 2].mean()), float(off[len(off) // 2 :].mean()))
    )


def lloyd(data: Tensor, codes: Tensor) -> Tensor:
    """One step of k-means: each code moves to the mean of its vectors; a code without vectors stays."""
    chosen = nearest_code(data, codes)
    count = torch.bincount(chosen, minlength=len(codes)).to(data)
    total = torch.zeros_like(codes).index_add_(0, chosen, data)
    return torch.where(count[:, None] > 0, total / count.clamp_min(1)[:, None], codes)


def against_lloyd(seed: int) -> dict[str, Any]:
    """Moving averages and k-means on one repeated batch, in float64; distances are the maximum over the codes."""
    data = vectors(512, 0.0, torch.Generator().manual_seed(3000 + seed)).double()
    codes = start(seed).double()
    apart, means, quantizer = 0.0, codes, averaged(codes, 0.0)
    for _ in range(100):
        quantizer(data)
        means = lloyd(data, means)
        apart = max(apart, float((quantizer.embeddings - means).abs().max()))

    def error(codes: Tensor) -> float:
        return float((data - codes[nearest_code(data, codes)]).square().sum(1).mean())

    fixed = {}
    for decay in DECAYS[:2]:
        quantizer = averaged(codes, decay)
        for _ in range(round(40 / (1 - decay))):
            quantizer(data)
        final = quantizer.embeddings.clone()
        fixed[f"decay {decay:g}"] = {
            "from the mean of its vectors": float((final - lloyd(data, final)).abs().max()),
            "mse": error(final),
        }
    return {"decay 0 against Lloyd, 100 steps": apart, "mse of Lloyd": error(means), "fixed point": fixed}


def settled(mse: list[float]) -> int:
    """The first measured step from which the error stays within a tenth of its final value."""
    outside = [index for index, value in enumerate(mse) if abs(value - mse[-1]) > 0.1 * mse[-1]]
    return EVERY * (outside[-1] + 1 if outside else 0)


def spread(values: list[float]) -> dict[str, float]:
    """Mean, minimum and maximum over the seeds."""
    return {"mean": sum(values) / len(values), "least": min(values), "most": max(values)}


def arms() -> dict[str, tuple[str, float]]:
    """The name of each arm, mapped to its kind and its decay or learning rate."""
    table = {f"EMA {decay:g}": ("EMA", decay) for decay in DECAYS}
    table |= {"EMA 0.99, revival": ("EMA, revival", 0.99)}
    return table | {f"{kind} {rate:g}": (kind, rate) for kind, rates in RATES.items() for rate in rates}


def figures(paths: list[Path2D], moves: bool) -> dict[str, Any]:
    """The figures of one arm over its seeds; seeds whose codes became infinite are counted and left out."""
    diverged = sum(not math.isfinite(path.mse[-1]) for path in paths)
    paths = [path for path in paths if math.isfinite(path.mse[-1])]
    if not paths:
        return {"diverged": diverged}
    result: dict[str, Any] = {
        "diverged": diverged,
        "mse at the end": spread([path.mse[-1] for path in paths]),
        "mse over all steps": spread([sum(path.mse) / len(path.mse) for path in paths]),
        "dead codes at the end": spread([path.dead[-1] for path in paths]),
        "off the mean of its vectors, less used half": spread([path.off[0] for path in paths]),
        "off the mean of its vectors, more used half": spread([path.off[1] for path in paths]),
    }
    if not moves:
        result["settled after steps"] = spread([settled(path.mse) for path in paths])
    return result


def panel(path: Path2D, title: str, moves: bool, side: float) -> str:
    """Draw the path of one codebook: vectors in grey, a line per code from its start (ring) to its end (dot; dead: cross)."""

    def place(point: Tensor) -> str:
        x, y = ((point / 2.25 + 1) / 2 * side).tolist()
        return f"{x:.1f},{side - y:.1f}"

    parts = [f'<rect width="{side:g}" height="{side:g}" fill="#fff" stroke="#ccc"/>']
    for turn, colour in ((0.0, "#ddd"), (1.0, "#bbb"))[: 2 if moves else 1]:
        points = "".join(
            f"M{place(point)}h0" for point in vectors(250, turn, torch.Generator().manual_seed(2000))
        )
        parts.append(f'<path d="{points}" stroke="{colour}" stroke-width="2.4" stroke-linecap="round"/>')
    for index in range(CODES):
        way = path.codes[:, index]
        line = list(dict.fromkeys(place(point) for point in way))
        colour = COLOURS[index % len(COLOURS)]
        (x0, y0), (x1, y1) = line[0].split(","), line[-1].split(",")
        parts.append(
            f'<polyline points="{" ".join(line)}" fill="none" stroke="{colour}" stroke-width="1.3"/>'
        )
        parts.append(f'<circle cx="{x0}" cy="{y0}" r="2.6" fill="#fff" stroke="{colour}"/>')
        if used(path, index, moves):
            parts.append(
                f'<circle cx="{x1}" cy="{y1}" r="3.4" fill="{colour}" stroke="#fff" stroke-width=".6"/>'
            )
        else:
            cross = f"M{float(x1) - 3.5:.1f} {float(y1) - 3.5:.1f}l7 7m0 -7l-7 7"
            parts.append(f'<path d="{cross}" stroke="#000" stroke-width="1.5"/>')
    words = f"{title}: error {path.mse[-1]:.3f}, {path.dead[-1]} of {CODES} codes dead"
    parts.append(f'<text x="{side / 2:g}" y="-6" text-anchor="middle" font-size="11">{words}</text>')
    return "".join(parts)


def used(path: Path2D, index: int, moves: bool) -> bool:
    """Whether this code is the nearest one of any vector at the end."""
    test = vectors(N, float(moves), torch.Generator().manual_seed(2000))
    return bool((nearest_code(test, path.codes[-1]) == index).any())


def drawing(paths: dict[tuple[bool, str], Path2D], steps: int) -> str:
    """Two rows, the fixed and the moving ring: the paths of three codebooks, and the error of several over the steps."""
    side, gap = 250.0, 14.0
    width, height = 3 * (side + gap) + 460 + 30, 2 * (side + 50) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" font-family="sans-serif">',
        f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>',
    ]
    for row, moves in enumerate((False, True)):
        y = 40 + row * (side + 50)
        words = "the vectors move" if moves else "the vectors stay"
        parts.append(
            f'<text transform="translate(16 {y + side / 2:g}) rotate(-90)" text-anchor="middle">{words}</text>'
        )
        for column, name in enumerate(SHOWN):
            x = 30 + column * (side + gap)
            parts.append(
                f'<g transform="translate({x:g} {y:g})">{panel(paths[moves, name], name, moves, side)}</g>'
            )
        curves = {
            name: [(EVERY * index, value) for index, value in enumerate(paths[moves, name].mse)]
            for name in (*SHOWN, "EMA 0.99, revival", "EMA 0.999", "Adam 0.003")
        }
        x = 30 + 3 * (side + gap)
        parts.append(
            f'<text x="{x + 240:g}" y="{y - 6:g}" text-anchor="middle" font-size="12">squared error over {steps} steps</text>'
        )
        inner = svg(curves, log=True)
        parts.append(
            inner.replace("<svg ", f'<svg x="{x:g}" y="{y + 20:g}" width="460" height="{side - 40:g}" ', 1)
        )
    return "".join(parts) + "</svg>\n"


def main() -> None:
    """Measure, and write the figures and the drawing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    steps = parser.parse_args().steps
    result: dict[str, Any] = {
        "protocol": {
            "codes": CODES, "batch": BATCH, "steps": steps, "seeds": SEEDS, "weights of the places": WEIGHTS.tolist(),
            "mse": f"mean of ||z - q||^2 over {N} vectors that were not trained on; dead: nearest to none of them",
        }
    }  # fmt: skip
    shown: dict[tuple[bool, str], Path2D] = {}
    for moves in (False, True):
        words = "the vectors move" if moves else "the vectors stay"
        result[words] = {}
        for name, (kind, value) in arms().items():
            paths = [learn(kind, value, moves, seed, steps) for seed in SEEDS]
            shown[moves, name] = paths[0]
            result[words][name] = figures(paths, moves)
            print(f"{words}, {name}: {json.dumps(result[words][name])}", flush=True)
    result["one batch repeated"] = {f"seed {seed}": against_lloyd(seed) for seed in SEEDS}
    print(json.dumps(result["one batch repeated"], indent=1))
    (ROOT / "results" / "codebook-ema-2d.json").write_text(json.dumps(result, indent=1) + "\n")
    (ROOT / "docs" / "images" / "codebook-ema-2d.svg").write_text(drawing(shown, steps))


if __name__ == "__main__":
    main()
