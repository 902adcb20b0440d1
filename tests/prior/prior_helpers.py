"""Small priors with random weights, step-by-step logits, and the slow way to do what the prior does fast."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from vqvae2.codes import Codes, Geometry
from vqvae2.config.models import LevelPriorConfig, PriorConfig
from vqvae2.errors import UserError
from vqvae2.prior.chooser import Chooser, Rule
from vqvae2.prior.draw import probabilities, uniforms
from vqvae2.prior.hierarchy import HierarchicalPrior, make_level
from vqvae2.prior.kinds import static_kind
from vqvae2.prior.level import LevelPrior
from vqvae2.prior.scan import scan
from vqvae2.prior.static import StaticPrior
from vqvae2.prior.step_ops import StepOps, StepSpec

Net = TypeVar("Net", bound=nn.Module)
Grids = tuple[tuple[int, int], ...]

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}

KINDS = [  # what is true of one level's prior is true of each
    pytest.param({}, id="pixelcnn"),
    pytest.param({"attention_every": 1}, id="with attention"),
    pytest.param({"kind": "transformer"}, id="transformer"),
]
ATTENTIVE = KINDS[1:]


def randomise(net: Net, seed: int = 0, scale: float = 0.3) -> Net:
    """`net` with every weight drawn anew: the library starts some at zero, which would hide what they do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * scale + name.endswith("gain"))
    return net


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def config(**options: Any) -> LevelPriorConfig:
    """A small one, without dropout."""
    small: dict[str, Any] = {
        "hidden": 8,
        "residual": 6,
        "layers": 2,
        "kernel": 3,
        "heads": 2,
        "dropout": 0.0,
        "output_layers": 1,
        "condition_blocks": 1,
    }
    return LevelPriorConfig(**(small | options))


def geometry(grids: Grids, k: int = 5) -> Geometry:
    """Every level has another vocabulary: k, k + 1, ..."""
    return Geometry(grids, tuple(range(k, k + len(grids))))


def level_prior(
    grids: Grids = ((3, 5),),
    level: int | None = None,
    classes: int = 0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **options: Any,
) -> LevelPrior:
    """The prior of one level (the finest if not said), random weights, eval mode."""
    index = len(grids) - 1 if level is None else level
    return randomise(make_level(config(**options), geometry(grids), index, classes), seed).to(dtype).eval()


def hierarchy(
    grids: Grids = ((1, 2), (2, 4)),
    classes: int = 0,
    k: int = 3,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **options: Any,
) -> HierarchicalPrior:
    """All levels, random weights, eval mode."""
    plan = PriorConfig(levels=(config(**options),) * len(grids), classes=classes)
    return randomise(HierarchicalPrior(plan, geometry(grids, k)), seed).to(dtype).eval()


def random_codes(geo: Geometry, n: int = 3, seed: int = 1) -> Codes:
    """Any codes."""
    generator = torch.Generator().manual_seed(seed)
    return Codes(
        tuple(
            torch.randint(k, (n, *grid), generator=generator)
            for grid, k in zip(geo.grids, geo.vocabulary, strict=True)
        )
    )


def random_labels(classes: int, n: int = 3) -> Tensor | None:
    """The last is "no label"; None without classes."""
    return torch.tensor([i % classes for i in range(n - 1)] + [classes]) if classes else None


def stepped(prior: LevelPrior, codes: Tensor, context: Tensor | None) -> Tensor:
    """Logits [B, K, H, W] that a scan over known codes sees."""
    seen: list[Tensor] = []

    def choose(position: int, logits: Tensor) -> Tensor:
        seen.append(logits)
        return codes.flatten(1)[:, position]

    assert torch.equal(scan(prior, len(codes), context, choose), codes)
    return torch.stack(seen, 2).view(len(codes), -1, *codes.shape[1:])


def static_logits(
    prior: LevelPrior,
    codes: Tensor,
    context: Tensor | None,
    weights: torch.dtype | None = None,
    ops: StepOps | None = None,
) -> Tensor:
    """Logits [B, K, H, W] of the static step over known codes."""
    stream = prior.embedding.weight.dtype
    shape = None if context is None else tuple(context.shape)
    spec = StepSpec(len(codes), shape, weights or stream, stream, codes.device)
    kind = static_kind(prior)
    assert kind is not None
    static: StaticPrior = kind(prior, spec, ops or StepOps())
    known = Chooser(torch.zeros(len(codes), prior.positions, dtype=torch.float64), codes.flatten(1), Rule())
    seen: list[Tensor] = []

    def keep(column: int, step: Any = static.step) -> Tensor:
        seen.append(step(column))
        return seen[-1]

    static.step = keep  # type: ignore[method-assign]
    with torch.no_grad():
        static.load(prior, context)
        for _ in range(prior.height):
            static.draw_row(known)
    assert torch.equal(static.result(), codes)
    return torch.stack(seen, 2).view(len(codes), -1, *codes.shape[1:])


def inputs(prior: LevelPrior, grids: Grids, n: int = 3) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
    """Codes, coarser codes and labels."""
    codes = random_codes(geometry(grids), n)
    return codes.levels[prior.level], codes.levels[: prior.level], random_labels(prior.classes, n)


def embedded(prior: LevelPrior, codes: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    """Logits, and the embedded codes [B, C, H, W] from which they were computed."""
    found: list[Tensor] = []

    def keep(_: nn.Module, __: Any, e: Tensor) -> Tensor:
        leaf = e.detach().permute(0, 3, 1, 2).contiguous().requires_grad_()
        found.append(leaf)
        return leaf.permute(0, 2, 3, 1)

    hook = prior.embedding.register_forward_hook(keep)
    logits = prior(codes, *given)
    hook.remove()
    return logits, found[0]


def saved_bytes(loss: Callable[[], Tensor]) -> int:
    """Bytes that a loss saves for its backward pass, each piece of memory once."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss()
    return sum(storage.nbytes() for storage in storages.values())


def influences(y: Tensor, x: Tensor, retain: bool = True) -> Tensor:
    """Whether each position of `x` [1, C, H, W] has a gradient with respect to a random mix of `y`: [H, W] bool."""
    mix = noise(*y.shape, seed=7, dtype=y.dtype)
    (grad,) = torch.autograd.grad((y * mix).sum(), x, retain_graph=retain, allow_unused=True)
    return torch.zeros(x.shape[2:], dtype=torch.bool) if grad is None else (grad != 0).any(1)[0]


def positions(height: int, width: int) -> Iterator[tuple[int, int]]:
    """(row, column) in raster order."""
    return itertools.product(range(height), range(width))


def area(height: int, width: int, inside: Callable[[int, int], bool]) -> Tensor:
    """[H, W] bool of a rule on (row, column)."""
    return torch.tensor([[inside(r, c) for c in range(width)] for r in range(height)])


def refused(call: Callable[[], object], match: str, kind: type[UserError] = UserError) -> None:
    """`call` raises the user's error, in one line."""
    with pytest.raises(kind, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def naive_sample(
    prior: HierarchicalPrior,
    images: Sequence[int],
    labels: Tensor | None,
    seed: int,
    guidance: float = 1.0,
    **options: Any,
) -> Codes:
    """One image at a time, the whole network for every position, no cache."""
    parts = []
    for row, image in enumerate(images):
        label = labels[row : row + 1] if labels is not None else None
        levels: list[Tensor] = []
        for index, (height, width) in enumerate(prior.geometry.grids):
            stream = uniforms(seed, [image], index, height * width)[0].tolist()
            grid = torch.zeros(1, height, width, dtype=torch.int64)
            for position, (r, c) in enumerate(positions(height, width)):
                with torch.no_grad():
                    codes = Codes((*levels, grid))
                    logits = prior.logits(codes, index, label)[:, :, r, c]
                    free = prior.logits(codes, index)[:, :, r, c]
                p = probabilities(free + guidance * (logits - free), **options)[0].tolist()
                grid[0, r, c] = next(
                    k for k in range(len(p)) if sum(p[: k + 1]) > stream[position] or k == len(p) - 1
                )
            levels.append(grid)
        parts.append(Codes(tuple(levels)))
    return Codes.cat(parts)


def every_grid(height: int, width: int, k: int) -> Tensor:
    """All k^(HW) grids, [k^(HW), H, W]."""
    return torch.tensor(list(itertools.product(range(k), repeat=height * width))).view(-1, height, width)


def every_code(geo: Geometry) -> Codes:
    """Every combination of grids of all levels."""
    grids = [every_grid(*grid, k) for grid, k in zip(geo.grids, geo.vocabulary, strict=True)]
    picks = torch.tensor(list(itertools.product(*(range(len(g)) for g in grids))))
    return Codes(tuple(g[picks[:, i]] for i, g in enumerate(grids)))
