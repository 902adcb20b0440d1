"""Where a card must not compute in TF32: the switches of torch inside and after the block, and who uses it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vqvae2.autoencoder import fsq, model
from vqvae2.config.models import AutoencoderConfig
from vqvae2.tf32 import without_tf32

CARD, CPU = torch.device("cuda"), torch.device("cpu")


def switches() -> tuple[str, bool, bool]:
    """Products by both interfaces, convolutions."""
    matmul = torch.backends.cuda.matmul
    return torch.get_float32_matmul_precision(), matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture
def tf32() -> Iterator[None]:
    """TF32 is allowed everywhere, as in a training on a card."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


@pytest.mark.usefixtures("tf32")
def test_everything_is_off_inside_and_restored_after_it() -> None:
    before = switches()
    assert before == ("high", True, True)
    with without_tf32(CARD):
        assert switches() == ("highest", False, False)
        with without_tf32(CARD):  # one block in another
            assert switches() == ("highest", False, False)
        assert switches() == ("highest", False, False)
    assert switches() == before
    with pytest.raises(ZeroDivisionError), without_tf32(CARD):
        raise ZeroDivisionError
    assert switches() == before


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"),
    reason="torch before 2.9 has one interface only",
)
@pytest.mark.parametrize("allowed", ["tf32", "ieee"])
@pytest.mark.parametrize("place", ["cuda.matmul", "cudnn.conv", "cudnn", ""])
def test_only_the_newer_interface_of_torch_was_used(place: str, allowed: str) -> None:
    """A setting of one kind of operation, or one that others inherit; the older interface cannot be read where they disagree."""

    def newer() -> list[str]:
        return [backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision]

    backends: Any = torch.backends
    cudnn, owner = backends.cudnn, attrgetter(place)(backends) if place else backends
    places = (backends, cudnn, backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    first = [part.fp32_precision for part in places]
    owner.fp32_precision = allowed
    before = newer()
    try:
        for _ in range(2):
            with without_tf32(CARD):
                assert newer() == ["ieee"] * 3
                assert switches() == ("highest", False, False)
                with without_tf32(CARD):
                    assert newer() == ["ieee"] * 3
            assert newer() == before
    finally:
        for part, own in zip(places, first, strict=True):
            part.fp32_precision = own


@pytest.mark.usefixtures("tf32")
def test_training_and_other_devices_are_left_alone() -> None:
    with without_tf32(CPU):
        assert switches() == ("high", True, True)
    with without_tf32(CARD, always=False):
        assert switches() == ("high", True, True)
    with torch.no_grad(), without_tf32(CARD, always=False):
        assert switches() == ("highest", False, False)


@contextmanager
def on_a_card(device: torch.device) -> Iterator[None]:
    """Stands for `without_tf32`, as on a card."""
    assert device == CPU
    with without_tf32(CARD):
        yield


@pytest.mark.usefixtures("tf32")
def test_a_lattice_chooses_its_codes_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training too, as the search of the nearest code does; a compiled network is left alone, because this cannot be traced."""
    monkeypatch.setattr(fsq, "without_tf32", on_a_card)
    seen: list[bool] = []
    usual = torch.nn.functional.linear

    def noted(*arguments: Tensor) -> Tensor:
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return usual(*arguments)

    monkeypatch.setattr(torch.nn.functional, "linear", noted)
    quantizer, z = fsq.FiniteScalarQuantizer(16, 4).train(), torch.randn(5, 4, requires_grad=True)
    quantizer(z).quantize.sum().backward()
    assert seen == [False, False]
    seen.clear()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    quantizer(z)
    assert seen == [True, True]


@pytest.mark.usefixtures("tf32")
def test_encoding_is_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """All convolutions of an encoder, and none of a forward pass, which trains."""
    monkeypatch.setattr(model, "without_tf32", on_a_card)
    net = model.VQVAE(AutoencoderConfig(strides=[2, 2], codes=[8, 8], hidden=8, residual=8, blocks=1))
    seen: list[bool] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(torch.backends.cudnn.allow_tf32)

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    images = torch.zeros(1, 3, 8, 8)
    net.encode(images)
    assert seen
    assert not any(seen)
    seen.clear()
    net(images)
    assert seen
    assert all(seen)
