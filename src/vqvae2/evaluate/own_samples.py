"""Samples of the run for its report, drawn once and kept in the cache of the report."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from vqvae2.data.images import ImageSet
from vqvae2.evaluate.options import EvaluateOptions
from vqvae2.evaluate.sets import NamedImages, digest, drawn_samples, shuffled
from vqvae2.evaluate.trained_run import TrainedRun
from vqvae2.files.progress import Reporter
from vqvae2.generate.sample import batches
from vqvae2.generate.sample_folder import SampleFolder
from vqvae2.processes import Group


def own_samples(
    run: TrainedRun,
    n: int,
    images: ImageSet,
    options: EvaluateOptions,
    cache: Path,
    reporter: Reporter,
    group: Group | None = None,
) -> NamedImages:
    """The first n samples of the run; those that the cache lacks are drawn by all processes together.

    They take the classes of the training images in the shuffled order of the seed.
    """
    labels, group = None, group or Group()
    if run.config.prior.classes and images.labels is not None:
        labels = images.labels[shuffled(images.train, options.seed)].tolist()
    sampling = options.sampling or run.sampling
    about = {"seed": options.seed, **sampling.about(), "labels": digest(labels)}
    drawn_by = run.drawn_by(options.decoder)
    about |= drawn_by if drawn_by["decoder"]["name"] == "sharp" else {"model": drawn_by["model"]}
    place = cache / f"samples-{digest(about)[:12]}"  # of the plain decoder where former versions kept them
    folder = SampleFolder(place, about | drawn_by, "npz")
    with group.main_first():
        folder.claim()
    missing = group.share(batches(group.agreed(folder.missing(n)), sampling.batch))
    total = sum(map(len, missing))
    begun = time.monotonic()
    with reporter.track("samples", total, unit="images") as tracker:
        drawn = run.draw(n, labels, options.seed, sampling, missing, options.decoder)
        folder.fill(itertools.islice(drawn, 1), tracker)
        left = total - tracker.done
        if left:
            minutes = (time.monotonic() - begun) / tracker.done * left / 60
            reporter.say(
                f"samples: {total * group.count:,} are drawn for the report, about {minutes:,.1f} more minutes at the speed of the "
                f"first {tracker.done}; --n and --classifier-n ask for fewer, and what is drawn is kept for the next time"
            )
        folder.fill(drawn, tracker)
    group.wait()
    return drawn_samples("samples", folder.path, n)
