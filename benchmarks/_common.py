"""What every benchmark needs: interleaved repetitions, medians, and a JSON file that says on what it was measured."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

RESULTS = Path(__file__).parents[1] / "results"


def interleaved(
    cases: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each case, the cases taken in turn so that all see the same drift of the machine."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(warmup + repeats):
        for name, case in cases.items():
            began = time.perf_counter()
            case()
            if repeat >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def count(net: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in net.parameters())


def summary(seconds: list[float], units: float = 1.0) -> dict[str, float]:
    """Median, least and most, in units per second."""
    rates = [units / value for value in seconds]
    return {"median": statistics.median(rates), "least": min(rates), "most": max(rates), "n": len(rates)}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vqvae2": metadata.version("vqvae2"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def keep(name: str, figures: Mapping[str, Any]) -> None:
    """Print the figures and write results/NAME.json."""
    value = {"benchmark": name, "machine": machine(), **figures}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(value, indent=1))
