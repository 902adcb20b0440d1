"""`vqvae2 evaluate`: the content of the report, and that the same arguments give the same content."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from colours_network import Colours
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.commands.evaluate import evaluate
from vqvae2.commands.real_images import number_as_in
from vqvae2.commands.run_facts import collect
from vqvae2.data.images import open_images
from vqvae2.data.peek import Preview
from vqvae2.evaluate import checks, context, critic
from vqvae2.evaluate.context import RESERVED_NAMES
from vqvae2.evaluate.features import Features
from vqvae2.evaluate.glossary import FIGURES
from vqvae2.evaluate.options import EvaluateOptions
from vqvae2.evaluate.parts import classification, registry
from vqvae2.evaluate.parts.precision import precision_recall
from vqvae2.evaluate.parts.registry import PARTS
from vqvae2.evaluate.resnet import ClassifierConfig
from vqvae2.evaluate.sets import drawn_samples, folder_images
from vqvae2.files.atomic import read_json
from vqvae2.files.progress import Reporter
from vqvae2.run import load
from vqvae2.train.folder import read_run

Command = Callable[..., Any]
QUICK = ("--classifier-steps", 10)


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path, train_tiny: Callable[..., Path]
) -> Path:
    """A run with nine held-out pictures; not to be altered."""
    return train_tiny(tmp_path_factory.mktemp("assessed"), pictures, "data.holdout=0.4")


def report(folder: Path) -> dict[str, Any]:
    """report.json without what is a time."""
    found: dict[str, Any] = read_json(folder / "report.json")
    del found["seconds"]
    found["parts"].pop("speed", None)
    return found


def numbers(value: Any) -> Iterator[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield value


def keys(value: Any) -> Iterator[str]:
    """The name of every figure: keys of values that are no records."""
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, dict):
                yield from keys(item) if key != "classifier" else ()
            elif isinstance(item, list) and item and isinstance(item[0], dict):
                yield from keys({name: entry for row in item for name, entry in row.items()})
            else:
                yield key


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a whole run."""
    out = tmp_path_factory.mktemp("whole")
    options = EvaluateOptions(classifier=ClassifierConfig(steps=10))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "feature_network", lambda *_: Colours())
        evaluate(load(trained), str(read_run(trained)[0]["source"]), out, options, Reporter(quiet=True))
    return out


def test_the_whole_report(whole: Path, trained: Path) -> None:
    found = read_json(whole / "report.json")
    assert list(found["parts"]) == [part.name for part in PARTS if not part.on_request]
    assert all(np.isfinite(list(numbers(found["parts"]))))
    page = (whole / "report.html").read_text()
    assert page.count("<img") >= 5
    assert page.count("<svg") >= 5
    assert 'src="data:' in page
    assert "http" not in page.split("</style>")[1]
    assert all(f">{part.title}</a>" in page for part in PARTS if not part.on_request), "contents"
    assert 'class="verdict"' in page
    assert {*keys(found["parts"])} <= {*FIGURES}, "every figure is explained"
    starred = {"reconstructions against reconstructions", "samples against reconstructions"}
    for part in ("distances", "precision"):
        assert starred < set(found["parts"][part]["sets"]), part
    assert set(found["protocol"]["run"]["weights"]) == set(load(trained).digests())
    assert {
        each["name"] for each in found["protocol"]["sets"]
    } <= RESERVED_NAMES  # which no other folder may take


def test_the_same_inputs_give_the_same_report(
    whole: Path, trained: Path, tmp_path: Path, command: Command, network: Colours
) -> None:
    other = tmp_path / "other"
    assert command("evaluate", trained, "--out", other, *QUICK).code == 0
    assert report(other) == report(whole)


def test_features_and_samples_are_kept(
    whole: Path, trained: Path, command: Command, network: Colours, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, network.calls = report(whole), 0
    monkeypatch.setattr("vqvae2.run.draw_samples", lambda *_: iter(()))
    assert command("evaluate", trained, "--out", whole, *QUICK).code == 0
    assert network.calls == 0
    assert report(whole) == first


def test_stored_codes_give_the_figures_of_encoding(
    whole: Path,
    trained: Path,
    tmp_path: Path,
    command: Command,
    network: Colours,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the code store no set of real images is encoded; without it the figures are the same."""
    encoded: list[int] = []
    encode = VQVAE.encode

    def noted(self: VQVAE, images: Tensor) -> Any:
        encoded.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(VQVAE, "encode", noted)
    arguments = ("--only", "nll,reconstruction,codes,distances")
    assert command("evaluate", trained, "--out", tmp_path / "stored", *arguments).code == 0
    assert encoded == [1, 8]  # the reference image, and the images on the sheet of reconstructions
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    shutil.rmtree(run / "codes")
    assert command("evaluate", run, "--out", tmp_path / "encoded", *arguments).code == 0
    assert sum(encoded[2:]) > 2 * 24
    assert report(tmp_path / "encoded")["parts"] == report(tmp_path / "stored")["parts"]


def test_other_weights_than_torch_fidelitys_are_a_warning_of_the_report(
    trained: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "feature_network", lambda *_: Colours())
    (tmp_path / "weights.pth").write_bytes(b"others")
    arguments = ("--network", "inception", "--weights", tmp_path / "weights.pth", "--only", "distances")
    assert command("evaluate", trained, "--out", tmp_path / "out", *arguments).code == 0
    assert any("torch-fidelity" in line for line in read_json(tmp_path / "out" / "report.json")["warnings"])


def test_every_part_has_one_name_that_the_help_lists(command: Command) -> None:
    names = [part.name for part in PARTS]
    assert len({*names}) == len({part.title for part in PARTS}) == len(PARTS)
    words = command("evaluate", "--help").out.replace("│", " ").replace(",", " ").split()
    assert {*names} <= {*words}


def test_likelihood_is_the_runs_own(whole: Path, trained: Path) -> None:
    run, found = load(trained), read_json(whole / "report.json")["parts"]["nll"]
    for level in range(2):
        assert found["held out"]["nats_per_code"][level] == pytest.approx(
            run.figures(level)["heldout_nats"], abs=1e-4
        )
    bits = sum(
        per * grid[0] * grid[1]
        for per, grid in zip(found["held out"]["bits_per_code"], run.config.geometry.grids, strict=True)
    )
    assert found["held out"]["bits_per_image"] == pytest.approx(bits)


def test_reconstruction_is_the_runs_own(whole: Path, trained: Path) -> None:
    found = read_json(whole / "report.json")["parts"]["reconstruction"]["held out"]
    assert found["psnr_of_mean"] == pytest.approx(load(trained).figures()["heldout_psnr"], abs=1e-3)


def test_samples_have_the_classes_of_the_training_pictures(whole: Path, trained: Path) -> None:
    drawn = drawn_samples("samples", next((whole / "cache").glob("samples-*")))
    counts = torch.bincount(drawn.labels)
    assert counts.max() - counts.min() <= 1  # as the pictures have
    assert len(drawn) == sum(
        s["n"] for s in read_json(whole / "report.json")["protocol"]["sets"] if s["name"] == "training"
    )


def test_another_folder_that_holds_the_held_out_pictures_has_their_figures(
    trained: Path, pictures: Path, tmp_path: Path, command: Command, network: Colours
) -> None:
    held = list(read_json(trained / "data" / "index.json")["names"])
    images = open_images(str(pictures), load(trained).config.data, trained / "data", say=lambda _: None)
    for index in images.heldout:
        target = tmp_path / "copy" / held[index]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((pictures / held[index]).read_bytes())
    arguments = ("--only", "distances,precision,symmetry", "--against", f"again={tmp_path / 'copy'}")
    assert command("evaluate", trained, "--out", tmp_path / "out", *arguments).code == 0
    parts = report(tmp_path / "out")["parts"]
    for part in ("distances", "precision", "symmetry"):
        own, other = parts[part]["sets"]["held out"], parts[part]["sets"]["again"]
        for key in set(own) & set(other) - {
            "classes",
            "kernel",
            "kernel_deviation",
            "score",
            "score_deviation",
        }:
            assert other[key] == pytest.approx(own[key]), (part, key)


def test_any_folder_without_a_run(
    trained: Path, pictures: Path, tmp_path: Path, command: Command, network: Colours
) -> None:
    assert command("sample", trained, "--n", 6, "--out", tmp_path / "drawn").code == 0
    arguments = ("--samples", tmp_path / "drawn", "--data", pictures, "--out", tmp_path / "out", *QUICK)
    assert command("evaluate", *arguments).code == 0
    found = report(tmp_path / "out")
    parts = found["parts"]
    assert set(parts) == {"distances", "precision", "classification", "memorisation", "symmetry"}
    assert sum("neither mirrored nor shifted" in line for line in found["warnings"]) == 1
    assert [row["trained_on"] for row in parts["classification"]["rows"]] == ["training", "samples"]
    assert parts["classification"]["rows"][1]["n"] == 6


def test_arrays_of_images_without_a_run(
    trained: Path, pictures: Path, tmp_path: Path, command: Command, network: Colours
) -> None:
    """The size is that of the arrays and not of the sheet beside them; arrays of another size are refused."""
    drawn = tmp_path / "drawn"
    assert command("sample", trained, "--n", 6, "--out", drawn, "--pictures", "npz").code == 0
    arguments = ("--samples", drawn, "--data", pictures, "--out", tmp_path / "out", *QUICK)
    assert command("evaluate", *arguments).code == 0
    found = report(tmp_path / "out")
    assert set(found["parts"]) == {"distances", "precision", "classification", "memorisation", "symmetry"}
    side = min(load(trained, "cpu").config.data.shape)
    assert found["protocol"]["size"] == side
    said = command("evaluate", *arguments, "--size", 2 * side)
    assert said.code == 2
    assert f"images of {side}x{side} px with 3 channels, expected {2 * side}x{2 * side} px" in said.err


def test_too_few_images_are_refused_by_the_option_that_asks_for_them(
    pictures: Path, tmp_path: Path, command: Command
) -> None:
    arguments = ("--samples", pictures, "--data", pictures, "--out", tmp_path / "out", "--only", "symmetry")
    said = command("evaluate", *arguments, "--n", 3)
    assert said.code == 2
    assert "at least 6 images of each set, found 3 (--n)" in said.err


def test_without_a_run_a_size_that_no_run_has_is_one_line(
    pictures: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("evaluate", "--samples", pictures, "--data", pictures, "--out", tmp_path / "out")
    said = command(*arguments, "--size", 10_000)
    assert said.code == 2
    assert "data.size: expected an integer from 1 to 8192, or two as [height, width], found 10000" in said.err
    monkeypatch.setattr("vqvae2.commands.real_images.peek", lambda *_: Preview(24, 9000))
    assert "found 9000" in command(*arguments).err
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    (arrays / "sampling.json").write_text("{}")
    np.savez(
        arrays / "codes-00000000-00000002.npz", numbers=np.arange(3), images=np.zeros((3, 8, 8, 2), np.uint8)
    )
    said = command("evaluate", "--samples", arrays, *arguments[3:])
    assert (said.code, "expected 1, 3 or 4, found 2" in said.err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_the_classes_of_arrays_go_by_name(trained: Path, tmp_path: Path, command: Command) -> None:
    drawn = tmp_path / "drawn"
    assert command("sample", trained, "--n", 6, "--out", drawn, "--pictures", "npz").code == 0
    config = load(trained, "cpu").config.data
    own = folder_images("drawn", drawn, load(trained, "cpu").classes, config, tmp_path / "cache")
    turned = folder_images("drawn", drawn, load(trained, "cpu").classes[::-1], config, tmp_path / "cache")
    assert own.labels is not None
    assert turned.labels is not None
    assert turned.labels.tolist() == [2 - label for label in own.labels.tolist()]
    assert folder_images("drawn", drawn, ("disc",), config, tmp_path / "cache").labels is None
    listed = read_json(drawn / "samples.json")
    (drawn / "samples.json").write_text(json.dumps({**listed, "samples": listed["samples"][:4]}))
    cut = folder_images("drawn", drawn, load(trained, "cpu").classes, config, tmp_path / "cache")
    assert (cut.n, cut.labels) == (6, None), "two samples came after the list was written"


def test_other_images_have_the_classes_of_the_run() -> None:
    """By name: the run has others, too. With one that it does not know they have none."""
    classes = ("cat", "dog", "fox")
    images = SimpleNamespace(classes=("fox", "dog"), labels=np.array([0, 1, -1, 0]))
    assert number_as_in(classes, images) is None  # type: ignore[arg-type]
    assert (images.classes, images.labels.tolist()) == (classes, [2, 1, -1, 2])
    images = SimpleNamespace(classes=("fox", "yak"), labels=np.array([0, 1]))
    assert "does not know the class yak" in str(number_as_in(classes, images))  # type: ignore[arg-type]
    assert (images.classes, images.labels) == ((), None)


def test_priors_that_know_no_class(
    pictures: Path, settings: Sequence[str], tmp_path: Path, command: Command
) -> None:
    """Their samples have none, so no classifier can learn from them; the rest of the part is measured."""
    more = ("--set", "data.holdout=0.4", "--set", "prior.conditional=false")
    assert (
        command("train", pictures, "--run", tmp_path / "run", "--preset", "tiny", *settings, *more).code == 0
    )
    said = command(
        "evaluate", tmp_path / "run", "--only", "nll,classification", "--out", tmp_path / "out", *QUICK
    )
    assert said.code == 0, said.err
    rows = report(tmp_path / "out")["parts"]["classification"]["rows"]
    assert [row["trained_on"] for row in rows] == ["training", "reconstructions of training"]


def test_the_classifier_learns_from_as_many_pictures_as_are_asked_for(
    trained: Path, tmp_path: Path, command: Command
) -> None:
    """And no more samples are drawn for it. The report says how wide and deep it was."""
    arguments = ("--only", "classification", "--classifier-steps", 10, "--classifier-n", 8)
    arguments += ("--classifier-width", 9, "--classifier-blocks", 2)
    assert command("evaluate", trained, "--out", tmp_path / "out", *arguments).code == 0
    assert "neither mirrored" not in " ".join(report(tmp_path / "out")["warnings"])
    part = report(tmp_path / "out")["parts"]["classification"]
    assert (part["classifier"]["width"], part["classifier"]["blocks"]) == (9, 2)
    rows = part["rows"]
    assert {row["trained_on"] for row in rows} == {"training", "reconstructions of training", "samples"}
    assert {row["n"] for row in rows} == {8}
    drawn = drawn_samples("samples", next((tmp_path / "out" / "cache").glob("samples-*")))
    assert len(drawn) == 8


def test_the_classifier_learns_from_so_many_pictures_at_most(
    trained: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ImageNet, 1.28 million samples were drawn, and as many images held in memory; now a number that the report says."""
    monkeypatch.setattr(classification, "_LEARNT", 8)
    said = command(
        "evaluate", trained, "--out", tmp_path / "out", "--only", "classification", "--classifier-steps", 10
    )
    assert said.code == 0, said.err
    assert {row["n"] for row in report(tmp_path / "out")["parts"]["classification"]["rows"]} == {8}
    assert any("learned from 8 of the" in line for line in report(tmp_path / "out")["warnings"])
    drawn = drawn_samples("samples", next((tmp_path / "out" / "cache").glob("samples-*")))
    assert len(drawn) == 8


def test_what_is_measured_outlives_a_command_that_is_killed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of measuring were written at the very end only. An earlier report stays until the new one is whole."""
    measured = EvaluateOptions(only=("nll", "codes"))
    evaluate(load(trained), None, tmp_path, measured, Reporter(quiet=True))
    before = (tmp_path / "report.json").read_bytes()
    last = next(part for part in PARTS[::-1] if part.name in measured.only)
    (first,) = {*measured.only} - {last.name}

    def killed(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        parts = [replace(part, measure=killed) if part is last else part for part in PARTS]
        patch.setattr(registry, "PARTS", parts)
        with pytest.raises(KeyboardInterrupt):
            evaluate(load(trained), None, tmp_path, measured, Reporter(quiet=True))
    left = read_json(tmp_path / "unfinished.json")
    assert left["parts"] == {first: json.loads(before)["parts"][first]}
    assert (tmp_path / "report.json").read_bytes() == before
    evaluate(load(trained), None, tmp_path, measured, Reporter(quiet=True))
    assert not (tmp_path / "unfinished.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "expected a RUN, or --samples FOLDER"),
        (("RUN", "--samples", "folder", "--temperature", "0.5"), "the samples are those of --samples"),
        (("--data", "emoji64"), "expected --out"),
        (("RUN", "--only", "beauty"), "no part beauty"),
        (("RUN", "--against", "folder"), "expected NAME=DIR"),
        (("RUN", "--against", "samples=folder"), "a set named samples: another name"),
        (("RUN", "--against", "a=one", "--against", "a=two"), "a is given twice"),
        (("RUN", "--critic-sweep", "2"), "0 < share <= 1"),
        (("RUN", "--only", "critic"), "vqvae2 critic fit"),
        (("RUN", "--critic-sweep", "1,0.5"), "vqvae2 critic fit"),
        (("RUN", "--network", "alexnet", "--only", "distances"), "no feature network"),
        (("--data", "emoji64", "--out", "OUT"), "expected a RUN or --samples"),
    ],
)
def test_mistakes(
    arguments: tuple[str, ...], words: str, run: Path, tmp_path: Path, command: Command
) -> None:
    names = {"RUN": str(run), "OUT": str(tmp_path / "out")}
    said = command("evaluate", *(names.get(argument, argument) for argument in arguments))
    assert said.code == 2
    assert words in said.err
    assert not (run / "report" / "report.json").exists()


def test_a_half_trained_run_shows_what_it_can(
    half: Path, command: Command, network: Colours, tmp_path: Path
) -> None:
    said = command("evaluate", half, "--out", tmp_path / "out", *QUICK, "--json")
    assert said.code == 0
    parts = json.loads(said.out)["parts"]
    assert not {"nll", "speed", "memorisation"} & set(parts)
    own = {"held out", "reconstructions", "reconstructions against their originals"}
    assert set(parts["distances"]["sets"]) == own


def test_a_pair_of_its_own_is_compared_with_its_own_reference() -> None:
    """Not with that of the other sets: a set against itself is all inside, against one far away all outside."""
    near = Features(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), None, 0.0)
    far = Features(near.pooled + 100, None, 0.0)
    found = {
        **precision_recall(far, {"near": near}).figures["sets"],
        **precision_recall(near, {"itself": near}).figures["sets"],
    }
    assert (found["near"]["precision"], found["near"]["recall"]) == (0, 0)
    assert (found["itself"]["precision"], found["itself"]["recall"]) == (1, 1)


def test_the_critics_curves(
    trained: Path, tmp_path: Path, command: Command, network: Colours, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At rate 1 they begin with the samples; the class counts stay; the measuring network is never the critic's."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    small = ClassifierConfig(width=8, stages=1, steps=10, batch=8)
    monkeypatch.setattr(critic, "classifier_config", lambda n: small)
    assert command("critic", "fit", run, "--features", "resnet").code == 0
    wanted = ("--only", "distances,precision,critic", "--critic-sweep", "1,0.5,0.25")
    assert command("evaluate", run, "--out", tmp_path / "out", *wanted).code == 0
    parts = report(tmp_path / "out")["parts"]
    whole, half, quarter = parts["critic"]["rows"]
    samples = parts["distances"]["sets"]["samples"] | parts["precision"]["sets"]["samples"]
    for key in ("n", "frechet", "precision", "recall", "density", "coverage"):
        assert whole[key] == pytest.approx(samples[key])
    assert [row["candidates"] for row in (whole, half, quarter)] == [samples["n"] * k for k in (1, 2, 4)]
    assert whole["least_score"] <= half["least_score"] <= quarter["least_score"]
    few = [line.split(":")[0] for line in report(tmp_path / "out")["warnings"] if "are few for 12" in line]
    sets = ("held out; reconstructions; samples", "critic's 1; critic's 0.5; critic's 0.25")
    assert few == list(sets)  # once for all sets of a size
    network.digest = load(run).critic.backbone_digest
    said = command("evaluate", run, "--out", tmp_path / "refused", *wanted)
    assert said.code == 2
    assert "the critic's backbone is colours" in said.err


def test_a_report_on_other_samples_is_not_the_runs_own(
    trained: Path, tmp_path: Path, command: Command, network: Colours
) -> None:
    """What `explain` says of a run comes from a report on its own samples and images only."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    assert command("evaluate", run, "--only", "precision").code == 0
    assert "samples" in collect(load(run)).recall
    assert command("sample", run, "--n", 6, "--out", tmp_path / "drawn").code == 0
    assert command("evaluate", run, "--only", "precision", "--samples", tmp_path / "drawn").code == 0
    assert collect(load(run)).recall == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("parts", []),
        ("parts", {"precision": {"sets": {"samples": {"recall": "high"}}}}),
        ("parts", {"memorisation": {"pixels": 3}}),
        ("protocol", []),
        ("protocol", {"run": []}),
    ],
)
def test_a_damaged_report_is_as_none(
    trained: Path, tmp_path: Path, command: Command, network: Colours, key: str, value: Any
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    before = collect(load(run))
    assert command("evaluate", run, "--only", "precision").code == 0
    file = run / "report" / "report.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, key: value}))
    assert command("explain", run).code == 0
    assert collect(load(run)) == before


def test_other_pictures_do_not_take_the_place_of_the_runs_own(
    trained: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    other = Path(shutil.copytree(pictures / "disc", tmp_path / "other"))
    for picture in (pictures / "stripes").iterdir():
        shutil.copy(picture, other)
    before = {file.name: file.read_bytes() for file in (run / "data").iterdir()}
    out = tmp_path / "out"
    said = command("evaluate", run, "--data", other, "--out", out, "--only", "reconstruction")
    assert said.code == 0
    assert {file.name: file.read_bytes() for file in (run / "data").iterdir()} == before
    assert "are not the images that the run was trained on" in " ".join(report(out)["warnings"])
