"""Sets of more images than are held out: made only if they are asked for, with the figures of all their features at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from colours_network import Colours
from torch import Tensor

from vqvae2.data.images import open_images
from vqvae2.data.pixels import to_float
from vqvae2.evaluate import context, large_sets, metrics
from vqvae2.evaluate.large_sets import LargeSet
from vqvae2.evaluate.metrics import Moments, frechet_distance
from vqvae2.evaluate.sets import NamedImages, drawn_samples, shuffled
from vqvae2.files.atomic import read_json
from vqvae2.files.progress import Reporter
from vqvae2.processes import Group
from vqvae2.run import load

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path, train_tiny: Callable[..., Path]
) -> Path:
    """A run with 16 training and 8 held-out images; not to be altered."""
    return train_tiny(tmp_path_factory.mktemp("large"), pictures, "data.holdout=0.2")


def report(folder: Path) -> dict[str, Any]:
    """report.json without the seconds."""
    found: dict[str, Any] = read_json(folder / "report.json")
    del found["seconds"]
    return found


def test_more_samples_than_are_held_out_are_compared_if_they_are_asked_for(
    trained: Path,
    tmp_path: Path,
    command: Command,
    network: Colours,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FID of 50,000 where fewer are held out: rows with an n of their own; the others stay as they are at the common n."""
    monkeypatch.setattr(context, "_PART", 5)
    out, arguments = tmp_path / "out", ("--only", "distances", "--reference", 14)
    assert command("evaluate", trained, "--out", tmp_path / "usual", *arguments).code == 0
    usual = report(tmp_path / "usual")["parts"]["distances"]["sets"]
    assert {row["n"] for row in usual.values()} == {8}
    assert command("evaluate", trained, "--out", out, *arguments, "--n", 12).code == 0
    found = report(out)
    rows = found["parts"]["distances"]["sets"]
    assert {name: row for name, row in rows.items() if "all" not in name} == usual
    decoded, samples = (rows[f"{name}, all 12"] for name in ("training reconstructions", "samples"))
    run = load(trained, "cpu")
    images = open_images(str(run.record["source"]), run.config.data, run.paths.data, say=lambda _: None)
    order = shuffled(images.train, 0)[:14]
    pixels = to_float(images.pixels(order))
    drawn = drawn_samples("samples", next((out / "cache").glob("samples-*"))).images(0, 12)
    images.close()
    with torch.no_grad():
        again = run.decoder().decode(run.autoencoder.encode(pixels[:12]))
    base = Moments.of(network(pixels)[0])
    for row, those in ((decoded, again), (samples, drawn)):
        distance = frechet_distance(base, Moments.of(network(those)[0]))
        assert row == {"n": 12, "frechet": pytest.approx(distance, rel=1e-3)}
    assert {s["name"]: s["n"] for s in found["protocol"]["sets"]}["samples, all 12"] == 12
    assert any("no figure of held-out images stands beside" in line for line in found["warnings"])
    network.calls = 0
    assert command("evaluate", trained, "--out", out, *arguments, "--n", 12).code == 0
    assert network.calls == 0, "the features are in the cache"
    assert report(out) == found


def test_no_more_samples_are_drawn_than_are_asked_for(
    trained: Path, tmp_path: Path, command: Command, network: Colours
) -> None:
    """By default, or where the reference is smaller, only the common n; then it is said how to have more."""
    for more, told in (((), False), (("--n", 12, "--reference", 11), True), (("--n", 8), False)):
        out = tmp_path / str(len(more))
        assert command("evaluate", trained, "--out", out, "--only", "distances", *more).code == 0
        assert {row["n"] for row in report(out)["parts"]["distances"]["sets"].values()} == {8}
        assert len(drawn_samples("samples", next((out / "cache").glob("samples-*")))) == 8
        assert (
            "with --reference 12 the samples are also compared at n = 12" in " ".join(report(out)["warnings"])
        ) == told


def test_features_of_a_large_set_are_in_memory_in_parts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the moments are those of all of them, computed where the run is."""
    monkeypatch.setattr(context, "_PART", 10)
    asked: set[Any] = set()
    monkeypatch.setattr(metrics, "exact_device", lambda device: asked.add(device) or torch.device("cpu"))
    pixels = torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    held: list[int] = []

    def source(wanted: slice) -> Iterator[Tensor]:
        held.append(len(pixels[wanted]))
        return iter(pixels[wanted].split(3))

    images = NamedImages("samples, all 64", "k" * 64, 64, None, source)
    own: Any = SimpleNamespace(
        network=Colours(), cache=tmp_path, group=Group(), reporter=Reporter(quiet=True), device="the card"
    )
    own.in_parts = partial(context.Context.in_parts, own)
    found = large_sets._moments(own, LargeSet(images))
    assert asked == {"the card"}
    expected = Moments.of(Colours()(pixels)[0])
    assert held == [10] * 6 + [4]
    assert found.count == 64
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.scatter, expected.scatter)
