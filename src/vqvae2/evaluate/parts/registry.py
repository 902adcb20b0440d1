"""The list of the parts of a report, and the choice of those that are measured."""

from __future__ import annotations

from vqvae2.errors import UserError
from vqvae2.evaluate.context import Context
from vqvae2.evaluate.options import EvaluateOptions
from vqvae2.evaluate.parts import (
    classification,
    codes,
    compression,
    critic,
    distances,
    likelihood,
    memorisation,
    precision,
    reconstruction,
    speed,
    symmetry,
    tuning,
)
from vqvae2.evaluate.parts.base import Part

PARTS: tuple[Part, ...] = (
    likelihood.PART,
    reconstruction.PART,
    codes.PART,
    distances.PART,
    precision.PART,
    classification.PART,
    memorisation.PART,
    symmetry.PART,
    speed.PART,
    compression.PART,
    critic.PART,
    tuning.PART,
)
"""In the order of the report."""


def check_names(options: EvaluateOptions) -> None:
    """Raise `UserError` if a part is asked for that does not exist."""
    names = [part.name for part in PARTS]
    if unknown := sorted(set(options.only) - set(names)):
        raise UserError(f"no part {', '.join(unknown)}: expected some of {', '.join(names)}")


def wanted_parts(context: Context) -> tuple[list[Part], dict[str, str]]:
    """The parts that the options ask for, without any all that do not have to be asked for: those that can be measured, and
    the reasons why others cannot, by name.

    Raises:
        UserError: a part was asked for that cannot be measured.
    """
    asked, wanted, left_out = asked_parts(context.options), [], {}
    for part in PARTS:
        if part.name not in asked and (context.options.only or part.on_request):
            continue
        obstacle = part.obstacle(context)
        if obstacle is None:
            wanted.append(part)
        elif part.name in asked:
            raise UserError(f"cannot measure {part.name}: {obstacle}")
        else:
            left_out[part.name] = obstacle
    return wanted, left_out


def asked_parts(options: EvaluateOptions) -> set[str]:
    """Names of the parts that are asked for by name, or by an option of their own."""
    own = {"critic": options.critic_fractions, "compression": options.compress}
    return {*options.only, *(name for name, value in own.items() if value)}
