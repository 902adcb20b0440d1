"""A run of 12-bit images: values come back in their range, with more than 256 levels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vqvae2.commands import images
from vqvae2.commands.decode import decode
from vqvae2.commands.encode import encode
from vqvae2.config.overrides import read_yaml
from vqvae2.evaluate.sets import folder_images
from vqvae2.files.progress import Reporter
from vqvae2.run import load

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen ramps of different slopes, 12 bits, as 16-bit PNG and TIFF."""
    root = tmp_path_factory.mktemp("scans")
    for number in range(16):
        y, x = np.mgrid[0:32, 0:32]
        values = (x * (16 + number) + y * 90 + 30 * number).clip(0, 4095).astype(np.uint16)
        values[0, 0], values[0, 1] = 0, 4095
        Image.fromarray(values).save(root / f"{number:02d}.{'png' if number % 2 else 'tif'}")
    return root


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory, scans: Path, train_tiny: Callable[..., Path]) -> Path:
    """A run on them."""
    more = ("data.size=32", "data.channels=1", "data.range=[0, 4095]", "train_autoencoder.steps=60")
    return train_tiny(tmp_path_factory.mktemp("deep"), scans, *more, "data.shift=1")


def test_a_12_bit_ramp_keeps_its_levels(deep: Path, scans: Path, tmp_path: Path, command: Command) -> None:
    assert read_yaml(deep / "config.yaml")["data"]["range"] == [0, 4095]
    said = command("reconstruct", deep, scans / "03.png", "--out", tmp_path)
    assert said.code == 0, said.err
    assert "03.tif" in said.out
    with Image.open(tmp_path / "03.tif") as image:
        values = np.asarray(image)
    assert values.dtype == np.uint16
    assert values.max() <= 4095
    assert len(np.unique(values)) > 256
    assert (tmp_path / "03.png").exists()


def test_samples_come_in_the_same_range(deep: Path, tmp_path: Path, command: Command) -> None:
    assert command("sample", deep, "--n", 2, "--out", tmp_path).code == 0
    for number in range(2):
        with Image.open(tmp_path / f"{number:05d}.tif") as image:
            values = np.asarray(image)
        assert (values.dtype, values.shape) == (np.uint16, (32, 32))
        shown = load(deep, "cpu").sample(2)[number, 0].add(1).div(2).mul(4095).clamp(0, 4095)
        assert np.abs(values - shown.numpy()).max() <= 1
    (tmp_path / "00001.tif").unlink()
    assert command("sample", deep, "--n", 2, "--out", tmp_path).code == 0
    run = load(deep, "cpu")
    found = folder_images("samples", tmp_path, run.classes, run.config.data, tmp_path / "cache")
    assert (found.images() - run.sample(2)).abs().max() <= 2 / 4095, "what is measured is not what is shown"


def test_every_verb_takes_them(deep: Path, scans: Path, tmp_path: Path, command: Command) -> None:
    assert command("score", deep, scans).code == 0
    mask = tmp_path / "mask.png"
    Image.new("L", (32, 32), 255).save(mask)
    said = command("complete", deep, scans / "03.png", "--mask", mask, "--n", 1, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    with Image.open(tmp_path / "out" / "000.tif") as image:
        values = np.asarray(image)
    assert (values.dtype, values.shape) == (np.uint16, (32, 32))


def test_completions_keep_the_values_outside_the_mask(
    deep: Path, scans: Path, tmp_path: Path, command: Command
) -> None:
    """Exactly, in their own range; a file of the user is not overwritten, the same request's own are."""
    mask, out = Image.new("L", (32, 32), 0), tmp_path / "out"
    mask.paste(255, (16, 16, 32, 32))
    mask.save(tmp_path / "mask.png")
    arguments = ("complete", deep, scans / "03.png", "--mask", tmp_path / "mask.png", "--out", out)
    out.mkdir()
    (out / "001.tif").write_text("mine")
    said = command(*arguments, "--n", 2)
    assert (said.code, said.err.count("001.tif exists")) == (2, 1)
    assert [path.name for path in out.iterdir()] == ["001.tif"]
    (out / "001.tif").unlink()
    assert command(*arguments, "--n", 2).code == 0
    with Image.open(out / "000.tif") as image, Image.open(scans / "03.png") as original:
        assert np.array_equal(np.asarray(image)[:16], np.asarray(original)[:16])
    listing = json.loads((out / "completions.json").read_text())
    assert [entry["file"] for entry in listing["completions"]] == ["000.tif", "001.tif"]
    assert command(*arguments, "--n", 1).code == 0
    assert sorted(path.name for path in out.glob("0*")) == ["000.png", "000.tif"]


def test_decoding_that_was_killed_writes_the_values_too(
    deep: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The PNG, by which it is known what is missing, is written after the values."""
    run, codes, out = load(deep, "cpu"), tmp_path / "codes.npz", tmp_path / "out"
    encode(run, str(scans), codes, reporter=Reporter(quiet=True))
    names = ("save_values", "save_picture")
    for name in names:
        usual = getattr(images, name)

        def killed(*arguments: Any, usual: Any = usual) -> None:
            usual(*arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(images, name, killed)
        with pytest.raises(KeyboardInterrupt):
            decode(run, codes, out, reporter=Reporter(quiet=True))
        monkeypatch.setattr(images, name, usual)
    decode(run, codes, out, reporter=Reporter(quiet=True))
    assert {path.stem for path in out.glob("*.tif")} == {path.stem for path in out.glob("*.png")}
    assert len(list(out.glob("*.tif"))) == 16


def test_a_range_in_words_becomes_numbers(
    scans: Path, settings: list[str], tmp_path: Path, command: Command
) -> None:
    more = ["--set", "data.channels=1", "--set", "train_autoencoder.steps=2", "--until", "autoencoder"]
    train = ("train", scans, "--run", tmp_path / "run", "--preset", "tiny", *settings, *more)
    said = command(*train, "--set", "data.range=percentiles")
    assert said.code == 0, said.err
    low, high = read_yaml(tmp_path / "run" / "config.yaml")["data"]["range"]
    assert 0 <= low < high <= 4095
    assert "0.1 and 99.9 % of the values" in said.err
    assert command(*train, "--set", "data.range=percentiles").code == 0
    assert command(*train, "--set", "data.range=dtype").code == 0  # the run has numbers already


@pytest.mark.parametrize("channels", [2, 5])
def test_other_numbers_of_channels(
    channels: int, settings: list[str], tmp_path: Path, command: Command
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(16):
        values = np.random.default_rng(number).integers(-1000, 3000, (16, 16, channels)).astype(np.int16)
        np.save(tmp_path / "in" / f"{number}.npy", values)
    more = (
        f"data.channels={channels}",
        "data.range=[-1000, 3000]",
        "data.holdout=0.5",
        "train_autoencoder.steps=4",
        "train_prior.*.steps=2",
    )
    arguments = [part for setting in more for part in ("--set", setting)]
    said = command(
        "train", tmp_path / "in", "--run", tmp_path / "run", "--preset", "tiny", *settings, *arguments
    )
    assert said.code == 0, said.err
    assert command("sample", tmp_path / "run", "--n", 1, "--out", tmp_path / "out").code == 0
    assert {path.suffix for path in (tmp_path / "out").glob("00000.*")} >= {".png"}
    assert len(list((tmp_path / "out").glob("00000.[tn]*"))) == 1
    assert (
        command("reconstruct", tmp_path / "run", tmp_path / "in" / "0.npy", "--out", tmp_path / "again").code
        == 0
    )
    assert command("evaluate", tmp_path / "run", "--only", "nll,reconstruction,symmetry").code == 0
    said = command("evaluate", tmp_path / "run", "--only", "distances")
    assert said.code == 2
    assert f"features need 1, 3 or 4 channels, found {channels}" in said.err


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five volumes of eight slices, values from -1000 to 2000."""
    nibabel = pytest.importorskip("nibabel")
    root = tmp_path_factory.mktemp("volumes")
    for number in range(5):
        x, y, z = np.mgrid[0:16, 0:16, 0:8]
        values = (100 * x + 60 * y + 40 * z + 20 * number - 1000).clip(-1000, 2000).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), root / f"scan-{number}.nii.gz")
    return root


def test_slices_of_volumes_are_images_everywhere(
    volumes: Path, settings: list[str], tmp_path: Path, command: Command
) -> None:
    more = (
        "data.channels=1",
        "data.range=[-1000, 2000]",
        "train_autoencoder.steps=4",
        "train_prior.*.steps=2",
    )
    arguments = [part for setting in more for part in ("--set", setting)]
    run = tmp_path / "run"
    said = command("train", volumes, "--run", run, "--preset", "tiny", *settings, *arguments)
    assert said.code == 0, said.err
    assert "40 images" in said.err
    assert "32 to train, 8 held out" in said.err, "a volume as a whole"
    scan, out = volumes / "scan-1.nii.gz", tmp_path / "out"
    said = command("reconstruct", run, scan, f"{volumes / 'scan-2.nii.gz'}#5", "--out", out)
    assert said.code == 0, said.err
    written = {path.stem for path in out.glob("*.png")} - {path.stem for path in out.glob("*-levels.png")}
    assert written == {*(f"scan-1-{number}" for number in range(8)), "scan-2-5"}
    said = command("score", run, f"{scan}#3", "--bits-map", tmp_path / "maps")
    assert said.code == 0, said.err
    assert f"{scan}#3: " in said.out
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {
        "bits-maps.json",
        "scan-1-3-bits-0.png",
        "scan-1-3-bits-1.png",
    }
    said = command("complete", run, f"{scan}#3", "--keep-levels", 1, "--n", 1, "--out", tmp_path / "more")
    assert said.code == 0, said.err
    assert "level 0 kept, level 1 redrawn" in said.out
    said = command("complete", run, scan, "--keep-levels", 1, "--n", 1, "--out", tmp_path / "none")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "8 slices in one file: name one of them, such as FILE#4" in said.err
    said = command("encode", run, volumes, "--out", tmp_path / "codes.npz")
    assert said.code == 0, said.err
    assert command("decode", run, tmp_path / "codes.npz", "--out", tmp_path / "decoded").code == 0
    assert (tmp_path / "decoded" / "scan-4-7.png").exists()
