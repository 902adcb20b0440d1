"""What is wrong with an evaluation is said before anything expensive; what cannot be computed is left out with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import yaml

from vqvae2.config.overrides import read_yaml
from vqvae2.errors import UserError
from vqvae2.evaluate import context, full_report
from vqvae2.evaluate.full_report import write_report
from vqvae2.evaluate.options import EvaluateOptions
from vqvae2.evaluate.parts import codes
from vqvae2.evaluate.parts.registry import asked_parts
from vqvae2.evaluate.report import Page

Command = Callable[..., Any]


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--network", "resnet50"], "no feature network 'resnet50'"),
        (["--network", "vgg16"], "vgg16 needs a weights file"),
        (["--network", "vgg16", "--weights", "none.safetensors"], "no weights at"),
        (["--weights", "none.safetensors"], "no weights at none"),
        (["--perceptual", "none.safetensors"], "no weights at"),
        (["--samples", "nowhere"], "samples: expected a folder of images, found no folder nowhere"),
        (["--against", "a=nowhere"], "a: expected a folder of images, found no folder nowhere"),
        (["--against", "samples=."], "has a set named samples"),
        (["--temperature", 1, "--temperature", 1, "--temperature", 1], "one for each of 2 levels, found 3"),
        (["--temperature", "nan"], "temperature"),
        (["--critic-sweep", "0.5", "--only", "codes,nothing"], "no part nothing"),
        (["--critic-sweep", "1.5"], "0 < share <= 1"),
        (["--decoder", "sharp"], "is not sharpened"),
    ],
)  # fmt: skip
def test_options_are_checked_before_images_are_read(
    options: list[Any],
    pattern: str,
    trained: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(*arguments: Any, **more: Any) -> NoReturn:
        pytest.fail("images were read")

    monkeypatch.setattr("vqvae2.commands.real_images.open_real", read)
    out = tmp_path / "out"
    said = command("evaluate", trained, "--out", out, *options)
    assert said.code == 2
    assert pattern in said.err
    assert not out.exists()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No feature network may be needed."""
    monkeypatch.setattr(context, "feature_network", lambda *_: pytest.fail("a network was read"))


def test_few_held_out_images_leave_parts_out_with_their_reason(
    trained: Path, tmp_path: Path, command: Command, no_network: None
) -> None:
    """One held-out image: distances, precision and the like need six; the rest is measured."""
    out = tmp_path / "out"
    said = command("evaluate", trained, "--out", out, "--classifier-steps", 10)
    assert said.code == 0, said.err
    report = json.loads((out / "report.json").read_text())
    assert {"nll", "reconstruction", "codes", "speed"} <= set(report["parts"])
    assert {"distances", "precision", "memorisation", "symmetry"} <= set(report["left_out"])
    assert "at least 6 images of each set, found 1 (held out)" in report["left_out"]["distances"]
    assert "left out: distances: " in said.out
    assert "Left out" in (out / "report.html").read_text()


def test_what_was_asked_for_and_cannot_be_is_no_success(
    trained: Path, tmp_path: Path, command: Command
) -> None:
    said = command("evaluate", trained, "--out", tmp_path / "out", "--only", "distances,codes")
    assert said.code == 2
    assert "cannot measure distances: expected at least 6 images" in said.err


def test_a_process_that_lacks_what_the_first_one_has_ends_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights that are on one machine only: the others left the part out, and the first one waited for them."""
    group = SimpleNamespace(rank=1, count=2, main=False, agreed=lambda names: ["codes", "distances"])
    left_out = {"distances": "no file weights.pt"}
    monkeypatch.setattr(full_report, "wanted_parts", lambda context: ([codes.PART], left_out))
    with pytest.raises(UserError, match=r"process 1 cannot take part, .*: distances: no file weights\.pt"):
        write_report(SimpleNamespace(group=group), "title", Path("out"))  # type: ignore[arg-type]


def test_an_option_of_its_own_asks_for_a_part() -> None:
    """`--compress DIR` was taken and had no effect without `--only compression`."""
    assert asked_parts(EvaluateOptions(compress=Path("photos"))) == {"compression"}
    assert asked_parts(EvaluateOptions(critic_fractions=(0.5,), only=("nll",))) == {"critic", "nll"}
    assert asked_parts(EvaluateOptions()) == set()


def test_markup_in_names_stays_text(run: Path, tmp_path: Path, command: Command) -> None:
    """The names of the classes do stand in the page."""
    name = "<img src=x onerror=alert(1)>"
    index = json.loads((run / "data" / "index.json").read_text())
    index["classes"][0] = name
    (run / "data" / "index.json").write_text(json.dumps(index))
    value = read_yaml(run / "config.yaml")
    value["run"]["classes"][0] = name
    (run / "config.yaml").write_text(yaml.safe_dump(value))
    assert command("evaluate", run, "--out", tmp_path / "out", "--only", "codes").code == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert name not in page


def test_a_page_escapes_whatever_it_is_given() -> None:
    bad = "<script>\"'&"
    page = Page(bad)
    page.heading(bad)
    page.text(bad)
    page.table((bad,), [(bad,)])
    page.curves({bad: [(0.0, 1.0)]}, bad)
    assert "<script>" not in "".join(page.elements)
