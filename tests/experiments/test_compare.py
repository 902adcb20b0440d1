"""The list of experiments: every arm is a configuration that can be trained, and comparisons are what they say."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml

from vqvae2.config.models import Config, parse
from vqvae2.config.overrides import complete, merge, override, read_yaml
from vqvae2.config.presets import preset
from vqvae2.evaluate.plot import svg
from vqvae2.prior.hierarchy import HierarchicalPrior
from vqvae2.run import load
from vqvae2.train.state import read_metrics

sys.path.append(str(Path(__file__).parents[2] / "experiments"))

import compare

ALL: dict[str, dict[str, Any]] = yaml.safe_load(compare.LIST.read_text())
EMOJI = 9  # classes
ARMS = [(name, arm) for name, item in ALL.items() for arm, _ in compare.arms(item)]

BORROWED = [
    (name, arm, setting)
    for name, item in ALL.items()
    for arm, settings in compare.arms(item)
    for setting in settings
    if setting.startswith("same=")
]


def config(name: str, arm: str) -> Config:
    """What the command of an arm asks for."""
    settings = dict(compare.arms(ALL[name]))[arm]
    if ALL[name].get("vgg"):
        settings = ["train_autoencoder.perceptual_weights=vgg16.safetensors", *settings]
    line = compare.command(ALL[name], settings, Path("run"), "data", ALL[name]["until"])
    value = merge(
        preset(line[line.index("--preset") + 1]).model_dump(mode="json"),
        read_yaml(line[line.index("--config") + 1]),
    )
    given = [line[at + 1] for at, word in enumerate(line) if word == "--set"]
    return parse(override(complete(value), given))


@pytest.mark.parametrize(("name", "arm"), ARMS)
def test_every_arm_is_a_configuration_with_its_seed(name: str, arm: str) -> None:
    settings = config(name, arm)
    assert arm == f"{arm.rpartition('-')[0]}-{settings.seed}"
    assert settings.geometry.levels == len(settings.prior.levels) == len(settings.train_prior)


@pytest.mark.parametrize("name", ALL)
def test_arms_of_an_experiment_differ(name: str) -> None:
    result = [config(name, arm) for arm, _ in compare.arms(ALL[name])]
    assert all(a != b for index, a in enumerate(result) for b in result[:index])


@pytest.mark.parametrize("name", [name for name, item in ALL.items() if item.get("shared")])
def test_arms_that_share_a_first_stage_have_the_same(name: str) -> None:
    """All of a seed, and those of the experiment whose first stage it is."""
    owner = name if ALL[name]["shared"] is True else ALL[name]["shared"]
    assert ALL[owner]["shared"] is True
    assert {*ALL[name]["seeds"]} <= {*ALL[owner]["seeds"]}
    for seed in ALL[name]["seeds"]:
        every = [
            config(n, arm)
            for n in (name, owner)
            for arm, _ in compare.arms(ALL[n])
            if arm.endswith(f"-{seed}")
        ]
        assert (
            len({(c.seed, repr(c.data), repr(c.autoencoder), repr(c.train_autoencoder)) for c in every}) == 1
        )


@pytest.mark.parametrize(("name", "arm", "part"), BORROWED)
def test_what_an_arm_takes_from_another_is_what_it_would_train_itself(name: str, arm: str, part: str) -> None:
    """Same settings, same seed, and the other one stands before it in the list by more arms than run at once."""
    owner, _, folder = part.removeprefix("same=").partition("/")
    seed = arm.rpartition("-")[2]
    mine, theirs = config(name, arm), config(name, f"{owner}-{seed}")
    level = int(folder.removeprefix("prior/level-"))
    assert mine.prior.levels[level] == theirs.prior.levels[level]
    assert mine.train_prior == theirs.train_prior
    assert mine.prior.conditional == theirs.prior.conditional
    order = [each for each, _ in compare.arms(ALL[name])]
    assert order.index(arm) - order.index(f"{owner}-{seed}") > 2


def test_a_copied_stage_is_of_the_same_seed_and_never_replaces_one(tmp_path: Path) -> None:
    for seed in "01":
        (tmp_path / f"full-{seed}" / "prior").mkdir(parents=True)
        (tmp_path / f"full-{seed}" / "prior" / "model.safetensors").write_text(seed)
    folder = tmp_path / "less-1"
    compare.copy_same_stages(folder, ["prior.conditional=false", "same=full/prior"], "1")
    assert (folder / "prior" / "model.safetensors").read_text() == "1"
    (folder / "prior" / "model.safetensors").write_text("own")
    compare.copy_same_stages(folder, ["same=full/prior"], "1")
    assert (folder / "prior" / "model.safetensors").read_text() == "own"
    with pytest.raises(SystemExit, match=r"less-2 copies prior from .*full-2.* not finished"):
        compare.copy_same_stages(tmp_path / "less-2", ["same=full/prior"], "2")
    assert not (tmp_path / "less-2").exists()


def test_the_kinds_of_prior_are_compared_at_equal_parameters_and_time() -> None:
    sizes, trainings = [], []
    for arm in ("pixelcnn-0", "transformer-0"):
        settings = config("prior-kinds", arm)
        assert {level.kind for level in settings.prior.levels} == {arm.removesuffix("-0")}
        with torch.device("meta"):
            prior = HierarchicalPrior(settings.prior.model_copy(update={"classes": EMOJI}), settings.geometry)
        sizes.append([sum(p.numel() for p in level.parameters()) for level in prior.levels])
        trainings.append(settings.train_prior)
    for pixelcnn, transformer in zip(*sizes, strict=True):
        assert transformer == pytest.approx(pixelcnn, rel=0.03)
    assert trainings[0] == trainings[1]
    assert [training.minutes for training in trainings[0]] == [5, 5]


def test_where_a_shared_first_stage_lies(tmp_path: Path) -> None:
    for shared, folder in ((True, "mine"), ("other", "other")):
        item = {"shared": shared, "seeds": [3, 4]}
        assert compare.first_stage("mine", item, "4", tmp_path) == tmp_path / folder / "stage1-4"
        assert compare.first_stages(item) == [("stage1-3", ["seed=3"]), ("stage1-4", ["seed=4"])]
    assert compare.first_stages({"seeds": [3]}) == []


def test_seconds_per_sample(run: Path) -> None:
    """Of every arm, in every size of a batch; nothing is loaded where nothing is asked for."""
    threads = torch.get_num_threads()
    result = compare.seconds_per_sample({"a": run, "b": run}, [1, 3])
    assert {arm: list(each) for arm, each in result.items()} == {
        arm: ["batch 1", "batch 3"] for arm in ("a", "b")
    }
    assert all(0 < value < 10 for each in result.values() for value in each.values())
    assert torch.get_num_threads() == threads
    assert compare.seconds_per_sample({"a": Path("nowhere")}, []) == {}


def test_curves_of_any_stage_are_drawn_under_names_of_their_own(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    (tmp_path / "docs" / "images").mkdir(parents=True)
    compare.draw("some", ["autoencoder/heldout_psnr", "prior/level-1/heldout_bits"], {"arm": run}, after=0)
    for name in ("some-heldout-psnr", "some-level-1-heldout-bits"):
        assert "arm" in (tmp_path / "docs" / "images" / f"{name}.svg").read_text()
    drawing = tmp_path / "docs" / "images" / "some-level-1-heldout-bits.svg"
    whole = drawing.read_text()
    steps = [
        line["step"] for line in read_metrics(run / "prior/level-1/metrics.jsonl") if "heldout_bits" in line
    ]
    compare.draw("some", ["prior/level-1/heldout_bits"], {"arm": run}, after=steps[0])
    assert drawing.read_text() != whole


def test_bits_are_drawn_against_weights(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    (tmp_path / "docs" / "images").mkdir(parents=True)
    done = {f"{arm}-0": compare.figures(run) for arm in ("base", "wide", "deep")}
    for arm, factor in (("wide-0", 2), ("deep-0", 3)):
        for stage in ("prior/level-0", "prior/level-1"):
            done[arm][stage]["parameters"] *= factor
    compare.draw_sizes(
        "some", {"channels": ["base", "wide"], "layers": ["base", "deep", "not done yet"]}, done
    )
    drawings = sorted(path.name for path in (tmp_path / "docs" / "images").iterdir())
    assert drawings == ["some-level-0-weights.svg", "some-level-1-weights.svg"]
    text = (tmp_path / "docs" / "images" / drawings[0]).read_text()
    assert "weights, million" in text
    points = [line.count(",") for line in re.findall(r'points="([^"]*)"', text)]
    assert points == [2, 2]


def test_the_parameters_of_a_stage_are_those_of_its_file(run: Path) -> None:
    result = compare.figures(run)
    for level in (0, 1):
        prior = load(run, "cpu").prior.levels[level]
        assert result[f"prior/level-{level}"]["parameters"] == sum(p.numel() for p in prior.parameters())


def test_an_experiment_that_fails_leaves_the_figures_of_the_arms_that_ended(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(line: list[str], **_: object) -> None:
        folder = Path(line[line.index("--run") + 1])
        if folder.name == "second-0":
            raise CalledProcessError(2, line)
        shutil.copytree(run, folder)

    monkeypatch.setattr(compare, "ROOT", tmp_path)
    monkeypatch.setattr(compare.subprocess, "run", train)
    arms = {"first": [], "second": ["prior.conditional=false"], "third": ["prior.conditional=true"]}
    experiment = {"preset": "small64", "recipe": "any.yaml", "until": "prior", "seeds": [0], "arms": arms}
    with pytest.raises(CalledProcessError):
        compare.run("some", experiment, "data", [], tmp_path / "runs", 1)
    written = json.loads((tmp_path / "results" / "some.json").read_text())
    assert "prior/level-1" in written["arms"]["first-0"]
    assert "second-0" not in written["arms"]


def test_a_drawing_in_a_file_of_its_own_has_its_colours() -> None:
    """No page defines them there; the tenth curve has the colour of the first one, and dashes."""
    drawing = svg({f"curve {number}": [(0.0, number), (1.0, number)] for number in range(10)})
    found = ElementTree.fromstring(compare.standalone(drawing)).iter("{http://www.w3.org/2000/svg}polyline")
    strokes = [(line.get("stroke"), line.get("stroke-dasharray")) for line in found]
    assert len({*strokes}) == 10
    assert strokes[0][0] == strokes[9][0]
    assert all(re.fullmatch(r"#[0-9a-f]{6}", colour or "") for colour, _ in strokes)
    assert "var(" not in compare.standalone(drawing)
