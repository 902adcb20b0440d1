"""`sample --label-shares data`: each class as often as among the training images, from the run's record or its codes."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vqvae2.data.images import open_images
from vqvae2.files.run_folder import RunError
from vqvae2.run import load
from vqvae2.sharing import Card, stage
from vqvae2.train.stored_run import StoredRun

Command = Callable[..., Any]


def record(run: Path, counts: list[int] | None) -> Path:
    """The run, whose record says how many training images each class has, or does not."""
    file = run / "config.yaml"
    value = yaml.safe_load(file.read_text())
    value["run"].pop("class_counts", None)
    value["run"] |= {} if counts is None else {"class_counts": counts}
    file.write_text(yaml.safe_dump(value))
    return run


def labels(command: Command, run: Path, out: Path, n: int, *options: Any) -> list[int]:
    """The classes of n samples in proportion to the data."""
    said = command("sample", run, "--n", n, "--label-shares", "data", "--out", out, "--json", *options)
    assert said.code == 0, said.err
    return [entry["label"] for entry in json.loads(said.out)["samples"]]


def test_the_record_has_the_counts_of_the_training_images(
    trained: Path, pictures: Path, tmp_path: Path
) -> None:
    run = StoredRun(trained)
    images = open_images(str(pictures), run.config.data, tmp_path, say=lambda _: None)
    own = [int((images.labels[images.train] == label).sum()) for label in range(3)]
    assert run.class_counts() == run.record["class_counts"] == own


def test_codes_say_it_too(run: Path) -> None:
    """Of a run that an older version trained."""
    expected = StoredRun(run).class_counts()
    assert StoredRun(record(run, None)).class_counts() == expected  # the run has one copy of each image


def test_samples_have_the_shares_of_the_data(run: Path, tmp_path: Path, command: Command) -> None:
    record(run, [60, 10, 30])
    assert Counter(labels(command, run, tmp_path / "ten", 10)) == {0: 6, 1: 1, 2: 3}
    more = labels(command, run, tmp_path / "ten", 20)  # the same folder: ten are added
    assert more[:10] == labels(command, run, tmp_path / "other", 10)
    assert Counter(more) == {0: 12, 1: 2, 2: 6}
    said = command(
        "sample", run, "--n", 10, "--out", tmp_path / "ten"
    )  # all in turn, which are other samples
    assert (said.code, "labels" in said.err) == (2, True)


def test_from_python(run: Path) -> None:
    loaded = load(record(run, [3, 0, 1]), "cpu")
    wanted = loaded.labels_in_proportion(4)
    assert sorted(wanted) == [0, 0, 0, 2]
    drawn = torch.cat([part.images for part in loaded.draw(4, wanted)])
    assert torch.equal(loaded.sample(4, wanted), drawn)
    asked = [part.labels for part in loaded.draw(4, wanted) if part.labels is not None]
    assert torch.cat(asked).tolist() == wanted


def test_a_shared_run_keeps_them(run: Path, tmp_path: Path) -> None:
    stage(StoredRun(record(run, [1, 2, 5])), tmp_path / "shared", Card("mit"), "me/run")
    shared = StoredRun(tmp_path / "shared")
    assert shared.class_counts() == [1, 2, 5]
    assert not shared.paths.codes.exists()


def test_what_is_refused(run: Path, tmp_path: Path, command: Command) -> None:
    def refused(*options: Any) -> str:
        said = command("sample", run, "--n", 2, "--label-shares", "data", "--out", tmp_path / "out", *options)
        assert (said.code, said.err.count("\n")) == (2, 1), said.err
        assert not (tmp_path / "out").exists()
        return said.err

    assert "--label-shares has no effect" in refused("--label", "disc")
    for damaged in ([1, 2], [1, -1, 3], [0, 0, 0], [2**62, 1, 1]):
        record(run, damaged)
        assert "class_counts" in refused()
    shutil.rmtree(record(run, None) / "codes")
    assert "does not say how many training images each class has" in refused()
    value = yaml.safe_load((run / "config.yaml").read_text())
    value["run"]["classes"], value["prior"]["classes"] = [], 0
    (run / "config.yaml").write_text(yaml.safe_dump(value))
    assert "has no classes" in refused()
    with pytest.raises(RunError, match="has no classes"):
        StoredRun(run).labels_in_proportion(3)
