"""Stand-ins for recording on a CUDA card: work is done on the CPU, and a recording fails as CUDA's do."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vqvae2.prior import captured
from vqvae2.prior.chooser import Chooser
from vqvae2.prior.step_ops import StepOps, StepSpec

INVALID = "operation failed due to a previous error during capture"
FORBIDDEN = "operation not permitted when stream is capturing"


class Graph:
    """What is recorded is computed, and cannot be replayed."""

    def __init__(self) -> None:
        self.invalid = self.ended = False

    def pool(self) -> tuple[int, int]:
        """As in torch, only after a recording that was ended."""
        if not self.ended:
            raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
        return (0, 1)


class Recorder(TorchDispatchMode):
    """Stands for `torch.cuda.graph`: where the host reads a number, that is refused and the recording cannot be ended."""

    def __init__(self, graph: Graph, stream: Any, capture_error_mode: str) -> None:
        super().__init__()
        assert capture_error_mode == "thread_local"
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.graph.invalid = True
            raise RuntimeError(f"CUDA error: {FORBIDDEN}\nCompile with `TORCH_USE_CUDA_DSA`")
        return func(*args, **(kwargs or {}))

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self.graph.invalid:
            raise RuntimeError(f"CUDA error: {INVALID}\nCompile with `TORCH_USE_CUDA_DSA`")
        self.graph.ended = True


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Have recordings made by the stand-ins; the result lists their graphs as they are made."""
    graphs: list[Graph] = []

    def graph() -> Graph:
        graphs.append(Graph())
        return graphs[-1]

    class Stream:
        """Does nothing."""

        def __init__(self, *device: Any) -> None: ...

        def wait_stream(self, other: Any) -> None:
            """Nothing."""

    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", Recorder)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *device: Stream())
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: None)
    return graphs


def unrecordable(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Graph], list[int]]:
    """Stand for a card on which the rows of all priors read a number on the host, so that recording them is refused.

    Returns:
        The graphs as they are made, and an entry for each row that is drawn.
    """
    graphs, drawn = stand_in(monkeypatch), list[int]()
    kind, spec = captured.static_kind, captured.StepSpec

    class Reading:
        """A prepared prior that reads a number in each row."""

        def __init__(self, prior: Any, own: StepSpec, ops: StepOps) -> None:
            self.static = kind(prior)(prior, replace(own, device=torch.device("cpu")), ops)  # type: ignore[misc]
            self.load, self.result = self.static.load, self.static.result

        def draw_row(self, chooser: Chooser) -> None:
            """A row, on the CPU."""
            torch.ones(()).item()
            drawn.append(1)
            self.static.draw_row(chooser)

    monkeypatch.setattr(captured, "static_kind", lambda prior: Reading)
    monkeypatch.setattr(captured, "StepSpec", lambda *a: spec(*a[:-1], torch.device("cuda")))
    return graphs, drawn
