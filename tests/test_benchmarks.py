"""The benchmarks of a card run on small sizes where there is none, so that no minute of a card is lost to a mistake in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "rows"),
    [("gpu.py", "ceilings,codec,fed-priors,process"), ("_gpu_drawing.py", "checks,256 px with both priors")],
)
def test_every_row_has_figures_and_none_fails(script: str, rows: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    more = ["--seconds", "0.01"] if script == "gpu.py" else []
    command = [sys.executable, str(FOLDER / script), "--tiny", "--only", rows, "--out", str(file), *more]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    kept = json.loads(file.read_text())
    assert kept["tiny"]
    assert kept["failures"] == {}
    for row in rows.split(","):
        assert any(row in name for name in kept["figures"]), row
    assert "failed" not in json.dumps(kept["figures"]).lower()
