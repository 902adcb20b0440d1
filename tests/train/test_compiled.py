"""Training with `compile`: on a CPU, and with torch.compile's tracing alone, which decides what is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from train_helpers import result, run, signal_at, stage, tiny

from vqvae2.config.hardware import Hardware
from vqvae2.train.loop import Interrupted

Graphs = list[Any]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    """The graphs that networks are traced to; they are run as they are, because kernels would take minutes to compile."""
    made: Graphs = []
    usual = torch.compile

    def keep(graph: Any, inputs: Any) -> Callable[..., Any]:
        made.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda model: usual(model, backend=keep))
    yield made
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("autoencoder", {"accumulate": 2}), ("prior", {"accumulate": 2}), ("prior", {"checkpointing": True})],
    ids=str,
)
def test_a_compiled_training_is_the_plain_one(
    kind: str, options: dict[str, Any], tmp_path: Path, graphs: Graphs
) -> None:
    """Within rounding; and one that was interrupted and resumed is the uninterrupted one, bit for bit."""
    config = tiny(train={"average": 0.8})
    usual = config.train_autoencoder if kind == "autoencoder" else config.train_prior[1]
    training = usual.model_copy(update=options)

    def trained(name: str, compiled: bool, stop: int = 0) -> dict[str, Any]:
        hardware, folder = Hardware(compile=compiled), tmp_path / name
        if stop:
            broken = stage(kind, tmp_path, config)
            signal_at(broken, {stop})
            with pytest.raises(Interrupted):
                run(broken, training, folder, hardware=hardware)
        objective = stage(kind, tmp_path, config)
        return result(objective, folder, run(objective, training, folder, hardware=hardware))

    plain = trained("plain", False)
    assert not graphs
    compiled = trained("compiled", True)
    assert graphs
    resumed = trained("resumed", True, stop=4)
    assert plain.keys() == compiled.keys() == resumed.keys()
    for name, value in plain.items():
        if isinstance(value, Tensor):
            assert torch.equal(resumed[name], compiled[name]), name
            torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5)
    assert resumed["metrics"] == compiled["metrics"]
