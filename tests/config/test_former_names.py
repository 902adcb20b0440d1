"""Settings under the names of former versions: still read wherever settings come from, and written under today's names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from vqvae2.commands.options import resolve
from vqvae2.config.models import AutoencoderConfig, ConfigError, parse
from vqvae2.config.overrides import override, read_yaml
from vqvae2.config.presets import preset
from vqvae2.run import Run, load

FORMER = {"rate": 0.3, "drop_finer": 0.4}
PRESENT = {"entropy_penalty": 0.3, "nested_dropout": 0.4}


def has_both(config: AutoencoderConfig) -> bool:
    """Whether the two settings have the values of `FORMER`, under today's names alone."""
    written = config.model_dump()
    return PRESENT.items() <= written.items() and not FORMER.keys() & written.keys()


def former_file(path: Path) -> Path:
    """Rewrite a configuration's file with the former names."""
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace("entropy_penalty:", "rate:").replace("nested_dropout:", "drop_finer:"), encoding="utf-8"
    )
    assert "rate:" in path.read_text(encoding="utf-8")
    return path


def test_in_python() -> None:
    assert has_both(AutoencoderConfig(**FORMER))
    assert has_both(parse({"autoencoder": FORMER}).autoencoder)


def test_in_a_configuration_file_over_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"autoencoder": FORMER}), encoding="utf-8")
    assert has_both(resolve(preset("small64"), read_yaml(path), None).autoencoder)


def test_in_an_assignment() -> None:
    assignments = [f"autoencoder.{name}={value}" for name, value in FORMER.items()]
    assert has_both(resolve(preset("small64"), None, assignments).autoencoder)
    assert override({"autoencoder": dict(FORMER)}, ["autoencoder.entropy_penalty=1"]) == {
        "autoencoder": PRESENT | {"entropy_penalty": 1}
    }
    with pytest.raises(ConfigError, match=r"autoencoder\.entropy_penalty: .*found -2"):
        resolve(preset("small64"), None, ["autoencoder.rate=-2"])


def test_in_a_run_folder(run: Path, command: Callable[..., Any], pictures: Path) -> None:
    """It loads, goes on training without a contradiction, and is written under today's names when it changes."""
    config = load(run).config
    former_file(run / "config.yaml")
    assert load(run).config == config
    done = command("train", pictures, "--run", run, "--set", "sampling.temperature=0.9")
    assert done.code == 0, done.err
    assert "rate:" not in (run / "config.yaml").read_text(encoding="utf-8").replace("_rate:", "")


def test_in_the_shipped_models(tmp_path: Path) -> None:
    """Models shipped by former versions have such a file."""
    shipped = load("emoji64", "cpu")
    path = tmp_path / "config.yaml"
    path.write_text((shipped.folder / "config.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    former_file(path)
    assert Run(tmp_path, "cpu").config == shipped.config


@pytest.mark.parametrize("call", [
    lambda value: parse({"autoencoder": value}),
    lambda value: resolve(preset("small64"), {"autoencoder": value}, None),
])  # fmt: skip
def test_both_names_at_once_are_refused(call: Callable[[dict[str, float]], Any]) -> None:
    with pytest.raises(ConfigError, match="expected entropy_penalty alone, found rate as well"):
        call({"rate": 0.1, "entropy_penalty": 0.2})
