"""Apple's GPUs, which have no float64, on fake tensors: nothing is computed, but every operation must be one that they can do."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vqvae2.autoencoder.model import VQVAE
from vqvae2.autoencoder.perceptual import PerceptualDistance
from vqvae2.config.models import AutoencoderConfig, LevelPriorConfig
from vqvae2.prior import attention
from vqvae2.prior.attention import _PART, attend, in_parts
from vqvae2.prior.level import LevelPrior
from vqvae2.train import device
from vqvae2.train.device import TrainingError, make_accelerator
from vqvae2.web.pictures import palette


class Made(TorchDispatchMode):
    """Notes the shapes of what is made on the GPU, and refuses float64 there."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0  # what was made there

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.device.type == "mps":
                assert value.dtype != torch.float64, f"{func} made a float64"
                self.seen += 1
        return result


@pytest.fixture
def made() -> Iterator[Made]:
    """A fake GPU."""
    with FakeTensorMode(allow_non_fake_inputs=True), Made() as mode:
        yield mode


def test_the_mode_refuses_float64(made: Made) -> None:
    with pytest.raises(AssertionError, match="made a float64"):
        torch.zeros(2, device="mps").double()
    assert torch.zeros(2, device="mps").cpu().double().dtype == torch.float64
    assert made.seen


@pytest.mark.usefixtures("made")
def test_the_colours_of_codes() -> None:
    """The web page did not start."""
    assert palette(torch.zeros(16, 4, device="mps")).shape == (16, 3)


def test_the_perceptual_distance_of_images_on_the_cpu() -> None:
    """Of a network elsewhere; "meta" stands for any other device."""
    network = PerceptualDistance().to("meta")
    images = torch.zeros(2, 3, 32, 32)
    assert network.between(images, network.aims(images[:1])).device.type == "meta"


def test_images_and_codes_are_taken_to_the_network() -> None:
    """`run.autoencoder.encode(run.sample(4))`, as the documentation writes it, failed on every GPU."""
    config = AutoencoderConfig(strides=(2, 2), codes=(8, 8), hidden=8, residual=4, code_dim=4)
    model = VQVAE(config).eval().to("meta")
    codes = model.encode(torch.zeros(2, 3, 16, 16))
    assert [level.device.type for level in codes.levels] == ["meta", "meta"]


@pytest.mark.parametrize(
    ("kind", "dropout", "gradient", "expected"),
    [
        ("mps", 0.0, True, True),
        ("mps", 0.1, False, True),
        ("mps", 0.0, False, False),
        ("cpu", 0.0, True, False),
        ("cpu", 0.1, True, True),
        ("cuda", 0.1, True, False),
    ],
)
def test_attention_is_taken_in_parts_where_the_fused_kernel_lacks_something(
    kind: str, dropout: float, gradient: bool, expected: bool
) -> None:
    """That of MPS has no backward pass, so torch kept the scores of all pairs of positions."""
    for n, many in ((4 * _PART, True), (_PART, False)):
        q = SimpleNamespace(shape=(1, 1, n, 4), device=SimpleNamespace(type=kind), requires_grad=gradient)
        assert in_parts(q, dropout) == (expected and many)  # type: ignore[arg-type]


class OnGpu(Tensor):
    """A tensor that says it is on the GPU; fake tensors have no backward pass there."""

    device = torch.device("mps")  # type: ignore[assignment]


@pytest.mark.parametrize("caller", ["attention", "level"])
def test_what_is_computed_again_draws_the_same_numbers(caller: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch keeps no random state of this device, so the backward pass dropped other numbers than the forward pass."""
    state, begun = 0, list[int]()

    def set_state(value: int) -> None:
        nonlocal state
        state = value

    def drawing(x: Tensor, *more: Any) -> Tensor:
        nonlocal state
        begun.append(state)
        state += 1
        return x.as_subclass(Tensor).square()

    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.mps, "set_rng_state", set_state)
    monkeypatch.setattr(attention, "_attend_last", drawing)
    monkeypatch.setattr(attention, "has_torch_function", lambda tensors: False)
    x = torch.zeros(1, 1, 4 * _PART, 4).as_subclass(OnGpu).requires_grad_()
    if caller == "attention":
        y, parts = attend(x, x, x, 0.1), [0, 1, 2, 3]
    else:
        prior: Any = SimpleNamespace(checkpointing=True, training=True, config=LevelPriorConfig(dropout=0.1))
        y, parts = LevelPrior._run(prior, drawing, x), [0]  # type: ignore[arg-type]
    assert begun == parts
    state = 50  # other layers have drawn meanwhile
    y.sum().backward()
    assert sorted(begun[len(parts) :]) == parts
    assert state == 50


def test_processes_on_the_cpu_of_an_apple_machine_join(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate was told that there is a GPU, and each process then took itself for the only one."""
    told: list[dict[str, Any]] = []

    def accelerator(**options: Any) -> Any:
        told.append(options)
        raise ValueError("enough")

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(device, "Accelerator", accelerator)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    with pytest.raises(TrainingError):
        make_accelerator()
    assert told[0]["cpu"]
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "mps")
    with pytest.raises(TrainingError, match="cannot share an Apple GPU: add --device cpu"):
        make_accelerator()
