"""What the processes of one command do together; several real ones are in tests/commands/test_together.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from vqvae2 import processes
from vqvae2.commands import together
from vqvae2.errors import UserError
from vqvae2.processes import Group, group_error

ENDED = "another process of this command ended; the same command goes on where it stopped"
DUPLICATE = """NCCL error in: ProcessGroupNCCL.cpp:3699, invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.29.3
ncclInvalidUsage: This usually reflects invalid usage of NCCL library.
Last error:
Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 3000"""
HINDERED = "the processes cannot work together: "
RTX = "Using RTX 4000 series which doesn't support faster communication speedups. Please set `NCCL_P2P_DISABLE=1`"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:24863"), ENDED),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), ENDED),
        (dist.DistBackendError("NCCL error: remote process exited or there was a network error"), ENDED),
        (
            dist.DistBackendError(DUPLICATE),
            f"{HINDERED}{DUPLICATE.splitlines()[0]}; {DUPLICATE.splitlines()[-1]}",
        ),
        (NotImplementedError(RTX), HINDERED + RTX),
        (RuntimeError("shapes differ"), ""),
        (ValueError("NCCL"), ""),
    ],
)
def test_what_hinders_the_processes_is_told_from_one_that_ended(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every error of NCCL said that another process had ended, so that what was wrong with a machine stood nowhere."""
    assert group_error(error) == ""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert group_error(error) == expected


@pytest.mark.parametrize(("backend", "cards"), [("nccl", [3]), ("gloo", None)])
def test_a_process_waits_on_its_own_card(
    backend: str, cards: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def barrier(device_ids: list[int] | None) -> None:
        asked.append(device_ids)

    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(dist, "barrier", barrier)
    Group(4, 8).wait()
    assert asked == [cards]


def test_processes_on_the_cpu_wait_whatever_accelerator_the_machine_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device id, which accelerate's own functions give, is that of the machine's accelerator, where such a group has nothing."""
    monkeypatch.setattr(torch._C, "_get_accelerator", lambda: torch.device("mps"))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        Group(0, 2).wait()
    finally:
        dist.destroy_process_group()


def test_all_that_wait_use_the_group() -> None:
    source = Path(processes.__file__).parent
    own = [file for file in source.rglob("*.py") if file.name != "processes.py"]
    words = ("wait_for_everyone", "main_process_first", "barrier(")
    found = [file.name for file in own for word in words if word in file.read_text(encoding="utf-8")]
    assert found == []


def test_an_exception_of_one_process_does_not_wait_for_the_others() -> None:
    """The end of the group waits for all, and the others were waiting in a collective: for up to twelve hours."""
    code = """
import os, time
from torch import distributed as dist
os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
from vqvae2.train import device
device.make_accelerator()
assert dist.is_initialized()
dist.destroy_process_group = lambda *a: time.sleep(600)
raise KeyError("one alone")
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith("KeyError: 'one alone'")


def test_a_device_chosen_for_all_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate gives every process that card, and says nothing."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cuda:0")
    with pytest.raises(UserError, match=r"a card of its own: unset ACCELERATE_TORCH_DEVICE \(cuda:0\)"):
        together.join(["train", "emoji64"])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistake_of_the_main_process_lets_the_others_go_on(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for it once, and it waits for them once, whether or not the block fails."""
    waited: list[int] = []
    monkeypatch.setattr(Group, "wait", lambda group: waited.append(group.rank))
    group = Group(rank, 2)
    with group.main_first():
        assert waited == [1] * rank
    with pytest.raises(OSError, match="gone"), group.main_first():
        raise OSError("gone")
    assert waited == [rank, rank]
