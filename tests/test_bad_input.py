"""Mistakes of the user, and a machine that lets them down: one clear line, exit code 2, and nothing is lost."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import yaml
from PIL import Image

from vqvae2.config.overrides import read_yaml
from vqvae2.files import atomic, tensor_file
from vqvae2.run import load
from vqvae2.train.autoencoder import AutoencoderObjective
from vqvae2.train.prior import PriorObjective
from vqvae2.train.state import read_metrics

Command = Callable[..., Any]


class World:
    """What a mistake is made with: a folder to work in, pictures, and a trained run."""

    def __init__(self, folder: Path, pictures: Path, run: Path) -> None:
        self.folder, self.pictures, self.run = folder, pictures, run
        self.out = folder / "out"

    def train(self, data: object = None, *more: object, run: object = None) -> list[object]:
        """`train` with the preset tiny, of the pictures in a new run unless something else is said."""
        run = run or self.folder / "new"
        return ["train", data or self.pictures, "--run", run, "--preset", "tiny", *more]

    def sample(self, *more: object) -> list[object]:
        """`sample` of the trained run."""
        return ["sample", self.run, "--out", self.out, "--n", 2, *more]

    def reconstruct(self, *images: object) -> list[object]:
        """`reconstruct` of the trained run."""
        return ["reconstruct", self.run, *images, "--out", self.out]

    def complete(self, *more: object, image: object = None) -> list[object]:
        """`complete` of a picture with the trained run."""
        return ["complete", self.run, image or next(self.pictures.rglob("*.png")), "--out", self.out, *more]

    def score(self, *images: object) -> list[object]:
        """`score` with the trained run."""
        return ["score", self.run, *images, "--out", self.out]

    def file(self, name: str, data: bytes = b"hello") -> Path:
        """A file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def some(self, *names: str) -> Path:
        """A folder of pictures with these names."""
        for index, name in enumerate(names):
            path = self.folder / "some" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (index, 9, 9)).save(path)
        return self.folder / "some"

    def change(self, **record: object) -> None:
        """Change the record of the trained run."""
        value = read_yaml(self.run / "config.yaml")
        value["run"] |= record
        (self.run / "config.yaml").write_text(yaml.safe_dump(value))


@pytest.fixture
def world(tmp_path: Path, pictures: Path, run: Path) -> World:
    """With a copy of the trained run."""
    return World(tmp_path, pictures, run)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def settings_of(text: str) -> list[str]:
    """Assignments as arguments."""
    return [part for setting in text.split() for part in ("--set", setting)]


def empty(world: World) -> Path:
    """A folder without files."""
    (world.folder / "empty").mkdir()
    return world.folder / "empty"


def half(world: World, *arguments: object) -> list[object]:
    """`sample`, unless something else is said, of a run whose finer prior is not trained yet."""
    shutil.rmtree(world.run / "prior" / "level-1")
    return list(arguments) or world.sample()


def mixed(world: World) -> list[object]:
    """`score` of a run whose codes were made by another autoencoder."""
    file = world.run / "codes" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"digest": "0"}))
    return world.score(world.pictures)


def cut(world: World) -> list[object]:
    """`sample` with weights that were cut short."""
    file = world.run / "autoencoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return world.sample()


def flipped(world: World, part: str, call: str) -> list[object]:
    """Some verb with weights in which one bit is another."""
    file = world.run / part / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-7] ^= 1
    file.write_bytes(data)
    return world.sample() if call == "sample" else ["inspect", world.run]


def newer(world: World, *arguments: object) -> list[object]:
    """Some verb on a run of a version to come."""
    world.change(format=atomic.FORMAT + 1, version="7.5")
    return list(arguments)


def damaged(world: World, text: str) -> list[object]:
    """`inspect` of a run with another config.yaml."""
    (world.run / "config.yaml").write_text(text)
    return ["inspect", world.run]


def bare(world: World) -> list[object]:
    """`sample` of a folder that has all of a run but config.yaml."""
    (world.run / "config.yaml").unlink()
    return world.sample()


MISTAKES: dict[str, tuple[Callable[[World], list[object]], str]] = {
    # data
    "missing folder": (lambda w: w.train(w.folder / "nothing"), r"nothing"),
    "missing folder, no preset": (
        lambda w: ["train", w.folder / "nothing", "--run", w.folder / "new"],
        r"nothing",
    ),
    "empty folder": (lambda w: w.train(empty(w)), r"no images.*empty"),
    "folder of text": (lambda w: w.train(w.file("texts/a.txt").parent), r"no images|no usable image"),
    "picture that is none": (lambda w: w.train(w.file("bad/a.png").parent), r"no usable image.*a\.png"),
    "one picture": (lambda w: w.train(w.some("a.png")), r"found 1 usable image: at least 2"),
    "one class twice": (lambda w: w.train(w.some("Cat/1.png", "cat/2.png")), r"'Cat' and 'cat'"),
    "no such split": (lambda w: w.train(None, "--split", "testing"), r"no split 'testing'"),
    "no perceptual weights": (
        lambda w: w.train(None, "--set", f"train_autoencoder.perceptual_weights={w.folder}/vgg.safetensors"),
        r"no weights at .*vgg\.safetensors",
    ),
    "no DATA": (lambda w: ["train", "", "--run", w.folder / "new"], r"an argument is empty"),
    "an unset variable": (lambda w: [*w.train(), "--config="], r"an argument is empty"),
    # run folders
    "no RUN": (lambda w: ["inspect", ""], r"an argument is empty"),
    "file in place of the run": (lambda w: w.train(run=w.file("file")), r"cannot make the folder .*file"),
    "run below a file": (lambda w: w.train(run=w.file("file") / "run"), r"cannot make the folder .*run"),
    "demo in place of a file": (lambda w: ["demo", "--out", w.file("file")], r"cannot make the folder .*file"),
    "other data": (lambda w: ["train", w.some("a.png"), "--run", w.run], r"and found others in "),
    "other preset": (lambda w: w.train(run=w.run), r"trained with other settings.*another --run"),
    "no config.yaml": (bare, r"no run folder: it has no config\.yaml"),
    "a model of the package": (
        lambda w: ["critic", "fit", "emoji64"],
        r"no run folder: .*; copy the model of the package, .*emoji64, to",
    ),
    "no such run": (lambda w: ["inspect", w.folder / "runn"], r"no run .*runn: expected"),
    "half trained": (half, r"prior of level 1 .* is not trained yet; `vqvae2 train .*` continues"),
    "cut weights": (cut, r"autoencoder/model\.safetensors is damaged"),
    "altered weights": (lambda w: flipped(w, "prior/level-1", "sample"), r"level-1.* was altered"),
    "altered weights inspected": (lambda w: flipped(w, "autoencoder", "inspect"), r"autoencoder.* was altered"),
    "newer run sampled": (lambda w: newer(w, *w.sample()), r"vqvae2 7\.5 .*upgrade"),
    "newer run trained": (lambda w: newer(w, "train", w.pictures, "--run", w.run), r"7\.5 .*upgrade"),
    # settings
    "infinite learning rate": (
        lambda w: w.train(None, "--set", "train_autoencoder.lr=.inf"),
        r"^vqvae2: train_autoencoder\.lr: .*finite",
    ),
    "sampling in the settings": (
        lambda w: w.train(None, "--set", "sampling.temperature=-1"),
        r"^vqvae2: sampling: expected temperature >= 0",
    ),
    "sizes that do not fit": (lambda w: w.train(None, "--set", "data.size=36"), r"36x36.*\[4, 2\].*multiples of 8"),
    "unknown preset": (lambda w: [*w.train()[:-1], "huge"], r"no preset 'huge': expected one of tiny, "),
    "unknown preset inspected": (lambda w: ["inspect", "--preset", "huge"], r"no preset 'huge'"),
    "unknown setting": (lambda w: w.train(None, "--set", "data.sise=3"), r"'data\.sise'.*size"),
    "no value": (lambda w: w.train(None, "--set", "data.size"), r"KEY=VALUE, found 'data\.size'"),
    "wrong type": (lambda w: w.train(None, "--set", "data.size=big"), r"data\.size: .*'big'"),
    "number for a part": (lambda w: w.train(None, "--set", "autoencoder=5"), r"autoencoder: .*found 5"),
    "nothing for a part": (lambda w: w.train(None, "--set", "data=null"), r"data: .*found None"),
    "other number of levels": (
        lambda w: w.train(None, *settings_of("autoencoder.strides=4 autoencoder.codes=16")),
        r"1 levels but there are 2 priors",
    ),
    "no such colour": (lambda w: w.train(None, "--set", "data.background=wite"), r"background.*'wite'"),
    "missing --config": (lambda w: w.train(None, "--config", w.folder / "no.yaml"), r"cannot read .*no\.yaml"),
    "--config is no YAML": (lambda w: w.train(None, "--config", w.file("a.yaml", b"a: [\n")), r"cannot read .*a\.yaml"),
    "--config is a picture": (
        lambda w: w.train(None, "--config", next(w.pictures.rglob("*.png"))),
        r"cannot read .*\.png",
    ),
    "--config is a list": (lambda w: w.train(None, "--config", w.file("a.yaml", b"- 1\n")), r"expected a mapping"),
    "--config with a number for a part": (
        lambda w: w.train(None, "--config", w.file("a.yaml", b"data: 3\n")),
        r"data: .*found 3",
    ),
    "--config with an unknown key": (
        lambda w: w.train(None, "--config", w.file("a.yaml", b"dat: {size: 3}\n")),
        r"dat: ",
    ),
    # sampling
    "no such label": (lambda w: w.sample("--label", "dics"), r"no class 'dics'.*0\.\.2.*disc"),
    "no such number": (lambda w: w.sample("--label", "3"), r"no class '3'.*0\.\.2"),
    "one label of several": (lambda w: w.sample("--label", "disc", "--label", "sky"), r"no class 'sky'.*Blue sky"),
    "no samples": (lambda w: w.sample("--n", 0), r"--n"),
    "negative seed": (lambda w: w.sample("--seed", -1), r"--seed"),
    "temperature -1": (lambda w: w.sample("--temperature", -1), r"temperature"),
    "top_p 0": (lambda w: w.sample("--top-p", 0), r"0 < top_p <= 1, found .*top_p 0"),
    "top_p 2": (lambda w: w.sample("--top-p", 2), r"0 < top_p <= 1, found .*top_p 2"),
    "top_k -1": (lambda w: w.sample("--top-k", -1), r"top-k"),
    "guidance -1": (lambda w: w.sample("--guidance", -1), r"guidance"),
    "batch 0": (lambda w: w.sample("--batch", 0), r"--batch"),
    "samples to a file": (lambda w: w.sample("--out", w.file("file")), r"cannot make the folder .*file"),
    "odd digit in a label": (lambda w: w.sample("--label", "²"), r"no class '²'"),
    "odd digit in a key": (lambda w: w.train(None, "--set", "train_prior.².steps=3"), r"train_prior\.².*0\.\.1"),
    "damaged record": (lambda w: damaged(w, "run: 3\n"), r"config\.yaml"),
    "damaged format": (lambda w: damaged(w, "run: {format: new}\n"), r"config\.yaml"),
    # reconstruction
    "reconstruct what is no picture": (lambda w: w.reconstruct(w.file("a.png")), r"a\.png: not an image"),
    "reconstruct a missing file": (
        lambda w: w.reconstruct(next(w.pictures.rglob("*.png")), w.folder / "no.png"),
        r"no such file: .*no\.png",
    ),
    "reconstruct an empty folder": (lambda w: w.reconstruct(empty(w)), r"no images in .*empty"),
    "reconstruct to a file": (
        lambda w: [*w.reconstruct(w.pictures)[:-1], w.file("file")],
        r"cannot make the folder .*file",
    ),
    # completion
    "complete nothing": (lambda w: w.complete(), r"expected either --mask MASK or --keep-levels N"),
    "complete twice": (lambda w: w.complete("--mask", "m.png", "--keep-levels", 1), r"expected either --mask"),
    "complete a missing file": (
        lambda w: w.complete("--keep-levels", 1, image=w.folder / "no.png"),
        r"no\.png: No such file",
    ),
    "complete what is no picture": (
        lambda w: w.complete("--keep-levels", 1, image=w.file("a.png")),
        r"a\.png: not an image",
    ),
    "missing mask": (lambda w: w.complete("--mask", w.folder / "no.png"), r"no\.png: No such file"),
    "mask that is no picture": (lambda w: w.complete("--mask", w.file("m.png")), r"m\.png: not an image"),
    "mask that is a folder": (lambda w: w.complete("--mask", w.pictures), r"pictures\d*: Is a directory"),
    "no level kept": (lambda w: w.complete("--keep-levels", 0), r"levels to keep: expected 1\.\.1, found 0"),
    "all levels kept": (lambda w: w.complete("--keep-levels", 2), r"levels to keep: expected 1\.\.1, found 2"),
    "complete without a prior": (
        lambda w: half(w, *w.complete("--keep-levels", 1)),
        r"prior of level 1 .* is not trained yet",
    ),
    "complete a class that is not": (
        lambda w: w.complete("--keep-levels", 1, "--label", "dics"),
        r"no class 'dics'.*disc",
    ),
    "passes 0": (lambda w: w.complete("--keep-levels", 1, "--passes", 0), r"passes"),
    "passes that cannot move": (
        lambda w: w.complete("--keep-levels", 1, "--passes", 2, "--temperature", 0),
        r"temperature > 0 for more than one pass",
    ),
    "complete to a file": (
        lambda w: w.complete("--keep-levels", 1, "--out", w.file("file")),
        r"cannot make the folder .*file",
    ),
    # scores
    "score a missing file": (lambda w: w.score(w.folder / "no.png"), r"no such file: .*no\.png"),
    "score what is no picture": (lambda w: w.score(w.pictures, w.file("a.png")), r"a\.png: not an image"),
    "score without a prior": (lambda w: half(w, *w.score(w.pictures)), r"prior of level 1 .* is not trained yet"),
    "score of no class": (lambda w: w.score(w.pictures, "--label", "dics"), r"no class 'dics'"),
    "score over a picture": (
        lambda w: [*w.score(w.some("a.png"))[:-1], w.folder / "some" / "a.png"],
        r"a\.png exists, and would be overwritten",
    ),
    "score with codes of another autoencoder": (mixed, r"codes in .* were made by another autoencoder"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_one_line_and_nothing_lost(
    name: str, world: World, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "vqvae2.files.locate.snapshot_download", lambda *a, **k: pytest.fail("the Hub was asked")
    )
    make, pattern = MISTAKES[name]
    arguments = make(world)
    before = contents(world.folder)
    said = command(*arguments)
    assert (said.code, said.out) == (2, ""), said.err
    lines = [
        line for line in said.err.splitlines() if not line.startswith(("reading images: ", "training on "))
    ]
    assert len(lines) == 1, said.err
    assert lines[0].startswith("vqvae2: ")
    assert re.search(pattern, lines[0]), said.err
    after = contents(world.folder)
    assert {path: after.get(path) for path in before} == before
    assert not world.out.exists(), "nothing was made, so there is no folder for it"


@pytest.mark.parametrize("name", ["one picture", "sizes that do not fit", "unknown setting"])
def test_the_run_folder_of_a_mistake_can_be_used(
    name: str, world: World, command: Command, settings: list[str]
) -> None:
    """What was left by a `train` that failed at once is no obstacle to one that is right."""
    assert command(*MISTAKES[name][0](world)).code == 2
    steps = settings_of("train_autoencoder.steps=2 train_prior.*.steps=2")
    assert command(*world.train(None, *settings, *steps)).code == 0


def test_a_level_that_does_not_exist_is_not_redone(trained: Path, pictures: Path, command: Command) -> None:
    said = command("train", pictures, "--run", trained, "--redo-prior", 2)
    assert said.code == 2
    assert "--redo-prior: expected a level 0..1, found 2" in said.err


def test_a_refused_file_leaves_no_folder(trained: Path, tmp_path: Path, command: Command) -> None:
    file = tmp_path / "a.vq"
    file.write_bytes(b"VQ is how such a file begins, and then nothing is right")
    said = command("decompress", trained, file, "--out", tmp_path / "out")
    assert said.code == 2
    assert not (tmp_path / "out").exists()


# --- in the middle of training ---


@pytest.fixture
def begin(world: World, settings: list[str]) -> list[object]:
    """`train` in world.folder/new: 12 steps of the autoencoder with a checkpoint every 4."""
    steps = settings_of("train_autoencoder.steps=12 train_autoencoder.evaluate_every=4")
    return world.train(None, *settings, *steps)


def spoil(monkeypatch: pytest.MonkeyPatch, kind: type[Any], step: int) -> None:
    """Let the loss of a stage be NaN at a step (and the tenth after it)."""
    honest, calls = kind.loss, iter(range(1, 1000))

    def loss(self: Any, model: Any, batch: Any) -> Any:
        value, logs = honest(self, model, batch)
        return (value * float("nan") if next(calls) == step else value), logs

    monkeypatch.setattr(kind, "loss", loss)


def test_a_loss_that_is_not_finite(
    world: World, begin: list[object], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says the step and the learning rate, keeps the last good state, and goes on from there when mended."""
    with monkeypatch.context() as patch:
        spoil(patch, AutoencoderObjective, 7)
        said = command(*begin)
    last = said.err.splitlines()[-1]
    assert said.code == 2
    assert re.fullmatch(
        r"vqvae2: autoencoder: the loss is not finite at step 7 \(learning rate [\d.]+e-03\); "
        r"the state of step 4 is kept; try .*",
        last,
    ), last
    state = world.folder / "new" / "autoencoder" / "checkpoints" / "last.safetensors"
    tensors, meta = tensor_file.load_tensors(state)
    assert meta["outcome"]["step"] == 4
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert command(*begin).code == 0
    run = load(world.folder / "new", "cpu")
    assert run.sample(2).isfinite().all()
    steps = [
        line["step"] for line in read_metrics(run.folder / "autoencoder" / "metrics.jsonl") if "mse" in line
    ]
    assert steps == list(range(1, 13))


def test_a_loss_that_is_not_finite_in_the_second_stage(
    world: World, begin: list[object], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finished stage before it is kept."""
    spoil(monkeypatch, PriorObjective, 6)
    said = command(*begin)
    assert said.code == 2
    assert "prior level 0: the loss is not finite at step 6" in said.err.splitlines()[-1]
    run = load(world.folder / "new", "cpu")
    assert list(run.done().values()) == [True, True, False, False]
    assert all(p.isfinite().all() for p in run.autoencoder.parameters())


def test_a_learning_rate_that_is_far_too_high(world: World, begin: list[object], command: Command) -> None:
    wild = "train_autoencoder.lr=1000 train_autoencoder.warmup=0 train_autoencoder.clip=0"
    said = command(*begin, *settings_of(wild))
    last = said.err.splitlines()[-1]
    assert said.code == 2
    assert re.search(
        r"autoencoder: .* not finite at step [12] \(learning rate (1\.0|9\.\d+)\d?e\+0[32]\)", last
    ), last
    assert "nothing was saved yet" in last
    assert not (world.folder / "new" / "autoencoder" / "model.safetensors").exists()
    assert command(*begin).code == 0, "nothing was begun, so another learning rate is no contradiction"


def test_a_full_disk_in_the_middle_of_training(
    world: World, begin: list[object], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second checkpoint cannot be written: the first one stays, whole, and training goes on from it."""
    from safetensors import torch as files

    save, calls = files.save_file, iter(range(1, 1000))

    def full(tensors: Any, path: Path, header: Any) -> None:
        save(tensors, path, header)
        if next(calls) == 2:
            Path(path).write_bytes(Path(path).read_bytes()[:50])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        said = command(*begin)
    last = said.err.splitlines()[-1]
    assert said.code == 2
    assert re.fullmatch(
        r"vqvae2: cannot write .*last\.safetensors: No space left on device; an earlier file is kept", last
    )
    assert "Traceback" not in said.err
    folder = world.folder / "new" / "autoencoder" / "checkpoints"
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["last.safetensors", "previous.safetensors"]
    assert tensor_file.load_tensors(folder / "last.safetensors")[1]["outcome"]["step"] == 4
    assert command(*begin).code == 0
    assert all(load(world.folder / "new", "cpu").done().values())


def test_a_full_disk_when_a_line_is_logged(
    begin: list[object], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Path.open

    def full(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if self.name == "metrics.jsonl" and mode.startswith("a"):
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return honest(self, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    said = command(*begin)
    assert said.code == 2
    assert re.search(r"^vqvae2: .*metrics\.jsonl.*No space left on device", said.err.splitlines()[-1])
    assert "Traceback" not in said.err


def test_a_full_disk_while_sampling(world: World, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of before stay as they were."""
    assert command(*world.sample()).code == 0
    before = contents(world.out)
    honest = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        picture = data.startswith(b"\x89PNG")
        written = honest(path, data[:10] if picture else data)
        if picture:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return written

    monkeypatch.setattr(Path, "write_bytes", full)
    said = command(*world.sample("--n", 4))
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("vqvae2: cannot write ")
    assert said.err.count("\n") == 1
    assert contents(world.out) == before


def test_a_damaged_checkpoint(
    world: World, begin: list[object], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        spoil(patch, AutoencoderObjective, 7)
        command(*begin)
    state = world.folder / "new" / "autoencoder" / "checkpoints" / "last.safetensors"
    state.write_bytes(state.read_bytes()[:-9])
    said = command(*begin)
    assert said.code == 2
    assert re.search(
        r"last\.safetensors is damaged.*delete .*last\.safetensors, and the same command.*step 0",
        said.err.splitlines()[-1],
    )
    state.unlink()
    assert command(*begin).code == 0


# --- what is not the user's mistake ---


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, TypeError, OSError])
@pytest.mark.parametrize("place", ["vqvae2.commands.inspect.describe", "vqvae2.train.stored_run.read_run"])
def test_a_mistake_of_ours_keeps_its_traceback(
    place: str, kind: type[Exception], world: World, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> NoReturn:
        raise kind("our mistake")

    monkeypatch.setattr(place, broken)
    with pytest.raises(kind, match="our mistake") as caught:
        command("inspect", world.run)
    assert type(caught.value) is kind
    assert caught.traceback[-1].name == "broken"


def test_a_mistake_of_ours_in_training_keeps_its_traceback(
    world: World, begin: list[object], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(self: Any, model: Any, batch: Any) -> Any:
        return torch.zeros(3) @ torch.zeros(4), {}

    monkeypatch.setattr(AutoencoderObjective, "loss", loss)
    with pytest.raises(RuntimeError, match="size"):
        command(*begin)


@pytest.mark.parametrize(
    "text",
    [
        "inspect {long}",
        "export {long} --out {out}",
        "push {long} owner/name",
        "sample {run} --out {long}",
        "reconstruct {run} {long} --out {out}",
        "score {run} {long}",
        "encode {run} {long} --out {out}.npz",
        "decode {run} {long} --out {out}",
        "compress {run} {long} --out {out}",
        "decompress {run} {long} --out {out}",
        "train {pictures} --run {out} --from {long}",
        "evaluate --samples {long} --data {pictures} --out {out}",
        "import rosinality {long} --run {out}",
        "critic fit {run} --out {long}",
    ],
)
def test_a_path_that_the_system_refuses(text: str, world: World, command: Command) -> None:
    long = world.folder / ("x" * 300)
    words = {"run": world.run, "out": world.out, "pictures": world.pictures, "long": long}
    said = command(*(word.format(**words) for word in text.split()))
    assert said.code == 2
    assert said.err.splitlines()[-1].startswith("vqvae2: ")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_path_without_permission(
    code: int, world: World, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> NoReturn:
        raise OSError(code, "Not for you", "a\nplace")

    monkeypatch.setattr("vqvae2.commands.inspect.describe", refuse)
    said = command("inspect", world.run)
    assert (said.code, said.err) == (2, "vqvae2: cannot use a place: Not for you\n")


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_too_little_memory_of_the_accelerator(
    kind: type[Exception], world: World, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> NoReturn:
        raise kind("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 is full.")

    monkeypatch.setattr("vqvae2.commands.inspect.describe", refuse)
    said = command("inspect", world.run)
    assert said.code == 2
    assert said.err.startswith("vqvae2: not enough memory: CUDA out of memory.")
    assert said.err.count("\n") == 1


def test_json_is_not_begun_before_a_mistake(world: World, command: Command) -> None:
    """Standard output holds a whole result or nothing."""
    for arguments in (half(world), ["inspect", world.folder / "none"], world.train(world.folder / "none")):
        said = command(*arguments, "--json")
        assert (said.code, said.out) == (2, "")
    assert json.loads(command("inspect", world.run, "--json").out)
