"""`vqvae2 inspect`: geometry, parameters, FLOPs, memory, the cost of training, and what a run has measured.

`commands/costs.py` counts; here the figures become tables.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vqvae2.commands.options import (
    ConfigFile,
    Json,
    Settings,
    assigned,
    print_json,
    read_changes,
    refuse_unused,
    resolve,
)
from vqvae2.errors import UserError, printable
from vqvae2.files.atomic import FileError

if TYPE_CHECKING:
    from vqvae2.commands.costs import Cost, Costs
    from vqvae2.config.models import Config
    from vqvae2.run import Run

_ROWS = 60  # of a table, at most
_WORTH_SHARDING = (
    1e9  # bytes of weights, gradients and AdamW; of less, what a card of many would hold is not shown
)


def describe(config: Config, run: Run | None = None) -> dict[str, dict[str, Any]]:
    """Tables of figures, JSON-ready: title -> row -> value.

    Args:
        config: what costs follow from.
        run: also what is done of it, and what it has measured; None leaves this out.
    """
    from vqvae2.commands.costs import measure
    from vqvae2.train.derived import check_derived, check_shapes

    if run is not None:  # settings of a stranger may ask for any size, whose costs take long to count
        check_shapes(run.folder, config)
    costs = measure(config)
    tables = {
        "geometry": _geometry(config),
        "parameters": _parameters(costs),
        "FLOPs per image (2 per multiply-add)": _flops(costs),
        "memory, activations per image": _memory(costs),
        "cost of training": _training(costs, config),
    }
    if run is not None:
        if run.classes:
            tables["classes"] = {str(number): name for number, name in enumerate(run.classes)}
        tables["done"] = {name: "yes" if done else "no" for name, done in run.done().items()}
        try:
            check_derived(run.folder, config)
        except FileError as error:
            tables["done"]["cannot be used"] = str(error)
        tables |= _measured(run)
    return tables


def _geometry(config: Config) -> dict[str, Any]:
    geometry = config.geometry
    pixels = config.data.area * config.data.channels
    rows: dict[str, Any] = {
        "image": f"{config.data.shape[0]}x{config.data.shape[1]}, {config.data.channels} channels"
    }
    for level, ((h, w), k) in enumerate(zip(geometry.grids, geometry.vocabulary, strict=True)):
        rows[f"level {level}"] = f"{h}x{w} grid, {k} codes"
    rows["codes per image"] = sum(geometry.positions)
    rows["bytes per image at fixed length"] = round(geometry.bits / 8, 1)
    rows["smaller than 8-bit pixels by"] = f"{pixels * 8 / geometry.bits:.1f} x"
    return rows


def _parameters(costs: Costs) -> dict[str, Any]:
    rows = {
        "autoencoder": costs.autoencoder.parameters,
        **(
            {"sharpening (decoder and discriminator)": costs.sharpening.parameters}
            if costs.sharpening
            else {}
        ),
        "codebooks (not counted above)": costs.codebooks,
    }
    return rows | {prior.name: prior.parameters for prior in costs.priors}


def _flops(costs: Costs) -> dict[str, Any]:
    rows = {
        "encode": costs.encode,
        "decode": costs.decode,
        "autoencoder training step": costs.autoencoder.training,
        **({"sharpening training step": costs.sharpening.training} if costs.sharpening else {}),
    }
    for prior in costs.priors:
        rows[f"{prior.name} training step"] = prior.training
        rows[f"{prior.name} whole grid (= sampling it incrementally)"] = prior.forward
    rows["one sample, decode included"] = costs.sample
    return {name: _with_unit(value, "FLOP") for name, value in rows.items()}


def _memory(costs: Costs) -> dict[str, Any]:
    rows = {}
    for net in costs.networks:
        rows[f"{net.name}, activations, fp32"] = _mebibytes(net.kept)
        rows[f"{net.name}, activations, bf16"] = _mebibytes(net.kept_bf16)
        average = ", average included" if net.settings.average else ""
        rows[f"{net.name}, weights, gradients, AdamW"] = _mebibytes(net.state) + average
        sharded = net.sharded if net.state > _WORTH_SHARDING else {}
        for count, (own, gathered) in sharded.items():
            row = f"{_mebibytes(own)} + {_mebibytes(gathered)} gathered"
            rows[f"{net.name}, shard on {count} cards, each"] = row
    rows["not counted"] = "temporary gradients, workspaces"
    return rows


def _training(costs: Costs, config: Config) -> dict[str, Any]:
    from vqvae2.commands.costs import PROCESSES

    captured = config.capture is not False and not config.deterministic and config.fused_adamw
    rows = _assumed()
    for net in costs.networks:
        each, total = _with_unit(net.training, "FLOP"), _with_unit(net.total, "FLOP")
        rows[net.name] = f"{net.settings.steps:,} x {net.settings.batch:,} x {each} = {total}"
        rows |= _times(net.name, [net], captured)
        rows[f"{net.name}, step, ms"] = _rounded(1000 * net.step_seconds(1, captured))
        rows[f"{net.name}, memory, GB"] = _rounded(net.memory(bf16=True) / 1e9)
        rows[f"{net.name}, on 80 GB"] = _micro_batches(net, 1)
        for cards in PROCESSES if net.seconds(1, captured) > 3600 else ():
            seconds = net.step_seconds(cards, captured)
            rows[f"{net.name}, a step on {cards} H100s"] = f"{seconds:.3g} s, {_micro_batches(net, cards)}"
    rows |= _times("everything", costs.networks, captured)
    rows["GPU-hours"] = _rounded(sum(net.seconds(1, captured) for net in costs.networks) / 3600)
    rows["not counted"] = "reading, decoding, encoding; evaluations"
    if config.sharpen.steps and config.sharpen.perceptual:
        rows["not counted"] += "; the perceptual network of the sharpening"
    return rows


def _assumed() -> dict[str, Any]:
    from vqvae2.commands.costs import CAPACITY, GPUS, LAUNCHED, PEAK, RECORDED, SHARE, USABLE, UTILISATION

    used = _with_unit(PEAK * UTILISATION, "FLOP/s")
    small = f"step below {(UTILISATION / SHARE) ** 2:.0f} TFLOP"
    return {
        "assumed of an H100": f"{PEAK / 1e12:.0f} TFLOP/s (bf16) x {UTILISATION:.0%} = {used}",
        small: f"{SHARE:.0%} x root of its TFLOP, not {UTILISATION:.0%}",
        "least time of a step": f"{1000 * RECORDED:.0f} ms; without a CUDA graph {1000 * LAUNCHED:.0f} ms",
        "measured with": "one H200 that holds the training data",
        "error of the times": "all measured ones within a factor of 1.8",
        f"assumed of {GPUS} H100s": "share a batch, no communication",
        "memory of 1 H100": f"{CAPACITY / 1e9:.0f} GB x {USABLE:.0%}, precision: bf16",
        "FLOP": "steps x batch x FLOP per image, as follows",
    }


def _micro_batches(net: Cost, cards: int) -> str:
    count = net.accumulate_on(cards)
    return f"accumulate: {count}" if count else "too small for one image"


def _times(name: str, nets: Sequence[Cost], captured: bool) -> dict[str, str]:
    from vqvae2.commands.costs import GPUS
    from vqvae2.files.progress import duration

    one, many = (duration(sum(net.seconds(cards, captured) for net in nets)) for cards in (1, GPUS))
    if any(net.settings.batch % GPUS for net in nets):
        many = "not possible with this batch"
    return {f"{name}, 1 H100": one, f"{name}, {GPUS} H100s": many}


def _rounded(value: float) -> float:
    """Three significant digits: 0.0123, 4.56, 789, 12300."""
    value = float(f"{value:.3g}")
    return int(value) if value >= 100 else value


def _with_unit(value: float, unit: str) -> str:
    """Four significant digits and a prefix: 1.234 GFLOP."""
    power = min(7, (len(str(int(value))) - 1) // 3)
    return f"{value / 1000**power:#.4g} {('', 'k', 'M', 'G', 'T', 'P', 'E', 'Z')[power]}{unit}"


def _mebibytes(value: int) -> str:
    mebibytes = value / 2**20
    return f"{mebibytes:,.1f} MiB" if mebibytes >= 100 else f"{mebibytes:.3f} MiB"


def _measured(run: Run) -> dict[str, dict[str, Any]]:
    from vqvae2.autoencoder.codebook_usage import stored_usage
    from vqvae2.data.store import open_store

    levels = range(run.config.autoencoder.levels)
    tables: dict[str, dict[str, Any]] = {}
    figures = run.figures()
    if figures:
        tables["stage 1, held out"] = {k: f"{v:.4g}" for k, v in figures.items() if k != "score"}
    figures = run.figures("sharpen")
    if figures:
        title = "sharpened decoder, held out (sample and reconstruct use it unless --decoder plain is given)"
        tables[title] = {k: f"{v:.4g}" for k, v in figures.items() if k != "score"}
    if run.paths.manifest.exists():
        usages = stored_usage(open_store(run.paths.codes))
        tables["codes used, training images"] = {
            f"level {i}": f"{usage.used:.1%}, perplexity {usage.perplexity:.1f}"
            for i, usage in enumerate(usages)
        }
    for level in levels:
        figures = run.figures(level)
        if figures:
            tables[f"prior level {level}"] = {k: f"{v:.4g}" for k, v in figures.items() if k != "score"}
    return tables


def command(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="a run folder, a model of the package, or a Hub id")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="inspect a preset instead of a run; the next three options change it as in `train`"
        ),
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="image size in pixels, one number or height x width")
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="show the curves of a training that is going on, until it is done or Ctrl-C"
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Geometry, parameters, FLOPs, classes, codebook usage, losses, what is done and what is not."""
    from vqvae2.config.presets import preset as named
    from vqvae2.run import load

    if (run is None) == (preset is None):
        raise UserError("expected either a RUN or --preset NAME")
    if preset is None:
        changes = {"--config": config, "--set": settings, "--size": size}
        refuse_unused(changes, "a RUN is shown with its own settings")
    if watch:
        from vqvae2.commands.watch import watch as show
        from vqvae2.files.locate import find_run

        if run is None:
            raise UserError("--watch shows a RUN")
        refuse_unused({"--json": as_json or None}, "--watch shows curves")
        show(find_run(run), Console(emoji=False))
        return
    loaded = load(run, "cpu") if run is not None else None
    if loaded is not None:
        value = describe(loaded.config, loaded)
    else:
        value = describe(resolve(named(str(preset)), read_changes(config), assigned(settings, size)))
    if as_json:
        print_json(value)
        return
    console = Console(soft_wrap=True, markup=False, emoji=False)
    for title, rows in value.items():
        table = Table(printable(title), "", title_justify="left")
        for key, item in list(rows.items())[:_ROWS]:
            table.add_row(printable(key), printable(_text(item)))
        if len(rows) > _ROWS:
            table.add_row("...", f"{len(rows) - _ROWS:,} more; --json prints all")
        console.print(table)


def _text(item: Any) -> str:
    """A value of a table; whole numbers have separators."""
    if type(item) is int:
        return f"{item:,}"
    return item if isinstance(item, str) else json.dumps(item)
