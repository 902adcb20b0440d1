"""What all verbs share: --quiet, --device, -h, --version, completion; and the lists of models and presets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer

from vqvae2 import __version__
from vqvae2.cli import app
from vqvae2.commands.models import models
from vqvae2.commands.together import join
from vqvae2.commands.verbs import chosen_device, environment
from vqvae2.config.presets import presets
from vqvae2.errors import UserError
from vqvae2.files.locate import zoo
from vqvae2.run import load

COMPUTE = {"demo", "train", "sample", "reconstruct", "complete", "score", "evaluate", "serve", "fit"}


def leaves(command: Any, name: str = "") -> list[tuple[str, Any]]:
    """Every verb with its name."""
    if not hasattr(command, "commands"):
        return [(name, command)]
    return [leaf for key, part in command.commands.items() for leaf in leaves(part, key)]


def test_every_verb_can_be_quiet_and_those_that_compute_take_a_device() -> None:
    found = dict(leaves(typer.main.get_command(app)))
    assert found.keys() >= COMPUTE
    for name, verb in found.items():
        options = {option for parameter in verb.params for option in parameter.opts}
        assert "--quiet" in options, name
        assert "--device" in options or name not in COMPUTE, name
        assert len(options) == sum(len(parameter.opts) for parameter in verb.params), (
            f"{name}: an option twice"
        )


def test_quiet_prints_the_result_and_no_progress(
    trained: Path, pictures: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    said = command("sample", trained, "--n", 2, "--out", tmp_path / "a", "--quiet")
    assert (said.code, said.err) == (0, "")
    assert said.out
    assert command("sample", trained, "--n", 2, "--out", tmp_path / "b").err
    assert "VQVAE2_QUIET" not in os.environ
    said = command("sample", trained, "--n", 2, "--out", tmp_path / "a", "--seed", 5, "--quiet")
    assert said.code == 2
    assert said.err.count("\n") == 1


def test_quiet_holds_where_processes_share_the_work(
    trained: Path, pictures: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    said = command("evaluate", trained, "--only", "reconstruction", "--out", tmp_path / "a", "--quiet")
    assert (said.code, said.err) == (0, "")
    folder = Path(shutil.copytree(pictures / "disc", tmp_path / "some"))
    (folder / "broken.png").write_bytes(b"")
    assert "skipped 1 file" in command("score", trained, folder).err
    assert command("score", trained, folder, "--quiet").err == ""
    said = command("reconstruct", trained, folder, "--out", tmp_path / "b", "--quiet")
    assert (said.code, said.err) == (0, "")


def test_a_device_is_used(
    trained: Path, command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
    said = command("sample", trained, "--n", 2, "--out", tmp_path / "a", "--device", "cpu")
    assert said.code == 0
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ
    with environment(chosen_device("cpu")):
        assert load(trained).device == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cpu:1", "mps:0", "cuda:", "cuda:x", ""])
def test_no_such_kind_of_device(name: str) -> None:
    with pytest.raises(UserError, match="expected a device such as cpu"):
        chosen_device(name)


def test_a_card_is_made_the_only_visible_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA reads which cards are visible at the first question, and never again."""
    read: list[str] = []

    def count() -> int:
        read.append(read[0] if read else os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2"))
        return sum(card in "01234567" for card in read[0].split(",") if card)

    monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_available=lambda: count() > 0, device_count=count))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert chosen_device("cuda:2") == {"ACCELERATE_TORCH_DEVICE": "cuda:0", "CUDA_VISIBLE_DEVICES": "2"}
    assert {*read} == {"2"}
    read.clear()
    with pytest.raises(UserError, match="no device cuda:8 on this machine"):
        chosen_device("cuda:8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    read.clear()
    assert chosen_device("cuda:1") == {"ACCELERATE_TORCH_DEVICE": "cuda:0", "CUDA_VISIBLE_DEVICES": "6"}
    assert chosen_device("cuda") == {"ACCELERATE_TORCH_DEVICE": "cuda:0", "CUDA_VISIBLE_DEVICES": "4"}
    assert chosen_device("cpu")["CUDA_VISIBLE_DEVICES"] == ""
    read.clear()
    with pytest.raises(UserError, match="no device cuda:3 on this machine"):
        chosen_device("cuda:3")
    read.clear()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert chosen_device("cuda") == {}
    with pytest.raises(UserError, match="under torchrun"):
        chosen_device("cuda:1")


@pytest.mark.parametrize("arguments", [["--device", "cpu"], ["--device=cpu"], []])
def test_processes_join_on_the_device_that_is_asked_for(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate reads the variable when they join, and never again."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
    read: list[str | None] = []
    monkeypatch.setattr(
        "vqvae2.train.device.make_accelerator",
        lambda: read.append(os.environ.get("ACCELERATE_TORCH_DEVICE")),
    )
    join(["sample", "run", *arguments])
    assert read == ["cpu" if arguments else None]
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_card_that_is_not_there(trained: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    said = command("sample", trained, "--out", tmp_path / "a", "--device", "cuda:1")
    assert (said.code, said.err) == (2, "vqvae2: no device cuda:1 on this machine\n")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("arguments", [["-h"], ["sample", "-h"], ["critic", "fit", "-h"]])
def test_help_is_short_too(arguments: list[str], command: Callable[..., Any]) -> None:
    said = command(*arguments)
    assert said.code == 0
    assert said.out == command(*[part.replace("-h", "--help") for part in arguments]).out


def test_the_version(command: Callable[..., Any]) -> None:
    assert command("--version").out == f"vqvae2 {__version__}\n"


def test_the_shell_completes_verbs_and_options() -> None:
    for words, expected in (("vqvae2 re", "reconstruct"), ("vqvae2 train --tr", "--track")):
        environment = {
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
            "_VQVAE2_COMPLETE": "complete_bash",
        }
        done = subprocess.run(
            [sys.executable, "-m", "vqvae2"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.split() == [expected]


def test_the_models_are_listed_with_their_figures(command: Callable[..., Any]) -> None:
    found = json.loads(command("models", "--json").out)
    assert found == json.loads(json.dumps(models()))
    assert [model["name"] for model in found] == zoo()
    emoji = next(model for model in found if model["name"] == "emoji64")
    assert (emoji["image"], emoji["grids"], emoji["codes"]) == ([3, 64, 64], [[8, 8], [16, 16]], [512, 512])
    assert emoji["heldout_psnr"] == pytest.approx(27.03, abs=0.01)
    assert emoji["heldout_bits"] == pytest.approx([3.917, 3.100], abs=0.001)
    text = command("models").out
    for part in ("emoji64", "64x64x3", "8x8 + 16x16", "27.03", "3.92 + 3.10 bits per code"):
        assert part in text


def test_the_presets_for_programs(command: Callable[..., Any]) -> None:
    found = json.loads(command("presets", "--json").out)
    assert [item["name"] for item in found] == list(presets())
    text = command("presets").out.splitlines()
    assert len(text) == len(found)
    assert all(line.startswith(item["name"]) for line, item in zip(text, found, strict=True))
    assert {"image", "grids", "codes", "priors", "steps"} < found[0].keys()
