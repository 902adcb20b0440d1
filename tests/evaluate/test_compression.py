"""The part `compression`: its own files are counted as they are, and others are compared at equal quality."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vqvae2.commands.compress import compress
from vqvae2.data.pixels import psnr, to_float
from vqvae2.evaluate import other_codecs
from vqvae2.evaluate.other_codecs import OtherCodec
from vqvae2.evaluate.parts import compression
from vqvae2.run import load
from vqvae2.tf32 import tf32_is


class Steps(OtherCodec):
    """A format whose files have 5, 8 and 20 bytes, and errors that halve."""

    def files(self, image: Tensor, variant: int) -> Iterator[tuple[int, Tensor]]:
        """As `OtherCodec.files`."""
        for size, error in ((5, 0.4), (8, 0.2), (20, 0.1)):
            yield size, torch.full_like(image, error)


def test_the_smallest_file_that_is_as_near_counts() -> None:
    """Of the first image the file of 8 bytes is as near; of the second none, so that its largest counts."""
    originals = [torch.zeros(1, 8, 8), torch.zeros(1, 8, 24)]
    near = psnr(torch.full((2, 1, 8, 8), 0.3), torch.zeros(2, 1, 8, 8)).numpy()
    own = {"bytes": np.array([10.0, 10.0]), "psnr": near + np.array([0, 60])}
    row, curve = compression._compared(Steps("X", "X", ({},)), originals, own, None)
    assert row == {
        "codec": "X",
        "fewest_bytes": 5.0,
        "bytes_at_equal_psnr": (8 + 20) / 2,
        "larger_than_ours_at_equal_psnr": 0.5,
    }
    assert [size for size, _ in curve] == [5, 8, 20]


class Brightness:
    """A distance that counts how often it is asked for; its network, on a card, must not compute in TF32."""

    asked = 0
    mean = SimpleNamespace(device=torch.device("cuda"))

    def aims(self, originals: Tensor) -> list[Tensor]:
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
        return [originals]

    def between(self, images: Tensor, aims: list[Tensor]) -> Tensor:
        self.aims(images)
        self.asked += len(images)
        return (images - aims[0]).abs().mean((1, 2, 3))


class Many(OtherCodec):
    """A format with 24 qualities and errors that fall."""

    def files(self, image: Tensor, variant: int) -> Iterator[tuple[int, Tensor]]:
        """As `OtherCodec.files`."""
        for number in range(24):
            yield 10 + number, torch.full_like(image, 1 - number / 24)


@pytest.mark.parametrize(("wanted", "size"), [(1.0, 10), (0.5, 22), (0.49, 23), (1 / 24, 33), (0.0, 33)])
def test_a_perceptual_distance_is_bisected(wanted: float, size: int) -> None:
    """The file is the one that asking for every distance would find, with at most six distances; none is near enough for 0.

    Other formats were measured in TF32, which training may use, and our own files without.
    """
    own = {
        "bytes": np.array([100.0]),
        "psnr": np.array([0.0]),
        "perceptual": np.array([wanted + 1e-6 * (wanted > 0)]),
    }
    distance = Brightness()
    with tf32_is(True):
        row, _ = compression._compared(Many("X", "X", ({},)), [torch.zeros(1, 8, 8)], own, distance)  # type: ignore[arg-type]
    assert row["bytes_at_equal_perceptual"] == size
    assert distance.asked <= 6


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_other_formats_show_what_they_store(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_codecs, "_QUALITIES", (5, 95))
    image = torch.linspace(-1, 1, 32).expand(channels, 32, 32)
    names = []
    for codec in other_codecs.other_codecs():
        if channels not in codec.channels:
            continue
        names.append(codec.name)
        files = [file for variant in range(len(codec.settings)) for file in codec.files(image, variant)]
        assert len(files) == 2 * len(codec.settings)
        (small, rough), (large, near) = files[:2]
        assert 0 < small < large
        assert psnr(near[None], image[None]) > max(30, float(psnr(rough[None], image[None])))
    assert ("JPEG" in names) == (channels != 4)
    assert "WebP" in names


def test_images_with_transparency_are_compared_with_the_formats_that_have_it(
    pictures: Path, tmp_path: Path, train_tiny: Callable[..., Path], command: Callable[..., Any]
) -> None:
    """JPEG cannot hold them, and everything else is measured."""
    run = train_tiny(tmp_path, pictures, "data.channels=4", "train_autoencoder.steps=4")
    said = command("evaluate", run, "--only", "compression", "--n", 2, "--json")
    assert said.code == 0, said.err
    report = json.loads(said.out)
    names = [row["codec"] for row in report["parts"]["compression"]["rows"]]
    assert "JPEG" not in names
    assert {"vqvae2", "WebP"} <= {*names}
    assert "no JPEG: it has no images of 4 channels" in report["warnings"]


def test_the_report(
    trained: Path,
    pictures: Path,
    tmp_path: Path,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(other_codecs, "_QUALITIES", (5, 95))
    jpeg = OtherCodec("JPEG", "JPEG", ({},))
    monkeypatch.setattr(compression, "other_codecs", lambda large: [jpeg])
    said = command(
        "evaluate", trained, "--data", pictures, "--only", "compression", "--out", tmp_path, "--json"
    )
    assert said.code == 0
    report = json.loads(said.out)
    part = report["parts"]["compression"]
    rows = {row["codec"]: row for row in part["rows"]}
    (plot,) = report["plots"]["compression"]
    assert plot["curves"]["vqvae2"] == [[rows["vqvae2"]["bytes"], rows["vqvae2"]["psnr"]]]
    assert list(plot["curves"]) == ["vqvae2, 1 of 2 levels", "vqvae2", "JPEG"]
    assert list(rows) == ["vqvae2, 1 of 2 levels", "vqvae2", "vqvae2, packed", "JPEG"]
    run = load(trained, "cpu")
    assert part["model_bytes"] == sum(file.stat().st_size for file in trained.rglob("model.safetensors"))
    assert rows["vqvae2, packed"]["bytes"] == 8 + 2 + 15
    assert rows["vqvae2, 1 of 2 levels"]["bytes"] < rows["vqvae2"]["bytes"]
    assert rows["vqvae2"]["bits_per_pixel"] == 8 * rows["vqvae2"]["bytes"] / 256
    assert part["shape"] == list(run.config.data.shape) == [16, 16]
    assert "<svg" in (tmp_path / "report.html").read_text()


def photos_of(folder: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    """A folder with images of noise, of these heights and widths."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, size in enumerate(sizes):
        Image.fromarray(random.integers(0, 255, (*size, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def test_images_of_a_folder_keep_their_size(
    trained: Path, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes are those of `compress`, and the bits of a pixel are of the images' own pixels."""
    monkeypatch.setattr(other_codecs, "_QUALITIES", (5, 95))
    monkeypatch.setattr(compression, "other_codecs", lambda large: [OtherCodec("JPEG", "JPEG", ({},))])
    photos = photos_of(tmp_path / "photos", [(40, 24), (24, 40), (24, 40)])
    words = ["evaluate", trained, "--only", "compression", "--compress", photos, "--out", tmp_path / "report"]
    said = command(*words, "--json")
    assert said.code == 0
    part = json.loads(said.out)["parts"]["compression"]
    rows = {row["codec"]: row for row in part["rows"]}
    files = [item["bytes"] for item in compress(load(trained, "cpu"), [photos], tmp_path / "files")]
    assert rows["vqvae2"]["bytes"] == np.mean(files)
    assert rows["vqvae2"]["bits_per_pixel"] == pytest.approx(8 * np.mean(files) / (24 * 40))
    assert (part["n"], part["shape"], part["pixels"]) == (3, None, 24 * 40)
    said = command(*words[:-3], tmp_path / "none", *words[-2:])
    assert (said.code, said.err) == (
        2, f"vqvae2: compress: expected a folder of images, found no folder {tmp_path / 'none'}\n"
    )  # fmt: skip


def test_few_images_are_in_memory_at_a_time(
    trained: Path, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of a folder are read when they are needed, and taking one at a time changes no figure."""
    monkeypatch.setattr(other_codecs, "_QUALITIES", (5, 95))
    monkeypatch.setattr(compression, "other_codecs", lambda large: [OtherCodec("JPEG", "JPEG", ({},))])
    photos = photos_of(tmp_path / "photos", [(16, 16)] * 9)
    words = ["evaluate", trained, "--only", "compression", "--compress", photos, "--json"]
    expected = json.loads(command(*words, "--out", tmp_path / "all").out)["parts"]["compression"]["rows"]
    read: list[weakref.ref[Tensor]] = []
    most = 0

    def counted(pixels: Tensor) -> Tensor:
        nonlocal most
        images = to_float(pixels)
        read.append(weakref.ref(images))
        most = max(most, sum(image() is not None for image in read))
        return images

    monkeypatch.setattr(compression, "to_float", counted)
    monkeypatch.setattr(compression, "_PIXELS", 1)
    monkeypatch.setattr(compression, "SHOWN", 1)
    found = json.loads(command(*words, "--out", tmp_path / "one").out)["parts"]["compression"]["rows"]
    assert most <= 3  # an image, what its file shows, and one that is about to be freed
    for row, other in zip(found, expected, strict=True):
        times = {"images_per_second_compressed", "images_per_second_decompressed"}
        assert {k: v for k, v in row.items() if k not in times} == pytest.approx(
            {k: v for k, v in other.items() if k not in times}
        )


@pytest.mark.parametrize("decoder", [None, "plain", "sharp"])
def test_the_sharp_decoder_has_a_row_unless_the_plain_one_is_asked_for(
    sharpened: Path,
    tmp_path: Path,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    decoder: str | None,
) -> None:
    monkeypatch.setattr(compression, "other_codecs", lambda large: [])
    chosen = ["--decoder", decoder] if decoder else []
    said = command(
        "evaluate", sharpened, "--only", "compression", *chosen, "--out", tmp_path / "report", "--json"
    )
    rows = {row["codec"]: row for row in json.loads(said.out)["parts"]["compression"]["rows"]}
    assert ("vqvae2, sharp decoder" in rows) == (decoder != "plain")
    if decoder != "plain":
        assert rows["vqvae2, sharp decoder"]["bytes"] == rows["vqvae2"]["bytes"]
        assert rows["vqvae2, sharp decoder"]["psnr"] != rows["vqvae2"]["psnr"]
