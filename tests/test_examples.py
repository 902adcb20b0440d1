"""The scripts of examples/ run, find what they should, and are short."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vqvae2
from vqvae2.cli import main
from vqvae2.data.pixels import to_uint8
from vqvae2.files.atomic import read_json

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


@pytest.fixture
def example(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., str]:
    """`example("compress")`: what the script prints, run in this process and in an empty folder."""

    def call(name: str, *arguments: object) -> str:
        monkeypatch.chdir(tmp_path)
        path = str(ROOT / "examples" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        capsys.readouterr()
        with torch.random.fork_rng():
            runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_they_are_short(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) < 60


def test_the_page_lists_each_once() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    listed = re.findall(r"\]\(\.\./examples/([\w./-]+)\)", page)
    expected = [path.relative_to(ROOT / "examples").as_posix() for path in (*SCRIPTS, *NOTEBOOKS)]
    assert sorted(listed) == sorted(expected)


@pytest.mark.slow
def test_compress(example: Callable[..., str]) -> None:
    said = example("compress")
    packed = re.search(r"12288 bytes of pixels are (\d+) bytes", said)
    assert packed is not None
    assert int(packed[1]) < 360
    assert "its image has the shape (3, 64, 64)" in said


def test_the_quantiser_layer_learns_in_another_network(example: Callable[..., str]) -> None:
    """Far better than before training, and many of the 64 codes are used."""
    begin, end = (example("quantizer_layer", steps) for steps in (0, 100))
    errors = [float(re.findall(r"steps: ([\d.]+) %", said)[0]) for said in (begin, end)]
    assert errors[1] < 0.2 * errors[0]
    assert int(re.findall(r"perplexity (\d+) of 64", end)[0]) > 8


def test_search_finds_the_image_itself_first(
    example: Callable[..., str], trained: Path, pictures: Path, tmp_path: Path
) -> None:
    """The order is that of the similarities, and no file is found twice."""
    query = pictures / "disc" / "04.png"
    said = [
        line.split(maxsplit=1)
        for line in example("search_by_codes", trained, pictures, query, 5).splitlines()
    ]
    similarities, files = [float(similarity) for similarity, _ in said], [file for _, file in said]
    assert files[0] == str(query)
    assert similarities[0] == pytest.approx(1, abs=1e-3)
    assert similarities == sorted(similarities, reverse=True)
    assert len(set(files)) == 5
    assert (tmp_path / "found.png").is_file()


def test_training_from_python_is_the_training_of_the_command(
    example: Callable[..., str], pictures: Path, settings: Sequence[str], trained: Path, tmp_path: Path
) -> None:
    """The same settings give the same weights; the second call finds everything done."""
    arguments = (pictures, tmp_path / "run", "tiny", *settings[1::2])
    said = example("train_from_python", *arguments)
    run, command = vqvae2.load(tmp_path / "run"), vqvae2.load(trained)
    assert run.digests() == command.digests()
    assert f"reconstructions: {run.figures()['heldout_psnr']:.2f} dB" in said
    assert (tmp_path / "drawn.png").is_file()
    assert (run.paths.report / "training.html").is_file()
    report = read_json(run.paths.report / "report.json")
    bits = report["parts"]["nll"]["held out"]["bits_per_image"]
    assert said == example("train_from_python", *arguments)
    assert f"costs {bits:.0f} bits" in said


def test_the_values_of_settings_from_python_are_those_of_the_command(
    example: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`null` was the text "null", which is the name of a column."""
    found: dict[str, Any] = {}

    def fit(data: str, folder: str, preset: str, settings: dict[str, Any]) -> None:
        found.update(settings)
        raise vqvae2.UserError("enough")

    monkeypatch.setattr(vqvae2, "fit", fit)
    pairs = ("data.label_column=null", "data.size=32", "data.flip=false")
    with pytest.raises(vqvae2.UserError, match="enough"):
        example("train_from_python", "pictures", "run", "tiny", *pairs)
    assert found == {"data.label_column": None, "data.size": 32, "data.flip": False}


@pytest.mark.parametrize("form", ["png", "npz"])
def test_other_evaluators_get_the_samples_and_not_the_sheet(
    form: str, example: Callable[..., str], trained: Path, tmp_path: Path
) -> None:
    """In the order of their numbers, also where a batch of another size was drawn later."""
    run = vqvae2.load(trained)
    drawn = tmp_path / "drawn"
    for n in (3, 5):
        with pytest.raises(SystemExit) as ended:
            main(["sample", str(trained), "--n", str(n), "--out", str(drawn), "--pictures", form])
        assert ended.value.code == 0
    assert "[5, 16, 16, 3]" in example("samples_for_other_evaluators", drawn, tmp_path / "samples.npz")
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays.files == ["arr_0"]
        assert arrays["arr_0"].dtype == np.uint8
        assert np.array_equal(arrays["arr_0"], to_uint8(run.sample(5)).numpy())
