"""The chained pipeline: every stage in one folder, resumable between any two steps, and true to its settings."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from train_helpers import CLASSES, TRAIN, Killed, Spoken, changed, go, pictures, signal_at, tiny

from vqvae2.autoencoder.codebook_usage import codebook_usage, stored_usage
from vqvae2.codes import Codes
from vqvae2.config.models import Config, ConfigError, parse
from vqvae2.config.overrides import override
from vqvae2.config.training import PriorTrainConfig
from vqvae2.data.grid import grid
from vqvae2.data.images import ImageSet, open_images
from vqvae2.data.pixels import to_float
from vqvae2.data.store import open_store
from vqvae2.errors import UserError
from vqvae2.files import atomic, tensor_file
from vqvae2.files.atomic import FileError, read_json
from vqvae2.files.progress import Reporter
from vqvae2.files.run_folder import RunError, RunFolder
from vqvae2.files.tensor_file import load_tensors
from vqvae2.run import load
from vqvae2.train import pipeline, remarks
from vqvae2.train.device import make_accelerator
from vqvae2.train.folder import (
    Redo,
    claim,
    finished,
    load_autoencoder,
    load_prior,
    model_file,
    read_run,
    samples_file,
    settle,
    sharp_autoencoder,
    write_config,
)
from vqvae2.train.level_samples import draw_level
from vqvae2.train.loop import Interrupted
from vqvae2.train.pipeline import train
from vqvae2.train.state import read_metrics


@pytest.fixture(scope="module")
def config() -> Config:
    """Two levels, sharpened; the finer prior's settings differ from the coarser's, and copies are augmented."""
    sharpen = {**TRAIN, "average": 0.5, "begin": 0, "width": 4, "depth": 2}
    config = tiny(data={"shift": 1, "flip": True}, train={"average": 0.5}, sharpen=sharpen)
    priors = [settings.model_dump() | {"copies": 2} for settings in config.train_prior]
    return changed(config, train_prior=priors)


@pytest.fixture(scope="module")
def whole(data: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all stages without an interruption; read only."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    lines = go(data, folder, config)
    (folder / "said.json").write_text(json.dumps(lines))
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A copy of that run to work on."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def ask(folder: Path, data: Path, config: Config) -> Config:
    """`claim`, settled."""
    claimed = claim(folder, str(data), config, "vqvae2 train again", make_accelerator())
    settle(folder, claimed, make_accelerator())
    return claimed.config


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and bytes of every file."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def content(folder: Path) -> dict[str, Any]:
    """What every file says: bytes, where the order of keys is not free, without the time it all took."""
    found: dict[str, Any] = {}
    for name, (_, data) in snapshot(folder).items():
        if name.endswith(".jsonl"):
            found[name] = [json.loads(line) for line in data.decode().splitlines()]
        elif name.endswith("config.json"):
            found[name] = json.loads(data)
            del found[name]["outcome"]["seconds"]
        elif name.endswith("state.safetensors"):
            continue  # for a longer training; compared in test_longer.py
        elif name.endswith(".safetensors"):
            tensors, meta = load_tensors(folder / name)
            found[name] = tensor_file.digest(tensors), meta
        elif name != "said.json":
            found[name] = data
    return found


def only_stage_1(folder: Path) -> Path:
    """Take everything after the autoencoder away."""
    for part in ("codes", "sharpen", "prior"):
        shutil.rmtree(folder / part, ignore_errors=True)
    return folder


# --- all of it ---


def test_every_stage_leaves_its_files(whole: Path, config: Config) -> None:
    names = set(snapshot(whole))
    for part, training in [
        ("autoencoder", config.train_autoencoder),
        ("sharpen", config.sharpen),
        *((f"prior/level-{i}", settings) for i, settings in enumerate(config.train_prior)),
    ]:
        assert {f"{part}/{name}" for name in ("model.safetensors", "config.json", "metrics.jsonl")} <= names
        outcome = read_json(whole / part / "config.json")["outcome"]
        tensors, meta = load_tensors(whole / part / "model.safetensors")
        assert (outcome["step"], meta["step"]) == (training.steps, outcome["best_step"])
        assert all(tensor.isfinite().all() for tensor in tensors.values())
        steps = [line["step"] for line in read_metrics(whole / part / "metrics.jsonl")]
        assert steps == sorted(steps)
        assert steps[-1] == training.steps
    assert not [name for name in names if "checkpoints" in name or name.endswith(".tmp")]
    assert {"config.yaml", "codes/manifest.json", "codes/level-0.npy", "codes/level-1.npy"} <= names
    assert finished(whole, config)


def test_pictures_exist_and_open(whole: Path) -> None:
    """Originals above reconstructions, and maps of the NLL, at every evaluation; 64 samples of every level."""
    shown = sorted(path.name for path in (whole / "autoencoder" / "pictures").iterdir())
    assert shown == ["step-0000003.png", "step-0000006.png"]
    for path in whole.glob("autoencoder/pictures/*.png"):
        with Image.open(path) as picture:
            assert picture.convert("RGB").height == 2 + 2 * 18
    for level in (0, 1):
        with Image.open(whole / "prior" / f"level-{level}" / "samples.png") as picture:
            picture.load()
            assert picture.size == (2 + 8 * 18, 2 + 8 * 18)
        maps = whole / "prior" / f"level-{level}" / "pictures"
        assert sorted(path.name for path in maps.iterdir()) == shown
        for path in maps.iterdir():
            with Image.open(path) as picture:
                assert picture.width == 2 + 4 * 130


def test_the_record_of_the_run(whole: Path, data: Path, config: Config) -> None:
    record, settings = read_run(whole)
    assert record["source"] == str(data)
    assert record["command"] == "vqvae2 train"
    assert record["classes"] == list(CLASSES)
    assert len(record["fingerprint"]) == 64
    assert settings == changed(config, prior={"classes": 2})


def test_the_published_weights_are_the_best_not_the_last(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three good steps of the priors, then three at a rate that spoils them for certain."""
    monkeypatch.setattr(
        "vqvae2.train.loop.learning_rate",
        lambda config, step, _=0.0: 3.0 if isinstance(config, PriorTrainConfig) and step >= 3 else 1e-3,
    )
    config = tiny(train={"evaluate_every": 1, "steps": 6})
    go(data, tmp_path / "run", config)
    for level in (0, 1):
        part = tmp_path / "run" / "prior" / f"level-{level}"
        lines = [line for line in read_metrics(part / "metrics.jsonl") if "heldout_nats" in line]
        best = min(lines, key=lambda line: line["heldout_nats"])
        _, meta = load_tensors(part / "model.safetensors")
        assert meta["step"] == best["step"] < 6
        assert meta["figures"]["heldout_nats"] == best["heldout_nats"] < lines[-1]["heldout_nats"]
        store = open_store(tmp_path / "run" / "codes")
        prior = load_prior(tmp_path / "run", read_run(tmp_path / "run")[1], "cpu")
        held = store.codes(store.heldout)
        nats = -prior.log_prob(held, torch.from_numpy(store.labels[store.heldout]))[:, level].detach()
        size = held.levels[level][0].numel()
        assert float(nats.mean()) / size == pytest.approx(best["heldout_nats"], rel=1e-4)


def test_the_codes_are_what_the_published_autoencoder_makes(whole: Path, data: Path, config: Config) -> None:
    """Held-out pictures once, the training ones as they are and once augmented, labels along."""
    images = open_images(str(data), config.data, whole / "data", say=lambda _: None)
    store = open_store(whole / "codes")
    autoencoder, digest = load_autoencoder(whole, config, "cpu")
    assert store.digest == digest
    order = [*images.heldout, *images.train, *images.train]
    assert len(store) == len(order)
    assert images.labels is not None
    assert store.labels.tolist() == images.labels[order].tolist()
    assert store.split.tolist() == [1] * len(images.heldout) + [0] * 2 * len(images.train)
    plain = len(images.heldout) + len(images.train)
    codes = autoencoder.encode(to_float(images.pixels(order[:plain])))
    for found, expected in zip(store.codes(range(plain)).levels, codes.levels, strict=True):
        assert torch.equal(found, expected)
    first = store.codes(range(len(images.heldout), plain)).levels[1]
    again = store.codes(range(plain, len(order))).levels[1]
    assert not torch.equal(first, again), "the second copy is shifted and mirrored"


def test_stage_1_begins_with_the_weights_of_another_run(tmp_path: Path, data: Path) -> None:
    """Of pictures of another size: after a step of learning rate next to nothing they are still the same."""
    config = tiny(train={"lr": 1e-12, "warmup": 0}, autoencoder={"decay": 0.999999, "revive": False})
    train(str(data), tmp_path / "first", config, reporter=Spoken(), until="autoencoder")
    begin = {"start": str(tmp_path / "first"), "steps": 1}
    more = changed(config, data={"size": 32}, train_autoencoder=begin, seed=5)
    train(str(data), tmp_path / "second", more, reporter=Spoken(), until="autoencoder")
    first, second = (load_tensors(model_file(tmp_path / name))[0] for name in ("first", "second"))
    for name in first:
        if not name.endswith(("ema_count", "ema_sum", "counter", "distortion")):
            assert torch.allclose(first[name], second[name], atol=0.02), name  # codes move a little
    other = changed(config, train_autoencoder=begin, autoencoder={"hidden": 16})
    for wrong, told in (
        (other, "first"),
        (changed(config, train_autoencoder=begin, autoencoder={"decay": 0.9}), "autoencoder.decay 0.999999"),
        (changed(config, train_autoencoder={"start": "nowhere"}), "no run nowhere"),
    ):
        with pytest.raises(UserError, match=told):
            train("no pictures either", tmp_path / "third", wrong, reporter=Spoken())


def test_the_place_of_a_start_is_recorded_in_full(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative one that is recorded is thus no path; the same command fits the run later too, when the start is gone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clients" / "before").mkdir(parents=True)
    new, old, hub = (changed(tiny(), train_autoencoder={"start": start}) for start in
                     (str(tmp_path / "clients" / "before"), "clients/before", "owner/name"))  # fmt: skip
    assert ask(tmp_path / "run", data, old) == new == read_run(tmp_path / "run")[1]
    assert ask(tmp_path / "hub", data, hub) == hub
    (tmp_path / "run" / "autoencoder").mkdir()
    model_file(tmp_path / "run").touch()
    (tmp_path / "clients" / "before").rmdir()
    assert ask(tmp_path / "run", data, old) == new
    with pytest.raises(RunError, match="trained with other settings"):
        ask(tmp_path / "run", data, hub)
    settings = tmp_path / "run" / "config.yaml"  # of an earlier version
    settings.write_text(settings.read_text().replace(f"{tmp_path}/clients/before", "clients/before"))
    (tmp_path / "clients" / "before").mkdir()
    assert ask(tmp_path / "run", data, old) == old == read_run(tmp_path / "run")[1]


def test_priors_that_are_not_conditional_know_no_class(tmp_path: Path, data: Path) -> None:
    """Though the pictures have classes: the same priors as of pictures without, and sampling takes no label."""
    config = changed(tiny(), prior={"conditional": False})
    folder = tmp_path / "run"
    train(str(data), folder, config, reporter=Spoken())
    run = load(folder, "cpu")
    assert run.classes == ()
    assert run.prior.classes == 0
    assert all(level.label is None for level in run.prior.levels)
    assert run.sample(2).shape == (2, 3, 16, 16)
    with pytest.raises(UserError, match="no classes"):
        run.sample(2, labels="cats")


def test_without_classes_it_does_not_matter_whether_a_run_is_conditional(tmp_path: Path) -> None:
    """A preset that became unconditional goes on with the runs that it began before, if their data have no classes."""
    root, folder = pictures(tmp_path / "pictures"), tmp_path / "run"
    config = tiny(1, train={"steps": 2})
    go(root, folder, config)
    later = changed(config, prior={"conditional": False})
    assert go(root, folder, later) == [f"{folder}: all is done; nothing to train"]
    assert read_run(folder)[1] == config
    shutil.rmtree(folder / "prior")  # no prior has begun: what is asked for counts
    assert ask(folder, root, later) == later


def test_with_classes_a_run_stays_conditional_or_not(copied: Path, data: Path, config: Config) -> None:
    with pytest.raises(RunError, match=r"prior\.conditional: True -> False"):
        ask(copied, data, changed(config, prior={"conditional": False}))
    record, old = read_run(copied)
    plain = changed(old, prior={"conditional": False, "classes": 0})
    write_config(copied, record | {"classes": [], "class_counts": []}, plain)
    with pytest.raises(RunError, match=r"prior\.conditional: False -> True"):
        ask(copied, data, config)


@pytest.mark.parametrize(("levels", "channels"), [(1, 1), (1, 4), (3, 1), (3, 4)])
def test_other_shapes_without_classes(levels: int, channels: int, tmp_path: Path) -> None:
    config = tiny(levels, channels, train={"steps": 2})
    root = pictures(tmp_path / "pictures", channels=channels)
    said = go(root, tmp_path / "run", config)
    assert any("no classes" in line for line in said)
    settings = read_run(tmp_path / "run")[1]
    assert settings == config
    prior = load_prior(tmp_path / "run", settings, "cpu")
    drawn = prior.sample(2)
    autoencoder, _ = load_autoencoder(tmp_path / "run", settings, "cpu")
    assert autoencoder.decode(drawn).shape == (2, channels, 16, 16)
    for level in range(levels):
        with Image.open(tmp_path / "run" / "prior" / f"level-{level}" / "samples.png") as picture:
            picture.load()
            assert picture.mode == {1: "RGB", 4: "RGBA"}[channels]
    assert go(root, tmp_path / "run", config) == [f"{tmp_path / 'run'}: all is done; nothing to train"]


def test_a_transformer_learns_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of one colour each: what is known of the first codes says what the others are."""
    data = tmp_path / "pictures"
    data.mkdir()
    for number in range(40):
        colour = np.random.default_rng(number).integers(0, 256, 3)
        Image.new("RGB", (16, 16), tuple(map(int, colour))).save(data / f"{number:03d}.png")
    config = tiny(1, train={"steps": 60, "evaluate_every": 30, "lr": 1e-2})
    level = config.prior.levels[0].model_dump() | {"kind": "transformer", "layers": 2}
    config = changed(config, prior={"levels": [level]})
    go(data, tmp_path / "run", config)
    _, meta = load_tensors(model_file(tmp_path / "run", 0))
    assert meta["figures"]["heldout_bits"] < 0.5 * meta["figures"]["uniform_bits"]
    assert stored_usage(open_store(tmp_path / "run" / "codes"))[0].perplexity > 2
    prior = load_prior(tmp_path / "run", config, "cpu")
    together, alone = prior.sample(5, seed=3), Codes.cat([prior.sample([i], seed=3) for i in range(5)])
    assert torch.equal(together.levels[0], alone.levels[0])
    usual = pipeline.PriorObjective

    def make(*arguments: Any) -> Any:
        objective = usual(*arguments)
        signal_at(objective, {41}, signal.SIGTERM)
        return objective

    monkeypatch.setattr(pipeline, "PriorObjective", make)
    with pytest.raises(Interrupted, match="saved at step 41 of 60"):
        go(data, tmp_path / "again", config)
    monkeypatch.setattr(pipeline, "PriorObjective", usual)
    go(data, tmp_path / "again", config)
    assert content(tmp_path / "again") == content(tmp_path / "run")


def test_again_there_is_nothing_to_train(copied: Path, data: Path, config: Config) -> None:
    """No file is touched; the pictures are not even looked at."""
    before = snapshot(copied)
    assert go(data, copied, config) == [f"{copied}: all is done; nothing to train"]
    assert snapshot(copied) == before


def test_a_run_is_a_function_of_its_settings(whole: Path, data: Path, config: Config, tmp_path: Path) -> None:
    torch.manual_seed(99)
    go(data, tmp_path / "run", config)
    assert content(tmp_path / "run") == content(whole)


def test_the_precision_of_the_run(data: Path, tmp_path: Path) -> None:
    """All stages in bfloat16, then nothing to do in float32: the run is the same one."""
    config = tiny(1, train={"steps": 2}, precision="bf16")
    go(data, tmp_path / "run", config)
    for part in ("autoencoder", "prior/level-0"):
        tensors, meta = load_tensors(tmp_path / "run" / part / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} <= {torch.float32, torch.int64}
        assert all(np.isfinite(value) for value in meta["figures"].values())
    exact = changed(config, precision="no")
    assert go(data, tmp_path / "run", exact) == [f"{tmp_path / 'run'}: all is done; nothing to train"]
    float32, _ = load_tensors(tmp_path / "run" / "autoencoder" / "model.safetensors")
    go(data, tmp_path / "exact", exact)
    tensors, _ = load_tensors(tmp_path / "exact" / "autoencoder" / "model.safetensors")
    assert not torch.equal(tensors["decoder.0.weight"], float32["decoder.0.weight"]), "it makes a difference"


# --- killed and resumed ---

PLACES = {  # function of the pipeline, which of its calls, whether the process ends before or after it
    "after the claim": ("_open", 1, "before"),
    "after the pictures": ("_open", 1, "after"),
    "before stage 1": ("_stage1", 1, "before"),
    "after stage 1": ("_stage1", 1, "after"),
    "in the extraction": ("_extract_some", 1, "before"),
    "after the codes": ("_codes", 1, "after"),
    "before the sharpening": ("_sharpen", 1, "before"),
    "after the sharpening": ("_sharpen", 1, "after"),
    "after level 0": ("_stage2", 1, "after"),
    "after its samples": ("draw_level", 1, "after"),
    "after level 1": ("_stage2", 2, "after"),
    "in the last samples": ("draw_level", 2, "before"),
}


@pytest.mark.parametrize("place", PLACES)
def test_killed_between_two_stages_and_resumed(
    place: str, whole: Path, data: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, number, side = PLACES[place]
    calls = 0
    owner, name = (ImageSet, "raw") if name == "_extract_some" else (pipeline, name)
    usual = getattr(owner, name)

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        if owner is ImageSet and not model_file(tmp_path / "run").exists():
            return usual(*arguments, **options)
        calls += 1
        if calls < number:
            return usual(*arguments, **options)
        if side == "after":
            usual(*arguments, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(Killed):
            go(data, tmp_path / "run", config)
    assert not finished(tmp_path / "run", config)
    said = go(data, tmp_path / "run", config)
    assert content(tmp_path / "run") == content(whole)
    trained = [line.split(":")[0] for line in said if "is the best of" in line or "are kept" in line]
    stages = ["autoencoder", "sharpen", "prior level 0", "prior level 1"]
    todo = {
        "after the sharpening": 2, "after level 0": 1, "after its samples": 1, "after level 1": 0, "in the last samples": 0,
    } | dict.fromkeys(("after stage 1", "in the extraction", "after the codes", "before the sharpening"), 3)  # fmt: skip
    assert trained == stages[len(stages) - todo.get(place, 4) :]
    assert finished(tmp_path / "run", config)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("stage", ["autoencoder", "sharpen", "prior/level-1"])
def test_killed_while_publishing(
    stage: str, file: str, whole: Path, data: Path, config: Config, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The training is over and its state saved; one of the two files is there when the process ends."""
    usual = Path.replace
    target = tmp_path / "run" / stage / file

    def dying(self: Path, to: Path) -> Path:
        moved = usual(self, to)
        if Path(to) == target:
            raise Killed
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            go(data, tmp_path / "run", config)
    go(data, tmp_path / "run", config)
    assert content(tmp_path / "run") == content(whole)


@pytest.mark.parametrize("name", ["AutoencoderObjective", "SharpenObjective", "PriorObjective"])
def test_interrupted_within_a_stage(
    name: str, whole: Path, data: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C at each of the stage's steps in turn, the last one included."""
    usual = getattr(pipeline, name)
    for step in range(1, 7):

        def make(*arguments: Any, step: int = step) -> Any:
            objective = usual(*arguments)
            signal_at(objective, {step}, signal.SIGTERM)
            return objective

        monkeypatch.setattr(pipeline, name, make)
        with pytest.raises(Interrupted, match=f"saved at step {step} of 6"):
            go(data, tmp_path / "run", config)
    monkeypatch.setattr(pipeline, name, usual)
    go(data, tmp_path / "run", config)
    assert content(tmp_path / "run") == content(whole)


def test_a_missing_sheet_of_samples_is_drawn_again(copied: Path, whole: Path, data: Path, config: Config) -> None:  # fmt: skip
    (copied / "prior" / "level-0" / "samples.png").unlink()
    said = go(data, copied, config)
    assert not any("is the best of" in line for line in said)
    assert content(copied) == content(whole)


def test_a_damaged_model_is_named(copied: Path, data: Path, config: Config) -> None:
    (copied / "prior" / "level-0" / "samples.png").unlink()
    file = model_file(copied)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(FileError, match=r"autoencoder/model\.safetensors is damaged"):
        go(data, copied, config)


# --- the sharpened decoder ---


def test_a_finished_run_can_be_sharpened_later(
    whole: Path, data: Path, config: Config, tmp_path: Path
) -> None:
    """Nothing that was there changes but the record of settings and the samples of all levels, which are of the new decoder.

    They are those of a run that was sharpened at once; a run without sharpening has no such folder.
    """
    plain = changed(config, sharpen={"steps": 0})
    go(data, tmp_path / "run", plain)
    before = snapshot(tmp_path / "run")
    assert finished(tmp_path / "run", plain)
    assert not any(name.startswith("sharpen") for name in before)
    assert not finished(tmp_path / "run", config)
    said = go(data, tmp_path / "run", config)
    assert sum("are kept" in line for line in said) == 1
    after = snapshot(tmp_path / "run")
    sheet = "prior/level-1/samples.png"
    assert {name for name in before if after[name] != before[name]} == {"config.yaml", sheet}
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"sharpen"}
    for name in ("sharpen/model.safetensors", sheet):
        assert content(tmp_path / "run")[name] == content(whole)[name]


def test_a_training_stops_after_the_sharpening(
    whole: Path, data: Path, config: Config, tmp_path: Path
) -> None:
    """Without priors, and the next call makes of it the run that was trained at once; without a sharpening it is refused."""
    run = tmp_path / "run"
    with pytest.raises(RunError, match=r"sharpen\.steps is 0"):
        train(str(data), run, changed(config, sharpen={"steps": 0}), until="sharpen")
    assert not run.exists()
    go(data, run, config, until="sharpen")
    name = "sharpen/model.safetensors"
    assert content(run)[name] == content(whole)[name]
    assert not RunFolder(run).prior(0).path.exists()
    go(data, run, config)
    assert content(run) == content(whole)


def test_priors_that_are_trained_side_by_side(
    whole: Path, data: Path, config: Config, tmp_path: Path
) -> None:
    """Each in a copy of the run that holds the codes; put together they are the run that was trained in order, bit for bit."""
    run, copy = tmp_path / "run", tmp_path / "copy"
    go(data, run, config, until="codes")
    assert RunFolder(run).manifest.exists()
    assert not RunFolder(run).sharpen.path.exists()
    assert not RunFolder(run).prior(0).path.exists()
    shutil.copytree(run, copy)
    for folder, other in ((run, 1), (copy, 0)):
        one = parse(override(config.model_dump(mode="json"), [f"train_prior.{other}.steps=0"]))
        go(data, folder, one)
        assert RunFolder(folder).prior(1 - other).done()
        assert not RunFolder(folder).prior(other).path.exists()
        assert samples_file(folder, 0).exists() == (folder == run)
        assert go(data, folder, one) == [f"{folder}: all is done; nothing to train"]
    shutil.copytree(RunFolder(copy).prior(1).path, RunFolder(run).prior(1).path)
    go(data, run, config)
    assert go(data, run, config) == [f"{run}: all is done; nothing to train"]
    found, expected = content(run), content(whole)
    assert found.keys() == expected.keys()
    records = {
        name for name in found if found[name] != expected[name]
    }  # have the settings with 0 steps of the other level
    assert records <= {"sharpen/config.json", "prior/level-0/config.json", "prior/level-1/config.json"}


def test_the_sharpened_decoder_decodes_the_same_codes(whole: Path, data: Path, config: Config) -> None:
    plain, _ = load_autoencoder(whole, config, "cpu")
    sharp = sharp_autoencoder(whole, config, "cpu")
    images = open_images(str(data), config.data, whole / "data", say=lambda _: None)
    pixels = to_float(images.pixels(images.heldout))
    codes = plain.encode(pixels)
    assert all(map(torch.equal, codes.levels, sharp.encode(pixels).levels))
    assert not torch.equal(plain.decode(codes), sharp.decode(codes))
    learned = {k for k, v in plain.state_dict().items() if not torch.equal(v, sharp.state_dict()[k])}
    assert learned
    assert all(name.startswith("decoder.") or ".to_finest." in name for name in learned)
    assert not sharp.training


def test_samples_of_all_levels_are_drawn_with_the_sharpened_decoder(
    copied: Path, data: Path, config: Config
) -> None:
    sheets = [copied / "prior" / f"level-{level}" / "samples.png" for level in (0, 1)]
    drawn = [sheet.read_bytes() for sheet in sheets]
    for sheet in sheets:
        sheet.unlink()
    shutil.move(copied / "sharpen", copied / "elsewhere")
    go(data, copied, changed(config, sharpen={"steps": 0}))
    assert sheets[0].read_bytes() == drawn[0]
    assert sheets[1].read_bytes() != drawn[1]


def test_a_sharpened_decoder_of_another_autoencoder(copied: Path, config: Config) -> None:
    tensors, meta = load_tensors(model_file(copied))
    tensors["decoder.0.bias"] += 1
    tensor_file.save_tensors(model_file(copied), tensors, meta)
    with pytest.raises(FileError, match="belongs to another autoencoder"):
        sharp_autoencoder(copied, config, "cpu")
    shutil.rmtree(copied / "sharpen")
    with pytest.raises(FileError, match=r"no weights at .*sharpen/model\.safetensors"):
        sharp_autoencoder(copied, config, "cpu")


def test_patience_of_the_sharpening_is_told_to_be_unused(copied: Path, data: Path, config: Config) -> None:
    shutil.rmtree(copied / "sharpen")
    for patience in (0, 3):
        said = go(data, copied, changed(config, sharpen={"patience": patience, "steps": 6 + patience}))
        assert sum("sharpen.patience is not used" in line for line in said) == bool(patience)


def test_settings_of_the_sharpening_are_kept(copied: Path, data: Path, config: Config) -> None:
    with pytest.raises(RunError, match=r"sharpen\.adversarial: .* -> 9"):
        ask(copied, data, changed(config, sharpen={"adversarial": 9.0}))


# --- what may change, and what may not ---

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"seed": 5}, "seed: 0 -> 5"),
    ({"data": {"size": 24}}, "data.size: 16 -> 24"),
    ({"data": {"flip": False}}, "data.flip: True -> False"),
    ({"data": {"holdout": 0.5}}, "data.holdout: 0.3 -> 0.5"),
    ({"autoencoder": {"codes": [8, 16]}}, r"autoencoder.codes: \[8, 10\] -> \[8, 16\]"),
    ({"train_autoencoder": {"steps": 5}}, "train_autoencoder.steps: 6 -> 5"),
    ({"train_autoencoder": {"minutes": 1}}, "train_autoencoder.minutes: 0.0 -> 1.0"),
]
HELD = {**TRAIN, "average": 0.5, "copies": 2, "code_dropout": 0.2}  # as the priors were trained
FREE: list[dict[str, Any]] = [
    {"data": {"workers": 2}},
    {"data": {"cache_gb": 0.5}},
    {"data": {"streaming": True}},
    {"precision": "bf16"},
    {"compile": True},
    {"train_autoencoder": {"save_minutes": 3}},
    {"sampling": {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "guidance": 2.0}},
    {"train_prior": [{**HELD, "checkpointing": True, "accumulate": 2}] * 2},
]


def prior_patch(config: Config, level: int, **options: Any) -> dict[str, Any]:
    """A change of one level's prior training."""
    return {"train_prior": [s.model_dump() | (options if i == level else {}) for i, s in enumerate(config.train_prior)]}  # fmt: skip


@pytest.mark.parametrize(("patch", "said"), REFUSED)
def test_settings_of_a_trained_stage_are_kept(
    patch: dict[str, Any], said: str, copied: Path, data: Path, config: Config
) -> None:
    only_stage_1(copied)
    before = snapshot(copied)
    with pytest.raises(RunError, match=rf"was trained with other settings \({said}\); use the old") as caught:
        ask(copied, data, changed(config, **patch))
    assert "\n" not in str(caught.value)
    assert snapshot(copied) == before


def test_every_difference_is_shown(copied: Path, data: Path, config: Config) -> None:
    patch = {"seed": 5, "data": {"shift": 2, "workers": 3}}
    with pytest.raises(RunError, match=r"\(seed: 0 -> 5; data\.shift: 1 -> 2\)"):
        ask(copied, Path("elsewhere"), changed(config, **patch))


@pytest.mark.parametrize("patch", FREE)
def test_free_settings_may_always_change(
    patch: dict[str, Any], copied: Path, data: Path, config: Config
) -> None:
    wanted = changed(config, **patch)
    claimed = ask(copied, data, wanted)
    assert claimed == changed(wanted, prior={"classes": 2})
    record, settings = read_run(copied)
    assert settings == claimed
    assert record["command"] == "vqvae2 train", "what is trained was asked for then"


def test_settings_of_stages_not_begun_may_change(copied: Path, data: Path, config: Config) -> None:
    shutil.rmtree(copied / "prior" / "level-1")
    level = config.prior.levels[1].model_dump()
    wanted = changed(
        config,
        prior={"levels": [config.prior.levels[0].model_dump(), level | {"hidden": 12}]},
        **prior_patch(config, 1, steps=4),
    )
    assert ask(copied, data, wanted) == changed(wanted, prior={"classes": 2})
    assert read_run(copied)[0]["command"] == "vqvae2 train again"
    go(data, copied, wanted)
    assert read_json(copied / "prior" / "level-1" / "config.json")["outcome"]["step"] == 4
    with pytest.raises(RunError, match=r"\(train_prior\.0\.lr: 0\.003 -> 0\.1\)"):
        ask(copied, data, changed(wanted, **prior_patch(wanted, 0, lr=0.1)))
    with pytest.raises(RunError, match=r"\(prior\.levels\.1\.hidden: 12 -> 8\)"):
        ask(copied, data, config)


def test_before_anything_is_trained_all_may_change(data: Path, config: Config, tmp_path: Path) -> None:
    """Number of levels and data included."""
    ask(tmp_path / "run", data, config)
    other = tiny(3, seed=4)
    assert ask(tmp_path / "run", Path("elsewhere"), other) == other
    record, settings = read_run(tmp_path / "run")
    assert (record["source"], record["command"], settings) == ("elsewhere", "vqvae2 train again", other)


def test_paths_in_the_settings_of_the_data_hold_from_any_folder(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    claimed = ask(tmp_path / "run", tmp_path, changed(config, data={"image_root": "in", "labels": "a.csv"}))
    assert (claimed.data.image_root, claimed.data.labels) == (str(tmp_path / "in"), str(tmp_path / "a.csv"))
    assert ask(tmp_path / "run", tmp_path, config).data.image_root is None


def test_a_begun_stage_counts_as_trained(
    data: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state is saved, its model not yet there."""
    usual = pipeline.AutoencoderObjective

    def make(*arguments: Any) -> Any:
        objective = usual(*arguments)
        signal_at(objective, {2})
        return objective

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "AutoencoderObjective", make)
        with pytest.raises(Interrupted):
            go(data, tmp_path / "run", config)
    with pytest.raises(RunError, match=r"train_autoencoder\.average: 0\.5 -> 0\.1"):
        ask(tmp_path / "run", data, changed(config, train_autoencoder={"average": 0.1}))
    ask(tmp_path / "run", data, changed(config, **prior_patch(config, 0, lr=0.1)))


def test_a_rate_may_change_until_its_stage_is_done(
    data: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a divergence the last good state goes on with it, and config.yaml says so; of a finished stage it is refused."""
    usual, rates = pipeline.AutoencoderObjective, {"lr": 1e-4, "warmup": 5, "clip": 0.5}

    def make(*arguments: Any) -> Any:
        objective = usual(*arguments)
        signal_at(objective, {2})
        return objective

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "AutoencoderObjective", make)
        with pytest.raises(Interrupted):
            go(data, tmp_path / "run", config)
    smaller = changed(config, train_autoencoder=rates)
    train(str(data), tmp_path / "run", smaller, reporter=Spoken(), until="autoencoder")
    assert read_run(tmp_path / "run")[1].train_autoencoder == smaller.train_autoencoder
    lines = read_metrics(tmp_path / "run" / "autoencoder" / "metrics.jsonl")
    later = [line["lr"] for line in lines if line["step"] > 2 and "lr" in line]
    assert later[0] == pytest.approx(1e-4 * 3 / 5)
    with pytest.raises(RunError, match=r"train_autoencoder\.lr: 0\.0001 -> 0\.003"):
        ask(tmp_path / "run", data, config)


def test_copies_may_change_until_a_prior_is_begun(copied: Path, data: Path, config: Config) -> None:
    """All levels share the codes; a store with another number of copies is made anew."""
    shutil.rmtree(copied / "prior")
    images = open_images(str(data), config.data, copied / "data", say=lambda _: None)
    wanted = changed(config, **prior_patch(config, 1, copies=3))
    go(data, copied, wanted)
    assert len(open_store(copied / "codes")) == len(images.heldout) + 3 * len(images.train)
    shutil.rmtree(copied / "prior" / "level-1")
    with pytest.raises(RunError, match=r"train_prior\.1\.copies: 3 -> 2"):
        ask(copied, data, config)


def test_copies_of_the_codes_change_for_all_priors_at_once(copied: Path, data: Path, config: Config) -> None:
    """A prior that is kept was trained on the codes as they are."""
    wanted, before = changed(config, **prior_patch(config, 0, copies=3)), snapshot(copied)
    with pytest.raises(RunError, match=r"train_prior\.0\.copies: 2 -> 3.*of every level that is trained"):
        claim(copied, str(data), wanted, "", make_accelerator(), Redo([0]))
    assert snapshot(copied) == before
    wanted = changed(config, train_prior=[each.model_dump() | {"copies": 3} for each in config.train_prior])
    claimed = claim(copied, str(data), wanted, "", make_accelerator(), Redo([0, 1], Spoken().say))
    assert snapshot(copied) == before
    settle(copied, claimed, make_accelerator())
    assert not (copied / "prior" / "level-0").exists()


# --- the data ---


def test_other_data_is_refused(copied: Path, data: Path, config: Config) -> None:
    before = snapshot(copied)
    with pytest.raises(RunError, match=r"trained on the images in .*pictures, and found others in emoji64"):
        go(Path("emoji64"), copied, config)
    assert snapshot(copied) == before


@pytest.mark.parametrize("case", ["labels", "other images", "more steps", "another prior"])
def test_what_is_refused_leaves_no_trace(
    case: str, copied: Path, data: Path, config: Config, tmp_path: Path
) -> None:
    """Settings that go with images which turn out to be wrong are not written, and the former command goes on as before."""
    labels = tmp_path / "wrong.csv"
    labels.write_text(
        "file_name,label\n"
        + "".join(f"{file.relative_to(data)},one\n" for file in sorted(data.rglob("*.png")))
    )
    level = config.prior.levels[0].model_dump() | {"hidden": 12}
    patch, place, redo = {
        "labels": ({"data": {"labels": str(labels)}}, data, ()),
        "other images": ({"data": {"workers": 1}}, pictures(tmp_path / "others", 12, CLASSES), ()),
        "more steps": ({"train_autoencoder": {"steps": 9}}, tmp_path / "nothing", ()),
        "another prior": ({"prior": {"levels": [level, config.prior.levels[1].model_dump()]}}, tmp_path / "nothing", (0,)),
    }[case]  # fmt: skip
    before = snapshot(copied)
    with pytest.raises(UserError):
        train(str(place), copied, changed(config, **patch), reporter=Spoken(), redo=redo)
    after = snapshot(copied)
    names = [name for name in before if not name.startswith("data/")]
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
    assert go(data, copied, config) == [f"{copied}: all is done; nothing to train"]


def test_changed_data_is_refused(copied: Path, config: Config, data: Path, tmp_path: Path) -> None:
    """A picture was added, or one is another now, since the autoencoder was trained."""
    mine = Path(shutil.copytree(data, tmp_path / "mine"))
    run = tmp_path / "changing"
    go(mine, run, config)
    only_stage_1(run)
    added = mine / "cats" / "new.png"
    shutil.copy(mine / "dogs" / "001.png", added)
    with pytest.raises(RunError, match=r"the images in .*mine changed since .*changing began"):
        go(mine, run, config)
    added.unlink()
    kept = (mine / "cats" / "000.png").read_bytes()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(mine / "cats" / "000.png")
    with pytest.raises(RunError, match="changed since"):
        go(mine, run, config)
    assert not (run / "codes").exists()
    (mine / "cats" / "000.png").write_bytes(kept)
    original = data / "cats" / "000.png"
    os.utime(mine / "cats" / "000.png", ns=(original.stat().st_atime_ns, original.stat().st_mtime_ns))
    go(mine, run, config)
    assert finished(run, config)


@pytest.mark.parametrize(("first", "since"), [(0, 0), (8, 8), (8, 0)])
def test_the_number_of_images_does_not_change_with_the_memory_for_them(
    first: int, since: int, config: Config, data: Path, tmp_path: Path
) -> None:
    """A broken file is left out of decoded images that are kept, and else replaced: the codes were made anew in silence.

    With less memory since then, the images that were kept are used until they are deleted.
    """
    mine, run = Path(shutil.copytree(data, tmp_path / "mine")), tmp_path / "run"
    wanted = {size: changed(config, data={"cache_gb": size}, sharpen={"steps": 0}) for size in (0, 8)}
    (mine / "cats" / "002.png").write_bytes(b"")
    go(mine, run, wanted[first])
    only_stage_1(run)
    if since != first:
        go(mine, run, wanted[since], until="autoencoder")
    shutil.rmtree(run / "data")
    before = snapshot(run)
    use = r"a larger data\.cache_gb as then" if first else r"data\.cache_gb=0 as before"
    with pytest.raises(RunError, match=rf"delete .*run/data, and use {use}"):
        go(mine, run, wanted[8 - first])
    assert {name: (run / name).read_bytes() for name in before} == {
        name: text for name, (_, text) in before.items()
    }
    shutil.rmtree(run / "data")
    go(mine, run, wanted[first])
    assert finished(run, wanted[first])


@pytest.mark.parametrize("broken", ["then", "now"])
def test_another_number_of_images_is_not_blamed_on_a_setting_that_did_not_change(
    broken: str, config: Config, data: Path, tmp_path: Path
) -> None:
    """A file that was damaged or mended where its digest does not look: `data.cache_gb` was blamed, and there was nothing to change."""
    mine, run = Path(shutil.copytree(data, tmp_path / "mine")), tmp_path / "run"
    file = mine / "cats" / "002.png"
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    Image.fromarray(noise).save(file)
    whole = file.read_bytes()
    damaged = whole[:9000] + bytes(1000) + whole[10000:]
    file.write_bytes(damaged if broken == "then" else whole)
    go(mine, run, config, until="autoencoder")
    file.write_bytes(whole if broken == "then" else damaged)
    shutil.rmtree(run / "data")
    with pytest.raises(RunError) as caught:
        go(mine, run, config)
    said, listed = str(caught.value), run / "data" / "skipped.txt"
    assert "cache_gb" not in said
    assert said.endswith(f"delete {run / 'data'}, or use another --run")
    assert (f"mend what {listed} lists" in said) == listed.exists() == (broken == "now")
    file.write_bytes(damaged if broken == "then" else whole)
    shutil.rmtree(run / "data")
    go(mine, run, config, until="autoencoder")


@pytest.mark.parametrize("wrong", ["labels", "steps", "redo"])
def test_refused_images_leave_the_settings(
    wrong: str, copied: Path, data: Path, config: Config, tmp_path: Path
) -> None:
    """Nothing of the command is written, no prior is moved, and the former command goes on."""
    (tmp_path / "wrong.csv").write_text("".join(f"{path.name},x\n" for path in sorted(data.rglob("*.png"))))
    place, redo, wanted = tmp_path / "nowhere", (), config
    if wrong == "labels":
        place, wanted = data, changed(config, data={"labels": str(tmp_path / "wrong.csv")})
    elif wrong == "steps":
        wanted = changed(config, train_autoencoder={"steps": 60})
    else:
        redo, wanted = (0,), changed(config, **prior_patch(config, 0, lr=0.1))
    before = snapshot(copied)
    with pytest.raises(UserError, match="changed since the training" if wrong == "labels" else "nowhere"):
        train(str(place), copied, wanted, reporter=Spoken(), redo=redo)
    assert snapshot(copied) == before
    assert go(data, copied, config) == [f"{copied}: all is done; nothing to train"]


def test_a_file_of_labels_may_move(data: Path, config: Config, tmp_path: Path) -> None:
    """Its content counts."""
    for name in ("here.csv", "there.csv"):
        rows = [f"{path.name},{path.parent.name}" for path in sorted(data.rglob("*.png"))]
        (tmp_path / name).write_text("\n".join(["file,label", *rows]))
        wanted = changed(config, data={"labels": str(tmp_path / name)})
        train(str(data), tmp_path / "run", wanted, reporter=Spoken(), until="autoencoder")
        assert read_run(tmp_path / "run")[1].data.labels == str(tmp_path / name)


def test_data_may_change_before_anything_is_trained(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = pictures(tmp_path / "mine", classes=CLASSES)
    with monkeypatch.context() as patch, pytest.raises(Killed):  # noqa: PT012
        patch.setattr(pipeline, "_stage1", lambda *arguments: (_ for _ in ()).throw(Killed))
        go(mine, tmp_path / "run", config)
    before = read_run(tmp_path / "run")[0]
    pictures(mine, 20, classes=("birds", "cats", "dogs"))
    with monkeypatch.context() as patch, pytest.raises(Killed):  # noqa: PT012
        patch.setattr(pipeline, "_stage1", lambda *arguments: (_ for _ in ()).throw(Killed))
        go(mine, tmp_path / "run", config)
    record, settings = read_run(tmp_path / "run")
    assert record["fingerprint"] != before["fingerprint"]
    assert record["classes"] == ["birds", "cats", "dogs"]
    assert settings.prior.classes == 3


# --- folders that cannot be used ---


def test_a_run_of_a_newer_version(copied: Path, data: Path, config: Config) -> None:
    file = copied / "config.yaml"
    value = yaml.safe_load(file.read_text())
    value["run"] |= {"format": atomic.FORMAT + 1, "version": "99.0"}
    value["a setting of tomorrow"] = 1
    file.write_text(yaml.safe_dump(value))
    before = snapshot(copied)
    with pytest.raises(RunError, match=r"was made by vqvae2 99\.0 \(format 2\).*please upgrade"):
        go(data, copied, config)
    assert snapshot(copied) == before


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_the_place_of_the_folder(below: str, data: Path, config: Config, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match=r"cannot make the folder .*run") as caught:
        go(data, tmp_path / "run" / below, config)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize(
    "text",
    ["", "][", "5", "- a\n- b\n", "run: 3\n", "run: {format: x}\n", "run: {}\ndata: {size: -1}\n", "run: {}\nwho: 1\n"],
)  # fmt: skip
def test_a_damaged_record(text: str, copied: Path, data: Path, config: Config) -> None:
    (copied / "config.yaml").write_text(text)
    before = snapshot(copied)
    with pytest.raises(ConfigError) as caught:
        go(data, copied, config)
    assert "\n" not in str(caught.value)
    assert snapshot(copied) == before


def test_a_record_that_is_no_text(copied: Path, data: Path, config: Config) -> None:
    (copied / "config.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        go(data, copied, config)


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is no run folder: it has no config\.yaml"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("version", "processes", "until", "refused"),
    [
        ("2.7.1", 2, "prior", True),
        ("2.8.0+cu126", 2, "prior", False),
        ("2.7.1", 1, "prior", False),
        ("2.7.1", 2, "autoencoder", False),
    ],
)
def test_a_torch_that_cannot_shard_is_refused_before_images_are_read(
    version: str, processes: int, until: Any, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was refused when the first prior began, hours later; but only where a prior is cut up."""

    def opened(*arguments: Any) -> None:
        raise Killed

    accelerator = SimpleNamespace(num_processes=processes, process_index=0, is_main_process=True)
    monkeypatch.setattr(pipeline, "make_accelerator", lambda precision: accelerator)
    monkeypatch.setattr(pipeline, "_open", opened)
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(RunError if refused else Killed) as caught:
        train("nothing", tmp_path / "run", tiny(shard=True), reporter=Spoken(), until=until)
    assert ("needs torch 2.8" in str(caught.value)) == refused


# --- codes ---


def test_codes_of_another_autoencoder_are_extracted_anew(
    copied: Path, whole: Path, data: Path, config: Config
) -> None:
    """In silence before stage 2, with a word when priors were trained on them."""
    manifest = copied / "codes" / "manifest.json"
    for priors in (True, False):
        if not priors:
            shutil.rmtree(copied / "prior")
        (copied / "prior" / "level-1" / "samples.png").unlink(missing_ok=True)
        manifest.write_text(json.dumps(read_json(manifest) | {"digest": "of another"}))
        level = copied / "codes" / "level-0.npy"
        np.save(level, np.zeros_like(np.load(level)))
        said = go(data, copied, config)
        assert any("extracting anew" in line for line in said) == priors
        assert content(copied) == content(whole)


@pytest.mark.parametrize("damage", ["manifest.json", "level-1.npy", "all"])
def test_a_damaged_store_is_extracted_anew(
    damage: str, copied: Path, whole: Path, data: Path, config: Config
) -> None:
    if damage == "all":
        shutil.rmtree(copied / "codes")
    else:
        (copied / "codes" / damage).write_bytes(b"x")
    (copied / "prior" / "level-1" / "samples.png").unlink()
    go(data, copied, config)
    assert content(copied) == content(whole)


def test_codebook_usage_is_counted_over_the_training_codes(whole: Path) -> None:
    store = open_store(whole / "codes")
    for level, usage in enumerate(stored_usage(store)):
        codes = store.codes(store.train).levels[level].numpy()
        counts = np.bincount(codes.ravel(), minlength=store.geometry.vocabulary[level])
        share = counts[counts > 0] / counts.sum()
        assert usage.used == pytest.approx(len(share) / len(counts))
        assert usage.perplexity == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)


def test_a_collapsed_level_is_reported_before_stage_2(tmp_path: Path) -> None:
    """One colour only: a few codes of 64 are used at the coarse level, and the user is told what to do."""
    root = tmp_path / "flat"
    root.mkdir()
    for number in range(8):
        Image.new("RGB", (16, 16), (200, 30, 40)).save(root / f"{number}.png")
    config = tiny(autoencoder={"codes": [64, 4]})
    said = go(root, tmp_path / "run", config)
    warnings = [i for i, line in enumerate(said) if "collapsed" in line]
    coarse, fine = stored_usage(open_store(tmp_path / "run" / "codes"))
    assert coarse.used < 0.1 <= fine.used
    assert len(warnings) == 1 + (fine.perplexity < 2), said
    line = said[warnings[0]]
    found = f"it uses {coarse.used:.1%} of its codes (perplexity {coarse.perplexity:.1f})"
    assert f"level 0 is collapsed: {found}" in line
    assert "Try fewer codes (--set autoencoder.codes=" in line
    places = [
        i for i, line in enumerate(said) if line.startswith(("autoencoder: step", "prior level 0: step"))
    ]
    assert places[0] < warnings[0] < places[1]


def test_a_level_that_nearly_always_holds_the_same_codes_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a tenth of 512 codes occur, but one of them in 98 % of the positions. Unevenness that large white areas cause is no collapse."""
    counts = torch.ones(512, dtype=torch.int64)
    counts[300:] = 0
    even = [torch.tensor([10, 12]), torch.tensor([9, 10, 11])]  # codebooks of two and three codes
    skewed = [torch.cat([torch.tensor([common]), counts[1:]]) for common in (15_000, 600)]
    for found, warned in zip([*skewed, *even], (True, False, False, False), strict=True):
        usage = codebook_usage(found)
        assert usage.used > 0.5
        monkeypatch.setattr(remarks, "stored_usage", lambda store, usage=usage: [usage])
        reporter = Spoken()
        remarks.say_usage(None, reporter)  # type: ignore[arg-type]
        assert bool(reporter.lines) == warned


def test_a_healthy_level_is_not_reported(whole: Path) -> None:
    said = json.loads((whole / "said.json").read_text())
    assert not any("collapsed" in line for line in said)
    assert any(line.startswith("prior level 1: step") for line in said)


# --- samples ---


def test_samples_of_a_level_replace_finer_ones_by_their_mean_code(whole: Path) -> None:
    """What is drawn as soon as the coarse prior is trained: its codes, decoded without the finer level."""
    settings = read_run(whole)[1]
    decoders = load_autoencoder(whole, settings, "cpu")[0], sharp_autoencoder(whole, settings, "cpu")
    labels = torch.arange(64) % 2
    coarse = load_prior(whole, settings, "cpu", levels=1).sample(64, labels, seed=settings.seed)
    both = load_prior(whole, settings, "cpu").sample(64, labels, seed=settings.seed)
    assert torch.equal(coarse.levels[0], both.levels[0])
    finest = torch.zeros_like(both.levels[1])
    for level, codes in enumerate((Codes((*coarse.levels, finest)), both)):
        expected = np.asarray(grid(decoders[level].decode(codes, level + 1), 8))
        with Image.open(whole / "prior" / f"level-{level}" / "samples.png") as picture:
            assert np.abs(np.asarray(picture).astype(int) - expected).max() <= 1


def test_samples_of_a_level_are_drawn_in_batches(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `sampling.batch`, as all samples are."""
    settings = changed(read_run(copied)[1], sampling={"batch": 24})
    model, digest = load_autoencoder(copied, settings, "cpu")
    sizes, usual = [], model.decode
    monkeypatch.setattr(
        model, "decode", lambda codes, levels: sizes.append(len(codes)) or usual(codes, levels)
    )
    sheet = copied / "prior" / "level-0" / "samples.png"
    with Image.open(sheet) as picture:
        before = np.asarray(picture).astype(int)
    draw_level(copied, settings, model, digest, 0, more=True)
    with Image.open(sheet) as picture:
        assert np.abs(np.asarray(picture) - before).max() <= 1
    assert sizes == [24, 24, 16]


def test_priors_need_their_files(copied: Path) -> None:
    settings = read_run(copied)[1]
    model_file(copied, 1).unlink()
    load_prior(copied, settings, "cpu", levels=1)
    with pytest.raises(FileError, match=r"no weights at .*level-1"):
        load_prior(copied, settings, "cpu")


def test_worker_processes_end_with_the_pictures(
    data: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures are closed after the codes, and when training fails."""
    closed: list[int] = []
    usual = ImageSet.close
    monkeypatch.setattr(ImageSet, "close", lambda self: closed.append(1) or usual(self))
    monkeypatch.setattr(pipeline, "_stage1", lambda *arguments: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        train(str(data), tmp_path / "run", config, reporter=Reporter(quiet=True))
    assert closed == [1]


def test_until_the_autoencoder_and_on(tmp_path: Path, data: Path, config: Config) -> None:
    train(str(data), tmp_path / "halves", config, until="autoencoder", reporter=Reporter(quiet=True))
    assert model_file(tmp_path / "halves").is_file()
    assert not (tmp_path / "halves" / "codes").exists()
    assert not finished(tmp_path / "halves", config)
    train(str(data), tmp_path / "halves", config, reporter=Reporter(quiet=True))
    train(str(data), tmp_path / "whole", config, reporter=Reporter(quiet=True))
    for level in (None, 0, 1):
        a, _ = load_tensors(model_file(tmp_path / "halves", level))
        b, _ = load_tensors(model_file(tmp_path / "whole", level))
        assert all(a[name].equal(b[name]) for name in b)
