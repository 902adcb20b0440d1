"""experiments/baselines/biggan.py on a small BigGAN with random weights, of the package's own code."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import loaded

from vqvae2.config.models import DataConfig
from vqvae2.data.images import open_images
from vqvae2.errors import UserError

package = pytest.importorskip(
    "pytorch_pretrained_biggan",
    reason="the baseline's package is not installed; `make test-baselines` runs these",
)

WRONG = [0.14, 0.28, 0.56, 0.58, 0.94]  # truncations at which the package reads a neighbour's row
SETTINGS: dict[str, Any] = {
    "output_dim": 16,
    "z_dim": 8,
    "class_embed_dim": 8,
    "channel_width": 8,
    "num_classes": 4,
    "layers": [[True, 16, 8], [False, 8, 4], [True, 4, 2], [False, 2, 1]],
    "attention_layer_position": 3,
    "eps": 1e-4,
    "n_stats": 51,
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded(Path(__file__).parents[2] / "experiments" / "baselines" / "biggan.py")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `from_pretrained` takes it: 4 classes, 16 px, statistics that differ from row to row."""
    folder = tmp_path_factory.mktemp("biggan")
    (folder / "config.json").write_text(json.dumps(SETTINGS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = package.BigGAN(package.BigGANConfig.from_dict(SETTINGS))
        for name, tensor in network.state_dict().items():
            if name.endswith("running_means"):
                tensor.normal_(0, 0.3)
            elif name in ("generator.bn.weight", "generator.bn.bias"):
                tensor.fill_(0.5)  # left as memory had them by the package
        for _ in range(20):  # the spectral norms of random weights are found step by step
            network.train()(torch.randn(2, 8), torch.eye(4)[:2], 1.0)
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    return folder


def run(script: ModuleType, weights: Path, out: Path, *more: str) -> int:
    return int(script.main(["--weights", str(weights), "--out", str(out), *more]))


def pixels(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.rglob("*.png"))
    return {str(file.relative_to(folder)): np.array(Image.open(file)).astype(int) for file in files}


def alike(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """The same files; a batch of another size may round the last bit of a pixel otherwise."""
    return one.keys() == other.keys() and all(np.abs(one[k] - other[k]).max() <= 1 for k in one)


def test_pictures_are_those_of_the_package(script: ModuleType, weights: Path, tmp_path: Path) -> None:
    """Loaded and drawn by the package alone, with its noise of the same seeds."""
    assert run(script, weights, tmp_path, "--per-class", "2", "--truncation", "0.5", "--seed", "3") == 0
    network = package.BigGAN.from_pretrained(str(weights)).eval()
    for label in range(4):
        z = np.concatenate([package.truncated_noise_sample(1, 8, 0.5, [3, label, i]) for i in range(2)])
        hot = torch.eye(4)[[label, label]]
        with torch.no_grad():
            expected = package.convert_to_images(network(torch.from_numpy(z).float(), hot, 0.5))
        for number, image in enumerate(expected):
            file = tmp_path / "truncation-0.5" / f"class-{label:04d}" / f"{number:05d}.png"
            assert np.abs(np.array(Image.open(file)).astype(int) - np.array(image)).max() <= 1


def test_evaluation_reads_the_folder(script: ModuleType, weights: Path, tmp_path: Path) -> None:
    """Balanced, every file listed once with its class, the list balanced up to any length, classes from the folders."""
    assert run(script, weights, tmp_path, "--per-class", "3") == 0
    folder = tmp_path / "truncation-1"
    entries = json.loads((folder / "samples.json").read_text())["samples"]
    assert sorted(entry["file"] for entry in entries) == sorted(pixels(folder))
    assert Counter(entry["label"] for entry in entries) == dict.fromkeys(range(4), 3)
    assert {entry["label"] for entry in entries[:4]} == set(range(4))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        images = open_images(str(folder), DataConfig(size=16), tmp_path / "cache", say=lambda _: None)
    by_name = {entry["file"]: entry["class"] for entry in entries}
    assert images.labels is not None
    assert {
        name: images.classes[label] for name, label in zip(images.names, images.labels, strict=True)
    } == by_name
    images.close()


def test_a_picture_depends_on_seed_class_and_number_alone(
    script: ModuleType, weights: Path, tmp_path: Path
) -> None:
    """Neither on the batch, nor on what was there before, nor on the other classes asked for."""
    run(script, weights, tmp_path / "once", "--per-class", "3", "--batch", "12")
    grown = tmp_path / "grown"
    run(script, weights, grown, "--per-class", "1", "--classes", "2,1")
    first = grown / "truncation-1" / "class-0002" / "00000.png"
    written = first.stat().st_mtime_ns
    run(script, weights, grown, "--per-class", "3", "--batch", "5")
    (grown / "truncation-1" / "class-0003" / "00001.png").unlink()
    run(script, weights, grown, "--per-class", "3", "--batch", "2")
    assert alike(pixels(tmp_path / "once"), pixels(grown))
    assert first.stat().st_mtime_ns == written
    distinct = {picture.tobytes() for picture in pixels(grown).values()}
    assert len(distinct) == 12


def test_samples_of_one_kind_share_a_folder(
    script: ModuleType, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(script, weights, tmp_path, "--per-class", "1", "--classes", "0")
    assert run(script, weights, tmp_path, "--per-class", "1", "--classes", "0", "--seed", "1") == 2
    assert "seed: 0 -> 1" in capsys.readouterr().err


def test_truncation_scales_the_same_noise(script: ModuleType, weights: Path) -> None:
    """Normal within [-2, 2], variance as that of the truncated normal; at t it is t times as large."""
    network, _, _ = script.load(str(weights))
    network.config.z_dim = 2000
    whole, part = (script.noise(network, t, 5, 1, 2) for t in (1.0, 0.25))
    torch.testing.assert_close(part, 0.25 * whole)
    assert float(whole.abs().max()) <= 2
    share = math.erf(2**0.5)
    variance = 1 - 2 * 2 * math.exp(-2) / math.sqrt(2 * math.pi) / share
    assert float(whole.var()) == pytest.approx(variance, rel=0.05)


def test_each_truncation_has_its_own_statistics(script: ModuleType, weights: Path) -> None:
    """Row k holds k; the package alone reads another row at five of its fifty truncations, and mirrors those between."""
    network, statistics, _ = script.load(str(weights))
    norm = network.generator.bn
    torch.nn.init.ones_(norm.weight)
    torch.nn.init.zeros_(norm.bias)
    norm.eps = 0.0
    norm.running_vars = torch.ones(51, 8)
    norm.running_means = torch.arange(51.0)[:, None].expand(51, 8)
    statistics[-1] = torch.stack([norm.running_means, norm.running_vars])
    zero = torch.zeros(1, 8, 1, 1)

    def read(truncation: float) -> float:
        return -float(norm(zero, truncation)[0, 0, 0, 0].detach())

    asked = [round(row * 0.02, 2) for row in range(1, 51)]
    plain = [read(t) for t in asked]
    assert [t for t, found in zip(asked, plain, strict=True) if abs(found - 50 * t) > 0.5] == WRONG
    assert read(0.305) == pytest.approx(15.75)
    for t in [*asked, 0.305, 0.001, 0.999]:
        script.truncate(network, statistics, t)
        assert read(1.0) == pytest.approx(50 * t, rel=1e-6)


@pytest.mark.parametrize("truncation", ["0", "1.02", "-0.5", "nan", "much"])
def test_truncations_out_of_range_are_refused(
    script: ModuleType, weights: Path, tmp_path: Path, truncation: str
) -> None:
    assert run(script, weights, tmp_path / "out", f"--truncation={truncation}") == 2
    assert not (tmp_path / "out").exists()


def test_classes_by_number_id_and_name(script: ModuleType, tmp_path: Path) -> None:
    folders, names = script.class_names(1000, None)
    assert script.class_list("281, n02123045,0", folders, names) == [281, 0]
    assert len(set(folders)) == 1000
    listed = tmp_path / "names.txt"
    listed.write_text("n01440764 tench, Tinca tinca\nn02123045 tabby, tabby cat\nn02124075 Egyptian cat\n")
    folders, names = script.class_names(3, listed)
    assert folders == ["n01440764", "n02123045", "n02124075"]
    assert script.class_list("tabby cat,egyptian cat,Tinca tinca", folders, names) == [1, 2, 0]
    chosen = tmp_path / "chosen.txt"
    chosen.write_text("2\ntench\n\n2\n")
    assert script.class_list(str(chosen), folders, names) == [2, 0]
    with pytest.raises(UserError, match="no class 'dog'"):
        script.class_list("dog", folders, names)
    with pytest.raises(UserError, match="expected 4 different classes"):
        script.class_names(4, listed)


def test_weights_that_are_not_whole_are_refused(script: ModuleType, weights: Path, tmp_path: Path) -> None:
    """The package would draw with what it lacks at random, and torch.load would run what a pickle says."""
    (tmp_path / "config.json").write_text((weights / "config.json").read_text())
    with pytest.raises(UserError, match="no weights"):
        script.load(str(tmp_path))
    state = torch.load(weights / "pytorch_model.bin", weights_only=True)
    state.pop("generator.layers.1.bn_0.running_vars")
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"lacks 1 weights, the first generator\.layers\.1\.bn_0\.running_vars"
    ):
        script.load(str(tmp_path))
    torch.save({"x": Path("y")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot load"):
        script.load(str(tmp_path))
