"""What every verb of the command has beside its own options: `--quiet`, and `--device` where it computes.

Both are handed on through the environment, because they concern everything that the verb calls: `VQVAE2_QUIET` is read by
`Reporter`, `ACCELERATE_TORCH_DEVICE` by accelerate and by `Run`, and `CUDA_VISIBLE_DEVICES` by CUDA. The environment is as
before when the verb returns.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, get_type_hints

import typer

from vqvae2.errors import UserError

Quiet = Annotated[bool, typer.Option("--quiet", help="print results and mistakes only, no progress")]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1, mps or xpu [default: the accelerator if there is one]"),
]


def verb(function: Callable[..., None], computes: bool = True) -> Callable[..., None]:
    """The function of a verb with `--quiet`, and with `--device` if it computes.

    The options are added to its signature, from which typer reads them.
    """
    more: dict[str, Any] = {"quiet": Quiet, **({"device": Device} if computes else {})}
    defaults = {"quiet": False, "device": None}

    @functools.wraps(function)
    def wrapped(*, quiet: bool, device: str | None = None, **options: Any) -> None:
        changes = {"VQVAE2_QUIET": "1"} if quiet else {}
        with environment(changes | (chosen_device(device) if device else {})):
            function(**options)

    hints = get_type_hints(function, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(function).parameters.items()
    ]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=kind)
        for name, kind in more.items()
    ]
    wrapped.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {**hints, **more}
    return wrapped


def chosen_device(name: str) -> dict[str, str]:
    """The changes of the environment that make everything run on a device.

    A card of CUDA is made the only one that is visible, so it becomes number 0 for the libraries.

    Raises:
        UserError: no such device on this machine.
    """
    match = re.fullmatch(r"(cpu|mps|cuda|xpu)(?::(\d{1,4}))?", name)
    if match is None or (match[2] and match[1] in ("cpu", "mps")):
        raise UserError(f"expected a device such as cpu, cuda, cuda:1, mps or xpu, found {name!r}")
    kind, number = match[1], match[2]
    if number and "LOCAL_RANK" in os.environ:
        raise UserError(f"under torchrun each process takes a card of its own: leave --device {name} out")
    if kind == "cpu":
        return {"ACCELERATE_TORCH_DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    position = int(number or 0)
    changes = {} if "LOCAL_RANK" in os.environ else {"ACCELERATE_TORCH_DEVICE": name}
    if changes and kind == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        cards = [str(position)] if visible is None else visible.split(",")[position : position + 1]
        changes = {"ACCELERATE_TORCH_DEVICE": "cuda:0", "CUDA_VISIBLE_DEVICES": "".join(cards)}
        position = 0
    with environment(changes):  # before the first question, because CUDA reads the variable only once
        from vqvae2.train.device import devices_of

        count = devices_of(kind)
    if position >= count:
        raise UserError(f"no device {name} on this machine")
    return changes


@contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Environment variables changed inside the block."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
