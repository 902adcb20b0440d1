"""The chain of levels: p(codes | class) = product over levels of p(level | coarser levels, class).

Shapes: B batch, L levels, H W grid, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqvae2.codes import Codes, CodesError, Geometry
from vqvae2.config.models import PriorConfig
from vqvae2.config.numbers import whole
from vqvae2.config.sampling import Sampling, sampling_of
from vqvae2.errors import UserError
from vqvae2.modes import eval_mode, without_autocast
from vqvae2.prior.captured import StepGraphs
from vqvae2.prior.chooser import UNKNOWN as UNKNOWN
from vqvae2.prior.chooser import Chooser, Rule
from vqvae2.prior.draw import uniforms
from vqvae2.prior.kinds import make_level as make_level
from vqvae2.prior.level import LevelPrior
from vqvae2.prior.scan import scan
from vqvae2.tf32 import without_tf32


class HierarchicalPrior(nn.Module):
    """One autoregressive prior per level, each given the class and all coarser levels (paper section 3.2).

    Args:
        config: one `LevelPriorConfig` per level, and the number of classes.
        geometry: grids and vocabularies.

    Raises:
        ValueError: the numbers of levels differ.
    """

    def __init__(self, config: PriorConfig, geometry: Geometry) -> None:
        super().__init__()
        if len(config.levels) != geometry.levels:
            raise UserError(
                f"expected {geometry.levels} level priors for this geometry, found {len(config.levels)}"
            )
        self.config, self.geometry, self.classes = config, geometry, config.classes
        self.levels = nn.ModuleList(
            make_level(level, geometry, index, config.classes) for index, level in enumerate(config.levels)
        )

    def level(self, index: int) -> LevelPrior:
        """The prior of level `index`, 0 the coarsest."""
        level = self.levels[index]
        assert isinstance(level, LevelPrior)
        return level

    def forward(self, codes: Codes, labels: Tensor | None = None) -> Tensor:
        """`log_prob` [B, L], for training: -prior(codes, labels).sum(1).mean() is the loss in nats per image.

        In training mode each level hides some of the labels first, as many as its `label_dropout` says
        (`LevelPrior.dropped`), so that it learns "no label" too, without which neither guidance nor labels=None means
        anything. In eval mode this is `log_prob`.

        Wrap the prior to train it in another way, and call the result: `DistributedDataParallel(prior)`,
        `torch.compile(prior)`, `fully_shard(prior)`.

        Raises:
            CodesError, UserError, ConfigError: as `log_prob`; compiled code does not check codes and labels.
        """
        return torch.stack([level.sum((1, 2)) for level in self._maps(codes, labels, self.training)], 1)

    def logits(self, codes: Codes, level: int, labels: Tensor | None = None) -> Tensor:
        """Logits [B, K, H, W] of one level's positions; `labels` as in `log_prob`.

        Without gradients they are computed without TF32 and without autocast.
        """
        return self._logits(codes, level, self._learnt_labels(labels, len(codes), [level]))

    def _logits(self, codes: Codes, level: int, known: Tensor | None) -> Tensor:
        """As `logits`; `known`: labels that were checked."""
        device = self._device()
        own, *coarser = (codes.levels[i].to(device) for i in (level, *range(level)))
        with without_tf32(device, always=False), without_autocast(device, always=False):
            logits: Tensor = self.level(level)(own, tuple(coarser), known)
        return logits

    def log_prob(self, codes: Codes, labels: Tensor | None = None) -> Tensor:
        """Natural log-probability of each level's grid given the coarser ones and the class, [B, L].

        It is that of the network as it stands: in training mode dropout draws at random, so call `eval()` first to
        score. No label is hidden in any mode, in contrast to `forward`.

        Args:
            codes: of the geometry, on any device.
            labels: [B] class numbers 0 .. classes - 1, or `classes` for "no label" (trained by hiding labels at random, see
                `forward`); None is "no label" for all.

        Raises:
            CodesError: codes that do not fit the geometry.
            ValueError: labels out of range.
            ConfigError: "no label", which a prior never learned (`PriorConfig.lacks_unlabelled`).
        """
        return torch.stack([level.sum((1, 2)) for level in self.log_prob_map(codes, labels)], 1)

    def log_prob_map(self, codes: Codes, labels: Tensor | None = None) -> list[Tensor]:
        """The terms of `log_prob`: [B, H, W] per level, the log-probability of each code after those before it."""
        return self._maps(codes, labels)

    def _maps(self, codes: Codes, labels: Tensor | None, drop: bool = False) -> list[Tensor]:
        """As `log_prob_map`; `drop`: after each level has hidden some labels."""
        if not torch.compiler.is_compiling():  # the check reads values
            self.geometry.check(codes)
        codes = codes.to(self._device())
        known = self._learnt_labels(labels, len(codes))
        maps = []
        for index, level in enumerate(codes.levels):
            own = self.level(index).dropped(known) if drop and known is not None else known
            logits = self._logits(codes, index, own)
            exact = logits.float() if logits.dtype != torch.float64 else logits
            maps.append(-functional.cross_entropy(exact, level.long(), reduction="none"))
        return maps

    @torch.no_grad()
    def sample(
        self,
        n: int | Sequence[int],
        labels: Tensor | None = None,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        given: Codes | None = None,
        graphs: StepGraphs | None = None,
        **settings: Any,
    ) -> Codes:
        """Draw codes, coarse to fine (paper algorithm 2).

        Args:
            n: how many (images 0 .. n - 1 of the seed), or the numbers of the images to draw.
            labels: [B] as in `log_prob`.
            sampling: temperature, top-k, top-p and guidance; None is the model's own distribution.
            seed: image i of a seed is the same at any batch size.
            given: known codes, which are kept. `UNKNOWN` codes are drawn, and so are finer levels that are missing.
                Positions are drawn in raster order, so a code does not depend on known codes to its right, below it or at
                finer levels; `generate.complete` corrects that.
            graphs: what a GPU has recorded (see `StepGraphs`), for several calls with as many images; also chooses the
                precision of the weights. None: recorded anew in this call, in `sampling.dtype`.

        Raises:
            ValueError: an argument out of range.
            CodesError: `given` does not fit the geometry or the number of images.
            ConfigError: "no label" or guidance, if a prior never learned "no label" (`PriorConfig.lacks_unlabelled`).
        """
        single = not getattr(n, "ndim", 0) and not isinstance(n, Sequence)
        images = list(range(whole(n, "n"))) if single else [whole(i, "an image") for i in n]  # type: ignore[union-attr]
        if not images or min(images) < 0:
            raise UserError(f"expected at least one image to sample, found n = {n}")
        known = self._learnt_labels(labels, len(images))
        how = sampling_of(sampling, settings)
        if labels is not None:
            self.config.check_guidance(how)
        numbers = [how.level(index, self.geometry.levels) for index in range(self.geometry.levels)]
        levels = self._check_given(given, len(images))
        graphs = graphs or StepGraphs(how.dtype)
        device = self._device()
        with eval_mode(self), without_tf32(device), without_autocast(device):
            for index, kept in enumerate(levels):
                asked = (kept == UNKNOWN).flatten(1).any(0).tolist()
                if not any(asked):
                    continue
                prior = self.level(index)
                with_guidance = self.guides(labels, numbers[index][3])
                stream = uniforms(seed, images, index, prior.positions)
                context = self._sampling_context(index, levels[:index], known, with_guidance)
                choose = Chooser(stream, kept.flatten(1), Rule(*numbers[index], with_guidance))
                batch, stop = len(images) * (1 + with_guidance), len(asked) - asked[::-1].index(True)
                drawn = scan(prior, batch, context, choose, stop, graphs)[: len(images)]
                levels[index] = torch.where(kept == UNKNOWN, drawn, kept)
        return Codes(tuple(levels))

    def guides(self, labels: Tensor | None, guidance: float) -> bool:
        """Whether this guidance changes anything: not without classes, not without labels."""
        return guidance != 1.0 and labels is not None and self.classes > 0

    def _check_given(self, given: Codes | None, batch: int) -> list[Tensor]:
        """Every level's codes [B, H, W], `UNKNOWN` where none is known."""
        device, geometry = self._device(), self.geometry
        levels: list[Tensor] = []
        if given is not None:
            count = min(len(given.levels), geometry.levels)
            known = Codes(tuple(level.masked_fill(level == UNKNOWN, 0) for level in given.levels))
            Geometry(geometry.grids[:count], geometry.vocabulary[:count]).check(known)
            if len(given) != batch:
                raise CodesError(f"expected the codes to keep of {batch} images, found those of {len(given)}")
            levels += [level.to(device).long() for level in given.levels]
        rest = geometry.grids[len(levels) :]
        return [*levels, *(torch.full((batch, *grid), UNKNOWN, device=device) for grid in rest)]

    def _sampling_context(
        self, index: int, levels: list[Tensor], known: Tensor | None, with_guidance: bool
    ) -> Tensor | None:
        """A level's context. With guidance the batch is doubled: all images with their class, then all without."""
        prior, coarser = self.level(index), tuple(levels)
        if not with_guidance:
            return prior.context(coarser, known)
        assert known is not None
        both = torch.cat([known, torch.full_like(known, self.classes)])
        return prior.context(tuple(torch.cat([c, c]) for c in coarser), both)

    def check_labels(self, labels: Tensor | None, batch: int) -> Tensor | None:
        """Labels as [B] int64 on the right device, "no label" filled in; None if there are no classes.

        Raises:
            ValueError: wrong count, no integers, or a class number out of range (which compiled code does not check).
        """
        if not self.classes:
            return None
        if labels is None:
            return torch.full((batch,), self.classes, dtype=torch.int64, device=self._device())
        given = torch.as_tensor(labels, device=self._device())
        if given.is_floating_point() and given.numel():
            raise UserError(f"expected class numbers that are integers, found {given.dtype}")
        labels = given.long()
        if labels.shape != (batch,):
            raise UserError(f"expected {batch} labels, found shape {tuple(labels.shape)}")
        compiling = torch.compiler.is_compiling()  # the check reads values
        if (
            labels.numel()
            and not compiling
            and not 0 <= int(labels.min()) <= int(labels.max()) <= self.classes
        ):
            raise UserError(
                f"expected class numbers 0..{self.classes - 1}, or {self.classes} for no label, "
                f"found {int(labels.min())}..{int(labels.max())}"
            )
        return labels

    def _learnt_labels(
        self, labels: Tensor | None, batch: int, levels: Sequence[int] | None = None
    ) -> Tensor | None:
        """As `check_labels`; "no label" is refused where the prior of one of these levels, by default of any, never learned it."""
        known = self.check_labels(labels, batch)
        if torch.compiler.is_compiling():  # the check reads values
            return known
        if known is not None and self.config.lacks_unlabelled(levels) and bool((known == self.classes).any()):
            self.config.check_unlabelled(levels)
        return known

    def _device(self) -> torch.device:
        return self.level(0).place_rows.device
