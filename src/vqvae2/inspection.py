"""What `vqvae2 inspect` says: geometry, parameters, FLOPs, code usage, losses, what is done and what is not."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes
from vqvae2.config import Config
from vqvae2.data.store import open_store
from vqvae2.prior.hierarchy import HierarchicalPrior
from vqvae2.prior.pixelcnn import LevelPrior
from vqvae2.run import Run
from vqvae2.train.pipeline import code_use


def describe(config: Config, run: Run | None = None) -> dict[str, dict[str, Any]]:
    """Tables of figures, the priors' from shapes alone (meta device), and of what a run has measured."""
    autoencoder = VQVAE(config.autoencoder).eval()
    with torch.device("meta"):
        prior = HierarchicalPrior(config.prior, config.geometry).eval()
    tables = {
        "geometry": _geometry(config),
        "parameters": _parameters(autoencoder, prior),
        "FLOPs per image (2 per multiply-add)": _flops(config, autoencoder, prior),
    }
    if run is not None:
        tables["done"] = {name: "yes" if done else "no" for name, done in run.done().items()}
        tables |= _measured(run)
    return tables


def _geometry(config: Config) -> dict[str, Any]:
    geometry = config.geometry
    pixels = config.data.size**2 * config.data.channels
    rows: dict[str, Any] = {
        "image": f"{config.data.size}x{config.data.size}, {config.data.channels} channels"
    }
    for level, ((h, w), k) in enumerate(zip(geometry.grids, geometry.vocabulary, strict=True)):
        rows[f"level {level}"] = f"{h}x{w} grid, {k} codes"
    rows["codes per image"] = sum(geometry.positions)
    rows["bytes per image at fixed length"] = round(geometry.bits / 8, 1)
    rows["smaller than 8-bit pixels by"] = f"{pixels * 8 / geometry.bits:.1f} x"
    return rows


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _parameters(autoencoder: VQVAE, prior: HierarchicalPrior) -> dict[str, Any]:
    codebooks = sum(q.embeddings.numel() for q in autoencoder.quantizers)
    rows = {"autoencoder": _count(autoencoder), "codebooks (not counted above)": codebooks}
    return rows | {f"prior level {i}": _count(level) for i, level in enumerate(prior.levels)}


def _counted(call: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def _flops(config: Config, autoencoder: VQVAE, prior: HierarchicalPrior) -> dict[str, Any]:
    size = config.data.size
    image = torch.zeros(1, config.data.channels, size, size)
    grids = [torch.zeros(1, h, w, dtype=torch.int64, device="meta") for h, w in config.geometry.grids]

    labels = torch.zeros(1, dtype=torch.int64, device="meta") if config.prior.classes else None
    with torch.no_grad():
        whole = _counted(lambda: autoencoder(image))
        decode = _counted(
            lambda: autoencoder.decode(Codes(tuple(torch.zeros_like(g, device="cpu") for g in grids)))
        )
        rows = {
            "encode": whole - decode,
            "decode": decode,
            "autoencoder training step (about 3 x)": 3 * whole,
        }
        total = decode
        for index, level in enumerate(prior.levels):
            assert isinstance(level, LevelPrior)
            flops = _counted(
                lambda index=index, level=level: level(grids[index], tuple(grids[:index]), labels)
            )
            rows[f"prior level {index}, whole grid (= sampling it incrementally)"] = flops
            total += flops
    rows["one sample, decode included"] = total
    return {name: f"{value:.3e}" for name, value in rows.items()}


def _measured(run: Run) -> dict[str, dict[str, Any]]:
    levels = range(run.config.autoencoder.levels)
    tables: dict[str, dict[str, Any]] = {}
    figures = run.figures()
    if figures:
        tables["stage 1, held out"] = {k: f"{v:.4g}" for k, v in figures.items() if k != "score"}
    if (run.folder / "codes" / "manifest.json").exists():
        use = code_use(open_store(run.folder / "codes"))
        tables["codes used, training pictures"] = {
            f"level {i}": f"{u['usage']:.1%}, perplexity {u['perplexity']:.1f}" for i, u in enumerate(use)
        }
    for level in levels:
        figures = run.figures(level)
        if figures:
            tables[f"prior level {level}"] = {k: f"{v:.4g}" for k, v in figures.items() if k != "score"}
    return tables
