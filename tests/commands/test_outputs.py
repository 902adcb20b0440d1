"""What a command writes names what it is of; nothing is replaced, ignored or found out late without a word."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from PIL import Image

from vqvae2.commands import evaluate
from vqvae2.files import tensor_file
from vqvae2.files.process import Process
from vqvae2.files.run_folder import RunFolder
from vqvae2.run import load

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def picture(pictures: Path) -> Path:
    """One of the training pictures."""
    return sorted(pictures.rglob("*.png"))[0]


@pytest.fixture(scope="module")
def classless(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path, train_tiny: Callable[..., Path]
) -> Path:
    """A run without classes; not to be altered."""
    return train_tiny(tmp_path_factory.mktemp("classless"), pictures, "prior.conditional=false")


# --- folders of results ---


def test_completions_of_another_request_are_refused(
    trained: Path, picture: Path, tmp_path: Path, command: Command
) -> None:
    """The same request replaces its own results, fewer completions leave no old ones behind."""
    out = tmp_path / "out"
    arguments = ("complete", trained, picture, "--out", out, "--keep-levels", 1)
    assert command(*arguments, "--n", 4).code == 0
    first = (out / "000.png").read_bytes()
    said = command(*arguments, "--n", 4, "--seed", 1)
    assert said.code == 2
    assert "completions of another request (it differs in seed)" in said.err
    assert (out / "000.png").read_bytes() == first
    said = command(*arguments, "--n", 2)
    assert said.code == 0
    assert "the 4 completions that it holds are of the same request and replaced" in said.err
    assert sorted(path.name for path in out.glob("0*.png")) == ["000.png", "001.png"]
    assert (out / "000.png").read_bytes() == first
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(picture, other / "001.png")
    said = command("complete", trained, picture, "--out", other, "--keep-levels", 1, "--n", 2)
    assert said.code == 2
    assert "001.png exists" in said.err


def test_a_rerun_removes_only_completions_of_its_own(
    trained: Path, picture: Path, tmp_path: Path, command: Command
) -> None:
    """An image and a mask in OUT whose names are numbers, and an image with the name of a further completion."""
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(picture, out / "5.png")
    Image.new("L", (16, 16), 255).save(out / "1.png")
    Image.new("RGB", (8, 8)).save(out / "003.png")
    before = {name: (out / name).read_bytes() for name in ("1.png", "5.png", "003.png")}
    arguments = ("complete", trained, out / "5.png", "--mask", out / "1.png", "--out", out)
    for _ in range(2):
        assert command(*arguments, "--n", 2).code == 0
        assert {name: (out / name).read_bytes() for name in before} == before
    held = {file.name: file.read_bytes() for file in out.iterdir()}
    said = command(*arguments, "--n", 4)
    assert said.code == 2
    assert f"{out / '003.png'} exists, and would be overwritten" in said.err
    assert {file.name: file.read_bytes() for file in out.iterdir()} == held
    (out / "003.png").unlink()
    assert command(*arguments, "--n", 4).code == 0, "more of the same"
    assert command(*arguments, "--n", 1).code == 0
    assert sorted(file.name for file in out.glob("*.png")) == ["000.png", "1.png", "5.png", "sheet.png"]


def test_a_mistake_removes_no_completions(
    trained: Path, picture: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    arguments = ("complete", trained, picture, "--out", out, "--keep-levels", 1)
    assert command(*arguments, "--n", 2).code == 0
    assert command(*arguments, "--n", 2, "--label", "nothing of this name").code == 2
    assert len([*out.glob("0*.png")]) == 2


def test_a_wrong_number_of_values_claims_no_folder(
    trained: Path, picture: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    said = command(
        *("complete", trained, picture, "--out", out, "--keep-levels", 1, "--n", 1),
        *("--temperature", 1, "--temperature", 1, "--temperature", 0.9),
    )
    assert said.code == 2
    assert "one for each of 2 levels, found 3" in said.err
    assert not (out / "completions.json").exists()


def test_reconstructions_by_another_model_are_refused(
    trained: Path, classless: Path, picture: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    assert command("reconstruct", trained, picture, "--out", out).code == 0
    assert command("reconstruct", trained, picture.parent, "--out", out).code == 0, "more of the same kind"
    said = command("reconstruct", classless, picture, "--out", out)
    assert said.code == 2
    assert "reconstructions of another model or decoder" in said.err


def test_a_compressed_image_is_replaced_by_none_of_another(
    trained: Path, picture: Path, tmp_path: Path, command: Command
) -> None:
    """Of another image with its name, or of another model; the same command again replaces its own."""
    out, days = tmp_path / "archive", (tmp_path / "day 1", tmp_path / "day 2")
    for day, colour in zip(days, ("red", "blue"), strict=True):
        day.mkdir()
        Image.new("RGB", (16, 16), colour).save(day / "a.png")
        Image.new("RGB", (16, 16), colour).save(day / f"of {day.name}.png")

    def refused(*arguments: object, because: str) -> None:
        before = {file.name: file.read_bytes() for file in out.iterdir()}
        said = command("compress", *arguments, "--out", out)
        assert (said.code, said.err.count("\n")) == (2, 1)
        assert because in said.err
        assert {file.name: file.read_bytes() for file in out.iterdir()} == before

    assert command("compress", trained, days[0], "--out", out).code == 0
    refused(trained, days[1], because=f"{out / 'a.vq'} is of another origin (image: ")
    assert command("compress", trained, days[0], "--out", out, "--mode", "packed").code == 0
    assert command("compress", trained, days[1] / "of day 2.png", "--out", out).code == 0
    (out / "a.vq").rename(out / f"{picture.stem}.vq")
    refused(trained, picture, because=f"{out / picture.stem}.vq exists, and would be overwritten")
    record = out / "compressed.json"
    record.write_text(record.read_text().replace(load(trained, "cpu").codes_digest, "of another model"))
    refused(
        trained, days[0], because=f"{out / 'of day 1.vq'} is of another origin (model: of another model ->"
    )
    record.write_text('{"mine": 1}')
    refused(trained, days[0], because="compressed.json exists, and is no record of this command")


def test_a_compressed_image_is_replaced_by_none_that_took_its_path(
    trained: Path, tmp_path: Path, command: Command
) -> None:
    """As on a camera's card that was emptied; the same image may be compressed again in another way."""
    image, out = tmp_path / "IMG_0001.png", tmp_path / "archive"
    Image.new("RGB", (20, 20), "red").save(image)
    arguments = ("compress", trained, image, "--out", out)
    for more in ((), (), ("--resize",), ("--mode", "packed")):
        assert command(*arguments, *more).code == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    Image.new("RGB", (20, 20), "blue").save(image)
    said = command(*arguments)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert f"{out / 'IMG_0001.vq'} is of another origin (content: " in said.err
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_compressed_files_have_one_writer_at_a_time(
    trained: Path, picture: Path, tmp_path: Path, command: Command
) -> None:
    """Two calls that read and then write the record would lose what the other one lists."""
    files, images = tmp_path / "files", tmp_path / "images"
    calls = (
        (files, ("compress", trained, picture, "--out", files)),
        (images, ("decompress", trained, files, "--out", images)),
    )
    started = psutil.Process(os.getppid()).create_time()
    living = replace(Process.own(), pid=os.getppid(), started=started)
    for out, call in calls:
        out.mkdir()
        (out / ".lock").write_text(json.dumps(living.to_json()))
        said = command(*call)
        assert (said.code, said.err.count("\n")) == (2, 1)
        assert f"{out} is in use by process {living.pid}" in said.err
        assert [file.name for file in out.iterdir()] == [".lock"]
        (out / ".lock").unlink()
        for _ in range(2):
            assert command(*call).code == 0
        assert not (out / ".lock").exists()


def test_without_priors_it_is_said_what_can_be_done(
    half: Path, picture: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    said = command("compress", half, picture, "--out", out)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "the priors are not trained yet" in said.err
    assert "--mode packed" in said.err
    assert not out.exists() or not list(out.iterdir())
    assert command("compress", half, picture, "--out", out, "--mode", "packed").code == 0


def test_the_images_of_one_file_have_its_content(trained: Path, tmp_path: Path) -> None:
    from vqvae2.commands.compress import _origins

    volume = tmp_path / "scan.nii.gz"
    volume.write_bytes(b"one")
    frames = [tmp_path / f"scan.nii.gz#{number}" for number in range(2)]
    loaded = load(trained, "cpu")
    first, second = _origins(loaded, frames)
    assert (first["content"], first["image"] == second["image"]) == (second["content"], False)
    volume.write_bytes(b"two")
    assert _origins(loaded, frames)[0]["content"] != first["content"]


def test_images_of_others_are_not_overwritten(
    trained: Path, pictures: Path, picture: Path, tmp_path: Path, command: Command
) -> None:
    """A folder that has no record of ours may hold the only copy of an image, or samples of another seed."""

    def refused(verb: str, taken: Path, *arguments: object) -> None:
        before = taken.read_bytes()
        said = command(verb, trained, *arguments, "--out", taken.parent)
        assert (said.code, len(said.err.splitlines())) == (2, 1)
        assert f"{taken} exists, and would be overwritten; choose another --out" in said.err
        assert taken.read_bytes() == before
        assert len(list(taken.parent.iterdir())) == 1

    for number, name in enumerate(("00000.png", "00001.tif", "grid.png", "samples.json", "codes-0-1.npz")):
        taken = tmp_path / str(number) / name
        taken.parent.mkdir()
        shutil.copy(picture, taken)
        refused("sample", taken, "--n", 1)
    other = tmp_path / "other" / picture.name
    other.parent.mkdir()
    other.write_bytes(b"another image")
    refused("reconstruct", other, picture)
    codes = tmp_path / "codes.npz"
    assert command("encode", trained, picture.parent, "--out", codes).code == 0
    refused("decode", other, codes)
    out = tmp_path / "out"
    assert command("sample", trained, "--out", out, "--n", 1).code == 0
    (out / "sampling.json").unlink()
    said = command("sample", trained, "--out", out, "--n", 1, "--seed", 99)
    assert said.code == 2
    assert "exists, and would be overwritten" in said.err


def test_a_file_of_others_is_not_replaced_by_a_result(
    trained: Path, pictures: Path, picture: Path, tmp_path: Path, command: Command
) -> None:
    """Where a command writes a single file or a list; the same command again replaces its own."""

    def refused(taken: Path, *arguments: object, because: str = "exists, and would be overwritten") -> None:
        before = taken.read_bytes()
        said = command(arguments[0], trained, *arguments[1:])
        assert (said.code, len(said.err.splitlines())) == (2, 1)
        assert f"{taken} {because}" in said.err
        assert taken.read_bytes() == before

    image, mine = tmp_path / "image.png", tmp_path / "mine.json"
    shutil.copy(picture, image)
    for content in ("[1]", '{"label": 1}', "{"):
        mine.write_text(content)
        refused(mine, "score", picture, "--out", mine)
    refused(image, "score", picture, "--out", image)
    result = tmp_path / "result.json"
    for _ in range(2):
        assert command("score", trained, picture, "--out", result).code == 0
    maps = tmp_path / "maps"
    maps.mkdir()
    first = maps / f"{picture.stem}-bits-0.png"
    shutil.copy(picture, first)
    refused(first, "score", picture, "--bits-map", maps)
    first.unlink()
    for _ in range(2):
        assert command("score", trained, picture, "--bits-map", maps).code == 0
    for name, content in (("report.json", "{}"), ("report.html", "mine"), ("unfinished.json", "[]")):
        page = tmp_path / name.replace(".", "-") / name
        page.parent.mkdir()
        page.write_text(content)
        refused(page, "evaluate", "--only", "codes", "--out", page.parent)
    for name in ("codes.parquet", "codes.npz", "codes.safetensors"):
        (tmp_path / name).write_bytes(b"mine")
        before = (tmp_path / name).read_bytes()
        assert command("encode", trained, pictures, "--out", tmp_path / name).code == 2
        assert (tmp_path / name).read_bytes() == before
    files, images = tmp_path / "files", tmp_path / "images"
    assert command("compress", trained, picture, "--out", files).code == 0
    images.mkdir()
    (images / "decompressed.json").write_text('{"mine": 1}')
    because = "exists, and is no record of this command"
    refused(images / "decompressed.json", "decompress", files, "--out", images, because=because)


def test_results_are_not_written_among_the_images_of_the_run(
    run: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    """They would be training images the next time, and the run's images no longer those that it was trained on."""
    own = shutil.copytree(pictures, tmp_path / "own")
    settings = (run / "config.yaml").read_text()
    seen_from_run = f"source_from_run: {os.path.relpath(own, run)}"
    settings = re.sub(r"source_from_run: .*", seen_from_run, settings.replace(str(pictures), str(own)))
    (run / "config.yaml").write_text(settings)
    link = tmp_path / "link"
    link.symlink_to(own)
    image = sorted(own.rglob("*.png"))[0]
    codes, files = tmp_path / "codes.npz", tmp_path / "files"
    assert command("encode", run, own, "--out", codes).code == 0
    assert command("compress", run, image, "--out", files).code == 0
    before = sorted(own.rglob("*"))
    for verb, arguments, option in (
        ("sample", ("--n", 1), "--out"),
        ("reconstruct", (image,), "--out"),
        ("score", (image,), "--bits-map"),
        ("complete", (image, "--keep-levels", 1, "--n", 1), "--out"),
        ("decode", (codes,), "--out"),
        ("decompress", (files,), "--out"),
        ("evaluate", ("--only", "codes"), "--out"),
    ):
        for out in (own, image.parent / "new", link / "new"):
            said = command(verb, run, *arguments, option, out)
            assert (said.code, said.err.count("\n")) == (2, 1), verb
            assert f"{out} is in {own}, whose images {run} was trained on" in said.err
            assert sorted(own.rglob("*")) == before, verb
    assert command("sample", run, "--n", 1, "--out", own / ".hidden").code == 0, "it is no data"
    inside = shutil.copytree(run, own / "run")
    assert command("sample", inside, "--n", 1, "--out", inside / "out").code == 0, "nor is the run"
    assert command("encode", run, own, "--out", own / "codes.parquet").code == 2
    assert command("encode", run, own, "--out", own / "codes.npz").code == 0, "it is no image"
    moved = shutil.copytree(run, tmp_path / "moved" / "run")
    assert command("sample", moved, "--n", 1, "--out", own / "of-moved").code == 0, (
        "who knows what is there now"
    )


def test_a_name_that_is_no_utf8_blocks_no_other(
    trained: Path, picture: Path, tmp_path: Path, command: Command
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    name = os.fsdecode(b"bad\xff.png")
    try:
        shutil.copy(picture, folder / name)
    except (OSError, ValueError):
        pytest.skip("this file system takes no such name")
    shutil.copy(picture, folder / "good.png")
    out, maps = tmp_path / "out", tmp_path / "maps"
    said = command("reconstruct", trained, folder, "--out", out)
    assert (said.code, len(said.out.splitlines())) == (0, 2)
    assert (out / name).read_bytes() == (out / "good.png").read_bytes()
    said = command("score", trained, folder, "--bits-map", maps, "--out", tmp_path / "scores.json")
    assert (said.code, len(said.out.splitlines())) == (0, 2)
    assert len([*maps.glob("*.png")]) == 4


def test_samples_of_bfloat16_weights_are_not_mixed_with_others(
    trained: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    assert command("sample", trained, "--out", out, "--n", 1, "--dtype", "bfloat16").code == 0
    assert json.loads((out / "sampling.json").read_text())["dtype"] == "bfloat16"
    said = command("sample", trained, "--out", out, "--n", 2)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "dtype" in said.err


def test_evaluation_says_that_it_replaces_a_report(trained: Path, tmp_path: Path, command: Command) -> None:
    arguments = ("evaluate", trained, "--out", tmp_path / "out", "--only", "codes")
    assert "will be replaced" not in command(*arguments).err
    assert "will be replaced" in command(*arguments).err


def test_training_and_evaluation_have_pages_of_their_own(run: Path, tmp_path: Path, command: Command) -> None:
    page, figures = (run / "report" / f"training.{kind}" for kind in ("html", "json"))
    before = page.read_bytes(), figures.read_bytes()
    assert command("evaluate", run, "--only", "codes").code == 0
    assert (page.read_bytes(), figures.read_bytes()) == before
    assert (run / "report" / "report.html").exists()


# --- ignored without a word ---


def test_guidance_that_would_be_ignored_is_refused(
    trained: Path, classless: Path, picture: Path, tmp_path: Path, command: Command
) -> None:
    out = ("--out", tmp_path / "out", "--guidance", 2)
    for arguments in (
        ("sample", classless, "--n", 2),
        ("complete", classless, picture, "--keep-levels", 1),
        ("evaluate", classless, "--only", "codes"),
    ):
        said = command(*arguments, *out)
        assert said.code == 2
        assert "has no classes, so --guidance has no effect" in said.err
    said = command("complete", trained, picture, "--keep-levels", 1, *out)
    assert said.code == 2
    assert "--guidance needs --label" in said.err
    assert not (tmp_path / "out").exists()


def test_options_that_would_be_ignored_are_refused(
    trained: Path, picture: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    folder = ("evaluate", "--samples", pictures, "--data", pictures, "--out", tmp_path / "out")
    drawing = (("--temperature", 0.5), ("--top-k", 3), ("--top-p", 0.5), ("--guidance", 2))
    given = (*drawing, ("--samples", pictures))
    for arguments, part in (
        (
            (*folder, "--temperature", 1, "--decoder", "sharp"),
            "so --temperature and --decoder have no effect; leave them",
        ),
        ((*folder, "--top-k", 0), "without a RUN nothing is drawn, so --top-k has no effect"),
        (("evaluate", trained, "--size", 32, "--out", tmp_path / "out"), "so --size has no effect"),
        *(
            ((*tuning, option, value), f"tuning draws with settings that it tries, so {option} has no effect")
            for option, value in given
            for tuning in (
                ("evaluate", trained, "--tune-sampling", "--out", tmp_path / "out"),
                ("evaluate", trained, "--only", "tuning", "--out", tmp_path / "out"),
            )
        ),
        (("inspect", trained, "--watch", "--json"), "--watch shows curves, so --json has no effect"),
        (
            ("compress", trained, picture, "--mode", "packed", "--label", "disc", "--out", tmp_path / "out"),
            "so --label has no effect",
        ),
        (
            ("decompress", trained, picture, "--seed", 3, "--out", tmp_path / "out"),
            "nothing is drawn without --fill, so --seed has no effect",
        ),
    ):
        said = command(*arguments)
        assert said.code == 2
        assert part in said.err
    assert not (tmp_path / "out").exists()


def test_tuning_beside_a_part_that_draws_takes_settings_of_drawing(
    trained: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The samples of the critic are drawn with them, though tuning tries its own."""
    asked: list[Any] = []
    monkeypatch.setattr(evaluate, "evaluate", lambda run, data, out, options, *_: asked.append(options))
    arguments = ("evaluate", trained, "--tune-sampling", "--temperature", 0.9, "--out", tmp_path / "out")
    assert command(*arguments).code == 2
    assert command(*arguments, "--critic-sweep", "1,0.5").code == 0
    (options,) = asked
    assert (options.critic_fractions, options.sampling.temperature) == ((1, 0.5), 0.9)


@pytest.mark.parametrize("colour", [(0, 0, 0, 255), (255, 255, 255, 0)])
def test_a_mask_without_white_is_refused(
    colour: tuple[int, ...], trained: Path, picture: Path, tmp_path: Path, command: Command
) -> None:
    """All black, or white and fully transparent."""
    mask = tmp_path / "mask.png"
    Image.new("RGBA", (16, 16), colour).save(mask)
    said = command("complete", trained, picture, "--out", tmp_path / "out", "--mask", mask)
    assert said.code == 2
    assert "mask.png has no white pixel" in said.err
    assert not (tmp_path / "out").exists()


# --- silence ---


def test_what_a_training_says(pictures: Path, settings: list[str], tmp_path: Path, command: Command) -> None:
    """How often images are encoded, where the report is, and what can be done next; nothing of it when all was done."""
    arguments = ("train", pictures, "--run", tmp_path / "run", "--preset", "tiny", *settings)
    said = command(*arguments, "--set", "train_prior.*.copies=2").err
    assert "is encoded 2 times, once as it is and 1 times augmented" in said
    assert f"report: {tmp_path / 'run' / 'report' / 'training.html'}" in said
    assert "next: `vqvae2 sample" in said
    page = (tmp_path / "run" / "report" / "training.html").read_text(encoding="utf-8")
    assert 'class="verdict"' in page
    assert page.count("<svg") == 3
    assert page.count("<img alt=") >= 3
    again = command(*arguments, "--set", "train_prior.*.copies=2").err
    assert "report:" not in again


def test_the_report_of_a_run_with_an_imported_autoencoder(
    half: Path, pictures: Path, command: Command
) -> None:
    """An import leaves neither figures nor a curve; the priors have theirs."""
    stage = RunFolder(half).autoencoder
    tensors, about = tensor_file.load_tensors(stage.model)
    tensor_file.save_tensors(stage.model, tensors, {**about, "figures": {}})
    stage.metrics.unlink()
    shutil.rmtree(stage.pictures)
    said = command("train", pictures, "--run", half)
    assert said.code == 0
    assert "report: " in said.err
    assert "next: `vqvae2 sample" in said.err
    page = (half / "report" / "training.html").read_text(encoding="utf-8")
    assert "held-out bits per code" in page
    assert "PSNR" not in page
    assert page.count("<svg") == 2


def test_explain(trained: Path, command: Command) -> None:
    said = command("explain", trained)
    assert said.code == 0
    assert "dB on held-out images" in said.out
    assert f"vqvae2 evaluate {trained}" in said.out
    assert command("explain", "nowhere").code == 2


@pytest.mark.parametrize("stage", ["autoencoder", "prior/level-1"])
@pytest.mark.parametrize("seconds", ["7", None, [7.0]])
def test_a_damaged_record_of_a_stage_is_said_in_one_line(
    stage: str, seconds: Any, run: Path, command: Command
) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["train_autoencoder"]["minutes"] = config["train_prior"][1]["minutes"] = 5.0
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert command("explain", run).code == 0
    record = run / stage / "config.json"
    value = json.loads(record.read_text())
    value["outcome"]["seconds"] = seconds
    record.write_text(json.dumps(value))
    said = command("explain", run)
    assert said.code == 2
    assert said.err.startswith(f"vqvae2: {record} is damaged: outcome.seconds: ")
    assert said.err.count("\n") == 1


def test_a_damaged_line_of_metrics_is_no_point_of_a_curve(run: Path, command: Command) -> None:
    metrics = run / "autoencoder" / "metrics.jsonl"
    with metrics.open("a") as file:
        file.write('{"step": 61, "heldout_psnr": "high"}\n')
    said = command("explain", run)
    assert said.code == 0, said.err


# --- fine-tuning ---


def test_fine_tuning_from_another_run(
    trained: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    """Its networks, gentler training; the same command again has nothing to train."""
    other = tmp_path / "other"
    for number, name in enumerate(("disc", "square", "ring", "disc", "square", "ring")):
        (other / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (40 * number, 90, 30)).save(other / name / f"{number}.png")
    run = tmp_path / "run"
    arguments = ("train", other, "--run", run, "--from", trained, "--set", "data.holdout=0.4")
    said = command(*arguments)
    assert said.code == 0, said.err
    assert f"begins with the settings and the weights of {trained}" in said.err
    assert "prior level 0: begins with the prior of" in said.err
    theirs, ours = load(trained, "cpu").config, load(run, "cpu").config
    assert ours.autoencoder == theirs.autoencoder
    assert ours.prior.levels == theirs.prior.levels
    assert ours.train_autoencoder.lr == pytest.approx(0.3 * theirs.train_autoencoder.lr)
    assert ours.train_autoencoder.steps == max(1, round(0.3 * theirs.train_autoencoder.steps))
    assert set(load(run, "cpu").classes) == {"disc", "square", "ring"}
    assert "nothing to train" in command(*arguments).err
    said = command(*arguments, "--preset", "tiny")
    assert said.code == 2
    assert "--preset or --from" in said.err


def test_fine_tuning_takes_no_files_of_the_other_data(trained: Path, tmp_path: Path) -> None:
    from vqvae2.commands.train import fine_tuning

    text = (trained / "config.yaml").read_text()
    changed = text.replace("image_root: null", "image_root: elsewhere").replace(
        "  labels: null", "  labels: a.csv"
    )
    assert changed.count("elsewhere") + changed.count("a.csv") == 2
    (tmp_path / "config.yaml").write_text(changed)
    data = fine_tuning(str(tmp_path)).data
    assert (data.image_root, data.labels) == (None, None)


def test_fine_tuning_from_a_model_of_the_package(tmp_path: Path, pictures: Path, command: Command) -> None:
    """Its settings without what belongs to its machine and its data; only the settings, since it would take long."""
    from vqvae2.commands.train import fine_tuning

    config = fine_tuning("clothing128")
    assert (config.train_autoencoder.start, config.train_prior[1].start) == ("clothing128", "clothing128")
    assert config.train_autoencoder.steps == 3600
    assert {
        training.minutes for training in (config.train_autoencoder, config.sharpen, *config.train_prior)
    } == {0}
    assert (config.precision, config.data.image_column, config.data.label_column) == ("auto", None, None)
    assert config.data.size == 128
    emoji = fine_tuning("emoji64").sharpen
    assert (emoji.perceptual, emoji.perceptual_weights, emoji.steps) == (
        0,
        "",
        3000,
    )  # its file is not shipped
    said = command("train", pictures, "--run", tmp_path / "run", "--from", "no such model")
    assert said.code == 2
