"""`vqvae2.fit` and `vqvae2.measure`: what the commands do, and one line for a mistake instead of the end of the process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import vqvae2
from vqvae2.files.atomic import read_json
from vqvae2.train.loop import Interrupted

QUIET = vqvae2.Reporter(quiet=True)
Command = Callable[..., Any]


def test_a_call_with_other_settings_goes_on_from_a_run(half: Path, pictures: Path) -> None:
    """The first stages stay; the prior that was missing is trained with the settings of the call, of any library's numbers."""
    before = vqvae2.load(half).digests()
    settings = {"train_prior.1.steps": np.int64(3), "train_prior.1.lr": 1e-7}
    run = vqvae2.fit(pictures, half, settings=settings, reporter=QUIET)
    assert run.digests().items() > before.items()
    assert (run.config.train_prior[1].steps, run.config.train_prior[1].lr) == (3, 1e-7)
    assert run.record["command"] == "vqvae2.fit"


def test_a_config_a_file_a_size_and_settings(tmp_path: Path, pictures: Path) -> None:
    """Each replaces those before it; `until` stops after the first stage."""
    file = tmp_path / "settings.yaml"
    file.write_text("train_autoencoder:\n  steps: 7\n  batch: 4\n")
    run = vqvae2.fit(
        pictures,
        tmp_path / "run",
        preset=vqvae2.preset("tiny"),
        config=file,
        size=(16, 32),
        settings={"train_autoencoder.steps": 2, "autoencoder.codes": [8, 8]},
        until="autoencoder",
        reporter=QUIET,
    )
    own = run.config
    assert (own.data.shape, own.autoencoder.codes) == ((16, 32), (8, 8))
    assert (own.train_autoencoder.steps, own.train_autoencoder.batch) == (2, 4)
    assert [name for name, done in run.done().items() if done] == ["autoencoder"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "huge"}, "huge"),
        ({"preset": 3}, "expected preset as a name or a Config, found int"),
        ({"settings": {"train_autoencoder.step": 3}}, "no such setting 'train_autoencoder.step'"),
        ({"settings": {"train_autoencoder.steps": object()}}, "expected a number, a text or a list"),
        ({"settings": {"train_autoencoder.steps": "many"}}, "train_autoencoder.steps"),
        ({"size": 15}, "15"),
        ({"until": "priors"}, "expected until to be one of autoencoder, codes, sharpen, prior"),
        ({"data": "nowhere"}, "no such folder or file"),
        ({"data": torch.zeros(2, 3, 16, 16)}, "expected data to be the path .* found Tensor"),
        ({"data": ["a", "b"]}, "found list"),
        ({"config": "none.yaml"}, "cannot read the configuration none.yaml"),
    ],
)
def test_mistakes_in_training(
    changes: dict[str, Any], message: str, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"data": pictures, "run": tmp_path / "run", "preset": "tiny", "reporter": QUIET} | changes
    with pytest.raises(vqvae2.UserError, match=message) as caught:
        vqvae2.fit(**arguments)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_texts_of_any_alphabet_are_settings(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(
        vqvae2.UserError, match=r"data\.label_column is 'émo😀'"
    ):  # which this folder does not have
        vqvae2.fit(
            pictures, tmp_path / "run", preset="tiny", settings={"data.label_column": "émo😀"}, reporter=QUIET
        )


def test_a_mapping_changes_the_settings_that_it_names(pictures: Path, tmp_path: Path) -> None:
    """The others of its section stay those of the preset; they became the defaults of the class."""
    settings = {
        "train_autoencoder": {"steps": 1, "batch": 2},
        "autoencoder": {"rate": 0.5},
        "data": {"workers": 0},
    }
    run = vqvae2.fit(
        pictures, tmp_path / "run", preset="tiny", settings=settings, until="autoencoder", reporter=QUIET
    )
    tiny = vqvae2.preset("tiny")
    changed = {"steps": 1, "batch": 2}
    assert run.config.train_autoencoder == tiny.train_autoencoder.model_copy(update=changed)
    assert run.config.autoencoder == tiny.autoencoder.model_copy(update={"entropy_penalty": 0.5})


def test_an_interrupted_training_is_no_error_to_be_caught(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`except Exception` in a loop over trainings let Ctrl-C end one of them only."""

    def stopped(*_: Any, **__: Any) -> None:
        raise Interrupted("autoencoder: saved at step 3 of 9")

    monkeypatch.setattr("vqvae2.train.pipeline.train", stopped)
    with pytest.raises(KeyboardInterrupt, match="saved at step 3"):
        vqvae2.fit(pictures, tmp_path / "run", preset="tiny", reporter=QUIET)


def test_an_own_accelerator_after_a_training(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its precision may be another one than that of the training."""
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})  # as in a new process
    settings = {"train_autoencoder.steps": 1, "data.workers": 0}
    vqvae2.fit(
        pictures, tmp_path / "run", preset="tiny", settings=settings, until="autoencoder", reporter=QUIET
    )
    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"


def test_a_run_that_was_trained_further_since_it_was_loaded(half: Path, pictures: Path) -> None:
    """Its weights and what the folder says of them do not go together, so it has to be loaded again; the compressor notices new priors."""
    old = vqvae2.load(half)
    image = torch.zeros(old.config.data.channels, *old.config.data.shape)
    with pytest.raises(vqvae2.UserError, match="not trained"):
        old.compress(image)
    changes: dict[str, Any] = {"train_prior.1.steps": 3, "data.workers": 0}
    vqvae2.fit(pictures, half, settings=changes, reporter=QUIET)
    assert torch.equal(old.decompress(old.compress(image)), old.reconstruct(image[None])[0])
    digests = old.digests()
    vqvae2.fit(pictures, half, settings=changes | {"train_prior.1.steps": 5}, reporter=QUIET)
    with pytest.raises(
        vqvae2.UserError, match=r"prior level 1 of .* since its weights were loaded; load the run again"
    ):
        old.digests()
    with pytest.raises(vqvae2.UserError, match="load the run again"):
        old.figures(1)
    assert vqvae2.load(half).digests() != digests


def test_figures_of_no_stage(trained: Path) -> None:
    run = vqvae2.load(trained)
    assert run.figures(0)
    for name in (5, "autoencoder", "sharpn"):
        with pytest.raises(vqvae2.UserError, match=r"expected one of None, 'sharpen', 0, 1, found"):
            run.figures(name)  # type: ignore[arg-type]


def test_the_figures_are_those_of_the_command(
    trained: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    arguments = ("--only", "nll,reconstruction", "--n", 4, "--out", tmp_path / "a")
    assert command("evaluate", trained, *arguments).code == 0
    options = {"only": ["nll", "reconstruction"], "n": np.int64(4), "reporter": QUIET}
    found = vqvae2.measure(vqvae2.load(trained), out=tmp_path / "b", **options)
    assert found == read_json(tmp_path / "b" / "report.json")
    assert found["parts"] == read_json(tmp_path / "a" / "report.json")["parts"]
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    assert vqvae2.measure(copy, str(pictures), **options)["parts"] == found["parts"]
    assert (copy / "report" / "report.html").is_file()


def test_a_folder_alone(pictures: Path, tmp_path: Path) -> None:
    options = {"samples": str(pictures / "disc"), "size": 16, "only": "symmetry", "reporter": QUIET}
    found = vqvae2.measure(None, pictures, tmp_path / "out", **options)
    assert found["parts"]["symmetry"]["sets"]["samples"]["n"] == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 3}, "no option seeds: expected some of against, classifier"),
        ({"only": "fid"}, "no part fid"),
        ({"n": 1}, "expected n as a whole number of at least 2, found 1"),
        ({"n": 5.5}, "n: Input should be a valid integer"),
        ({"seed": -1}, "expected seed as a whole number of at least 0, found -1"),
        ({"weights": 1}, "weights: "),
        ({"against": "folder"}, "against: Input should be a valid dictionary"),
        ({"critic_fractions": 0.5}, "critic_fractions: "),
        ({"sampling": {"temperature": -1}}, "temperature"),
        ({"size": 32}, "size has no effect with a run"),
        ({"split": "extra"}, "no split 'extra'"),
        ({"against": {"other": "nowhere"}}, "other: expected a folder of images"),
        ({"run": "nowhere/at/all"}, "nowhere"),
        ({"run": None}, "expected --data DATA, the real images"),
        ({"run": None, "out": None}, "expected a RUN, or --samples FOLDER"),
        ({"run": None, "data": "pictures"}, "expected --out DIR for the report"),
        ({"split": "test", "out": None}, "expected --out DIR for the report on a split"),
    ],
)
def test_mistakes_in_measuring(changes: dict[str, Any], message: str, trained: Path, tmp_path: Path) -> None:
    out = None if "data" in changes else tmp_path / "out"
    with pytest.raises(vqvae2.UserError, match=message) as caught:
        vqvae2.measure(**({"run": trained, "out": out, "reporter": QUIET} | changes))
    assert "\n" not in str(caught.value)
