"""What a computation sets for itself and puts back afterwards: the mode of modules, autocast, inference mode, random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

AUTOCAST = frozenset(kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind))
"""The kinds of devices that have autocast. (Torch 2.6 cannot compile the question.)"""


@contextmanager
def eval_mode(*nets: nn.Module) -> Iterator[None]:
    """Put all modules of these networks into eval mode inside the block, and each back into its own mode after it."""
    modes = [(module, module.training) for net in nets for module in net.modules()]
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def without_autocast(device: torch.device, always: bool = True) -> AbstractContextManager[object]:
    """What runs in this context keeps its dtypes, whatever autocast says.

    Args:
        device: where is computed.
        always: False leaves autocast as it is where gradients are recorded, that is in training.
    """
    if device.type in AUTOCAST and (always or not torch.is_grad_enabled()):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


@contextmanager
def loading() -> Iterator[None]:
    """A network that is built in this block can be trained, also inside `torch.inference_mode`; no random number is used up.

    The numbers are those of the CPU, where networks are built. It also decorates a function.
    """
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """On the CPU, torch's random numbers are those of `seed` inside the block, and go on as before after it.

    The generators of other devices are left alone, which `torch.manual_seed` would seed too.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
