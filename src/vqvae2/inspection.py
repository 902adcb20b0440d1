"""What `vqvae2 inspect` says: geometry, parameters, FLOPs, memory, what training costs, and what a run has measured.

Every figure that follows from the configuration comes from fake tensors: they have shapes and types but no storage, so
the largest preset is measured in seconds without being allocated. Three operations are replaced while they run:

- attention by the fused kernel, which keeps no N x N scores, as a GPU does;
- dropout by the fused kernel, which keeps one byte per element for its mask, as a GPU does;
- the count of codes, whose result is needed for its shape only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from vqvae2.autoencoder.codebook_usage import stored_usage
from vqvae2.autoencoder.model import VQVAE
from vqvae2.config.models import Config, TrainConfig
from vqvae2.data.store import open_store
from vqvae2.prior.attention import attend
from vqvae2.prior.hierarchy import HierarchicalPrior
from vqvae2.prior.level import LevelPrior
from vqvae2.run import Run

PEAK = 989e12  # FLOP/s of one H100 (SXM), bf16 without sparsity: its data sheet
UTILISATION = 0.35  # share of the peak that training reaches: an assumption
GPUS = 64
CAPACITY = 80e9  # bytes of its memory
USABLE = 0.9  # share of the capacity that is left for tensors: an assumption


@dataclass(frozen=True)
class Work:
    """What one network needs.

    Attributes:
        name: "autoencoder" or "prior level L".
        parameters: weights that are trained.
        forward: FLOPs of one image: encoding and decoding it, or the logits of the whole grid.
        training: FLOPs of one image in a training step, forward and backward, counted one by one.
        kept: bytes that one image keeps for the backward pass in float32; with checkpointing, without what the one layer
            that is being computed anew needs for a moment.
        kept_bf16: the same with bf16 autocast.
        state: bytes of weights, gradients, AdamW's two moments, the averaged weights if any, and buffers, in float32.
        settings: its training.
    """

    name: str
    parameters: int
    forward: int
    training: int
    kept: int
    kept_bf16: int
    state: int
    settings: TrainConfig

    @property
    def total(self) -> int:
        """FLOPs of the whole training: steps x batch x FLOPs of one image."""
        return self.settings.steps * self.settings.batch * self.training

    @property
    def gpu_hours(self) -> float:
        """Hours of one H100 for the whole training: FLOPs / (peak x share that is used)."""
        return self.total / (PEAK * UTILISATION) / 3600

    @property
    def accumulate(self) -> int | None:
        """Parts into which a batch is cut so that one H100 holds them in bf16; None if one picture is too much for it."""
        pictures = int((CAPACITY * USABLE - self.state) // self.kept_bf16)
        return math.ceil(self.settings.batch / pictures) if pictures > 0 else None


@dataclass(frozen=True)
class Measured:
    """What a configuration needs.

    Attributes:
        encode: FLOPs of encoding one image.
        autoencoder: stage 1.
        priors: stage 2, coarsest level first.
        codebooks: numbers in the codebooks that are not trained by gradient.
    """

    encode: int
    autoencoder: Work
    priors: tuple[Work, ...]
    codebooks: int

    @property
    def decode(self) -> int:
        """FLOPs of decoding one image."""
        return self.autoencoder.forward - self.encode

    @property
    def sample(self) -> int:
        """FLOPs of one sample: every prior once over its whole grid, and decoding."""
        return self.decode + sum(prior.forward for prior in self.priors)

    @property
    def parts(self) -> tuple[Work, ...]:
        """Every network, in order of training."""
        return (self.autoencoder, *self.priors)


def describe(config: Config, run: Run | None = None) -> dict[str, dict[str, Any]]:
    """Tables of figures: what follows from the configuration, and what a run has measured."""
    measured = measure(config)
    tables = {
        "geometry": _geometry(config),
        "parameters": _parameters(measured),
        "FLOPs per image (2 per multiply-add)": _flops(measured),
        "memory, activations per image": _memory(measured),
        "cost of training": _cost(measured),
    }
    if run is not None:
        tables["done"] = {name: "yes" if done else "no" for name, done in run.done().items()}
        tables |= _measured(run)
    return tables


def measure(config: Config) -> Measured:
    """Count parameters, FLOPs and memory of every network of a configuration.

    The autoencoder is measured in eval mode: the update of its codebooks is left out, which is small beside the
    convolutions. Attention counts in full, without the half that causality saves.
    """
    size, channels, classes = config.data.size, config.data.channels, config.prior.classes
    # neither changes the count, and both ask for values that fake tensors lack
    settings = config.autoencoder.model_copy(update={"rate": 0.0, "drop_finer": 0.0})
    with FakeTensorMode():
        autoencoder = VQVAE(settings).eval()
        prior = HierarchicalPrior(config.prior, config.geometry).train()
        for i, training in enumerate(config.train_prior):
            prior.level(i).checkpointing = training.checkpointing

        def images(batch: int) -> Tensor:
            return torch.zeros(batch, channels, size, size)

        def reconstruct(batch: int) -> Tensor:
            x = images(batch)
            out = autoencoder(x)
            loss: Tensor = (out.images.float() - x).square().mean() + out.commitment
            return loss

        def predict(level: LevelPrior, batch: int) -> Tensor:
            grids = [torch.zeros(batch, h, w, dtype=torch.int64) for h, w in config.geometry.grids]
            labels = torch.zeros(batch, dtype=torch.int64) if classes else None
            logits = level(grids[level.level], tuple(grids[: level.level]), labels)
            return functional.cross_entropy(logits.float(), grids[level.level])

        whole = _work("autoencoder", autoencoder, reconstruct, config.train_autoencoder)
        levels = tuple(
            _work(f"prior level {i}", prior.level(i), partial(predict, prior.level(i)), training)
            for i, training in enumerate(config.train_prior)
        )
        with _Substitutes(), FlopCounterMode(display=False) as counter:
            autoencoder.encode(images(1))
        codebooks = sum(q.embeddings.numel() for q in autoencoder.quantizers)
    return Measured(int(counter.get_total_flops()), whole, levels, codebooks)


def _work(name: str, net: nn.Module, loss: Callable[[int], Tensor], settings: TrainConfig) -> Work:
    kept = _Kept()
    with kept, _Substitutes(), FlopCounterMode(display=False) as counter:
        value = loss(1)
        alone, forward = kept.bytes, counter.get_total_flops()
        # by edges: given tensors, autograd leaves the substitutes, which what is computed anew needs as well
        edges = [get_gradient_edge(p) for p in net.parameters() if p.requires_grad]
        torch.autograd.grad(get_gradient_edge(value), edges, torch.ones_like(value), allow_unused=True)
    # a batch of two less a batch of one: what does not grow with the batch, such as cast weights, drops out
    plain = kept_bytes(loss, 2) - alone
    mixed = kept_bytes(loss, 2, bf16=True) - kept_bytes(loss, 1, bf16=True)
    parameters = sum(p.numel() for p in net.parameters())
    buffers = sum(b.numel() * b.element_size() for b in net.buffers())
    state = 4 * parameters * (5 if settings.average else 4) + buffers
    training = counter.get_total_flops()
    return Work(name, parameters, int(forward), int(training), plain, mixed, state, settings)


def kept_bytes(loss: Callable[[int], Tensor], batch: int, bf16: bool = False) -> int:
    """Bytes that `loss` of a batch keeps for the backward pass: every storage once, used weights among them."""
    kept = _Kept()
    with kept, _Substitutes(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss(batch)
    return kept.bytes


class _Kept(saved_tensors_hooks):
    """While it is entered, counts what is saved for the backward pass."""

    def __init__(self) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address comes twice
        super().__init__(self._keep, lambda x: x)

    @property
    def bytes(self) -> int:
        """The sizes of the storages saved so far."""
        return sum(storage.nbytes() for storage in self._storages.values())

    def _keep(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        self._storages[storage._cdata] = storage
        return x


class _Substitutes(TorchFunctionMode):
    """The replacements that the module's docstring names."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replacement = _REPLACED.get(func)
        return (replacement or func)(*args, **(kwargs or {}))


def _attention(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    result: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout, True)[0]
    return result


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, True)[0] if training and p else input


def _bincount(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    return input.new_zeros(minlength)


_REPLACED: dict[Any, Callable[..., Any]] = {
    attend: _attention,
    functional.dropout: _dropout,
    torch.bincount: _bincount,
}


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


def _parameters(measured: Measured) -> dict[str, Any]:
    rows = {
        "autoencoder": measured.autoencoder.parameters,
        "codebooks (not counted above)": measured.codebooks,
    }
    return rows | {prior.name: prior.parameters for prior in measured.priors}


def _flops(measured: Measured) -> dict[str, Any]:
    rows = {
        "encode": measured.encode,
        "decode": measured.decode,
        "autoencoder training step": measured.autoencoder.training,
    }
    for prior in measured.priors:
        rows[f"{prior.name} training step"] = prior.training
        rows[f"{prior.name} whole grid (= sampling it incrementally)"] = prior.forward
    rows["one sample, decode included"] = measured.sample
    return {name: _with_unit(value, "FLOP") for name, value in rows.items()}


def _memory(measured: Measured) -> dict[str, Any]:
    rows = {}
    for part in measured.parts:
        rows[f"{part.name}, activations, fp32"] = _mebibytes(part.kept)
        rows[f"{part.name}, activations, bf16"] = _mebibytes(part.kept_bf16)
        average = ", average included" if part.settings.average else ""
        rows[f"{part.name}, weights, gradients, AdamW"] = _mebibytes(part.state) + average
    rows["not counted"] = "gradients in passing, workspaces"
    return rows


def _cost(measured: Measured) -> dict[str, Any]:
    used = _with_unit(PEAK * UTILISATION, "FLOP/s")
    rows = {
        "assumed of an H100": f"{PEAK / 1e12:.0f} TFLOP/s (bf16) x {UTILISATION:.0%} = {used}",
        f"assumed of {GPUS} H100s": f"{GPUS} times as fast as one",
        "memory of 1 H100": f"{CAPACITY / 1e9:.0f} GB x {USABLE:.0%}, precision: bf16",
        "FLOP": "steps x batch x FLOP of an image, as follows",
        "GPU-hours": "FLOP / FLOP/s assumed / 3600",
    }
    for part in measured.parts:
        each, total = _with_unit(part.training, "FLOP"), _with_unit(part.total, "FLOP")
        rows[part.name] = f"{part.settings.steps:,} x {part.settings.batch:,} x {each} = {total}"
        rows |= _hours(part.name, part.gpu_hours)
        rows[f"{part.name}, on 80 GB"] = (
            f"accumulate: {part.accumulate}" if part.accumulate else "too small for one picture"
        )
    return rows | _hours("everything", sum(part.gpu_hours for part in measured.parts))


def _hours(name: str, hours: float) -> dict[str, str]:
    return {
        f"{name}, 1 H100": f"{_short(hours)} GPU-hours = {_short(hours / 24)} days",
        f"{name}, {GPUS} H100s": f"{_short(hours / GPUS)} hours = {_short(hours / GPUS / 24)} days",
    }


def _short(value: float) -> str:
    """1,234 or 56.7 or 0.89, or that it is less than 0.01."""
    if value < 0.01:
        return "<0.01"
    return f"{value:,.0f}" if value >= 100 else f"{value:.{1 if value >= 10 else 2}f}"


def _with_unit(value: float, unit: str) -> str:
    """Four digits and a prefix: 1.234 GFLOP."""
    power = min(7, (len(str(int(value))) - 1) // 3)
    return f"{value / 1000**power:#.4g} {('', 'k', 'M', 'G', 'T', 'P', 'E', 'Z')[power]}{unit}"


def _mebibytes(value: int) -> str:
    mebibytes = value / 2**20
    return f"{mebibytes:,.1f} MiB" if mebibytes >= 100 else f"{mebibytes:.3f} MiB"


def _measured(run: Run) -> dict[str, dict[str, Any]]:
    levels = range(run.config.autoencoder.levels)
    tables: dict[str, dict[str, Any]] = {}
    figures = run.figures()
    if figures:
        tables["stage 1, held out"] = {k: f"{v:.4g}" for k, v in figures.items() if k != "score"}
    if (run.folder / "codes" / "manifest.json").exists():
        usages = stored_usage(open_store(run.folder / "codes"))
        tables["codes used, training pictures"] = {
            f"level {i}": f"{usage.used:.1%}, perplexity {usage.perplexity:.1f}"
            for i, usage in enumerate(usages)
        }
    for level in levels:
        figures = run.figures(level)
        if figures:
            tables[f"prior level {level}"] = {k: f"{v:.4g}" for k, v in figures.items() if k != "score"}
    return tables
