"""Rows of codes recorded as CUDA graphs and replayed: how a GPU draws.

A step of a prior is some fifty to two hundred small kernels, and launching them one by one from Python takes several
milliseconds whatever the batch. A recorded row is launched at once. Nothing passes between host and device from the first
row to the last: the uniform numbers and known codes are uploaded before, the drawn codes are read after.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vqvae2.errors import UserError
from vqvae2.fused import triton_works
from vqvae2.prior.chooser import Chooser, Rule
from vqvae2.prior.kinds import static_kind
from vqvae2.prior.level import LevelPrior
from vqvae2.prior.static import StaticPrior
from vqvae2.prior.step_ops import StepOps, StepSpec
from vqvae2.recording import RecordingLostError, recorded
from vqvae2.tf32 import without_tf32

Precision = Literal["float32", "bfloat16"]
"""Of the weights while codes are drawn. The residual streams, the logits and the choice of a code stay in float32 or wider."""

_log = logging.getLogger("vqvae2")

LEAST_POSITIONS = 48
"""Recording a row with PyTorch's kernels takes as long as 42 to 104 plain steps (results/gpu-h200.json), and grids have 64 positions or
more, so a grid of which fewer positions are drawn is not worth it (our decision)."""

LEAST_FUSED = 400
"""Compiling and recording the fused kernels takes as long as 250 to 390 plain steps on a new machine, so smaller grids go without them
(our decision, from the same figures)."""


@dataclass
class _Recording:
    """One prepared prior with the chooser and, on a GPU, the graph that read and write its memory."""

    static: StaticPrior
    chooser: Chooser
    graph: torch.cuda.CUDAGraph | None = None


class StepGraphs:
    """Draws grids by replaying recorded rows, and keeps the recordings while it lives.

    Pass the same object to several calls of `HierarchicalPrior.sample` and each level is recorded once for each batch size and
    rule, instead of once for each call. The weights are read anew for each grid, so they may change in between. The memory
    of the recordings (about that of the weights and of one batch's caches) is freed with this object or with the prior.

    Args:
        precision: of the weights and caches: float32, or bfloat16 for half the memory traffic. Logits and the choice of the
            codes are float32 or wider in both.
        kernels: "fused" takes the fused Triton kernels where Triton is installed; "torch" does without them; "auto" is "fused" for
            grids of at least `LEAST_FUSED` positions, and else "torch".
        devices: kinds of device on which grids are drawn this way; on any but "cuda" nothing is recorded.
        least_positions: a grid of which fewer positions are to be visited is drawn by plain steps.

    Attributes:
        lost: whether CUDA declared a recording invalid. Nothing more is recorded and drawing goes on, but this process must not
            train on the card any more (see `recording`).
    """

    def __init__(
        self,
        precision: Precision = "float32",
        kernels: str = "auto",
        devices: Sequence[str] = ("cuda",),
        least_positions: int = LEAST_POSITIONS,
    ) -> None:
        self.precision, self.kernels = precision, kernels
        self.devices, self.least_positions = tuple(devices), least_positions
        self._recordings: WeakKeyDictionary[LevelPrior, dict[tuple[StepSpec, Rule], _Recording]] = (
            WeakKeyDictionary()
        )
        self._stream: Any = None  # on which is recorded
        self.lost = False

    def takes(self, prior: LevelPrior, batch: int, positions: int) -> bool:
        """Whether a grid is drawn this way: the device and the kind of prior can, and it is long enough."""
        possible = prior.embedding.weight.device.type in self.devices and static_kind(prior) is not None
        return possible and batch > 0 and positions >= self.least_positions

    @torch.no_grad()
    def draw(
        self, prior: LevelPrior, batch: int, context: Tensor | None, chooser: Chooser, stop: int
    ) -> Tensor:
        """As `scan.scan`, for the first `stop` positions."""
        device = prior.embedding.weight.device
        with without_tf32(device), torch.autocast(device.type, enabled=False), _on(device):
            recording = self._recording(prior, batch, context, chooser)
            recording.chooser.copy_(chooser)
            recording.static.load(prior, context)
            for _ in range(-(-stop // prior.width)):
                if recording.graph is None:
                    recording.static.draw_row(recording.chooser)
                else:
                    recording.graph.replay()
        codes = recording.static.result()
        codes.flatten(1)[:, stop:] = 0
        return codes

    def _recording(
        self, prior: LevelPrior, batch: int, context: Tensor | None, chooser: Chooser
    ) -> _Recording:
        weight = prior.embedding.weight
        stream = weight.dtype if weight.dtype == torch.float64 else torch.float32
        weights = torch.bfloat16 if self.precision == "bfloat16" else stream
        spec = StepSpec(
            batch, None if context is None else tuple(context.shape), weights, stream, weight.device
        )
        key = (spec, chooser.rule)
        found = self._recordings.get(prior, {}).get(key)
        if found is None:
            small = self.kernels == "auto" and prior.positions < LEAST_FUSED
            ops = ops_for(spec, "torch" if small else self.kernels)
            try:
                found = self._record(prior, spec, context, chooser, ops)
            except torch.OutOfMemoryError:
                if not self._recordings:
                    raise
            if found is None:  # only here, where the error no longer holds what was allocated, is there room
                self._recordings.clear()
                torch.cuda.empty_cache()
                found = self._record(prior, spec, context, chooser, ops)
            self._recordings.setdefault(prior, {})[key] = found
        return found

    def _record(
        self, prior: LevelPrior, spec: StepSpec, context: Tensor | None, chooser: Chooser, ops: StepOps
    ) -> _Recording:
        kind = static_kind(prior)
        assert kind is not None
        recording = _Recording(kind(prior, spec, ops), chooser.clone())
        if spec.device.type == "cuda" and not self.lost:
            recording.static.load(prior, context)
            # recording needs a stream of its own, on which everything has run once
            stream = self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                recording.static.draw_row(recording.chooser)
            torch.cuda.current_stream().wait_stream(stream)
            recording.static.load(prior, context)
            graph = torch.cuda.CUDAGraph()
            try:
                with recorded(graph, stream, spec.device):
                    recording.static.draw_row(recording.chooser)
            except RecordingLostError as error:
                self.lost = True
                _log.warning("drawing could not be captured as a CUDA graph and runs eagerly: %s", error)
            else:
                recording.graph = graph
        return recording


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Make `device` the current one, if it is a GPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def ops_for(spec: StepSpec, kernels: str) -> StepOps:
    """The operations for a prepared prior: fused Triton kernels on a GPU where Triton works, else plain PyTorch."""
    if kernels not in ("auto", "fused", "torch"):
        raise UserError(f"expected kernels auto, fused or torch, found {kernels!r}")
    usable = spec.device.type == "cuda" and spec.stream == torch.float32
    if kernels != "torch" and usable and triton_works(spec.device):
        from vqvae2.prior.step_triton import TritonStepOps

        return TritonStepOps()
    return StepOps()
