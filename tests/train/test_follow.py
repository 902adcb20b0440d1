"""A training seen from beside it: every line and picture once, whatever is cut, resumed or half written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.tracking import GeneralTracker
from rich.console import Console

from vqvae2.commands.train import work_of
from vqvae2.commands.watch import _done, sparkline, watch
from vqvae2.config.models import parse
from vqvae2.config.overrides import override
from vqvae2.config.presets import preset
from vqvae2.errors import UserError
from vqvae2.files.progress import Reporter
from vqvae2.files.run_folder import RunFolder
from vqvae2.run import load
from vqvae2.train import trackers
from vqvae2.train.folder import read_run, write_config
from vqvae2.train.follow import Follower
from vqvae2.train.longer import publish
from vqvae2.train.state import cut_metrics, read_metrics, write_metrics
from vqvae2.train.stored_run import StoredRun
from vqvae2.train.trackers import check_tracker, flat, tracked


def steps(follower: Follower) -> dict[str, list[int]]:
    return {news.stage: [line["step"] for line in news.lines] for news in follower.news()}


def test_each_line_is_read_once(tmp_path: Path) -> None:
    folder, follower = RunFolder(tmp_path), Follower(tmp_path, 2)
    assert follower.news() == []
    for step in (1, 2):
        write_metrics(folder.autoencoder.metrics, step, {"loss": 1.0})
    assert steps(follower) == {"autoencoder": [1, 2]}
    write_metrics(folder.autoencoder.metrics, 2, {"heldout_mse": 1.0})
    write_metrics(folder.prior(1).metrics, 1, {"loss": 1.0})
    assert steps(follower) == {"autoencoder": [2], "prior level 1": [1]}
    assert steps(follower) == {}
    assert follower.steps == {"autoencoder": 2, "prior level 1": 1}


def test_a_line_that_is_half_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    file, follower = RunFolder(tmp_path).autoencoder.metrics, Follower(tmp_path, 1)
    file.parent.mkdir(parents=True)
    file.write_text('{"step": 1}\n{"step": 2, "lo')
    assert steps(follower) == {"autoencoder": [1]}
    with file.open("a") as opened:
        opened.write('ss": 1}\n')
    assert steps(follower) == {"autoencoder": [2]}


def test_a_resumed_training_is_not_read_twice(tmp_path: Path) -> None:
    file, follower = RunFolder(tmp_path).autoencoder.metrics, Follower(tmp_path, 1)
    for step in range(1, 8):
        write_metrics(file, step, {"loss": step})
    assert steps(follower) == {"autoencoder": [1, 2, 3, 4, 5, 6, 7]}
    cut_metrics(file, 4)  # killed, and begun again at step 4
    assert steps(follower) == {}
    for step in range(5, 10):
        write_metrics(file, step, {"loss": step})
    assert steps(follower) == {"autoencoder": [8, 9]}
    assert steps(Follower(tmp_path, 1, {"autoencoder": 8})) == {"autoencoder": [9]}


def test_another_training_is_read_from_its_start(tmp_path: Path) -> None:
    """Whether its log is shorter or longer than what was read, and whether it is followed or remembered."""
    stage, follower = RunFolder(tmp_path).prior(0), Follower(tmp_path, 1)
    for step in (1, 2):
        write_metrics(stage.metrics, step, {"loss": 1.0})
    stage.pictures.mkdir()
    (stage.pictures / "step-0000002.png").touch()
    assert steps(follower) == {"prior level 0": [1, 2]}
    remembered = follower.steps, follower.begins
    shutil.rmtree(stage.path)
    for step in (1, 2, 3):
        write_metrics(stage.metrics, step, {"loss": 20.5})
    stage.pictures.mkdir()
    (stage.pictures / "step-0000001.png").touch()
    for following in (follower, Follower(tmp_path, 1, *remembered)):
        (news,) = following.news()
        assert [line["step"] for line in news.lines] == [1, 2, 3]
        assert (len(news.pictures), news.anew) == (1, True)
        assert following.news() == []
    assert steps(Follower(tmp_path, 1, {"prior level 0": 2})) == {"prior level 0": [3]}, "of former versions"


def test_a_damaged_line_ends_what_is_read(tmp_path: Path) -> None:
    """Until a training that is resumed writes the log anew."""
    file, follower = RunFolder(tmp_path).autoencoder.metrics, Follower(tmp_path, 1)
    for step in (1, 2, 3):
        write_metrics(file, step, {"loss": 1.0})
    file.write_text(file.read_text().replace('"step": 2', '"step": "2"'))
    assert steps(follower) == {"autoencoder": [1]}
    assert steps(follower) == {}
    cut_metrics(file, 3)
    write_metrics(file, 2, {"loss": 1.0})
    assert steps(follower) == {"autoencoder": [2]}


def test_a_longer_training_is_followed(tmp_path: Path) -> None:
    """In its own folder, and when it is done in that of the stage."""
    stage, follower = RunFolder(tmp_path).prior(0), Follower(tmp_path, 1)
    write_metrics(stage.metrics, 1, {"loss": 1.0})
    assert steps(follower) == {"prior level 0": [1]}
    for step in (1, 2):
        write_metrics(stage.longer.metrics, step, {"loss": 1.0})
    stage.longer.pictures.mkdir()
    (stage.longer.pictures / "step-0000002.png").touch()
    (news,) = follower.news()
    assert ([line["step"] for line in news.lines], len(news.pictures), news.anew) == ([2], 1, False)
    write_metrics(stage.longer.metrics, 3, {"loss": 1.0})
    publish(stage, stage.longer)
    assert steps(follower) == {"prior level 0": [3]}


def test_pictures_are_told_once(tmp_path: Path) -> None:
    folder, follower = RunFolder(tmp_path).prior(0).pictures, Follower(tmp_path, 1)
    folder.mkdir(parents=True)
    for name in ("step-0000020.png", "step-0000040.png", ".step-0000060.png.1.tmp", "other.png"):
        (folder / name).touch()
    (news,) = follower.news()
    assert [(step, file.name) for step, file in news.pictures] == [
        (20, "step-0000020.png"),
        (40, "step-0000040.png"),
    ]
    assert follower.news() == []


class Remembering(GeneralTracker):
    """A tracker that keeps what it is sent."""

    name, requires_logging_directory, main_process_only = "wandb", False, True
    sent: list[tuple[dict[str, Any], int | None]] = []  # noqa: RUF012 - shared on purpose
    configuration: dict[str, Any] = {}  # noqa: RUF012
    pictures: list[str] = []  # noqa: RUF012

    def __init__(self, project: str, **kwargs: Any) -> None:
        super().__init__()
        self.project, self.kwargs = project, kwargs

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        assert self.kwargs["resume"] == "allow"

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.configuration.update(values)

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.sent.append((values, step))

    def log_images(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.pictures.extend(values)
        assert all(value.shape[0] == 1 for value in values.values())

    def finish(self) -> None:
        pass


@pytest.fixture
def remembering(monkeypatch: pytest.MonkeyPatch) -> type[Remembering]:
    """In place of wandb."""
    Remembering.sent, Remembering.configuration, Remembering.pictures = [], {}, []
    monkeypatch.setitem(trackers.LOGGER_TYPE_TO_CLASS, "wandb", Remembering)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    return Remembering


def test_a_tracker_is_sent_every_figure_once(run: Path, remembering: type[Remembering]) -> None:
    config = load(run, "cpu").config
    for _ in range(2):  # the second time, nothing is new
        with tracked("wandb", run, config, Reporter(quiet=True)):
            pass
    expected = sum(len(read_metrics(stage.metrics)) for stage in RunFolder(run).networks(2).values())
    assert len(remembering.sent) == expected
    assert all(step is None for _, step in remembering.sent)
    first = remembering.sent[0][0]
    assert first["autoencoder/step"] == 1
    assert first["autoencoder/loss"] == read_metrics(RunFolder(run).autoencoder.metrics)[0]["loss"]
    assert {key.split("/")[0] for values, _ in remembering.sent for key in values} == {
        *("autoencoder", "prior-level-0", "prior-level-1"),
    }
    assert remembering.configuration["train_autoencoder.steps"] == 60
    assert remembering.pictures.count("autoencoder/pictures") == 3


@pytest.mark.parametrize("memory", ["[]", '{"autoencoder": "60"}', '{"steps": 3}'])
def test_a_damaged_memory_of_a_tracker(
    memory: str, run: Path, remembering: type[Remembering], capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is sent again, which is said."""
    (run / "tracking").mkdir()
    (run / "tracking" / "wandb.json").write_text(memory)
    with tracked("wandb", run, load(run, "cpu").config, Reporter()):
        pass
    assert "wandb.json is damaged: steps" in capsys.readouterr().err
    assert remembering.sent


def test_a_tracker_that_fails_does_not_end_the_training(
    run: Path,
    remembering: type[Remembering],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(self: Any, values: dict[str, Any], step: int | None = None) -> None:
        raise RuntimeError("no\nconnection")

    monkeypatch.setattr(remembering, "log", broken)
    with tracked("wandb", run, load(run, "cpu").config, Reporter()):
        pass
    assert "wandb failed and is not used any more: no connection" in capsys.readouterr().err


def test_tensorboard_has_the_figures_and_pictures_of_a_training(
    command: Callable[..., Any], pictures: Path, settings: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    said = command("train", pictures, "--run", run, "--preset", "tiny", *settings, "--track", "tensorboard")
    assert said.code == 0
    assert said.err.startswith(f"training on {pictures} in {run}\n")
    events = EventAccumulator(str(run / "tracking" / "tensorboard")).Reload()
    for stage, name in (
        (RunFolder(run).autoencoder, "autoencoder"),
        (RunFolder(run).prior(1), "prior-level-1"),
    ):
        lines = [line for line in read_metrics(stage.metrics) if "loss" in line]
        sent = [(event.step, event.value) for event in events.Scalars(f"{name}/loss")]
        assert [step for step, _ in sent] == [line["step"] for line in lines]
        assert np.allclose([value for _, value in sent], [line["loss"] for line in lines])
        assert f"{name}/pictures" in events.Tags()["images"]
    assert json.loads((run / "tracking" / "tensorboard.json").read_text())["steps"]["autoencoder"] == 60


def test_trackers_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="tensorboard, trackio, wandb"):
        check_tracker("mlflow")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'vqvae2\[track\]'"):
        check_tracker("tensorboard")
    said = command("train", "emoji64", "--run", tmp_path / "run", "--track", "wandb")
    assert said.code == 2
    assert said.err.splitlines()[-1] == "vqvae2: wandb is not installed: pip install wandb"
    assert not (tmp_path / "run").exists()


def test_settings_become_flat() -> None:
    assert flat({"a": {"b": [1, {"c": None}]}, "d": True}) == {"a.b.0": 1, "a.b.1.c": "None", "d": True}


# --- inspect --watch ---


def test_the_curves_of_a_run(trained: Path, command: Callable[..., Any]) -> None:
    said = command("inspect", trained, "--watch")
    assert said.code == 0
    for part in ("autoencoder: done", "prior level 1: done", "loss", "heldout_psnr", "all stages are done"):
        assert part in said.out


def test_watching_goes_on_until_the_training_is_done(run: Path) -> None:
    """The last stage is finished while it is watched."""
    model = RunFolder(run).prior(1).model
    hidden = model.rename(model.with_suffix(".hidden"))
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            hidden.rename(model)

    out = StringIO()
    now = iter(range(0, 10_000, 100))
    console = Console(file=out, force_terminal=True, width=100)
    watch(run, console, wait, lambda: float(next(now)))
    assert len(waited) == 3
    shown = " ".join(out.getvalue().split())
    assert "step 8 of 8, 100%" in shown
    assert "to do: prior level 1; nothing new for" in shown


def test_watching_does_not_wait_for_a_prior_of_no_steps(run: Path) -> None:
    """One of the jobs of priors that are trained side by side."""
    shutil.rmtree(RunFolder(run).prior(1).path)
    assert _done(StoredRun(run))["prior level 1"] is False
    record, config = read_run(run)
    write_config(run, record, parse(override(config.model_dump(mode="json"), ["train_prior.1.steps=0"])))
    assert _done(StoredRun(run)) == {"autoencoder": True, "codes": True, "prior level 0": True}
    with pytest.raises(UserError, match=r"--set train_prior\.1\.steps=N"):
        _ = load(run, "cpu").prior


def test_watching_follows_a_finished_stage_that_is_trained_further(run: Path) -> None:
    """Its lines are read in longer/ and, when that has taken the place of the stage's own, not twice."""
    folder = RunFolder(run)
    stage, file = folder.prior(1), folder.config
    file.write_text(file.read_text().replace("steps: 8\n", "steps: 16\n"))
    for prior in (folder.prior(0), stage):
        record = json.loads(prior.record.read_text())
        record["outcome"]["step"] = 16 if prior is not stage else 8
        prior.record.write_text(json.dumps(record))
    follower = Follower(run, 2)
    assert steps(follower)["prior level 1"][-1] == 8
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 1:
            stage.longer.path.mkdir()
            shutil.copy(stage.metrics, stage.longer.metrics)
            write_metrics(stage.longer.metrics, 12, {"loss": 1.0})
            assert steps(follower) == {"prior level 1": [12]}
        if len(waited) == 2:
            record["outcome"]["step"] = 16
            stage.record.write_text(json.dumps(record))
            stage.longer.metrics.replace(stage.metrics)
            assert steps(follower) == {}

    out = StringIO()
    watch(run, Console(file=out, force_terminal=True, width=100), wait, lambda: 0.0)
    assert len(waited) == 2
    shown = " ".join(out.getvalue().split())
    assert "prior level 1: step 12 of 16" in shown
    assert "to do: prior level 1" in shown


def test_a_sparkline_has_the_shape_of_its_curve() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7], 2) == "▁█"
    assert sparkline([1.0, float("nan"), 1.0], 9) == "▁▁"
    assert sparkline([], 5) == ""


def test_watching_needs_a_run(command: Callable[..., Any]) -> None:
    assert "--watch shows a RUN" in command("inspect", "--preset", "tiny", "--watch").err


def test_the_work_of_a_training_is_in_the_order_of_its_stages() -> None:
    config = preset("tiny")
    limited = config.model_copy(
        update={"train_autoencoder": config.train_autoencoder.model_copy(update={"minutes": 2.0})}
    )
    work = work_of(limited, "prior")
    assert list(work) == ["autoencoder", "prior level 0", "prior level 1"]
    assert all(flops > 0 for flops, _ in work.values())
    assert work["autoencoder"][1] == 120
    assert list(work_of(config, "autoencoder")) == ["autoencoder"]
