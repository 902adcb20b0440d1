"""A run with two decoders: which of them makes which images, what is recorded of it, and that the codes are the same."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from colours_network import Colours
from comparing import same_codes
from PIL import Image
from torch import Tensor

from vqvae2.cli import main
from vqvae2.commands.inspect import describe
from vqvae2.config.overrides import read_yaml
from vqvae2.config.sampling import Sampling
from vqvae2.data.images import open_images
from vqvae2.data.pixels import psnr, to_float, to_uint8
from vqvae2.errors import UserError
from vqvae2.evaluate import context
from vqvae2.evaluate.features import Features
from vqvae2.evaluate.metrics import Moments, frechet_distance
from vqvae2.evaluate.parts import distances
from vqvae2.files import locate, tensor_file
from vqvae2.files.atomic import FileError, read_json, write_json
from vqvae2.files.run_folder import RunError
from vqvae2.run import Run, load
from vqvae2.sharing import figure_table

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import ship_model

Command = Callable[..., Any]


@pytest.fixture
def both(sharpened: Path) -> Run:
    """The run with both decoders, on the CPU."""
    return load(sharpened, "cpu")


@pytest.fixture
def images(both: Run, pictures: Path) -> Tensor:
    """Four images as the run sees them."""
    files = sorted(pictures.rglob("*.png"))[:4]
    return both.load_images(files)


def pixels(file: Path) -> Any:
    """An image file as an array [H, W, C] of bytes."""
    return np.asarray(Image.open(file).convert("RGB"))


# --- Run ---


def test_both_decoders_read_the_same_codes(both: Run, images: Tensor) -> None:
    """One encoder and one codebook: the codes are equal, and only the images differ."""
    plain, sharp = both.decoder("plain"), both.decoder("sharp")
    assert plain is both.autoencoder
    assert both.decoder() is sharp is both.decoder("sharp"), "loaded once"
    assert not sharp.training
    codes = plain.encode(images)
    assert same_codes(codes, sharp.encode(images))
    assert not torch.allclose(plain.decode(codes), sharp.decode(codes), atol=1e-2)
    changed = {k for k, v in plain.state_dict().items() if not torch.equal(v, sharp.state_dict()[k])}
    assert changed
    assert all(name.startswith("decoder.") or ".to_finest." in name for name in changed)


def test_the_sharpened_decoder_is_the_default(both: Run, images: Tensor) -> None:
    codes = both.autoencoder.encode(images)
    for name, used in ((None, "sharp"), ("sharp", "sharp"), ("plain", "plain")):
        model = both.decoder(used)
        assert both.decoder_name(name) == used
        assert torch.equal(both.reconstruct(images, decoder=name), model.decode(codes))
        (drawn,) = both.draw(4, seed=3, decoder=name)
        assert torch.equal(drawn.images, model.decode(drawn.codes))
        assert torch.equal(both.sample(4, seed=3, decoder=name), drawn.images)
        (kept,) = both.draw_best(4, 1.0, seed=3, scorer=lambda x, _: x.mean((1, 2, 3)), decoder=name)
        assert torch.equal(kept.images, drawn.images)
        part = both.keep(images[0], levels=1)
        assert torch.equal(part.shown, both.autoencoder.decode(codes[:1], 1)[0])
        (completed,) = both.complete(part, 3, seed=3, decoder=name)
        assert torch.equal(completed.images, model.decode(completed.codes))
        mask = torch.zeros(16, 16, dtype=torch.bool)
        mask[:8] = True
        (completed,) = both.complete(both.keep(images[0], mask), 3, seed=3, decoder=name)
        assert torch.equal(completed.decoded, model.decode(completed.codes))
        assert torch.equal(completed.images[:, :, 8:], images[:1, :, 8:].expand(3, -1, -1, -1))


def test_what_is_drawn_does_not_depend_on_the_decoder(both: Run, trained: Path) -> None:
    """Nor on whether there is another one: with the plain decoder, images are those of the run before."""
    (before,) = load(trained, "cpu").draw(6, seed=1)
    (plain,) = both.draw(6, seed=1, decoder="plain")
    (sharp,) = both.draw(6, seed=1)
    assert same_codes(before.codes, plain.codes)
    assert same_codes(before.codes, sharp.codes)
    assert torch.equal(before.images, plain.images)
    assert not torch.allclose(before.images, sharp.images, atol=1e-2)


@pytest.mark.parametrize("name", [None, "sharp", "plain"])
def test_the_coarsest_levels_alone_are_decoded_by_the_plain_one(name: Any, both: Run, images: Tensor) -> None:
    codes = both.autoencoder.encode(images)
    assert both.decoder(name, levels=1) is both.autoencoder
    assert torch.equal(both.reconstruct(images, 1, name), both.autoencoder.decode(codes, 1))
    assert torch.equal(both.reconstruct(images, 2, name), both.reconstruct(images, decoder=name))


def test_a_run_without_the_sharpened_decoder(trained: Path, tmp_path: Path, command: Command) -> None:
    plain = load(trained, "cpu")
    assert plain.decoder() is plain.decoder("plain") is plain.autoencoder
    assert plain.decoder_name() == "plain"
    for call in (
        lambda: plain.decoder("sharp"), lambda: plain.decoder("sharp", 1), lambda: plain.drawn_by("sharp"),
        lambda: plain.sample(1, decoder="sharp"),
    ):  # fmt: skip
        with pytest.raises(
            RunError, match=r"is not sharpened; `vqvae2 train .* --set sharpen\.steps=N` sharpens it"
        ):
            call()
    with pytest.raises(UserError, match="expected the decoder plain or sharp, found 'blunt'"):
        plain.decoder("blunt")  # type: ignore[arg-type]
    picture = next(iter(sorted(Path(plain.record["source"]).rglob("*.png"))))
    for verb in (
        ["sample", trained], ["reconstruct", trained, picture], ["evaluate", trained],
        ["complete", trained, picture, "--keep-levels", 1],
    ):  # fmt: skip
        said = command(*verb, "--decoder", "sharp", "--out", tmp_path / "out")
        assert (said.code, len(said.err.splitlines())) == (2, 1), said.err
        assert "is not sharpened" in said.err
        assert not (tmp_path / "out").exists()


def test_a_decoder_of_another_autoencoder_is_refused(sharpened: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(sharpened, tmp_path / "run"))
    file = run / "autoencoder" / "model.safetensors"
    tensors, about = tensor_file.load_tensors(file)
    tensors["decoder.0.bias"] += 1
    tensor_file.save_tensors(file, tensors, about)
    changed = load(run, "cpu")
    with pytest.raises(FileError, match="belongs to another autoencoder"):
        changed.sample(1)
    assert changed.reconstruct(torch.zeros(1, 3, 16, 16), decoder="plain").isfinite().all()
    with pytest.raises(FileError, match="belongs to another autoencoder"):
        changed.sample(1, decoder="plain")  # its priors are of the former one too
    file.unlink()
    with pytest.raises(RunError, match=r"the autoencoder of .* is not trained yet"):
        load(run, "cpu").decoder()


def test_what_a_run_says_of_its_decoders(both: Run, trained: Path, tmp_path: Path) -> None:
    before = load(trained, "cpu")
    names = ["autoencoder", "codes", "sharpen", "prior level 0", "prior level 1"]
    assert list(both.done()) == names
    assert all(both.done().values())
    assert "sharpen" not in before.done()
    assert both.digests() == before.digests() | {"sharpen": both.digests()["sharpen"]}
    assert both.figures("sharpen")["heldout_psnr_plain"] == pytest.approx(
        both.figures()["heldout_psnr"], rel=1e-4
    )
    assert before.figures("sharpen") == {}
    plain, sharp = both.drawn_by("plain"), both.drawn_by()
    assert plain == before.drawn_by()
    assert plain["model"] == sharp["model"] == before.digests()
    assert plain["decoder"] == {"name": "plain", "digest": before.digests()["autoencoder"]}
    assert sharp["decoder"] == {"name": "sharp", "digest": both.digests()["sharpen"]}
    asked = Path(shutil.copytree(trained, tmp_path / "run"))
    value = read_yaml(asked / "config.yaml")
    value["sharpen"]["steps"] = 5
    (asked / "config.yaml").write_text(yaml.safe_dump(value))
    assert load(asked, "cpu").done()["sharpen"] is False


def test_the_sharpened_decoder_comes_from_the_hub(
    sharpened: Path, both: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        for file in sharpened.rglob("*"):
            name = file.relative_to(sharpened).as_posix()
            if file.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, tmp_path / name)
        return str(tmp_path)

    monkeypatch.setattr(locate, "snapshot_download", snapshot_download)
    assert torch.equal(load("somebody/sharp", "cpu").sample(2), both.sample(2))


def test_a_shipped_model_has_both(both: Run, images: Tensor, tmp_path: Path) -> None:
    """Rounded to float16, and the sharpened decoder names the rounded autoencoder as the one that it belongs to."""
    ship_model.copy_run(both, tmp_path / "zoo")
    shipped = load(tmp_path / "zoo", "cpu")
    for name in ("plain", "sharp"):
        stored, _ = tensor_file.load_tensors(
            shipped.paths.stage("sharpen" if name == "sharp" else None).model
        )
        assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.float16}
        assert shipped.decoder_name(name) == name
        difference = shipped.reconstruct(images, decoder=name) - both.reconstruct(images, decoder=name)
        assert difference.abs().mean() < 0.02
    card = figure_table(both)
    assert f"sharpened decoder | {both.figures('sharpen')['heldout_psnr']:.2f} dB" in card


# --- the verbs ---


def test_sample_uses_the_decoder_that_is_asked_for(sharpened: Path, tmp_path: Path, command: Command) -> None:
    base = ["sample", sharpened, "--n", 5, "--pictures", "npz", "--json", "--out"]
    asked = {"default": [], "sharp": ["--decoder", "sharp"], "plain": ["--decoder", "plain"]}
    arrays, listed = {}, {}
    for name, options in asked.items():
        listed[name] = json.loads(command(*base, tmp_path / name, *options).out)
        with np.load(tmp_path / name / "codes-00000-00004.npz") as file:
            arrays[name] = {key: file[key] for key in file}
    assert [listed[name]["decoder"]["name"] for name in asked] == ["sharp", "sharp", "plain"]
    assert np.array_equal(arrays["default"]["images"], arrays["sharp"]["images"])
    assert not np.array_equal(arrays["plain"]["images"], arrays["sharp"]["images"])
    for level in ("level_0", "level_1"):
        assert np.array_equal(arrays["plain"][level], arrays["sharp"][level])


def test_a_critic_sees_the_images_of_the_chosen_decoder(
    sharpened: Path, both: Run, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Blue:
        digest, backbone_digest = "d" * 64, "n" * 64

        def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
            return images[:, 2].mean((1, 2))

    monkeypatch.setattr("vqvae2.run.Run.critic", Blue())
    for name in ("plain", "sharp"):
        out = tmp_path / name
        options = ("--n", 4, "--critic", 0.5, "--pictures", "npz", "--decoder", name, "--batch", 4)
        assert command("sample", sharpened, *options, "--out", out).code == 0
        drawn = list(both.draw_best(4, 0.5, sampling=Sampling(batch=4), decoder=name))
        scores = [entry["score"] for entry in read_json(out / "samples.json")["samples"]]
        assert scores == pytest.approx(torch.cat([part.scores for part in drawn]).tolist())
        with np.load(out / "codes-00000-00003.npz") as file:
            assert np.array_equal(file["images"], to_uint8(drawn[0].images).numpy())


def test_a_folder_has_the_images_of_one_decoder(
    sharpened: Path, trained: Path, tmp_path: Path, command: Command
) -> None:
    base = ["sample", sharpened, "--out", tmp_path / "out", "--n"]
    assert command(*base, 2).code == 0
    said = command(*base, 4, "--decoder", "plain")
    assert (said.code, len(said.err.splitlines())) == (2, 1)
    assert "decoder.name: sharp -> plain; decoder.digest:" in said.err
    assert command(*base, 4).code == 0
    before = ["sample", trained, "--out", tmp_path / "plain", "--n"]
    assert command(*before, 2).code == 0, "begun before the run was sharpened"
    later = ["sample", sharpened, "--out", tmp_path / "plain", "--n"]
    assert "decoder.name: plain -> sharp" in command(*later, 4).err
    assert "2 new" in command(*later, 4, "--decoder", "plain").out


def test_a_folder_of_a_former_version_is_continued(
    sharpened: Path, trained: Path, tmp_path: Path, command: Command
) -> None:
    """Its record names no decoder: the images were made by the plain one."""
    assert command("sample", trained, "--n", 2, "--out", tmp_path).code == 0
    record = read_json(tmp_path / "sampling.json")
    del record["decoder"]
    write_json(tmp_path / "sampling.json", record)
    assert command("sample", trained, "--n", 3, "--out", tmp_path).code == 0
    assert command("sample", sharpened, "--n", 4, "--decoder", "plain", "--out", tmp_path).code == 0
    assert "plain -> sharp" in command("sample", sharpened, "--n", 5, "--out", tmp_path).err
    assert len(list(tmp_path.glob("0*.png"))) == 4


def test_reconstruct_says_both_figures(
    sharpened: Path, both: Run, pictures: Path, tmp_path: Path, command: Command
) -> None:
    """`psnr` is of the plain decoder; the file and the last tile are of the sharpened one, `psnr_sharp` is theirs."""
    source = pictures / "stripes" / "02.png"
    out = {name: tmp_path / name for name in ("sharp", "plain")}
    found = {}
    for name, folder in out.items():
        said = command("reconstruct", sharpened, source, "--decoder", name, "--out", folder, "--json")
        (found[name],) = json.loads(said.out)
        assert found[name]["decoder"] == name
    assert found["plain"]["psnr"] == found["sharp"]["psnr"]
    assert "psnr_sharp" not in found["plain"]
    original = both.load_images([source])
    for name, figure in (("plain", found["plain"]["psnr"][-1]), ("sharp", found["sharp"]["psnr_sharp"])):
        again = both.reconstruct(original, decoder=name)
        assert figure == pytest.approx(float(psnr(again, original)[0]), abs=1e-4)
        assert np.array_equal(pixels(out[name] / "02.png"), to_uint8(again)[0].numpy())
    sheets = {name: pixels(folder / "02-levels.png") for name, folder in out.items()}
    width = sheets["plain"].shape[1]
    assert np.array_equal(sheets["sharp"][:, :width], sheets["plain"])
    assert np.array_equal(sheets["sharp"][2:130:8, width : width + 128 : 8], pixels(out["sharp"] / "02.png"))
    said = command("reconstruct", sharpened, source, "--out", tmp_path / "text")
    pattern = r"PSNR \d+\.\d\d dB with the plain decoder, \d+\.\d\d dB with the sharp one, at 16 px$"
    assert re.search(pattern, said.out.strip())


def test_complete_uses_the_decoder_that_is_asked_for(
    sharpened: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    base = ["complete", sharpened, pictures / "disc" / "01.png", "--keep-levels", 1, "--n", 2, "--json"]
    found = {
        name: json.loads(command(*base, "--decoder", name, "--out", tmp_path / name).out)
        for name in ("plain", "sharp")
    }
    default = json.loads(command(*base, "--out", tmp_path / "default").out)
    assert [found[name]["decoder"]["name"] for name in found] == ["plain", "sharp"]
    assert found["plain"]["bits"] == found["sharp"]["bits"]
    assert default["decoder"] == found["sharp"]["decoder"]
    shown = {name: pixels(tmp_path / name / "000.png") for name in ("plain", "sharp", "default")}
    assert np.array_equal(shown["default"], shown["sharp"])
    assert not np.array_equal(shown["plain"], shown["sharp"])


def test_inspect_and_train_say_that_the_decoder_is_sharpened(
    sharpened: Path, both: Run, trained: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    tables = describe(both.config, both)
    (title,) = [title for title in tables if "sharpened decoder" in title]
    figures = both.figures("sharpen")
    assert tables[title] == {name: f"{value:.4g}" for name, value in figures.items()}
    assert tables["done"]["sharpen"] == "yes"
    assert tables["cost of training"]["sharpening"].startswith("2 x 8 x ")
    before = load(trained, "cpu")
    assert not [name for name in describe(before.config, before) if "sharpened" in name]
    run = Path(shutil.copytree(sharpened, tmp_path / "run"))
    shutil.rmtree(run / "prior" / "level-1")
    said = command("train", pictures, "--run", run, "--json")
    assert json.loads(said.out)["sharpen"] == figures
    (last,) = said.err.splitlines()[-1:]
    change = f"PSNR {figures['heldout_psnr_plain']:.4g} -> {figures['heldout_psnr']:.4g} dB"
    assert last.startswith("the decoder is sharpened: held-out sharpness")
    assert change in last


# --- evaluate ---


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path, settings: Sequence[str]
) -> dict[str, Any]:
    """A run with nine held-out images, evaluated before it is sharpened, and after with each decoder, in one folder."""
    run, out = tmp_path_factory.mktemp("measured") / "run", tmp_path_factory.mktemp("reports")

    def call(*arguments: object) -> None:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert ended.value.code == 0

    more = ("steps=2", "batch=8", "lr=0.02", "warmup=0", "average=0.01", "begin=0", "width=4", "depth=1")
    sharpen = [part for setting in more for part in ("--set", f"sharpen.{setting}")]
    call("train", pictures, "--run", run, "--preset", "tiny", *settings, "--set", "data.holdout=0.4")
    parts = ("--only", "nll,reconstruction,distances,precision,symmetry", "--out", out)
    found: dict[str, Any] = {"run": run, "out": out}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "feature_network", lambda *_: Colours())
        for name, options in (("before", ()), ("sharp", ()), ("plain", ("--decoder", "plain"))):
            if name == "sharp":
                call("train", pictures, "--run", run, *sharpen)
            call("evaluate", run, *parts, *options)
            found[name] = read_json(out / "report.json")
            found[f"folders {name}"] = {file.name for file in (out / "cache").glob("samples-*")}
    return found


def test_reconstructions_of_both_decoders_are_measured(measured: dict[str, Any]) -> None:
    other = {"sharp": "plain", "plain": "sharp"}
    for name in other:
        report = measured[name]
        assert report["protocol"]["run"]["decoder"] == name
        beside = f", {other[name]} decoder"
        parts = report["parts"]
        assert set(parts["reconstruction"]) == {
            "training", "held out", f"training{beside}", f"held out{beside}"
        }  # fmt: skip
        sets = ["held out", "reconstructions", f"reconstructions{beside}", "samples"]
        starred = ["reconstructions against reconstructions", "samples against reconstructions"]
        originals = [f"reconstructions against their originals{suffix}" for suffix in ("", beside)]
        assert list(parts["precision"]["sets"]) == sets + starred
        assert list(parts["distances"]["sets"]) == sets + originals + starred
        assert {each["name"] for each in report["protocol"]["sets"]} <= context.RESERVED_NAMES


def test_reconstructions_are_compared_with_their_own_originals(measured: dict[str, Any]) -> None:
    """rFID, of each decoder: with the very images that were encoded, and not with training images."""
    run = load(measured["run"], "cpu")
    images = open_images(str(run.record["source"]), run.config.data, run.paths.data, say=lambda _: None)
    originals = to_float(images.pixels(images.heldout))
    images.close()
    own = Moments.of(Colours()(originals)[0])
    rows = measured["sharp"]["parts"]["distances"]["sets"]
    for decoder, suffix in (("sharp", ""), ("plain", ", plain decoder")):
        model = run.decoder(decoder)
        with torch.no_grad():
            decoded = Moments.of(Colours()(model.decode(model.encode(originals)))[0])
        row = rows[f"reconstructions against their originals{suffix}"]
        assert row == {
            "n": len(originals),
            "frechet": pytest.approx(frechet_distance(own, decoded), rel=1e-3),
        }
        assert row["frechet"] != pytest.approx(rows[f"reconstructions{suffix}"]["frechet"], rel=0.01)


def test_only_in_inceptions_features_is_it_called_rfid() -> None:
    encoders, features = dict.fromkeys(("", ", plain decoder")), Features(torch.zeros(2, 1), None, 0.0)
    for network, name in (("inception", " (rFID)"), ("lite0", "")):
        options = SimpleNamespace(network=network)
        own = SimpleNamespace(run=True, options=options, encoders=encoders, reconstructed_reference=None)
        rows = distances._again(own, {"held out": features})  # type: ignore[arg-type]
        title = f"reconstructions against their originals{name}"
        assert list(rows) == [title, f"{title}, plain decoder"]


def test_a_decoder_has_the_same_figures_whether_it_is_chosen_or_beside(measured: dict[str, Any]) -> None:
    before, sharp, plain = (measured[name]["parts"] for name in ("before", "sharp", "plain"))
    run = load(measured["run"], "cpu")
    for part, row in (
        ("reconstruction", "held out"),
        ("distances", "reconstructions"),
        ("precision", "reconstructions"),
    ):
        rows = [parts[part].get("sets", parts[part]) for parts in (before, sharp, plain)]
        assert rows[0][row] == rows[2][row] == rows[1][f"{row}, plain decoder"]
        assert rows[1][row] == rows[2][f"{row}, sharp decoder"]
        assert rows[1][row] != rows[2][row]
    figures = run.figures("sharpen")
    assert sharp["reconstruction"]["held out"]["psnr_of_mean"] == pytest.approx(
        figures["heldout_psnr"], abs=1e-3
    )
    assert plain["reconstruction"]["held out"]["psnr_of_mean"] == pytest.approx(
        figures["heldout_psnr_plain"], abs=1e-3
    )
    assert before["nll"] == sharp["nll"] == plain["nll"]


def test_the_cache_keeps_the_samples_of_the_decoders_apart(measured: dict[str, Any]) -> None:
    """Those of the plain decoder are the ones that were drawn before the sharpening."""
    assert len(measured["folders before"]) == 1
    assert len(measured["folders sharp"]) == 2
    assert measured["folders plain"] == measured["folders sharp"]
    for part in ("distances", "precision", "symmetry"):
        rows = {
            name: measured[name]["parts"][part]["sets"]["samples"] for name in ("before", "sharp", "plain")
        }
        assert rows["before"] == rows["plain"] != rows["sharp"]
    names = {
        read_json(file)["decoder"]["name"] for file in (measured["out"] / "cache").glob("*/sampling.json")
    }
    assert names == {"plain", "sharp"}


def test_names_of_sets_that_only_some_reports_have_are_reserved(
    trained: Path, tmp_path: Path, command: Command
) -> None:
    said = command(
        "evaluate",
        trained,
        "--out",
        tmp_path / "out",
        "--against",
        f"reconstructions, plain decoder={tmp_path}",
    )
    assert (said.code, "another name is needed" in said.err) == (2, True)
