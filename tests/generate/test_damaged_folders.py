"""Sample folders that were damaged, and mistakes that must not claim a folder: one line, nothing lost, no traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2 import Run
from vqvae2.commands.sample import SampleRequest, _missing, sample
from vqvae2.config.models import DataConfig
from vqvae2.errors import UserError
from vqvae2.generate.reject import candidate_labels
from vqvae2.generate.sample import sample_labels
from vqvae2.generate.sample_folder import SampleFolder
from vqvae2.processes import Group

Command = Callable[..., Any]
DRAW = ("--n", 6, "--batch", 2)


def refused(said: Any, *words: str) -> None:
    """One line on stderr with these words, and exit code 2."""
    assert said.code == 2, said
    lines = [line for line in said.err.splitlines() if line.startswith("vqvae2: ")]
    assert len(lines) == 1
    assert "Traceback" not in said.err
    assert all(word in lines[0] for word in words), lines[0]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_damaged_codes_file_is_named(
    content: bytes, trained: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    assert command("sample", trained, "--out", out, *DRAW, "--pictures", "npz").code == 0
    file = out / "codes-00002-00003.npz"
    file.write_bytes(content)
    refused(command("sample", trained, "--out", out, *DRAW, "--pictures", "npz"), file.name, "damaged")
    file.unlink()
    assert command("sample", trained, "--out", out, *DRAW, "--pictures", "npz").code == 0


@pytest.mark.parametrize("empty", [False, True])
def test_a_missing_image_is_drawn_again(empty: bool, trained: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    assert command("sample", trained, "--out", out, *DRAW).code == 0
    image = out / "00003.png"
    before = image.read_bytes()
    image.unlink()
    if empty:
        image.touch()
    assert command("sample", trained, "--out", out, *DRAW).code == 0
    assert image.read_bytes() == before


def test_images_that_are_drawn_again_in_other_batches_count_once(
    trained: Path, tmp_path: Path, command: Command
) -> None:
    """The arrays of two batches hold them then."""
    out = tmp_path / "out"
    assert command("sample", trained, "--out", out, "--n", 6, "--batch", 6).code == 0
    before = SampleFolder(out, {}).read("labels", range(6)).tolist()
    (out / "00003.png").unlink()
    assert command("sample", trained, "--out", out, *DRAW).code == 0
    assert len(list(out.glob("codes-*.npz"))) == 4
    assert SampleFolder(out, {}).read("labels", [5, 0, 3]).tolist() == [before[5], before[0], before[3]]


def test_an_unreadable_image_is_named(trained: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    assert command("sample", trained, "--out", out, *DRAW).code == 0
    (out / "00001.png").write_bytes(b"no image")
    refused(command("sample", trained, "--out", out, "--n", 8, "--batch", 2), "00001.png", "damaged")


def test_another_image_in_the_place_of_a_sample_is_named(
    trained: Path, tmp_path: Path, command: Command
) -> None:
    """Of another size, or with a wrong length of the first chunk of pixels, at which Pillow raises a syntax error."""
    out = tmp_path / "out"
    assert command("sample", trained, "--out", out, *DRAW).code == 0
    (out / "preview.png").symlink_to(tmp_path / "nowhere")
    for number, name in ((0, "00000.png"), (1, "00001.png")):
        file = out / name
        before = file.read_bytes()
        if number:
            file.write_bytes(before[:33] + (5).to_bytes(4, "big") + before[37:])
        else:
            Image.new("RGB", (5, 7)).save(file)
        refused(command("sample", trained, "--out", out, *DRAW), name, "damaged or no sample")
        file.write_bytes(before)
    assert "all were there already" in command("sample", trained, "--out", out, *DRAW).out


def test_numbers_of_numpy_ask_for_the_same_samples(trained: Path, tmp_path: Path) -> None:
    run, numbers = Run(trained, "cpu"), [3, 1, 2]
    first = sample(run, tmp_path / "a", SampleRequest(3, 1, 2))
    n, label, seed = map(np.int64, numbers)
    second = sample(run, tmp_path / "a", SampleRequest(n, label, seed))  # type: ignore[arg-type]
    assert first is not None
    assert second is not None
    assert (second.new, second.listing) == (0, first.listing)


def test_the_runs_own_batch_is_taken(run: Path, tmp_path: Path, command: Command) -> None:
    text = (run / "config.yaml").read_text()
    assert text.count("  batch: 64\n") == 1
    (run / "config.yaml").write_text(text.replace("  batch: 64\n", "  batch: 2\n"))
    assert command("sample", run, "--out", tmp_path / "out", "--n", 5).code == 0
    assert len(list((tmp_path / "out").glob("codes-*.npz"))) == 3


@pytest.mark.parametrize(
    "wrong", [("--temperature", 1, "--temperature", 1, "--temperature", 1), ("--seed", 2**64)]
)
def test_a_mistake_in_an_option_does_not_claim_the_folder(
    wrong: tuple[Any, ...], trained: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    refused(command("sample", trained, "--out", out, "--n", 2, *wrong))
    assert not (out / "sampling.json").exists()
    assert command("sample", trained, "--out", out, "--n", 2).code == 0


def test_too_many_candidates_are_refused_at_once() -> None:
    with pytest.raises(UserError, match="10,000,000 candidates"):
        candidate_labels([0, 1], 1e-9)


@pytest.mark.parametrize("label", [np.int64(1), torch.tensor(1), 1])
def test_a_label_may_be_a_number_of_any_library(label: Any, trained: Path) -> None:
    assert sample_labels(label, 3, ("a", "b")) == [1, 1, 1]
    assert sample_labels(torch.tensor([1, 0]), 3, ("a", "b")) == [1, 0, 1]  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"no class 1\.5"):
        sample_labels([1.5], 1, ("a", "b"))  # type: ignore[list-item]
    assert len(Run(trained, "cpu").sample(1, label)) == 1


def test_priors_with_and_without_classes_are_not_mixed(half: Path, pictures: Path, command: Command) -> None:
    said = command("train", pictures, "--run", half, "--set", "prior.conditional=false")
    refused(said, "trained with other settings", "prior.conditional: True -> False")


def test_a_damaged_critic_is_named(run: Path, command: Command, tmp_path: Path) -> None:
    (run / "critic").mkdir()
    (run / "critic" / "critic.json").write_text("{}")
    refused(command("sample", run, "--out", tmp_path / "out", "--critic", 0.5), "critic.json", "damaged")


def test_only_the_main_process_looks_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 32 processes looked at every image of the folder, and 31 answers were thrown away."""
    done: list[str] = []

    def folder(missing: list[range]) -> Any:
        return SimpleNamespace(
            claim=lambda: done.append("claimed"), missing=lambda n: done.append("looked") or missing
        )

    class Fake(Group):
        def wait(self) -> None:
            """Nobody is waited for."""

        def agreed(self, own: Any) -> Any:
            """What the main process found."""
            return own if self.main else [range(3, 7)]

    for rank, expected in ((0, ["claimed", "looked"]), (1, ["claimed"])):
        done.clear()
        monkeypatch.setattr("vqvae2.processes.joined", lambda rank=rank: Fake(rank, 2))
        assert _missing(folder([range(3, 7)]), 9) == [range(3, 7)]
        assert done == expected


def test_a_folder_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for every name that an image may have; an image in its full depth has two files."""
    for begin in (0, 3):
        (tmp_path / f"codes-{begin:05d}-{begin + 2:05d}.npz").touch()
    for number in range(6):
        (tmp_path / f"{number:05d}.png").write_bytes(b"x")
        (tmp_path / f"{number:05d}.{'tif' if number % 2 else 'npy'}").write_bytes(b"x" * (number != 4))
    asked: list[str] = []
    usual = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **more: asked.append(self.suffix) or usual(self, **more))
    assert SampleFolder(tmp_path, {}, "png").missing(8) == [range(6, 8)]
    deep = SampleFolder(tmp_path, {}, "png", DataConfig(range=(0, 9)))
    assert deep.missing(8) == [range(3, 8)]
    assert not {".png", ".tif", ".npy"} & {*asked}
