"""A slice of the attack on run folders: only success or a `UserError`, in bounded memory and time, nothing else touched."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from scripts import TOOLS, loaded


@pytest.fixture(scope="module")
def attack() -> ModuleType:
    """tools/attack_run_files.py."""
    return loaded(TOOLS / "attack_run_files.py")


def test_every_damaged_file_is_refused_or_read(attack: ModuleType) -> None:
    outcomes = attack.mutate_run_files(seed=7, count=25)
    assert outcomes.faults == []
    assert set(outcomes.counts) <= {"accepted", "refused"}
    assert sum(outcomes.counts.values()) == 25


def test_a_fault_is_found(attack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that lets a foreign exception out, and one that writes, do not pass."""

    def broken(run: Path) -> None:
        (run / "left").write_text("x")
        raise KeyError("no such key")

    monkeypatch.setattr(attack, "READERS", {"broken": broken})
    monkeypatch.setattr(attack, "WRITERS", {})
    outcomes = attack.mutate_run_files(seed=1, count=2)
    assert outcomes.counts == {"exception": 2, "changed": 2}
    assert len(outcomes.faults) == 4
