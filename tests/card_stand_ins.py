"""Stand-ins for recording on a CUDA card: work is done on the CPU, and a recording fails as CUDA's do."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
