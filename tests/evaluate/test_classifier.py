"""Classifiers: the probe is the minimum of its convex loss, the small network learns and repeats itself, files are checked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional

from vqvae2.data.pixels import to_float
from vqvae2.evaluate.classifier import ClassifierError, predict
from vqvae2.evaluate.classifier_file import load_classifier, save_classifier
from vqvae2.evaluate.probe import Probe, ProbeClassifier, fit_probe
from vqvae2.evaluate.resnet import ClassifierConfig, ResNet, train_classifier
from vqvae2.evaluate.torchscript import read_torchscript
from vqvae2.files.atomic import FileError
from vqvae2.files.tensor_file import load_tensors, save_tensors

SMALL = ClassifierConfig(width=8, stages=2, steps=40, batch=16, lr=2e-2, flip=False, shift=0)


def clouds(count: int = 90, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features [N, 4] of three classes about three corners, on scales that differ, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    features = torch.eye(3, 4)[labels] * 2 + spread * torch.randn(count, 4, generator=generator)
    return features * torch.tensor([1.0, 100.0, 0.01, 1.0]) + 5, labels


def stripes(count: int = 48, channels: int = 1, size: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """uint8 [N, H, W, C] of noise with stripes that lie or stand, and which."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    wave = (np.arange(size) // 2 % 2 * 100)[None, :]
    lying = np.stack([np.broadcast_to(wave.T if label else wave, (size, size)) for label in labels])
    noise = random.integers(0, 120, (count, size, size, channels))
    return torch.from_numpy((lying[..., None] + noise).astype(np.uint8)), torch.from_numpy(labels)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_probe_is_the_minimum_of_its_loss(seed: int) -> None:
    """Against scipy's minimiser in float64, and by its gradient."""
    features, labels = clouds(seed=seed)
    probe = fit_probe(features, labels, 3, backbone_digest="net", weight_decays=[0.05])
    x = features.double()
    x = (x - x.mean(0)) / x.std(0, correction=0)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(values.reshape(3, 5), requires_grad=True)
        value = (
            functional.cross_entropy(x @ free[:, :4].T + free[:, 4], labels)
            + 0.025 * free[:, :4].square().sum()
        )
        value.backward()
        assert free.grad is not None
        return float(value.detach()), free.grad.numpy().ravel()

    best = minimize(loss, np.zeros(15), jac=True, method="BFGS", options={"gtol": 1e-8}).x.reshape(3, 5)
    torch.testing.assert_close(probe.weight.double(), torch.from_numpy(best[:, :4]), rtol=1e-3, atol=1e-4)
    found = np.concatenate([probe.weight.double().numpy(), probe.bias.double().numpy()[:, None]], 1)
    assert np.abs(loss(found.ravel())[1]).max() < 1e-4


@pytest.mark.parametrize("seed", [0, 1])
def test_the_decay_is_the_best_on_what_is_left_out(seed: int) -> None:
    """For noise a strong weight decay is chosen, for well separated clouds a weak one, which also fits fresh data."""
    generator = torch.Generator().manual_seed(1 + seed)
    noise, any_labels = torch.randn(60, 30, generator=generator), torch.arange(60) % 3
    assert fit_probe(noise, any_labels, 3, backbone_digest="net").weight_decay >= 1
    features, labels = clouds(spread=0.2, seed=seed)
    probe = fit_probe(features, labels, 3, backbone_digest="net")
    assert probe.weight_decay <= 1e-3
    fresh, others = clouds(spread=0.2, seed=9 + seed)
    assert torch.equal(probe(fresh).argmax(1), others)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_probe_does_not_mind_order_scale_or_a_constant(seed: int) -> None:
    features, labels = clouds(seed=seed)
    probe = fit_probe(features, labels, 3, backbone_digest="net", weight_decays=[0.05])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3 + seed))
    changed = torch.cat([features * 7 - 3, torch.full((len(labels), 1), 2.0)], 1)[order]
    other = fit_probe(changed, labels[order], 3, backbone_digest="net", weight_decays=[0.05])
    torch.testing.assert_close(other(changed), probe(features)[order], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_probes_of_a_seed_are_equal_and_classes_may_be_missing(seed: int) -> None:
    features, labels = clouds(seed=seed)
    first, again = (fit_probe(features, labels, 5, backbone_digest="net", seed=4 + seed) for _ in range(2))
    assert torch.equal(first.weight, again.weight)
    logits = first(features)
    assert logits.shape == (90, 5)
    assert logits.argmax(1).max() <= 2
    single = fit_probe(features[:3], labels[:3], 3, backbone_digest="net")
    assert torch.equal(single(features[:3]).argmax(1), labels[:3]), "one image of each: nothing is left out"


def test_what_no_probe_can_learn_from() -> None:
    features, labels = clouds(6)
    with pytest.raises(ClassifierError, match="labels of 0 to 1, found 0 to 2"):
        fit_probe(features, labels, 2, backbone_digest="net")
    with pytest.raises(ClassifierError, match="a label for each of 6 images"):
        fit_probe(features, labels[:5], 3, backbone_digest="net")
    with pytest.raises(ClassifierError, match="a label for each of 0"):
        fit_probe(features[:0], labels[:0], 3, backbone_digest="net")
    features[2, 1] = float("nan")
    with pytest.raises(ClassifierError, match="finite"):
        fit_probe(features, labels, 3, backbone_digest="net")


class Means(nn.Module):
    """A feature network: means of three channels."""

    name, digest, dimension, size, resize, score_name = "means", "d" * 64, 3, 8, "none", None

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        """Of [B, 3, H, W]."""
        return images.mean((2, 3)), None


def test_a_probe_classifies_images_of_its_own_network_only() -> None:
    probe = fit_probe(torch.eye(3).repeat(4, 1), torch.arange(12) % 3, 3, backbone_digest="d" * 64)
    classifier = ProbeClassifier(Means(), probe)
    images = torch.eye(3)[:, :, None, None].expand(-1, -1, 4, 4)
    assert torch.equal(classifier(images), probe(images[:, :, 0, 0]))
    assert (classifier.classes, classifier.backbone_digest) == (3, "d" * 64)
    with pytest.raises(ClassifierError, match="fitted on the network other"):
        ProbeClassifier(Means(), fit_probe(torch.eye(3), torch.arange(3), 3, backbone_digest="other"))


@pytest.fixture(scope="module")
def trained() -> ResNet:
    """A small network that has learned to classify the stripes."""
    return train_classifier(*stripes(), 2, SMALL)


@pytest.mark.parametrize("seed", [0, 1])
def test_it_learns(seed: int) -> None:
    images, labels = stripes(seed=seed)
    net = train_classifier(images, labels, 2, SMALL.model_copy(update={"seed": seed}))
    assert (predict(net, images).argmax(1) == labels).float().mean() > 0.95


def test_equal_arguments_give_equal_weights_and_touch_no_generator(trained: ResNet) -> None:
    images, labels = stripes()
    before = torch.random.get_rng_state()
    again = train_classifier(list(to_float(images).split(7)), labels, 2, SMALL)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again.backbone_digest == trained.backbone_digest, "from floats in batches as from uint8"
    other = train_classifier(images, labels, 2, SMALL.model_copy(update={"seed": 1}))
    assert other.backbone_digest != trained.backbone_digest


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 33), (4, 64), (3, 5)])
def test_any_channels_and_sizes(channels: int, size: int) -> None:
    images, labels = stripes(6, channels, size)
    config = ClassifierConfig(width=8, steps=10, batch=2, shift=2)
    logits = predict(train_classifier(images, labels, 3, config), images)
    assert logits.shape == (6, 3)
    assert logits.isfinite().all()


def test_predictions_do_not_depend_on_batches_or_form(trained: ResNet) -> None:
    images, _ = stripes()
    whole = predict(trained, images)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(predict(trained, images, batch=5), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(predict(trained, to_float(images)), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(predict(trained, iter(to_float(images).split(9))), whole, rtol=1e-4, atol=1e-4)


def test_a_flip_in_training_makes_mirror_images_alike() -> None:
    """Classes that are mirror images of each other can be learned without the flip only."""
    images = torch.zeros(32, 8, 8, 1, dtype=torch.uint8)
    images[0::2, :, :4] = 255
    images[1::2, :, 4:] = 255
    labels = torch.arange(32) % 2
    sure, unsure = (
        predict(train_classifier(images, labels, 2, SMALL.model_copy(update={"flip": flip})), images)
        for flip in (False, True)
    )
    assert functional.cross_entropy(sure, labels) < 0.1
    assert functional.cross_entropy(unsure, labels) > 0.5


def test_what_no_classifier_can_learn_from() -> None:
    images, labels = stripes(4)
    for bad, message in [
        (images[:0], "at least one image"),
        (images[..., :0], "found torch.uint8"),
        (to_float(images)[:, :0], "found torch.float32"),
    ]:
        with pytest.raises(ClassifierError, match=message):
            train_classifier(bad, labels, 2, SMALL)
    with pytest.raises(ClassifierError, match="labels of 0 to 0"):
        train_classifier(images, labels, 1, SMALL)


def test_written_and_read(trained: ResNet, tmp_path: Path) -> None:
    features, labels = clouds()
    probe = fit_probe(features, labels, 3, backbone_digest="net")
    save_classifier(tmp_path / "probe.safetensors", probe)
    read = load_classifier(tmp_path / "probe.safetensors")
    assert isinstance(read, Probe)
    assert (read.backbone_digest, read.weight_decay, read.classes) == ("net", probe.weight_decay, 3)
    assert torch.equal(read(features), probe(features))

    images, _ = stripes()
    save_classifier(tmp_path / "resnet.safetensors", trained)
    before = torch.random.get_rng_state()
    net = load_classifier(tmp_path / "resnet.safetensors")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(net, ResNet)
    assert (net.backbone_digest, net.config, net.classes) == (trained.backbone_digest, SMALL, 2)
    assert torch.equal(predict(net, images), predict(trained, images))


def test_the_names_in_files_stay(tmp_path: Path) -> None:
    """A critic that an earlier version saved is read, and an equal one has an equal digest."""
    features, labels = clouds()
    digest = save_classifier(tmp_path / "new", fit_probe(features, labels, 3, backbone_digest="net"))
    tensors, about = load_tensors(tmp_path / "new")
    assert set(tensors) == {"mean", "deviation", "weight", "bias"}
    assert list(about) == ["classes", "kind", "dimension", "rests_on", "weight_decay"]
    assert save_tensors(tmp_path / "old", tensors, about) == digest


def test_other_files_are_no_classifiers(tmp_path: Path) -> None:
    save_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(FileError, match="holds no classifier"):
        load_classifier(tmp_path / "other.safetensors")
    with pytest.raises(FileError, match="no weights"):
        load_classifier(tmp_path / "none.safetensors")


class Brightness(nn.Module):
    """Logits from the means of the channels of images of 8 px."""

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, 8, 8] -> [B, 2]."""
        return images.mean((2, 3))[:, :2].reshape(-1, 2)


class Fixed(nn.Module):
    """As `Brightness`, of two images only."""

    def forward(self, images: Tensor) -> Tensor:
        """[2, 3, 8, 8] -> [2, 2]."""
        return images.mean((2, 3))[:, :2].reshape(2, 2)


def scripted(module: nn.Module, path: Path, declaration: str | None = '{"size": 8}') -> Path:
    """The module as a TorchScript file."""
    files = {} if declaration is None else {"vqvae2.json": declaration}
    torch.jit.save(torch.jit.script(module), path, _extra_files=files)
    return path


torchscript = pytest.mark.filterwarnings(r"ignore:`torch\.jit:DeprecationWarning")


@torchscript
def test_a_torchscript_file_is_a_classifier(tmp_path: Path) -> None:
    path = scripted(Brightness(), tmp_path / "bright.pt")
    classifier = read_torchscript(path)
    images = torch.rand(3, 3, 8, 8) * 2 - 1
    assert torch.equal(classifier(images), Brightness()(images))
    assert (classifier.classes, classifier.size) == (2, 8)
    assert classifier.backbone_digest == hashlib.sha256(path.read_bytes()).hexdigest()
    doubled = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(classifier(doubled), classifier(images), atol=0.05, rtol=0)
    grey = images[:, :1]
    assert torch.equal(classifier(grey), classifier(grey.expand(-1, 3, -1, -1)))
    assert torch.equal(classifier(torch.cat([images, grey], 1)), classifier(images))
    assert predict(classifier, images).shape == (3, 2)


@torchscript
@pytest.mark.parametrize("key", ["backbone_digest", "rests_on"])
def test_a_file_may_name_its_backbone(key: str, tmp_path: Path) -> None:
    """Also under the older name."""
    declaration = json.dumps({"size": 8, key: "d" * 64})
    assert (
        read_torchscript(scripted(Brightness(), tmp_path / "a.pt", declaration)).backbone_digest == "d" * 64
    )


@torchscript
@pytest.mark.parametrize(
    "declaration", [None, "", "8", "{}", '{"size": "8"}', '{"size": 0}', '{"size": 8, "rests_on": 1}']
)
def test_a_file_must_say_its_size(declaration: str | None, tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match=r"does not say the size .* vqvae2\.json"):
        read_torchscript(scripted(Brightness(), tmp_path / "a.pt", declaration))


@torchscript
def test_a_module_for_one_batch_size_or_other_shapes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match=r"fails on images \[B, 3, 8, 8\]"):
        read_torchscript(scripted(Fixed(), tmp_path / "fixed.pt"))
    with pytest.raises(ClassifierError, match=r"expected \[B, K\]"):
        read_torchscript(scripted(nn.ReLU(), tmp_path / "relu.pt"))


def test_pickles_and_exported_programs_are_refused(tmp_path: Path) -> None:
    net = nn.Flatten()
    torch.save(net, tmp_path / "module.pt")
    torch.save(net, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(net.state_dict(), tmp_path / "state.pt")
    torch.export.save(torch.export.export(net, (torch.zeros(2, 3, 8, 8),)), tmp_path / "program.pt2")
    (tmp_path / "text.pt").write_text("no module")
    for name, message in [
        ("module.pt", "a pickle or another archive"),
        ("old.pt", "no TorchScript file"),
        ("state.pt", "a pickle or another archive"),
        ("program.pt2", r"torch\.export's"),
        ("text.pt", "no TorchScript file"),
        ("none.pt", "no classifier at"),
    ]:
        with pytest.raises(ClassifierError, match=message):
            read_torchscript(tmp_path / name)
