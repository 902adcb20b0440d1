"""The paths of a run folder: a trained run holds what `RunFolder` says, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

from vqvae2.files.run_folder import RunFolder
from vqvae2.train.folder import model_file, samples_file


def test_a_trained_run_holds_what_is_spelled_here(trained: Path) -> None:
    paths = RunFolder(trained)
    assert paths.exists()
    stages = [paths.autoencoder, paths.prior(0), paths.prior(1)]
    for stage in stages:
        assert stage.done()
        assert stage.begun()
        assert stage.model.is_file()
        assert stage.record.is_file()
        assert stage.metrics.is_file()
        assert not stage.checkpoints.exists()
    assert paths.prior(0).samples.is_file()
    assert paths.manifest.is_file()
    assert not paths.sharpen.begun()
    known = {
        paths.config,
        paths.data,
        paths.codes,
        paths.autoencoder.path,
        paths.prior(0).path.parent,
        paths.report,
    }
    assert {*trained.iterdir()} == known


def test_a_stage_by_its_level() -> None:
    paths = RunFolder(Path("run"))
    assert paths.stage(None) == paths.autoencoder
    assert paths.stage(1) == paths.prior(1)
    assert paths.stage("sharpen") == paths.sharpen
    stages = [paths.autoencoder, paths.sharpen, paths.prior(0), paths.prior(1)]
    assert list(paths.networks(2).values()) == stages
    assert list(paths.networks(2)) == ["autoencoder", "sharpen", "prior level 0", "prior level 1"]
    assert model_file(Path("run")) == Path("run/autoencoder/model.safetensors")
    assert model_file(Path("run"), 1) == Path("run/prior/level-1/model.safetensors")
    assert samples_file(Path("run"), 0) == Path("run/prior/level-0/samples.png")


def test_a_stage_is_begun_before_it_is_done(tmp_path: Path, trained: Path) -> None:
    stage = RunFolder(tmp_path).autoencoder
    assert not stage.begun()
    stage.checkpoints.mkdir(parents=True)
    shutil.copy(RunFolder(trained).autoencoder.model, stage.checkpoint)
    assert (stage.begun(), stage.done()) == (True, False)
    stage.checkpoint.rename(stage.model)
    assert (stage.begun(), stage.done()) == (True, True)


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    assert not RunFolder(tmp_path).exists()
    assert not RunFolder(tmp_path).autoencoder.begun()
