"""The critic of a run: fitted on its training images alone, saved, loaded again, and refused if its files were changed."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vqvae2.config.overrides import read_yaml
from vqvae2.data.images import ImageSet, open_images
from vqvae2.evaluate import critic
from vqvae2.evaluate.classifier_file import save_classifier
from vqvae2.evaluate.critic import CriticError, CriticKind, critic_file, fit_critic, load_critic
from vqvae2.evaluate.features import Features
from vqvae2.evaluate.metrics import Moments, frechet_distance
from vqvae2.evaluate.networks.by_name import feature_network
from vqvae2.evaluate.parts import critic as sweep
from vqvae2.evaluate.parts.distances import distances
from vqvae2.evaluate.probe import Probe, fit_probe
from vqvae2.evaluate.resnet import ClassifierConfig, train_classifier
from vqvae2.files.atomic import FileError
from vqvae2.files.progress import Reporter
from vqvae2.run import Run, load

Command = Callable[..., Any]


class Colours(nn.Module):
    """A feature network of nine places' colours."""

    name, dimension, size, resize, score_name = "colours", 27, 3, "mean", None

    def __init__(self, digest: str = "c" * 64) -> None:
        super().__init__()
        self.digest = digest

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        """[B, 27]."""
        return nn.functional.adaptive_avg_pool2d(images, 3).flatten(1), None


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever network is asked for, it is this one."""
    monkeypatch.setattr("vqvae2.evaluate.critic.feature_network", lambda *asked: Colours())


@pytest.fixture
def images(run: Path) -> ImageSet:
    """The images of the run."""
    loaded = load(run, "cpu")
    return open_images(str(loaded.record["source"]), loaded.config.data, run / "data", say=lambda text: None)


def batch(images: ImageSet, side: Any) -> tuple[Tensor, Tensor]:
    """Images [B, 3, 16, 16] in [-1, 1] and their labels."""
    pixels = images.pixels(side).permute(0, 3, 1, 2) / 127.5 - 1
    return pixels, images.labels_of(side)


def test_a_probe_on_the_training_images(run: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is `fit_probe` of their features and of no others'; what is said of it is counted on the held-out ones."""
    given: list[tuple[Tensor, Tensor]] = []

    def noted(features: Tensor, labels: Tensor, *more: Any, **options: Any) -> Probe:
        given.append((features, labels))
        return fit_probe(features, labels, *more, **options)

    monkeypatch.setattr("vqvae2.evaluate.critic.fit_probe", noted)
    lines: list[str] = []
    reporter = Reporter(quiet=True)
    monkeypatch.setattr(reporter, "say", lines.append)
    critic = fit_critic(run, images, load(run, "cpu").config.data, reporter=reporter)
    pixels, labels = batch(images, images.train)
    ((features, known),) = given
    assert torch.equal(known, labels)
    assert torch.allclose(features, Colours()(pixels)[0], atol=1e-5)
    pixels, labels = batch(images, images.heldout)
    likeliest = torch.stack([critic(pixels, torch.full((len(pixels),), k)) for k in range(3)]).argmax(0)
    assert critic.accuracy == (likeliest == labels).double().mean()
    assert critic.record["train"] == len(images.train)
    assert critic.record["heldout"] == len(images.heldout)
    ends = [
        f"critic: training images: {len(images.train)}/{len(images.train)} images",
        "critic: fitting: 7/7 fits",
        f"critic: held-out images: {len(images.heldout)}/{len(images.heldout)} images",
    ]
    said = [line.split(", ")[0] for line in lines]
    assert [line for line in said if line in ends] == ends
    assert critic.classes == images.classes
    assert critic.backbone_digest == "c" * 64


def test_scores_are_the_probability_of_the_label(run: Path, images: ImageSet) -> None:
    critic = fit_critic(run, images, load(run, "cpu").config.data)
    pixels, labels = batch(images, images.train)
    scores = torch.stack([critic(pixels, torch.full((len(pixels),), k)) for k in range(3)])
    assert scores.dtype == torch.float64
    assert torch.allclose(scores.sum(0), torch.ones(len(pixels), dtype=torch.float64))
    right = critic(pixels, labels)
    assert torch.equal(right, scores.gather(0, labels[None])[0])
    assert right.mean() > 0.8  # what it was fitted on


def test_a_critic_is_found_again(run: Path, images: ImageSet) -> None:
    made = fit_critic(run, images, load(run, "cpu").config.data)
    found = load(run, "cpu").critic
    pixels, labels = batch(images, images.heldout)
    assert torch.equal(made(pixels, labels), found(pixels, labels))
    assert found.record == made.record == json.loads(critic_file(run).read_text())
    again = fit_critic(run, images, load(run, "cpu").config.data)
    assert again.digest == made.digest


def scripted(path: Path, classes: int = 3) -> Path:
    """Somebody's classifier: logits from the mean colour, for images of 8 px."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(net), path, _extra_files={"vqvae2.json": '{"size": 8}'})
    return path


def resnet(path: Path, images: ImageSet, channels: int = 3) -> Path:
    """A small classifier that was trained on the training images, or on their first channel."""
    pixels, labels = batch(images, images.train)
    config = ClassifierConfig(width=8, stages=1, steps=10, batch=8, flip=False)
    save_classifier(path, train_classifier(pixels[:, :channels], labels, 3, config))
    return path


@pytest.mark.parametrize("kind", ["model.pt", "model.safetensors", "net.jit-v2"])
def test_a_model_from_a_file(kind: str, run: Path, images: ImageSet, tmp_path: Path) -> None:
    """It is taken into the run; the file is needed no more. It is its own backbone."""
    file = tmp_path / f"own-{kind}"
    _ = resnet(file, images) if kind == "model.safetensors" else scripted(file)
    made = fit_critic(run, images, load(run, "cpu").config.data, CriticKind(model=file))
    file.unlink()
    found = load_critic(run)
    pixels, labels = batch(images, images.heldout)
    assert torch.equal(made(pixels, labels), found(pixels, labels))
    assert found.backbone_digest == made.classifier.backbone_digest != "c" * 64
    assert (found.record["kind"], found.record["train"]) == ("model", None)
    assert (run / "critic" / kind.replace("net.jit-v2", "model.pt")).is_file()


def test_images_of_other_channels(run: Path, images: ImageSet, tmp_path: Path) -> None:
    """A mistake of the user, said in one line before an image is read, and nothing of it is kept."""
    grey = CriticKind(model=resnet(tmp_path / "grey.safetensors", images, channels=1))
    data = load(run, "cpu").config.data
    with pytest.raises(
        CriticError, match=r"^the images have 3 channels, .* in .*grey\.safetensors expects 1$"
    ):
        fit_critic(run, images, data, grey)
    with pytest.raises(CriticError, match=r"needs images of 1, 3 or 4 channels, found 2$"):
        fit_critic(run, images, data.model_copy(update={"channels": 2}))
    assert not critic_file(run).parent.exists()


def test_a_network_of_its_own(run: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """It learns from the training images, can be loaded again, and has no feature network as its backbone."""
    config = ClassifierConfig(width=8, stages=1, steps=60, batch=8, flip=False, shift=0)
    monkeypatch.setattr(critic, "classifier_config", lambda n: config)
    made = fit_critic(run, images, load(run, "cpu").config.data, CriticKind("resnet"))
    found = load_critic(run)
    pixels, labels = batch(images, images.train)
    assert torch.equal(made(pixels, labels), found(pixels, labels))
    assert float(made(pixels, labels).mean()) > 0.6
    assert found.backbone_digest == made.classifier.backbone_digest
    assert (found.record["kind"], found.record["train"]) == ("model", len(images.train))


def test_models_that_are_no_critic(run: Path, images: ImageSet, tmp_path: Path) -> None:
    data = load(run, "cpu").config.data
    fit_critic(run, images, data)
    before = {file: file.read_bytes() for file in (run / "critic").iterdir()}
    with pytest.raises(CriticError, match=r"the 3 classes of .*, found 5 classes in .*five\.pt"):
        fit_critic(run, images, data, CriticKind(model=scripted(tmp_path / "five.pt", 5)))
    with pytest.raises(CriticError, match="probe without its feature network"):
        fit_critic(run, images, data, CriticKind(model=run / "critic" / "model.safetensors"))
    assert {file: file.read_bytes() for file in (run / "critic").iterdir()} == before


def test_a_critic_that_is_not_what_it_was(
    run: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_critic(run, images, load(run, "cpu").config.data)
    file = run / "critic" / "model.safetensors"
    contents = file.read_bytes()
    file.write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))
    with pytest.raises(FileError, match="was altered"):
        load_critic(run)
    save_classifier(file, Probe(27, 3, "c" * 64, 0.0))
    with pytest.raises(CriticError, match=r"model\.safetensors is missing or was replaced; .*critic fit"):
        load_critic(run)
    file.write_bytes(contents)
    with monkeypatch.context() as patch:
        patch.setattr("vqvae2.evaluate.critic.feature_network", lambda *asked: Colours("e" * 64))
        with pytest.raises(
            ValueError, match="fitted on the network cccccccccccc, not on colours eeeeeeeeeeee"
        ):
            load_critic(run)
    record = json.loads(critic_file(run).read_text())
    critic_file(run).write_text(json.dumps({**record, "classes": ["a", "b", "c"]}))
    with pytest.raises(ValueError, match="of other classes"):
        _ = load(run, "cpu").critic


@pytest.mark.parametrize("seed", [0, 1])
def test_every_row_of_the_sweep_has_the_same_classes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many images, and of each class as many, as without a choice: a distance must not compare class frequencies."""
    generator = torch.Generator().manual_seed(seed)
    wanted, fractions = 23, (1.0, 0.5, 0.25, 0.07)
    labels = torch.multinomial(
        torch.tensor([0.6, 0.3, 0.08, 0.02]), 400, replacement=True, generator=generator
    )
    features = torch.nn.functional.one_hot(labels, 4) + 0.1 * torch.rand(400, 4, generator=generator)
    kept: list[dict[str, Features]] = []

    def noted(network: Any, reference: Features, sets: dict[str, Features], **options: Any) -> Any:
        kept.append(sets)
        return distances(network, reference, sets, **options)

    monkeypatch.setattr(sweep, "distances", noted)
    candidates = sweep.Candidates(
        torch.rand(400, generator=generator).double(), labels, Features(features, None, 0.0)
    )
    reference = Features(torch.randn(40, 4, generator=generator), None, 0.0)
    network = Colours()
    network.dimension = 4
    result = sweep.critic_curves(candidates, fractions, wanted, network, reference)
    rows = result.figures["rows"]
    assert [row["rate"] for row in rows] == list(fractions)
    assert [row["kept"] for row in rows] == [row["n"] for row in rows] == [wanted] * 4
    (sets,) = kept
    for chosen in sets.values():
        classes = chosen.pooled.round().argmax(1)
        assert torch.equal(classes.bincount(minlength=4), labels[:wanted].bincount(minlength=4))
    scores = [row["least_score"] for row in rows]
    assert scores == sorted(scores)
    decoded = Features(
        reference.pooled + 1, None, 0.0
    )  # the paper's FID*: from the reconstructed reference, beside FID
    starred = sweep.critic_curves(candidates, fractions, wanted, network, reference, decoded)
    for row, plain, chosen in zip(starred.figures["rows"], rows, sets.values(), strict=True):
        apart = frechet_distance(Moments.of(decoded.pooled), Moments.of(chosen.pooled))
        assert row == {**plain, "frechet_reconstructions": pytest.approx(apart)}
    assert list(starred.plots[0].curves) == ["samples", "samples against reconstructions"]
    assert list(result.plots[0].curves) == ["samples"]


# --- Run and the command ---


def test_a_run_draws_by_its_critic_or_any_other(run: Path) -> None:
    """The kept have at least the scores of the plain ones, in the mean, and keeping all is plain."""
    loaded = load(run, "cpu")
    critic = loaded.fit_critic()
    assert loaded.critic.digest == critic.digest
    (plain,) = loaded.draw(6)
    (every,) = loaded.draw_best(6, 1.0)
    assert torch.equal(plain.images, every.images)
    (best,) = loaded.draw_best(6, 0.1)
    assert best.scores.mean() > every.scores.mean()
    assert best.labels is not None
    assert best.labels.tolist() == [0, 1, 2, 0, 1, 2]
    (dark,) = loaded.draw_best(6, 0.1, "disc", scorer=lambda images, labels: -images.mean((1, 2, 3)))
    (plain,) = loaded.draw(6, "disc")
    assert dark.images.mean() < plain.images.mean()


def test_the_command_fits_and_says_how_good_it_is(run: Path, pictures: Path, command: Command) -> None:
    said = command("critic", "fit", run, "--data", pictures, "--json")
    assert said.code == 0
    value = json.loads(said.out)
    assert value["network"] == {"name": "colours", "weights": None, "digest": "c" * 64}
    said = command("critic", "fit", run)
    found = (
        f"critic probe on colours: {value['accuracy']:.1%} of {value['heldout']} held-out images right, 33.3%"
    )
    assert (said.code, found in said.out) == (0, True)
    assert json.loads(critic_file(run).read_text()) == value
    out = run.parent / "out"
    said = command("sample", run, "--out", out, "--n", 3, "--critic", 0.5, "--json")
    assert json.loads(said.out)["critic"] == {"fraction": 0.5, "digest": value["digest"], "network": "c" * 64}


def test_images_that_moved_are_the_runs_own_and_others_are_not(
    run: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    """And neither takes the place of the run's decoded images."""
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    moved = shutil.copytree(pictures, tmp_path / "moved")
    (first, *_) = sorted(moved.rglob("*.png"))
    said = command("critic", "fit", run, "--data", moved)
    assert said.code == 0, said.err
    shutil.rmtree(run / "critic")
    first.unlink()
    said = command("critic", "fit", run, "--data", moved)
    assert said.code == 2
    found = f"{run} was trained on the images in {pictures}, and found others in {moved}; use those"
    assert found in said.err
    assert "skipped" not in said.err
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_images_that_changed_are_said_to_have_changed(
    run: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    """Not to be others in the same place; and no list is named that is removed when the command ends."""
    own = shutil.copytree(pictures, tmp_path / "own")
    text = (run / "config.yaml").read_text()
    assert str(pictures) in text
    (run / "config.yaml").write_text(text.replace(str(pictures), str(own)))
    Image.new("RGB", (16, 16)).save(own / "more.png")
    (own / "broken.png").write_bytes(b"broken")
    for more in ((), ("--data", own)):
        said = command("critic", "fit", run, *more)
        assert said.code == 2
        assert f"the images in {own} changed since the training of {run} began; restore them" in said.err
        assert "skipped" not in said.err


def test_a_network_that_cannot_be_used_is_refused_before_images_are_read(
    run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqvae2.evaluate.critic.feature_network", feature_network)
    monkeypatch.setattr("vqvae2.evaluate.critic.fit_critic", lambda *_: pytest.fail("read before"))
    for arguments, reason in (
        (("--features", "foo"), "no feature network 'foo': expected one of lite0, vgg16, inception, resnet"),
        (("--features", "vgg16"), "weights"),
        (("--model", tmp_path / "missing.pt"), "missing.pt"),
    ):
        said = command("critic", "fit", run, *arguments)
        assert (said.code, said.err.count("\n")) == (2, 1)
        assert reason in said.err


def test_no_critic_yet(run: Path, tmp_path: Path, command: Command) -> None:
    """One line that says the command; no folder is made."""
    out = tmp_path / "out"
    said = command("sample", run, "--out", out, "--critic", 0.5)
    assert (said.code, out.exists()) == (2, False)
    source = load(run, "cpu").record["source"]
    assert f"no critic is fitted for {run}; `vqvae2 critic fit {run} --data {source}` fits one" in said.err


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, "nan"])
def test_fractions_that_cannot_be(fraction: object, run: Path, tmp_path: Path, command: Command) -> None:
    assert command("critic", "fit", run).code == 0
    said = command("sample", run, "--out", tmp_path / "out", "--critic", fraction)
    assert (said.code, (tmp_path / "out").exists()) == (2, False)
    assert "0 < fraction <= 1, found" in said.err


def test_a_run_without_classes(run: Path, tmp_path: Path, command: Command) -> None:
    value = read_yaml(run / "config.yaml")
    value["run"]["classes"] = []
    value["prior"]["classes"] = 0
    (run / "config.yaml").write_text(json.dumps(value))
    for call in (
        lambda: Run(run).critic, lambda: Run(run).fit_critic(), lambda: Run(run).draw_best(1, 0.5),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="has no classes, so a critic cannot"):
            call()
    for verb in (["sample", run, "--out", tmp_path / "out", "--critic", 0.5], ["critic", "fit", run]):
        said = command(*verb)
        assert (said.code, len(said.err.splitlines()), "has no classes" in said.err) == (2, 1, True)


def test_no_run(tmp_path: Path, command: Command) -> None:
    said = command("critic", "fit", tmp_path)
    assert (said.code, len(said.err.splitlines())) == (2, 1)
