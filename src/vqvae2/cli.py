"""The command `vqvae2`: one verb per job, on public functions only.

Exit codes: 0 only on success; 2 and one line for a mistake of the user; 130 after an interruption that was saved.
"""

from __future__ import annotations

import errno
import json
import shlex
import sys
import time
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vqvae2.errors import UserError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

app = typer.Typer(
    name="vqvae2",
    help="VQ-VAE-2: pictures in, new pictures out. Autoencoder, codes, priors and samples in one resumable run folder.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

importing = typer.Typer(
    help="Take an autoencoder trained elsewhere into a run folder.", rich_markup_mode=None
)
app.add_typer(importing, name="import")
critics = typer.Typer(help="The classifier that `sample --critic` chooses by.", rich_markup_mode=None)
app.add_typer(critics, name="critic")

_ClickError: Any = typer.BadParameter.__mro__[2]  # ClickException: newer typers carry a click of their own

RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="a run folder, a model of the package (emoji64), or a Hub id owner/name"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON on standard output")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="change one setting, e.g. train_autoencoder.steps=2000 or train_prior.*.lr=5e-4; repeatable",
    ),
]
Temperature = Annotated[
    list[float] | None,
    typer.Option(
        min=0,
        help="divides the logits: 1 is the model's own distribution, less is safer, 0 the most likely "
        "[default: the run's own `sampling`, like the next three; each may be given once per level, coarsest first]",
    ),
]
TopK = Annotated[list[int] | None, typer.Option(min=0, help="draw from the k most likely codes; 0 = all")]
TopP = Annotated[
    list[float] | None, typer.Option(help="draw from the fewest codes that reach this probability, in (0, 1]")
]
Guidance = Annotated[
    list[float] | None,
    typer.Option(min=0, help="classifier-free guidance; 1 = off, 1.5 to 3 = closer to the class"),
]
Seed = Annotated[int, typer.Option(min=0, help="picture i of a seed is always the same")]


class Pictures(StrEnum):
    """How `sample` leaves its pictures."""

    PNG = "png"
    NPZ = "npz"


class Stage(StrEnum):
    """The two stages of training."""

    autoencoder = "autoencoder"
    prior = "prior"


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="run folder of the demo")] = Path("runs/demo"),
    settings: Settings = None,
) -> None:
    """Run the whole pipeline on the embedded emoji: at most 10 minutes of training on two cores, then a report."""
    from vqvae2.config.presets import preset
    from vqvae2.demo import demo as run_demo
    from vqvae2.files.progress import Reporter

    config = _resolve(preset("demo").model_dump(mode="json"), None, settings)
    result = run_demo(out, config, _command(), Reporter())
    table = Table("figure", "value")
    for name, value in result.figures["table"]:
        table.add_row(name, value)
    console = Console(soft_wrap=True)
    console.print(table)
    for name, path in result.paths.items():
        console.print(f"{name}: {path}", markup=False, highlight=False)


def _help_config(wanted: bool) -> None:
    if wanted:
        from vqvae2.config.overrides import settings

        for key, default, description in settings():
            typer.echo(f"{key} (default {default})\n    {description}")
        raise typer.Exit


@app.command()
def train(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="a folder (sub-folders are classes), .parquet or .tar files, a Hub id owner/name, or emoji64",
        ),
    ],
    run: Annotated[
        Path, typer.Option("--run", help="run folder; the same command again goes on where it stopped")
    ],
    preset: Annotated[
        str | None,
        typer.Option(help="named settings; chosen by number and size of the pictures when left out"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file whose settings are put over the preset's")
    ] = None,
    settings: Settings = None,
    split: Annotated[str | None, typer.Option(help="split of a Hub data set")] = None,
    streaming: Annotated[bool, typer.Option(help="read a Hub data set as a stream")] = False,
    until: Annotated[
        Stage, typer.Option(help="stop after this stage; the same command without it goes on")
    ] = Stage.prior,
    help_config: Annotated[
        bool,
        typer.Option(
            "--help-config", is_eager=True, callback=_help_config, help="list every setting and exit"
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train everything: autoencoder, codes, one prior per level. Resumable."""
    from vqvae2.config.models import DataConfig
    from vqvae2.config.overrides import read_yaml
    from vqvae2.config.presets import choose
    from vqvae2.config.presets import preset as named
    from vqvae2.data.peek import peek
    from vqvae2.files.progress import Reporter
    from vqvae2.run import load
    from vqvae2.train.folder import read_run
    from vqvae2.train.pipeline import train as run_training

    reporter = Reporter()
    file = read_yaml(config) if config else {}
    file.pop("run", None)  # the record in a run folder's config.yaml
    if preset is None and (run / "config.yaml").is_file():
        base = read_run(run)[1].model_dump(mode="json")
    else:
        if preset is None:
            count, side = peek(data, DataConfig(split=split, streaming=streaming), run)
            preset = choose(count, side)
            reporter.say(
                f"{count} pictures, short side about {side} px: preset {preset} (choose another with --preset)"
            )
        base = named(preset).model_dump(mode="json")
    extra = [f"data.split={split}"] if split else []
    extra += ["data.streaming=true"] if streaming else []
    run_training(
        data,
        run,
        _resolve(base, file, [*(settings or []), *extra]),
        command=_command(),
        reporter=reporter,
        until=until.value,
    )
    if as_json:
        _print_json(_summary(load(run, "cpu")))


@app.command()
def sample(
    run: RunName,
    out: Annotated[Path, typer.Option(help="folder for the pictures")],
    n: Annotated[int, typer.Option(min=1, help="number of pictures")] = 64,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="class by name or number; repeatable, taken in turn; all classes in turn when left out"
        ),
    ] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    batch: Annotated[int, typer.Option(min=1, help="pictures drawn side by side")] = 64,
    pictures: Annotated[
        Pictures, typer.Option(help="a PNG for each, or all of a batch as an array in its codes-*.npz")
    ] = Pictures.PNG,
    critic: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            help="draw n / FRACTION candidates and keep those of each class that the run's critic "
            "(`vqvae2 critic fit`) finds likeliest to be of it; in (0, 1], 1 keeps all",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw new pictures: one PNG each with its codes, a grid of the first 256, and samples.json, a list of what they are.

    The same command again draws only what is missing, so a long one may be stopped and gone on with, or asked for
    more (not with a critic: the best of more are others). `torchrun --nproc-per-node P -m -- vqvae2 sample ...` shares
    the work out to P processes.
    """
    from vqvae2.files.progress import Reporter
    from vqvae2.gallery import SampleFolder, chosen_from
    from vqvae2.generate.reject import candidate_plan, scored
    from vqvae2.generate.sample import Drawn, batches, class_number, label_plan
    from vqvae2.run import load
    from vqvae2.train.loop import make_accelerator

    state = make_accelerator()
    loaded = load(run, state.device)
    sampling = _sampling(loaded, batch, temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance)
    plan = label_plan(label, n, loaded.classes)
    turns = [class_number(name, loaded.classes) for name in label] if label else "all in turn"
    about = {"seed": seed, **sampling.about(), "labels": turns, "model": loaded.digests()}
    candidates: list[int] = []
    if critic is not None:
        judge = loaded.critic
        candidates = candidate_plan(plan or [], critic)
        what = {"fraction": critic, "digest": judge.digest, "network": judge.backbone_digest}
        about |= {"n": n, "drawn": len(candidates), "critic": what}
    loaded.prior  # noqa: B018 - loads, so that a missing model is said before the folder is made
    folder, pool = SampleFolder(out, about, pictures.value), SampleFolder(out / "candidates", about, "none")

    def draw(parts: list[range]) -> Iterable[Drawn]:
        if critic is not None:
            return chosen_from(pool, loaded, plan or [], critic, parts)
        return loaded.draw(n, label, seed, sampling, parts)

    def rate(parts: list[range]) -> Iterable[Drawn]:
        drawn = loaded.draw(len(candidates), candidates, seed, sampling, parts)
        return (scored(part, judge) for part in drawn)

    with state.main_process_first():
        folder.claim()
        missing = folder.missing(n)
        jobs = [("samples", folder, missing, draw)]
        if candidates and missing:
            pool.claim()
            jobs.insert(0, ("candidates", pool, pool.missing(len(candidates)), rate))
    state.wait_for_everyone()
    begun, reporter = time.perf_counter(), Reporter(quiet=not state.is_main_process)
    for title, into, numbers, make in jobs:
        parts = batches(numbers, batch)[state.process_index :: state.num_processes]
        if parts:
            with reporter.track(title, sum(map(len, parts)), unit="images") as tracker:
                into.fill(make(parts), tracker)
        state.wait_for_everyone()
    if not state.is_main_process:
        return
    result = folder.finish(n, plan, loaded.classes)
    seconds = time.perf_counter() - begun
    if as_json:
        _print_json({"seconds": seconds, **result})
        return
    new = sum(map(len, missing))
    each = f"{new} in {seconds:.1f} s ({seconds / new:.3f} s each)" if new else "all were there"
    best = f", the best of {len(candidates)} drawn" if candidates else ""
    typer.echo(f"{n} samples{best}, {each}: {result['grid']}")


@app.command()
def reconstruct(
    run: RunName,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES...", help="picture files, or folders of them")
    ],
    out: Annotated[Path, typer.Option(help="folder for the pictures")],
    as_json: Json = False,
) -> None:
    """Send pictures through the codes and back: NAME.png, and NAME-levels.png (original, coarsest level alone, ... all)."""
    from vqvae2.gallery import write_reconstructions
    from vqvae2.run import load

    loaded = load(run)
    results = write_reconstructions(loaded, images, out)
    if as_json:
        _print_json(results)
        return
    for item in results:
        where = f"{item['source']}: {item['file']}"
        typer.echo(f"{where}  PSNR {item['psnr'][-1]:.2f} dB at {loaded.config.data.size} px")


@app.command()
def complete(
    run: RunName,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="a picture file")],
    out: Annotated[Path, typer.Option(help="folder for the pictures")],
    mask: Annotated[
        Path | None,
        typer.Option(
            help="a grey picture of any size, white (128 and more) = fill in, black = keep; a code is redrawn "
            "if a pixel of its cell is white, and what is under white is never looked at"
        ),
    ] = None,
    keep_levels: Annotated[
        int | None,
        typer.Option(help="instead of a mask: keep the N coarsest levels and redraw the finer ones"),
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="number of completions")] = 8,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="class by name or number; repeatable, taken in turn; no class when left out, and then no guidance"
        ),
    ] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    passes: Annotated[
        int,
        typer.Option(
            min=1,
            help="1 draws in raster order, blind to what is kept to the right and below; each further pass redraws runs "
            "of codes and accepts or rejects them by the probability of the whole picture",
        ),
    ] = 1,
    paste: Annotated[
        bool,
        typer.Option(
            help="outside the mask, put the picture's own pixels over the decoder's; has no effect without a mask"
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """Fill in a part of a picture, or draw variations of it: one PNG each, sheet.png, and completions.json.

    The sheet shows the picture, what is kept of it, and the completions.
    """
    from vqvae2.files.progress import Reporter
    from vqvae2.gallery import completion_files, keep, make_folder, refuse_to_overwrite, write_completions
    from vqvae2.run import load

    if (mask is None) == (keep_levels is None):
        raise UserError("expected either --mask MASK or --keep-levels N")
    refuse_to_overwrite([image, mask], completion_files(out, n))
    loaded = load(run)
    sampling = _sampling(loaded, temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance)
    kept = keep(loaded, image, mask, keep_levels)
    drawn = loaded.complete(kept, n, label, seed, passes, sampling)
    make_folder(out)
    about = {
        "image": str(image),
        "mask": str(mask) if mask else None,
        "keep_levels": keep_levels,
        "n": n,
        "seed": seed,
        "passes": passes,
        "paste": paste,
        **sampling.model_dump(mode="json"),
    }
    begun = time.perf_counter()
    with Reporter().track("completions", n, unit="images") as tracker:
        result = write_completions(loaded, kept, drawn, out, about, tracker)
    seconds = time.perf_counter() - begun
    if as_json:
        _print_json({"seconds": seconds, **result})
        return
    shares = ", ".join(f"{share:.0%}" for share in result["redrawn"])
    typer.echo(f"{n} completions in {seconds:.1f} s, redrawn {shares} of the levels: {result['sheet']}")
    for number, (bits, own) in enumerate(zip(result["bits"], result["kept_bits"], strict=True), 1):
        moves = f", {result['accepted'][number - 2]:.0%} of the moves accepted" if number > 1 else ""
        typer.echo(f"pass {number}: {_plus(bits)} bits, {_plus(own)} of them of what is kept{moves}")


@app.command()
def score(
    run: RunName,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES...", help="picture files, or folders of them")
    ],
    label: Annotated[
        str | None, typer.Option(help="class of all of them, by name or number; no class when left out")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="a file for the result as JSON")] = None,
    as_json: Json = False,
) -> None:
    """How likely the codes of pictures are, in bits per level, and how typical of the run's held-out pictures.

    The least typical come first. Typicality is the share of held-out pictures that are as far from the usual number of
    bits, above or below; pictures of which it is at most 5 % are marked "unlike".
    """
    from vqvae2.files.progress import Reporter
    from vqvae2.gallery import score_pictures
    from vqvae2.run import load

    result = score_pictures(load(run), images, label, out)
    if result["heldout"] is None:
        Reporter().say(f"{run} holds no codes of two held-out pictures: bits only, in the order given")
    if as_json:
        _print_json(result)
        return
    for item in result["pictures"]:
        text = f"{item['source']}: {_plus(item['bits'])} bits, {sum(item['bits_per_dimension']):.4f} per dimension"
        if "score" in item:
            text += f", score {item['score']:.2f}, typicality {item['typicality']:.1%}"
            text += "  unlike" if item["unlike"] else ""
        typer.echo(text)


@app.command()
def evaluate(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="a run folder, a model of the package, or a Hub id; none with --samples"
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="the real pictures, as for train [default: those that the run was trained on]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for report.json and report.html [default: RUN/report]")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="PART,...",
            help="only these parts: nll, reconstruction, codes, distances, precision, classification, memorisation, "
            "symmetry, speed, critic",
        ),
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="measure this folder of pictures instead of samples of the run")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="put another folder of pictures into the tables; repeatable"),
    ] = None,
    n: Annotated[
        int, typer.Option(min=2, help="pictures of each set that are compared, if all have so many")
    ] = 10_000,
    reference: Annotated[
        int, typer.Option(min=2, help="training pictures with which they are compared, at most")
    ] = 10_000,
    network: Annotated[
        str,
        typer.Option(help="whose features are compared: lite0, vgg16, or inception (only then it is FID)"),
    ] = "lite0",
    weights: Annotated[Path | None, typer.Option(help="weights of that network, if it needs any")] = None,
    perceptual: Annotated[
        Path | None, typer.Option(help="weights of the perceptual distance; left out without")
    ] = None,
    critic_sweep: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE,...", help="how figures change as the critic keeps less, e.g. 1,0.5,0.25,0.1,0.05"
        ),
    ] = None,
    classifier_steps: Annotated[
        int, typer.Option(min=10, help="steps of each training of the classification accuracy score")
    ] = 2000,
    classifier_n: Annotated[
        int | None,
        typer.Option(min=2, help="pictures that it learns from [default: as many as training pictures]"),
    ] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    guidance: Guidance = None,
    seed: Annotated[int, typer.Option(min=0, help="of the samples and of which pictures are chosen")] = 0,
    size: Annotated[
        int | None, typer.Option(min=8, help="px, without a RUN [default: that of the samples]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a run, or any folder of pictures, beside real pictures: report.json, and report.html to look at.

    The same command again takes features and samples from OUT/cache.
    """
    from vqvae2.commands import evaluate as verb
    from vqvae2.evaluate.options import EvaluateOptions
    from vqvae2.evaluate.resnet import ClassifierConfig
    from vqvae2.files.progress import Reporter
    from vqvae2.run import load

    loaded = load(run) if run is not None else None
    data = data or (loaded.record.get("source") if loaded else None)
    if data is None:
        raise UserError("expected --data DATA, the real pictures")
    if out is None:
        if loaded is None:
            raise UserError("expected --out DIR for the report")
        out = loaded.folder / "report"
    folders: dict[str, Path] = {}
    for name, folder in map(_pair, against or ()):
        if name in folders:
            raise UserError(f"{name} is given twice")
        folders[name] = Path(folder)
    asked: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "guidance": guidance,
    }
    options = EvaluateOptions(
        only=tuple(_listed(only)),
        n=n,
        reference=reference,
        network=network,
        weights=weights,
        perceptual=perceptual,
        samples=samples,
        against=folders,
        critic_fractions=tuple(_share(text) for text in _listed(critic_sweep)),
        classifier=ClassifierConfig(steps=classifier_steps),
        classifier_n=classifier_n,
        sampling=_sampling(loaded, **asked) if loaded else None,
        seed=seed,
        size=size,
    )
    result = verb.evaluate(loaded, data, out, options, Reporter())
    if as_json:
        _print_json(result)
    else:
        for line in result["warnings"]:
            typer.echo(f"warning: {line}")
        typer.echo(f"{', '.join(result['parts'])}: {out / 'report.html'}")


@app.command()
def inspect(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="a run folder, a model of the package, or a Hub id")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="look at a preset instead of a run")] = None,
    as_json: Json = False,
) -> None:
    """Geometry, parameters, FLOPs, code usage, losses, what is done and what is not."""
    from vqvae2.config.presets import preset as named
    from vqvae2.inspection import describe
    from vqvae2.run import load

    if (run is None) == (preset is None):
        raise UserError("expected either a RUN or --preset NAME")
    loaded = load(run, "cpu") if run is not None else None
    value = describe(loaded.config if loaded else named(str(preset)), loaded)
    if as_json:
        _print_json(value)
        return
    console = Console(soft_wrap=True)
    for title, rows in value.items():
        table = Table(title, "", title_justify="left")
        for key, item in rows.items():
            table.add_row(key, item if isinstance(item, str) else json.dumps(item))
        console.print(table)


@app.command()
def presets() -> None:
    """List the presets with their sizes."""
    from vqvae2.config.presets import preset as named
    from vqvae2.config.presets import presets as names

    for name in names():
        config = named(name)
        grids = " + ".join(f"{h}x{w}" for h, w in config.geometry.grids)
        steps = ", ".join(str(item.steps) for item in (config.train_autoencoder, *config.train_prior))
        typer.echo(
            f"{name:12s} {config.data.size} px, grids {grids}, {config.autoencoder.codes[0]} codes, steps {steps}"
        )


@importing.command()
def rosinality(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="a vqvae_NNN.pt of rosinality/vq-vae-2-pytorch")
    ],
    run: Annotated[Path, typer.Option("--run", help="run folder to make; nothing trained is overwritten")],
    size: Annotated[
        int, typer.Option(min=8, help="height and width of the pictures in px, a multiple of 8")
    ] = 256,
    as_json: Json = False,
) -> None:
    """Import a stage-1 checkpoint of rosinality/vq-vae-2-pytorch; `vqvae2 train DATA --run RUN` adds the priors."""
    from vqvae2.run import load
    from vqvae2.train.rosinality import import_rosinality

    config = import_rosinality(checkpoint, run, size, _command())
    if as_json:
        _print_json(_summary(load(run, "cpu")))
        return
    grids = " + ".join(f"{h}x{w}" for h, w in config.geometry.grids)
    typer.echo(
        f"{run}: autoencoder imported, {size} px, grids {grids}; `vqvae2 train DATA --run {run}` adds the priors"
    )


@critics.command()
def fit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder; the critic goes to RUN/critic")],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="the pictures that the run was trained on, if they lie elsewhere now"
        ),
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="network on whose features a linear probe is fitted: lite0, vgg16, inception; or resnet: a small "
            "classifier trained from nothing, so that any of those may measure what it chose",
        ),
    ] = "lite0",
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="weights of that network; lite0 brings its own")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="instead of a probe, a classifier of the run's classes: a TorchScript file that says its size, or a "
            "ResNet that save_classifier wrote",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit the critic on the run's training pictures, and say how often it is right on the held-out ones.

    Measure what it chose in the features of another network: one that chooses and measures flatters itself.
    """
    from vqvae2.files.progress import Reporter
    from vqvae2.run import Run

    made = Run(run).fit_critic(data, features, weights, model, Reporter())
    if as_json:
        _print_json(made.record)
        return
    typer.echo(
        f"{run}: critic {made.record['kind']} on {made.record['network']['name']}: {made.accuracy:.1%} of "
        f"{made.record['heldout']} held-out pictures right, {1 / len(made.classes):.1%} by chance"
    )


def main(arguments: list[str] | None = None) -> None:
    """The entry point; see the module's docstring for the exit codes."""
    try:
        code = app(
            args=(sys.argv[1:] if arguments is None else arguments) or ["--help"], standalone_mode=False
        )
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    except UserError as error:
        _fail(str(error), 2)
    except _ClickError as error:
        _fail(error.format_message(), 2)
    except Exception as error:
        if _interrupted(error):
            _fail(f"interrupted: {error}; the same command goes on from there", 130)
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            _fail(f"cannot write {error.filename or 'a file'}: {error.strerror}", 2)
        raise


def _interrupted(error: Exception) -> bool:
    """Whether it is the training's `Interrupted`; its module is only loaded by what needs it, `--help` does not."""
    loop = sys.modules.get("vqvae2.train.loop")
    return loop is not None and isinstance(error, loop.Interrupted)


def _fail(message: str, code: int) -> None:
    typer.echo(f"vqvae2: {' '.join(message.split())}", err=True)
    sys.exit(code)


def _resolve(base: dict[str, Any], file: dict[str, Any] | None, settings: list[str] | None) -> Any:
    """Preset, then file, then assignments; the autoencoder's channels follow the data's."""
    from vqvae2.config.models import parse
    from vqvae2.config.overrides import complete, merge, override

    value = override(complete(merge(base, file or {})), settings or [])
    if isinstance(value["autoencoder"], dict) and isinstance(value["data"], dict):
        value["autoencoder"]["channels"] = value["data"].get("channels")
    return parse(value)


def _sampling(run: Any, batch: int | None = None, **asked: list[Any] | None) -> Any:
    """How the run draws, but for what is asked: one value for all levels, or one per level."""
    changes: dict[str, Any] = {k: v[0] if len(v) == 1 else tuple(v) for k, v in asked.items() if v}
    return run.sampling.replace(**changes, **({"batch": batch} if batch else {}))


def _listed(text: str | None) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()] if text else []


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise UserError(f"expected shares with 0 < share <= 1, found {text!r}")
    return value


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UserError(f"expected NAME=DIR, found {text!r}")
    return name, value


def _plus(bits: list[float]) -> str:
    """Each level's bits."""
    return " + ".join(f"{level:.1f}" for level in bits)


def _summary(run: Any) -> dict[str, Any]:
    levels = range(run.config.autoencoder.levels)
    return {
        "run": str(run.folder),
        "done": run.done(),
        "autoencoder": run.figures(),
        "prior": [run.figures(level) for level in levels],
    }


def _command() -> str:
    return shlex.join(["vqvae2", *sys.argv[1:]])


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1))


if __name__ == "__main__":
    main()
