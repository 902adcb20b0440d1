"""Verbs under `torchrun`: two processes leave the files of one; one that fails or is killed ends both, with one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed import TCPStore

from vqvae2.cli import main
from vqvae2.evaluate import context, critic, critic_images
from vqvae2.evaluate.resnet import ClassifierConfig
from vqvae2.files.atomic import read_json
from vqvae2.files.tensor_file import stored_digest

# Each job is a list of arguments. Parts are small, so that there are some for each process.
_WORKER = """
import json, os, signal, sys
import torch
from vqvae2.cli import main
from vqvae2.errors import UserError
from vqvae2.evaluate import context, critic, critic_images
from vqvae2.evaluate.resnet import ClassifierConfig
from vqvae2.generate.sample_folder import SampleFolder
from vqvae2.commands import images


class Colours:
    name, digest, dimension, size, resize, score_name = "colours", "0" * 64, 12, 2, "mean", None
    def __call__(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1), None

torch.set_num_threads(1)
context._PART = critic_images.PART = 8
critic.classifier_config = lambda n: ClassifierConfig(width=8, stages=1, steps=10)
context.feature_network = lambda *_: Colours()
rank, fault = int(os.environ["RANK"]), sys.argv[2]
if fault == "killed" and rank == 1:
    usual = SampleFolder.add
    def add(folder, part):
        usual(folder, part)
        os.kill(os.getpid(), signal.SIGKILL)
    SampleFolder.add = add
if fault == "mistake" and rank == 0:
    def fail(*_):
        raise UserError("only here")
    images.image_files = fail
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as error:
        assert not error.code, error
"""


class Colours:
    """A feature network that takes a moment: the mean colours of the quarters; the worker has it too."""

    name, digest, dimension, size, resize, score_name = "colours", "0" * 64, 12, 2, "mean", None

    def __call__(self, images: Tensor) -> tuple[Tensor, None]:
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1), None


def two(
    jobs: list[list[str]], fault: str = "", cwd: Path | None = None, script: str = _WORKER
) -> list[tuple[int, str, str]]:
    """Two processes do these jobs: of each the exit code, its standard output and its standard error."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun does
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    group |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, json.dumps(jobs), fault],
            env=os.environ | group | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    try:
        said = [worker.communicate(timeout=200) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [(worker.returncode, *words) for worker, words in zip(workers, said, strict=True)]


def jobs(run: Path, images: Path) -> list[list[str]]:
    """Every verb that is shared, on a run; results go to the present folder."""
    one = [str(images / "disc" / f"{number:02d}.png") for number in (1, 4, 7)]
    folders = ["--samples", "npz", "--data", str(images), "--only", "precision,symmetry", "--n", "6"]
    return [
        ["sample", str(run), "--n", "11", "--out", "png", "--batch", "2"],
        ["sample", str(run), "--n", "7", "--out", "npz", "--batch", "2", "--pictures", "npz"],
        ["critic", "fit", str(run), "--features", "resnet"],
        ["sample", str(run), "--n", "6", "--out", "best", "--batch", "4", "--critic", "0.5"],
        ["score", str(run), *one, "--out", "scores.json"],
        ["score", str(run), *one, "--json"],
        ["reconstruct", str(run), *one, "--out", "again", "--json"],
        ["evaluate", str(run), "--out", "report", "--only", "nll,codes"],
        ["evaluate", "--out", "folders", *folders],
    ]


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file; of weights their digest, without features and seconds, which are times of the machine."""
    found = {}
    for file in folder.rglob("*"):
        if file.suffix == ".json" and file.name == "report.json":
            report = read_json(file)
            del report["seconds"]
            content = json.dumps(report).encode()
        elif file.suffix == ".safetensors":
            content = stored_digest(file).encode()
        else:
            content = file.read_bytes() if file.is_file() else b""
        if file.name != "report.html" and not file.name.startswith("features-"):
            found[str(file.relative_to(folder))] = content
    return found


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, trained: Path, pictures: Path
) -> tuple[Path, list[tuple[int, str, str]]]:
    """Folders `one` and `two`, in which one and two processes did the jobs, and what the two said."""
    place = tmp_path_factory.mktemp("together")
    for name in ("one", "two"):
        (place / name).mkdir()
        shutil.copytree(trained, place / name / "run")
    said = two(jobs(Path("run"), pictures), cwd=place / "two")
    patch, threads = pytest.MonkeyPatch(), torch.get_num_threads()
    patch.chdir(place / "one")
    patch.setattr(context, "_PART", 8)
    patch.setattr(critic_images, "PART", 8)
    patch.setattr(context, "feature_network", lambda *_: Colours())
    small = ClassifierConfig(width=8, stages=1, steps=10)
    patch.setattr(critic, "classifier_config", lambda n: small)
    torch.set_num_threads(1)
    try:
        for arguments in jobs(Path("run"), pictures):
            with pytest.raises(SystemExit) as ended:
                main(arguments)
            assert ended.value.code == 0
    finally:
        torch.set_num_threads(threads)
        patch.undo()
    return place, said


def test_two_processes_leave_the_files_of_one(place: tuple[Path, list[tuple[int, str, str]]]) -> None:
    """Samples, the critic and what it chooses, scores, reconstructions, the report and its cache: all bytes."""
    folder, said = place
    assert [code for code, _, _ in said] == [0, 0], said
    one, two = files(folder / "one"), files(folder / "two")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


def test_only_the_main_process_speaks(place: tuple[Path, list[tuple[int, str, str]]]) -> None:
    folder, ((_, out, _), (_, other_out, other_err)) = place
    assert (other_out, other_err) == ("", "")
    start = out.index("{")
    scores, end = json.JSONDecoder().raw_decode(out[start:])
    assert scores == json.loads((folder / "one" / "scores.json").read_text())
    again, _ = json.JSONDecoder().raw_decode(out[start + end :].lstrip())
    assert [item["file"] for item in again] == [str(Path("again") / f"0{number}.png") for number in (1, 4, 7)]


def test_after_a_kill_the_other_ends_and_one_process_goes_on(trained: Path, tmp_path: Path) -> None:
    """The one that is left says one line; what was drawn is kept; the result is that of one process."""
    request = ["sample", str(trained), "--n", "10", "--batch", "2", "--pictures", "npz", "--out"]
    (code, _, err), (killed, _, _) = two([[*request, "two"]], "killed", tmp_path)
    assert (code, killed) == (1, -9)
    lines = [line for line in err.splitlines() if line.startswith("vqvae2:")]
    assert lines == [
        "vqvae2: another process of this command ended; the same command goes on where it stopped"
    ]
    assert "Traceback" not in err
    kept = {file.name for file in (tmp_path / "two").glob("codes-*.npz")}
    assert "codes-00002-00003.npz" in kept
    assert len(kept) < 5
    for name in ("two", "one"):
        with pytest.raises(SystemExit):
            main([*request, str(tmp_path / name)])
    one, two_ = files(tmp_path / "one"), files(tmp_path / "two")
    del one["samples.json"], two_["samples.json"]  # which name their folder
    assert {name for name in two_ if not name.startswith(".")} == set(one)
    assert all(two_[name] == content for name, content in one.items())


def test_a_mistake_that_one_process_finds_ends_both(trained: Path, pictures: Path, tmp_path: Path) -> None:
    job = ["score", str(trained), str(pictures / "disc"), "--out", "scores.json"]
    (code, _, err), (other, _, other_err) = two([job], "mistake", tmp_path)
    assert (code, err.strip()) == (2, "vqvae2: only here")
    assert (other, other_err) == (1, "")


def test_a_script_that_only_measures_joins_its_processes(trained: Path, tmp_path: Path) -> None:
    """Every process measured everything, and all wrote the same report."""
    script = """
import json, sys
import vqvae2
((run, out),) = json.loads(sys.argv[1])
print(json.dumps(vqvae2.measure(run, out=out, only=["nll", "reconstruction"])))
"""
    (code, main_said, _), (other, other_said, err) = two([[str(trained), str(tmp_path)]], script=script)
    assert (code, other) == (0, 0), err
    assert json.loads(main_said) == read_json(tmp_path / "report.json")
    assert json.loads(other_said) == {}


def test_a_verb_of_one_process_is_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one line, which the main process writes."""
    ended: list[Any] = []

    def leave(code: int) -> None:
        ended.append(code)
        raise SystemExit(code)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit):
        main(["inspect", str(trained)])
    assert ended == [2]


def test_samples_are_drawn_once(place: tuple[Path, list[tuple[int, str, str]]]) -> None:
    """Every number is in one batch, whichever process drew it."""
    folder, _ = place
    numbers = np.concatenate([np.load(file)["numbers"] for file in (folder / "two" / "npz").glob("*.npz")])
    assert sorted(numbers.tolist()) == list(range(7))
