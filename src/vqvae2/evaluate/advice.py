"""What to change in a run: rules, each a small function of the run's own figures. Their thresholds are in docs/reports.md.

A rule returns None where it does not apply, or where a figure that it needs was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vqvae2.evaluate.facts import Facts, LevelFacts
from vqvae2.evaluate.plot import Curve
from vqvae2.evaluate.verdict import BLURRED, COPIES, FAITHFUL, LEARNT_LITTLE, MOSTLY, OVERFITS, ROUGH

UNUSED = 0.5
"""Share of the codebook that occurs, below which its size is questioned."""
UNEVEN = 0.1
"""Perplexity over K, below which the codes count as unevenly used."""
STILL_DB = 0.1
"""dB that the PSNR gained over the last quarter of the training; less counts as standing still, as much less as falling."""
STILL_BITS = 0.01
"""Share by which the held-out bits fell over the last quarter of a prior's training; more counts as still falling."""
EARLY = 0.6
"""The kept weights are from before this share of the steps: the rest of the training made the prior worse."""
STRONG_GUIDANCE = 4.0
"""Guidance from which classes are exaggerated."""
NARROW = 0.5
"""Recall of samples over recall of reconstructions, below which samples have lost variety."""
EMPTY = 0.1
"""Share of samples with hardly any contrast, above that of held-out images, from which samples count as empty."""
COLD = 0.8
"""Temperature below which samples become uniform."""
FEW = 1000
"""Training images below which a prior is likely to overfit whatever its size."""


@dataclass(frozen=True)
class Advice:
    """One finding and what to do about it.

    Attributes:
        rule: name of the rule.
        finding: what the figures say, with the figures.
        change: what to change, with the settings in backquotes.
    """

    rule: str
    finding: str
    change: str


def advise(facts: Facts) -> list[Advice]:
    """Every piece of advice that applies: of the whole model, of the autoencoder, then of each prior."""
    found = [rule(facts) for rule in RULES]
    for level, own in enumerate(facts.levels):
        found += [rule(level, own, facts) for rule in LEVEL_RULES]
    return [item for item in found if item is not None]


def gain(curve: Curve) -> float | None:
    """By how much the last value of a curve exceeds the one at three quarters of its steps; None of fewer than 4 points."""
    if len(curve) < 4:
        return None
    start = 0.75 * curve[-1][0]
    before = [value for step, value in curve if step <= start]
    return curve[-1][1] - before[-1] if before else None


# --- the whole model and the autoencoder ---


def limit(facts: Facts) -> Advice | None:
    """Most of the samples' distance from real images is in the reconstructions already."""
    share = facts.codec_share
    if share is None or share < MOSTLY:
        return None
    return Advice(
        "autoencoder limits",
        f"{share:.0%} of the samples' distance beyond that of real images is already in the reconstructions.",
        "Improve the autoencoder first: better priors cannot help much. A finer grid (smaller `autoencoder.strides`) or a "
        "third level gives more codes per image, a larger `autoencoder.hidden` a better decoder. This needs a new run.",
    )


def blurred(facts: Facts) -> Advice | None:
    """Reconstructions have lost more than half of the sharpness."""
    if facts.sharpness is None or facts.sharpness >= BLURRED:
        return None
    finding = f"Reconstructions have {facts.sharpness:.0%} of the sharpness of their originals (below {BLURRED:.0%})."
    if facts.sharpened:
        return Advice(
            "blurred",
            finding[:-1] + ", though the decoder is sharpened.",
            "The codes have lost the detail. Give each image more codes (smaller `autoencoder.strides`, or one level more) "
            "in a new run; a larger `sharpen.adversarial` or more `sharpen.steps` invents more detail, at a lower PSNR.",
        )
    if facts.psnr is not None and facts.psnr < ROUGH:
        return Advice(
            "blurred",
            finding,
            "Train the autoencoder longer (`train_autoencoder.steps`), or give each image more codes (smaller "
            "`autoencoder.strides`) in a new run. To sharpen the decoder is of no use yet, because it cannot show what the codes "
            "do not hold.",
        )
    return Advice(
        "blurred",
        finding,
        "Sharpen the decoder: `--set sharpen.steps=8000` adds it to this run, and the codes and priors stay as they are. "
        "Or give each image more codes (smaller `autoencoder.strides`) in a new run.",
    )


def standing_still(facts: Facts) -> Advice | None:
    """The PSNR no longer rises, or falls, and is not high."""
    more = gain(facts.psnr_curve)
    if more is None or facts.psnr is None or more >= STILL_DB or facts.psnr >= FAITHFUL:
        return None
    moved = f"The held-out PSNR {'fell' if more < 0 else 'rose'} by {abs(more):.2f} dB in the last quarter of the training"
    if more <= -STILL_DB:
        return Advice(
            "PSNR falls",
            f"{moved}; the best weights, which are kept, have {facts.psnr:.1f} dB.",
            "More steps will not help. In a new run, use more training images, or more different ones by `data.flip` and "
            "`data.shift` where the images allow it, or a smaller `train_autoencoder.lr`. A perceptual distance "
            "(`train_autoencoder.perceptual`) gives up PSNR for detail; then a falling PSNR is no fault.",
        )
    return Advice(
        "PSNR stands still",
        f"{moved} (by less than {STILL_DB} dB) and is {facts.psnr:.1f} dB.",
        "More steps will not help. Give each image more codes: smaller `autoencoder.strides`, one level more, or a larger "
        "`autoencoder.codes`; or a larger network: `autoencoder.hidden` and `autoencoder.blocks`. This needs a new run.",
    )


def still_rising(facts: Facts) -> Advice | None:
    """The PSNR was rising when the training ended."""
    more = gain(facts.psnr_curve)
    if more is None or facts.psnr is None or more < 5 * STILL_DB or facts.psnr >= FAITHFUL:
        return None
    return Advice(
        "autoencoder still improves",
        f"The held-out PSNR rose by {more:.2f} dB in the last quarter of the training.",
        "Train the autoencoder longer: `--set train_autoencoder.steps=...` with about twice the steps goes on from here; "
        "codes and priors are made anew.",
    )


def out_of_time(facts: Facts) -> Advice | None:
    """A stage's minutes ended it before its steps were done."""
    if not facts.ended_by_minutes:
        return None
    return Advice(
        "out of time",
        f"Ended by its minutes before its steps were done: {', '.join(facts.ended_by_minutes)}.",
        "Give more time: raise `train_autoencoder.minutes`, `sharpen.minutes` or `train_prior.LEVEL.minutes` (0 = no limit); "
        "the training goes on from where it ended.",
    )


def empty(facts: Facts) -> Advice | None:
    """Samples have hardly any contrast, more often than real images."""
    if facts.empty is None or facts.empty - (facts.empty_real or 0.0) < EMPTY:
        return None
    cold = any(level.temperature < COLD for level in facts.levels)
    first = "Raise `sampling.temperature` to 1. " if cold else ""
    return Advice(
        "samples are empty",
        f"{facts.empty:.0%} of the samples have hardly any contrast; of held-out images it is {facts.empty_real or 0:.0%}.",
        first
        + "Empty images are likely where many training images have an even background and the coarsest prior has learned "
        "little else: train it longer (`--set train_prior.0.steps=...`), give it the classes, or crop the images closer. "
        "Raise `sampling.top_p` if it is below 0.9.",
    )


def strong_guidance(facts: Facts) -> Advice | None:
    """Guidance exaggerates the classes or costs variety."""
    highest = max((level.guidance for level in facts.levels), default=1.0)
    ours, theirs = (facts.recall.get(name) for name in ("samples", "reconstructions"))
    narrow = highest > 1 and ours is not None and theirs and ours < NARROW * theirs
    if not facts.classes or (highest < STRONG_GUIDANCE and not narrow):
        return None
    finding = f"Guidance is {highest:g}"
    if narrow:
        finding += f", and samples have a recall of {ours:.2f} where reconstructions have {theirs:.2f}"
    return Advice(
        "guidance is strong",
        finding + ".",
        "Lower it: `--guidance 1.5` (or `--set sampling.guidance=1.5`). Strong guidance draws the same typical images again and "
        "again, with flat areas and exaggerated colours.",
    )


def guidance_without_classes(facts: Facts) -> Advice | None:
    """Guidance is set and there are no classes."""
    if facts.classes or all(level.guidance == 1 for level in facts.levels):
        return None
    return Advice(
        "guidance without classes",
        "Guidance is set, and this run has no classes.",
        "It has no effect. Put the images into one folder per class, or set `sampling.guidance` to 1.",
    )


def lost_variety(facts: Facts) -> Advice | None:
    """Samples cover less than half of what reconstructions cover, without guidance."""
    ours, theirs = (facts.recall.get(name) for name in ("samples", "reconstructions"))
    guided = any(level.guidance > 1 for level in facts.levels) and facts.classes
    if guided or ours is None or not theirs or ours >= NARROW * theirs:
        return None
    return Advice(
        "samples lack variety",
        f"Samples have a recall of {ours:.2f}, reconstructions of {theirs:.2f}.",
        "Draw from more of the distribution: `--temperature 1 --top-p 1`. If that does not help, the priors need more training "
        "images or more `train_prior.*.copies`.",
    )


def copies(facts: Facts) -> Advice | None:
    """Samples are nearer to training images than any held-out image is."""
    if facts.nearer is None or facts.nearer < COPIES:
        return None
    return Advice(
        "memorised images",
        f"{facts.nearer:.0%} of the samples are nearer to a training image than any held-out image is.",
        "The priors repeat training images. Use smaller priors (`prior.levels.*.layers`, `hidden`), more `train_prior.*.copies` "
        "and `dropout`, or more images.",
    )


# --- one level and its prior ---


def unused_codes(level: int, own: LevelFacts, facts: Facts) -> Advice | None:
    """Much of the codebook does not occur at all."""
    if own.used is None or not own.codes or own.used >= UNUSED:
        return None
    return Advice(
        "codes are unused",
        f"Level {level} uses {own.used:.0%} of its {own.codes:,} codes (below {UNUSED:.0%}).",
        f"In a new run: {_fewer(level, own)}`autoencoder.revive=true` if it is off, a larger `autoencoder.entropy_penalty`, "
        "or, if this is the coarsest level, `autoencoder.nested_dropout=0.25`, which makes it carry more.",
    )


def uneven_codes(level: int, own: LevelFacts, facts: Facts) -> Advice | None:
    """A few codes take nearly all positions."""
    if own.perplexity is None or not own.codes or own.perplexity >= UNEVEN * own.codes:
        return None
    if own.used is not None and own.used < UNUSED:
        return None  # that rule says more
    return Advice(
        "codes are unevenly used",
        f"A few codes of level {level} take nearly all positions: the perplexity is {own.perplexity:.0f} of {own.codes:,} "
        f"(below {UNEVEN:.0%}).",
        "Harmless where large areas are alike, such as a white background. Elsewhere, in a new run: "
        f"{_fewer(level, own)}or a larger `autoencoder.entropy_penalty`.",
    )


def _fewer(level: int, own: LevelFacts) -> str:
    fewer = max(16, 2 ** (2 * round(own.perplexity or own.codes)).bit_length())
    return (
        f"fewer codes (`autoencoder.codes`, about {fewer:,} for level {level}), " if fewer < own.codes else ""
    )


def overfits(level: int, own: LevelFacts, facts: Facts) -> Advice | None:
    """Held-out codes cost much more than training codes."""
    if own.excess is None or own.excess < OVERFITS:
        return None
    few = (
        f"There are only {facts.training:,} training images: more help most. "
        if facts.training and facts.training < FEW
        else ""
    )
    return Advice(
        "prior overfits",
        f"The prior of level {level} needs {own.heldout_bits:.2f} bits per code on held-out and {own.train_bits:.2f} on training "
        f"images, {own.excess:.0%} more (from {OVERFITS:.0%} on it overfits).",
        f"{few}Train this level anew with more dropout (`prior.levels.{level}.dropout`, now {own.dropout:g}) or fewer layers: "
        f"`--redo-prior {level}` with these settings replaces this prior alone. More augmented copies (`train_prior.*.copies`, "
        f"now {own.copies}) help too; they need `--redo-prior` of every level, because all levels share the copies.",
    )


def past_its_best(level: int, own: LevelFacts, facts: Facts) -> Advice | None:
    """The kept weights are from long before the end of the training."""
    if not own.step or not own.best_step or own.best_step > EARLY * own.step:
        return None
    return Advice(
        "prior was best early",
        f"The prior of level {level} was best at step {own.best_step:,} of {own.step:,}.",
        f"The steps after it were wasted: set `train_prior.{level}.patience=6`, or regularise it as an overfitting prior.",
    )


def still_falling(level: int, own: LevelFacts, facts: Facts) -> Advice | None:
    """The held-out bits were falling when the training ended, and the prior does not overfit."""
    more = gain(own.curve)
    if more is None or own.excess is None or own.excess >= OVERFITS / 2:
        return None
    if -more < STILL_BITS * own.curve[-1][1]:
        return None
    return Advice(
        "prior still improves",
        f"The held-out bits of level {level} fell by {-more:.2f} in the last quarter of the training, to {own.curve[-1][1]:.2f}.",
        f"Train it longer: `--set train_prior.{level}.steps=...` with about twice the steps goes on from here, and nothing else changes.",
    )


def learned_little(level: int, own: LevelFacts, facts: Facts) -> Advice | None:
    """A code costs nearly as much as without a prior."""
    if (
        not own.heldout_bits
        or not own.uniform_bits
        or own.heldout_bits <= (1 - LEARNT_LITTLE) * own.uniform_bits
    ):
        return None
    if own.excess is not None and own.excess >= OVERFITS:
        return None  # that rule says more
    return Advice(
        "prior has learned little",
        f"The prior of level {level} needs {own.heldout_bits:.2f} of {own.uniform_bits:.2f} bits per code.",
        f"Train it longer (`--set train_prior.{level}.steps=...`), or with more layers and attention "
        f"(`prior.levels.{level}.layers`, `prior.levels.{level}.attention_every=2`).",
    )


RULES: tuple[Callable[[Facts], Advice | None], ...] = (
    limit, out_of_time, still_rising, standing_still, blurred, empty, strong_guidance, guidance_without_classes,
    lost_variety, copies,
)  # fmt: skip
LEVEL_RULES: tuple[Callable[[int, LevelFacts, Facts], Advice | None], ...] = (
    unused_codes, uneven_codes, overfits, past_its_best, still_falling, learned_little,
)  # fmt: skip


def unknown(facts: Facts) -> Iterator[str]:
    """What was not measured, and which command measures it."""
    if not facts.frechet:
        yield "how far samples are from real images, and whether the autoencoder or the priors limit them: `vqvae2 evaluate RUN`"
    if facts.sharpness is None:
        yield "the sharpness of reconstructions: this run is older than this figure"
    if not facts.psnr_curve:
        yield "how the figures developed in training: metrics.jsonl is not there"
    if facts.empty is None:
        yield "whether samples are empty: the run has no prior/level-L/samples.png"
