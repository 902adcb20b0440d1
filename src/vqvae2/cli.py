"""The command `vqvae2`: it registers the verbs, each of which is a file of `commands/`, and turns errors into exit codes.

Exit codes: 0 only on success; 2 and one line for a mistake of the user; 130, 143 or 129 and one line after SIGINT
(Ctrl-C), SIGTERM or SIGHUP. Under `torchrun` the first process that fails writes the line; 1 is the code of those that end
because another one did.
"""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any, NoReturn

import typer

from vqvae2 import __version__, processes, stopping
from vqvae2.commands import (
    complete,
    compress,
    critic,
    decode,
    decompress,
    demo,
    encode,
    evaluate,
    explain,
    export,
    importing,
    inspect,
    models,
    presets,
    push,
    reconstruct,
    sample,
    score,
    serve,
    together,
    train,
)
from vqvae2.commands.verbs import verb
from vqvae2.errors import UserError, bad_path, shortage

_INTERRUPTED = 130
_UNSET = re.compile(r"--[a-z-]+=")  # an option with an empty value
_ClickError: Any = typer.BadParameter.__mro__[2]  # ClickException: newer typers carry a click of their own


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vqvae2 {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="vqvae2",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="print the version and exit")
    ] = False,
) -> None:
    """VQ-VAE-2: images in, new images out. Autoencoder, codes, priors and samples in one resumable run folder."""


app.command("demo")(verb(demo.command))
app.command("train")(verb(train.command))
app.command("sample")(verb(sample.command))
app.command("reconstruct")(verb(reconstruct.command))
app.command("complete")(verb(complete.command))
app.command("score")(verb(score.command))
app.command("encode")(verb(encode.command))
app.command("decode")(verb(decode.command))
app.command("compress")(verb(compress.command))
app.command("decompress")(verb(decompress.command))
app.command("evaluate")(verb(evaluate.command))
app.command("explain")(verb(explain.command, computes=False))
app.command("inspect")(verb(inspect.command, computes=False))
app.command("models")(verb(models.command, computes=False))
app.command("presets")(verb(presets.command, computes=False))
app.command("push")(verb(push.command, computes=False))
app.command("export")(verb(export.command, computes=False))
app.command("serve")(verb(serve.command))

_import = typer.Typer(
    help="Import an autoencoder trained elsewhere into a run folder.", rich_markup_mode=None
)
_import.command("rosinality")(verb(importing.rosinality_command, computes=False))
app.add_typer(_import, name="import")

_critic = typer.Typer(help="The classifier that `sample --critic` chooses by.", rich_markup_mode=None)
_critic.command("fit")(verb(critic.fit_command))
app.add_typer(_critic, name="critic")


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit; the module's docstring lists the exit codes.

    Args:
        arguments: None takes those of the process; none at all print the help.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if any(
        not text or _UNSET.fullmatch(text) for text in given
    ):  # a path of no characters is the current folder
        _fail("an argument is empty; an unset variable of the shell may be the reason", 2)
    given = given or ["--help"]
    try:
        together.join(given)
        code = app(args=given, standalone_mode=False, prog_name="vqvae2")
        if code == _INTERRUPTED:  # typer turns KeyboardInterrupt into this code and says nothing
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = stopping.exit_code()
        _fail("interrupted" if code == _INTERRUPTED else f"interrupted by {stopping.name(code - 128)}", code)
    except UserError as error:
        _fail(str(error), 2)
    except _ClickError as error:
        _fail(error.format_message(), 2)
    except Exception as error:
        if number := together.interrupted(error):
            _fail(f"interrupted: {error}; the same command continues from there", 128 + number)
        if reason := shortage(error) or bad_path(error):
            _fail(reason, 2)
        if reason := processes.group_error(error):
            _fail(reason, 1)
        processes.first_to_fail()  # the others need not say that this one ended
        together.leave_with_traceback()
        raise


def _fail(message: str, code: int) -> NoReturn:
    stopping.end()
    together.say_last(message)
    together.leave(code)
    sys.exit(code)
