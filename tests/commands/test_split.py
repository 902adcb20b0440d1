"""`vqvae2 evaluate --split`: a split that decided nothing is measured, and the reference stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from colours_network import Colours

from vqvae2.commands.images import image_files
from vqvae2.commands.run_facts import collect
from vqvae2.evaluate import context, full_report
from vqvae2.evaluate.advice import Advice, advise
from vqvae2.evaluate.facts import Facts
from vqvae2.files.atomic import read_json
from vqvae2.run import load
from vqvae2.train.folder import read_run, write_config

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def split_pictures(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The pictures of each class in the splits train, val and test: 3, 2 and 3 of 8."""
    root = tmp_path_factory.mktemp("split") / "pictures"
    for folder in pictures.iterdir():
        for number, file in enumerate(sorted(folder.iterdir())):
            target = root / ("train", "val", "test")[number % 3] / folder.name
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    return root


@pytest.fixture(scope="module")
def trained_on_split(
    tmp_path_factory: pytest.TempPathFactory, split_pictures: Path, train_tiny: Callable[..., Path]
) -> Path:
    """A run for which `val` was held out; not to be altered."""
    return train_tiny(tmp_path_factory.mktemp("trained"), split_pictures)


def figures(out: Path) -> dict[str, Any]:
    """report.json."""
    found: dict[str, Any] = read_json(out / "report.json")
    return found


def test_the_figures_are_those_of_exactly_the_split(
    trained_on_split: Path,
    split_pictures: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reconstruction error and likelihood, computed here from its files; what is known of the training images stays."""
    monkeypatch.setattr(context, "feature_network", lambda *_: Colours())
    wanted = ("--only", "nll,reconstruction,distances")
    assert command("evaluate", trained_on_split, "--out", tmp_path / "own", *wanted).code == 0
    assert (
        command("evaluate", trained_on_split, "--split", "TEST", "--out", tmp_path / "out", *wanted).code == 0
    )
    own, other = figures(tmp_path / "own"), figures(tmp_path / "out")
    run = load(trained_on_split)
    files = image_files([split_pictures / "test"])
    images = run.load_images(files)
    error = (run.reconstruct(images) - images).square().mean()
    bits = -run.log_prob(images, [file.parent.name for file in files]).mean(0)
    found = other["parts"]
    assert found["reconstruction"]["held out"]["mse"] == pytest.approx(float(error), rel=1e-4)
    positions = torch.tensor(run.config.geometry.positions)
    assert found["nll"]["held out"]["nats_per_code"] == pytest.approx((bits / positions).tolist(), rel=1e-4)
    for part in ("reconstruction", "nll"):
        assert found[part]["held out"]["n"] == len(files)
        assert found[part]["training"] == own["parts"][part]["training"]
        assert found[part]["held out"] != own["parts"][part]["held out"]
    keys = [
        {each["name"]: each["key"] for each in one["protocol"]["sets"] if each["name"] != "held out"}
        for one in (own, other)
    ]
    assert keys[0]["training"] == keys[1]["training"]


def test_the_protocol_names_it(trained_on_split: Path, tmp_path: Path, command: Command) -> None:
    arguments = ("--split", "test", "--only", "reconstruction", "--out", tmp_path / "out")
    said = command("evaluate", trained_on_split, *arguments)
    data = figures(tmp_path / "out")["protocol"]["data"]
    assert (data["split"], data["held_out"]) == ("test", 6)
    assert data["fingerprint"] == load(trained_on_split).record["fingerprint"] != data["fingerprint_of_split"]
    assert "on the split test" in (tmp_path / "out" / "report.html").read_text()
    assert "all 6 of the split 'test'" in said.err


def test_it_does_not_decide_what_is_changed(
    trained_on_split: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "feature_network", lambda *_: Colours())
    run = Path(shutil.copytree(trained_on_split, tmp_path / "run"))
    assert command("evaluate", run, "--only", "precision").code == 0
    assert collect(load(run)).recall
    arguments = ("evaluate", run, "--only", "precision", "--split", "test")
    said = command(*arguments)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "--out DIR for the report on a split" in said.err
    assert collect(load(run)).recall
    assert command(*arguments, "--out", run / "report").code == 0  # who asks for it gets it
    assert collect(load(run)).recall == {}


def test_the_page_of_a_split_advises_from_the_figures_of_the_run(
    trained_on_split: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own figures would let a test split decide what is changed."""
    found: list[list[Advice]] = []

    def noted(facts: Facts) -> list[Advice]:
        found.append(advise(facts))
        return found[-1]

    monkeypatch.setattr(full_report, "advise", noted)
    monkeypatch.setattr(full_report, "from_report", lambda parts: {"psnr": 1.0, "nearer": 1.0})
    arguments = ("evaluate", trained_on_split, "--only", "reconstruction", "--out", tmp_path / "out")
    for split in ((), ("--split", "test")):
        assert command(*arguments, *split).code == 0
    own = advise(collect(load(trained_on_split)))
    assert found[0] != own
    assert found[1] == own


def test_images_that_chose_the_weights_are_a_warning(
    trained_on_split: Path, tmp_path: Path, command: Command
) -> None:
    """The run held out `val`, so this split is no fairer measure than the report without --split."""
    arguments = ("--only", "reconstruction", "--out", tmp_path / "out")
    for split, count in (("val", 1), ("test", 0)):
        assert command("evaluate", trained_on_split, "--split", split, *arguments).code == 0
        assert sum("choose the weights" in line for line in figures(tmp_path / "out")["warnings"]) == count


def test_mistakes(
    trained_on_split: Path, split_pictures: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    run, out = trained_on_split, ("--out", tmp_path / "out")
    alone = ("--samples", pictures, "--data", split_pictures)
    for arguments, message in (
        ((run, "--split", "extra"), "no split 'extra' in"),
        ((run, "--split", "train"), "it is no split that was held out of the training"),
        ((run, "--split", "test", "--tune-sampling"), "tune first"),
        ((*alone, "--split", "test"), "a split is measured of the data of a RUN"),
    ):
        said = command("evaluate", *arguments, *out, "--quiet")
        assert (said.code, said.err.count("\n")) == (2, 1), message
        assert message in said.err


def test_a_split_of_other_images_is_opened_as_they_are(
    trained_on_split: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    """What of the run's options does not count for other images does not count for their split."""
    run = Path(shutil.copytree(trained_on_split, tmp_path / "run"))
    record, config = read_run(run)
    data = config.data.model_copy(update={"label_column": "breed"})
    write_config(run, record, config.model_copy(update={"data": data}))
    other = tmp_path / "other"
    for number, file in enumerate(image_files([pictures])[:8]):
        target = other / ("train", "test")[number % 2]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    arguments = ("evaluate", run, "--data", other, "--only", "reconstruction", "--out", tmp_path / "out")
    for split in ((), ("--split", "test")):
        said = command(*arguments, *split)
        assert said.code == 0, said.err
        assert figures(tmp_path / "out")["parts"]["reconstruction"]["held out"]["n"] == 4


def test_a_split_without_classes(
    trained_on_split: Path, split_pictures: Path, tmp_path: Path, command: Command
) -> None:
    """Held-out and training images are then both scored without a class, so that the gap means something."""
    data = Path(shutil.copytree(split_pictures, tmp_path / "pictures"))
    for file in image_files([data / "test"]):
        file.rename(data / "test" / file.name)
    for folder in [path for path in (data / "test").iterdir() if path.is_dir()]:
        folder.rmdir()
    arguments = ("--data", data, "--split", "test", "--out", tmp_path / "out", "--only", "nll")
    said = command("evaluate", trained_on_split, *arguments)
    assert said.code == 0, said.err
    found, run = figures(tmp_path / "out"), load(trained_on_split)
    assert "have no classes" in " ".join(found["warnings"])
    images = run.load_images(image_files([data / "train"]))
    nats = -run.log_prob(images).mean(0) / torch.tensor(run.config.geometry.positions)
    assert found["parts"]["nll"]["training"]["nats_per_code"] == pytest.approx(nats.tolist(), rel=1e-4)
