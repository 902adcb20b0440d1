"""How fast this machine encodes, decodes and samples; all figures are times."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from vqvae2.autoencoder.model import VQVAE
from vqvae2.config.sampling import Sampling
from vqvae2.evaluate.context import Context
from vqvae2.evaluate.parts.base import Part, PartResult
from vqvae2.evaluate.sets import NamedImages
from vqvae2.prior.captured import StepGraphs
from vqvae2.prior.hierarchy import HierarchicalPrior

_BATCH = 64  # images in the batch that is timed, at most


def speed(
    autoencoder: VQVAE, prior: HierarchicalPrior, images: NamedImages, batch: int, how: Sampling
) -> PartResult:
    """Images per second of encoding, decoding and sampling after a warm-up; seconds per position of the grids."""
    device = next(autoencoder.parameters()).device
    originals = images.images(0, batch).to(device)
    labels = torch.zeros(batch, dtype=torch.int64) if prior.classes else None
    codes = autoencoder.encode(originals)
    positions = sum(level[0].numel() for level in codes.levels)

    def finish(call: Callable[[], object]) -> None:
        call()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    def seconds(call: Callable[[], object]) -> float:
        finish(call)
        begun = time.perf_counter()
        finish(call)
        return time.perf_counter() - begun

    graphs = StepGraphs(how.dtype)  # made in the warm-up
    sampling = seconds(lambda: prior.sample(batch, labels, how, graphs=graphs))
    decoding = seconds(lambda: autoencoder.decode(codes))
    return PartResult(
        {
            "batch": len(originals),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "encode_images_per_second": len(originals) / seconds(lambda: autoencoder.encode(originals)),
            "decode_images_per_second": len(originals) / decoding,
            "sample_images_per_second": batch / (sampling + decoding),
            "sample_seconds_per_position": sampling / positions,
            "positions": positions,
        }
    )


def measure(context: Context) -> PartResult:
    """On a batch of held-out images; sampling with the settings of the samples of the report."""
    run = context.run
    assert run is not None
    how, batch = context.options.sampling or run.sampling, min(_BATCH, len(context.heldout))
    return speed(run.autoencoder, run.prior, context.heldout, batch, how)


PART = Part("speed", "Speed", measure, needs=("run", "priors"))
