"""The script that measures typicality: its figures are those of the run, from the pictures that it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2.data.batches import sequential
from vqvae2.data.images import open_images
from vqvae2.errors import UserError
from vqvae2.run import Run, load

sys.path.append(str(Path(__file__).parents[2] / "experiments"))

import typicality


@pytest.fixture
def half_held_out(trained: Path) -> Run:
    """The trained run, with half of its data held out."""
    run = load(trained, "cpu")
    data = run.config.data.model_copy(update={"holdout": 0.5})
    run.config = run.config.model_copy(update={"data": data})
    return run


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    """Nine grey pictures of another size than the run's."""
    folder = tmp_path / "grey"
    folder.mkdir()
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 256, (28, 28), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def nats(run: Run, data: Path, place: Path, heldout: bool) -> torch.Tensor:
    """[n, L] of all pictures of a data set, or of the held-out ones."""
    images = open_images(str(data), run.config.data, place, say=lambda _: None)
    chosen = images.heldout if heldout else np.arange(len(images))
    result = torch.cat(
        [run.log_prob(part) for part, _ in sequential(images, chosen, run.config.data, batch=5)]
    )
    images.close()
    return result


def pairs(inside: list[float], outside: list[float]) -> float:
    """The share of pairs in order."""
    return float(np.mean([(o > i) + (o == i) / 2 for i in inside for o in outside]))


def test_figures_by_hand(half_held_out: Run, pictures: Path, grey: Path, tmp_path: Path) -> None:
    run = half_held_out
    result = typicality.measure(run, str(pictures), [str(grey)], 100)
    held, out = nats(run, pictures, tmp_path / "in", True), nats(run, grey, tmp_path / "out", False)
    usual, inside = held[::2].double(), held[1::2].double()
    assert (result["usual"], result["in"]["n"]) == (len(usual), len(inside))
    assert result["in"]["bits"] == pytest.approx((-held.mean(0) / np.log(2)).tolist(), rel=1e-4)
    assert list(result["out"]) == ["uniform noise", str(grey)]
    assert result["out"]["uniform noise"]["n"] == len(inside)
    figures = result["out"][str(grey)]
    assert figures["n"] == 9
    assert figures["bits"] == pytest.approx((-out.mean(0) / np.log(2)).tolist(), rel=1e-4)
    far = [(x.double() - usual.mean(0)).abs() / usual.std(0) for x in (inside, out)]
    assert figures["auroc"] == pytest.approx(pairs(*(x.sum(1).tolist() for x in far)), abs=0.02)
    for level in (0, 1):
        each = pairs(*(x[:, level].tolist() for x in far))
        assert figures["auroc_per_level"][level] == pytest.approx(each, abs=0.02)
    assert figures["auroc_of_bits"] == pytest.approx(
        pairs(*((-x.sum(1)).tolist() for x in (inside, out))), abs=0.02
    )


def test_no_more_pictures_than_asked_for(half_held_out: Run, pictures: Path, grey: Path) -> None:
    result = typicality.measure(half_held_out, str(pictures), [str(grey)], 5)
    assert (result["usual"], result["in"]["n"], result["out"][str(grey)]["n"]) == (3, 2, 5)


def test_the_command_prints_what_was_measured(
    trained: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(typicality, "measure", lambda run, *rest: asked.append(rest) or {"usual": 7})
    monkeypatch.setattr(
        sys, "argv", ["x", str(trained), "--in", str(pictures), "--out", "a", "b", "--n", "9"]
    )
    typicality.main()
    assert json.loads(capsys.readouterr().out) == {"run": str(trained), "usual": 7}
    assert asked == [(str(pictures), ["a", "b"], 9)]


def test_too_few_held_out(trained: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    run = load(trained, "cpu")
    with pytest.raises(UserError, match=r"expected at least 4 held-out images of .*, found 1"):
        typicality.measure(run, str(pictures), [], 3)
    monkeypatch.setattr(sys, "argv", ["x", str(pictures), "--in", str(pictures)])
    with pytest.raises(SystemExit) as ended:
        typicality.main()
    assert ended.value.code == 2
    assert "is no run folder" in capsys.readouterr().err
