"""Settings that no training can use: infinite, not a number, or beyond all measure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vqvae2.config.models import ConfigError, parse
from vqvae2.config.presets import preset

Command = Callable[..., Any]


def numbers(value: Any, at: str = "") -> list[str]:
    """The dotted keys of all numbers in nested settings."""
    if isinstance(value, dict):
        return [key for name, item in value.items() for key in numbers(item, f"{at}.{name}".lstrip("."))]
    if isinstance(value, list):
        return [key for index, item in enumerate(value) for key in numbers(item, f"{at}.{index}")]
    return [at] if type(value) in (int, float) else []


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan"), 1e300, -1e300, 10**30])
@pytest.mark.parametrize("key", numbers(preset("tiny").model_dump(mode="json")))
def test_no_setting_is_infinite_or_absurd(key: str, bad: float) -> None:
    value = preset("tiny").model_dump(mode="json")
    holder: Any = value
    *outer, last = key.split(".")
    for name in outer:
        holder = holder[int(name) if name.isdecimal() else name]
    holder[int(last) if last.isdecimal() else last] = bad
    with pytest.raises(ConfigError) as caught:
        parse(value)
    assert key.split(".")[0] in str(caught.value)
    assert "sampling: sampling" not in str(caught.value)


def test_an_infinite_learning_rate_is_refused(pictures: Path, tmp_path: Path, command: Command) -> None:
    said = command(
        "train", pictures, "--run", tmp_path / "r", "--preset", "tiny", "--set", "train_autoencoder.lr=.inf"
    )
    assert said.code == 2
    assert "train_autoencoder.lr" in said.err
    assert not (tmp_path / "r").exists()
