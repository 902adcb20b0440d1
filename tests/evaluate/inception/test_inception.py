"""The path of FID, IS and KID: our features and figures are torch-fidelity's, for a random Inception (`make test-inception`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

pytest.importorskip("torch_fidelity", reason="has an environment of its own: make test-inception")

from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.utils import create_feature_extractor, extract_featuresdict_from_input_id

from vqvae2.data.pixels import to_float
from vqvae2.evaluate.features import FeatureError, FeatureNetwork, extract
from vqvae2.evaluate.metrics import Moments, class_score, frechet_distance, kernel_distance
from vqvae2.evaluate.networks.by_name import feature_network

COUNT = 16


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Inception of random weights that keeps pictures apart, as a state dict of `torch.save`."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr(torch, "load", lambda *arguments, **options: None)
        net = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path="none")
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, generator=torch.Generator().manual_seed(1))
    net.fc.weight.mul_(60)
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def network(weights: Path) -> FeatureNetwork:
    """Ours, with those weights."""
    return feature_network("inception", weights)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of pictures of 40 px: coarse noise, finer and darker noise."""
    roots = []
    for seed, grain in enumerate([10, 4]):
        root = tmp_path_factory.mktemp(f"pictures-{seed}")
        random = np.random.default_rng(seed)
        for number in range(COUNT):
            values = random.integers(0, 256 - 60 * seed, (40 // grain, 40 // grain, 3), np.uint8)
            picture = Image.fromarray(values).resize((40, 40), Image.Resampling.BICUBIC)
            picture.save(root / f"{number:02d}.png")
        roots.append(root)
    return roots[0], roots[1]


def batches(folder: Path, size: int = 7) -> list[Tensor]:
    """The pictures of a folder, in the order of their names."""
    pictures = [torch.from_numpy(np.array(Image.open(path))) for path in sorted(folder.iterdir())]
    return list(to_float(torch.stack(pictures)).split(size))


def options(weights: Path) -> dict[str, Any]:
    """Of torch-fidelity."""
    return {
        "cuda": False,
        "verbose": False,
        "cache": False,
        "save_cpu_ram": True,
        "feature_extractor_weights_path": str(weights),
    }


def test_features_are_torch_fidelitys(
    weights: Path, network: FeatureNetwork, folders: tuple[Path, Path]
) -> None:
    found = extract(network, batches(folders[0]))
    extractor = create_feature_extractor(
        "inception-v3-compat", ["2048", "logits_unbiased"], **options(weights)
    )
    theirs = extract_featuresdict_from_input_id(1, extractor, input1=str(folders[0]), **options(weights))
    assert found.logits is not None
    assert found.pooled.shape == (COUNT, network.dimension)
    assert found.logits.shape == (COUNT, 1008)
    assert found.pooled.std(0).mean() > 1e-2, "the random network tells the pictures apart"
    torch.testing.assert_close(found.pooled, theirs["2048"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.logits, theirs["logits_unbiased"], rtol=1e-4, atol=1e-3)


def test_figures_are_torch_fidelitys(
    weights: Path, network: FeatureNetwork, folders: tuple[Path, Path]
) -> None:
    """KID of one subset of all pictures and the score of one split, which no order changes."""
    samples, real = (extract(network, batches(folder)) for folder in folders)
    theirs = calculate_metrics(
        input1=str(folders[0]), input2=str(folders[1]), **options(weights),
        fid=True, isc=True, isc_splits=1, kid=True, kid_subsets=1, kid_subset_size=COUNT,
    )  # fmt: skip
    distance = frechet_distance(Moments.of(real.pooled), Moments.of(samples.pooled))
    assert distance == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    kernel = kernel_distance(real.pooled, samples.pooled, subsets=1, size=COUNT)
    # theirs is a difference of sums in float32
    assert kernel.mean == pytest.approx(theirs["kernel_inception_distance_mean"], abs=2e-6)
    assert samples.logits is not None
    score = class_score(samples.logits.double().softmax(1), splits=1)
    assert score.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert score.mean > 1.02


def test_a_safetensors_file_does_as_well(
    weights: Path, network: FeatureNetwork, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    save_file(torch.load(weights, weights_only=True), tmp_path / "inception.safetensors")
    other = feature_network("inception", tmp_path / "inception.safetensors")
    some = batches(folders[0], 2)[0]
    assert other.digest == network.digest
    assert torch.equal(other(some)[0], network(some)[0])


def test_grey_and_rgba(network: FeatureNetwork, folders: tuple[Path, Path]) -> None:
    some = batches(folders[0], 2)[0]
    grey = some[:, :1]
    assert torch.equal(network(grey)[0], network(grey.expand(-1, 3, -1, -1))[0])
    assert torch.equal(network(torch.cat([some, grey], 1))[0], network(some)[0])


def test_only_it_may_be_called_inception(network: FeatureNetwork) -> None:
    assert network.score_name == "Inception score"
    assert feature_network("lite0").score_name == "lite0 score"


def test_other_weights_are_refused(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    del state["fc.bias"]
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(FeatureError, match=r"half\.pth holds no Inception: .*fc\.bias"):
        feature_network("inception", tmp_path / "half.pth")
