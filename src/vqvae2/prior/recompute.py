"""Activation checkpointing: what a function computes inside is not kept for the backward pass, but computed there again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Any], *inputs: Any, random: bool = True) -> Any:
    """What the function makes of its inputs, computed again in the backward pass with the same random numbers.

    Args:
        random: whether it draws any. If not, the random state of a card is not read, which older versions of torch cannot do while they
            record a step.
    """
    if not random:
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    on_mps = any(isinstance(each, Tensor) and each.device.type == "mps" for each in inputs)
    if on_mps and not torch.compiler.is_compiling():  # a compiled graph keeps its random numbers itself
        return checkpoint(function, *inputs, use_reentrant=False, context_fn=_same_numbers_on_mps)
    return checkpoint(function, *inputs, use_reentrant=False)


def _same_numbers_on_mps() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of the forward pass and of its repetition; torch keeps no random state of this device (up to 2.13 at least)."""
    state = torch.mps.get_rng_state()

    @contextmanager
    def again() -> Iterator[None]:
        present = torch.mps.get_rng_state()
        torch.mps.set_rng_state(state)
        try:
            yield
        finally:
            torch.mps.set_rng_state(present)

    return nullcontext(), again()
