"""What the networks of a configuration cost: parameters, FLOPs, memory, and the time of training on a card.

Every figure that follows from the configuration comes from tensors that have shapes and types but no storage, so the
largest preset is measured in seconds without being allocated. They are on the device "meta", except for bf16: autocast
does not know that device, so there they are fake tensors, which say that they are on the CPU and take twice as long.
Two operations are replaced meanwhile:

- attention by the fused kernel, which does not store the N x N scores, as on a GPU;
- dropout by the fused kernel, which stores one byte per element for its mask, as on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from vqvae2.autoencoder.model import VQVAE
from vqvae2.config.models import Config
from vqvae2.config.training import TrainConfig
from vqvae2.prior.attention import attend
from vqvae2.prior.hierarchy import HierarchicalPrior
from vqvae2.prior.level import LevelPrior
from vqvae2.train.sharded import bytes_per_process
from vqvae2.train.sharpen import Sharpening

PEAK = 989e12  # FLOP/s of one H100 (SXM) in bf16 without sparsity, from its data sheet
UTILISATION = 0.35  # share of the peak that a large step reaches: an assumption
# the next three are fitted to the trainings of results/gpu-h200.json
SHARE = 0.07  # of the peak, that a step of 1 TFLOP reaches; it grows with the root of the step's work
RECORDED = 0.006  # seconds that a step takes at least that is replayed as a CUDA graph
LAUNCHED = 0.04  # the same if Python launches its kernels one by one
GPUS = 64
PROCESSES = (8, 64)  # among which `shard` cuts up a prior in the tables
CAPACITY = 80e9  # bytes of its memory
USABLE = 0.9  # share of the capacity that is left for tensors: an assumption


@dataclass(frozen=True)
class Cost:
    """What one network costs.

    Attributes:
        name: "autoencoder", "sharpening" or "prior level L".
        parameters: weights that are trained.
        forward: FLOPs of one image: encoding and decoding it, or the logits of the whole grid.
        training: FLOPs of one image in a training step, forward and backward, counted one by one.
        kept: bytes of activations that are kept for the backward pass, per image, in float32; with checkpointing, without
            those of the one layer that is being recomputed.
        kept_bf16: the same with bf16 autocast.
        state: bytes of weights, gradients, AdamW's two moments, the averaged weights if any, and buffers, in float32.
        settings: how it is trained.
        sharded: of a prior, for some numbers of processes: `train.sharded.bytes_per_process`.
    """

    name: str
    parameters: int
    forward: int
    training: int
    kept: int
    kept_bf16: int
    state: int
    settings: TrainConfig
    sharded: dict[int, tuple[int, int]]

    @property
    def stage(self) -> str:
        """The name of its stage in a run folder."""
        return "sharpen" if self.name == "sharpening" else self.name

    @property
    def total(self) -> int:
        """FLOPs of the whole training: steps x batch x FLOPs of one image."""
        return self.settings.steps * self.settings.batch * self.training

    def memory(self, bf16: bool) -> int:
        """Bytes of a step: state and activations of a batch, or of a part of it with `accumulate`; the program is not counted.

        Args:
            bf16: whether it runs under bf16 autocast, which keeps a copy of each weight besides.
        """
        images = -(-self.settings.batch // self.settings.accumulate)
        if bf16:
            return self.state + 2 * self.parameters + images * self.kept_bf16
        return self.state + images * self.kept

    def seconds(self, cards: int, captured: bool) -> float:
        """Of the whole training, or until its minutes are over, without what `inspect` says is not counted.

        Args:
            cards, captured: see `step_seconds`.
        """
        limit = 60 * self.settings.minutes or math.inf
        return min(limit, self.settings.steps * self.step_seconds(cards, captured))

    def accumulate_on(self, cards: int) -> int | None:
        """Micro-batches into which a batch is split so that each fits on an H100 in bf16; None if not even one image fits.

        Args:
            cards: that share the batch, without `shard`.
        """
        images = int((CAPACITY * USABLE - self.state) // self.kept_bf16)
        return math.ceil(self.settings.batch / cards / images) if images > 0 else None

    def step_seconds(self, cards: int, captured: bool) -> float:
        """Of one step, without the time of communication.

        Args:
            cards: H100s that share the batch.
            captured: whether the settings let a step be replayed as a CUDA graph, which one of several cards or parts never is.
        """
        parts = self.settings.accumulate
        work = self.settings.batch * self.training / cards / parts
        return parts * seconds_of(work, captured and cards == 1 and parts == 1)


def seconds_of(work: float, captured: bool) -> float:
    """Of one training step on an H100 or H200 in bf16; small steps use little of it, because their kernels are short.

    Args:
        work: FLOPs of forward and backward.
        captured: whether it is replayed as a CUDA graph.
    """
    share = min(UTILISATION, SHARE * math.sqrt(work / 1e12))
    return max(work / (PEAK * share), RECORDED if captured else LAUNCHED)


@dataclass(frozen=True)
class Costs:
    """What a configuration costs.

    Attributes:
        encode: FLOPs of encoding one image.
        autoencoder: stage 1.
        sharpening: decoder and discriminator, encoding of the images included; None if the configuration does not sharpen.
        priors: stage 2, coarsest level first.
        codebooks: numbers in the codebooks, which moving averages train instead of gradients.
    """

    encode: int
    autoencoder: Cost
    sharpening: Cost | None
    priors: tuple[Cost, ...]
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
    def networks(self) -> tuple[Cost, ...]:
        """Every network, in order of training."""
        return (self.autoencoder, *([self.sharpening] if self.sharpening else []), *self.priors)


@lru_cache(maxsize=32)
def measure(config: Config) -> Costs:
    """Count parameters, FLOPs and memory of every network of a configuration; once for each, because it takes seconds.

    The autoencoder is measured in eval mode, without the update of its codebooks, which is small compared with the
    convolutions. Attention counts as N x N scores, without the half that causality saves.
    """
    shape, channels, classes = config.data.shape, config.data.channels, config.prior.classes
    # neither setting changes the count, and both need the values of tensors, which fake tensors do not have
    settings = config.autoencoder.model_copy(update={"entropy_penalty": 0.0, "nested_dropout": 0.0})
    with torch.device("meta"):
        autoencoder = VQVAE(settings).eval()
        prior = HierarchicalPrior(config.prior, config.geometry).train()
        sharpened = Sharpening(autoencoder, config).requires_grad_(True) if config.sharpen.steps else None
    for i, training in enumerate(config.train_prior):
        prior.level(i).checkpointing = training.checkpointing

    def images(batch: int) -> Tensor:
        return torch.zeros(batch, channels, *shape)

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

    with torch.device("meta"), _Substitutes(), _flop_counter() as counter:
        autoencoder.encode(images(1))
    encode = int(counter.get_total_flops())
    whole = _cost("autoencoder", autoencoder, reconstruct, config.train_autoencoder)
    sharpening = None if sharpened is None else _sharpening(sharpened, config, encode, images)
    levels = tuple(
        _cost(f"prior level {i}", prior.level(i), partial(predict, prior.level(i)), training)
        for i, training in enumerate(config.train_prior)
    )
    codebooks = sum(q.num_embeddings * q.embedding_dim for q in autoencoder.quantizers)
    return Costs(encode, whole, sharpening, levels, codebooks)


def _sharpening(net: Sharpening, config: Config, encode: int, images: Callable[[int], Tensor]) -> Cost:
    """The stage `sharpen`, without a perceptual network; every step also encodes its images."""

    def play(batch: int) -> Tensor:
        grids = config.geometry.grids
        vectors = [torch.zeros(batch, config.autoencoder.code_dim, h, w) for h, w in grids]
        return net(vectors, images(batch))[0]  # type: ignore[no-any-return]

    cost = _cost("sharpening", net, play, config.sharpen)
    return replace(cost, forward=cost.forward + encode, training=cost.training + encode)


def _make_fake(net: nn.Module) -> None:
    """Replace the weights and buffers of a network on the meta device by fake tensors of the same shapes and strides.

    A network that is built of fake tensors directly could not change its memory format, which a `VQVAE` does.
    """

    def fake(x: Tensor) -> Tensor:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)

    for module in net.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(fake(weight), requires_grad=weight.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, fake(buffer))


def _cost(name: str, net: nn.Module, loss: Callable[[int], Tensor], settings: TrainConfig) -> Cost:
    kept = _Kept()
    with torch.device("meta"), kept, _Substitutes(), _flop_counter() as counter:
        value = loss(1)
        alone, forward = kept.bytes, counter.get_total_flops()
        # by edges, because with tensors autograd leaves the substitutes, which recomputed layers need as well
        edges = [get_gradient_edge(p) for p in net.parameters() if p.requires_grad]
        torch.autograd.grad(get_gradient_edge(value), edges, torch.ones_like(value), allow_unused=True)
    # a batch of two minus a batch of one: what does not grow with the batch, such as cast weights, cancels
    with torch.device("meta"):
        plain = kept_bytes(loss, 2) - alone
    with FakeTensorMode():
        _make_fake(net)
        mixed = kept_bytes(loss, 2, bf16=True) - kept_bytes(loss, 1, bf16=True)
    parameters = sum(p.numel() for p in net.parameters())
    buffers = sum(b.numel() * b.element_size() for b in net.buffers())
    state = 4 * parameters * (5 if settings.average else 4) + buffers
    training = counter.get_total_flops()
    cards = PROCESSES if isinstance(net, LevelPrior) else ()
    sharded = {count: bytes_per_process(net, count, bool(settings.average)) for count in cards}
    return Cost(name, parameters, int(forward), int(training), plain, mixed, state, settings, sharded)


def kept_bytes(loss: Callable[[int], Tensor], batch: int, bf16: bool = False) -> int:
    """Bytes that `loss` of a batch keeps for the backward pass; every storage counts once, used weights included."""
    kept = _Kept()
    with kept, _Substitutes(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss(batch)
    return kept.bytes


def _flop_counter() -> FlopCounterMode:
    """A counter of all FLOPs together.

    It does not ask which module an operation belongs to: that would hook the gradients of inputs, which fails where a
    network differentiates by its inputs, as the gradient penalty does.
    """
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _Nowhere()  # type: ignore[assignment]
    return counter


class _Nowhere(nullcontext[None]):
    """In place of torch's record of the modules that are running."""

    parents = frozenset({"Global"})


class _Kept(saved_tensors_hooks):
    """A context in which everything that is saved for the backward pass is counted."""

    def __init__(self) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice
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
    """A context with the replacements that the module's docstring lists."""

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


_REPLACED: dict[Any, Callable[..., Any]] = {
    attend: _attention,
    functional.dropout: _dropout,
}
