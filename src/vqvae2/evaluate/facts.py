"""What is known of a trained run, as plain numbers: the input of the verdict and of the advice.

Every figure that was not measured is None, and a rule that needs it says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vqvae2.evaluate.plot import Curve


@dataclass(frozen=True)
class LevelFacts:
    """One level and its prior.

    Attributes:
        positions: codes of one image.
        codes: K.
        used: share of the codebook that occurs, 0 to 1.
        perplexity: 1 to K.
        heldout_bits, train_bits, uniform_bits: per code.
        curve: (step, held-out bits per code).
        step, best_step: where the prior's training ended, and the step whose weights are kept.
        copies: augmented copies of each image.
        dropout: of the prior.
        guidance, temperature, top_p: how it is drawn.
    """

    positions: int = 0
    codes: int = 0
    used: float | None = None
    perplexity: float | None = None
    heldout_bits: float | None = None
    train_bits: float | None = None
    uniform_bits: float | None = None
    curve: Curve = ()
    step: int | None = None
    best_step: int | None = None
    copies: int = 1
    dropout: float = 0.0
    guidance: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0

    @property
    def excess(self) -> float | None:
        """By which share held-out codes cost more than training codes."""
        if not self.heldout_bits or not self.train_bits:
            return None
        return self.heldout_bits / self.train_bits - 1


@dataclass(frozen=True)
class Facts:
    """A whole run.

    Attributes:
        classes: number of classes, 0 without.
        training: number of training images.
        psnr: dB, of the mean error over held-out images, of the plain decoder.
        psnr_curve: (step, dB).
        sharpness: of held-out reconstructions by the decoder that is used, 1 = as sharp as the originals.
        sharpened: whether that is the sharpened decoder.
        levels: coarsest first.
        ended_by_minutes: names of the stages whose `minutes` ended them before their steps.
        frechet: by set: "held out", "reconstructions", "samples".
        recall: by the same sets.
        nearer: share of samples nearer to a training image, in pixels, than any held-out image is.
        empty: share of samples with hardly any contrast; `empty_real`, the same of held-out images.
    """

    classes: int = 0
    training: int | None = None
    psnr: float | None = None
    psnr_curve: Curve = ()
    sharpness: float | None = None
    sharpened: bool = False
    levels: tuple[LevelFacts, ...] = ()
    ended_by_minutes: tuple[str, ...] = ()
    frechet: dict[str, float] = field(default_factory=dict)
    recall: dict[str, float] = field(default_factory=dict)
    nearer: float | None = None
    empty: float | None = None
    empty_real: float | None = None

    @property
    def codec_share(self) -> float | None:
        """Which share of the samples' Frechet distance beyond that of held-out images the reconstructions have already."""
        if not {"held out", "reconstructions", "samples"} <= self.frechet.keys():
            return None
        base, codec, whole = (self.frechet[name] for name in ("held out", "reconstructions", "samples"))
        return min(1.0, max(0.0, (codec - base) / (whole - base))) if whole > base else None


def from_report(parts: dict[str, Any]) -> dict[str, Any]:
    """Attributes of `Facts` that are in the parts of a report.json."""
    sets = parts.get("distances", {}).get("sets", {})
    shares = parts.get("precision", {}).get("sets", {})
    decoded = parts.get("reconstruction", {})
    plain = decoded.get("held out, plain decoder", decoded.get("held out", {}))
    found: dict[str, Any] = {
        "frechet": {name: row["frechet"] for name, row in sets.items() if "frechet" in row},
        "recall": {name: row["recall"] for name, row in shares.items() if "recall" in row},
        "nearer": parts.get("memorisation", {}).get("pixels", {}).get("nearer_than_any_heldout"),
        "psnr": plain.get("psnr_of_mean"),
    }
    return {name: value for name, value in found.items() if value not in ({}, None)}
