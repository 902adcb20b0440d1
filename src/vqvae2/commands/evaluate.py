"""`vqvae2 evaluate`: measure a run, or any folder of images, beside real images; report.json and report.html.

DATA --split--> training and held-out images --autoencoder--> reconstructions
RUN --priors, decoder--> samples          further folders
all of them --evaluate/parts/--> figures, pictures and curves --> the report
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vqvae2.config.models import DataConfig
from vqvae2.data.images import ImageSet, open_images
from vqvae2.data.peek import peek
from vqvae2.errors import UserError
from vqvae2.evaluate.context import RESERVED_NAMES, Context
from vqvae2.evaluate.full_report import write_report
from vqvae2.evaluate.options import EvaluateOptions
from vqvae2.evaluate.parts.registry import check_names
from vqvae2.evaluate.sets import NamedImages, digest, drawn_samples, shuffled
from vqvae2.files.progress import Reporter
from vqvae2.gallery import SampleFolder, make_folder
from vqvae2.generate.sample import batches
from vqvae2.run import Run


def evaluate(
    run: Run | None, data: str, out: Path, options: EvaluateOptions, reporter: Reporter
) -> dict[str, Any]:
    """Measure, and write OUT/report.json and OUT/report.html; OUT/cache keeps features and samples for the next time.

    Args:
        run: None measures `options.samples` alone. Half of the real images then serve as training images, the other half is
            held out.
        data: the real images, see `open_images`; for a run usually those that it was trained on.

    Returns:
        The content of report.json: protocol, parts, warnings, seconds. The same arguments give the same content, except for
        the seconds and for the part `speed`.

    Raises:
        UserError: nothing to measure, an unknown part, a name that is reserved, a critic whose backbone is the measuring
            network, or too few images; see also `open_images`, `Run` and `feature_network`.
    """
    check_names(options)
    if taken := sorted({*options.against} & RESERVED_NAMES):
        raise UserError(f"the report has a set named {', '.join(taken)}: another name is needed")
    if run is None and options.samples is None:
        raise UserError("expected a RUN or --samples DIR, or both")
    make_folder(out)
    cache = out / "cache"
    config = run.config.data if run else _data_config(options, out)
    seed = run.config.seed if run else 0
    images = open_images(data, config, _data_folder(run, data, cache), seed=seed, say=reporter.say)

    def draw(n: int) -> NamedImages:
        assert run is not None
        return _drawn(run, n, images, options, cache, reporter)

    context = Context(run, images, config, options, cache, reporter, draw)
    if run and run.record.get("fingerprint") not in (None, images.fingerprint):
        context.warnings.append(
            "these are not the images that the run was trained on, so it never saw those that are called training images"
        )
    return write_report(context, f"vqvae2 evaluate: {run.folder if run else options.samples}", out)


def _data_config(options: EvaluateOptions, out: Path) -> DataConfig:
    """Without a run: images of the size of the samples, half of them held out."""
    assert options.samples is not None
    _, side = (0, options.size) if options.size else peek(str(options.samples), DataConfig(), out)
    return DataConfig(size=side or 64, flip=False, shift=0, holdout=0.5)


def _data_folder(run: Run | None, data: str, cache: Path) -> Path:
    """Where decoded images are kept: with the run if they are its own, because others must not replace them."""
    own = run is not None and run.done()["codes"] and data == run.record.get("source")
    return (run.folder if run and own else cache) / "data"


def _drawn(
    run: Run, n: int, images: ImageSet, options: EvaluateOptions, cache: Path, reporter: Reporter
) -> NamedImages:
    """The first n samples of the run; those that the cache lacks are drawn."""
    labels = None
    if run.config.prior.classes and images.labels is not None:
        labels = images.labels[shuffled(images.train, options.seed)].tolist()
    sampling = options.sampling or run.sampling
    about = {"seed": options.seed, **sampling.about()}
    about |= {"labels": digest(labels), "model": run.digests()}
    folder = SampleFolder(cache / f"samples-{digest(about)[:12]}", about, "npz")
    folder.claim()
    missing = batches(folder.missing(n), sampling.batch)
    with reporter.track("samples", sum(map(len, missing)), unit="images") as tracker:
        folder.fill(run.draw(n, labels, options.seed, sampling, missing), tracker)
    return drawn_samples("samples", folder.path).first(n)
