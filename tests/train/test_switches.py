"""What is chosen on a card can be switched off: each setting reaches its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_step import STAGES, begun
from torch import Tensor, nn
from train_helpers import image_set, result, run, signal_at, tiny

from vqvae2.autoencoder.layers import channels_first
from vqvae2.autoencoder.model import VQVAE
from vqvae2.config.hardware import Hardware
from vqvae2.data.pixels import to_float
from vqvae2.files.progress import Reporter
from vqvae2.train import extract, loop
from vqvae2.train import folder as run_folder
from vqvae2.train.device import make_accelerator
from vqvae2.train.feed import Feed
from vqvae2.train.folder import load_autoencoder, read_run
from vqvae2.train.loop import Interrupted


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What enters convolutions, and their weights, where the memory format can be told."""
    seen: list[Tensor] = []

    def watch(kind: type[nn.Module]) -> None:
        usual: Any = kind.forward

        def forward(self: Any, x: Tensor, *more: Any) -> Tensor:
            seen.extend(t.detach() for t in (x, self.weight) if min(t.shape[1], t[0, 0].numel()) > 1)
            found: Tensor = usual(self, x, *more)
            return found

        monkeypatch.setattr(kind, "forward", forward)

    watch(nn.Conv2d)
    watch(nn.ConvTranspose2d)
    return seen


def noting(pinned: list[bool]) -> Callable[..., Feed]:
    """A feed that notes whether its batches are to be pinned."""

    def feed(batches: Any, device: torch.device, wanted: bool = True) -> Feed:
        pinned.append(wanted)
        return Feed(batches, device, wanted)

    return feed


@STAGES
def test_the_memory_format_of_a_training(kind: str, tmp_path: Path, layouts: list[Tensor]) -> None:
    """Of every convolution, those of averaged weights too; rounding apart, the losses stay the same (dropout draws other numbers)."""
    found: dict[bool, dict[str, Any]] = {}
    for last in (True, False):
        objective, training = begun(kind, tmp_path)
        if kind == "sharpen" and not last:
            channels_first(objective.plain)  # as it is when it comes from its file
        layouts.clear()
        folder, hardware = tmp_path / str(last), Hardware(channels_last=last)
        found[last] = result(objective, folder, run(objective, training, folder, hardware=hardware))
        assert layouts
        assert last == any(t.is_contiguous(memory_format=torch.channels_last) for t in layouts)
        assert last or all(t.is_contiguous() for t in layouts)
    losses = [[line["loss"] for line in each["metrics"] if "loss" in line] for each in found.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_memory_format_of_a_trained_autoencoder(trained: Path, layouts: list[Tensor]) -> None:
    _, config = read_run(trained)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    for last in (True, False):
        layouts.clear()
        model, _ = load_autoencoder(trained, config.model_copy(update={"channels_last": last}), "cpu")
        model.decode(model.encode(images))
        assert last == any(t.is_contiguous(memory_format=torch.channels_last) for t in layouts)
        assert last or all(t.is_contiguous() for t in layouts)


@pytest.mark.parametrize("wanted", [False, True])
def test_the_optimiser_and_the_feed_of_a_training(
    wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As chosen for a card, which a static step stands for."""
    usual, optimizers, fed = loop.choose, list[Any](), list[bool]()
    chosen = {"static": wanted, "fused": wanted, "pinned": wanted}
    monkeypatch.setattr(loop, "choose", lambda *a: replace(usual(*a), **chosen))

    monkeypatch.setattr(loop, "Feed", noting(fed))
    adamw = torch.optim.AdamW
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda *a, **more: optimizers.append(adamw(*a, **more)) or optimizers[-1]
    )
    objective, training = begun("autoencoder", tmp_path)
    run(objective, training, tmp_path / "run")
    assert fed == [wanted]
    assert [group["fused"] for each in optimizers for group in each.param_groups] == [wanted or None]


def test_a_state_of_the_fused_optimiser_goes_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within rounding as if nothing had changed, and the other way round."""
    usual = loop.choose

    def trained(name: str, fused: tuple[bool, bool]) -> dict[str, Any]:
        for sitting in fused:
            monkeypatch.setattr(loop, "choose", lambda *a, s=sitting: replace(usual(*a), static=s, fused=s))
            objective, training = begun("prior", tmp_path)
            if sitting is fused[0] and not (tmp_path / name).exists():
                signal_at(objective, {5})
                with pytest.raises(Interrupted):
                    run(objective, training, tmp_path / name)
            else:
                outcome = run(objective, training, tmp_path / name)
        return result(objective, tmp_path / name, outcome)

    expected = trained("neither", (False, False))
    for name, fused in (("later not", (True, False)), ("later", (False, True))):
        found = trained(name, fused)
        for key, value in expected.items():
            if key.startswith("published."):
                torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("wanted", [False, True])
def test_the_feed_of_an_extraction(wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[bool] = []

    monkeypatch.setattr(extract, "Feed", noting(fed))
    config = tiny(pin_memory=wanted)
    images, model = image_set(tmp_path, config), VQVAE(config.autoencoder)
    model.train()(to_float(images.pixels(images.train)))
    extract.extract(
        model, images, config, tmp_path / "codes", "digest", make_accelerator(), Reporter(quiet=True)
    )
    assert fed
    assert {*fed} == {wanted}


def test_a_feed_without_pinned_memory_has_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches go to the card when they are asked for."""
    streams: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "Stream", streams.append)
    card = torch.device("cuda")
    assert not Feed(iter(()), card, pinned=False).pinned
    assert not streams
    assert Feed(iter(()), card).pinned
    assert streams == [card]
    with Feed(iter([torch.zeros(2)]), torch.device("meta"), pinned=False) as feed:
        feed.fetch_ahead()
        assert next(feed).device.type == "meta"


def test_a_run_that_has_begun_takes_every_setting_of_the_machine() -> None:
    assert all(run_folder._FREE.fullmatch(name) for name in Hardware.model_fields)
    assert not run_folder._FREE.fullmatch("seed")
