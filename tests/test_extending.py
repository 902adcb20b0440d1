"""The quantisers in docs/extending.md: the code there runs as it stands, and works in the autoencoder and in a configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vqvae2.autoencoder import quantizers
from vqvae2.autoencoder.base import Quantizer
from vqvae2.autoencoder.fsq import FiniteScalarQuantizer
from vqvae2.autoencoder.model import VQVAE
from vqvae2.autoencoder.quantizer import VectorQuantizer
from vqvae2.config import models
from vqvae2.config.models import AutoencoderConfig, ConfigError, parse
from vqvae2.errors import UserError
from vqvae2.run import load

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def code_blocks() -> list[str]:
    """The Python of the page's section on quantisers: one of one's own, and the adapter."""
    section = PAGE.read_text(encoding="utf-8").split("## A quantiser of your own")[1].split("\n## ")[0]
    blocks: list[str] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return blocks


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """The registry is as before afterwards."""
    before = dict(quantizers._BUILDERS), set(models.quantizer_names)
    yield
    quantizers._BUILDERS.clear()
    quantizers._BUILDERS.update(before[0])
    models.quantizer_names.intersection_update(before[1])


@pytest.fixture
def page() -> dict[str, Any]:
    """The names that the page's code defines."""
    names: dict[str, Any] = {}
    for number, code in enumerate(code_blocks()):
        if "vector_quantize_pytorch" in code:
            pytest.importorskip("vector_quantize_pytorch")
        exec(compile(code, f"extending {number}", "exec"), names)  # the documentation's own code
    return names


def small(quantizer: str) -> AutoencoderConfig:
    """Two levels of 16 codes."""
    return AutoencoderConfig(
        strides=(2, 2), codes=(16, 16), code_dim=4, hidden=16, residual=8, quantizer=quantizer
    )


def test_they_are_short() -> None:
    own, adapter = (len([line for line in code.splitlines() if line.strip()]) for code in code_blocks())
    assert own <= 20
    assert adapter <= 40


@pytest.mark.parametrize("name", ["cosine", "simvq", "lfq", "residual"])
def test_it_works_in_the_autoencoder(name: str, page: dict[str, Any]) -> None:
    """The loss falls, and the codes are all that passes from the encoder to the decoder."""
    torch.manual_seed(0)
    net = VQVAE(small(name))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    images = torch.rand(8, 3, 1, 1).expand(-1, -1, 8, 8) * 2 - 1
    errors = []
    for _ in range(120):
        out = net(images)
        error = (out.images - images).square().mean()
        optimizer.zero_grad()
        (error + out.commitment).backward()
        optimizer.step()
        errors.append(error.item())
    assert min(errors) < 0.4 * errors[0]
    assert all(int(q.usage.sum()) == 120 * 8 * n for q, n in zip(net.quantizers, (4, 16), strict=True))
    net.eval()
    codes = net.encode(images)
    net.geometry(8, 8).check(codes)
    assert torch.allclose(net.decode(codes), net(images).images.clamp(-1, 1), atol=1e-5)
    assert net.decode(codes, 1).isfinite().all()
    for quantizer in net.quantizers:
        assert quantizer.codebook().shape == (16, 4)
        every = torch.arange(16)
        assert torch.allclose(quantizer.lookup(every.view(4, 4)).view(16, 4), quantizer.lookup(every))
        assert torch.allclose(quantizer.mean_code(), quantizer.ema_count @ quantizer.codebook() / quantizer.ema_count.sum(), atol=1e-5)  # fmt: skip


def test_more_layers_of_the_library_fit(page: dict[str, Any]) -> None:
    library = pytest.importorskip("vector_quantize_pytorch")
    z = torch.randn(3, 5, 4, 8, requires_grad=True)
    for layer in (
        library.VectorQuantize(dim=8, codebook_size=36),
        library.FSQ(levels=[6, 6], dim=8),
        library.SimVQ(dim=8, codebook_size=36),
    ):
        adapter = page["Adapter"](layer, 36, 8).eval()
        out = adapter(z)
        assert out.encoding_indices.shape == (3, 5, 4)
        assert torch.allclose(adapter.lookup(out.encoding_indices), out.quantize, atol=1e-5)
    with pytest.raises(ValueError, match="32 codes cannot be made of 2 stages"):
        page["Adapter"](layer, 32, 8, stages=2)


def test_a_run_with_it_trains_and_loads(
    page: dict[str, Any], command: Callable[..., Any], pictures: Path, settings: list[str], tmp_path: Path
) -> None:
    """The command knows the name, the run folder keeps it, and without the registration the message lists the names."""
    changes = ("train_autoencoder.steps=20", "autoencoder.quantizer=cosine", "autoencoder.entropy_penalty=0")
    arguments = [*settings, *(part for change in changes for part in ("--set", change))]
    done = command("train", pictures, "--run", tmp_path / "run", "--preset", "tiny", *arguments)
    assert done.code == 0, done.err
    run = load(tmp_path / "run", "cpu")
    assert isinstance(run.autoencoder.quantizers[0], page["CosineQuantizer"])
    models.quantizer_names.discard("cosine")
    with pytest.raises(
        ConfigError, match="expected a quantiser among fsq, lfq, residual, simvq, vq, found 'cosine'"
    ):
        load(tmp_path / "run", "cpu")


# --- the registry itself ---


def test_the_built_in_ones() -> None:
    for name, kind in (("vq", VectorQuantizer), ("fsq", FiniteScalarQuantizer)):
        made = quantizers.make_quantizer(small(name), 16)
        assert isinstance(made, kind)
        assert isinstance(made, Quantizer)
    assert set(quantizers._BUILDERS) == models.quantizer_names == {"vq", "fsq"}


@pytest.mark.parametrize("wrong", ["vqq", "", "VQ"])
def test_an_unknown_name_lists_the_known_ones(wrong: str) -> None:
    with pytest.raises(
        ConfigError, match=f"autoencoder.quantizer: expected a quantiser among fsq, vq, found '{wrong}'"
    ):
        parse({"autoencoder": {"quantizer": wrong}})


def test_a_name_stands_for_one_quantiser() -> None:
    def build(config: AutoencoderConfig, codes: int) -> Quantizer:
        return FiniteScalarQuantizer(codes, config.code_dim)

    quantizers.register_quantizer("mine", build)
    quantizers.register_quantizer("mine", build)
    for _ in range(2):
        quantizers.register_quantizer("lattice", FiniteScalarQuantizer.from_config)
    with pytest.raises(UserError, match="the quantiser 'vq' exists already"):
        quantizers.register_quantizer("vq", build)


def test_a_cell_of_a_notebook_can_be_run_again() -> None:
    """Each run defines another function; the last one counts."""
    for size in (8, 16):
        quantizers.register_quantizer(
            "mine", lambda config, codes, size=size: FiniteScalarQuantizer(size, config.code_dim)
        )
    assert VQVAE(small("mine")).quantizers[0].num_embeddings == 16


@pytest.mark.parametrize("name", ["cosine", "simvq", "lfq", "residual"])
def test_codes_do_not_depend_on_autocast(name: str, page: dict[str, Any]) -> None:
    torch.manual_seed(0)
    quantizer = VQVAE(small(name)).quantizers[0].eval()
    z = torch.randn(2000, 4)
    expected = quantizer(z).encoding_indices
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(z).encoding_indices, expected)


@pytest.mark.parametrize("name", ["cosine", "residual"])  # layers of others may have buffers without values
def test_memory_without_values_does_no_harm(name: str, page: dict[str, Any]) -> None:
    """Built without memory and then loaded, as large models are: the codes are the same."""
    torch.manual_seed(0)
    model = VQVAE(small(name)).eval()
    with torch.device("meta"):
        other = VQVAE(small(name))
    other.to_empty(device="cpu")
    for tensor in (*other.buffers(), *other.parameters()):
        tensor.data.fill_(7)  # arbitrary values
    other.load_state_dict(model.state_dict())
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    codes = model.encode(images)
    assert other.eval().encode(images) == codes
    assert torch.equal(other.decode(codes), model.decode(codes))


def test_the_training_loop_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs as it stands; what it draws for the bright class is brighter than for the dark one, also with the weights that were kept."""
    monkeypatch.chdir(tmp_path)
    section = PAGE.read_text(encoding="utf-8").split("## In your own training loop")[1].split("\n## ")[0]
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(compile(code, "extending", "exec"), names)  # the documentation's own code
    drawn = names["drawn"]
    assert drawn.shape == (8, 3, 16, 16)
    means = drawn.mean((1, 2, 3))
    assert means[1::2].min() > means[::2].max()
    free = names["model"].decode(names["prior"].sample(32)).mean((1, 2, 3))  # without a label: both classes
    assert free.min() < -0.3
    assert free.max() > 0.3


def test_what_a_builder_must_return() -> None:
    quantizers.register_quantizer("linear", lambda config, codes: torch.nn.Linear(2, 2))  # type: ignore[arg-type,return-value]
    quantizers.register_quantizer(
        "small", lambda config, codes: FiniteScalarQuantizer(codes // 2, config.code_dim)
    )
    with pytest.raises(UserError, match="'linear': expected a Quantizer, found Linear"):
        VQVAE(small("linear"))
    with pytest.raises(UserError, match="'small': expected 16 codes of 4 dimensions, found 8 of 4"):
        VQVAE(small("small"))
