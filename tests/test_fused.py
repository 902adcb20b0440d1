"""Where Triton's kernels are used: where one runs. On a device of its own for each test, because the answer is kept."""

from __future__ import annotations

import importlib.util
import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from vqvae2.fused import triton_works


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    triton_works.cache_clear()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A Triton whose kernel runs, or raises `installed.error`."""
    tried = SimpleNamespace(error=None, devices=[])

    def try_kernel(device: torch.device) -> None:
        tried.devices.append(device)
        if tried.error is not None:
            raise tried.error

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "vqvae2.fused_triton", SimpleNamespace(try_kernel=try_kernel))
    return tried


def test_a_kernel_is_tried_once_for_each_card(installed: SimpleNamespace) -> None:
    cards = [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert [triton_works(card) for card in (*cards, *cards)] == [True] * 4
    assert installed.devices == cards
    assert not triton_works(torch.device("cpu"))
    assert installed.devices == cards


def test_without_a_compiler_one_line_says_that_torch_is_used(
    installed: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """It was a traceback of every command, on machines with a card and Triton but no C compiler."""
    installed.error = RuntimeError("Failed to find C compiler. Please specify via CC\nmore")
    with caplog.at_level(logging.WARNING):
        assert [triton_works(torch.device("cuda", 0)) for _ in range(3)] == [False] * 3
    assert len(caplog.messages) == 1
    assert "Failed to find C compiler" in caplog.messages[0]
    assert "\n" not in caplog.messages[0]


def test_without_triton_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not triton_works(torch.device("cuda", 0))
    assert not caplog.messages
