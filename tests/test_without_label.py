"""A prior whose label_dropout is 0 never learned "no label": whatever needs it is refused, and everything else works."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from comparing import same_codes

from vqvae2.config.models import ConfigError, PriorConfig
from vqvae2.config.presets import preset, presets
from vqvae2.config.sampling import Sampling
from vqvae2.evaluate.checks import check_options
from vqvae2.evaluate.options import EvaluateOptions
from vqvae2.evaluate.parts import compression, likelihood, tuning
from vqvae2.evaluate.parts.tuning import Trial
from vqvae2.evaluate.sets import NamedImages
from vqvae2.generate.complete import fill
from vqvae2.prior.hierarchy import UNKNOWN, HierarchicalPrior
from vqvae2.run import Run, load
from vqvae2.train.folder import Claim, with_classes

sys.path.append(str(Path(__file__).parent / "prior"))

from prior_helpers import config, geometry, hierarchy, random_codes, refused

SETTING = r"prior\.levels\.1\.label_dropout is 0"


def lacking(*shares: float, classes: int = 2) -> HierarchicalPrior:
    """A prior of random weights with these label_dropouts; the weights depend on nothing else."""
    prior = hierarchy(classes=classes)
    levels = tuple(config(label_dropout=share) for share in shares)
    other = HierarchicalPrior(PriorConfig(levels=levels, classes=classes), geometry(((1, 2), (2, 4)), 3))
    other.load_state_dict(prior.state_dict())
    return other.double().eval()


@pytest.fixture
def without(run: Path) -> Path:
    """A trained run whose finer prior has label_dropout 0."""
    file = run / "config.yaml"
    value = yaml.safe_load(file.read_text())
    value["prior"]["levels"][1]["label_dropout"] = 0.0
    file.write_text(yaml.safe_dump(value))
    return run


# --- the priors ---


def test_any_level_that_lacks_it_is_enough() -> None:
    codes = random_codes(lacking(0.1, 0.1).geometry)
    for shares in ((0.0, 0.1), (0.1, 0.0), (0.0, 0.0)):
        prior, level = lacking(*shares), shares.index(0.0)
        setting = rf"prior\.levels\.{level}\.label_dropout is 0"
        for labels in (None, torch.tensor([0, 1, 2])):  # 2 is "no label"
            refused(lambda p=prior, own=labels: p.log_prob(codes, own), setting, ConfigError)
            refused(lambda p=prior, own=labels: p.sample(3, own), setting, ConfigError)
            refused(lambda p=prior, own=labels, i=level: p.logits(codes, i, own), setting, ConfigError)
        refused(lambda p=prior: p.sample(3, torch.tensor([0, 1, 0]), guidance=2.0), setting, ConfigError)


def test_with_labels_nothing_changes() -> None:
    labels, ours, other = torch.tensor([0, 1, 1]), lacking(0.0, 0.0), lacking(0.1, 0.1)
    codes = random_codes(ours.geometry)
    assert torch.equal(ours.log_prob(codes, labels), other.log_prob(codes, labels))
    assert same_codes(ours.sample(3, labels, top_p=0.9), other.sample(3, labels, top_p=0.9))
    known = random_codes(ours.geometry, 1)
    known.levels[1][0, 0] = UNKNOWN
    how = Sampling()
    assert same_codes(*(fill(prior, known, range(3), labels, 5, how, 2)[0] for prior in (ours, other)))


def test_guidance_counts_where_a_level_is_guided() -> None:
    labels = torch.tensor([0, 1, 1])
    assert same_codes(
        lacking(0.0, 0.1).sample(3, labels, guidance=(1.0, 2.0)),
        lacking(0.1, 0.1).sample(3, labels, guidance=(1.0, 2.0)),
    )
    refused(
        lambda: lacking(0.0, 0.1).sample(3, labels, guidance=(2.0, 1.0)), "prior.levels.0.label_dropout is 0"
    )


def test_a_completion_asks_no_label_of_the_guided_levels_only() -> None:
    labels, how = torch.tensor([0, 1, 1]), Sampling(guidance=(1.0, 2.0))
    known = random_codes(lacking(0.1, 0.1).geometry, 1)
    for level in known.levels:
        level[0, 0] = UNKNOWN
    ours, other = (
        fill(lacking(share, 0.1), known, range(3), labels, 5, how, passes=2)[0] for share in (0.0, 0.1)
    )
    assert same_codes(ours, other)


def test_without_classes_there_is_nothing_to_hide() -> None:
    prior = lacking(0.0, 0.0, classes=0)
    codes = random_codes(prior.geometry)
    assert bool(prior.log_prob(codes).isfinite().all())
    assert len(prior.sample(2, guidance=3.0)) == 2


def test_every_preset_learns_it() -> None:
    for name in presets():
        learned = preset(name).prior.model_copy(update={"classes": 10})
        assert learned.lacks_unlabelled() is None, name


# --- the commands ---


def test_commands_without_a_label_are_refused(
    command: Callable[..., Any], without: Path, pictures: Path, tmp_path: Path
) -> None:
    image, out = sorted(pictures.rglob("*.png"))[0], tmp_path / "out"
    uses: list[tuple[Any, ...]] = [
        ("score", without, image),
        ("score", without, image, "--bits-map", out / "maps"),
        ("complete", without, image, "--keep-levels", 1, "--out", out / "completed"),
        ("compress", without, image, "--out", out / "compressed"),
    ]
    for use in uses:
        said = command(*use)
        assert (said.code, said.err.count("\n")) == (2, 1), said.err
        assert "prior.levels.1.label_dropout is 0" in said.err
        assert "--label" in said.err
        assert not out.exists()
    for use in uses:
        assert command(*use, "--label", "disc").code == 0, use
    assert command("compress", without, image, "--mode", "packed", "--out", out / "packed").code == 0


def test_guidance_is_refused_and_drawing_is_not(
    command: Callable[..., Any], without: Path, tmp_path: Path
) -> None:
    out = ("--n", 2, "--out", tmp_path / "out")
    said = command("sample", without, *out, "--guidance", 2)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "prior.levels.1.label_dropout is 0" in said.err
    assert not (tmp_path / "out").exists()
    assert (
        command("sample", without, *out, "--guidance", 2, "--guidance", 1).code == 0
    )  # of the level that learned it
    assert command("sample", without, "--n", 2, "--out", tmp_path / "other").code == 0


def test_a_training_is_refused_whose_samples_would_be_guided(trained: Path, pictures: Path) -> None:
    """Before hours of training, not after them."""
    run = load(trained, "cpu")
    level = run.config.prior.levels[0].model_copy(update={"label_dropout": 0.0})
    plan = run.config.prior.model_copy(update={"levels": (level, level)})
    asked = run.config.model_copy(update={"prior": plan, "sampling": Sampling(guidance=3.0)})
    images: Any = SimpleNamespace(
        classes=run.classes,
        fingerprint=run.record["fingerprint"],
        class_counts=run.class_counts,
        **{part: range(n) for part, n in zip(("train", "heldout"), run.record["images"], strict=True)},
    )
    claimed = Claim(run.record, asked)
    accelerator: Any = SimpleNamespace(is_main_process=False, wait_for_everyone=lambda: None)
    refused(
        lambda: with_classes(trained, str(pictures), claimed, images, accelerator),
        "label_dropout is 0",
        ConfigError,
    )
    plain = replace(claimed, config=asked.model_copy(update={"sampling": Sampling()}))
    assert with_classes(trained, str(pictures), plain, images, accelerator).prior.classes == 3


def test_a_finished_run_takes_no_guidance_that_it_cannot_use(
    command: Callable[..., Any], without: Path, pictures: Path
) -> None:
    before = (without / "config.yaml").read_bytes()
    said = command("train", pictures, "--run", without, "--set", "sampling.guidance=2")
    assert (said.code, said.err.count("label_dropout is 0")) == (2, 1), said.err
    assert (without / "config.yaml").read_bytes() == before
    assert command("train", pictures, "--run", without, "--set", "sampling.guidance=2,1").code == 0


@pytest.fixture
def guided(without: Path) -> Path:
    """Such a run as former versions left it: its own settings have guidance that it cannot use."""
    file = without / "config.yaml"
    value = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(value | {"sampling": value["sampling"] | {"guidance": 2.0}}))
    return without


def test_an_evaluation_that_draws_is_refused_before_anything_is_read(
    command: Callable[..., Any], guided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "vqvae2.commands.real_images.open_real", lambda *_, **__: pytest.fail("images were read")
    )
    said = command("evaluate", guided, "--out", tmp_path / "report")
    assert (said.code, said.err.count("\n")) == (2, 1), said.err
    assert "label_dropout is 0" in said.err
    run = load(guided, "cpu")
    for options in (
        EvaluateOptions(only=("nll", "codes")),
        EvaluateOptions(only=("tuning",)),
        EvaluateOptions(sampling=Sampling()),
    ):
        check_options(run, options)


def test_tuning_leaves_out_settings_that_cannot_be_drawn(
    guided: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load(guided, "cpu")
    half = NamedImages("half", "key", 30, None, lambda _: iter(()))
    monkeypatch.setattr(tuning, "_half", lambda *_: half)
    drawn: list[Sampling] = []

    def own_samples(run: Run, n: int, images: Any, options: EvaluateOptions, *_: Any) -> NamedImages:
        assert options.sampling is not None
        run.config.prior.check_guidance(options.sampling)
        drawn.append(options.sampling)
        return half

    monkeypatch.setattr(tuning, "own_samples", own_samples)
    monkeypatch.setattr(tuning, "compare", lambda sampling, *_: Trial(sampling, 0.0, 1.0, 1.0))
    context: Any = SimpleNamespace(
        run=run,
        options=EvaluateOptions(),
        images=None,
        cache=None,
        reporter=None,
        device="cpu",
        features=lambda images: None,
        forget=lambda images: None,
        encoder=SimpleNamespace(reconstructed=lambda name, images: images),
    )
    result = tuning.measure(context)
    assert len(drawn) > 2
    assert "other half: chosen" in result.figures
    assert "other half: the run's settings" not in result.figures
    assert "label_dropout is 0" in result.warnings[0]


def test_files_that_former_versions_wrote_are_read(
    run: Path, command: Callable[..., Any], pictures: Path, tmp_path: Path
) -> None:
    """Their codes are right whatever "no label" means, as long as it means the same."""
    image = sorted(pictures.rglob("*.png"))[0]
    assert command("compress", run, image, "--out", tmp_path).code == 0
    expected = load(run, "cpu").decompress(next(tmp_path.glob("*.vq")).read_bytes())
    value = yaml.safe_load((run / "config.yaml").read_text())
    value["prior"]["levels"][0]["label_dropout"] = 0.0
    (run / "config.yaml").write_text(yaml.safe_dump(value))
    changed = load(run, "cpu")
    data = next(tmp_path.glob("*.vq")).read_bytes()
    assert torch.equal(changed.decompress(data), expected)
    refused(lambda: changed.compress(expected), "label_dropout is 0", ConfigError)


def test_a_file_whose_levels_cannot_be_drawn_is_skipped(
    run: Path, command: Callable[..., Any], pictures: Path, tmp_path: Path
) -> None:
    """One that is cut off and has no label, of a former version: among others it is counted, alone it is an error."""
    files, out, alone = tmp_path / "files", tmp_path / "out", tmp_path / "alone"
    images = sorted(pictures.rglob("*.png"))[:3]
    assert command("compress", run, *images, "--out", files).code == 0
    assert command("compress", run, images[1], "--label", "disc", "--out", files).code == 0
    cut, labelled, _ = (files / f"{image.stem}.vq" for image in images)
    codec = load(run, "cpu").codec
    for file in (cut, labelled):
        data = file.read_bytes()
        file.write_bytes(data[: codec.prefixes(data)[0]])
    value = yaml.safe_load((run / "config.yaml").read_text())
    value["prior"]["levels"][1]["label_dropout"] = 0.0
    (run / "config.yaml").write_text(yaml.safe_dump(value))

    said = command("decompress", run, files, "--fill", "--out", out)
    assert said.code == 0, said.err
    assert "skipped 1 file that cannot be used:\n" in said.err
    assert f"  {cut}: prior.levels.1.label_dropout is 0" in said.err
    assert sorted(file.stem for file in out.glob("*.png")) == [image.stem for image in images[1:]]
    said = command("decompress", run, cut, "--fill", "--out", alone)
    assert (said.code, said.err.count("\n"), alone.exists()) == (2, 1, False), said.err
    assert command("decompress", run, cut, "--out", alone).code == 0


def test_an_evaluation_leaves_out_what_needs_it(without: Path, run: Path) -> None:
    labelled, unlabelled = SimpleNamespace(labels=[0]), SimpleNamespace(labels=None)

    def context(heldout: Any, compress: Path | None = None) -> Any:
        """Of training images with classes; a split that is measured in place of the held-out images may have none."""
        options = SimpleNamespace(compress=compress)
        return SimpleNamespace(run=load(without, "cpu"), images=labelled, heldout=heldout, options=options)

    for part in (likelihood.PART, compression.PART):
        assert part.hindered is not None
        assert part.hindered(context(labelled)) is None
        assert "label_dropout is 0" in str(part.hindered(context(unlabelled)))
    assert compression.PART.hindered is not None
    assert "label_dropout is 0" in str(compression.PART.hindered(context(labelled, Path("elsewhere"))))


def test_the_page_shows_no_bits_and_packs_and_says_why(without: Path, pictures: Path) -> None:
    pytest.importorskip("starlette")
    from vqvae2.web.jobs import Jobs
    from vqvae2.web.requests import Request, Vary
    from vqvae2.web.studio import Studio

    run, jobs = load(without, "cpu"), Jobs()
    studio = Studio(run, lambda data: run.load_images([data])[0], jobs)
    found = studio.upload(sorted(pictures.rglob("*.png"))[0].read_bytes())
    assert "prior.levels.1.label_dropout is 0" in found["note"]
    assert not any("bits" in level for level in found["levels"])
    refused(lambda: studio.vary(Vary(image=found["id"], level=1, n=1)), SETTING, ConfigError)
    assert "a compressed file is packed" in found["note"]
    data = studio.compress(found["id"])
    assert run.codec.decompress([data])[0].mode == "packed"
    assert studio.decompress(data)["bytes"] == len(data)
    refused(lambda: studio.sample(Request(n=1, guidance=2.0)), SETTING, ConfigError)
    jobs.close()
