"""How a training ended, as a file says it: checked before it is used."""

from __future__ import annotations

from typing import Any

import pytest

from vqvae2.files.atomic import FileError
from vqvae2.train.state import SavedOutcome

GOOD = {
    "step": 3,
    "best_step": 2,
    "best_score": 0.5,
    "stale": 1,
    "seconds": 2.0,
    "figures": {"psnr": 20.5, "used": 7},
}


def test_a_whole_record_is_read() -> None:
    assert SavedOutcome.of(GOOD, "state.safetensors").model_dump() == GOOD


@pytest.mark.parametrize(("field", "value"), [
    ("figures", {"psnr": "high"}),
    ("figures", {"psnr": [20.5]}),
    ("figures", {"psnr": None}),
    ("step", -1),
    ("seconds", "2"),
])  # fmt: skip
def test_a_figure_that_is_no_number_is_damage(field: str, value: Any) -> None:
    with pytest.raises(FileError, match=rf"^state\.safetensors is damaged: {field}"):
        SavedOutcome.of({**GOOD, field: value}, "state.safetensors")
