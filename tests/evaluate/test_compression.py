"""The part `compression`: its own files are counted as they are, and others are compared at equal quality."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vqvae2.data.pixels import psnr
from vqvae2.evaluate import other_codecs
from vqvae2.evaluate.other_codecs import OtherCodec
from vqvae2.evaluate.parts import compression
from vqvae2.run import load


class Steps(OtherCodec):
    """A format whose files have 5, 8 and 20 bytes, and errors that halve."""

    def files(self, image: Tensor, variant: int) -> Iterator[tuple[int, Tensor]]:
        """As `OtherCodec.files`."""
        for size, error in ((5, 0.4), (8, 0.2), (20, 0.1)):
            yield size, torch.full_like(image, error)


def test_the_smallest_file_that_is_as_near_counts() -> None:
    """Of the first image the file of 8 bytes is as near; of the second none, so that its largest counts."""
    originals = torch.zeros(2, 1, 8, 8)
    near = psnr(torch.full((2, 1, 8, 8), 0.3), originals).numpy()
    own = {"bytes": np.array([10.0, 10.0]), "psnr": near + np.array([0, 60])}
    row, curve = compression._compared(Steps("X", "X", ({},)), originals, own, None)
    assert row == {
        "codec": "X",
        "fewest_bytes": 5.0,
        "bytes_at_equal_psnr": (8 + 20) / 2,
        "larger_than_ours_at_equal_psnr": 0.5,
    }
    assert [size for size, _ in curve] == [5, 8, 20]


@pytest.mark.parametrize("channels", [1, 3])
def test_other_formats_show_what_they_store(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_codecs, "_QUALITIES", (5, 95))
    image = torch.linspace(-1, 1, 32).expand(channels, 32, 32)
    names = []
    for codec in other_codecs.other_codecs():
        names.append(codec.name)
        files = [file for variant in range(len(codec.settings)) for file in codec.files(image, variant)]
        assert len(files) == 2 * len(codec.settings)
        (small, rough), (large, near) = files[:2]
        assert 0 < small < large
        assert psnr(near[None], image[None]) > max(30, float(psnr(rough[None], image[None])))
    assert names[0] == "JPEG"


def test_the_report(
    trained: Path,
    pictures: Path,
    tmp_path: Path,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(other_codecs, "_QUALITIES", (5, 95))
    jpeg = OtherCodec("JPEG", "JPEG", ({},))
    monkeypatch.setattr(compression, "other_codecs", lambda: [jpeg])
    said = command(
        "evaluate", trained, "--data", pictures, "--only", "compression", "--out", tmp_path, "--json"
    )
    assert said.code == 0
    part = json.loads(said.out)["parts"]["compression"]
    rows = {row["codec"]: row for row in part["rows"]}
    assert list(rows) == ["vqvae2, 1 of 2 levels", "vqvae2", "vqvae2, packed", "JPEG"]
    run = load(trained, "cpu")
    assert part["model_bytes"] == sum(file.stat().st_size for file in trained.rglob("model.safetensors"))
    assert rows["vqvae2, packed"]["bytes"] == 8 + 2 + 15
    assert rows["vqvae2, 1 of 2 levels"]["bytes"] < rows["vqvae2"]["bytes"]
    assert rows["vqvae2"]["bits_per_pixel"] == 8 * rows["vqvae2"]["bytes"] / 256
    assert part["shape"] == list(run.config.data.shape) == [16, 16]
    assert "<svg" in (tmp_path / "report.html").read_text()
