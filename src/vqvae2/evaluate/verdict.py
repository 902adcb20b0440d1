"""The verdict at the top of a page: in words, how good a model is and what limits it. The rules are in docs/reports.md."""

from __future__ import annotations

from vqvae2.evaluate.facts import Facts

FAITHFUL = 30.0
"""dB: from here on reconstructions are called faithful."""
ROUGH = 22.0
"""dB: below, they are called rough."""
BLURRED = 0.5
"""Sharpness below which reconstructions are called blurred."""
OVERFITS = 0.15
"""Excess of held-out over training bits from which a prior is said to overfit."""
LEARNT_LITTLE = 0.05
"""Share of the bits that a prior saves; below, it is said to have learned little."""
MOSTLY = 2 / 3
"""Share of the distance from which one stage is named as the limit; between 1/3 and 2/3 both are."""
COPIES = 0.05
"""Share of samples nearer to a training image than any held-out image is, from which copies are suspected."""


def verdict(facts: Facts) -> list[str]:
    """Sentences, the most important first; what was not measured is left out."""
    sentences = [_limit(facts)]
    sentences += [line for line in (_codec(facts), _priors(facts), _memory(facts)) if line]
    return [line for line in sentences if line]


def _limit(facts: Facts) -> str:
    """What limits the samples: by distances if there are any, else by the figures of the stages."""
    share = facts.codec_share
    if share is not None:
        percent = f"{share:.0%} of the samples' distance beyond that of real images is already in the reconstructions"
        if share >= MOSTLY:
            return f"The autoencoder limits this model: {percent}."
        if share <= 1 - MOSTLY:
            return f"The priors limit this model: only {percent}."
        return f"The autoencoder and the priors limit this model about equally: {percent}."
    if facts.frechet and "samples" in facts.frechet and "held out" in facts.frechet:
        if facts.frechet["samples"] <= facts.frechet["held out"]:
            return "The samples are as near to the training images as held-out images are."
        if "reconstructions" not in facts.frechet:
            ratio = facts.frechet["samples"] / max(facts.frechet["held out"], 1e-9)
            return f"The Frechet distance of the samples is {ratio:.1f} times that of held-out images."
    codec = [_weak_codec(facts)] if _weak_codec(facts) else []
    priors = [f"the prior of level {level} {fault}" for level, fault in _weak_priors(facts)]
    if codec and priors:
        return f"Both stages limit this model: {codec[0]}, and {' and '.join(priors)}."
    if codec:
        return f"The autoencoder limits this model: {codec[0]}."
    if priors:
        return f"The priors limit this model: {' and '.join(priors)}."
    if facts.psnr is None:
        return ""
    return "Neither stage shows a weakness in these figures; `vqvae2 evaluate` compares samples with real images."


def _weak_codec(facts: Facts) -> str:
    if facts.psnr is not None and facts.psnr < ROUGH:
        return f"reconstructions are rough ({facts.psnr:.1f} dB)"
    if facts.sharpness is not None and facts.sharpness < BLURRED:
        return f"reconstructions have {facts.sharpness:.0%} of the sharpness of the originals"
    return ""


def _weak_priors(facts: Facts) -> list[tuple[int, str]]:
    found = []
    for number, level in enumerate(facts.levels):
        if level.excess is not None and level.excess >= OVERFITS:
            found.append((number, f"overfits ({level.excess:.0%} more bits on held-out images)"))
        elif (
            level.heldout_bits
            and level.uniform_bits
            and level.heldout_bits > (1 - LEARNT_LITTLE) * level.uniform_bits
        ):
            found.append((number, "has learned little"))
    return found


def _codec(facts: Facts) -> str:
    if facts.psnr is None:
        return ""
    words = (
        "faithful"
        if facts.psnr >= FAITHFUL
        else "rough"
        if facts.psnr < ROUGH
        else "recognisable, with lost detail"
    )
    line = f"Reconstructions are {words}: {facts.psnr:.1f} dB on held-out images"
    if facts.sharpness is not None:
        line += f", {facts.sharpness:.0%} of the sharpness of the originals"
    return line + "."


def _priors(facts: Facts) -> str:
    known = [level for level in facts.levels if level.heldout_bits and level.uniform_bits]
    if not known or len(known) < len(facts.levels):
        return ""
    cost = sum(level.positions * (level.heldout_bits or 0) for level in known)
    whole = sum(level.positions * (level.uniform_bits or 0) for level in known)
    line = f"The priors save {1 - cost / whole:.0%} of the bits of the codes of held-out images"
    overfit = [f"level {i}" for i, level in enumerate(facts.levels) if (level.excess or 0) >= OVERFITS]
    if overfit:
        line += f"; {' and '.join(overfit)} overfit{'s' * (len(overfit) == 1)}"
    return line + "."


def _memory(facts: Facts) -> str:
    if facts.nearer is None:
        return ""
    if facts.nearer >= COPIES:
        return f"{facts.nearer:.0%} of the samples are nearer to a training image than any held-out image is: look for copies."
    return (
        "The samples are not copies: they are about as far from the training images as held-out images are."
    )
