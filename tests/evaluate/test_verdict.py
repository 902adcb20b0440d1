"""The verdict and the advice: each rule on figures on either side of its threshold, and on the models of the package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vqvae2.commands.explain import explain
from vqvae2.evaluate import advice as rules
from vqvae2.evaluate.advice import advise, gain, unknown
from vqvae2.evaluate.facts import Facts, LevelFacts, from_report
from vqvae2.evaluate.verdict import verdict
from vqvae2.run import load

GOOD = LevelFacts(
    positions=64, codes=512, used=0.95, perplexity=300, heldout_bits=5.0, train_bits=4.8, uniform_bits=9.0,
    curve=[(100, 6.0), (200, 5.2), (300, 5.01), (400, 5.0)], step=400, best_step=400, copies=8, dropout=0.1,
)  # fmt: skip
SOUND = Facts(
    classes=3, training=5000, psnr=31.0, psnr_curve=[(100, 25.0), (200, 29.0), (300, 30.9), (400, 31.0)],
    sharpness=0.8, levels=(GOOD, GOOD), nearer=0.0, empty=0.0, empty_real=0.0,
    frechet={"held out": 10.0, "reconstructions": 11.0, "samples": 12.0},
    recall={"reconstructions": 0.8, "samples": 0.7},
)  # fmt: skip
DISTANCES = ("held out", "reconstructions", "samples")


def level(**figures: Any) -> dict[str, Any]:
    """The facts with the coarsest level changed."""
    return {"levels": (replace(GOOD, **figures), GOOD)}


def test_a_sound_model_needs_no_advice() -> None:
    assert advise(SOUND) == []


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        ("autoencoder limits", {"frechet": dict(zip(DISTANCES, (10, 90, 110), strict=True))}, {"frechet": dict(zip(DISTANCES, (10, 70, 110), strict=True))}),
        ("blurred", {"sharpness": 0.49}, {"sharpness": 0.51}),
        ("blurred", {"sharpness": 0.3, "sharpened": True}, {"sharpness": 0.6, "sharpened": True}),
        ("PSNR stands still", {"psnr": 24.0, "psnr_curve": [(1, 20), (2, 23), (3, 23.95), (4, 24.0)]}, {"psnr": 24.0, "psnr_curve": [(1, 20), (2, 23), (3, 23.8), (4, 24.0)]}),
        ("autoencoder still improves", {"psnr": 24.0, "psnr_curve": [(1, 20), (2, 22), (3, 23.4), (4, 24.0)]}, {"psnr": 24.0, "psnr_curve": [(1, 20), (2, 22), (3, 23.6), (4, 24.0)]}),
        ("out of time", {"ended_by_minutes": ("sharpen",)}, {"ended_by_minutes": ()}),
        ("samples are empty", {"empty": 0.4, "empty_real": 0.1}, {"empty": 0.4, "empty_real": 0.35}),
        ("guidance is strong", level(guidance=4.0), level(guidance=3.0)),
        ("guidance is strong", {**level(guidance=2.0), "recall": {"reconstructions": 0.8, "samples": 0.3}}, {**level(guidance=2.0), "recall": {"reconstructions": 0.8, "samples": 0.5}}),
        ("guidance without classes", {**level(guidance=2.0), "classes": 0}, {**level(guidance=2.0), "classes": 2}),
        ("samples lack variety", {"recall": {"reconstructions": 0.8, "samples": 0.3}}, {"recall": {"reconstructions": 0.8, "samples": 0.5}}),
        ("memorised images", {"nearer": 0.06}, {"nearer": 0.04}),
        ("codes are unused", level(used=0.4, perplexity=100), level(used=0.6, perplexity=100)),
        ("codes are unevenly used", level(perplexity=40), level(perplexity=60)),
        ("prior overfits", level(heldout_bits=6.5, train_bits=5.5), level(heldout_bits=6.0, train_bits=5.41)),
        ("prior was best early", level(best_step=200), level(best_step=300)),
        ("prior still improves", level(curve=[(1, 7), (2, 6), (3, 5.2), (4, 5.0)]), level(curve=[(1, 7), (2, 6), (3, 5.02), (4, 5.0)])),
        ("prior has learned little", level(heldout_bits=8.7, train_bits=8.6), level(heldout_bits=8.0, train_bits=7.9)),
    ],
)  # fmt: skip
def test_each_rule_at_its_threshold(rule: str, bad: dict[str, Any], good: dict[str, Any]) -> None:
    found = {item.rule: item for item in advise(replace(SOUND, **bad))}
    assert rule in found
    assert found[rule].finding.endswith(".")
    assert found[rule].change.endswith(".")
    assert rule not in {item.rule for item in advise(replace(SOUND, **good))}


def test_every_rule_is_tried_above() -> None:
    """Rules by the names of their advice: as many as there are functions, and one for either kind of uneven codes."""
    marks = test_each_rule_at_its_threshold.pytestmark  # type: ignore[attr-defined]
    tried = {case[0] for case in marks[0].args[1]}
    assert len(tried) == len(rules.RULES) + len(rules.LEVEL_RULES)


@pytest.mark.parametrize(
    ("last", "rule", "words"),
    [
        (24.05, "PSNR stands still", "rose by 0.05 dB"),
        (23.95, "PSNR stands still", "fell by 0.05 dB"),
        (23.8, "PSNR falls", "fell by 0.20 dB"),
    ],
)
def test_a_psnr_that_falls_did_not_rise(last: float, rule: str, words: str) -> None:
    """It rose by -0.20 dB, and a larger network was advised, which learns the training images by heart still sooner."""
    facts = replace(SOUND, psnr=24.0, psnr_curve=[(1, 20), (2, 23), (3, 24.0), (4, last)])
    (found,) = advise(facts)
    assert (found.rule, words in found.finding) == (rule, True)
    assert ("autoencoder.hidden" in found.change) == (rule == "PSNR stands still")


def test_what_was_not_measured_gives_no_advice() -> None:
    empty = Facts(levels=(LevelFacts(), LevelFacts()))
    assert advise(empty) == []
    assert verdict(empty) == []
    assert verdict(Facts()) == []
    assert len([*unknown(empty)]) == 4
    assert not [*unknown(SOUND)]


def test_the_gain_is_that_of_the_last_quarter_of_the_steps() -> None:
    assert gain([(10, 1.0), (20, 2.0), (30, 4.0), (40, 4.5)]) == pytest.approx(0.5)
    assert gain([(10, 1.0), (40, 4.5), (41, 9.0)]) is None


@pytest.mark.parametrize(
    ("distances", "words"),
    [
        ((10, 80, 100), "The autoencoder limits this model: 78%"),
        ((10, 20, 100), "The priors limit this model: only 11%"),
        ((10, 50, 100), "about equally: 44%"),
        ((10, 5, 9), "as near to the training images as held-out images"),
    ],
)
def test_what_limits_follows_from_the_distances(distances: tuple[float, ...], words: str) -> None:
    facts = replace(SOUND, frechet=dict(zip(DISTANCES, distances, strict=True)))
    assert words in verdict(facts)[0]


def test_what_limits_follows_from_the_stages_without_distances() -> None:
    plain = replace(SOUND, frechet={})
    assert verdict(plain)[0].startswith("Neither stage")
    assert verdict(replace(plain, psnr=20.0))[0].startswith(
        "The autoencoder limits this model: reconstructions are rough"
    )
    overfit = (replace(GOOD, heldout_bits=6.0), GOOD)
    assert verdict(replace(plain, levels=overfit))[0].startswith(
        "The priors limit this model: the prior of level 0 overfits"
    )
    assert verdict(replace(plain, sharpness=0.2, levels=overfit))[0].startswith("Both stages")


def test_facts_of_a_report() -> None:
    parts = {
        "distances": {"sets": {"samples": {"frechet": 3.0}, "held out": {"frechet": 1.0}}},
        "precision": {"sets": {"samples": {"recall": 0.5, "precision": 0.25}}},
        "memorisation": {"pixels": {"nearer_than_any_heldout": 0.0}},
        "reconstruction": {
            "held out": {"psnr_of_mean": 20.0},
            "held out, plain decoder": {"psnr_of_mean": 21.0},
        },
    }
    found = from_report(parts)
    assert found["frechet"] == {"samples": 3.0, "held out": 1.0}
    assert found["recall"] == {"samples": 0.5}
    assert (found["nearer"], found["psnr"]) == (0.0, 21.0)
    assert from_report({}) == {}


def test_a_rough_model_is_trained_further_before_it_is_sharpened() -> None:
    rough = replace(SOUND, psnr=9.0, sharpness=0.2, ended_by_minutes=("autoencoder",))
    first, *_, second = advise(rough)
    assert (first.rule, second.rule) == ("out of time", "blurred")
    assert "sharpen.steps" not in second.change
    assert "sharpen.steps" in advise(replace(SOUND, sharpness=0.2))[0].change


def test_clothing_is_blurred_and_its_coarse_prior_overfits() -> None:
    found = {item["rule"]: item for item in explain(load("clothing128", "cpu"))["advice"]}
    assert found.keys() == {"blurred", "prior overfits"}
    assert "30%" in found["blurred"]["finding"]
    assert "though the decoder is sharpened" in found["blurred"]["finding"]
    assert (
        "level 0 needs 6.50 bits per code on held-out and 5.48 on training"
        in found["prior overfits"]["finding"]
    )


def test_emoji_overfit_at_the_coarse_level_only() -> None:
    found = [item for item in explain(load("emoji64", "cpu"))["advice"] if item["rule"] == "prior overfits"]
    assert len(found) == 1
    assert "level 0" in found[0]["finding"]


def test_the_rules_and_thresholds_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reports.md").read_text(encoding="utf-8")
    marks = test_each_rule_at_its_threshold.pytestmark  # type: ignore[attr-defined]
    assert [case[0] for case in marks[0].args[1] if case[0] not in page] == []
