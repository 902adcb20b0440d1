"""`load` and `Run`: where a model is found, what it draws, what it says of itself."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

import vqvae2
from vqvae2 import Run, Sampling, load, zoo
from vqvae2.codes import Codes
from vqvae2.config.models import parse
from vqvae2.config.overrides import read_yaml
from vqvae2.data.decoding import load_image
from vqvae2.data.pixels import psnr, to_float
from vqvae2.data.store import open_store
from vqvae2.errors import UserError
from vqvae2.files import atomic
from vqvae2.files.run_folder import RunError


@pytest.fixture
def shipped(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of the package in which the trained run is called emoji64."""
    folder = Path(shutil.copytree(trained, tmp_path / "package" / "zoo" / "emoji64"))
    (folder.parent / "notes").mkdir()
    monkeypatch.setattr(
        "vqvae2.files.locate.resources", SimpleNamespace(files=lambda name: tmp_path / "package")
    )
    return folder


def refused(call: Any, *parts: str, kind: type[UserError] = RunError) -> None:
    """`call` raises the error, in one line that holds the parts."""
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert [part for part in parts if part not in str(caught.value)] == [], str(caught.value)


def originals(run: Run, folder: Path, n: int = 4) -> Tensor:
    """The first pictures of a folder as the run sees them."""
    files = sorted(folder.rglob("*.png"))[:n]
    arrays = [torch.from_numpy(load_image(file, run.config.data)) for file in files]
    return to_float(torch.stack(arrays))


def codes_of(parts: Any) -> list[list[int]]:
    """All codes of each sample, as one list of numbers."""
    codes = Codes.cat([part.codes for part in parts])
    return torch.cat([level.flatten(1) for level in codes.levels], 1).tolist()


def test_images_that_are_not_finite_are_refused(trained: Path) -> None:
    run = load(trained, "cpu")
    side = run.config.data.shape[0]
    for value in (float("nan"), float("inf")):
        images = torch.zeros(1, 3, side, side)
        images[0, 1, 2, 3] = value
        refused(lambda images=images: run.reconstruct(images), "finite", kind=UserError)
        refused(lambda images=images: run.log_prob(images), "finite", kind=UserError)
        refused(lambda images=images: run.compress(images[0]), "finite", kind=UserError)


@pytest.mark.parametrize("wrong", ["a.png", None, Path("a.png"), 1.0, [["x"]]])
def test_what_is_no_image_is_refused_in_one_line(wrong: Any, trained: Path) -> None:
    run = load(trained, "cpu")
    calls: list[Callable[[Any], Any]] = [
        *(run.encode, run.reconstruct, run.log_prob, run.bits_map, run.compress),
        lambda image: run.keep(image, levels=1),
        lambda image: run.keep(torch.zeros(3, 16, 16), image),
    ]
    for call in calls[: 6 if wrong is None else 7]:  # no mask is another mistake
        refused(lambda call=call: call(wrong), "expected", kind=UserError)
    refused(lambda: run.reconstruct("a.png"), "images as a tensor or an array, found 'a.png'", kind=UserError)


# --- where a model is found ---


@pytest.mark.parametrize("kind", [str, Path])
def test_by_folder(kind: Callable[[Path], Any], trained: Path) -> None:
    run = load(kind(trained), "cpu")
    assert isinstance(run, Run)
    assert run.folder == trained
    assert run.classes == ("Blue sky", "disc", "stripes")
    assert run.config.prior.classes == 3
    assert run.device == torch.device("cpu")
    assert run.record["version"] == vqvae2.__version__


def test_by_relative_folder(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.parent.parent)
    assert load(f"{trained.parent.name}/{trained.name}", "cpu").classes == load(trained, "cpu").classes


def test_by_the_name_of_a_model_of_the_package(shipped: Path) -> None:
    assert zoo() == ["emoji64"]
    run = load("emoji64", "cpu")
    assert run.folder == shipped
    assert run.sample(2).shape == (2, 3, 16, 16)


def test_the_networks_are_found_from_another_working_folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.parent)
    run = load(trained.name)
    monkeypatch.chdir(tmp_path)
    assert run.sample(1).shape[0] == 1


def test_images_are_loaded_from_files_as_in_training(trained: Path, tmp_path: Path) -> None:
    run = load(trained, "cpu")
    value = np.zeros((24, 16, 3), np.uint8)  # higher than wide: the middle is taken
    value[4:20, :, 0] = 255
    Image.fromarray(value).save(tmp_path / "a.png")
    expected = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 16, 16)
    for files in ([str(tmp_path / "a.png")], [(tmp_path / "a.png").read_bytes()], tmp_path / "a.png"):
        assert torch.equal(run.load_images(files), expected[None])
    assert run.load_images([tmp_path / "a.png"] * 3).shape == (3, 3, 16, 16)
    with pytest.raises(UserError, match="expected at least one image file"):
        run.load_images([])
    with pytest.raises(UserError, match="no-such"):
        run.load_images(["no-such.png"])


def test_codes_of_other_kinds_are_refused_in_one_line(trained: Path) -> None:
    run = load(trained, "cpu")
    codes = run.encode(run.sample(1))
    with pytest.raises(UserError, match=r"expected Codes, such as Codes\(\(coarse, fine\)\), found tuple"):
        run.decode(codes.levels)  # type: ignore[arg-type]
    assert torch.equal(run.decode(Codes(codes.levels)), run.decode(codes))
    for levels in (1.5, "1"):
        with pytest.raises(UserError, match="expected an integer for the number of levels"):
            run.decode(codes, levels)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"expected one image \[C, H, W\], found shape \[1, 3, 16, 16\]"):
        run.keep(run.sample(1), levels=1)
    with pytest.raises(UserError, match="seed"):
        run.draw(4, seed=-1)  # at once, not when the first batch is asked for
    with pytest.raises(UserError, match="fraction"):
        run.draw_best(4, 2.0, scorer=lambda images, labels: labels.float())


@pytest.mark.parametrize(
    ("device", "says"),
    [("cuda:99", "no device cuda:99 on this machine"), ("gpu", "expected a device such as")],
)
def test_a_device_that_is_not_there(trained: Path, device: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(trained, device)


def test_a_folder_goes_before_a_model_of_the_package(
    shipped: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "emoji64")
    assert load("emoji64", "cpu").folder.resolve() == (tmp_path / "emoji64").resolve() != shipped


def test_a_package_without_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqvae2.files.locate.resources", SimpleNamespace(files=lambda name: tmp_path))
    assert zoo() == []
    refused(lambda: load("emoji64"), "no run emoji64", "none")


def test_by_hub_id(trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is asked for is enough to sample and to reconstruct: a download of just that is usable."""
    asked: list[str] = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        for file in trained.rglob("*"):
            name = file.relative_to(trained).as_posix()
            if file.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, tmp_path / "hub" / name)
        return str(tmp_path / "hub")

    monkeypatch.setattr("vqvae2.files.locate.snapshot_download", snapshot_download)
    run = load("somebody/pictures", "cpu")
    assert asked == ["somebody/pictures"]
    assert run.folder == tmp_path / "hub"
    assert torch.equal(run.sample(2), load(trained, "cpu").sample(2))
    assert not (tmp_path / "hub" / "data").exists(), "the training pictures are not needed"


def test_a_hub_that_has_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str, allow_patterns: list[str]) -> str:
        raise OSError("404:\n no such repository")

    monkeypatch.setattr("vqvae2.files.locate.snapshot_download", absent)
    refused(lambda: load("somebody/nothing"), "no folder somebody/nothing", "404: no such repository")
    monkeypatch.setattr("vqvae2.files.locate.snapshot_download", lambda name, allow_patterns: str(tmp_path))
    refused(lambda: load("somebody/nothing"), "no config.yaml")


@pytest.mark.parametrize("name", ["nothing", "./some/thing", "/some/thing", "a/b/c", "../thing"])
def test_names_that_cannot_be_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def asked(*args: Any, **kwargs: Any) -> str:
        raise AssertionError("the Hub was asked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vqvae2.files.locate.snapshot_download", asked)
    refused(lambda: load(name), f"no run {name}", "a run folder", "owner/name")


def test_a_mistyped_run_beside_others_is_not_looked_for_on_the_hub(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.parent.parent)
    monkeypatch.setattr(
        "vqvae2.files.locate.snapshot_download", lambda *a, **k: pytest.fail("the Hub was asked")
    )
    refused(lambda: load(f"{trained.parent.name}/runn"), "no run")


def test_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    refused(lambda: load(tmp_path), "no run folder", "config.yaml")
    refused(lambda: load(tmp_path / "file"), "no run folder", "config.yaml")
    refused(lambda: Run(tmp_path), "no run folder", "config.yaml")


def test_a_run_of_a_newer_version(run: Path) -> None:
    value = read_yaml(run / "config.yaml")
    value["run"] |= {"format": atomic.FORMAT + 1, "version": "9.1"}
    (run / "config.yaml").write_text(yaml.safe_dump(value))
    refused(lambda: load(run), "9.1", "upgrade")


# --- what it draws ---


def test_a_sample_depends_on_its_number_and_the_seed_alone(trained: Path) -> None:
    run = load(trained, "cpu")
    whole = codes_of(run.draw(12, seed=5))
    for n, batch in ((12, 1), (12, 5), (12, 12), (7, 3), (1, 64)):
        assert codes_of(run.draw(n, seed=5, sampling=Sampling(batch=batch))) == whole[:n]
    assert codes_of(run.draw(12, seed=6)) != whole
    assert len({tuple(codes) for codes in whole}) > 6


def test_samples_are_pictures(trained: Path) -> None:
    run = load(trained, "cpu")
    images = run.sample(16, labels=None, seed=0)
    assert images.shape == (16, 3, 16, 16)
    assert images.abs().max() <= 1
    assert torch.equal(images, run.sample(16, labels=None, seed=0))
    assert torch.allclose(images[:5], run.sample(5), atol=1e-5)
    assert not torch.equal(images, run.sample(16, seed=1))
    drawn = list(run.draw(16, sampling=Sampling(batch=10)))
    assert [part.numbers for part in drawn] == [range(10), range(10, 16)]
    decoded = torch.cat([run.autoencoder.decode(part.codes) for part in drawn])
    assert torch.allclose(images, decoded, atol=1e-5)


@pytest.mark.parametrize(("labels", "numbers"), [
    (None, [0, 1, 2, 0, 1]),
    ("disc", [1] * 5),
    ("  BLUE SKY ", [0] * 5),
    (2, [2] * 5),
    ("2", [2] * 5),
    (["stripes", 0], [2, 0, 2, 0, 2]),
])  # fmt: skip
def test_labels(labels: Any, numbers: list[int], trained: Path) -> None:
    (part,) = load(trained, "cpu").draw(5, labels)
    assert part.labels.tolist() == numbers


def test_labels_that_do_not_exist(trained: Path) -> None:
    run = load(trained, "cpu")
    refused(lambda: run.sample(1, "disk"), "no class 'disk'", "0..2", "disc", kind=UserError)
    refused(lambda: run.sample(1, 3), "no class 3", "0..2", kind=UserError)
    refused(lambda: run.sample(1, []), "at least one label", kind=UserError)
    images = torch.zeros(2, 3, 16, 16)
    for label in (1.0, [1.0], torch.tensor(1.0), np.float64(1)):
        refused(lambda label=label: run.sample(2, label), "no class", "0..2", kind=UserError)
        refused(lambda label=label: run.log_prob(images[:1], label), "no class", "0..2", kind=UserError)
    refused(lambda: run.compress(images[0], 1.0), "no class 1.0", kind=UserError)
    refused(lambda: run.sample(0), "n = 0", kind=UserError)
    refused(lambda: run.sample(1, seed=-1), "seed", "-1", kind=UserError)


def test_how_a_run_draws_by_default(run: Path) -> None:
    """`sampling` of the configuration is used when nothing is asked for, and only then."""
    value = read_yaml(run / "config.yaml")
    value["sampling"] |= {"temperature": 0.0}
    (run / "config.yaml").write_text(yaml.safe_dump(value))
    changed = load(run, "cpu")
    assert changed.sampling == Sampling(temperature=0.0)
    codes = codes_of(changed.draw(6, "disc"))
    assert all(row == codes[0] for row in codes), "at temperature 0 every sample of a class is the likeliest"
    assert codes_of(changed.draw(6, "disc", seed=9)) == codes
    hot = codes_of(changed.draw(6, "disc", sampling=Sampling()))
    assert hot != codes
    assert len({tuple(row) for row in hot}) > 3


# --- reconstructions ---


def test_reconstructions_are_what_the_codes_say(trained: Path, pictures: Path) -> None:
    run = load(trained, "cpu")
    images = originals(run, pictures)
    codes = run.autoencoder.encode(images)
    assert torch.equal(run.reconstruct(images), run.autoencoder.decode(codes))
    assert torch.equal(run.reconstruct(images, levels=1), run.autoencoder.decode(codes, 1))
    assert not torch.equal(run.reconstruct(images, levels=1), run.reconstruct(images))
    assert run.reconstruct(images).shape == images.shape


def test_reconstructions_are_better_than_a_flat_picture(trained: Path, pictures: Path) -> None:
    run = load(trained, "cpu")
    images = originals(run, pictures, 24)
    flat = images.mean((0, 2, 3), keepdim=True).expand_as(images)
    assert psnr(run.reconstruct(images), images).mean() > psnr(flat, images).mean() + 1
    coarse, fine = (psnr(run.reconstruct(images, level), images).mean() for level in (1, 2))
    assert fine > coarse, "the finer level adds something"


# --- completions and scores ---


def test_what_is_kept_needs_a_mask_or_levels(trained: Path, pictures: Path) -> None:
    run = load(trained, "cpu")
    (image,) = originals(run, pictures, 1)
    mask = torch.zeros(16, 16, dtype=torch.bool)
    for options in ({}, {"mask": mask, "levels": 1}):
        refused(lambda options=options: run.keep(image, **options), "either a mask or", kind=UserError)


def test_completions_are_lazy_but_mistakes_are_not(
    trained: Path, half: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load(trained, "cpu")
    (image,) = originals(run, pictures, 1)
    kept = run.keep(image, levels=1)
    refused(lambda: run.complete(kept, 2, "disk"), "no class 'disk'", kind=UserError)
    refused(lambda: run.complete(kept, 0), "n = 0", kind=UserError)
    bare = load(half, "cpu")
    refused(lambda: bare.complete(bare.keep(image, levels=1), 1), "prior of level 1", "not trained yet")
    parts = run.complete(kept, 5, "disc", seed=2, sampling=Sampling(batch=2))
    monkeypatch.setattr("vqvae2.generate.complete.fill", lambda *a: pytest.fail("drawn"))
    assert iter(parts) is parts


def test_completions_take_the_runs_own_sampling(run: Path, pictures: Path) -> None:
    value = read_yaml(run / "config.yaml")
    value["sampling"] |= {"temperature": 0.0}
    (run / "config.yaml").write_text(yaml.safe_dump(value))
    cold = load(run, "cpu")
    (image,) = originals(cold, pictures, 1)
    rows = codes_of(cold.complete(cold.keep(image, levels=1), 4))
    assert all(row == rows[0] for row in rows)
    hot = codes_of(cold.complete(cold.keep(image, levels=1), 4, sampling=Sampling()))
    assert not all(row == hot[0] for row in hot)


@pytest.mark.parametrize(("labels", "numbers"), [
    (None, None),
    ("disc", [1] * 4),
    (["stripes", None, 0, 1], [2, 3, 0, 1]),
    ([None] * 4, None),
])  # fmt: skip
def test_log_prob_is_the_priors(labels: Any, numbers: Any, trained: Path, pictures: Path) -> None:
    run = load(trained, "cpu")
    images = originals(run, pictures)
    known = None if numbers is None else torch.tensor(numbers)
    with torch.no_grad():
        expected = run.prior.log_prob(run.autoencoder.encode(images), known)
    found = run.log_prob(images, labels)
    assert found.shape == (4, 2)
    assert torch.allclose(found, expected, atol=1e-3)
    run.sampling = Sampling(batch=3)
    assert torch.allclose(run.log_prob(images, labels), expected, atol=1e-3)


def test_images_are_scored_under_one_label_or_one_each(trained: Path, pictures: Path) -> None:
    run = load(trained, "cpu")
    images = originals(run, pictures)
    for labels in (["disc"], ["disc", 0], [0] * 5, torch.tensor([0, 1])):
        for score in (run.log_prob, run.bits_map):
            refused(
                lambda labels=labels, score=score: score(images, labels),
                f"one for each of 4 images, found {len(labels)}",
                kind=UserError,
            )
    assert run.log_prob(images[:1], ["disc"]).equal(run.log_prob(images[:1], "disc"))


def test_no_images_have_no_bits(trained: Path) -> None:
    run = load(trained, "cpu")
    none = torch.zeros(0, 3, *run.config.data.shape)
    shapes = [(0, *grid) for grid in run.config.geometry.grids]
    assert [tuple(level.shape) for level in run.bits_map(none)] == shapes


def test_scores_and_draws_do_not_depend_on_mode_or_autocast(trained: Path, pictures: Path) -> None:
    """Of dropout in train mode, and of bfloat16 in autocast, neither reaches a score, a sample or a completion."""
    run = load(trained, "cpu")
    images = originals(run, pictures)
    for module in run.prior.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.5
        if hasattr(module, "rate"):
            module.rate = 0.5
    kept = run.keep(images[0], levels=1)

    def results() -> list[Tensor]:
        completed = next(run.complete(kept, 2, passes=2))
        maps = run.bits_map(images, 1)
        return [
            run.log_prob(images, 1),
            *maps,
            *completed.codes.levels,
            completed.bits,
            *next(run.draw(2)).codes.levels,
        ]

    expected = results()
    run.prior.train()
    modes = [module.training for module in run.prior.modules()]
    with torch.autocast("cpu", torch.bfloat16):
        found = results()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [module.training for module in run.prior.modules()] == modes


@pytest.mark.parametrize("part", ["autoencoder", "decoder", "prior"])
def test_a_network_that_is_first_used_without_gradients_can_be_trained(part: str, sharpened: Path) -> None:
    run = load(sharpened, "cpu")
    with torch.inference_mode():
        net = run.decoder() if part == "decoder" else getattr(run, part)
    assert not any(p.is_inference() for p in net.parameters())
    if part == "prior":
        loss = -net(run.encode(torch.zeros(1, 3, *run.config.data.shape))).sum()
    else:
        loss = net(torch.zeros(1, 3, *run.config.data.shape)).images.square().sum()
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_loading_uses_up_no_random_number(sharpened: Path) -> None:
    run = load(sharpened, "cpu")
    before = torch.random.get_rng_state()
    run.sample(1)
    run.log_prob(torch.zeros(1, 3, *run.config.data.shape))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_settings_as_keywords_are_those_of_an_object(trained: Path, pictures: Path) -> None:
    run = load(trained, "cpu")
    kept = run.keep(originals(run, pictures)[0], levels=1)

    def scorer(images: Tensor, labels: Tensor) -> Tensor:
        assert labels.device == images.device
        return images.mean((1, 2, 3)) + labels

    ways: list[Callable[..., Any]] = [
        lambda **how: run.draw(4, **how),
        lambda **how: run.draw_best(2, 0.5, scorer=scorer, **how),
        lambda **how: run.complete(kept, 4, **how),
    ]
    for way in ways:
        cold = codes_of(way(temperature=0.0))
        assert cold == codes_of(way(sampling=run.sampling.replace(temperature=0.0)))
        assert cold != codes_of(way())
        with pytest.raises(TypeError, match="warmth"):
            way(warmth=1)


def test_what_sample_shows_is_what_decode_makes_of_the_codes(sharpened: Path, pictures: Path) -> None:
    run = load(sharpened, "cpu")
    part = next(run.draw(2))
    assert torch.equal(run.decode(part.codes), part.images)
    assert torch.equal(run.decode(part.codes, decoder="plain"), run.autoencoder.decode(part.codes))
    assert not torch.equal(run.autoencoder.decode(part.codes), part.images)
    images = originals(run, pictures)
    assert torch.equal(run.decode(run.encode(images)), run.reconstruct(images))
    assert torch.equal(run.decode(run.encode(images), 1), run.reconstruct(images, 1))


def test_arrays_of_numpy_are_images(trained: Path, pictures: Path) -> None:
    run = load(trained, "cpu")
    images = originals(run, pictures)
    arrays: Any = images.numpy()
    mask = torch.zeros(images.shape[2:], dtype=torch.bool)
    mask[4:9, 2:7] = True
    as_array: Any = mask.numpy()
    assert torch.equal(run.reconstruct(arrays), run.reconstruct(images))
    assert torch.equal(run.log_prob(arrays), run.log_prob(images))
    assert run.compress(arrays[0]) == run.compress(images[0])
    assert run.keep(arrays[0], as_array).codes == run.keep(images[0], mask).codes


def test_pixels_that_were_not_scaled_are_refused(trained: Path, pictures: Path) -> None:
    run = load(trained, "cpu")
    images = originals(run, pictures)
    wrong = (images + 1) * 127.5
    mask = torch.zeros(images.shape[2:], dtype=torch.bool)
    calls: list[Callable[[Tensor], Any]] = [
        run.encode,
        run.reconstruct,
        run.log_prob,
        lambda x: run.compress(x[0]),
        lambda x: run.keep(x[0], mask),
        lambda x: run.keep(x[0], levels=1),
    ]
    for call in calls:
        refused(lambda call=call: call(wrong), "expected images in [-1, 1]", kind=UserError)
        call(images * 1.2)  # as a decoder's output, which is not clipped


def test_a_run_says_what_it_is(half: Path) -> None:
    said = repr(load(half, "cpu"))
    assert "\n" not in said
    assert all(part in said for part in (str(half), "cpu", "[3, 16, 16]", "3 classes", "prior level 0"))
    assert "prior level 1" not in said


def test_what_is_typical_is_of_the_held_out_codes(run: Path, pictures: Path) -> None:
    known = load(run, "cpu")
    assert known.typical() is None, "few pictures say nothing of what is usual"
    split = np.load(run / "codes" / "split.npy")
    split[:20] = 1
    np.save(run / "codes" / "split.npy", split)
    manifest = json.loads((run / "codes" / "manifest.json").read_text())
    manifest["checksums"]["split.npy"] = hashlib.sha256(split.tobytes()).hexdigest()
    (run / "codes" / "manifest.json").write_text(json.dumps(manifest))
    store = open_store(run / "codes")
    for labelled in (False, True):
        labels = torch.from_numpy(store.labels[store.heldout].copy()) if labelled else None
        with torch.no_grad():
            nats = known.prior.log_prob(store.codes(store.heldout), labels)
        typical = known.typical(labelled)
        assert typical is not None
        assert len(typical) == len(store.heldout)
        assert torch.allclose(typical.mean, nats.double().mean(0), atol=1e-3)
    shutil.rmtree(run / "codes")
    assert known.typical() is None


# --- what it says of itself ---


def test_models_are_loaded_once_and_for_use(trained: Path) -> None:
    run = load(trained, "cpu")
    assert run.autoencoder is run.autoencoder
    assert run.prior is run.prior
    assert not run.autoencoder.training
    assert not run.prior.training
    assert run.prior.geometry == run.config.geometry == run.autoencoder.geometry(16, 16)


def test_the_models_of_a_run_fit_its_codes(trained: Path, pictures: Path) -> None:
    run = load(trained, "cpu")
    codes = run.autoencoder.encode(originals(run, pictures))
    with torch.no_grad():
        assert run.prior.log_prob(codes, torch.zeros(4, dtype=torch.int64)).shape == (4, 2)


def test_figures(trained: Path, half: Path) -> None:
    run = load(trained, "cpu")
    assert run.figures()["heldout_psnr"] > 5
    for level in (0, 1):
        figures = run.figures(level)
        assert figures["uniform_bits"] == 4
        assert 0 < figures["heldout_bits"] < 5
        assert figures["heldout_bits"] == pytest.approx(figures["heldout_nats"] * 1.442695, rel=1e-5)
    assert load(half, "cpu").figures(0) == run.figures(0)
    assert load(half, "cpu").figures(1) == {}


def test_a_command_that_is_proposed_can_be_typed(half: Path) -> None:
    """Whatever is in the name of a folder."""
    moved = half.rename(half.with_name("my run; it's"))
    with pytest.raises(RunError) as caught:
        load(moved, "cpu").sample(1)
    words = shlex.split(str(caught.value).split("`")[1])
    assert words[:2] == ["vqvae2", "train"]
    assert words[3:] == ["--run", str(moved)]


def test_a_half_trained_run(half: Path, pictures: Path) -> None:
    run = load(half, "cpu")
    done = {"autoencoder": True, "codes": True, "prior level 0": True, "prior level 1": False}
    assert run.done() == done
    assert run.reconstruct(originals(run, pictures)).shape == (4, 3, 16, 16)
    refused(lambda: run.sample(1), "prior of level 1", "not trained yet", f"--run {half}", "continues")
    shutil.rmtree(half / "autoencoder")
    bare = load(half, "cpu")
    assert not bare.done()["autoencoder"]
    refused(lambda: bare.autoencoder, "autoencoder", "not trained yet", "continues")


def test_damaged_weights_are_said_by_everything_that_reads_them(run: Path) -> None:
    file = run / "prior" / "level-0" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    damaged = load(run, "cpu")
    for call in (lambda: damaged.prior, lambda: damaged.sample(1), lambda: damaged.figures(0)):
        refused(call, str(file), "damaged", kind=atomic.FileError)
    assert damaged.figures(1)


def test_weights_of_another_configuration(run: Path) -> None:
    value = read_yaml(run / "config.yaml")
    value["autoencoder"]["hidden"] = 32
    (run / "config.yaml").write_text(yaml.safe_dump(value))
    refused(
        lambda: load(run, "cpu").autoencoder,
        "does not fit the configuration",
        "expected",
        kind=atomic.FileError,
    )


def test_the_configuration_that_is_written_down(trained: Path) -> None:
    value = read_yaml(trained / "config.yaml")
    record = value.pop("run")
    run = load(trained, "cpu")
    assert parse(value) == run.config
    assert record == run.record
    assert record["format"] == atomic.FORMAT
    assert len(record["fingerprint"]) == 64
