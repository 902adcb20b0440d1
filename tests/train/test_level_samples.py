"""The samples that are drawn when the prior of a level is trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from card_stand_ins import unrecordable

from vqvae2.prior.captured import StepGraphs
from vqvae2.train import level_samples


def test_after_a_recording_was_lost_the_next_level_is_trained_by_another_process(
    run: Path, pictures: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command trains one level on such a card, and the last one ends in success with the sheets of a card that records."""
    sheets = [run / "prior" / f"level-{level}" / "samples.png" for level in (0, 1)]
    expected = [sheet.read_bytes() for sheet in sheets]
    shutil.rmtree(run / "prior")
    graphs, _ = unrecordable(monkeypatch)
    monkeypatch.setattr(
        level_samples,
        "StepGraphs",
        lambda dtype: StepGraphs(dtype, kernels="torch", devices=("cpu",), least_positions=1),
    )
    said = command("train", pictures, "--run", run)
    assert (said.code, len(graphs)) == (2, 1)
    assert "the same command goes on with the next level" in said.err.splitlines()[-1]
    assert not (run / "prior" / "level-1").exists()
    said = command("train", pictures, "--run", run)
    assert (said.code, len(graphs)) == (0, 2), said.err
    assert [sheet.read_bytes() for sheet in sheets] == expected
