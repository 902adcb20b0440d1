"""Labels, settings, and pictures that depend on their number and seed alone."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from comparing import same_codes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes
from vqvae2.config.models import AutoencoderConfig, LevelPriorConfig, PriorConfig
from vqvae2.config.sampling import Sampling
from vqvae2.errors import UserError
from vqvae2.generate.sample import (
    Drawn,
    batches,
    class_number,
    draw_samples,
    proportional_labels,
    sample_labels,
)
from vqvae2.prior.captured import StepGraphs
from vqvae2.prior.hierarchy import HierarchicalPrior

ANIMALS = ["Cat", "dog", "Guinea pig", "horse", "Seal", "sea lion"]


def models(
    classes: int = 2, dropout: float = 0.0, kind: Literal["pixelcnn", "transformer"] = "pixelcnn"
) -> tuple[VQVAE, HierarchicalPrior]:
    """A small pipeline for images of 8 x 4 with random weights, in eval mode."""
    torch.manual_seed(0)
    autoencoder = VQVAE(AutoencoderConfig(strides=(2, 2), codes=(5, 7), code_dim=4, hidden=6, residual=3))
    level = LevelPriorConfig(
        kind=kind,
        hidden=8,
        residual=6,
        layers=2,
        kernel=3,
        attention_every=2,
        heads=2,
        dropout=dropout,
        output_layers=1,
    )
    prior = HierarchicalPrior(PriorConfig(levels=(level, level), classes=classes), autoencoder.geometry(8, 4))
    with torch.no_grad():
        for quantizer in autoencoder.quantizers:
            quantizer.embeddings.normal_()
        for name, p in prior.named_parameters():
            nn.init.normal_(p, 1.0 if name.endswith("gain") else 0.0, 0.3)
    return autoencoder.eval(), prior.eval()


def drawn(
    n: int, labels: list[int] | None = None, seed: int = 0, classes: int = 2, **options: Any
) -> list[Drawn]:
    """All parts."""
    return list(draw_samples(*models(classes), n, labels, seed, Sampling(**options)))


def joined(parts: Sequence[Drawn]) -> tuple[Codes, Tensor]:
    """All codes and all pictures."""
    return Codes.cat([part.codes for part in parts]), torch.cat([part.images for part in parts])


def refused(call: Any, match: str) -> None:
    """`call` raises the user's error, in one line."""
    with pytest.raises(UserError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- labels ---


@pytest.mark.parametrize("number", range(6))
def test_a_class_by_name_or_number(number: int) -> None:
    name = ANIMALS[number]
    for label in (number, str(number), f" {number} ", name, name.upper(), name.lower(), f"  {name}\t"):
        assert class_number(label, ANIMALS) == number


def test_a_name_that_looks_like_a_number_is_a_name() -> None:
    """Text is a name first; a number in the configuration's sense only if no class is called so."""
    assert class_number("3", ["3", "5", "7"]) == 0
    assert class_number("2", ["3", "5", "7"]) == 2


def test_other_alphabets() -> None:
    names = ["Straße", "МОСКВА", "猫"]
    for number, label in enumerate(["STRASSE", "москва", "猫"]):
        assert class_number(label, names) == number


@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_a_name_in_any_unicode_form(written: Any, asked: Any) -> None:
    """File systems decompose accents, keyboards do not."""
    names = ["the", unicodedata.normalize(written, "Café")]
    for label in ("Café", "café ", "CAFÉ"):
        assert class_number(unicodedata.normalize(asked, label), names) == 1


def test_a_name_with_a_comma_is_quoted_in_a_list() -> None:
    with pytest.raises(UserError, match=r"a name such as cats, 'hats, coats', mats$"):
        class_number("???", ["cats", "hats, coats", "mats"])


def test_the_exact_name_goes_before_another_case() -> None:
    """Letters, say: upper and lower case are classes of their own."""
    assert [class_number(name, ["A", "a", "B", "b"]) for name in ("A", "a", "B", "b")] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ("hors", r"no class 'hors': expected a number 0\.\.5 or a name such as horse"),
        ("cats", "no class 'cats': .* such as Cat"),
        ("sealion", "no class 'sealion': .* such as sea lion, Seal"),
        ("GUINEAPIG", "no class 'GUINEAPIG': .* such as Guinea pig"),
        ("xyzzy", "no class 'xyzzy': .* such as Cat, dog, Guinea pig, horse, Seal, sea lion"),
        ("", "no class ''"),
        ("two\nlines", r"no class 'two\\nlines'"),
        (6, r"no class 6: expected a number 0\.\.5"),
        ("6", "no class '6'"),
        (-1, "no class -1"),
        ("-1", "no class '-1'"),
        ("1.0", "no class '1.0'"),
        ("9" * 30, "no class '9+'"),
        ("9" * 5000, "no class '9+"),
        ("²", "no class '²'"),
    ],
)
def test_a_near_miss_is_told_what_is_near(label: str | int, found: str) -> None:
    refused(lambda: class_number(label, ANIMALS), found)


def test_a_long_list_of_classes_is_not_told_in_full() -> None:
    names = [f"kind {chr(97 + i)}{chr(97 + j)}" for i in range(26) for j in range(26)]
    with pytest.raises(UserError) as caught:
        class_number("zzzzzzzzzzzzzzzzzzzz", names)
    assert len(str(caught.value)) < 300


def test_a_label_without_classes() -> None:
    refused(lambda: class_number("cat", []), "no classes, so it has no label 'cat'")
    refused(lambda: sample_labels("cat", 3, []), "no classes, so it has no label 'cat'")
    refused(lambda: sample_labels([0], 3, []), "no classes")


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=12))
def test_any_text_is_a_class_or_a_users_error(label: str) -> None:
    try:
        assert 0 <= class_number(label, ANIMALS) < 6
    except UserError as error:
        message = str(error)
    else:
        message = ""
    assert len(message.splitlines()) <= 1


def test_one_label_is_for_all_and_several_take_turns() -> None:
    assert sample_labels("DOG", 3, ANIMALS) == [1, 1, 1]
    assert sample_labels(4, 2, ANIMALS) == [4, 4]
    assert sample_labels(["horse", 0, "1"], 5, ANIMALS) == [3, 0, 1, 3, 0]
    assert sample_labels(("dog", "cat", "dog"), 2, ANIMALS) == [1, 0]
    assert sample_labels(None, 8, ANIMALS) == [0, 1, 2, 3, 4, 5, 0, 1]
    assert sample_labels(None, 8, []) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(1, 30), st.integers(1, 30))
def test_a_label_depends_on_the_number_of_the_sample_alone(labels: list[int], n: int, more: int) -> None:
    short, long = sample_labels(labels, n, ANIMALS), sample_labels(labels, n + more, ANIMALS)
    assert short is not None
    assert long is not None
    assert len(short) == n
    assert long[:n] == short


@pytest.mark.parametrize(
    ("labels", "n", "found"),
    [
        ("cat", 0, "expected at least 1 sample, found n = 0"),
        (None, -3, "expected at least 1 sample, found n = -3"),
        ([], 3, "expected at least one label, found an empty list"),
        (["cat", "unicorn"], 1, "no class 'unicorn'"),
        (["cat", 6], 3, "no class 6"),
    ],
)
def test_labels_that_cannot_be(labels: Any, n: int, found: str) -> None:
    refused(lambda: sample_labels(labels, n, ANIMALS), found)


@given(
    counts=st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any),
    n=st.integers(1, 60),
    more=st.integers(0, 20),
)
def test_labels_in_proportion(counts: list[int], n: int, more: int) -> None:
    """A larger n adds samples; no class is ahead of its share by a whole one; a whole turn gives the counts themselves."""
    labels = proportional_labels(counts, n)
    assert proportional_labels(counts, n + more)[:n] == labels
    total = sum(counts)
    for number, count in enumerate(counts):
        assert (labels.count(number) - 1) * total < count * n or not labels.count(number)
    whole = proportional_labels(counts, 2 * total)
    assert [whole.count(number) for number in range(len(counts))] == [2 * count for count in counts]


def test_equal_proportions_are_all_classes_in_turn() -> None:
    assert proportional_labels([7] * 6, 20) == sample_labels(None, 20, ANIMALS)
    assert proportional_labels([3, 1], 8) == [0, 0, 1, 0, 0, 0, 1, 0]
    refused(lambda: proportional_labels([1, 2], 0), "expected at least 1 sample, found n = 0")


# --- settings ---


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"temperature": -0.5}, "temperature >= 0.*found temperature -0.5"),
        ({"temperature": math.nan}, "temperature >= 0.*found temperature nan"),
        ({"top_k": -1}, "top_k >= 0.*top_k -1"),
        ({"top_p": 0.0}, "0 < top_p <= 1.*top_p 0.0"),
        ({"top_p": 1.2}, "0 < top_p <= 1.*top_p 1.2"),
        ({"batch": 0}, "expected batch >= 1, found 0"),
        ({"guidance": -1.0}, "guidance >= 0, found guidance -1.0"),
        ({"guidance": math.nan}, "guidance >= 0, found guidance nan"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], found: str) -> None:
    refused(lambda: Sampling(**options), found)


def test_settings_at_the_ends_of_their_ranges() -> None:
    for options in ({"temperature": 0.0}, {"top_k": 0}, {"top_p": 1.0}, {"guidance": 0.0}, {"batch": 1}):
        codes, images = joined(drawn(3, [0, 1, 0], **options))
        assert len(codes) == len(images) == 3


# --- pictures ---


@pytest.mark.parametrize("classes", [0, 2])
def test_parts_cover_the_samples_in_order(classes: int) -> None:
    labels = [1, 0, 0, 1, 1, 0, 1] if classes else None
    parts = drawn(7, labels, classes=classes, batch=3)
    assert [list(part.numbers) for part in parts] == [[0, 1, 2], [3, 4, 5], [6]]
    for part in parts:
        assert len(part.codes) == len(part.images) == len(part.numbers)
        assert part.images.shape[1:] == (3, 8, 4)
        if labels is None:
            assert part.labels is None
        else:
            assert part.labels is not None
            assert part.labels.tolist() == [labels[i] for i in part.numbers]


@pytest.mark.parametrize(("guidance", "seed"), [(1.0, 5), (3.0, 6)])
def test_pictures_are_the_same_at_any_batch_size(guidance: float, seed: int) -> None:
    labels = [1, 0, 0, 1, 1, 0, 1]
    codes, images = joined(drawn(7, labels, seed, guidance=guidance, batch=64))
    for batch in (1, 2, 3, 7):
        other_codes, other_images = joined(drawn(7, labels, seed, guidance=guidance, batch=batch))
        assert same_codes(codes, other_codes)
        assert torch.allclose(images, other_images, atol=1e-5)
    fewer_codes, _ = joined(drawn(4, labels, seed, guidance=guidance))
    assert same_codes(codes[:4], fewer_codes)


def test_pictures_are_the_decoded_codes() -> None:
    autoencoder, prior = models()
    for part in draw_samples(autoencoder, prior, 5, [0, 1, 0, 1, 0], 1, Sampling(batch=2)):
        autoencoder.geometry(8, 4).check(part.codes)
        assert torch.equal(part.images, autoencoder.decode(part.codes))
        assert part.images.abs().max() <= 1
        assert part.images.std() > 0


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.5}, {"guidance": 4.0}]
)
def test_every_setting_reaches_the_prior(options: dict[str, Any]) -> None:
    autoencoder, prior = models()
    labels = [0, 1, 1, 0, 1, 0, 0, 1]
    codes, _ = joined(list(draw_samples(autoencoder, prior, 8, labels, 3, Sampling(**options))))
    assert same_codes(codes, prior.sample(8, torch.tensor(labels), seed=3, **options))
    assert same_codes(codes, prior.sample(8, torch.tensor(labels), seed=3)) == (not options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_type_of_the_weights_reaches_captured_steps(
    dtype: Literal["float32", "bfloat16"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With float32 they draw what plain steps draw; with bfloat16 some other codes, for the same random numbers."""
    cpu: dict[str, Any] = {"devices": ("cpu",), "least_positions": 1}
    monkeypatch.setattr("vqvae2.generate.sample.StepGraphs", lambda dtype: StepGraphs(dtype, **cpu))
    labels = [i % 2 for i in range(1000)]
    found, _ = joined(drawn(1000, labels, seed=3, dtype=dtype, batch=500))
    _, prior = models()
    numbers = torch.tensor(labels)
    assert same_codes(found, prior.sample(range(1000), numbers, seed=3, graphs=StepGraphs(dtype, **cpu)))
    plain = prior.sample(range(1000), numbers, seed=3, graphs=StepGraphs(devices=()))
    assert same_codes(found, plain) == (dtype == "float32")
    monkeypatch.setattr("vqvae2.prior.hierarchy.StepGraphs", lambda dtype: StepGraphs(dtype, **cpu))
    assert same_codes(prior.sample(range(1000), numbers, Sampling(dtype=dtype), seed=3), found)


def test_the_record_of_former_versions_is_that_of_float32() -> None:
    """Folders of samples are known by it."""
    record = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance": 1.0}
    assert Sampling().about() == Sampling(dtype="float32", batch=3).about() == record
    assert Sampling(dtype="bfloat16").about() == {**record, "dtype": "bfloat16"}
    with pytest.raises(UserError, match=r"^dtype: .*'float32' or 'bfloat16'"):
        Sampling(dtype="float16")


def test_a_setting_per_level_reaches_its_level() -> None:
    """The coarse level as with its own setting everywhere; the fine one as that setting draws it, given the coarse one."""
    autoencoder, prior = models()
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    for name, (coarse, fine) in {
        "temperature": (0.3, 2.0), "top_k": (0, 2), "top_p": (1.0, 0.3), "guidance": (3.0, 1.0),
    }.items():  # fmt: skip
        sampling = Sampling(**{name: (coarse, fine)})
        codes, _ = joined(list(draw_samples(autoencoder, prior, 6, labels.tolist(), 2, sampling)))
        first = prior.sample(6, labels, seed=2, **{name: coarse})
        assert torch.equal(codes.levels[0], first.levels[0])
        rest = prior.sample(6, labels, seed=2, given=Codes(codes.levels[:1]), **{name: fine})
        assert same_codes(codes, rest)
        assert not same_codes(codes, first)


def test_as_many_settings_as_levels() -> None:
    _, prior = models()
    refused(lambda: prior.sample(2, top_p=(1.0, 0.9, 0.8)), "one top_p, or one for each of 2 levels, found 3")
    both = Sampling(temperature=0.5, top_k=[3], top_p=1, guidance=(1.0, 2.0))
    assert [both.level(i, 2) for i in range(2)] == [(0.5, 3, 1, 1.0), (0.5, 3, 1, 2.0)]
    refused(lambda: Sampling(temperature=(1.0, -1.0)), "found temperature -1.0")


@given(st.lists(st.integers(0, 9)), st.integers(1, 7))
def test_batches_are_the_same_numbers(lengths: list[int], size: int) -> None:
    runs = [range(100 * i, 100 * i + length) for i, length in enumerate(lengths)]
    parts = batches(runs, size)
    assert [n for part in parts for n in part] == [n for run in runs for n in run]
    assert all(1 <= len(part) <= size for part in parts)
    assert len(parts) == sum(math.ceil(length / size) for length in lengths)


def test_seeds_and_labels_matter() -> None:
    first, _ = joined(drawn(6, [0] * 6, seed=1))
    assert same_codes(first, joined(drawn(6, [0] * 6, seed=1))[0])
    assert not same_codes(first, joined(drawn(6, [0] * 6, seed=2))[0])
    assert not same_codes(first, joined(drawn(6, [1] * 6, seed=1))[0])


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_out_of_range(seed: int) -> None:
    refused(lambda: drawn(2, [0, 1], seed), f"expected a seed between 0 and .*, found {seed}")


@pytest.mark.parametrize("numbers", [range(5), range(-1, 2)])
def test_samples_that_were_not_asked_for_are_refused(numbers: range) -> None:
    with pytest.raises(UserError, match=r"expected samples of 0\.\.2, found the range"):
        list(draw_samples(*models(), 3, [0, 1, 0], 0, Sampling(), [numbers]))


def test_drawing_is_lazy_and_keeps_gradients_as_they_were() -> None:
    """The caller may stop after any part; between parts, gradients are on again."""
    autoencoder, prior = models(dropout=0.5)
    prior.train()
    calls: list[int] = []
    original = prior.sample

    def counted(*args: Any, **options: Any) -> Codes:
        calls.append(1)
        return original(*args, **options)

    prior.sample = counted  # type: ignore[method-assign]
    parts = draw_samples(autoencoder, prior, 6, [0] * 6, 0, Sampling(batch=2))
    assert calls == []
    part = next(parts)
    assert len(calls) == 1
    assert torch.is_grad_enabled()
    assert not part.images.requires_grad
    assert all(module.training for module in prior.modules())
