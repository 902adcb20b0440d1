"""`tools/attack_images.py`: a small slice of the attack on the decoder, and that faults would be seen."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from scripts import TOOLS, loaded


@pytest.fixture(scope="module")
def attack() -> Any:
    """The tool as a module."""
    sys.path.insert(0, str(TOOLS))
    module = loaded(TOOLS / "attack_images.py")
    yield module
    sys.path.remove(str(TOOLS))
    del sys.modules["attack_images"]


def test_every_mutant_is_decoded_or_skipped(attack: Any) -> None:
    outcomes = attack.mutate_images(1, 120)
    assert outcomes.faults == []
    assert outcomes.count == 120
    assert outcomes.decoded > 10
    assert outcomes.skipped.total() > 10
    assert outcomes.folders == 3


def test_the_same_seed_makes_the_same_mutants(attack: Any) -> None:
    whole = attack.originals()
    assert len(whole) >= 20
    for number in range(20):
        first, again = (attack.mutant(whole, np.random.default_rng((5, number))) for _ in range(2))
        assert first == again


def test_anything_else_is_a_fault(attack: Any) -> None:
    outcomes = attack.Outcomes()
    for answer in ("decoded", "skipped: broken: 17", "fault: no answer", "something"):
        attack._count(outcomes, answer, "mutant")
    assert (outcomes.decoded, dict(outcomes.skipped)) == (1, {"broken": 1})
    assert outcomes.faults == ["mutant: no answer", "mutant: something"]
