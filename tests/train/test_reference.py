"""The reference image: the same everywhere, its codes stored with the weights, and a device that computes others is named."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vqvae2
from vqvae2 import AutoencoderConfig, Codes
from vqvae2.autoencoder.model import VQVAE
from vqvae2.files import tensor_file
from vqvae2.files.atomic import FileError
from vqvae2.train.folder import model_file
from vqvae2.train.reference import reference_image


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`wrong(n)`: from now on, encoding changes n of the codes of the finest level, as a faulty device would."""

    def break_encoding(count: int) -> None:
        right = VQVAE.encode

        def encode(model: VQVAE, images: Tensor) -> Codes:
            *coarser, finest = right(model, images).levels
            flat = finest.flatten().clone()
            flat[:count] = (flat[:count] + 1) % model.config.codes[-1]
            return Codes((*coarser, flat.view_as(finest)))

        monkeypatch.setattr(VQVAE, "encode", encode)

    return break_encoding


def test_the_image_is_the_same_on_every_machine() -> None:
    image = reference_image(AutoencoderConfig())
    assert image.shape == (1, 3, 64, 64)
    assert (image.min(), image.max()) == (-1, 1)
    assert hashlib.sha256(image.numpy().tobytes()).hexdigest().startswith("dbae03ed5e8c067b")


@pytest.mark.parametrize("strides", [(2,), (4, 3), (8, 2, 8)])
def test_its_size_is_a_multiple_of_the_strides(strides: tuple[int, ...]) -> None:
    config = AutoencoderConfig(strides=strides, codes=(8,) * len(strides), channels=5)
    side = reference_image(config).shape[-1]
    assert reference_image(config).shape == (1, 5, side, side)
    config.geometry(side, side)


@pytest.mark.parametrize("name", ["emoji64", "clothing128"])
def test_the_models_of_the_package_compute_their_codes_here(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = vqvae2.load(name, "cpu")
    stored = tensor_file.load_tensors(model_file(run.folder))[1]["reference_codes"]
    codes = run.autoencoder.encode(reference_image(run.config.autoencoder))
    assert stored == [level.flatten().tolist() for level in codes.levels]
    assert not caplog.records


def test_a_trained_run_stores_its_codes(trained: Path) -> None:
    run = vqvae2.load(trained, "cpu")
    stored = tensor_file.load_tensors(model_file(trained))[1]["reference_codes"]
    codes = run.autoencoder.encode(reference_image(run.config.autoencoder))
    assert stored == [level.flatten().tolist() for level in codes.levels]


def test_a_device_that_computes_other_codes_is_named_in_one_line(
    wrong: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    run = vqvae2.load("emoji64", "cpu")
    wrong(7)
    assert run.autoencoder is not None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "on the device cpu, 7 of the 320 codes of the reference image differ" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_second_decoder_does_not_repeat_the_line(
    sharpened: Path, wrong: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    run = vqvae2.load(sharpened, "cpu")
    wrong(1000)
    assert run.decoder("sharp") is not run.decoder("plain")
    assert len(caplog.records) == 1


def test_rounding_may_change_two_codes_of_a_hundred(
    wrong: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    run = vqvae2.load("emoji64", "cpu")
    wrong(6)
    assert run.autoencoder is not None
    assert not caplog.records


def test_weights_of_former_versions_are_not_checked(
    run: Path, wrong: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    tensors, metadata = tensor_file.load_tensors(model_file(run))
    del metadata["reference_codes"]
    tensor_file.save_tensors(model_file(run), tensors, metadata)
    wrong(1000)
    assert torch.isfinite(vqvae2.load(run, "cpu").autoencoder.quantizers[0].codebook()).all()
    assert not caplog.records


@pytest.mark.parametrize("value", [3, [], [[1]], [["a"] * 9, ["b"] * 9], {"0": [1]}])
def test_stored_codes_of_another_form_are_damage(run: Path, value: object) -> None:
    tensors, metadata = tensor_file.load_tensors(model_file(run))
    tensor_file.save_tensors(model_file(run), tensors, {**metadata, "reference_codes": value})
    with pytest.raises(FileError, match="the codes of its reference image are not codes of this model"):
        assert vqvae2.load(run, "cpu").autoencoder
