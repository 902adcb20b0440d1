"""What is derived names what it came from; what only reads changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comparing import contents

from vqvae2.data.store import open_store
from vqvae2.files import tensor_file
from vqvae2.train import remarks

Command = Callable[..., Any]


# --- what only reads -----------------------------------------------------------------------------------------------------


def test_reading_changes_nothing(run: Path, command: Command, tmp_path: Path, pictures: Path) -> None:
    """So a run folder may be on a medium that cannot be written."""
    image, out = next(pictures.rglob("*.png")), tmp_path / "out"
    before = contents(run)
    for verb in (
        ["inspect", run],
        ["sample", run, "--n", 2, "--out", out / "samples"],
        ["reconstruct", run, image, "--out", out / "reconstructions"],
        ["complete", run, image, "--keep-levels", 1, "--n", 1, "--out", out / "complete"],
        ["score", run, image, "--out", out / "scores.json"],
        ["evaluate", run, "--only", "codes,nll", "--n", 6, "--out", out / "report"],
    ):
        assert command(*verb).code == 0, verb
    assert contents(run) == before
    assert command("train", pictures, "--run", run).code == 0
    after = contents(run)
    after[str(run)] = before[str(run)]  # `train` locks the folder, which changes the time of the folder alone
    assert after == before


# --- what is derived names what it came from -----------------------------------------------------------------------------


def test_priors_of_another_autoencoder_are_refused(
    run: Path, pictures: Path, command: Command, tmp_path: Path
) -> None:
    """The autoencoder is gone, trained anew or replaced: nothing that was derived from the former one is used in silence."""
    model = run / "autoencoder" / "model.safetensors"
    kept = model.read_bytes()
    model.unlink()
    said = command("train", pictures, "--run", run)
    assert said.code == 2
    assert "no longer holds; delete" in said.err
    model.write_bytes(kept)
    tensors, meta = tensor_file.load_tensors(model)
    tensors["decoder.0.bias"] += 1
    tensor_file.save_tensors(model, tensors, meta)
    for verb in (["train", pictures, "--run", run], ["sample", run, "--n", 1, "--out", tmp_path / "out"]):
        said = command(*verb)
        assert said.code == 2
        assert "belongs to another autoencoder" in said.err
    assert "belongs to another autoencoder" in command("inspect", run).out
    shutil.rmtree(run / "prior")
    assert command("train", pictures, "--run", run).code == 0
    digest = tensor_file.digest(tensors)
    assert open_store(run / "codes").digest == digest, "codes are made anew"
    for level in (0, 1):
        file = run / "prior" / f"level-{level}" / "model.safetensors"
        assert tensor_file.read_header(file).metadata["autoencoder"] == digest


def test_samples_of_finer_levels_are_drawn_again_when_a_coarser_prior_is(
    run: Path, pictures: Path, command: Command
) -> None:
    old = run / "prior" / "level-1" / "samples.png"
    before = old.lstat().st_mtime_ns
    shutil.rmtree(run / "prior" / "level-0")
    assert command("train", pictures, "--run", run).code == 0
    assert old.lstat().st_mtime_ns > before


def test_a_prior_that_is_worse_than_guessing_is_no_success(
    half: Path, pictures: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remarks, "_WORSE", -4.0)  # so that an honest prior seems to be one
    said = command("train", pictures, "--run", half)
    assert said.code == 2
    assert "bits per code" in said.err.splitlines()[-1]
    assert not (half / "prior" / "level-1" / "model.safetensors").exists()
