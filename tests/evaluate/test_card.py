"""Where an evaluation computes: what takes long on the run's device, a few rows at a time, and with batches that fill a card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from colours_network import Colours
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vqvae2.commands.evaluate import evaluate
from vqvae2.config.models import DataConfig
from vqvae2.data.images import open_images
from vqvae2.evaluate import context, critic_images, full_report, manifolds, metrics, sets
from vqvae2.evaluate.context import Context
from vqvae2.evaluate.encoding import Encoder
from vqvae2.evaluate.features import Features
from vqvae2.evaluate.networks import base
from vqvae2.evaluate.options import EvaluateOptions
from vqvae2.evaluate.parts import critic, tuning
from vqvae2.evaluate.parts.precision import precision_recall
from vqvae2.evaluate.sets import batch_size
from vqvae2.files.progress import Reporter
from vqvae2.processes import Group
from vqvae2.run import load
from vqvae2.train import device as train_device

Command = Callable[..., Any]
CARD, CPU = torch.device("cuda"), torch.device("cpu")
HEAVY = {"mm", "addmm", "topk"}
N, D = 6000, 1280


class Places(TorchDispatchMode):
    """Notes where products and neighbours are computed, and how large tensors become; every number that is read is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.heavy: set[str] = set()
        self.largest: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        if name == "_local_scalar_dense":
            return 1.0
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                kind, size = value.device.type, value.numel() * value.element_size()
                assert (kind, value.dtype) != ("mps", torch.float64), f"{func} made a float64"
                self.largest[kind] = max(size, self.largest.get(kind, 0))
                if name in HEAVY:
                    self.heavy.add(kind)
        return result


@pytest.fixture
def places() -> Iterator[Places]:
    """Nothing is computed."""
    with FakeTensorMode(allow_non_fake_inputs=True), Places() as mode:
        yield mode


def vectors(n: int = N, d: int = D) -> Tensor:
    """Features, on the CPU as they are kept."""
    return torch.zeros(n, d)


MEASURES: dict[str, Callable[[torch.device | str], Any]] = {
    "neighbours": lambda device: manifolds.nearest(vectors(), vectors(), 5, device=device),
    "manifolds": lambda device: manifolds.manifolds(vectors(), vectors(), device=device),
    "moments": lambda device: metrics.Moments.of(vectors(), device=device),
    "kernels": lambda device: metrics.kernel_distance(vectors(), vectors(), subsets=2, device=device),
    "all kernels": lambda device: metrics.kernel_distance(vectors(), vectors(), 1, N, device=device),
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(("kind", "expected"), [("meta", "meta"), ("mps", "cpu"), ("cpu", "cpu")])
def test_what_takes_long_runs_on_the_device_if_it_has_float64(
    name: str, kind: str, expected: str, places: Places
) -> None:
    """Features were moved to the CPU, and nothing moved them back. "meta" stands for a card."""
    result = MEASURES[name](kind)
    assert places.heavy == {expected}
    kept = vars(result).values() if isinstance(result, metrics.Moments) else result
    assert all(value.device == CPU for value in kept if isinstance(value, Tensor))


@pytest.mark.parametrize("name", MEASURES)
def test_a_card_holds_a_few_rows_at_a_time(name: str, places: Places) -> None:
    """Kernels of all pairs of as many vectors as are drawn took 24 bytes for each; on the card they are cut up."""
    MEASURES[name]("meta")
    rows = N * D * 8 if name == "all kernels" else 0  # its vectors are there as a whole
    assert places.largest["meta"] <= max(rows, 2**27)
    assert max(rows, 2**27) < N * N * 8


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The devices that the measures are asked to compute on."""
    devices: list[Any] = []

    def noted(device: Any) -> torch.device:
        devices.append(device)
        return CPU

    for module in (manifolds, metrics):
        monkeypatch.setattr(module, "exact_device", noted)
    return devices


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path, train_tiny: Callable[..., Path]
) -> Path:
    """A run with 12 held-out images; not to be altered."""
    return train_tiny(tmp_path_factory.mktemp("card"), pictures, "data.holdout=0.5")


@pytest.mark.parametrize("part", ["distances", "precision", "memorisation", "tuning"])
def test_parts_compare_features_where_the_run_is(
    part: str,
    trained: Path,
    tmp_path: Path,
    asked: list[Any],
    network: Colours,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "_LEAST", 6)
    monkeypatch.setattr(tuning, "VALUES", {name: values[:1] for name, values in tuning.VALUES.items()})
    run = load(trained, "cpu")
    options = EvaluateOptions(only=(part,), n=9, reference=10)
    evaluate(run, None, tmp_path, options, Reporter(quiet=True))
    assert asked
    assert all(device is run.device for device in asked)


def test_the_curves_of_a_critic_too(asked: list[Any]) -> None:
    features = Features(torch.randn(40, 4), None, 0.0)
    labels = torch.arange(40) % 2
    found = critic.Candidates(torch.rand(40), labels, features)
    critic.critic_curves(found, (1.0, 0.5), 20, Colours(), features, device=CARD)
    assert asked
    assert all(device is CARD for device in asked)


def test_without_a_run_the_device_is_the_one_that_a_run_would_have(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was the CPU."""
    contexts: list[Context] = []
    monkeypatch.setattr(full_report, "write_report", lambda context, *rest: contexts.append(context))
    for device in (CPU, torch.device("meta")):
        monkeypatch.setattr(train_device, "best_device", lambda device=device: device)
        options = EvaluateOptions(samples=pictures, size=16)
        evaluate(None, str(pictures), tmp_path, options, Reporter(quiet=True))
        assert contexts[-1].device == device


def test_a_batch_on_a_card_depends_on_the_pixels() -> None:
    small, large, wide = DataConfig(size=64), DataConfig(size=1024), DataConfig(size=(128, 512))
    assert {batch_size(config, CPU) for config in (small, large, wide)} == {64}
    assert batch_size(small, CPU, 16) == 16
    assert [batch_size(config, CARD) for config in (DataConfig(size=32), small, wide, large)] == [
        1024,
        1024,
        128,
        64,
    ]
    assert [base.at_once(CARD, size) for size in (32, 224, 512)] == [4096, 83, 64]
    assert {base.at_once(CPU, size) for size in (32, 224, 512)} == {16}


@pytest.mark.parametrize("device", [CPU, CARD])
def test_sets_are_read_in_batches_for_the_device(
    device: torch.device, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images, a folder of others, codes of the run's own, and what a critic is shown."""
    monkeypatch.setattr(sets, "BATCH", 4)
    monkeypatch.setattr(sets, "_PIXELS", 7 * 16 * 16)
    monkeypatch.setattr(sets.batch_size, "__defaults__", (4,))
    monkeypatch.setattr(critic_images, "BATCH", 2)
    data = DataConfig(size=16, flip=False, workers=0, holdout=0.4)
    images = open_images(str(pictures), data, tmp_path / "data", say=lambda _: None)
    reporter = Reporter(quiet=True)
    options = EvaluateOptions(samples=pictures)
    own = Context(None, images, data, options, tmp_path / "cache", reporter, Colours())
    own.device = device
    expected = 4 if device == CPU else 7
    for found in (own.training, own.heldout, own.samples):
        sizes = [len(batch) for batch in found.batches()]
        assert {*sizes[:-1]} == {expected}
    store: Any = SimpleNamespace(codes=torch.as_tensor)
    encoder = Encoder(torch.nn.Linear(1, 1), "weights", store)  # type: ignore[arg-type]
    stored = sets.replace(own.training, rows=np.arange(len(own.training)))
    assert {len(codes) for codes in list(encoder.codes(stored))[:-1]} == {expected}
    reader = critic_images.ImageReader(tmp_path, images, data, reporter, Group(), device)
    assert {len(batch) for batch in list(reader(images.train))[:-1]} == {2 if device == CPU else 7}


@pytest.mark.gpu
def test_a_card_measures_what_a_cpu_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(700, 200, generator=generator).relu() + 30
    samples = 1.1 * torch.randn(600, 200, generator=generator).relu() + 30
    monkeypatch.setattr(metrics, "_PAIRS", 10_000)  # kernels in several blocks

    def measured(device: torch.device) -> tuple[Any, ...]:
        ours, theirs = (metrics.Moments.of(each, device=device) for each in (real, samples))
        found = manifolds.nearest(samples, real, 5, memory=10**6, device=device)
        kernel = metrics.kernel_distance(real, samples, subsets=3, size=500, device=device)
        return *found, ours.mean, ours.scatter, metrics.frechet_distance(ours, theirs), *kernel

    for card, cpu in zip(measured(CARD), measured(CPU), strict=True):
        torch.testing.assert_close(card, cpu, rtol=1e-9, atol=1e-9)
    both = [Features(each, None, 0.0) for each in (real, samples)]
    card, cpu = (precision_recall(both[0], {"samples": both[1]}, device=device) for device in (CARD, CPU))
    assert card.figures == cpu.figures


@pytest.mark.gpu
def test_a_card_finds_the_same_nearest_images(pictures: Path, tmp_path: Path) -> None:
    from vqvae2.evaluate.neighbours import nearest_images

    data = DataConfig(size=16, flip=True, workers=0)
    images = open_images(str(pictures), data, tmp_path / "data", say=lambda _: None)
    samples = context.real_images("samples", images, images.train, data).images().flip(3)
    for found, expected in zip(
        nearest_images(samples, images, data, CARD), nearest_images(samples, images, data), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
