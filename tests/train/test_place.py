"""The run folder while it is trained: locked, tidied, watched; and a training whose terminal is gone."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from train_helpers import Toy, result, run, signal_at, stage, tiny

from vqvae2.config.models import Config
from vqvae2.config.training import TrainConfig
from vqvae2.errors import UserError
from vqvae2.files import lock
from vqvae2.files.lock import NAME, LockError
from vqvae2.files.process import Process, host
from vqvae2.files.progress import Reporter
from vqvae2.files.tensor_file import load_tensors
from vqvae2.train import pipeline, place
from vqvae2.train.device import TrainingError, make_accelerator
from vqvae2.train.loop import Interrupted, fit

GONE = 2**22 + 7  # no process has this number


@pytest.fixture(scope="module")
def config() -> Config:
    """Two levels, a few steps."""
    return tiny(train={"steps": 3, "evaluate_every": 3})


@pytest.fixture(scope="module")
def whole(data: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; read only."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    pipeline.train(str(data), folder, config, reporter=Reporter(quiet=True))
    return folder


def files(folder: Path) -> list[str]:
    """The names of all files."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- locked ---


def test_a_second_training_changes_nothing(
    whole: Path, data: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before its settings replace those of the first one, with the first one's host and process."""
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    first = Process("another-machine", 7, 1.0, "")
    (folder / NAME).write_text(json.dumps(first.to_json()))
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: os.utime(folder / NAME))  # it lives
    with pytest.raises(LockError, match="in use by process 7 on another-machine"):
        pipeline.train(str(data), folder, config, reporter=Reporter(quiet=True))
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before


def test_the_lock_is_held_throughout_and_released(
    data: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every stage, and released after an error too."""
    seen: list[bool] = []
    for name in ("_open", "_codes", "_stage2"):
        usual = getattr(pipeline, name)

        def watched(*arguments: Any, usual: Any = usual) -> Any:
            seen.append((tmp_path / "run" / NAME).exists())
            return usual(*arguments)

        monkeypatch.setattr(pipeline, name, watched)
    pipeline.train(str(data), tmp_path / "run", config, reporter=Reporter(quiet=True))
    assert seen == [True] * 4
    assert NAME not in files(tmp_path / "run")
    with pytest.raises(UserError):
        pipeline.train(str(tmp_path / "none"), tmp_path / "other", config, reporter=Reporter(quiet=True))
    assert NAME not in files(tmp_path / "other")


# --- tidied ---


@pytest.mark.parametrize("state", ["finished", "half"])
def test_what_killed_processes_left_is_removed(
    state: str, whole: Path, data: Path, config: Config, tmp_path: Path
) -> None:
    """Half a file anywhere, and the state of a stage whose result was written; nothing else is touched."""
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    if state == "half":
        shutil.rmtree(folder / "prior" / "level-1")
    leftovers = [
        "codes/.level-0.npy",
        "data/.pixels-x.npy",
        ".config.yaml",
        "prior/level-0/.model.safetensors",
    ]
    for name in leftovers:
        (folder / f"{name}.{host()}-{GONE}.tmp").write_bytes(b"half a file")
    (folder / "autoencoder" / "checkpoints").mkdir()
    state = folder / "autoencoder" / "state.safetensors"  # killed before it was put there
    state.rename(folder / "autoencoder" / "checkpoints" / "last.safetensors")
    (folder / "notes.txt").write_text("of the user")
    pipeline.train(str(data), folder, config, reporter=Reporter(quiet=True))
    assert files(folder) == sorted([*files(whole), "notes.txt"])


# --- watched ---


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_folder_that_vanishes_under_a_training_ends_it(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    objective = Toy(lambda w, step: w.sum())
    usual = objective.after_step

    def after_step(step: int, accelerator: Any) -> dict[str, Any]:
        if step == 3:
            if how == "removed":
                shutil.rmtree(folder)
            else:
                folder.rename(tmp_path / "moved")
            if how == "replaced":
                folder.mkdir()
        return usual(step, accelerator)

    objective.after_step = after_step  # type: ignore[method-assign]
    settings = TrainConfig(steps=6, batch=4, lr=0.01, warmup=0, evaluate_every=1)
    with pytest.raises(TrainingError, match=r"toy: the folder .* was removed or moved"):
        run(objective, settings, folder)
    assert not folder.exists() or list(folder.iterdir()) == []
    assert max(objective.weights) == 3


@pytest.mark.parametrize("failures", [2, 10**6])
def test_a_file_system_that_does_not_answer_is_no_folder_that_vanished(
    failures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is restarted, or a handle that is stale: the training goes on, and its writes show what is wrong."""
    watched = place.Place(tmp_path / "stage", "toy", lambda text: None)
    usual, asked = Path.stat, 0

    def stat(path: Path, **options: Any) -> Any:
        nonlocal asked
        asked += path == watched.path
        if path == watched.path and asked <= failures:
            raise OSError(errno.ESTALE, "Stale file handle")
        return usual(path, **options)

    monkeypatch.setattr(place.time, "sleep", lambda seconds: None)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat)
        watched.check()
    assert asked > 1
    shutil.rmtree(watched.path)
    with pytest.raises(TrainingError, match="was removed or moved"):
        watched.check()


def test_a_run_that_vanishes_between_two_stages_ends_with_an_error(
    data: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the latest before the next stage is trained, so that hours are not spent on what nobody finds."""
    folder, usual = tmp_path / "run", pipeline.say_usage

    def vanish(*arguments: Any) -> None:
        usual(*arguments)
        shutil.rmtree(folder)

    monkeypatch.setattr(pipeline, "say_usage", vanish)
    with pytest.raises(LockError, match="run was removed or moved"):
        pipeline.train(str(data), folder, config, reporter=Reporter(quiet=True))
    assert not folder.exists()


# --- without a terminal ---


class Closed(io.StringIO):
    """A terminal that was closed: its process gets SIGHUP, and whatever it writes fails."""

    def write(self, text: str) -> int:
        """Fail as a closed terminal does."""
        raise OSError(errno.EIO, "Input/output error")

    def isatty(self) -> bool:
        """It was one."""
        return True


@pytest.mark.parametrize("terminal", [False, True])
def test_a_training_whose_terminal_is_closed_saves_its_state(terminal: bool, tmp_path: Path) -> None:
    """SIGHUP comes, nothing can be printed any more, and the state is saved all the same."""
    config = tiny(train={"steps": 6, "evaluate_every": 6, "log_every": 1})
    objective = stage("autoencoder", tmp_path, config)
    signal_at(objective, {3}, signal.SIGHUP)
    reporter = Reporter()
    reporter.console = Console(file=Closed(), force_terminal=terminal)
    usual = signal.signal(signal.SIGHUP, lambda *_: None)
    try:
        with pytest.raises(Interrupted, match="saved at step 3 of 6") as caught:
            fit(objective, config.train_autoencoder, tmp_path / "run", make_accelerator(), reporter, 7)
    finally:
        signal.signal(signal.SIGHUP, usual)
    assert caught.value.number == signal.SIGHUP
    assert load_tensors(tmp_path / "run" / "checkpoints" / "last.safetensors")[1]["outcome"]["step"] == 3
    resumed = stage("autoencoder", tmp_path, config)
    result(resumed, tmp_path / "run", run(resumed, config.train_autoencoder, tmp_path / "run"))
