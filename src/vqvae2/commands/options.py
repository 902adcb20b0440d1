"""Options that several verbs share, and what the verbs make of them.

The modules of the verbs load torch only inside their functions, so that `vqvae2 --help` and mistakes in options are fast.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqvae2.errors import UserError, printable

if TYPE_CHECKING:
    from vqvae2.config.models import Config
    from vqvae2.config.sampling import Sampling
    from vqvae2.run import Run


class Decoder(StrEnum):
    """The decoders that a run may have."""

    plain = "plain"
    sharp = "sharp"


RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="a run folder, a model of the package (emoji64), or a Hub id owner/name"
    ),
]
ImagePaths = Annotated[
    list[Path], typer.Argument(metavar="IMAGES...", help="image files, or folders with image files")
]
ImageFolder = Annotated[Path, typer.Option("--out", help="folder for the images; made if it does not exist")]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON on standard output")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="change one setting, e.g. train_autoencoder.steps=2000 or train_prior.*.lr=5e-4; repeatable",
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML file with settings that replace the preset's")
]
Temperature = Annotated[
    list[float] | None,
    typer.Option(
        min=0,
        help="divides the logits: 1 is the model's own distribution, smaller values are safer and less diverse, 0 takes "
        "the most likely code. This and the next three options default to the run's own `sampling`; each may be given "
        "once for all levels, or once per level, coarsest first",
    ),
]
TopK = Annotated[list[int] | None, typer.Option(min=0, help="draw from the k most likely codes; 0 = all")]
TopP = Annotated[
    list[float] | None,
    typer.Option(help="draw from the fewest codes whose probabilities sum to at least p, in (0, 1]; 1 = all"),
]
Guidance = Annotated[
    list[float] | None,
    typer.Option(
        min=0, help="classifier-free guidance; 1 = off, 1.5 to 3 = closer to the class, less diverse"
    ),
]
DecoderOption = Annotated[
    Decoder | None,
    typer.Option(
        "--decoder",
        help="plain: trained with the codes, least squared error; sharp: trained further to make images that look real "
        "[default: sharp if the run has it, else plain]",
    ),
]
Seed = Annotated[
    int, typer.Option(min=0, help="seed of the random numbers; image i of a seed is always the same")
]


def changed_sampling(
    own: Sampling,
    temperature: Sequence[float] | None,
    top_k: Sequence[int] | None,
    top_p: Sequence[float] | None,
    guidance: Sequence[float] | None,
    batch: int | None = None,
    dtype: str | None = None,
) -> Sampling:
    """A run's own way of drawing, changed where an option was used.

    Args:
        own: of the run.
        temperature, top_k, top_p, guidance: one value for all levels or one per level; None keeps the run's own.
        batch: images drawn at a time; None keeps the run's own.
        dtype: of the priors' weights; None keeps the run's own.

    Raises:
        UserError: out of range.
    """
    asked = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
    changes: dict[str, Any] = {name: tuple(values) for name, values in asked.items() if values}
    changes |= {
        name: value for name, value in {"batch": batch, "dtype": dtype and str(dtype)}.items() if value
    }
    return own.replace(**changes)


def check_guidance(run: Run, guidance: Sequence[float] | None) -> None:
    """Refuse guidance that would have no effect, or that compares with what a prior never learned.

    Raises:
        UserError: the run has no classes, or `PriorConfig.check_guidance` refuses it.
    """
    if not run.classes:
        refuse_unused({"--guidance": guidance}, f"{run.folder} has no classes")
    if guidance:
        run.config.prior.check_guidance(run.sampling.replace(guidance=tuple(guidance)))


def refuse_unused(options: Mapping[str, object], reason: str) -> None:
    """Refuse options that would have no effect.

    Args:
        options: name -> value; one that was not given has None, or nothing in it.
        reason: why they have none, the beginning of the message.

    Raises:
        UserError: some were given.
    """
    if names := [name for name, value in options.items() if value is not None and value != []]:
        have = "has" if len(names) == 1 else "have"
        it = "it" if len(names) == 1 else "them"
        raise UserError(f"{reason}, so {' and '.join(names)} {have} no effect; leave {it} out")


def resolve(base: Config, file: dict[str, Any] | None, settings: Sequence[str] | None) -> Config:
    """A configuration with changes: first those of a file, then assignments KEY=VALUE in order.

    The autoencoder's number of channels always follows the data's.

    Raises:
        ConfigError: an unknown key, or a value that cannot work.
    """
    from vqvae2.config.models import parse
    from vqvae2.config.overrides import complete, merge, override, renamed

    changed = merge(base.model_dump(mode="json"), renamed(file or {}))
    value = override(complete(changed), settings or [])
    if isinstance(value["autoencoder"], dict) and isinstance(value["data"], dict):
        value["autoencoder"]["channels"] = value["data"].get("channels")
    return parse(value)


def read_changes(file: Path | None) -> dict[str, Any]:
    """The settings in the YAML file of `--config`, which may be the config.yaml of a run folder; {} without a file.

    Raises:
        ConfigError: it cannot be read.
    """
    from vqvae2.config.overrides import read_yaml

    changes = read_yaml(file) if file else {}
    changes.pop("run", None)  # the record of the run
    return changes


def assigned(settings: Sequence[str] | None, size: str | None) -> list[str]:
    """The assignments of `--set`, and after them that of `--size`."""
    return [*(settings or ()), *([f"data.size={size}"] if size else [])]


def summary(run: Run) -> dict[str, Any]:
    """What of a run is done, and its held-out figures, JSON-ready."""
    levels = range(run.config.autoencoder.levels)
    return {
        "run": str(run.folder),
        "done": run.done(),
        "autoencoder": run.figures(),
        "sharpen": run.figures("sharpen"),
        "prior": [run.figures(level) for level in levels],
    }


def command_line() -> str:
    """What the user typed."""
    return shlex.join(["vqvae2", *sys.argv[1:]])


def print_text(text: str) -> None:
    """Print a line of the result on standard output; control characters, as in names of files, are shown as escapes."""
    typer.echo(printable(text))


def print_json(value: Any) -> None:
    """Print a result on standard output."""
    typer.echo(json.dumps(value, indent=1))


def per_level(bits: Sequence[float]) -> str:
    """The bits of each level as a sum, e.g. "20.1 + 80.5"."""
    return " + ".join(f"{level:.1f}" for level in bits)
