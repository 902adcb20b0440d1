"""A run of images that are not square: every verb keeps their shape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2.config.overrides import read_yaml
from vqvae2.run import load

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def oblong(tmp_path_factory: pytest.TempPathFactory, pictures: Path, settings: list[str]) -> Path:
    """A run at 16x24 px."""
    from vqvae2.cli import main

    run = tmp_path_factory.mktemp("oblong") / "run"
    more = ["--set", "train_autoencoder.steps=20", "--set", "data.shift=2", "--set", "data.flip=true"]
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "train",
                str(pictures),
                "--run",
                str(run),
                "--preset",
                "tiny",
                *settings,
                *more,
                "--size",
                "16x24",
            ]
        )
    assert ended.value.code == 0
    return run


def sizes(folder: Path, pattern: str = "*.png") -> set[tuple[int, int]]:
    """Width and height of the images in a folder."""
    found = set()
    for path in folder.rglob(pattern):
        with Image.open(path) as image:
            found.add(image.size)
    return found


def test_training_and_sampling(oblong: Path, tmp_path: Path, command: Command) -> None:
    assert read_yaml(oblong / "config.yaml")["data"]["size"] == [16, 24]
    run = load(oblong, "cpu")
    assert run.config.geometry.grids == ((2, 3), (4, 6))
    assert run.sample(3, seed=1).shape == (3, 3, 16, 24)
    assert command("sample", oblong, "--n", 3, "--out", tmp_path / "out").code == 0
    assert (24, 16) in sizes(tmp_path / "out")


def test_reconstruction_and_score(oblong: Path, pictures: Path, tmp_path: Path, command: Command) -> None:
    said = command("reconstruct", oblong, pictures / "disc", "--out", tmp_path / "out")
    assert said.code == 0
    assert "at 16x24 px" in said.out
    assert sizes(tmp_path / "out", "??.png") == {(24, 16)}
    assert command("score", oblong, pictures / "disc").code == 0
    assert command("inspect", oblong).code == 0


def test_completion_keeps_what_is_outside_the_mask(oblong: Path, pictures: Path, tmp_path: Path) -> None:
    run = load(oblong, "cpu")
    image = run.sample(1, seed=5)[0]
    mask = torch.zeros(16, 24, dtype=torch.bool)
    mask[:, 16:] = True
    (part,) = run.complete(run.keep(image, mask), 2)
    assert part.images.shape == (2, 3, 16, 24)
    assert torch.equal(part.images[:, :, :, :16], image[None, :, :, :16].expand(2, -1, -1, -1))


def test_measuring(oblong: Path, tmp_path: Path, command: Command) -> None:
    parts = "reconstruction,nll"
    said = command("evaluate", oblong, "--n", 8, "--only", parts, "--out", tmp_path / "report")
    assert said.code == 0, said.err
    assert np.isfinite(load(oblong, "cpu").figures()["heldout_psnr"])


def test_the_same_command_with_another_shape_is_refused(
    oblong: Path, pictures: Path, settings: list[str], command: Command
) -> None:
    said = command("train", pictures, "--run", oblong, "--size", 32)
    assert (said.code, "data.size: [16, 24] -> 32" in said.err) == (2, True)


def test_a_preset_for_landscapes(tmp_path: Path, settings: list[str], command: Command) -> None:
    from vqvae2.commands.train import choose_config
    from vqvae2.files.progress import Reporter

    for number in range(8):
        Image.new("RGB", (72, 48), (number, 2, 3)).save(tmp_path / f"{number}.png")
    chosen = choose_config(str(tmp_path), tmp_path / "run", None, None, [], None, False, Reporter(quiet=True))
    assert chosen.data.size == (32, 48)
    asked = choose_config(
        str(tmp_path), tmp_path / "run", None, None, ["data.size=64"], None, False, Reporter(quiet=True)
    )
    assert asked.data.size == 64
