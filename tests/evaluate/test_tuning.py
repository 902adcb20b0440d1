"""The search over drawing settings finds what is best, keeps recall, and reports on images that it did not choose on."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from colours_network import Colours
from torch import Tensor

from vqvae2.commands.evaluate import keep_sampling
from vqvae2.config.models import parse
from vqvae2.config.overrides import override
from vqvae2.config.sampling import Sampling
from vqvae2.evaluate import context
from vqvae2.evaluate.features import Features
from vqvae2.evaluate.parts import tuning
from vqvae2.evaluate.parts.tuning import KEPT_RECALL, VALUES, Trial, best, compare, search
from vqvae2.files.atomic import read_json
from vqvae2.files.progress import Reporter
from vqvae2.run import load
from vqvae2.train.folder import read_run, write_config

OPTIMUM = {"guidance": (2.0, 1.5), "top_p": (0.93, 1.0), "temperature": (1.0, 0.9)}


def separable(sampling: Sampling, recall: Callable[[Sampling], float] = lambda _: 1.0) -> Trial:
    """A kernel distance that is 0 at OPTIMUM and in which every setting counts for itself."""
    offsets = [
        abs(value - wanted)
        for name in VALUES
        for value, wanted in zip(getattr(sampling, name), OPTIMUM[name], strict=True)
    ]
    return Trial(sampling, sum(offsets), 1.0, recall(sampling))


def test_a_separable_optimum_is_found() -> None:
    trials = search(separable, 2, True, Sampling(batch=7))
    assert len(trials) == 1 + 2 * sum(len(values) - 1 for values in VALUES.values())
    assert trials[0].sampling == Sampling(
        temperature=(1.0, 1.0), top_p=(1.0, 1.0), guidance=(1.0, 1.0), batch=7
    )
    chosen = best(trials, 0).sampling
    assert {name: getattr(chosen, name) for name in VALUES} == OPTIMUM
    assert chosen.batch == 7


def test_the_optimum_of_a_single_level_is_found() -> None:
    """Its settings are numbers, and not lists of one number."""
    wanted = {name: values[0] for name, values in OPTIMUM.items()}

    def measure(sampling: Sampling) -> Trial:
        offsets = [abs(sampling.at(name, 0, 1) - value) for name, value in wanted.items()]
        return Trial(sampling, sum(offsets), 1.0, 1.0)

    trials = search(measure, 1, True, Sampling())
    assert len(trials) == 1 + sum(len(values) - 1 for values in VALUES.values())
    assert {name: getattr(best(trials, 0).sampling, name) for name in VALUES} == wanted


def test_without_classes_guidance_is_not_tried() -> None:
    trials = search(separable, 2, False, Sampling())
    assert {trial.sampling.guidance for trial in trials} == {(1.0, 1.0)}
    assert len(trials) == 1 + 2 * (len(VALUES["top_p"]) + len(VALUES["temperature"]) - 2)


def test_settings_that_lose_recall_are_not_chosen() -> None:
    """With guidance above 1.5 at the coarse level, recall falls below what has to be kept."""

    def recall(sampling: Sampling) -> float:
        assert isinstance(sampling.guidance, tuple)
        return 0.4 if sampling.guidance[0] <= 1.5 else 0.4 * KEPT_RECALL - 0.01

    trials = search(lambda sampling: separable(sampling, recall), 2, True, Sampling())
    chosen = best(trials, KEPT_RECALL * trials[0].recall)
    assert chosen.sampling.guidance == (1.5, 1.5)
    assert chosen.recall == 0.4


def test_if_nothing_keeps_the_recall_the_highest_is_taken() -> None:
    trials = [Trial(Sampling(), 0.1, 1.0, 0.2), Trial(Sampling(top_k=3), 0.5, 1.0, 0.3)]
    assert best(trials, 0.9) is trials[1]


def test_the_command_chooses_reports_and_writes(
    pictures: Path,
    train_tiny: Callable[..., Path],
    tmp_path: Path,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(context, "feature_network", lambda *_: Colours())
    monkeypatch.setattr(tuning, "_LEAST", 6)
    monkeypatch.setattr(tuning, "VALUES", {name: values[:2] for name, values in VALUES.items()})
    held: list[weakref.ref[Tensor]] = []

    def noted(sampling: Sampling, real: Features, samples: Features, *others: Any) -> Trial:
        assert not any(features() is not None for features in held), "of an earlier trial, in memory"
        held.append(weakref.ref(samples.pooled))
        return compare(sampling, real, samples, *others)

    monkeypatch.setattr(tuning, "compare", noted)
    run = train_tiny(tmp_path, pictures, "data.holdout=0.6")
    said = command("evaluate", run, "--tune-sampling", "--out", tmp_path / "report")
    assert said.code == 0, said.err
    report = read_json(tmp_path / "report" / "report.json")
    assert list(report["parts"]) == ["tuning"]
    figures = report["parts"]["tuning"]
    trials = [row for name, row in figures.items() if name.startswith("trial")]
    assert len(trials) == 1 + 2 * 3
    assert figures["chosen"] in trials
    assert figures["chosen"]["recall"] >= KEPT_RECALL * trials[0]["recall"]
    assert {f"other half: {name}" for name in ("chosen", "the run's settings")} < figures.keys()
    written = yaml.safe_load((run / "config.yaml").read_text())["sampling"]
    for name in ("temperature", "top_p", "guidance"):
        assert written[name] == figures["chosen"][name]
    again = command("evaluate", run, "--tune-sampling", "--out", tmp_path / "report")
    assert again.code == 0
    assert read_json(tmp_path / "report" / "report.json")["parts"]["tuning"]["chosen"] == figures["chosen"]
    assert len(held) == 2 * (len(trials) + 3), "one more for each that is reported"
    assert command("train", pictures, "--run", run).code == 0  # the training still recognises its run


def test_what_a_training_wrote_meanwhile_stays(run: Path) -> None:
    """Only the sampling changes in the settings as they are now, not as they were before the measuring."""
    loaded = load(run, "cpu")
    record, config = read_run(run)
    later = override(config.model_dump(mode="json"), ["train_prior.*.steps=99", "sampling.batch=7"])
    write_config(run, {**record, "command": "later"}, parse(later))
    chosen = {**loaded.sampling.about(), "temperature": 0.8}
    keep_sampling(loaded, {"parts": {"tuning": {"chosen": chosen}}}, Reporter(quiet=True))
    record, config = read_run(run)
    assert record["command"] == "later"
    assert config.model_dump(mode="json") == override(later, ["sampling.temperature=0.8"])


def test_too_few_held_out_images_are_said(trained: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    (tmp_path / "report.json").write_text('{"protocol": {}, "parts": {}}')  # a report that is there already
    said = command("evaluate", trained, "--tune-sampling", "--out", tmp_path)
    assert said.code == 2
    (line,) = said.err.splitlines()[-1:]
    assert re.fullmatch(r".*cannot measure tuning: tuning needs 40 held-out images, found \d+", line)
    assert said.err.count("needs 40") == 1
    assert "replaced" not in said.err
