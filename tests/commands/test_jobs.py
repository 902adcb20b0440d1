"""The jobs of the verbs as functions of Python: what the command does, without the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from vqvae2 import processes
from vqvae2.commands import sample as samples
from vqvae2.commands.complete import CompletionRequest, complete
from vqvae2.commands.reconstruct import reconstruct
from vqvae2.commands.sample import Form, SampleRequest, sample
from vqvae2.commands.score import score
from vqvae2.commands.train import choose_config
from vqvae2.config.overrides import read_yaml
from vqvae2.config.presets import preset
from vqvae2.config.sampling import Sampling
from vqvae2.errors import UserError
from vqvae2.files.progress import Reporter
from vqvae2.files.run_folder import RunError
from vqvae2.generate.sample_folder import holds_arrays, listed_samples, read_samples
from vqvae2.processes import Group
from vqvae2.run import Run, load

QUIET = Reporter(quiet=True)


class Blue:
    """A critic: the mean of the blue channel, whatever the class."""

    digest, backbone_digest = "d" * 64, "n" * 64

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        return images[:, 2].mean((1, 2))


@pytest.fixture
def run(trained: Path) -> Run:
    """The trained run of the session, on the CPU."""
    return load(trained, "cpu")


def files(folder: Path) -> dict[str, Any]:
    """The content of every file, of arrays by name."""
    result: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.suffix == ".npz":
            with np.load(file) as arrays:
                result |= {f"{name}:{key}": arrays[key].tolist() for key in arrays}
        elif file.is_file() and file.name != "samples.json":  # it holds the folder's own name
            result[name] = file.read_bytes()
    return result


def test_sample_does_what_the_command_does(run: Run, tmp_path: Path, command: Callable[..., Any]) -> None:
    sampling = Sampling(temperature=0.8, batch=2)
    request = SampleRequest(5, ["disc", 0], seed=3, sampling=sampling, form=Form.npz)
    result = sample(run, tmp_path / "a", request, QUIET)
    assert result is not None
    assert (result.new, result.candidates) == (5, 0)
    assert result.listing == json.loads((tmp_path / "a" / "samples.json").read_text())
    options = ["--label", "disc", "--label", 0, "--seed", 3, "--temperature", 0.8, "--batch", 2]
    said = command("sample", run.folder, "--n", 5, "--pictures", "npz", *options, "--out", tmp_path / "b")
    assert said.code == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_sample_again_draws_what_is_missing(run: Run, tmp_path: Path) -> None:
    first = sample(run, tmp_path, SampleRequest(3), QUIET)
    more = sample(run, tmp_path, SampleRequest(5), QUIET)
    again = sample(run, tmp_path, SampleRequest(5), QUIET)
    assert [result and result.new for result in (first, more, again)] == [3, 2, 0]
    with pytest.raises(UserError, match=r"drawn differently.*seed: 0 -> 1"):
        sample(run, tmp_path, SampleRequest(5, seed=1), QUIET)


@pytest.mark.parametrize("seed", [0, 1])
def test_choosing_on_disk_is_choosing_in_memory(
    seed: int, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One algorithm, two places for the candidates: `sample` with a critic and `Run.draw_best` choose alike."""
    monkeypatch.setattr("vqvae2.run.Run.critic", Blue())
    sampling = Sampling(batch=4)
    request = SampleRequest(7, seed=seed, sampling=sampling, critic=0.3, form=Form.npz)
    result = sample(run, tmp_path, request, QUIET)
    assert result is not None
    assert result.candidates == 10 + 6 + 6  # floor(3 / 0.3) of one class, floor(2 / 0.3) of two
    stored = read_samples(tmp_path)
    drawn = list(run.draw_best(7, 0.3, seed=seed, sampling=sampling))
    assert [entry["candidate"] for entry in result.listing["samples"]] == [
        number for batch in drawn for number in batch.candidates.tolist()
    ]
    assert stored.labels is not None
    assert stored.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    images = torch.cat([batch.images for batch in drawn])
    assert torch.allclose(torch.cat(list(stored.images(0, 7))), images, atol=1.01 / 127.5)


@pytest.mark.parametrize("first", [True, False])
def test_processes_that_see_different_files_have_the_same_jobs(
    first: bool, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a critic, a process that saw all samples had one job, and one that saw none had two."""
    monkeypatch.setattr("vqvae2.run.Run.critic", Blue())
    request = SampleRequest(6, critic=0.5, form=Form.npz)
    sample(run, tmp_path / "full", request, QUIET)
    agreed: list[Any] = []

    def agree(group: Group, value: Any) -> Any:
        if group.main:
            agreed.append(value)
            return value
        return agreed.pop(0)

    def found(rank: int, out: Path) -> list[Any]:
        monkeypatch.setattr(processes, "joined", lambda: Group(rank, 2))
        jobs = samples._jobs(run, out, request, *samples._describe(run, request))
        return [(job.title, job.missing) for job in jobs]

    monkeypatch.setattr(Group, "wait", lambda group: None)
    monkeypatch.setattr(Group, "agreed", agree)
    main, other = ("full", "empty") if first else ("empty", "full")
    assert found(0, tmp_path / main) == found(1, tmp_path / other)
    assert agreed == []


def test_a_critic_needs_to_be_fitted(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no critic is fitted"):
        sample(run, tmp_path / "out", SampleRequest(2, critic=0.5), QUIET)
    assert not (tmp_path / "out").exists()


def test_stored_samples_are_read_from_number_0_on(run: Run, tmp_path: Path) -> None:
    sampling = Sampling(batch=2)
    sample(run, tmp_path, SampleRequest(7, sampling=sampling, form=Form.npz), QUIET)
    whole = read_samples(tmp_path)
    assert whole.n == 7
    (tmp_path / "preview.png").write_bytes((tmp_path / "grid.png").read_bytes())
    assert holds_arrays(tmp_path), "another picture is no sample"
    images = torch.cat(list(whole.images(0, 7)))
    assert torch.equal(torch.cat(list(whole.images(3, 6))), images[3:6])
    assert torch.equal(torch.cat(list(whole.images(5, 99))), images[5:])
    (tmp_path / "codes-00002-00003.npz").unlink()
    assert read_samples(tmp_path).n == 2, "number 2 is missing"
    (tmp_path / "codes-00000-00001.npz").unlink()
    with pytest.raises(UserError, match="no samples"):
        read_samples(tmp_path)


def test_the_classes_of_listed_files(run: Run, tmp_path: Path) -> None:
    assert listed_samples(tmp_path) == []
    sample(run, tmp_path, SampleRequest(2, "disc"), QUIET)
    assert listed_samples(tmp_path) == [("00000.png", "disc"), ("00001.png", "disc")]
    assert not holds_arrays(tmp_path)


def test_reconstruct_and_score(run: Run, pictures: Path, tmp_path: Path) -> None:
    items = reconstruct(run, [pictures / "disc"], tmp_path)
    assert len(items) == 8
    assert all(Path(item["file"]).is_file() and len(item["psnr"]) == 2 for item in items)
    result = score(run, [pictures / "disc"], "disc", tmp_path / "scores.json")
    assert result == json.loads((tmp_path / "scores.json").read_text())
    assert len(result["pictures"]) == 8


def test_complete(run: Run, pictures: Path, tmp_path: Path) -> None:
    image = pictures / "disc" / "01.png"
    result = complete(run, image, tmp_path, CompletionRequest(keep_levels=1, n=3, passes=2), QUIET)
    assert result == json.loads((tmp_path / "completions.json").read_text())
    assert [entry["number"] for entry in result["completions"]] == [0, 1, 2]
    with pytest.raises(UserError, match="either a mask or"):
        complete(run, image, tmp_path / "other", CompletionRequest(n=3), QUIET)


def test_the_configuration_that_train_takes(trained: Path, pictures: Path, tmp_path: Path) -> None:
    """A preset with changes for a new run; its own for a run that exists; chosen by the images otherwise."""

    def chosen(run: Path, name: str | None, *settings: str, file: Path | None = None) -> Any:
        return choose_config(str(pictures), run, name, file, settings, None, False, QUIET)

    assert chosen(tmp_path, "tiny") == preset("tiny")
    assert chosen(tmp_path, "tiny", "seed=3").seed == 3
    assert chosen(tmp_path, None) == preset("small32")
    assert chosen(trained, None) == load(trained, "cpu").config
    (tmp_path / "own.yaml").write_text("seed: 5\n")
    assert chosen(tmp_path, "tiny", file=tmp_path / "own.yaml").seed == 5
    assert read_yaml(tmp_path / "own.yaml") == {"seed": 5}


def test_the_choice_of_a_preset_reads_the_images_as_the_settings_say(pictures: Path, tmp_path: Path) -> None:
    """Paths in a table are below data.image_root; settings that cannot be are refused as they are elsewhere."""
    files = [file.relative_to(pictures).as_posix() for file in sorted(pictures.rglob("*.png"))]
    pq.write_table(pa.table({"image": files}), tmp_path / "table.parquet")

    def chosen(*settings: str) -> Any:
        data = str(tmp_path / "table.parquet")
        return choose_config(data, tmp_path / "run", None, None, settings, None, False, QUIET)

    with pytest.raises(UserError, match="no usable image"):
        chosen()
    config = chosen(f"data.image_root={pictures}")
    assert (config.data.image_root, config.data.size) == (str(pictures), 32)
    with pytest.raises(UserError, match=r"^data\.fit: Input should be"):
        chosen(f"data.image_root={pictures}", "data.fit=no")
