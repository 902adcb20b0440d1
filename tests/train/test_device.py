"""How a training uses the machine: what is chosen, what is refused, and that everything is put back."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from vqvae2.config.hardware import Hardware
from vqvae2.config.models import DataConfig, parse
from vqvae2.config.training import TrainConfig
from vqvae2.data.workers import Decoder
from vqvae2.train import device
from vqvae2.train.device import (
    Choices,
    TrainingError,
    choose,
    host_total,
    make_accelerator,
    make_optimizer,
    own_seed,
    step_seed,
    switches,
)


class Card:
    """Stands for accelerate with one card."""

    device = torch.device("cuda", 0)
    mixed_precision = "bf16"
    num_processes, process_index = 1, 0


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An accelerator with a card of 80 GB of which 60 are free."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some card")
    return Card()


def test_an_accelerator_of_the_callers_own_keeps_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})  # as in a process that has made none yet
    own = Accelerator(mixed_precision="bf16", cpu=True)
    ours = make_accelerator("no")
    assert (own.mixed_precision, own.state.mixed_precision, ours.mixed_precision) == ("bf16", "bf16", "no")
    assert make_accelerator("bf16").mixed_precision == "bf16"
    assert ours.mixed_precision == "no"


def test_a_cpu_keeps_torchs_defaults() -> None:
    chosen = choose(Hardware(), TrainConfig(), make_accelerator("auto"))
    assert chosen == Choices(torch.device("cpu"))
    optimizer = make_optimizer(nn.Linear(1, 1), TrainConfig(), chosen)
    assert optimizer.param_groups[0]["fused"] is None
    assert isinstance(optimizer.param_groups[0]["lr"], float)


def test_tests_compute_on_the_cpu_of_a_machine_with_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the variable named another device before: pictures of 16 px and comparisons of bits are no work for a card."""
    named = os.environ.get("ACCELERATE_TORCH_DEVICE")
    assert named
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert device.best_device() == torch.device(named)


def test_a_card_gets_what_is_fast(card: Any) -> None:
    chosen = choose(Hardware(), TrainConfig(), card)
    assert chosen.bf16
    assert chosen.static
    assert chosen.captured
    assert chosen.tf32
    assert chosen.resident_bytes == 2 * 10**9
    assert chosen.line(10**9) == (
        "Some card: bfloat16 autocast, TF32 for float32 products, cuDNN's search for kernels, fused AdamW, channels last, "
        "step captured as a CUDA graph, training data on the card (1.00 GB)"
    )


@pytest.mark.parametrize(
    ("setting", "usual", "words"),
    [
        ("fused_adamw", "fused AdamW", "AdamW in torch's default implementation"),
        ("channels_last", "channels last", "channels first"),
        ("cudnn_benchmark", "cuDNN's search for kernels", "no search for kernels"),
        ("pin_memory", "sent batch by batch", "sent batch by batch when they are needed"),
        ("tf32", "TF32 for float32 products", "no TF32"),
    ],
)
def test_each_default_of_a_card_can_be_switched_off(setting: str, usual: str, words: str, card: Any) -> None:
    """Alone, and the line at the start says so; without the fused kernel the step is not captured either."""
    before = choose(Hardware(), TrainConfig(), card).line(0)
    after = choose(Hardware(**{setting: False}), TrainConfig(), card).line(0)
    if setting == "fused_adamw":
        before = before.replace("step captured as a CUDA graph", "eager step (AdamW is not fused)")
    assert usual in before
    assert after == before.replace(usual, words)


def test_the_optimiser_of_a_card_can_be_torchs_default(card: Any) -> None:
    chosen = choose(Hardware(fused_adamw=False), TrainConfig(), card)
    assert not chosen.static
    (group,) = make_optimizer(nn.Linear(1, 1), TrainConfig(), chosen).param_groups
    assert group["fused"] is None
    assert isinstance(group["lr"], float)


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_cudnn_searches_where_it_may(wanted: bool, deterministic: bool) -> None:
    with switches(Choices(torch.device("cuda"), deterministic=deterministic, cudnn_benchmark=wanted)):
        assert torch.backends.cudnn.benchmark is (wanted and not deterministic)
        assert torch.backends.cudnn.deterministic is deterministic


@pytest.mark.parametrize(
    ("hardware", "training", "processes", "reason"),
    [
        ({"capture": False}, {}, 1, "asked for"),
        ({"deterministic": True}, {}, 1, "deterministic"),
        ({"fused_adamw": False}, {}, 1, "AdamW is not fused"),
        ({}, {"accumulate": 2}, 1, "accumulate is above 1"),
        ({}, {}, 2, "several processes"),
        ({}, {"steps": 10}, 1, "fewer than 50 steps"),
    ],
)
def test_where_the_step_stays_eager(
    hardware: dict[str, Any], training: dict[str, Any], processes: int, reason: str, card: Any
) -> None:
    card.num_processes = processes
    config = TrainConfig(**({"steps": 1000} | training))
    chosen = choose(Hardware(**hardware), config, card)
    assert not chosen.captured
    assert f"eager step ({reason})" in chosen.line(0)


def test_the_data_take_at_most_half_of_what_is_free(card: Any) -> None:
    assert choose(Hardware(resident_gb=100), TrainConfig(), card).resident_bytes == 30 * 10**9
    assert choose(Hardware(resident_gb=0), TrainConfig(), card).resident_bytes == 0


def test_old_settings_are_read() -> None:
    for written, precision in (("no", "no"), ("bf16", "bf16"), ("fp16", "fp16"), ("auto", "auto")):
        assert parse({"precision": written}).precision == precision
    for value in (True, False, "auto"):
        assert parse({"compile": value}).compile == value
    assert (parse({}).precision, parse({}).compile, parse({}).capture) == ("auto", "auto", "auto")


@pytest.mark.parametrize(("named", "expected"), [("cpu", "no"), ("cuda:0", "bf16"), (None, "bf16")])
def test_the_precision_follows_the_device_and_not_the_machine(
    named: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--device cpu` on a machine with a card, `auto` chose bf16, which a CPU emulates."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
    if named:
        monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", named)
    assert device.chosen_precision("auto") == expected
    assert device.chosen_precision("no") == "no"


def test_fp16_is_refused_in_one_line() -> None:
    with pytest.raises(
        TrainingError, match=r"^cannot train in precision 'fp16': use bf16, or no for float32$"
    ):
        make_accelerator("fp16")


def test_seeds_of_steps_and_processes_differ() -> None:
    """For any number of processes; the first 64 have the seeds that earlier versions gave them."""
    seeds = [own_seed(step_seed(7, step), rank) for step in range(40) for rank in range(300)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert own_seed(step_seed(7, 3), 5) == (7 * 1_000_003 + 3) * 64 + 5
    assert own_seed(step_seed(2**63 - 1, 2**40), 10**5) < 2**63


def test_decoders_do_not_multiply_with_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)), raising=False)
    for processes, expected in (("1", 16), ("4", 4), ("32", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert Decoder(DataConfig()).count == expected
    assert Decoder(DataConfig(workers=3)).count == 3, "what was asked for is not divided"


def test_totals_are_summed_in_float64_on_the_host() -> None:
    values = [torch.tensor([[1e8, 1.0], [1.0, 2.0]]), torch.tensor([[1.0], [3.0]])]
    assert host_total(values, 2, make_accelerator()) == [1e8 + 2, 6.0]
    assert host_total([], 2, make_accelerator()) == [0.0, 0.0]


def test_switches_are_put_back() -> None:
    """Also when an operation has no deterministic kernel, which is one line for the user."""

    def state() -> tuple[bool, str, bool]:
        cudnn = torch.backends.cudnn
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            cudnn.benchmark,
        )

    before = state()
    chosen = Choices(torch.device("cpu"), deterministic=True)
    with switches(chosen):
        assert torch.are_deterministic_algorithms_enabled()
    assert state() == before
    with (
        pytest.raises(
            TrainingError, match=r"^deterministic: true cannot be kept here: f does not have a .* kernel$"
        ),
        switches(chosen),
    ):
        raise RuntimeError("f does not have a deterministic kernel\nmore")
    assert state() == before


@pytest.mark.skipif(
    not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9 has one interface only"
)
@pytest.mark.parametrize("tf32", [False, True])
def test_a_card_is_told_whatever_torch_was_told_before(tf32: bool) -> None:
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    cudnn.conv.fp32_precision = "ieee"  # `allow_tf32` cannot be read any more
    try:
        with switches(Choices(torch.device("cuda"), tf32=tf32)):
            assert cudnn.allow_tf32 is tf32
        assert cudnn.conv.fp32_precision == "ieee"
    finally:
        cudnn.conv.fp32_precision = before


def test_a_group_that_was_made_is_destroyed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that the caller made is left to the caller."""
    registered: list[Any] = []
    made = iter([False, True, True, True])
    monkeypatch.setattr(device.atexit, "register", registered.append)
    monkeypatch.setattr(device.dist, "is_initialized", lambda: next(made))
    monkeypatch.setattr(device, "Accelerator", lambda **options: None)
    make_accelerator()
    assert registered == [device._destroy_group]
    make_accelerator()
    assert len(registered) == 1
