"""A short attack on compressed images; `tools/attack_compressed.py` runs a longer one."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tools"))

from attack_compressed import mutate_compressed


def test_mutated_files_are_errors_or_correct() -> None:
    counts = mutate_compressed(seed=1, count=400)
    assert counts["files"] == counts["error"] + counts["coarse"] + counts.get("whole", 0)
    assert counts["coarse"] > 0
    assert len(counts["errors"]) > 5
