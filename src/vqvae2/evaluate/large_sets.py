"""Sets of more images than are held out, for a Frechet distance at the customary n, such as an FID of 50,000 samples.

    --n larger than what is held out, and no larger than the reference
        samples, all n --features, part by part--> mean and scatter
        training reconstructions, all n

The features of one part at a time are in memory. The parts stay in the cache of the report, where the next evaluation finds them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

from torch import Tensor

from vqvae2.evaluate.context import Context
from vqvae2.evaluate.features import Features, extract
from vqvae2.evaluate.metrics import Moments
from vqvae2.evaluate.sets import NamedImages, digest
from vqvae2.files.parts import Parts


@dataclass(frozen=True)
class LargeSet:
    """A large set.

    Attributes:
        images: its images.
        reconstructed: whether they are the first images of the reference, reconstructed, whose features may be there already.
    """

    images: NamedImages
    reconstructed: bool = False


def _asked(context: Context) -> int | None:
    """The number that was asked for, if more than are held out; a default is not asked for and must not draw samples for hours."""
    wanted = context.options.n
    return None if wanted is None or wanted <= len(context.heldout) else wanted


def hint(context: Context) -> str | None:
    """What has to be asked for besides, where large sets are asked for and the reference is too small; None if nothing helps."""
    n = _asked(context)
    if n is None or not len(context.reference) < n <= len(context.training):
        return None
    return f"with --reference {n} the samples are also compared at n = {n:,}, which is more than are held out"


def large_sets(context: Context) -> list[LargeSet]:
    """The samples and the reconstructions of training images, n of each, of samples of a folder as many as there are.

    There are none if no more are asked for than are held out, or more than the reference has.
    """
    n = _asked(context)
    if n is None or len(context.reference) < n:
        return []
    sets: list[LargeSet] = []
    samples = None
    if context.options.samples is not None:
        samples = context.samples
    elif not context.untrained:
        samples = context.draw(n)
    if samples is not None and len(samples) > context.n:
        some = samples.first(n)
        sets.append(LargeSet(replace(some, name=f"samples, all {len(some):,}")))
    if context.run is not None:
        name = f"training reconstructions, all {n:,}"
        images = context.encoder.reconstructed(name, context.reference.first(n))
        sets.append(LargeSet(images, reconstructed=True))
    return sets


def prepare(context: Context) -> None:
    """Compute the features of the large sets, by all processes."""
    for large in large_sets(context):
        if _made(context, large) is None:
            _parts(context, large.images)


def large_moments(context: Context) -> dict[str, Moments]:
    """Mean and scatter of the features of each of the large sets, by name; the sets are then in the protocol."""
    sets = large_sets(context)
    context.listed += [large.images for large in sets]
    return {large.images.name: _moments(context, large) for large in sets}


def _moments(context: Context, large: LargeSet) -> Moments:
    if (made := _made(context, large)) is not None:
        return Moments.of(made.pooled[: len(large.images)], device=context.device)
    parts = _parts(context, large.images)
    return reduce(Moments.__add__, (Moments.of(part["pooled"], device=context.device) for part in parts))


def _made(context: Context, large: LargeSet) -> Features | None:
    """The features of the reconstructed reference, which begin with those of the set; None where they do not."""
    return context.reconstructed_reference if large.reconstructed else None


def _parts(context: Context, images: NamedImages) -> Parts:
    """The features of a set in parts, [b, D] each, computed by all processes unless the cache has them; a collective."""
    network = context.network
    key = digest("features in parts", network.digest, images.key)

    def some(rows: range) -> dict[str, Tensor]:
        return {"pooled": extract(network, images.source(slice(rows.start, rows.stop))).pooled}

    return context.in_parts(f"features of {images.name}", key, len(images), some)
