"""The perceptual distance: against its formula written out, its symmetries, its gradient, and files that hold no VGG16."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from vqvae2.autoencoder import perceptual
from vqvae2.autoencoder.perceptual import PerceptualDistance, PerceptualError

# torchvision's vgg16().features: the numbers of its convolutions with their output channels, stage by stage
VGG16 = (
    ((0, 64), (2, 64)),
    ((5, 128), (7, 128)),
    ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)),
    ((24, 512), (26, 512), (28, 512)),
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VGG16 of random weights with heads, and a classifier that nobody asked for."""
    generator = torch.Generator().manual_seed(0)
    tensors = {"classifier.0.weight": torch.zeros(3, 3)}
    before = 3
    for stage, layers in enumerate(VGG16):
        for number, width in layers:
            shape = (width, before, 3, 3)
            tensors[f"features.{number}.weight"] = (
                torch.randn(shape, generator=generator) * (2 / 9 / before) ** 0.5
            )
            tensors[f"features.{number}.bias"] = torch.randn(width, generator=generator) * 0.1
            before = width
        tensors[f"heads.{stage}"] = torch.rand(before, generator=generator)
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def distance(weights: Path) -> PerceptualDistance:
    """The distance with those weights."""
    return PerceptualDistance.read(weights)


def images(count: int = 2, channels: int = 3, size: int = 16, seed: int = 1) -> Tensor:
    """Coarse noise in [-1, 1]."""
    noise = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return functional.interpolate(noise, size, mode="bilinear")


def test_it_is_the_published_formula(weights: Path, distance: PerceptualDistance) -> None:
    """Stage by stage in float64: convolution and ReLU, pooling by two, unit vectors, weighted squares, means, sum."""
    tensors = {key: value.double() for key, value in load_file(weights).items()}
    x, y = images(seed=1).double(), images(seed=2).double()
    mean = torch.tensor([0.485, 0.456, 0.406]).double()[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225]).double()[:, None, None]
    features = [((image + 1) / 2 - mean) / std for image in (x, y)]
    expected = torch.zeros(2, dtype=torch.float64)
    for stage, layers in enumerate(VGG16):
        for index in (0, 1):
            z = functional.max_pool2d(features[index], 2) if stage else features[index]
            for number, _ in layers:
                weight, bias = tensors[f"features.{number}.weight"], tensors[f"features.{number}.bias"]
                z = functional.conv2d(z, weight, bias, padding=1).relu()
            features[index] = z
        units = [z / z.norm(dim=1, keepdim=True) for z in features]
        expected += (
            ((units[0] - units[1]) ** 2 * tensors[f"heads.{stage}"][:, None, None]).sum(1).mean((1, 2))
        )
    assert distance(x.float(), y.float()).double() == pytest.approx(expected, rel=1e-4)
    assert expected.min() > 0.1


def test_it_is_a_distance(distance: PerceptualDistance) -> None:
    x, y = images(seed=1), images(seed=2)
    assert distance(x, x).tolist() == [0, 0]
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-5)
    assert distance(x, torch.lerp(x, y, 0.1)).max() < distance(x, y).min()
    alone = torch.cat([distance(x[i : i + 1], y[i : i + 1]) for i in (0, 1)])
    assert distance(x, y) == pytest.approx(alone, rel=1e-4), "each image by itself"


def test_grey_is_rgb_and_alpha_is_not_seen(distance: PerceptualDistance) -> None:
    x, y = images(channels=1, seed=1), images(channels=1, seed=2)
    grey = distance(x, y)
    assert grey == pytest.approx(distance(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)), rel=1e-6)
    colours, alpha = (x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)), images(channels=1, seed=3)
    assert distance(*(torch.cat([c, alpha * sign], 1) for c, sign in zip(colours, (1, -1), strict=True))) == (
        pytest.approx(grey, rel=1e-6)
    )


def test_the_gradient_is_the_reconstructions_alone(distance: PerceptualDistance) -> None:
    x, y = images(seed=1).requires_grad_(), images(seed=2).requires_grad_()
    before = distance(x, y).sum()
    before.backward()
    assert x.grad is not None
    assert y.grad is None, "the originals are what is aimed at"
    assert all(p.grad is None and not p.requires_grad for p in distance.parameters())
    step = 1e-2 / float(x.grad.norm())
    assert distance(x.detach() - step * x.grad, y).sum() < before


def test_a_black_image_has_a_finite_gradient() -> None:
    net = PerceptualDistance()
    for parameter in net.features.parameters():
        parameter.zero_()
    x = torch.zeros(1, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x, images(1)).sum(), x)
    assert gradient.isfinite().all(), "features that are all 0 have no direction"


def test_autocast_changes_little(distance: PerceptualDistance) -> None:
    x, y = images(seed=1), images(seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        found = distance(x, y)
    assert found.dtype == torch.float32
    assert found == pytest.approx(distance(x, y), rel=0.05)


def test_without_heads_every_channel_weighs_one(weights: Path, tmp_path: Path) -> None:
    bare = {key: value for key, value in load_file(weights).items() if not key.startswith("heads")}
    save_file(bare, tmp_path / "bare.safetensors")
    ones = {f"heads.{i}": torch.ones(layers[-1][1]) for i, layers in enumerate(VGG16)}
    save_file(bare | ones, tmp_path / "ones.safetensors")
    x, y = images(seed=1), images(seed=2)
    found = [PerceptualDistance.read(tmp_path / f"{name}.safetensors")(x, y) for name in ("bare", "ones")]
    assert torch.equal(*found)


def test_it_is_called_lpips_with_its_heads_only(
    weights: Path, trained: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    """And a report names the weights: two figures compare if both digests are equal."""
    bare = {key: value for key, value in load_file(weights).items() if not key.startswith("heads")}
    save_file(bare, tmp_path / "bare.safetensors")
    save_file(bare | {"features.0.bias": bare["features.0.bias"] + 1}, tmp_path / "other.safetensors")
    found = {}
    for file in (weights, tmp_path / "bare.safetensors", tmp_path / "other.safetensors"):
        out = tmp_path / file.stem
        said = command("evaluate", trained, "--out", out, "--only", "reconstruction", "--perceptual", file)
        assert said.code == 0, said.err
        found[file.stem] = json.loads((out / "report.json").read_text())["protocol"]["perceptual"]
        named = "LPIPS" in (out / "report.html").read_text().split("Protocol")[-1].replace(
            "heads of LPIPS", ""
        )
        assert named == (file == weights)
    own, plain, other = found.values()
    assert own["name"] == "LPIPS"
    assert own["heads"] is not None
    assert plain["heads"] is other["heads"] is None
    assert "without" in plain["name"]
    assert own["weights"] == plain["weights"] != other["weights"]
    assert own["backbone"] == "VGG16"


@pytest.mark.parametrize(("x", "y"), [
    ((2, 3, 16, 16), (2, 3, 16, 17)), ((2, 2, 16, 16), (2, 2, 16, 16)), ((3, 16, 16), (3, 16, 16)),
    ((1, 3, 15, 16), (1, 3, 15, 16)),
])  # fmt: skip
def test_shapes_that_cannot_be_compared(
    x: tuple[int, ...], y: tuple[int, ...], distance: PerceptualDistance
) -> None:
    with pytest.raises(PerceptualError, match="expected"):
        distance(torch.zeros(x), torch.zeros(y))


def test_files_that_hold_no_vgg16(weights: Path, tmp_path: Path) -> None:
    def refused(source: object, *parts: str) -> None:
        with pytest.raises(PerceptualError) as caught:
            PerceptualDistance.read(str(source))
        assert all(part in str(caught.value) for part in parts), caught.value
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none.safetensors", "no weights at", "none.safetensors")
    refused(tmp_path, "no weights at")
    (tmp_path / "text").write_text("hello")
    refused(tmp_path / "text", "cannot read")
    (tmp_path / "short").write_bytes(weights.read_bytes()[:1000])
    refused(tmp_path / "short", "cannot read")
    tensors = load_file(weights)
    save_file({k: v for k, v in tensors.items() if k != "features.28.bias"}, tmp_path / "lacks")
    refused(tmp_path / "lacks", "no VGG16", "features.28.bias", "none")
    save_file(tensors | {"features.0.weight": torch.zeros(64, 1, 3, 3)}, tmp_path / "grey")
    save_file({k: v for k, v in tensors.items() if k != "heads.3"}, tmp_path / "some")
    refused(tmp_path / "some", "holds heads.0, heads.1, heads.2, heads.4 alone: expected 5 heads, or none")
    refused(tmp_path / "grey", "no VGG16", "features.0.weight", "[64, 3, 3, 3]", "[64, 1, 3, 3]")


def test_a_name_of_the_hub(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(weights)

    monkeypatch.setattr(perceptual, "hf_hub_download", download)
    PerceptualDistance.read("somebody/vgg16")
    assert asked == [("somebody/vgg16", "model.safetensors")]

    def broken(*_: str) -> NoReturn:
        raise OSError("no\nconnection")

    monkeypatch.setattr(perceptual, "hf_hub_download", broken)
    with pytest.raises(PerceptualError, match=r"the Hub gave none: no connection$"):
        PerceptualDistance.read("somebody/vgg16")
