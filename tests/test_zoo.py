"""The models that the package ships: each is what its card says."""

from __future__ import annotations

import math
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vqvae2
from vqvae2.commands.evaluate import keep_sampling, report_folder
from vqvae2.config.models import parse
from vqvae2.config.overrides import complete, differences, merge, read_yaml
from vqvae2.data.batches import sequential, spread
from vqvae2.data.images import ImageSet, open_images
from vqvae2.data.pixels import psnr
from vqvae2.errors import UserError
from vqvae2.files import tensor_file
from vqvae2.files.progress import Reporter
from vqvae2.files.run_folder import RunError
from vqvae2.run import Run
from vqvae2.train.autoencoder import detail

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("tools", "benchmarks")]

from sampler_precision import bits_by_steps

import ship_model

GOAL = {"psnr": 27.0, "usage": 0.95, "bits": 0.65}
GARMENTS = Path(__file__).parent / "fixtures" / "clothing-heldout.parquet"  # one of each class, CC0


@pytest.fixture(scope="module")
def shipped() -> Run:
    return vqvae2.load("emoji64", "cpu")


@pytest.fixture(scope="module")
def images(shipped: Run, tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = tmp_path_factory.mktemp("emoji") / "data"
    return open_images("emoji64", shipped.config.data, folder, say=lambda _: None)


def card(run: Run) -> str:
    return (run.folder / "README.md").read_text(encoding="utf-8")


def written(run: Run, figure: str) -> float:
    """The number that the card gives for a figure."""
    row = re.search(rf"^\| {re.escape(figure)}[^|]*\| ([\d.]+)", card(run), re.MULTILINE)
    assert row, f"the card has no figure {figure!r}"
    return float(row[1])


@pytest.fixture(scope="module")
def clothing() -> Run:
    return vqvae2.load("clothing128", "cpu")


@pytest.fixture(scope="module")
def garments(clothing: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Tensor]:
    """One held-out photograph of each class, [17, 3, 128, 128], and the classes, [17]."""
    folder = tmp_path_factory.mktemp("clothing") / "data"
    settings = clothing.config.data.model_copy(update={"holdout": 0.0})
    images = open_images(str(GARMENTS), settings, folder, say=lambda _: None)
    assert images.classes == clothing.classes
    chosen = [*images.train, *images.heldout]  # one image is held out at least; here all of them are
    pixels, labels = next(iter(sequential(images, chosen, settings, batch=17)))
    assert labels is not None
    assert sorted(labels.tolist()) == list(range(17))
    return pixels, labels


@pytest.mark.parametrize(("name", "classes", "limit"), [("emoji64", 9, 15.8e6), ("clothing128", 17, 29.2e6)])
def test_it_is_small_and_complete(name: str, classes: int, limit: float) -> None:
    assert name in vqvae2.zoo()
    run = vqvae2.load(name, "cpu")
    assert sum(file.stat().st_size for file in run.folder.rglob("*") if file.is_file()) <= limit
    assert list(run.config.geometry.grids) == [(8, 8), (16, 16)]
    assert run.config.geometry.vocabulary == (512, 512)
    assert len(run.classes) == classes
    for word in ("Data", "Recipe", "For", "Not for", "MIT" if name == "emoji64" else "CC0"):
        assert word in card(run)
    recorded = (run.folder / "config.yaml").read_text(encoding="utf-8")
    assert "/tmp" not in recorded
    assert "/home" not in recorded


def test_the_models_together_are_no_burden() -> None:
    """The wheel holds them all."""
    sizes = [
        f.stat().st_size for name in vqvae2.zoo() for f in vqvae2.load(name).folder.rglob("*") if f.is_file()
    ]
    assert sum(sizes) < 45e6


@pytest.mark.parametrize("name", ["emoji64", "clothing128"])
def test_its_weights_are_float16_on_disk_and_float32_in_memory(name: str) -> None:
    shipped = vqvae2.load(name, "cpu")
    for level in (None, 0, 1):
        stage, net = (
            shipped.paths.stage(level),
            shipped.autoencoder if level is None else shipped.prior.level(level),
        )
        stored, _ = tensor_file.load_tensors(stage.model)
        loaded = net.state_dict()
        assert stored.keys() == loaded.keys()
        for name, tensor in stored.items():
            if tensor.is_floating_point():
                assert (tensor.dtype, loaded[name].dtype) == (torch.float16, torch.float32)
            assert torch.equal(tensor.to(loaded[name].dtype), loaded[name])


def test_weights_that_float16_cannot_hold_are_not_shipped(tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b" / "a.safetensors"
    tensors = {"weight": torch.tensor([1.0, 1 / 3]), "counter": torch.tensor(70_000)}
    tensor_file.save_tensors(source, tensors, {"step": 3})
    ship_model.copy_weights(source, target)
    copied, metadata = tensor_file.load_tensors(target)
    assert metadata == {"step": 3}
    assert torch.equal(copied["weight"], tensors["weight"].half())
    assert torch.equal(copied["counter"], tensors["counter"])
    tensor_file.save_tensors(source, {"weight": torch.tensor([1e5])})
    with pytest.raises(ValueError, match="weight holds 100000"):
        ship_model.copy_weights(source, target)


def test_it_was_trained_on_these_images(shipped: Run, images: ImageSet) -> None:
    assert shipped.record["fingerprint"] == images.fingerprint
    assert shipped.class_counts() == images.class_counts()


def test_the_numbers_of_garments_are_those_of_the_training_images(clothing: Run) -> None:
    """`tools/build_clothing.py` says how many there are; their file is not in the package."""
    assert (len(clothing.classes), sum(clothing.class_counts())) == (17, 4591)


@pytest.mark.parametrize(("name", "recipe"), [("emoji64", "emoji64"), ("clothing128", "clothing128-gpu")])
def test_it_was_trained_with_its_recipe(name: str, recipe: str) -> None:
    config = vqvae2.load(name, "cpu").config.model_dump(mode="json")
    given = read_yaml(Path(__file__).resolve().parents[1] / "recipes" / f"{recipe}.yaml")
    assert differences(config, parse(complete(merge(config, given))).model_dump(mode="json")) == []


def test_held_out_reconstructions_are_as_good_as_the_card_says(shipped: Run, images: ImageSet) -> None:
    errors, used = [], [torch.zeros(512, dtype=torch.bool) for _ in range(2)]
    for pictures, _ in sequential(images, images.heldout, shipped.config.data, batch=64):
        codes = shipped.autoencoder.encode(pictures)
        errors.append(4 * 10 ** (-psnr(shipped.autoencoder.decode(codes), pictures) / 10))
        for seen, level in zip(used, codes.levels, strict=True):
            seen[level.unique()] = True
    found = float(10 * torch.log10(4 / torch.cat(errors).mean()))
    assert found >= GOAL["psnr"]
    assert found == pytest.approx(written(shipped, "held-out PSNR"), abs=0.02)
    for level, seen in enumerate(used):
        assert seen.double().mean() >= GOAL["usage"]
        said = written(shipped, f"level {level} ({'8x8' if level == 0 else '16x16'}): codes used")
        assert float(seen.double().mean()) * 100 == pytest.approx(said, abs=0.5)


def test_its_priors_predict_held_out_codes(shipped: Run, images: ImageSet) -> None:
    """On an eighth of the held-out pictures, so within a quarter of a bit of the card's figure for all."""
    chosen = images.heldout[::8]
    pictures, labels = next(iter(sequential(images, chosen, shipped.config.data, batch=len(chosen))))
    codes = shipped.autoencoder.encode(pictures)
    with torch.no_grad():
        nats = -shipped.prior.log_prob(codes, labels).mean(0)
    for level, positions in enumerate(shipped.config.geometry.positions):
        bits = float(nats[level]) / positions / math.log(2)
        said = written(shipped, f"level {level}: bits per code, held out")
        assert said < GOAL["bits"] * 9
        assert bits == pytest.approx(said, abs=0.25)


@pytest.mark.parametrize("name", ["emoji64", "clothing128"])
def test_the_sampler_in_bfloat16_predicts_held_out_codes_as_well_as_in_float32(
    name: str, shipped: Run, images: ImageSet, clothing: Run, garments: tuple[Tensor, Tensor]
) -> None:
    """The steps that draw, with the weights of each precision, need less than .01 bits per code more or less; of 4 images each."""
    run, (pixels, labels) = clothing, garments
    if name == "emoji64":
        run, chosen = shipped, spread(images.heldout, 4)
        pixels, labels = next(iter(sequential(images, chosen, shipped.config.data, batch=4)))
    codes, labels = run.autoencoder.encode(pixels[:4]), labels[:4]
    for level in (0, 1):
        single, half = (
            bits_by_steps(run.prior, codes, labels, level, dtype) for dtype in (torch.float32, torch.bfloat16)
        )
        assert 0 < float(single.mean()) < 8
        assert 0 < abs(float((half - single).mean())) < 0.01


def test_its_samples_are_pictures_of_their_class(shipped: Run) -> None:
    """Flags are mostly saturated rectangles, smileys mostly yellow: more so than the other way round."""
    draws = {label: shipped.sample(8, labels=label, seed=1) for label in ("Flags", "Smileys & Emotion")}
    yellow = {label: float((x[:, 0] - x[:, 2]).mean()) for label, x in draws.items()}
    assert yellow["Smileys & Emotion"] > yellow["Flags"]
    for x in draws.values():
        assert x.abs().max() <= 1
        assert x.std(0).mean() > 0.1  # not eight times the same


def test_photographs_are_reconstructed_as_the_card_says(
    clothing: Run, garments: tuple[Tensor, Tensor]
) -> None:
    """17 of the 505 held-out photographs, so within 1.5 dB of the card's figure for all of them."""
    pixels, _ = garments
    codes = clothing.autoencoder.encode(pixels)
    plain = clothing.decoder("plain").decode(codes)
    sharp = clothing.decoder("sharp").decode(codes)
    for decoded, figure in ((plain, "held-out PSNR"), (sharp, "the same with the sharpened decoder")):
        mean = float(10 * torch.log10(4 / (decoded - pixels).square().mean()))
        assert mean == pytest.approx(written(clothing, figure), abs=1.5)
    assert detail(sharp).mean() > 1.8 * detail(plain).mean()


def test_photographs_cost_as_many_bits_as_the_card_says(
    clothing: Run, garments: tuple[Tensor, Tensor]
) -> None:
    pixels, labels = garments
    codes = clothing.autoencoder.encode(pixels)
    with torch.no_grad():
        nats = -clothing.prior.log_prob(codes, labels).mean(0)
    for level, positions in enumerate(clothing.config.geometry.positions):
        said = written(clothing, f"level {level}: bits per code, held out")
        assert float(nats[level]) / positions / math.log(2) == pytest.approx(said, abs=0.4)


def as_on_the_hub(shipped: Run, cache: Path) -> Path:
    """The model as the Hub's cache holds what was downloaded."""
    snapshot = cache / "models--me--pictures" / "snapshots" / "0123abcd"
    return Path(shutil.copytree(shipped.folder, snapshot))


@pytest.mark.parametrize("place", ["package", "hub"])
def test_nothing_is_written_into_a_model_of_others(
    shipped: Run, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports, their cache and critics went into site-packages or the Hub's cache, where the next update removes them."""
    folder = shipped.folder if place == "package" else as_on_the_hub(shipped, tmp_path / "hub")
    called = "the model emoji64 of the package" if place == "package" else "the model me/pictures of the Hub"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.chdir(tmp_path)
    run = Run(folder, "cpu")
    with pytest.raises(UserError, match=f"expected --out DIR .*{called}"):
        report_folder(run, "emoji64", None, None)
    with pytest.raises(RunError, match=f"{called}: copy its folder"):
        run.fit_critic()
    with pytest.raises(RunError, match=r"COPY, for which `vqvae2 critic fit COPY --data emoji64` fits one"):
        _ = run.critic
    chosen = {**run.sampling.about(), "temperature": 0.5}
    keep_sampling(run, {"parts": {"tuning": {"chosen": chosen}}}, Reporter(quiet=True))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert report_folder(run, "emoji64", tmp_path, None) == tmp_path
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert report_folder(Run(copy, "cpu"), "emoji64", None, None) == copy / "report"
