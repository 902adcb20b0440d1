"""The demo by what it leaves behind, with a configuration of a few seconds."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vqvae2.cli import main
from vqvae2.run import load
from vqvae2.train.state import read_metrics

SMALL = (
    *("data.limit=64", "train_prior.*.copies=1", "train_autoencoder.steps=30"),
    *("prior.levels.*.attention_every=0", "prior.levels.*.condition_blocks=0", "sampling.temperature=0.9"),
)


@pytest.fixture(scope="module")
def small(settings: list[str]) -> list[str]:
    """Settings for a demo of seconds."""
    return [*settings, *(part for setting in SMALL for part in ("--set", setting))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> Path:
    """The run folder of a demo that is done; not to be altered."""
    run = tmp_path_factory.mktemp("demo") / "run"
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--out", str(run), *small])
    assert ended.value.code == 0
    return run


def weights(folder: Path) -> dict[str, bytes]:
    """All weights of a run."""
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("model.safetensors"))}


def test_the_demo_is_a_whole_run(folder: Path) -> None:
    run = load(folder, "cpu")
    assert all(run.done().values())
    assert len(run.classes) > 1
    assert run.record["source"] == "emoji64"
    assert run.config.data.limit == 64
    assert run.sample(3).shape == (3, 3, 16, 16)
    assert [line["step"] for line in read_metrics(folder / "autoencoder" / "metrics.jsonl")][-1] == 30


def test_the_demo_shows_what_it_made(folder: Path) -> None:
    """Every picture it saved can be opened, and the page holds pictures of its own (no links)."""
    files = list((folder / "samples").glob("*.png"))
    assert len(files) >= 3
    for file in files:
        with Image.open(file) as image:
            image.load()
            assert min(image.size) >= 16
    page = (folder / "report" / "demo.html").read_text(encoding="utf-8")
    assert page.count("data:image/") >= 3
    assert page.rstrip().endswith("</html>")
    assert "http://" not in page.replace("http://www.w3.org", "")
    for word in ("PSNR", "bits per code", "Samples"):
        assert word in page


def test_the_demo_measures(folder: Path) -> None:
    figures = json.loads((folder / "report" / "demo.json").read_text())
    numbers = {key: value for key, value in figures.items() if isinstance(value, int | float)}
    assert all(math.isfinite(value) for value in numbers.values())
    run = load(folder, "cpu")
    assert numbers["heldout_psnr"] == pytest.approx(run.figures()["heldout_psnr"])
    for level in (0, 1):
        assert numbers[f"heldout_bits_{level}"] == pytest.approx(run.figures(level)["heldout_bits"])
        assert 0 < numbers[f"usage_{level}"] <= 1


def test_the_demo_typed_again_trains_nothing(
    folder: Path, small: list[str], command: Callable[..., Any]
) -> None:
    before = weights(folder)
    assert len(before) == 3
    said = command("demo", "--out", folder, *small)
    assert said.code == 0
    assert "nothing to train" in said.err
    assert weights(folder) == before
    shown = [line.partition(": ")[2] for line in said.out.splitlines() if line.endswith((".png", ".html"))]
    assert len(shown) >= 3
    assert [path for path in shown if not Path(path).is_file()] == []
    assert str(folder / "report" / "demo.html") in shown


def test_a_demo_without_classes_shows_samples_without_classes(
    folder: Path,
    small: list[str],
    tmp_path: Path,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vqvae2.commands.demo_report.zoo", list)  # whose samples take half a minute
    run = Path(shutil.copytree(folder, tmp_path / "run"))
    shutil.rmtree(run / "prior")
    shutil.rmtree(run / "samples")
    said = command("demo", "--out", run, *small, "--set", "prior.conditional=false")
    assert said.code == 0, said.err
    assert load(run, "cpu").classes == ()
    assert "samples.png" in {file.name for file in (run / "samples").iterdir()}
    assert "samples-per-class.png" not in {file.name for file in (run / "samples").iterdir()}


def test_a_setting_that_cannot_work(tmp_path: Path, command: Callable[..., Any]) -> None:
    said = command("demo", "--out", tmp_path / "run", "--set", "data.size=33")
    assert (said.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert "33x33" in said.err
    assert not (tmp_path / "run").exists()
