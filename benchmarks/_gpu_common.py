"""Timing, sizes and the report of `gpu.py`; every row is kept even if another one fails."""

from __future__ import annotations

import gc
import json
import platform
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")


@dataclass
class Report:
    """Figures by name, written to the file after each one.

    Attributes:
        file: the JSON.
        seconds: time for one measurement.
        tiny: small sizes, to check the script itself.
        budget: seconds after which no further row begins.
        figures: everything measured so far.
        failures: tracebacks by row.
    """

    file: Path
    seconds: float
    tiny: bool
    budget: float
    figures: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    row: str = ""
    began: float = field(default_factory=time.perf_counter)

    def __call__(self, name: str, value: Any) -> None:
        """Keep one figure."""
        key = f"{self.row}: {name}" if self.row and not name.startswith(self.row) else name
        self.figures[key] = value
        print(f"[{self.spent():6.1f}] {key}: {short(value)}", flush=True)
        self.write()

    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self.began

    def late(self) -> bool:
        """Whether the time is spent."""
        return self.spent() > self.budget

    @contextmanager
    def part(self, name: str) -> Any:
        """Whatever goes wrong inside is noted under `name`, and the next part goes on."""
        try:
            yield
        except Exception as error:
            lines = str(error).strip().splitlines()
            self.failures[f"{self.row}: {name}"] = traceback.format_exc()
            self(f"{name} FAILED", f"{type(error).__name__}: {lines[0] if lines else ''}"[:300])
        with suppress(Exception):
            free()

    def write(self) -> None:
        """The file as it stands."""
        value = {
            "machine": machine(),
            "tiny": self.tiny,
            "seconds": round(self.spent(), 1),
            "figures": self.figures,
            "failures": self.failures,
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8")

    def ms(self, work: Callable[[], object], warmup: int = 2, most: int = 200) -> float:
        """Median milliseconds of `work`, measured on the device for about `self.seconds`."""
        for _ in range(warmup):
            work()
        sync()
        began = time.perf_counter()
        work()
        sync()
        once = max(time.perf_counter() - began, 1e-6)
        count = max(3, min(most, int(self.seconds / once)))
        # short work is timed in groups, else the events are what is timed; on a card other work too, because after each wait for the
        # card it is idle until Python has launched the first operations
        inner = max(1, int(0.002 / once), min(10, count // 3) if CUDA else 1)
        times = []
        for _ in range(max(3, count // inner)):
            if CUDA:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                for _ in range(inner):
                    work()
                end.record()
                sync()
                times.append(start.elapsed_time(end) / inner)
            else:
                start_s = time.perf_counter()
                for _ in range(inner):
                    work()
                times.append((time.perf_counter() - start_s) * 1e3 / inner)
        return statistics.median(times)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    value: dict[str, Any] = {
        "card": torch.cuda.get_device_name() if CUDA else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if CUDA:
        value["memory, GB"] = round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1)
        value["cuda"], value["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
        value["driver"] = _driver()
    for name in ("vqvae2", "triton", "accelerate"):
        with suppress(metadata.PackageNotFoundError):
            value[name] = metadata.version(name)
    return value


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return "unknown"


def short(value: Any) -> Any:
    """Four digits of every number."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [short(item) for item in value]
    return value


def sync() -> None:
    """Wait for the device."""
    if CUDA:
        torch.cuda.synchronize()


def free() -> None:
    """Give unused memory back and begin a new peak."""
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> float:
    """GB at the most since `free`."""
    return torch.cuda.max_memory_allocated() / 1e9 if CUDA else 0.0
