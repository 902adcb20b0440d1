"""The command under `torchrun`: the processes of a verb join, and leave together."""

from __future__ import annotations

import itertools
import os
import sys
import traceback
from pathlib import Path

import typer

from vqvae2 import processes
from vqvae2.commands.verbs import chosen_device, environment
from vqvae2.errors import UserError, printable

VERBS = ("train", "sample", "reconstruct", "score", "encode", "evaluate", "critic")
"""What several processes share; the other verbs run in one."""


def join(arguments: list[str]) -> None:
    """Under `torchrun`: join the other processes. Of them only the main one writes to standard output.

    Args:
        arguments: of the command.

    Raises:
        UserError: the verb runs in one process, or `--device` names a device that it cannot have.
    """
    rank, count = processes.launched()
    if count == 1:
        return
    if rank:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    if {"--help", "-h", "--version"} & {*arguments}:
        return
    if arguments[0] not in VERBS:
        raise UserError(f"`vqvae2 {arguments[0]}` runs in one process: start it without torchrun")
    from vqvae2.train.device import make_accelerator

    if (set_by_hand := os.environ.get("ACCELERATE_TORCH_DEVICE", "cpu")) != "cpu":
        raise UserError(
            f"under torchrun each process takes a card of its own: unset ACCELERATE_TORCH_DEVICE ({set_by_hand})"
        )
    with environment(_device(arguments)):  # which is asked for only once in a process
        make_accelerator()


def _device(arguments: list[str]) -> dict[str, str]:
    """The changes of the environment for the `--device` among the arguments."""
    names = [text.partition("=")[2] for text in arguments if text.startswith("--device=")]
    names += [name for text, name in itertools.pairwise(arguments) if text == "--device"]
    return chosen_device(names[-1]) if names else {}


def leave(code: int) -> None:
    """Under `torchrun`: end this process at once, without the orderly end of a group whose other processes may not answer."""
    if processes.launched()[1] > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def leave_with_traceback() -> None:
    """Under `torchrun`: write the traceback of the present exception and end this process; the others may be waiting for it."""
    if processes.launched()[1] > 1:
        traceback.print_exc()
        leave(1)


def say_last(message: str) -> None:
    """The one line with which a command ends that fails; of several processes the first to fail writes it."""
    if processes.first_to_fail():
        try:
            typer.echo(f"vqvae2: {printable(' '.join(message.split()))}", err=True)
        except OSError:  # the terminal is gone
            sys.stderr = sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the end


def interrupted(error: Exception) -> int:
    """The signal that ended a training, or 0: `Interrupted` is of a module that is loaded only if something was trained."""
    loop = sys.modules.get("vqvae2.train.loop")
    return int(error.number) if loop is not None and isinstance(error, loop.Interrupted) else 0
