"""A folder of pictures, one tiny run trained on it per session, and the command in this process."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from colours_network import Colours
from PIL import Image

from vqvae2.cli import main

# The tests compare bits, and many processes of them run at a time. Those marked `gpu` name the card themselves.
os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")

SETTINGS = (
    *("data.size=16", "data.flip=false", "data.shift=0", "data.workers=0"),
    *("autoencoder.codes=16,16", "autoencoder.code_dim=8", "autoencoder.hidden=16", "autoencoder.residual=8"),
    *("train_autoencoder.steps=60", "train_autoencoder.batch=8", "train_autoencoder.lr=5e-3"),
    *("train_autoencoder.evaluate_every=20", "train_autoencoder.warmup=4", "train_autoencoder.log_every=1"),
    *("prior.levels.*.hidden=8", "prior.levels.*.residual=8", "prior.levels.*.heads=1"),
    *("prior.levels.*.layers=1", "prior.levels.*.output_layers=0", "prior.levels.1.condition_blocks=0"),
    *("train_prior.*.steps=8", "train_prior.*.batch=8", "train_prior.*.evaluate_every=4"),
)


# A shell has Ctrl-C ignored in what it starts in the background; the tests send that signal to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Without a time limit per example: a law does not depend on how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


# The files that take longest, in this order: they are first, so that no process is left alone with one at the end.
LONGEST = (
    *(
        "test_pipeline.py",
        "test_cli.py",
        "test_notebooks.py",
        "test_inspect.py",
        "test_loop.py",
        "test_level.py",
    ),
    *("test_complete.py", "test_together.py", "test_processes.py", "test_onnx.py", "test_bad_input.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; and skip what needs a GPU where there is none."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="module", autouse=True)
def short_collections() -> None:
    """A training collects garbage three times: spare it the walk through all of torch, which takes longer than its steps."""
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it wrote to standard output and to standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Colours:
    """Stands in for the networks of ImageNet."""
    net = Colours()
    monkeypatch.setattr("vqvae2.evaluate.context.feature_network", lambda *_: net)
    return net


def picture(number: int) -> Image.Image:
    """Picture `number`: in turn a clear sky, a disc, stripes; 24x20 px."""
    random = np.random.default_rng(number)
    dark, light = random.integers(0, 110, 3), random.integers(140, 256, 3)
    y, x = np.mgrid[0:20, 0:24]
    kind = number % 3
    if kind == 0:
        share = y / 19
    elif kind == 1:
        share = ((y - 10) ** 2 + (x - 12) ** 2 < random.integers(30, 70)).astype(float)
    else:
        share = ((x // 6) % 2).astype(float)
    return Image.fromarray(np.rint(dark + share[..., None] * (light - dark)).astype(np.uint8))


@pytest.fixture(scope="session")
def settings() -> list[str]:
    """What makes the preset `tiny` tinier still, as arguments of the command."""
    return [part for setting in SETTINGS for part in ("--set", setting)]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures in the classes "Blue sky", "disc" and "stripes"; not to be altered."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(24):
        folder = root / ("Blue sky", "disc", "stripes")[number % 3]
        folder.mkdir(exist_ok=True)
        picture(number).save(folder / f"{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def train_tiny(settings: Sequence[str]) -> Callable[..., Path]:
    """`train_tiny(folder, data, "data.holdout=0.2")`: the run that `train` makes below a folder, with more settings."""

    def train(folder: Path, data: Path, *more: str) -> Path:
        arguments = [*settings, *(part for setting in more for part in ("--set", setting))]
        with pytest.raises(SystemExit) as ended:
            main(["train", str(data), "--run", str(folder / "run"), "--preset", "tiny", *arguments])
        assert ended.value.code == 0
        return folder / "run"

    return train


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path, train_tiny: Callable[..., Path]
) -> Path:
    """A run that `train` finished on the pictures; not to be altered."""
    return train_tiny(tmp_path_factory.mktemp("trained"), pictures)


@pytest.fixture(scope="session")
def sharpened(tmp_path_factory: pytest.TempPathFactory, trained: Path, pictures: Path) -> Path:
    """The same run, whose decoder was then sharpened in two steps, which change it visibly; not to be altered."""
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("sharpened") / "run"))
    more = ("steps=2", "batch=8", "lr=0.02", "warmup=0", "average=0.01", "begin=0", "width=4", "depth=1")
    settings = [part for setting in more for part in ("--set", f"sharpen.{setting}")]
    with pytest.raises(SystemExit) as ended:
        main(["train", str(pictures), "--run", str(run), *settings])
    assert ended.value.code == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to be altered."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


@pytest.fixture
def half(run: Path) -> Path:
    """A run whose finer prior is not trained yet."""
    shutil.rmtree(run / "prior" / "level-1")
    return run


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """`command("sample", run, "--n", 3)`: the command with these arguments, in this process."""

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, said.out, said.err)

    return call
