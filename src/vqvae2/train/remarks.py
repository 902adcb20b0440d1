"""What is said of trained stages: of collapsed levels, of the sharpened decoder, of a prior that has learned nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from vqvae2.autoencoder.codebook_usage import stored_usage
from vqvae2.data.store import CodeStore
from vqvae2.files.progress import Reporter
from vqvae2.files.run_folder import RunFolder, StageFolder
from vqvae2.files.tensor_file import read_header, stored_figures
from vqvae2.train.device import TrainingError

_WORSE = (
    1.0  # bits per code by which a prior may be worse than guessing; with few steps some are a little worse
)
_COLLAPSED = 0.10  # a level that uses a smaller share of its codes is reported before stage 2
_FEW = (
    0.02  # so is one whose perplexity is below this share of K: nearly all positions hold the same few codes
)


def say_usage(store: CodeStore, reporter: Reporter) -> None:
    """Warn of a level that uses few of its codes, or nearly always the same few, before stage 2 starts, and say what may help."""
    levels = stored_usage(store)
    stride = " a larger stride for the finer level," if len(levels) > 1 else ""
    for level, usage in enumerate(levels):
        size = len(usage.counts)
        if usage.used < _COLLAPSED or usage.perplexity < max(min(2.0, size / 2), _FEW * size):
            reporter.say(
                f"warning: level {level} is collapsed: it uses {usage.used:.1%} of its codes "
                f"(perplexity {usage.perplexity:.1f}). Its prior will have little to learn and samples will be poor. "
                f"Try fewer codes (--set autoencoder.codes=...),{stride} or more training."
            )


def say_sharpened(folder: Path, begin: int, reporter: Reporter) -> None:
    """If the run has a sharpened decoder, say what it has changed and how to use the other one.

    Args:
        folder: RUN.
        begin: `sharpen.begin`; a sharpening of at most so many steps has learned nothing adversarial.
        reporter: is told in one line.
    """
    if not RunFolder(folder).sharpen.model.exists():
        return
    figures = stored_figures(RunFolder(folder).sharpen.model)
    step = read_header(RunFolder(folder).sharpen.model).metadata.get("step")
    verdict = "the decoder is sharpened"
    if type(step) is int and step <= begin:
        verdict = (
            f"warning: the sharpening has learned nothing adversarial, because it ended at step {step:,} and that loss begins after "
            f"step {begin:,} (sharpen.begin); raise sharpen.steps, and the same command goes on"
        )
    psnr, sharpness = (
        f"{figures.get(f'heldout_{name}_plain', math.nan):.4g} -> {figures.get(f'heldout_{name}', math.nan):.4g}"
        for name in ("psnr", "sharpness")
    )
    reporter.say(
        f"{verdict}: held-out sharpness {sharpness} (originals 1), PSNR {psnr} dB; it is used by default, "
        f"--decoder plain chooses the other one"
    )


def check_learned(name: str, figures: dict[str, Any], part: StageFolder) -> None:
    """Refuse a prior that is worse than no prior; nothing of it is kept as a result.

    Raises:
        TrainingError: its bits per code exceed those of guessing all codes alike by more than one.
    """
    bits, uniform = figures.get("heldout_bits", 0.0), figures.get("uniform_bits", 0.0)
    if bits > uniform + _WORSE:
        raise TrainingError(
            f"{name}: it ended at {bits:.4g} bits per code of held-out images, and guessing all codes alike takes {uniform:.4g}, "
            f"so it has learned nothing that holds; delete {part.path}, and train with a smaller learning rate or more warm-up"
        )
