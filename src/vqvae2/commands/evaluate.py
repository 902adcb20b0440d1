"""`vqvae2 evaluate`: a run, or any folder of images, is measured and compared with real images.

DATA --split--> training and held-out images --autoencoder--> reconstructions
     --split that is asked for--> held-out images instead
RUN --priors, decoder--> samples          further folders
all of them --evaluate/parts/--> figures, pictures and curves --> the report
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqvae2.commands.options import (
    DecoderOption,
    Guidance,
    Json,
    Temperature,
    TopK,
    TopP,
    changed_sampling,
    check_guidance,
    print_json,
    print_text,
    refuse_unused,
)
from vqvae2.errors import UserError
from vqvae2.files.locate import public_name
from vqvae2.files.lock import locks
from vqvae2.files.progress import Reporter
from vqvae2.files.run_folder import refuse_links

if TYPE_CHECKING:
    from vqvae2.evaluate.options import EvaluateOptions
    from vqvae2.processes import Group
    from vqvae2.run import Run


def report_folder(run: Run | None, data: str | None, out: Path | None, split: str | None) -> Path:
    """Where the report goes: OUT, or by default RUN/report.

    Raises:
        UserError: nothing names the real images, or OUT is needed and not given.
    """
    if run is None and data is None and out is None:
        raise UserError("expected a RUN, or --samples FOLDER with --data DATA and --out DIR")
    if data is None and (run is None or "source" not in run.record):
        raise UserError("expected --data DATA, the real images")
    if out is not None:
        return out
    if run is None:
        raise UserError("expected --out DIR for the report")
    if split is not None:
        raise UserError(
            f"expected --out DIR for the report on a split: {run.paths.report} is for the run's own held-out images"
        )
    if (public := public_name(run.folder)) is not None:
        raise UserError(f"expected --out DIR for the report: nothing is written into {public}")
    return run.paths.report


@locks("out", below=["cache"])
def evaluate(
    run: Run | None,
    data: str | None,
    out: Path,
    options: EvaluateOptions,
    reporter: Reporter,
    group: Group | None = None,
) -> dict[str, Any] | None:
    """Measure, and write OUT/report.json and OUT/report.html; OUT/cache keeps features and samples for the next time.

    Args:
        run: None measures `options.samples` alone. Half of the real images then serve as training images, the other half is
            held out.
        data: the real images, see `open_images`; None takes those that the run was trained on.
        out: see `report_folder`.
        group: the processes that share the work, each of which calls this with a run on its own device; None is this one alone.

    Returns:
        The content of report.json: protocol, parts, left_out, warnings, seconds; None on all processes but the main one. The same
        arguments give the same content, except for
        the seconds and for the part `speed`.

    Raises:
        LockError: another command writes into OUT.
        RunError: the sharpened decoder is asked for and not trained, or OUT is in the run and leads out of it.
        UserError: OUT has a file of others with the name of a report, or is among the run's images; nothing can be measured, or a part that was asked for cannot; see also `check_options` and `open_images`.
    """
    from vqvae2.commands.real_images import config_of_samples, fitted_to, measure_split, open_real
    from vqvae2.commands.run_facts import collect
    from vqvae2.evaluate.checks import check_options
    from vqvae2.evaluate.context import Context
    from vqvae2.evaluate.full_report import write_report
    from vqvae2.evaluate.networks.inception import Inception, other_weights
    from vqvae2.files.output import make_folder
    from vqvae2.processes import Group
    from vqvae2.train.device import best_device

    device = run.device if run else best_device()
    network = check_options(run, options, device)  # before the folder is made, and before images are read
    _check_out(run, out)
    config = run.config.data if run else config_of_samples(options, out)
    make_folder(out)
    if run is not None and data is None:
        reporter.say(f"the real images are those that the run names: {run.record.get('source')}")
    cache = out / "cache"
    group = group or Group()
    with group.main_first():
        images = open_real(run, data, config, cache, reporter.say)
    context = Context(run, images, config, options, cache, reporter, network, group)
    context.device = device
    context.warnings += fitted_to(run, images) if run else []
    if options.network == Inception.name and options.weights is not None:
        context.warnings += filter(None, [other_weights(options.weights)])
    if run is not None and options.split is not None:
        measure_split(context, run, data)
    on = f" on the split {options.split}" if options.split else ""
    title = f"Evaluation of {run.folder if run else options.samples}{on}"
    return write_report(context, title, out, collect(run) if run else None)


def _check_out(run: Run | None, out: Path) -> None:
    """Check that OUT is no folder of the run's images, and that files with the names of a report there are of an earlier report.

    Raises:
        RunError: OUT is in the run and leads out of it.
        UserError: OUT is among the run's images, or has a file of others with the name of a report.
    """
    from vqvae2.evaluate.full_report import UNFINISHED
    from vqvae2.files.output import refuse_to_replace, refuse_to_replace_others

    if run is not None and out.resolve() == run.paths.report.resolve():
        refuse_links(run.folder, run.config.autoencoder.levels)
        return
    if run is not None:
        run.check_out(out)
    for name in ("report.json", UNFINISHED):
        refuse_to_replace_others(out / name, ("protocol", "parts"))
    if not (out / "report.json").exists():  # which is written before the page
        refuse_to_replace([out / "report.html"])


def keep_sampling(run: Run, report: dict[str, Any], reporter: Reporter) -> None:
    """Write the settings that the part `tuning` of a report chose into RUN/config.yaml, whose other settings stay as they are now.

    Of a model of the package or of the Hub, which keeps its own, it only says them.

    Raises:
        FileError: the file cannot be written; RunError, ConfigError: it cannot be read any more.
    """
    from vqvae2.train.folder import read_run, write_config

    chosen = report["parts"]["tuning"]["chosen"]
    sampling = run.sampling.replace(**{name: chosen[name] for name in run.sampling.about()})
    text = ", ".join(f"{name} {value}" for name, value in sampling.about().items())
    if (public := public_name(run.folder)) is not None:
        reporter.say(f"chosen: {text}; {public} keeps its own settings")
        return
    record, config = read_run(run.folder)  # a training may have changed it while this command measured
    sampling = sampling.replace(batch=config.sampling.batch)
    write_config(run.folder, record, config.model_copy(update={"sampling": sampling}))
    reporter.say(f"chosen, and now the settings of {run.folder}: {text}")


def command(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="a run folder, a model of the package, or a Hub id; none with --samples"
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="the real images, as for train [default: those that the run was trained on]"),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="measure all images of this split of the data, such as test, in place of the run's held-out images, which "
            "have chosen its weights; they are compared with the training images of the run as usual",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder for report.json and report.html [default: RUN/report; needed with --split, without a RUN, and "
            "for a model of the package or the Hub]"
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="PART,...",
            help="only these parts: nll, reconstruction, codes, distances, precision, classification, memorisation, "
            "symmetry, speed, critic, tuning, compression (which has to be asked for)",
        ),
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="measure this folder of images instead of samples of the run")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="add another folder of images to the tables; repeatable"),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="images of each set that are compared, if all have so many [default: 10000]; if more are asked for than are held "
            "out, and --reference is as large, the samples are also compared at this n (FID of 50,000)",
        ),
    ] = None,
    reference: Annotated[
        int, typer.Option(min=2, help="training images with which they are compared, at most")
    ] = 10_000,
    network: Annotated[
        str,
        typer.Option(help="whose features are compared: lite0, vgg16, or inception (only then it is FID)"),
    ] = "lite0",
    weights: Annotated[
        Path | None,
        typer.Option(
            help="weights of that network, if it needs any; of inception the file that torch-fidelity uses: "
            "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
        ),
    ] = None,
    perceptual: Annotated[
        Path | None,
        typer.Option(
            help="weights of the perceptual distance, which is left out without them: a safetensors file, or a Hub repository "
            "such as timm/vgg16.tv_in1k; it is LPIPS only if they include the heads of LPIPS"
        ),
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
        typer.Option(
            min=2, help="images that its classifier learns from [default: all training images, 60000 at most]"
        ),
    ] = None,
    classifier_width: Annotated[
        int, typer.Option(min=8, max=1024, help="channels of the first stage of its small ResNet")
    ] = 32,
    classifier_blocks: Annotated[
        int, typer.Option(min=1, max=32, help="residual blocks of each of its three stages")
    ] = 1,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    guidance: Guidance = None,
    tune_sampling: Annotated[
        bool,
        typer.Option(
            "--tune-sampling",
            help="choose temperature, top-p and guidance by kernel distance and recall on half of the held-out images, "
            "report them on the other half, and write them into the run's settings; only this, unless --only says more",
        ),
    ] = False,
    decoder: DecoderOption = None,
    compress: Annotated[
        Path | None,
        typer.Option(
            help="measure compression of the images of this folder, at their own size [default: of held-out images, with --only]"
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="seed of the samples and of the choice of real images")
    ] = 0,
    size: Annotated[
        int | None, typer.Option(min=8, help="px, without a RUN [default: that of the samples]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a run, or any folder of images, beside real images: report.json, and report.html to look at.

    Of a run with both decoders, reconstructions are measured with both, and samples with the one that is chosen.
    The same command again takes features and samples from OUT/cache. `torchrun --nproc-per-node P -m -- vqvae2 evaluate ...`
    shares samples, features and likelihoods between P processes; the rest is measured by the first of them.
    """
    from vqvae2.evaluate.options import EvaluateOptions
    from vqvae2.evaluate.resnet import ClassifierConfig
    from vqvae2.processes import joined
    from vqvae2.run import load

    group = joined()
    reporter = Reporter.of_process(group.main)
    loaded = load(run) if run is not None else None
    out = report_folder(loaded, data, out, split)
    parts = (*_items(only), *(["tuning"] if tune_sampling else []))
    drawing = {"--temperature": temperature, "--top-k": top_k, "--top-p": top_p, "--guidance": guidance}
    sampling = changed_sampling(loaded.sampling, temperature, top_k, top_p, guidance) if loaded else None
    options = EvaluateOptions(
        only=parts,
        n=n,
        reference=reference,
        network=network,
        weights=weights,
        perceptual=perceptual,
        samples=samples,
        against=_folders(against or ()),
        critic_fractions=tuple(_share(text) for text in _items(critic_sweep)),
        classifier=ClassifierConfig(steps=classifier_steps, width=classifier_width, blocks=classifier_blocks),
        classifier_n=classifier_n,
        sampling=sampling,
        decoder=decoder.value if decoder else None,
        seed=seed,
        compress=compress,
        size=size,
        split=split,
    )
    _refuse_unused(loaded, options, drawing, {"--samples": samples, "--decoder": decoder, "--size": size})
    result = evaluate(loaded, data, out, options, reporter, group)
    if result is None:
        return
    if tune_sampling and loaded is not None:
        keep_sampling(loaded, result, reporter)
    if as_json:
        print_json(result)
        return
    for line in result["warnings"]:
        print_text(f"warning: {line}")
    for name, reason in result["left_out"].items():
        print_text(f"left out: {name}: {reason}")
    print_text(f"{', '.join(result['parts'])}: {out / 'report.html'}")


def _refuse_unused(
    run: Run | None, options: EvaluateOptions, drawing: dict[str, Any], others: dict[str, Any]
) -> None:
    """Refuse options that have no effect without a run, with one, or if only tuning was asked for."""
    from vqvae2.evaluate.parts.registry import asked_parts

    if run is None:
        refuse_unused({**drawing, "--decoder": others["--decoder"]}, "without a RUN nothing is drawn")
        return
    refuse_unused({"--size": others["--size"]}, "images are measured at the size of the RUN")
    check_guidance(run, drawing["--guidance"])
    if options.samples is not None:
        refuse_unused(drawing, "the samples are those of --samples, nothing is drawn")
    if asked_parts(options) == {"tuning"}:
        refuse_unused(
            {**drawing, "--samples": others["--samples"]}, "tuning draws with settings that it tries"
        )


def _items(text: str | None) -> list[str]:
    """The items of a list with commas."""
    return [item.strip() for item in text.split(",") if item.strip()] if text else []


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise UserError(f"expected shares with 0 < share <= 1, found {text!r}")
    return value


def _folders(pairs: list[str] | tuple[()]) -> dict[str, Path]:
    """Folders by name, of assignments NAME=DIR."""
    folders: dict[str, Path] = {}
    for pair in pairs:
        name, _, folder = pair.partition("=")
        if not (name and folder):
            raise UserError(f"expected NAME=DIR, found {pair!r}")
        if name in folders:
            raise UserError(f"{name} is given twice")
        folders[name] = Path(folder)
    return folders
