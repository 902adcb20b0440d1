"""The public surface, as the documentation shows it."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vqvae2
from vqvae2 import (
    VQVAE,
    AutoencoderConfig,
    Codes,
    FiniteScalarQuantizer,
    Geometry,
    HierarchicalPrior,
    LevelPriorConfig,
    PriorConfig,
    VectorQuantizer,
)


def images(n: int = 3) -> Tensor:
    """Images of noise in [-1, 1], 16 px."""
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def models(classes: int = 0) -> tuple[VQVAE, HierarchicalPrior]:
    """Both stages for 16 px with random weights, in eval mode."""
    torch.manual_seed(0)
    model = VQVAE(AutoencoderConfig(strides=(4, 2), codes=(7, 9), code_dim=4, hidden=8, residual=4)).eval()
    level = LevelPriorConfig(hidden=8, residual=8, layers=1, output_layers=0, heads=1, condition_blocks=0)
    prior = HierarchicalPrior(PriorConfig(levels=(level, level), classes=classes), model.geometry(16, 16))
    with torch.no_grad():
        for name, p in prior.named_parameters():
            nn.init.normal_(p, 1.0 if name.endswith("gain") else 0.0, 0.3)
    return model, prior.eval()


def test_every_public_name_is_there() -> None:
    assert len(set(vqvae2.__all__)) == len(vqvae2.__all__)
    assert vqvae2.UNKNOWN == -1
    for name in {*vqvae2.__all__} - {"UNKNOWN"}:  # the only one that is no class or function
        value: Any = getattr(vqvae2, name)
        assert value.__name__ == name
        assert value.__module__.startswith("vqvae2.")
        assert getattr(importlib.import_module(value.__module__), name) is value
        assert inspect.getdoc(value), name
        assert name in dir(vqvae2)


def test_the_reference_lists_every_public_name() -> None:
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: vqvae2\.(\w+)$", page, re.M)) == sorted(vqvae2.__all__)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="'vqvae2' has no attribute 'GAN'"):
        _ = vqvae2.GAN
    assert not hasattr(vqvae2, "preset_names")


def test_version() -> None:
    assert vqvae2.__version__ == metadata.version("vqvae2")


def test_types_are_announced() -> None:
    assert (resources.files("vqvae2") / "py.typed").is_file()


def test_the_package_and_its_help_start_without_torch() -> None:
    code = (
        "import sys, vqvae2\n"
        "from vqvae2.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)\n"
        "vqvae2.Codes\n"
        "assert 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_quantizer() -> None:
    quantizer = VectorQuantizer(num_embeddings=8, embedding_dim=4).eval()
    vectors = torch.randn(5, 6, 4)
    out = quantizer(vectors)
    assert torch.allclose(quantizer.embeddings[out.encoding_indices], out.quantize, atol=1e-6)
    distance = (vectors[..., None, :] - quantizer.embeddings).square().sum(-1)
    assert torch.equal(distance.argmin(-1), out.encoding_indices)
    assert 1 <= float(out.perplexity) <= 8
    assert float(out.loss) == pytest.approx(0.25 * float((out.quantize - vectors).square().mean()), rel=1e-5)


def test_codes_come_coarsest_first() -> None:
    model, _ = models()
    codes = model.encode(images())
    assert isinstance(codes, Codes)
    assert [tuple(level.shape) for level in codes.levels] == [(3, 2, 2), (3, 4, 4)]
    geometry = model.geometry(16, 16)
    assert isinstance(geometry, Geometry)
    assert (geometry.grids, geometry.vocabulary) == (((2, 2), (4, 4)), (7, 9))
    geometry.check(codes)
    pictures = model.decode(codes)
    assert pictures.shape == (3, 3, 16, 16)
    assert pictures.abs().max() <= 1


def test_the_prior_alone() -> None:
    """The snippet of the documentation: samples of a seed, and their log-probabilities per level."""
    model, prior = models()
    codes = prior.sample(8, labels=None, temperature=1.0, seed=0)
    assert isinstance(codes, Codes)
    model.geometry(16, 16).check(codes)
    assert len(codes) == 8
    again, other = (prior.sample(8, labels=None, temperature=1.0, seed=seed) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(codes.levels, again.levels, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(codes.levels, other.levels, strict=True))
    assert model.decode(codes).shape == (8, 3, 16, 16)
    with torch.no_grad():
        log_prob = prior.log_prob(codes)
    assert log_prob.shape == (8, 2)
    assert log_prob.isfinite().all()
    assert (log_prob < 0).all()


def test_the_prior_with_classes() -> None:
    """log p[b, l] is of image b's class: the same as asked for alone, other for another class."""
    model, prior = models(classes=3)
    codes, labels = model.encode(images()), torch.tensor([0, 2, 1])
    with torch.no_grad():
        together = prior.log_prob(codes, labels)
        assert together.shape == (3, 2)
        for i in range(3):
            alone = prior.log_prob(codes[i : i + 1], labels[i : i + 1])
            assert torch.allclose(together[i], alone[0], atol=1e-4)
        other = prior.log_prob(codes, (labels + 1) % 3)
    assert not torch.allclose(together, other, atol=1e-4)
    assert len(prior.sample(2, labels=torch.tensor([0, 1]), seed=5)) == 2


@pytest.mark.parametrize("seed", [0, 1])
def test_both_stages_are_built_and_trained_by_hand(seed: int) -> None:
    """A plain torch loop on names of the facade alone: both losses fall, and samples are images.

    The images are constant, dark or bright by their class, so the prior can learn which codes belong to which class.
    """
    torch.manual_seed(seed)
    labels = torch.arange(16) % 2
    pixels = (labels * 1.2 - 0.6)[:, None, None, None].expand(-1, 3, 16, 16) + 0.05 * torch.randn(
        16, 3, 16, 16
    )
    settings = AutoencoderConfig(strides=(4, 2), codes=(8, 8), code_dim=4, hidden=32, residual=16)
    model = VQVAE(settings).train()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    errors = []
    for _ in range(100):
        out = model(pixels)
        assert isinstance(out, vqvae2.Reconstruction)
        assert isinstance(out.levels[0], vqvae2.Quantized)
        error = (out.images - pixels).square().mean()
        optimizer.zero_grad()
        (error + out.commitment).backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.1 * errors[0]

    codes = model.eval().encode(pixels)
    level = LevelPriorConfig(hidden=8, residual=8, layers=1, output_layers=0, heads=1, condition_blocks=0)
    prior = HierarchicalPrior(PriorConfig(levels=(level, level), classes=2), model.geometry(16, 16)).train()
    optimizer = torch.optim.Adam(prior.parameters(), 2e-2)
    nats = []
    for _ in range(60):
        loss = -prior.log_prob(codes, labels).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        nats.append(float(loss.detach()))
    assert nats[-1] < 0.5 * nats[0]

    drawn = prior.eval().sample(8, torch.arange(8) % 2, vqvae2.Sampling(temperature=0.5), seed=seed)
    means = model.decode(drawn).mean((1, 2, 3))
    assert means[1::2].min() > means[::2].max(), "every sample of the bright class is brighter"


def test_a_quantizer_without_a_codebook() -> None:
    quantizer = FiniteScalarQuantizer(num_embeddings=8, embedding_dim=4)
    out = quantizer(torch.randn(5, 4))
    assert isinstance(out, vqvae2.Quantized)
    assert out.quantize.shape == (5, 4)


def test_mistakes_are_value_errors() -> None:
    assert issubclass(vqvae2.UserError, ValueError)
    for mistake in (
        lambda: vqvae2.preset("huge"),
        lambda: vqvae2.Sampling(top_p=2),
        lambda: vqvae2.load("/nowhere"),
    ):
        with pytest.raises(vqvae2.UserError, match="expected"):
            mistake()


def test_presets() -> None:
    config = vqvae2.preset("tiny")
    assert isinstance(config, vqvae2.Config)
    assert VQVAE(config.autoencoder).geometry(config.data.size, config.data.size) == config.geometry


def test_sampling_checks_itself() -> None:
    assert (vqvae2.Sampling().temperature, vqvae2.Sampling().top_p, vqvae2.Sampling().guidance) == (1, 1, 1)
    for wrong in (
        {"temperature": -1},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 2},
        {"guidance": -1},
        {"batch": 0},
    ):
        with pytest.raises(ValueError, match=r"expected|should be"):
            vqvae2.Sampling(**wrong)


def test_presets_is_a_function() -> None:
    importlib.import_module("vqvae2.config.presets")
    assert "tiny" in vqvae2.presets()
