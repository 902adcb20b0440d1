"""`vqvae2 sample`: new images in a folder, resumable, on one process or several, with a critic or without.

without a critic:  draw ---------------------------------------> OUT
with a critic:     draw and score the candidates -> OUT/candidates -> choose the best, decode -> OUT
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqvae2.commands.options import (
    DecoderOption,
    Guidance,
    ImageFolder,
    Json,
    RunName,
    Seed,
    Temperature,
    TopK,
    TopP,
    changed_sampling,
    check_guidance,
    print_json,
    print_text,
    refuse_unused,
)
from vqvae2.files.lock import locks
from vqvae2.files.progress import Reporter

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vqvae2.config.sampling import Sampling
    from vqvae2.files.run_folder import DecoderName
    from vqvae2.generate.sample import Drawn
    from vqvae2.generate.sample_folder import SampleFolder
    from vqvae2.run import Run


class Form(StrEnum):
    """How images are stored."""

    png = "png"
    npz = "npz"


class Dtype(StrEnum):
    """Of the weights of the priors."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Shares(StrEnum):
    """How often each class is drawn where no label is given."""

    equal = "equal"
    data = "data"


@dataclass(frozen=True)
class SampleRequest:
    """Which samples are wanted.

    Attributes:
        n: how many.
        labels: a class name or number for all, several that are repeated in turn, or None for all classes in turn.
        seed: sample i of a seed is the same whatever n and the batch size, on a card up to float32 rounding.
        sampling: temperature, top-k, top-p, guidance, dtype, and `batch`, the number of images drawn at a time; None takes the run's own.
        critic: keep this share of the candidates of each class, those that the run's critic scores best; 0 < critic <= 1.
            None draws without a critic.
        form: a PNG for each image, or all images of a batch as an array beside its codes.
        decoder: which decoder makes the images; None is the sharpened one if the run has it, else the plain one.
        label_shares: without labels, all classes equally often, or each as often as among the training images.
    """

    n: int = 64
    labels: Sequence[str | int] | str | int | None = None
    seed: int = 0
    sampling: Sampling | None = None
    critic: float | None = None
    form: Form = Form.png
    decoder: DecoderName | None = None
    label_shares: Shares = Shares.equal


@dataclass(frozen=True)
class SampleResult:
    """What `sample` did.

    Attributes:
        listing: the content of OUT/samples.json.
        new: how many of the n samples were not there before.
        candidates: how many candidates they were chosen from; 0 without a critic.
        seconds: how long it took.
    """

    listing: dict[str, Any]
    new: int
    candidates: int
    seconds: float


@dataclass(frozen=True)
class _Job:
    """A folder to fill, the numbers of the samples that it lacks, and `draw`, which draws the samples of given ranges of numbers."""

    title: str
    folder: SampleFolder
    missing: list[range]
    draw: Callable[[Iterable[range]], Iterable[Drawn]]


@locks("out", below=["candidates"])
def sample(
    run: Run,
    out: Path,
    request: SampleRequest,
    reporter: Reporter | None = None,
    accelerator: Accelerator | None = None,
) -> SampleResult | None:
    """Fill a folder with samples. Called again with the same request, it draws only those that are missing.

    Several processes (`torchrun`) share the work: each calls this function with a run on its own device.

    Args:
        run: its priors are trained; with a critic, it has classes and a fitted critic.
        out: see `generate.sample_folder`; created.
        reporter: shows the progress of the main process; None takes a new one.
        accelerator: the group of processes; None finds it.

    Returns:
        None on all processes but the main one.

    Raises:
        RunError: not trained yet, no classes, no critic, or the run does not say how often each class is in its data.
        UserError: an argument out of range, or `out` holds samples that were drawn differently or is among the run's images.
        LockError: another command writes into `out`.
    """
    from vqvae2.config.numbers import whole
    from vqvae2.prior.draw import check_seed
    from vqvae2.train.device import make_accelerator

    run.check_out(out)
    accelerator = accelerator or make_accelerator()
    reporter = (reporter or Reporter()) if accelerator.is_main_process else Reporter(quiet=True)
    request = replace(
        request, n=whole(request.n, "the number of samples"), seed=check_seed(request.seed)
    )  # for JSON
    labels, candidates, about = _describe(run, request)
    run.prior  # noqa: B018 - loads, so that a missing model is reported before the folder is made
    jobs = _jobs(run, out, request, labels, candidates, about)
    begun = time.perf_counter()
    batch = (request.sampling or run.sampling).batch
    for job in jobs:
        _share(job, batch, reporter)
    if not accelerator.is_main_process:
        return None
    listing = jobs[-1].folder.finish(request.n, labels, run.classes)
    new = sum(map(len, jobs[-1].missing))
    return SampleResult(listing, new, len(candidates), time.perf_counter() - begun)


def _describe(run: Run, request: SampleRequest) -> tuple[list[int] | None, list[int], dict[str, Any]]:
    """The classes of the samples and of the candidates, and the record of how they are drawn."""
    from vqvae2.generate.reject import candidate_labels

    labels, turns = _labels(run, request)
    sampling = request.sampling or run.sampling
    sampling.level(0, run.config.autoencoder.levels)  # raises before the folder is made
    run.config.prior.check_guidance(sampling)
    about = {"seed": request.seed, **sampling.about(), "labels": turns, **run.drawn_by(request.decoder)}
    if request.critic is None:
        return labels, [], about
    critic = run.critic
    candidates = candidate_labels(labels or [], request.critic)
    what = {"fraction": request.critic, "digest": critic.digest, "network": critic.backbone_digest}
    return labels, candidates, about | {"n": request.n, "drawn": len(candidates), "critic": what}


def _labels(run: Run, request: SampleRequest) -> tuple[list[int] | None, list[int] | str]:
    """The class of each sample, None without classes, and for the record how they were chosen."""
    from vqvae2.generate.sample import class_numbers, sample_labels

    if request.label_shares is Shares.data:
        refuse_unused({"--label-shares": request.labels}, "the samples are of the classes that --label names")
        return run.labels_in_proportion(request.n), "in proportion to the training images"
    labels = sample_labels(request.labels, request.n, run.classes)
    return labels, "all in turn" if request.labels is None else class_numbers(request.labels, run.classes)


def _jobs(
    run: Run,
    out: Path,
    request: SampleRequest,
    labels: list[int] | None,
    candidates: list[int],
    about: dict[str, Any],
) -> list[_Job]:
    """Make the folders and list what is missing in them; a collective. The last job is the folder of the samples; that of the
    candidates comes before it."""
    from vqvae2.generate.reject import choose, draw_candidates
    from vqvae2.generate.sample_folder import SampleFolder

    sampling, decoder = request.sampling or run.sampling, run.decoder(request.decoder)
    folder = SampleFolder(
        out, about, request.form.value, run.config.data if run.config.data.range is not None else None
    )
    pool = SampleFolder(out / "candidates", about, "none")

    def draw(ranges: Iterable[range]) -> Iterable[Drawn]:
        return run.draw(request.n, labels, request.seed, sampling, ranges, request.decoder)

    def draw_scored(ranges: Iterable[range]) -> Iterable[Drawn]:
        scorer = run.critic
        return draw_candidates(decoder, run.prior, candidates, request.seed, sampling, scorer, ranges)

    def draw_best(ranges: Iterable[range]) -> Iterable[Drawn]:
        return choose(decoder, pool, labels or [], request.critic or 1.0, ranges)

    missing = _missing(folder, request.n)
    jobs = [_Job("samples", folder, missing, draw_best if candidates else draw)]
    if candidates and missing:
        jobs.insert(0, _Job("candidates", pool, _missing(pool, len(candidates)), draw_scored))
    return jobs


def _missing(folder: SampleFolder, n: int) -> list[range]:
    """Make the folder, and list which of n samples it lacks; a collective.

    The main process looks, and all take what it finds: of a million samples that takes long on a file system of several machines,
    which may show each of them something else for a while.
    """
    from vqvae2.processes import joined

    group = joined()
    with group.main_first():
        folder.claim()
        missing = folder.missing(n) if group.main else []
    group.wait()  # until every process has claimed the folder
    return group.agreed(missing)


def _share(job: _Job, batch: int, reporter: Reporter) -> None:
    """Do this process's share of a job, and wait for the others."""
    from vqvae2.generate.sample import batches
    from vqvae2.processes import joined

    own = joined().share(batches(job.missing, batch))
    if own:
        with reporter.track(job.title, sum(map(len, own)), unit="images") as tracker:
            job.folder.fill(job.draw(own), tracker)
    joined().wait()


def command(
    run: RunName,
    out: ImageFolder,
    n: Annotated[int, typer.Option(min=1, help="number of images")] = 64,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="class by name or number; repeatable, then repeated in turn; all classes in turn if not given"
        ),
    ] = None,
    label_shares: Annotated[
        Shares,
        typer.Option(
            help="without --label: equal = all classes in turn; data = each class as often as among the training images"
        ),
    ] = Shares.equal,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    batch: Annotated[
        int | None, typer.Option(min=1, help="images drawn at the same time [default: the run's own]")
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            help="of the priors' weights while a CUDA card draws by captured steps; bfloat16 is faster and draws other images for the same "
            "seed [default: the run's own]"
        ),
    ] = None,
    pictures: Annotated[
        Form,
        typer.Option(
            help="png: a file for each image; npz: all images of a batch as an array in codes-*.npz"
        ),
    ] = Form.png,
    critic: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            help="draw n / FRACTION candidates and keep those of each class to which the run's critic "
            "(`vqvae2 critic fit`) gives the highest probability of their class; in (0, 1], 1 keeps all",
        ),
    ] = None,
    decoder: DecoderOption = None,
    as_json: Json = False,
) -> None:
    """Draw new images: one PNG for each, the codes of each batch in codes-*.npz, grid.png with the first 256, and samples.json,
    which lists the file and class of each.

    The same command again draws only what is missing, so a long command may be interrupted and continued, and a larger --n
    adds images. With a critic, --n cannot be raised in the same folder, because more candidates would change which are the best. `torchrun --nproc-per-node P -m -- vqvae2
    sample ...` shares the work between P processes.
    """
    from vqvae2.run import load
    from vqvae2.train.device import make_accelerator

    accelerator = make_accelerator()
    loaded = load(run, accelerator.device)
    check_guidance(loaded, guidance)
    sampling = changed_sampling(loaded.sampling, temperature, top_k, top_p, guidance, batch, dtype)
    name: DecoderName | None = decoder.value if decoder else None
    request = SampleRequest(n, label or None, seed, sampling, critic, pictures, name, label_shares)
    result = sample(loaded, out, request, Reporter(), accelerator)
    if result is None:
        return
    if as_json:
        print_json({"seconds": result.seconds, **result.listing})
        return
    seconds, new = result.seconds, result.new
    each = f"{new} new in {seconds:.1f} s ({seconds / new:.3f} s each)" if new else "all were there already"
    best = f", the best of {result.candidates} drawn" if result.candidates else ""
    print_text(f"{n} samples{best}, {each}: {result.listing['grid']}")
