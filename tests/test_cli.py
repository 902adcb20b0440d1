"""The command, verb by verb: what it does, what it prints where, and how it ends."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from PIL import Image

from vqvae2.cli import app, main
from vqvae2.codes import Codes
from vqvae2.commands import demo_report
from vqvae2.config.models import Config, parse
from vqvae2.config.overrides import override, read_yaml, settings
from vqvae2.config.presets import preset, presets
from vqvae2.data.pixels import to_uint8
from vqvae2.files import tensor_file
from vqvae2.generate.sample import Drawn
from vqvae2.generate.sample_folder import SampleFolder
from vqvae2.run import load
from vqvae2.train.folder import read_run, write_config
from vqvae2.train.state import read_metrics

VERBS = (
    "demo",
    "train",
    "sample",
    "reconstruct",
    "complete",
    "score",
    "inspect",
    "presets",
    "import",
    "critic",
)
CLASSES = ["Blue sky", "disc", "stripes"]
Command = Callable[..., Any]


def options(verb: str) -> Iterator[Any]:
    """Arguments and options of a verb."""
    group: Any = typer.main.get_command(app)
    yield from group.commands[verb].params


def digests(folder: Path) -> dict[str, str]:
    """A digest of every file of a folder."""
    return {
        file.relative_to(folder).as_posix(): tensor_file.digest({}, file.read_bytes().hex())
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def pixels(file: Path) -> Any:
    """A picture as integers [H, W, 3]."""
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def close(a: Path, b: Path) -> bool:
    """Whether two pictures are the same, but for the rounding of a last digit."""
    return bool(np.abs(pixels(a) - pixels(b)).max() <= 1)


def plain(name: str, *assignments: str) -> Config:
    """A preset with settings changed."""
    return parse(override(preset(name).model_dump(mode="json"), assignments))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `train` would train: (data, run folder, configuration) of each call; nothing is trained."""
    calls: list[Any] = []
    monkeypatch.setattr(
        "vqvae2.train.pipeline.train",
        lambda data, run, config, **options: calls.append((data, run, config)),
    )
    return calls


# --- help ---


def test_alone_it_prints_the_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["vqvae2"])
    printed = []
    for arguments in (None, [], ["--help"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        printed.append(capsys.readouterr())
    assert printed[0] == printed[1] == printed[2]
    assert printed[0].err == ""
    assert all(re.search(rf"^ +{verb} ", printed[0].out, re.M) for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(verb: str, command: Command) -> None:
    said = command(verb, "--help")
    assert (said.code, said.err) == (0, "")
    text = " ".join(said.out.split())
    for option in options(verb):
        for name in (*option.opts, *option.secondary_opts):
            if name.startswith("--"):
                assert name in text
        assert getattr(option, "help", None), f"{option.name} says nothing"


def test_help_says_defaults_and_units(command: Command) -> None:
    text = " ".join(command("sample", "--help").out.split())
    for part in ("--n", "default: 64", "--seed", "default: 0", "(0, 1]", "divides the logits", "run's own"):
        assert part in text
    assert "10 minutes" in command("demo", "--help").out
    assert "runs/demo" in command("demo", "--help").out
    assert "[required]" in command("train", "--help").out


def test_help_config_lists_every_setting(command: Command) -> None:
    said = command("train", "--help-config")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    found = {
        match[1]: (match[2], text.strip())
        for line, text in zip(lines[::2], lines[1::2], strict=True)
        if (match := re.fullmatch(r"(\S+) \(default (.*)\)", line))
    }
    expected = {key: (json.dumps(default), description) for key, default, description in settings()}
    assert found == expected
    assert "pixels" in found["data.size"][1]
    assert "GB" in found["data.cache_gb"][1]
    assert "steps" in found["train_autoencoder.warmup"][1]


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vqvae2", "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: vqvae2" in done.stdout
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize(("arguments", "part"), [
    (["trian"], "trian"),
    (["train"], "DATA"),
    (["train", "data"], "--run"),
    (["sample", "run"], "--out"),
    (["sample", "run", "--out", "o", "--n", "many"], "--n"),
    (["sample", "run", "--out", "o", "--sed", "1"], "--sed"),
    (["complete", "run", "a.png", "--out", "o"], "either --mask MASK or --keep-levels N"),
    (["complete", "run", "a.png", "--out", "o", "--mask", "m", "--keep-levels", "1"], "either --mask"),
    (["score", "run"], "IMAGES"),
    (["inspect"], "--preset"),
    (["inspect", "run", "--preset", "tiny"], "--preset"),
    (["presets", "tiny"], "tiny"),
    (["--version-of"], "--version-of"),
])  # fmt: skip
def test_a_command_that_cannot_be_meant(arguments: list[str], part: str, command: Command) -> None:
    said = command(*arguments)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("vqvae2: ")
    assert said.err.count("\n") == 1
    assert part in said.err


# --- train ---


def test_train_leaves_a_whole_run(trained: Path) -> None:
    assert all(load(trained, "cpu").done().values())
    for file in ("config.yaml", "data/index.json", "codes/manifest.json", "autoencoder/metrics.jsonl",
                 "prior/level-0/samples.png", "prior/level-1/samples.png"):  # fmt: skip
        assert (trained / file).is_file(), file
    assert not list(trained.rglob("checkpoints"))
    assert not [file for file in trained.rglob("*") if file.name.endswith((".tmp", ".part"))]
    for part in ("autoencoder", "prior/level-0", "prior/level-1"):
        assert json.loads((trained / part / "config.json").read_text())["outcome"]["step"] > 0


def test_the_resolved_configuration_is_written_down(trained: Path, settings: list[str]) -> None:
    value = read_yaml(trained / "config.yaml")
    record = value.pop("run")
    assert parse(value) == plain("tiny", *settings[1::2], "prior.classes=3")
    assert record["classes"] == CLASSES


def test_typed_again_it_does_nothing(
    trained: Path, run: Path, pictures: Path, settings: list[str], command: Command
) -> None:
    before = digests(run)
    for arguments in ([], ["--preset", "tiny", *settings]):
        said = command("train", pictures, "--run", run, *arguments)
        assert (said.code, said.out) == (0, "")
        assert said.err.splitlines()[1:] == [f"{run}: all is done; nothing to train"]
        assert digests(run) == before == digests(trained)


def test_train_json(run: Path, pictures: Path, command: Command) -> None:
    said = command("train", pictures, "--run", run, "--json")
    assert said.code == 0
    value = json.loads(said.out)
    assert value["run"] == str(run)
    assert set(value["done"].values()) == {True}
    assert value["autoencoder"] == load(run, "cpu").figures()
    assert [level["uniform_bits"] for level in value["prior"]] == [4, 4]


def test_only_what_is_missing_is_trained(trained: Path, half: Path, pictures: Path, command: Command) -> None:
    """The missing prior is trained anew, to the same weights; all else stays."""
    before = digests(trained)
    said = command("train", pictures, "--run", half)
    assert said.code == 0
    after = digests(half)
    part = "prior/level-1/"
    assert set(before) == set(after)
    assert {
        name for name in after if after[name] != before[name] and not name.startswith((part, "report/"))
    } == set()
    old, new = (
        tensor_file.load_tensors(folder / part / "model.safetensors")[0] for folder in (trained, half)
    )
    assert tensor_file.digest(old) == tensor_file.digest(new)
    assert after[part + "samples.png"] == before[part + "samples.png"]


def test_other_settings_of_a_trained_run_are_refused(
    run: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    before = digests(run)
    for arguments, part in (
        (["--set", "autoencoder.hidden=32"], "autoencoder.hidden: 16 -> 32"),
        (["--set", "train_prior.1.lr=0.5"], "train_prior.1.lr: 0.001 -> 0.5"),
        (["--preset", "tiny"], "autoencoder.codes: [16, 16] -> [64, 64]"),
    ):
        said = command("train", pictures, "--run", run, *arguments)
        assert said.code == 2
        assert part in said.err
        assert said.err.count("\n") == 2, "what is trained, and why it is not"
    other = shutil.copytree(pictures, tmp_path / "elsewhere")
    assert command("train", other, "--run", run).code == 0  # the same images, wherever they are
    before = digests(run)  # config.yaml names the place
    others = shutil.copytree(pictures, tmp_path / "others")
    (others / "disc" / "01.png").unlink()
    said = command("train", others, "--run", run)
    assert (said.code, said.err.count("\n")) == (2, 2)
    assert f"found others in {others}" in said.err
    after = digests(run)
    assert {**after, "config.yaml": ""} == {
        **before,
        "config.yaml": "",
    }  # which says where the images are now


def test_changed_pictures_are_refused(
    half: Path, pictures: Path, settings: list[str], tmp_path: Path, command: Command
) -> None:
    value = read_yaml(half / "config.yaml")
    folder = shutil.copytree(pictures, tmp_path / "pictures")
    value["run"]["source"] = str(folder)
    (half / "config.yaml").write_text(yaml.safe_dump(value))
    (folder / "disc" / "01.png").unlink()
    said = command("train", folder, "--run", half)
    assert said.code == 2
    assert "changed" in said.err.splitlines()[-1]


def test_the_preset_fits_the_pictures_when_none_is_given(
    pictures: Path, tmp_path: Path, asked: list[Any], command: Command
) -> None:
    big = tmp_path / "big"
    big.mkdir()
    for number in range(3):
        Image.new("RGB", (80, 70 + number), (number, 0, 0)).save(big / f"{number}.png")
    for data, name, text in ((pictures, "small32", "24 images"), (big, "small64", "3 images")):
        said = command("train", data, "--run", tmp_path / "run")
        assert said.code == 0
        assert text in said.err
        assert f"preset {name}" in said.err
        assert asked.pop() == (str(data), tmp_path / "run", preset(name))


def test_the_preset_fits_the_machine_and_the_size_that_is_asked_for(
    tmp_path: Path, asked: list[Any], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU would train for months with the preset that the images alone would have."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (310, 300)).save(folder / "a.png")
    start = ["train", folder, "--run", tmp_path / "run"]

    said = command(*start)
    assert "1 image, short side about 300 px, no GPU: preset small64 (choose others with --preset" in said.err
    assert asked.pop()[2] == preset("small64")

    said = command(*start, "--size", "128")
    assert "short side about 300 px: preset small128 (choose another with --preset)" in said.err
    assert asked.pop()[2] == preset("small128")

    (tmp_path / "own.yaml").write_text("data: {size: [32, 64]}")
    command(*start, "--config", tmp_path / "own.yaml")
    assert asked.pop()[2] == plain("small32", "data.size=[32, 64]")

    monkeypatch.setattr("vqvae2.train.device.best_device", lambda: torch.device("cuda"))
    command(*start)
    assert asked.pop()[2] == preset("small256")


def test_a_run_that_exists_keeps_its_own_preset(
    half: Path, pictures: Path, asked: list[Any], command: Command
) -> None:
    said = command("train", pictures, "--run", half, "--set", "sampling.top_p=0.5")
    assert (said.code, said.err) == (0, f"training on {pictures} in {half}\n")
    config = load(half, "cpu").config
    assert asked.pop()[2] == config.model_copy(update={"sampling": config.sampling.replace(top_p=0.5)})


def test_a_run_that_exists_keeps_its_sharpening_with_a_preset(
    half: Path, pictures: Path, asked: list[Any], command: Command
) -> None:
    """The presets of former versions had none; nothing is trained that was not asked for."""
    own, ours = load(half, "cpu").config.sharpen, preset("small32").sharpen
    assert own != ours
    start = ["train", pictures, "--preset", "small32", "--run"]
    command(*start, half)
    assert asked.pop()[2].sharpen == own
    command(*start, half, "--set", "sharpen.steps=7")
    assert asked.pop()[2].sharpen == own.model_copy(update={"steps": 7})
    command(*start, half.parent / "new")
    assert asked.pop()[2].sharpen == ours


def test_which_setting_counts(tmp_path: Path, pictures: Path, asked: list[Any], command: Command) -> None:
    """Preset, then --config, then --set in order; the autoencoder's channels follow the data's."""
    file = tmp_path / "own.yaml"
    file.write_text("seed: 5\ndata: {size: 64, flip: false}\ntrain_autoencoder: {steps: 100}\n")
    start = ["train", pictures, "--run", tmp_path / "run", "--preset", "tiny"]
    command(*start)
    assert asked.pop()[2] == preset("tiny")
    command(*start, "--config", file)
    assert asked.pop()[2] == plain(
        "tiny", "seed=5", "data.size=64", "data.flip=false", "train_autoencoder.steps=100"
    )
    command(*start, "--config", file, "--set", "data.size=32", "--set", "seed=6", "--set", "seed=7")
    assert asked.pop()[2] == plain(
        "tiny", "seed=7", "data.size=32", "data.flip=false", "train_autoencoder.steps=100"
    )
    command(*start, "--set", "data.channels=1")
    assert asked.pop()[2] == plain("tiny", "data.channels=1", "autoencoder.channels=1")
    command(*start, "--split", "test", "--streaming")
    assert asked.pop()[2] == plain("tiny", "data.split=test", "data.streaming=true")


@pytest.mark.parametrize("name", ["2012", "null", "a: b", "été 😀", '"'])
def test_names_are_not_read_as_yaml(
    name: str, tmp_path: Path, pictures: Path, asked: list[Any], command: Command
) -> None:
    start = ("train", pictures, "--run", tmp_path / "run", "--preset", "tiny")
    assert command(*start, "--split", name, "--labels", f"{name}.csv").code == 0
    data = asked.pop()[2].data
    assert (data.split, data.labels) == (name, f"{name}.csv")


def test_the_same_training_again_keeps_a_way_of_drawing_that_was_chosen_since(
    run: Path,
    tmp_path: Path,
    pictures: Path,
    asked: list[Any],
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a preset, with `--from` and as a demo, unless an option names another; a new run has its preset's."""
    record, config = read_run(run)
    tuned = config.sampling.replace(temperature=0.9, batch=5)
    write_config(run, record, config.model_copy(update={"sampling": tuned}))
    for arguments in (("--preset", "tiny"), ("--from", "emoji64")):
        command("train", pictures, "--run", run, *arguments)
        assert asked.pop()[2].sampling == tuned
    command("train", pictures, "--run", run, "--preset", "tiny", "--set", "sampling.batch=6")
    assert asked.pop()[2].sampling == tuned.replace(batch=6)
    monkeypatch.setattr(demo_report, "write_report", lambda *_: demo_report.DemoResult({"table": []}))
    assert command("demo", "--out", run).code == 0
    assert asked.pop()[2].sampling == tuned
    command("train", pictures, "--run", tmp_path / "new", "--preset", "tiny")
    assert asked.pop()[2] == preset("tiny")


def test_fine_tuning_does_not_look_where_the_images_of_the_other_run_were(
    run: Path, tmp_path: Path, pictures: Path, asked: list[Any], command: Command
) -> None:
    record, config = read_run(run)
    data = config.data.model_copy(update={"image_root": "/elsewhere"})
    write_config(run, record, config.model_copy(update={"data": data}))
    command("train", pictures, "--run", tmp_path / "new", "--from", run)
    assert asked.pop()[2].data.image_root is None


def test_the_configuration_of_a_run_can_be_given_to_another(
    trained: Path, tmp_path: Path, pictures: Path, asked: list[Any], command: Command
) -> None:
    command("train", pictures, "--run", tmp_path, "--preset", "demo", "--config", trained / "config.yaml")
    assert asked.pop()[2] == load(trained, "cpu").config


def test_grey_pictures_of_one_level_without_classes(tmp_path: Path, pictures: Path, command: Command) -> None:
    flat, run, out = tmp_path / "flat", tmp_path / "run", tmp_path / "out"
    flat.mkdir()
    for file in pictures.rglob("*.png"):
        shutil.copy(file, flat)
    own = {
        "data": {"size": 16, "channels": 1, "workers": 0},
        "autoencoder": {"strides": "4", "codes": 16, "hidden": 8, "residual": 4},
        "train_autoencoder": {"steps": 10},
        "prior": {"levels": [{"hidden": 8, "residual": 8, "layers": 1}]},
        "train_prior": [{"steps": 5, "batch": 8}],
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    said = command("train", flat, "--run", run, "--preset", "tiny", "--config", tmp_path / "own.yaml")
    assert said.code == 0
    assert "no classes" in said.err
    assert command("sample", run, "--out", out, "--n", 2).code == 0
    with Image.open(out / "00000.png") as image:
        assert (image.mode, image.size) == ("L", (16, 16))
    assert json.loads((out / "samples.json").read_text())["samples"][0] == {
        "file": "00000.png", "number": 0, "codes": "codes-00000-00001.npz",
    }  # fmt: skip
    said = command("sample", run, "--out", out, "--n", 2, "--label", "disc")
    assert said.code == 2
    assert "no classes" in said.err


def test_interrupted_and_typed_again(
    tmp_path: Path, pictures: Path, settings: list[str], command: Command
) -> None:
    """A real Ctrl-C in the middle of `train`: one line, 130; the same command goes on to the end."""
    run = tmp_path / "run"
    arguments = [
        "train", str(pictures), "--run", str(run), "--preset", "tiny", *settings,
        "--set", "train_autoencoder.steps=150", "--set", "train_autoencoder.evaluate_every=1000",
    ]  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-m", "vqvae2", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = run / "autoencoder" / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 90
        while len(read_metrics(metrics)) < 5 and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert (child.returncode, out) == (130, "")
    last = err.splitlines()[-1]
    assert re.fullmatch(
        r"vqvae2: interrupted: autoencoder: saved at step \d+ of 150; the same command continues from there",
        last,
    )
    assert "Traceback" not in err
    step = int(re.findall(r"\d+", last)[1])
    assert 5 <= step < 150
    assert not load(run, "cpu").done()["autoencoder"]
    assert load(run, "cpu").record["command"] == shlex.join(["vqvae2", *arguments])

    said = command(*arguments)
    assert said.code == 0
    assert all(load(run, "cpu").done().values())
    steps = [line["step"] for line in read_metrics(metrics) if "mse" in line]
    assert steps == list(range(1, 151))


# --- sample ---


def test_sample_leaves_pictures_a_grid_and_a_list(trained: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "new" / "out"
    said = command("sample", trained, "--out", out, "--n", 5, "--seed", 3, "--json")
    assert said.code == 0
    value = json.loads(said.out)
    assert value.pop("seconds") > 0
    assert value == json.loads((out / "samples.json").read_text())  # the same whenever it is drawn
    names = [f"{number:05d}.png" for number in range(5)]
    assert sorted(file.name for file in out.iterdir()) == sorted(
        [*names, "codes-00000-00004.npz", "grid.png", "samples.json", "sampling.json"]
    )
    assert [entry["file"] for entry in value["samples"]] == names
    assert [entry["number"] for entry in value["samples"]] == list(range(5))
    assert [entry["label"] for entry in value["samples"]] == [0, 1, 2, 0, 1]
    assert [entry["class"] for entry in value["samples"]] == [CLASSES[i] for i in (0, 1, 2, 0, 1)]
    assert (value["n"], value["seed"], value["grid"]) == (5, 3, str(out / "grid.png"))
    assert all(pixels(out / name).shape == (16, 16, 3) for name in names)
    zoom = 8  # to about 128 px
    sheet = pixels(out / "grid.png")
    assert sheet.shape[1] >= 2 * 16 * zoom
    first = sheet[2 : 2 + 16 * zoom : zoom, 2 : 2 + 16 * zoom : zoom]
    assert np.array_equal(first, pixels(out / names[0]))


def test_sample_says_where_the_grid_is(trained: Path, tmp_path: Path, command: Command) -> None:
    said = command("sample", trained, "--out", tmp_path, "--n", 2)
    assert said.code == 0
    assert re.fullmatch(r"2 samples, 2 new in [\d.]+ s \([\d.]+ s each\): .*grid\.png\n", said.out)
    said = command("sample", trained, "--out", tmp_path, "--n", 2)
    assert re.fullmatch(r"2 samples, all were there already: .*grid\.png\n", said.out)


def test_a_picture_is_the_same_at_any_batch_and_number(
    trained: Path, tmp_path: Path, command: Command
) -> None:
    for name, n, batch in (("whole", 7, 7), ("ones", 7, 1), ("threes", 7, 3), ("fewer", 4, 64)):
        assert command("sample", trained, "--out", tmp_path / name, "--n", n, "--batch", batch).code == 0
        for number in range(n):
            file = f"{number:05d}.png"
            assert close(tmp_path / "whole" / file, tmp_path / name / file), (name, number)
    command("sample", trained, "--out", tmp_path / "other", "--n", 7, "--seed", 1)
    files = [f"{number:05d}.png" for number in range(7)]
    assert not all(close(tmp_path / "whole" / file, tmp_path / "other" / file) for file in files)


@pytest.mark.parametrize(("labels", "numbers"), [
    (["disc"], [1, 1, 1, 1]),
    (["blue SKY"], [0, 0, 0, 0]),
    (["2"], [2, 2, 2, 2]),
    (["stripes", "0"], [2, 0, 2, 0]),
    ([], [0, 1, 2, 0]),
])  # fmt: skip
def test_sample_labels(
    labels: list[str], numbers: list[int], trained: Path, tmp_path: Path, command: Command
) -> None:
    given = [part for label in labels for part in ("--label", label)]
    said = command("sample", trained, "--out", tmp_path, "--n", 4, "--json", *given)
    assert [entry["label"] for entry in json.loads(said.out)["samples"]] == numbers


def test_the_label_reaches_the_pictures(trained: Path, tmp_path: Path, command: Command) -> None:
    """Picture i of a label is the one that taking labels in turn gives where it is i's turn."""
    for name, labels in (("mixed", ("disc", "stripes")), ("disc", ("disc",)), ("stripes", ("stripes",))):
        given = [part for label in labels for part in ("--label", label)]
        command("sample", trained, "--out", tmp_path / name, "--n", 4, *given)
    for number in range(4):
        file = f"{number:05d}.png"
        assert close(tmp_path / "mixed" / file, tmp_path / ("disc", "stripes")[number % 2] / file)


def test_how_the_run_samples_is_used_unless_something_else_is_asked(
    run: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    """Set with `train` on a finished run, used by `sample`, overridden one by one."""
    changes = ["--set", "sampling.temperature=0", "--set", "sampling.guidance=1.5"]
    assert command("train", pictures, "--run", run, *changes).code == 0
    base = ["sample", run, "--label", "disc", "--n", 4, "--json", "--out"]
    own = json.loads(command(*base, tmp_path / "own").out)
    assert (own["temperature"], own["top_k"], own["top_p"], own["guidance"]) == (0, 0, 1, 1.5)
    assert all(close(tmp_path / "own" / "00000.png", tmp_path / "own" / f"0000{i}.png") for i in (1, 2, 3))
    asked = ["--temperature", 1.5, "--top-k", 3, "--top-p", 0.9, "--batch", 2]
    other = json.loads(command(*base, tmp_path / "other", *asked).out)
    assert [other[key] for key in ("temperature", "top_k", "top_p", "guidance")] == [1.5, 3, 0.9, 1.5]
    files = [tmp_path / "other" / f"0000{i}.png" for i in range(4)]
    assert not all(close(files[0], file) for file in files[1:])


def test_settings_per_level(trained: Path, tmp_path: Path, command: Command) -> None:
    """Given once per level, coarsest first: with the finest cold, the coarse codes alone tell two pictures apart."""
    base = ["sample", trained, "--label", "disc", "--n", 6, "--temperature", 1.5, "--temperature", 0]
    said = command(*base, "--out", tmp_path / "out", "--json")
    assert json.loads(said.out)["temperature"] == [1.5, 0]
    codes = np.load(tmp_path / "out" / "codes-00000-00005.npz")
    run = load(trained, "cpu")
    coarse = torch.from_numpy(codes["level_0"].astype(np.int64))
    assert len(coarse.unique(dim=0)) > 1
    labels = torch.full((6,), 1)
    again = run.prior.sample(6, labels, temperature=0, given=Codes((coarse,)))
    assert np.array_equal(again.levels[1].numpy(), codes["level_1"])
    said = command(*base, "--temperature", 1, "--out", tmp_path / "bad")
    assert (said.code, "one for each of 2 levels, found 3" in said.err) == (2, True)


@pytest.mark.parametrize("kind", ["png", "npz"])
def test_sampling_goes_on_where_it_was_left(
    kind: str, trained: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle, asked for more, in batches of another size: each is drawn once and none is another."""
    base = ["sample", trained, "--pictures", kind, "--n"]
    assert command(*base, 11, "--batch", 11, "--out", tmp_path / "whole").code == 0
    out, calls, honest = tmp_path / "out", iter(range(100)), SampleFolder.add

    def killed(self: SampleFolder, part: Drawn) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt
        honest(self, part)

    with monkeypatch.context() as patch:
        patch.setattr(SampleFolder, "add", killed)
        assert command(*base, 8, "--batch", 2, "--out", out).code != 0
    assert {file.name for file in out.glob("codes-*")} == {"codes-00000-00001.npz", "codes-00002-00003.npz"}
    before = {file: file.stat().st_mtime_ns for file in out.glob("codes-*")}
    said = command(*base, 11, "--batch", 3, "--out", out, "--json")
    value = json.loads(said.out)
    assert [entry["number"] for entry in value["samples"]] == list(range(11))
    assert {file: file.stat().st_mtime_ns for file in before} == before, "what was there was not drawn again"
    whole, parts = (joined_npz(folder) for folder in (tmp_path / "whole", out))
    assert whole.keys() == parts.keys()
    assert ("images" in whole) == (kind == "npz")
    for key in whole.keys() - {"images"}:
        assert np.array_equal(whole[key], parts[key]), key
    assert len(list(out.glob("0*.png"))) == (11 if kind == "png" else 0)
    assert np.array_equal(pixels(out / "grid.png"), pixels(tmp_path / "whole" / "grid.png"))


def joined_npz(folder: Path) -> dict[str, Any]:
    """The arrays of all batches of a folder of samples, by number."""
    files = sorted(folder.glob("codes-*.npz"))
    parts = [np.load(file) for file in files]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def test_the_codes_beside_the_pictures_are_theirs(trained: Path, tmp_path: Path, command: Command) -> None:
    assert command("sample", trained, "--out", tmp_path, "--n", 5, "--batch", 2).code == 0
    found, run = joined_npz(tmp_path), load(trained, "cpu")
    assert found["numbers"].tolist() == list(range(5))
    assert found["labels"].tolist() == [0, 1, 2, 0, 1]
    codes = Codes(tuple(torch.from_numpy(found[f"level_{i}"].astype(np.int64)) for i in range(2)))
    decoded = to_uint8(run.autoencoder.decode(codes)).numpy()
    drawn = np.stack([pixels(tmp_path / f"{i:05d}.png") for i in range(5)])
    assert np.abs(decoded.astype(int) - drawn).max() <= 1


def test_samples_drawn_otherwise_are_not_mixed(trained: Path, tmp_path: Path, command: Command) -> None:
    base = ["sample", trained, "--out", tmp_path, "--n", 2]
    assert command(*base).code == 0
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for other, told in (
        (["--seed", 1], "seed: 0 -> 1"), (["--label", "disc"], "labels"), (["--pictures", "npz"], "pictures"),
        (["--temperature", 0.5], "temperature: 1.0 -> 0.5"),
    ):  # fmt: skip
        said = command(*base, *other)
        assert (said.code, len(said.err.splitlines())) == (2, 1)
        assert told in said.err
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_two_processes_draw_what_one_does(trained: Path, tmp_path: Path, command: Command) -> None:
    """Shared out by torchrun on gloo: every number once, the same pictures, one list."""
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "vqvae2"]
    ask = ["sample", str(trained), "--n", "7", "--batch", "2", "--out", str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, "-m", *launch, *ask], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert command("sample", trained, "--n", 7, "--batch", 2, "--out", tmp_path / "one").code == 0
    one, two = (joined_npz(tmp_path / name) for name in ("one", "two"))
    assert all(np.array_equal(one[key], two[key]) for key in one)
    lists = [json.loads((tmp_path / name / "samples.json").read_text())["samples"] for name in ("one", "two")]
    assert lists[0] == lists[1]


def test_many_samples_make_a_square_grid(trained: Path, tmp_path: Path, command: Command) -> None:
    """More than 256 pictures: all are written, the grid shows the first 256 in 16 columns."""
    assert command("sample", trained, "--out", tmp_path, "--n", 258, "--batch", 100).code == 0
    assert len(list(tmp_path.glob("0*.png"))) == 258
    assert pixels(tmp_path / "grid.png").shape == (16 * 18 + 2, 16 * 18 + 2, 3)
    assert len(json.loads((tmp_path / "samples.json").read_text())["samples"]) == 258


# --- sample with a critic ---


class Judge:
    """A critic that was fitted, it says: the blue channel's mean, of any class."""

    digest, backbone_digest = "d" * 64, "n" * 64

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return images[:, 2].mean((1, 2))


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run has this critic."""
    monkeypatch.setattr("vqvae2.run.Run.critic", Judge())


def entries(folder: Path) -> list[dict[str, Any]]:
    """What samples.json says of each."""
    found: list[dict[str, Any]] = json.loads((folder / "samples.json").read_text())["samples"]
    return found


def test_a_critic_keeps_the_best_of_each_class(
    judged: None, trained: Path, tmp_path: Path, command: Command
) -> None:
    """They are the brute-force top of as many plain samples, in the usual form; the list says which and why."""
    assert command("sample", trained, "--out", tmp_path / "all", "--n", 24).code == 0
    said = command("sample", trained, "--out", tmp_path / "best", "--n", 6, "--critic", 0.25, "--json")
    assert said.code == 0
    value = json.loads(said.out)
    assert (value["n"], value["drawn"]) == (6, 24)
    assert value["critic"] == {"fraction": 0.25, "digest": "d" * 64, "network": "n" * 64}
    assert [entry["label"] for entry in value["samples"]] == [0, 1, 2, 0, 1, 2]
    run = load(trained, "cpu")
    (every,) = run.draw(24, sampling=run.sampling.replace(batch=24))
    scores = Judge()(every.images, torch.zeros(24))
    for label in range(3):
        own = [i for i in range(24) if i % 3 == label]
        top = sorted(sorted(own, key=lambda i: -float(scores[i]))[:2])
        kept = [entry for entry in value["samples"] if entry["label"] == label]
        assert [entry["candidate"] for entry in kept] == top
        assert [entry["score"] for entry in kept] == pytest.approx(scores[top].tolist(), abs=1e-5)
    for entry in value["samples"]:
        assert close(tmp_path / "best" / entry["file"], tmp_path / "all" / f"{entry['candidate']:05d}.png")
    best, plain = joined_npz(tmp_path / "best"), joined_npz(tmp_path / "all")
    assert best["candidates"].tolist() == [entry["candidate"] for entry in value["samples"]]
    for key in ("level_0", "level_1", "labels"):
        assert np.array_equal(best[key], plain[key][best["candidates"]])
    said = command("sample", trained, "--out", tmp_path / "best", "--n", 6, "--critic", 0.25)
    assert re.fullmatch(r"6 samples, the best of 24 drawn, all were there already: .*grid\.png\n", said.out)


@pytest.mark.parametrize("kind", ["png", "npz"])
def test_a_critic_that_keeps_all_changes_nothing(
    kind: str, judged: None, trained: Path, tmp_path: Path, command: Command
) -> None:
    base = ["sample", trained, "--n", 7, "--batch", 3, "--pictures", kind, "--out"]
    assert command(*base, tmp_path / "plain").code == 0
    assert command(*base, tmp_path / "kept", "--critic", 1).code == 0
    plain, kept = (joined_npz(tmp_path / name) for name in ("plain", "kept"))
    assert all(np.array_equal(plain[key], kept[key]) for key in plain)
    for file in (tmp_path / "plain").glob("*.png"):
        assert file.read_bytes() == (tmp_path / "kept" / file.name).read_bytes()
    keys = ("number", "file", "codes", "label", "class")
    lists = [
        [{key: entry[key] for key in keys} for entry in entries(tmp_path / name)]
        for name in ("plain", "kept")
    ]
    assert lists[0] == lists[1]


@pytest.mark.parametrize("stop", [0, 2, 5, 8, 9])
def test_the_choice_goes_on_where_it_was_left(
    stop: int, judged: None, trained: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while candidates are drawn (of 8 batches) or while the best are written, gone on with in other batches."""
    base = ["sample", trained, "--n", 5, "--critic", 0.33, "--out"]
    assert command(*base, tmp_path / "whole").code == 0
    out, calls, honest = tmp_path / "out", iter(range(100)), SampleFolder.add

    def killed(self: SampleFolder, part: Drawn) -> None:
        if next(calls) == stop:
            raise KeyboardInterrupt
        honest(self, part)

    with monkeypatch.context() as patch:
        patch.setattr(SampleFolder, "add", killed)
        assert command(*base, out, "--batch", 2).code == 130
    before = {file: file.stat().st_mtime_ns for file in out.rglob("codes-*")}
    assert len(before) == stop
    assert command(*base, out, "--batch", 3).code == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before
    whole, parts = (joined_npz(folder) for folder in (tmp_path / "whole", out))
    for key in whole.keys() - {"scores"}:
        assert np.array_equal(whole[key], parts[key]), key
    assert np.allclose(whole["scores"], parts["scores"], atol=1e-6)
    drawn = joined_npz(out / "candidates")
    assert drawn["numbers"].tolist() == list(range(15))  # each once
    assert "images" not in drawn
    assert not list((out / "candidates").glob("*.png"))
    assert all(close(tmp_path / "whole" / f"{i:05d}.png", out / f"{i:05d}.png") for i in range(5))


def test_what_was_chosen_needs_its_candidates_no_more(
    judged: None, trained: Path, tmp_path: Path, command: Command
) -> None:
    base = ["sample", trained, "--n", 4, "--critic", 0.5, "--out", tmp_path]
    assert command(*base).code == 0
    before = (tmp_path / "samples.json").read_text()
    shutil.rmtree(tmp_path / "candidates")
    said = command(*base)
    assert (said.code, "all were there" in said.out) == (0, True)
    assert (tmp_path / "samples.json").read_text() == before


def test_choices_are_not_mixed(judged: None, trained: Path, tmp_path: Path, command: Command) -> None:
    """Neither with plain samples, nor with those of another fraction, number or critic."""
    base = ["sample", trained, "--out", tmp_path / "best", "--n", 2]
    assert command(*base, "--critic", 0.5).code == 0
    before = digests(tmp_path)
    for other, told in (
        ([], "critic: {'fraction': 0.5"), (["--critic", 0.25], "critic.fraction: 0.5 -> 0.25"),
        (["--critic", 0.5, "--n", 3], "n: 2 -> 3"),
    ):  # fmt: skip
        said = command(*base, *other)
        assert (said.code, len(said.err.splitlines())) == (2, 1)
        assert told in said.err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judge, "digest", "e" * 64)
        assert "critic.digest" in command(*base, "--critic", 0.5).err
    assert digests(tmp_path) == before
    assert command("sample", trained, "--out", tmp_path / "plain", "--n", 2).code == 0
    said = command("sample", trained, "--out", tmp_path / "plain", "--n", 2, "--critic", 0.5)
    assert (said.code, "critic: None ->" in said.err) == (2, True)


# --- reconstruct ---


def test_reconstruct_folders_and_files(
    trained: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    extra = shutil.copy(pictures / "disc" / "01.png", tmp_path / "one.png")
    said = command("reconstruct", trained, pictures, extra, "--out", out, "--json")
    assert said.code == 0
    items = json.loads(said.out)
    assert [item["source"] for item in items] == [*map(str, sorted(pictures.rglob("*.png"))), str(extra)]
    assert len({item["file"] for item in items}) == len(items) == 25
    for item in items:
        assert Path(item["file"]).parent == out
        assert item["levels"] == item["file"].removesuffix(".png") + "-levels.png"
        assert len(item["psnr"]) == 2
        assert np.isfinite(item["psnr"]).all()
    assert sorted(map(str, out.glob("*.png"))) == sorted(
        item[key] for item in items for key in ("file", "levels")
    )
    coarse, fine = np.mean([item["psnr"] for item in items], axis=0)
    assert fine > coarse, "all levels give more than the coarsest alone"


def test_what_is_reconstructed(trained: Path, pictures: Path, tmp_path: Path, command: Command) -> None:
    """NAME.png is the picture from all levels; NAME-levels.png shows original, coarsest level, all; PSNR is theirs."""
    source = pictures / "stripes" / "02.png"
    (item,) = json.loads(command("reconstruct", trained, source, "--out", tmp_path, "--json").out)
    again = pixels(tmp_path / "02.png")
    sheet = pixels(tmp_path / "02-levels.png")
    zoom = 8
    tiles = [
        sheet[2 : 2 + 16 * zoom : zoom, left : left + 16 * zoom : zoom] for left in (2, 2 + 130, 2 + 260)
    ]
    assert sheet.shape == (16 * zoom + 4, 3 * (16 * zoom + 2) + 2, 3)
    assert np.array_equal(tiles[2], again)
    original = Image.open(source).crop((2, 0, 22, 20)).resize((16, 16), Image.Resampling.LANCZOS)
    assert np.abs(tiles[0] - np.asarray(original)).mean() < 3
    for tile, decibels in zip(tiles[1:], item["psnr"], strict=True):
        mse = np.square((tile - tiles[0]) / 127.5).mean()
        assert 10 * np.log10(4 / mse) == pytest.approx(decibels, abs=0.2)


def test_reconstruct_says_how_good_it_is(
    trained: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    said = command("reconstruct", trained, pictures / "disc", "--out", tmp_path)
    assert said.code == 0
    assert re.fullmatch(r"(reconstruct: .*/8 images, .*\n)*reconstruct: 8/8 images, .*\n", said.err)
    assert len(said.out.splitlines()) == 8
    assert all(
        re.search(r"\.png: .*\.png  PSNR \d+\.\d\d dB at 16 px$", line) for line in said.out.splitlines()
    )


def test_pictures_of_the_same_name(trained: Path, pictures: Path, tmp_path: Path, command: Command) -> None:
    """Each file of two names that would meet gets names of its own, sheets included."""
    files = []
    for index, name in enumerate(("a/x.png", "b/x.png", "a/X.bmp", "a/x-2.png", "a/x-levels.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        number = index * 3
        with Image.open(pictures / "Blue sky" / f"{number:02d}.png") as picture:
            picture.save(tmp_path / name)
        files.append(tmp_path / name)
    items = json.loads(command("reconstruct", trained, *files, "--out", tmp_path / "out", "--json").out)
    written = [item[key] for item in items for key in ("file", "levels")]
    assert len({name.casefold() for name in written}) == 10 == len(list((tmp_path / "out").glob("*.png")))
    for file, item in zip(files, items, strict=True):
        alone = tmp_path / "alone" / file.parent.name / file.name
        command("reconstruct", trained, file, "--out", alone)
        assert close(Path(item["file"]), alone / f"{file.stem}.png")
        assert close(Path(item["levels"]), alone / f"{file.stem}-levels.png")


def test_a_picture_is_never_overwritten_by_its_reconstruction(
    trained: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    folder = Path(shutil.copytree(pictures / "disc", tmp_path / "disc"))
    before = digests(folder)
    for arguments in ([folder], [folder / "01.png"]):
        said = command("reconstruct", trained, *arguments, "--out", folder, "--json")
        assert said.code == 0
        after = digests(folder)
        assert {name: after.get(name) for name in before} == before
    (item,) = json.loads(said.out)
    assert Path(item["file"]).is_file()
    assert Path(item["file"]) != folder / "01.png"


# --- complete ---


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """White in the lower right: pixels 9.. of the 16 that the run sees, as 160 of a mask of another size."""
    values = np.zeros((160, 160), np.uint8)
    values[90:, 90:] = 255
    Image.fromarray(values).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def completions(command: Command, *arguments: object) -> Any:
    """The result of `complete` as JSON."""
    said = command("complete", *arguments, "--json")
    assert said.code == 0, said.err
    return json.loads(said.out)


def test_complete_leaves_pictures_a_sheet_and_a_list(
    trained: Path, pictures: Path, mask: Path, tmp_path: Path, command: Command
) -> None:
    out, source = tmp_path / "new" / "out", pictures / "disc" / "01.png"
    how = ["--n", 3, "--seed", 3, "--passes", 2, "--label", "disc", "--top-p", 0.9]
    value = completions(command, trained, source, "--mask", mask, "--out", out, *how)
    assert value.pop("seconds") > 0
    assert value == json.loads((out / "completions.json").read_text())
    names = [f"00{number}.png" for number in range(3)]
    assert sorted(file.name for file in out.iterdir()) == sorted([*names, "sheet.png", "completions.json"])
    assert (value["image"], value["mask"], value["keep_levels"]) == (str(source), str(mask), None)
    assert (value["n"], value["seed"], value["passes"], value["top_p"], value["paste"]) == (
        3,
        3,
        2,
        0.9,
        True,
    )
    assert value["redrawn"] == [1 / 4, 1 / 4]  # from pixel 9 on, so from cell 1 of 2 and from cell 2 of 4
    assert [entry["file"] for entry in value["completions"]] == names
    assert {(entry["label"], entry["class"]) for entry in value["completions"]} == {(1, "disc")}
    bits = np.array([entry["bits"] for entry in value["completions"]])
    assert bits.shape == (3, 2, 2)
    assert np.allclose(bits.mean(0), value["bits"])
    own = np.array([entry["kept_bits"] for entry in value["completions"]])
    assert np.allclose(own.mean(0), value["kept_bits"])
    assert ((own > 0) & (own < bits)).all()
    assert len(value["accepted"]) == 1
    sheet, zoom = pixels(out / "sheet.png"), 8
    tiles = [sheet[2 : 2 + 16 * zoom : zoom, left : left + 16 * zoom : zoom] for left in range(2, 650, 130)]
    for tile, name in zip(tiles[2:], names, strict=True):
        assert np.array_equal(tile, pixels(out / name))
        assert np.array_equal(tile[:9], tiles[0][:9]), "the picture's own pixels outside the mask"
        assert np.array_equal(tile[:, :9], tiles[0][:, :9])
    assert np.array_equal(tiles[1][:9], tiles[0][:9])
    assert np.ptp(tiles[1][9:, 9:], axis=(0, 1)).max() == 0, "one colour inside"


def test_complete_without_pasting(
    trained: Path, pictures: Path, mask: Path, tmp_path: Path, command: Command
) -> None:
    """All is the decoder's; with nothing to fill in, which the command refuses, it is the reconstruction."""
    source = pictures / "disc" / "01.png"
    request = ["--mask", mask, "--n", 1]
    completions(command, trained, source, *request, "--no-paste", "--out", tmp_path / "a")
    completions(command, trained, source, *request, "--out", tmp_path / "b")
    assert not close(tmp_path / "a" / "000.png", tmp_path / "b" / "000.png")
    run = load(trained, "cpu")
    (image,) = run.load_images([source])
    kept = run.keep(image, torch.zeros(16, 16, dtype=torch.bool))
    (part,) = run.complete(kept, 1)
    assert torch.allclose(part.decoded, run.reconstruct(image[None]).to(part.decoded), atol=1e-5)
    assert torch.equal(part.images[0], image)


def test_variations_keep_the_coarse_level(
    trained: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    value = completions(
        command,
        trained,
        pictures / "disc" / "01.png",
        "--keep-levels",
        1,
        "--out",
        tmp_path / "out",
        "--n",
        12,
    )
    assert value["redrawn"] == [0, 1]
    assert (value["mask"], value["keep_levels"]) == (None, 1)
    assert pixels(tmp_path / "out" / "sheet.png").shape == (2 * 130 + 2, 10 * 130 + 2, 3)


def test_a_full_mask_is_sampling(trained: Path, pictures: Path, tmp_path: Path, command: Command) -> None:
    Image.new("L", (3, 3), 255).save(tmp_path / "white.png")
    how = ["--n", 4, "--seed", 5, "--label", "stripes", "--out"]
    command("sample", trained, *how, tmp_path / "a")
    command(
        "complete",
        trained,
        pictures / "disc" / "01.png",
        "--mask",
        tmp_path / "white.png",
        *how,
        tmp_path / "b",
    )
    assert all(close(tmp_path / "a" / f"0000{i}.png", tmp_path / "b" / f"00{i}.png") for i in range(4))


def test_complete_says_what_it_did(
    trained: Path, pictures: Path, mask: Path, tmp_path: Path, command: Command
) -> None:
    how = ["--mask", mask, "--n", 2, "--passes", 3, "--out", tmp_path / "out"]
    said = command("complete", trained, pictures / "disc" / "01.png", *how)
    first, *passes = said.out.splitlines()
    assert re.fullmatch(
        r"2 completions in [\d.]+ s; 25% of level 0 redrawn, 25% of level 1 redrawn: .*sheet\.png", first
    )
    assert [re.sub(r"[\d.]+ \+ [\d.]+|\d+%", "X", line) for line in passes] == [
        "pass 1: X bits, X of them of what is kept",
        "pass 2: X bits, X of them of what is kept, X of the moves accepted",
        "pass 3: X bits, X of them of what is kept, X of the moves accepted",
    ]


def test_a_picture_is_never_overwritten_by_its_completion(
    trained: Path, pictures: Path, mask: Path, tmp_path: Path, command: Command
) -> None:
    source = Path(shutil.copy(pictures / "disc" / "01.png", tmp_path / "001.png"))
    before = digests(tmp_path)
    how = ["complete", trained, source, "--mask", mask, "--out", tmp_path]
    said = command(*how, "--n", 2)
    assert (said.code, said.err) == (2, f"vqvae2: {source} would be overwritten; choose another --out\n")
    assert digests(tmp_path) == before
    assert command(*how, "--n", 1).code == 0
    assert digests(tmp_path).items() >= before.items()


# --- score ---


@pytest.fixture
def known(run: Path) -> Path:
    """A run with twenty held-out pictures in its code store."""
    split = np.load(run / "codes" / "split.npy")
    split[:20] = 1
    np.save(run / "codes" / "split.npy", split)
    manifest = json.loads((run / "codes" / "manifest.json").read_text())
    manifest["checksums"]["split.npy"] = hashlib.sha256(split.tobytes()).hexdigest()
    (run / "codes" / "manifest.json").write_text(json.dumps(manifest))
    return run


def test_score_puts_the_least_typical_first(
    known: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    said = command("score", known, pictures, "--out", tmp_path / "new" / "scores.json", "--json")
    assert said.code == 0
    assert said.err.splitlines()[-1].startswith("score: 24/24 images")
    value = json.loads(said.out)
    assert value == json.loads((tmp_path / "new" / "scores.json").read_text())
    items = value["pictures"]
    assert sorted(item["source"] for item in items) == sorted(map(str, pictures.rglob("*.png")))
    assert items == sorted(items, key=lambda item: (item["typicality"], -item["score"]))
    share = [item["typicality"] for item in items]
    assert all(
        0 < part <= 1 and item["unlike"] == (part <= 0.05) for part, item in zip(share, items, strict=True)
    )
    for item in items:
        assert np.allclose(np.array(item["bits"]) / (3 * 16 * 16), item["bits_per_dimension"])
    assert 20 <= value["heldout"] <= 22
    lines = command("score", known, pictures).out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [item["source"] for item in items]
    pattern = (
        r".*\.png: [\d.]+ \+ [\d.]+ bits, [\d.]+ per dimension, score [\d.]+, typicality [\d.]+%(  unlike)?"
    )
    assert all(re.fullmatch(pattern, line) for line in lines)


def test_score_of_a_class(trained: Path, pictures: Path, command: Command) -> None:
    source = pictures / "disc" / "01.png"
    plain, own = (
        json.loads(command("score", trained, source, *label, "--json").out)
        for label in ([], ["--label", "disc"])
    )
    assert (plain["label"], own["label"]) == (None, "disc")
    assert plain["pictures"][0]["bits"] != own["pictures"][0]["bits"]


def test_score_without_held_out_codes(known: Path, pictures: Path, command: Command) -> None:
    """As for a model of the package: the bits alone, in the order given, and it says so."""
    run, before = known, json.loads(command("score", known, pictures, "--json").out)["pictures"]
    shutil.rmtree(run / "codes")
    said = command("score", run, pictures, "--json")
    assert said.code == 0
    text = "bits only, in the order of the command: typicality needs the codes of 19 held-out images, and"
    assert said.err.endswith(f"{text} {run} holds fewer\n")
    value = json.loads(said.out)
    assert value["heldout"] is None
    assert [item["source"] for item in value["pictures"]] == [*map(str, sorted(pictures.rglob("*.png")))]
    bits = {item["source"]: item["bits"] for item in before}
    assert all(np.allclose(item["bits"], bits[item["source"]]) for item in value["pictures"])
    assert all(set(item) == {"source", "bits", "bits_per_dimension"} for item in value["pictures"])


# --- inspect, presets ---


def test_inspect_a_run(trained: Path, half: Path, command: Command) -> None:
    value = json.loads(command("inspect", trained, "--json").out)
    assert value["geometry"]["level 1"] == "4x4 grid, 16 codes"
    assert set(value["done"].values()) == {"yes"}
    said = command("inspect", trained)
    assert (said.code, said.err) == (0, "")
    for title, rows in value.items():
        assert title in said.out
        for key, item in rows.items():
            text = f"{item:,}" if type(item) is int else str(item)
            assert re.search(rf"{re.escape(key)} +│ {re.escape(text)} ", said.out), (title, key)
    assert json.loads(command("inspect", half, "--json").out)["done"]["prior level 1"] == "no"


def test_inspect_a_preset(command: Command) -> None:
    value = json.loads(command("inspect", "--preset", "tiny", "--json").out)
    assert "done" not in value
    assert value["parameters"]["autoencoder"] > 0
    assert "4x4 grid" in command("inspect", "--preset", "tiny").out


def test_presets_are_listed_with_their_sizes(command: Command) -> None:
    said = command("presets")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert [line.split()[0] for line in lines] == list(presets())
    for line, name in zip(lines, presets(), strict=True):
        config = preset(name)
        assert f" {config.data.size} px" in line
        assert str(config.train_autoencoder.steps) in line
        assert all(f"{h}x{w}" in line for h, w in config.geometry.grids)


@pytest.mark.parametrize("verb", ["train", "sample", "reconstruct", "complete", "score", "inspect"])
def test_json_is_all_there_is_on_standard_output(
    verb: str, run: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    """Also when something is really done: the rest goes to standard error."""
    if verb == "train":
        shutil.rmtree(run / "prior" / "level-1")
    arguments = {
        "train": [pictures, "--run", run],
        "sample": [run, "--out", tmp_path / "o", "--n", 1],
        "reconstruct": [run, pictures / "disc" / "01.png", "--out", tmp_path / "o"],
        "complete": [run, pictures / "disc" / "01.png", "--keep-levels", 1, "--out", tmp_path / "o"],
        "score": [run, pictures / "disc" / "01.png"],
        "inspect": [run],
    }
    said = command(verb, *arguments[verb], "--json")
    assert said.code == 0
    json.loads(said.out)
    assert said.out.startswith(("{", "["))
    assert said.out == json.dumps(json.loads(said.out), indent=1) + "\n"
