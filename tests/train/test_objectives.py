"""The two objectives: losses, epoch statistics and held-out figures against brute force, and batches by (seed, step)."""

from __future__ import annotations

import itertools
import math
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from train_helpers import (
    TRAIN,
    Halves,
    assert_same,
    changed,
    code_store,
    image_set,
    result,
    run,
    stage,
    tiny,
    with_classes,
)

from vqvae2.autoencoder.model import VQVAE
from vqvae2.config.models import Config, parse
from vqvae2.config.presets import preset
from vqvae2.config.training import TrainConfig
from vqvae2.data.batches import TrainingOrder, spread
from vqvae2.data.grid import grid
from vqvae2.data.pixels import to_float
from vqvae2.files.tensor_file import load_tensors
from vqvae2.prior.level import LevelPrior
from vqvae2.train.autoencoder import AutoencoderObjective, detail, sharpness, usage_figures
from vqvae2.train.device import make_accelerator
from vqvae2.train.judging import HeldOut
from vqvae2.train.prior import PriorObjective, copies
from vqvae2.train.state import read_metrics


def shares(objective: Any, world: int, start: int, count: int) -> list[list[Any]]:
    """`count` steps of every rank's batches from `start` on: [step][rank]."""
    streams = [objective.batches(start, rank, world) for rank in range(world)]
    return [[next(stream) for stream in streams] for _ in range(count)]


def flat(batch: Any) -> list[Tensor]:
    """The tensors of a batch."""
    return [t for item in batch for t in ([item] if isinstance(item, Tensor) else item)]


def joined(parts: list[Any]) -> list[Tensor]:
    """The global batch of the processes' shares."""
    return [torch.cat(tensors) for tensors in zip(*map(flat, parts), strict=True)]


def assert_any_split(objective: Any) -> None:
    """The global batch of a step depends on neither the number of processes nor where one started."""
    whole = [joined(parts) for parts in shares(objective, 1, 0, 9)]
    for world in (2, 4):
        for step, parts in enumerate(shares(objective, world, 0, 9)):
            assert all(len(flat(part)[0]) == 4 // world for part in parts)
            assert all(torch.equal(a, b) for a, b in zip(joined(parts), whole[step], strict=True))
    for start in (1, 5, 8):
        later = [joined(parts) for parts in shares(objective, 2, start, 9 - start)]
        for a, b in zip(later, whole[start:], strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not any(torch.equal(a[0], b[0]) for a, b in itertools.combinations(whole, 2))


def heldout(objective: AutoencoderObjective) -> Tensor:
    """The held-out pictures, float."""
    return to_float(objective.images.pixels(objective.images.heldout))


# --- autoencoder ---


def test_the_loss_is_reconstruction_plus_commitment(tmp_path: Path) -> None:
    config = tiny(autoencoder={"commitment_cost": 0.7})
    objective = AutoencoderObjective(config, image_set(tmp_path, config))
    batch = next(objective.batches(0, 0, 1))
    model = objective.model.eval().requires_grad_(False)
    loss, logs = objective.loss(model, batch)
    images = to_float(batch[0])
    out = model(images)
    mse = (out.images - images).square().mean()
    commitment = 0.0
    inputs: list[Tensor] = []
    for quantizer in model.quantizers:
        quantizer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    codes = model(images).codes
    for quantizer, z, level in zip(model.quantizers, inputs, codes.levels, strict=True):
        commitment += 0.7 * float((quantizer.embeddings[level] - z).square().mean())
    assert float(loss) == pytest.approx(float(mse) + commitment, rel=1e-5)
    assert float(logs["mse"]) == pytest.approx(float(mse), rel=1e-5)
    assert float(logs["commitment"]) == pytest.approx(commitment, rel=1e-5)
    for index, level in enumerate(codes.levels):
        share = level.flatten().bincount() / level.numel()
        entropy = -float((share * share.clamp_min(1e-30).log()).sum())
        assert float(logs[f"batch_perplexity_{index}"]) == pytest.approx(math.exp(entropy), rel=1e-4)


def brute_usage(counts: np.ndarray) -> tuple[float, float]:
    """Share of the codes in use, and perplexity, from counts."""
    share = counts[counts > 0] / counts.sum()
    return len(share) / len(counts), float(np.exp(-(share * np.log(share)).sum()))


@pytest.mark.parametrize("batch", [4, 5, 20])
def test_epoch_statistics_are_those_of_the_epoch(batch: int, tmp_path: Path) -> None:
    """Counted by hand from what the quantizers gave out; each epoch anew, whatever the batch divides."""
    config = tiny(train={"batch": batch, "steps": 9, "evaluate_every": 2})
    objective = AutoencoderObjective(config, image_set(tmp_path, config))
    epoch_steps = math.ceil(len(objective.images.train) / batch)
    seen: list[list[np.ndarray]] = [[], []]
    for level, quantizer in enumerate(objective.model.quantizers):

        def note(module: Any, args: Any, out: Any, level: int = level) -> None:
            if module.training:
                size = module.num_embeddings
                seen[level].append(np.bincount(out.encoding_indices.flatten().numpy(), minlength=size))

        quantizer.register_forward_hook(note)
    run(objective, config.train_autoencoder, tmp_path / "run")
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "epoch" in line]
    assert [(line["step"], line["epoch"]) for line in lines] == [
        (epoch * epoch_steps, epoch) for epoch in range(1, 9 // epoch_steps + 1)
    ]
    for line in lines:
        for level in (0, 1):
            usage, perplexity = brute_usage(sum(seen[level][line["step"] - epoch_steps : line["step"]]))  # type: ignore[arg-type]
            assert line[f"usage_{level}"] == pytest.approx(usage)
            assert line[f"perplexity_{level}"] == pytest.approx(perplexity, rel=1e-6)
    rest = 9 % epoch_steps
    saved, _ = load_tensors(tmp_path / "run" / "checkpoints" / "last.safetensors")
    for level in (0, 1):
        count = saved[f"counts.{level}"]
        expected = sum(seen[level][9 - rest :]) if rest else np.zeros(len(count), np.int64)
        assert count.tolist() == expected.tolist()  # type: ignore[union-attr]


def test_usage_figures() -> None:
    counts = [torch.tensor([5, 0, 5, 0]), torch.tensor([1, 1, 1, 1, 1]), torch.tensor([0, 9])]
    figures = usage_figures(counts)
    for level, (usage, perplexity) in enumerate([(0.5, 2), (1, 5), (0.5, 1)]):
        assert figures[f"usage_{level}"] == usage
        assert figures[f"perplexity_{level}"] == pytest.approx(perplexity, rel=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 4, 100])
def test_heldout_figures_are_brute_force_at_any_batch_size(batch: int, tmp_path: Path) -> None:
    config = tiny(train={"batch": batch}, data={"holdout": 0.5, "flip": True, "shift": 3})
    objective = AutoencoderObjective(config, image_set(tmp_path, config))
    model = objective.model
    model.train()(to_float(objective.images.pixels(objective.images.train)))  # codebooks from the data
    for quantizer in model.quantizers:
        quantizer.usage.zero_()
    with torch.no_grad():
        model.decoder[-1][-1].weight *= 200  # some pixels beyond [-1, 1], which no picture has
    model.eval()
    figures = objective.evaluate(model, make_accelerator())
    images = heldout(objective)
    assert 4 < len(images) < 14
    with torch.no_grad():
        out = [model(image[None]) for image in images]
    assert max(float(item.images.abs().max()) for item in out) > 1
    errors = [
        float((item.images[0].double().clamp(-1, 1) - image).square().mean())
        for item, image in zip(out, images, strict=True)
    ]
    mse = sum(errors) / len(errors)
    assert figures["heldout_mse"] == pytest.approx(mse, rel=1e-5)
    assert figures["score"] == figures["heldout_mse"]
    assert figures["heldout_psnr"] == pytest.approx(10 * math.log10(4 / mse), rel=1e-5)
    each = sum(10 * math.log10(4 / error) for error in errors) / len(errors)
    assert figures["heldout_psnr_per_picture"] == pytest.approx(each, rel=1e-5)
    for level, size in enumerate(config.autoencoder.codes):
        codes = torch.cat([item.codes.levels[level].flatten() for item in out]).numpy()
        usage, perplexity = brute_usage(np.bincount(codes, minlength=size))
        assert figures[f"heldout_usage_{level}"] == pytest.approx(usage)
        assert figures[f"heldout_perplexity_{level}"] == pytest.approx(perplexity, rel=1e-6)
    assert not any(count.any() for count in objective.counts()), "evaluation is no training"


def test_a_perceptual_term_is_added_with_its_weight(tmp_path: Path) -> None:
    """And measured on the held-out pictures, which decides with it which weights are best; none of it is the model's."""
    plain = tiny(autoencoder={"variance": 0.5})
    images = image_set(tmp_path, plain)
    figures, losses = {}, {}
    for weight in (0.0, 0.3):
        config = changed(plain, train_autoencoder={"perceptual": weight, "perceptual_weights": "vgg"})
        objective = AutoencoderObjective(config, images, Halves())
        batch = next(objective.batches(0, 0, 1))
        model = objective.model.eval().requires_grad_(False)
        loss, logs = objective.loss(model, batch)
        losses[weight] = float(loss)
        assert ("perceptual" in logs) == bool(weight)
        figures[weight] = objective.evaluate(model, make_accelerator())
        assert set(objective.model.state_dict()) == set(VQVAE(config.autoencoder).state_dict())
    assert losses[0.3] - losses[0.0] == pytest.approx(0.3 * float(logs["perceptual"]), rel=1e-4)
    originals = to_float(batch[0])
    again = model(originals).images
    assert float(logs["perceptual"]) == pytest.approx(float((again - originals).abs().mean()) / 2, rel=1e-5)
    distance = figures[0.3]["heldout_perceptual"]
    assert distance == pytest.approx(figures[0.0]["heldout_perceptual"])
    pictures = heldout(objective)
    expected = (model(pictures).images.clamp(-1, 1) - pictures).abs().mean() / 2
    assert distance == pytest.approx(float(expected), rel=1e-5)
    assert figures[0.0]["score"] == figures[0.0]["heldout_mse"]
    assert figures[0.3]["score"] == pytest.approx(figures[0.3]["heldout_mse"] + 0.5 * 0.3 * distance)


def test_sharpness_is_the_share_of_the_details_energy() -> None:
    """1 for the picture itself, the factor's square for a weaker one, less for a blurred one; level and slope are none."""
    x = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    energy = detail(x)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    by_hand = functional.conv2d(x.flatten(0, 1)[:, None], kernel).square().sum((1, 2, 3)).view(2, 3).sum(1)
    assert energy == pytest.approx(by_hand, rel=1e-5)
    assert detail(x / 2) == pytest.approx(energy / 4, rel=1e-5)
    assert (detail(functional.avg_pool2d(x, 3, 1, 1)) < energy / 4).all()
    ramp = torch.arange(9.0).expand(1, 1, 9, 9) + 5
    assert detail(ramp).tolist() == [0]
    assert sharpness(3.0, 4.0) == 0.75
    assert sharpness(2e-3, 0.0) == sharpness(0.0, 1e-12) == 1.0  # originals without any detail


def test_a_perfect_reconstruction_has_a_finite_psnr(tmp_path: Path) -> None:
    config = tiny()
    objective = AutoencoderObjective(config, image_set(tmp_path, config))

    class Same(VQVAE):
        def forward(self, images: Tensor) -> Any:
            out = super().forward(images)
            object.__setattr__(out, "images", images)
            return out

    figures = objective.evaluate(Same(config.autoencoder).eval(), make_accelerator())
    assert figures["heldout_mse"] <= 1.01e-10
    assert figures["heldout_psnr"] == pytest.approx(106.02, abs=0.01)


@pytest.mark.parametrize("count", [1, 3, 8, 9, 15, 16, 17, 40])
def test_every_original_stands_above_its_reconstruction(count: int, tmp_path: Path) -> None:
    config = tiny()
    images = image_set(tmp_path, config, count=max(count + 1, 14))
    images.heldout = np.arange(count)
    objective = AutoencoderObjective(config, images)
    objective.model.eval()
    objective.draw(objective.model, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    pixels = images.pixels(images.heldout)
    with torch.no_grad():
        again = objective.model(to_float(pixels)).images
    shown: set[int] = set()
    columns = min(8, count)
    assert sheet.shape[:2] == (2 + 18 * (4 if count >= 16 else 2), 2 + 18 * columns)
    for row, column in itertools.product(range(0, sheet.shape[0] // 18, 2), range(columns)):
        above, below = (
            sheet[2 + 18 * (row + i) : 18 + 18 * (row + i), 2 + 18 * column : 18 + 18 * column]
            for i in (0, 1)
        )
        fits = (pixels.numpy() == above).all((1, 2, 3))
        assert fits.sum() == 1, "an original"
        number = int(fits.argmax())
        expected = np.asarray(grid(again[number : number + 1], 1, margin=0).convert("RGB"))
        assert np.abs(below.astype(int) - expected.astype(int)).max() <= 1
        shown.add(number)
    assert len(shown) == (16 if count >= 16 else min(count, 8))


def test_autoencoder_batches_at_any_split(tmp_path: Path) -> None:
    config = tiny(data={"flip": True, "shift": 2})
    objective = AutoencoderObjective(config, image_set(tmp_path, config, classes=("a", "b")))
    assert_any_split(objective)


def test_training_batches_hold_no_heldout_picture(tmp_path: Path) -> None:
    config = tiny()
    objective = AutoencoderObjective(config, image_set(tmp_path, config))
    held = {image.numpy().tobytes() for image in objective.images.pixels(objective.images.heldout)}
    batches = itertools.islice(objective.batches(0, 0, 1), 10)
    seen = {image.numpy().tobytes() for images, _ in batches for image in images}
    assert not held & seen
    assert len(seen) == len(objective.images.train), "all the others, and nothing else"


@pytest.mark.parametrize(
    "data", [{}, {"flip": True}, {"flip": True, "shift": 2}, {"crop": "random", "scale": 1.5, "shift": 1}]
)
def test_images_kept_on_the_device_give_the_same_batches(data: dict[str, Any], tmp_path: Path) -> None:
    """Gathered, cropped, shifted and mirrored there: the same pixels and the same loss, at any start and share."""
    config = tiny(data=data)
    images = image_set(tmp_path, config)
    plain, resident = AutoencoderObjective(config, images), AutoencoderObjective(config, images)
    assert resident.keep_on(torch.device("cpu"), 0) == 0
    assert resident.training.resident is None
    taken = resident.keep_on(torch.device("cpu"), 10**6)
    kept = resident.training.resident
    assert kept is not None
    assert taken == kept.pixels.numel() > 0
    for start, rank, world in ((0, 0, 1), (3, 1, 2)):
        ours, theirs = plain.batches(start, rank, world), resident.batches(start, rank, world)
        for expected, places in itertools.islice(zip(ours, theirs, strict=False), 6):
            assert torch.equal(kept.pixels_at(*places), expected[0])
            losses = [
                objective.loss(objective.model, batch)[0]
                for objective, batch in ((plain, expected), (resident, places))
            ]
            assert torch.equal(*losses)


@pytest.mark.parametrize(
    "data", [{}, {"flip": True}, {"flip": True, "shift": 2}, {"crop": "random", "scale": 1.5, "shift": 1}]
)
@pytest.mark.parametrize("cache_gb", [8.0, 0.0])
def test_stored_images_that_the_device_cuts_give_the_same_batches(
    cache_gb: float, data: dict[str, Any], tmp_path: Path
) -> None:
    """From the cache and decoded anew: the same images and losses as batches that the host cuts."""
    config = tiny(data={**data, "cache_gb": cache_gb})
    images = image_set(tmp_path, config)
    plain, cutting = AutoencoderObjective(config, images), AutoencoderObjective(config, images)
    cutting.training.cuts_there = True
    cpu = torch.device("cpu")
    for start, rank, world in ((0, 0, 1), (3, 1, 2)):
        ours, theirs = plain.batches(start, rank, world), cutting.batches(start, rank, world)
        for expected, stored in itertools.islice(zip(ours, theirs, strict=False), 6):
            assert torch.equal(cutting.training.scaled(stored, cpu), plain.training.scaled(expected, cpu))
            assert torch.equal(plain.loss(plain.model, expected)[0], cutting.loss(cutting.model, stored)[0])


# --- prior ---


def prior(place: Path, level: int = 1, classes: int = 3, **options: Any) -> PriorObjective:
    """The objective of one level on random codes, with weights that were shaken: fresh ones give uniform logits."""
    settings = options.pop("settings", {})
    config = with_classes(tiny(levels=3, **settings), classes)
    objective = PriorObjective(config, code_store(place, config, classes=classes, **options), level)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in objective.model.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
    return objective


def by_hand(objective: PriorObjective, indices: Any, hide: bool = False) -> np.ndarray:
    """The NLL in nats of every code of some pictures, each alone, from the logits: [n, H, W]."""
    model, level = objective.model.eval(), objective.level
    found = []
    for index in indices:
        codes = objective.store.codes([index]).levels
        label = torch.tensor([objective.classes if hide else int(objective.store.labels[index])])
        with torch.no_grad():
            logits = model(codes[level], codes[:level], label if objective.classes else None)[0].double().numpy()  # fmt: skip
        normal = np.log(np.exp(logits).sum(0))
        h, w = np.indices(normal.shape)
        found.append(normal - logits[codes[level][0].numpy(), h, w])
    return np.stack(found)


def accuracy_by_hand(objective: PriorObjective, indices: Any) -> float:
    """The share of codes of some pictures that no other code beats, each position asked for alone with what is before it."""
    model, level, right = objective.model.eval(), objective.level, []
    for index in indices:
        codes = objective.store.codes([index]).levels
        label = torch.tensor([int(objective.store.labels[index])]) if objective.classes else None
        for y, x in np.ndindex(*codes[level].shape[1:]):
            before = torch.zeros_like(codes[level])
            before[:, :y], before[:, y, :x] = codes[level][:, :y], codes[level][:, y, :x]
            with torch.no_grad():
                logits = model(before, codes[:level], label)[0, :, y, x].tolist()
            right.append(logits.index(max(logits)) == int(codes[level][0, y, x]))
    return float(np.mean(right))


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("classes", [0, 3])
def test_nll_is_the_cross_entropy_by_hand(level: int, classes: int, tmp_path: Path) -> None:
    """Held-out pictures all of them, training ones by the probe; bits are nats / ln 2; no label is hidden."""
    objective = prior(tmp_path, level, classes)
    objective.model.eval()
    figures = objective.evaluate(objective.model, make_accelerator())
    held, train = by_hand(objective, range(4)).mean(), by_hand(objective, range(4, 14)).mean()
    assert figures["heldout_nats"] == pytest.approx(held, rel=1e-5)
    assert figures["train_nats"] == pytest.approx(train, rel=1e-5)
    assert held != pytest.approx(train, rel=1e-4)
    assert figures["score"] == figures["heldout_nats"]
    assert figures["heldout_accuracy"] == pytest.approx(accuracy_by_hand(objective, range(4)))
    for side in ("heldout", "train"):
        assert figures[f"{side}_bits"] * math.log(2) == pytest.approx(figures[f"{side}_nats"])
    assert figures["uniform_bits"] == pytest.approx(math.log2((8, 10, 12)[level]))
    if classes:
        change = by_hand(objective, range(4), hide=True) - by_hand(objective, range(4))
        assert np.abs(change).max() > 0.1, "the label matters here"


@pytest.mark.parametrize("batch", [1, 3, 4, 50])
def test_nll_does_not_depend_on_the_batch_size(batch: int, tmp_path: Path) -> None:
    objective = prior(tmp_path, settings={"train": {"batch": batch}})
    objective.model.eval()
    found = objective.evaluate(objective.model, make_accelerator())
    assert found["heldout_nats"] == pytest.approx(by_hand(objective, range(4)).mean(), rel=1e-5)
    assert found["heldout_accuracy"] == pytest.approx(accuracy_by_hand(objective, range(4)))


def test_the_logits_of_a_batch_are_freed_before_the_next(tmp_path: Path) -> None:
    """At the sizes of the paper they are gigabytes."""
    objective = prior(tmp_path, settings={"train": {"batch": 1}})
    alive: list[int] = []
    made: list[weakref.ref[Tensor]] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = objective.model.eval()

        def forward(self, *inputs: Any) -> Tensor:
            alive.append(sum(logits() is not None for logits in made))
            logits: Tensor = self.inner(*inputs)
            made.append(weakref.ref(logits))
            return logits

    objective.evaluate(Watched(), make_accelerator())
    objective.draw(Watched(), tmp_path / "maps.png")
    assert len(alive) > 8
    assert not any(alive)


def test_an_untrained_prior_is_nearly_uniform(tmp_path: Path) -> None:
    config = tiny()
    objective = PriorObjective(config, code_store(tmp_path, config), 1)
    figures = objective.evaluate(objective.model.eval(), make_accelerator())
    assert figures["heldout_bits"] == pytest.approx(math.log2(10), abs=0.1)
    assert figures["uniform_bits"] == pytest.approx(math.log2(10))


def test_the_training_loss_is_the_mean_nll_in_nats(tmp_path: Path) -> None:
    level = {"label_dropout": 0.0, "hidden": 8, "residual": 8, "layers": 1, "kernel": 3}
    settings = {"train_prior": [TRAIN] * 3, "prior": {"levels": [level] * 3}}
    objective = prior(tmp_path, settings=settings)
    objective.model.eval()
    batch = next(objective.batches(3, 0, 1))
    loss, logs = objective.loss(objective.model, batch)
    numbers = [
        next(i for i in objective.store.train if torch.equal(objective.store.codes([i]).levels[1][0], codes))
        for codes in batch[0][1]
    ]
    assert float(loss.detach()) == pytest.approx(by_hand(objective, numbers).mean(), rel=1e-5)
    assert logs == {}


def labels_seen(objective: PriorObjective, count: int) -> tuple[Tensor, Tensor]:
    """The labels of `count` batches, and the ones that reached the model."""
    asked, given = [], []
    hook = objective.model.register_forward_pre_hook(lambda _, args: given.append(args[2]))
    for batch in itertools.islice(objective.batches(0, 0, 1), count):
        asked.append(batch[1])
        objective.loss(objective.model, batch)
    hook.remove()
    return torch.cat(asked), torch.cat(given)


def evaluated_labels(objective: PriorObjective) -> tuple[Tensor, Tensor]:
    """The labels of the pictures that are evaluated, and the ones that reached the model."""
    given: list[Tensor] = []
    hook = objective.model.register_forward_pre_hook(lambda _, args: given.append(args[2]))
    objective.evaluate(objective.model.eval(), make_accelerator())
    hook.remove()
    numbers = [*objective.store.heldout, *objective.probe]
    return torch.tensor([int(objective.store.labels[i]) for i in numbers]), torch.cat(given)


class Known(nn.Module):
    """A prior that gives the true code of picture i the probability of exactly `nats`[i] at each position."""

    def __init__(self, nats: Tensor, k: int) -> None:
        super().__init__()
        self.nats, self.k = nn.Parameter(nats), k
        self.seen = 0

    def forward(self, codes: Tensor, *_: Any) -> Tensor:
        """Logits [B, K, H, W]; pictures are asked for in order."""
        p = (-self.nats[self.seen : self.seen + len(codes)]).exp()[:, None]
        self.seen += len(codes)
        true = nn.functional.one_hot(codes, self.k).permute(0, 3, 1, 2)
        return torch.where(true > 0, p, (1 - p) / (self.k - 1)).log()


@pytest.mark.parametrize("heldout", [1, 4, 11])
def test_the_map_of_the_nll_is_known_where_the_nll_is(heldout: int, tmp_path: Path) -> None:
    """Black is 0, white `uniform_bits` or more, in between in proportion; the mean first, then up to seven pictures."""
    config = tiny(train={"batch": 3})
    objective = PriorObjective(config, code_store(tmp_path, config, 15, heldout=heldout), 1)
    shares = torch.rand(heldout, 4, 4, generator=torch.Generator().manual_seed(0))
    shares[:, 0, 0], shares[:, 1, 2], shares[:, 3, 3] = 0, 1, 1.5
    objective.draw(Known(shares * math.log(10), 10), tmp_path / "map.png")
    tiles = torch.cat([shares.mean(0, keepdim=True), shares[:7]])
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.size == (2 + 4 * 130, 2 + (1 if len(tiles) <= 4 else 2) * 130)
        shown = np.asarray(picture.convert("L")).astype(np.float64)
    for index, tile in enumerate(tiles):
        x, y = 2 + index % 4 * 130, 2 + index // 4 * 130
        found = shown[y : y + 128, x : x + 128].reshape(4, 32, 4, 32)
        assert (found == found[:, :1, :, :1]).all(), "each position is one square"
        assert np.abs(found[:, 0, :, 0] - 255 * tile.clamp(max=1).numpy()).max() < 1


def test_a_map_is_the_mean_of_a_part_of_many_pictures(tmp_path: Path) -> None:
    """So that it takes no longer for a large data set."""
    config = tiny(train={"batch": 50})
    objective = PriorObjective(config, code_store(tmp_path, config, 300, heldout=280), 0)
    model = Known(torch.ones(280, 2, 2), 8)
    objective.draw(model, tmp_path / "map.png")
    assert model.seen == 128
    chosen = spread(np.arange(280), 128)
    assert (len(chosen), chosen[0]) == (128, 0)
    assert set(np.diff([*chosen, 280])) == {2, 3}, "up to the last picture"


def test_checkpointing_trains_the_same_weights(tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        config = tiny(train={"average": 0.5})
        priors = [s.model_dump() | {"checkpointing": checkpointing} for s in config.train_prior]
        config = changed(config, train_prior=priors)
        place = tmp_path / str(checkpointing)
        objective = stage("prior", place, config)
        assert objective.model.checkpointing == checkpointing
        found.append(result(objective, place, run(objective, objective.settings, place)))
    assert_same(*found)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_label_dropout(share: float, tmp_path: Path) -> None:
    """Share 0 hides none, 1 all, others about as many; what is not hidden is the picture's own label."""
    level = {"label_dropout": share, "hidden": 8, "residual": 8, "layers": 1, "kernel": 3}
    objective = prior(tmp_path, settings={"prior": {"levels": [level] * 3}, "train": {"batch": 50}})
    asked, given = labels_seen(objective, 20)
    hidden = given == 3
    assert torch.equal(given[~hidden], asked[~hidden])
    assert int(asked.max()) == 2
    assert float(hidden.double().mean()) == pytest.approx(share, abs=0.07 if 0 < share < 1 else 0)
    asked, given = evaluated_labels(objective)
    assert torch.equal(asked, given), "evaluation hides no label"


def codes_seen(objective: PriorObjective, count: int) -> list[tuple[Tensor, Tensor]]:
    """Of each level, the codes of `count` batches and the ones that reached the model; the loss is that of the true ones."""
    asked, given = [], []
    hook = objective.model.register_forward_pre_hook(lambda _, args: given.append(args))
    for batch in itertools.islice(objective.batches(0, 0, 1), count):
        loss, _ = objective.loss(objective.model, batch)
        asked.append([level.long() for level in batch[0]])
        logits = objective.model(*given[-1])
        given.pop()
        torch.testing.assert_close(loss, functional.cross_entropy(logits, asked[-1][-1]))
    hook.remove()
    seen = [[*coarser, own] for own, coarser, _ in given]
    levels = range(objective.level + 1)
    return [(torch.cat([a[level] for a in asked]), torch.cat([s[level] for s in seen])) for level in levels]


@pytest.mark.parametrize("kind", ["pixelcnn", "transformer"])
@pytest.mark.parametrize("share", [0.0, 0.15, 0.6])
def test_code_dropout(share: float, kind: str, tmp_path: Path) -> None:
    """About this share of the codes that a network sees, of every level, is drawn uniformly; it predicts the true ones."""
    level = {"kind": kind, "hidden": 8, "residual": 8, "layers": 1, "heads": 2, "dropout": 0.0}
    training = TRAIN | {"batch": 50, "code_dropout": share}
    settings = {"train_prior": [training] * 3, "prior": {"levels": [level] * 3}}
    objective = prior(tmp_path, 2, settings=settings)
    torch.manual_seed(0)  # so that every run of the test draws the same codes
    for size, (true, seen) in zip((8, 10, 12), codes_seen(objective, 20), strict=True):
        other = true != seen
        assert float(other.double().mean()) == pytest.approx(share * (1 - 1 / size), abs=0.02 if share else 0)
        far = ((seen - true) % size)[other].bincount(minlength=size)[1:].double()  # all as often: uniform
        assert far.std() <= 0.15 * far.mean()
    given: list[Any] = []
    objective.model.register_forward_pre_hook(lambda _, args: given.append(args))
    objective.evaluate(objective.model.eval(), make_accelerator())
    stored = objective.store.codes([*objective.store.heldout, *objective.probe]).levels
    for level, codes in enumerate(stored):
        seen = torch.cat([[*coarser, own][level] for own, coarser, _ in given])
        assert torch.equal(seen, codes.long()), "evaluation replaces no code"


def test_without_code_dropout_no_number_is_drawn_for_it(tmp_path: Path) -> None:
    """A training with 0 is bit for bit the one of before the setting was there."""
    level = {"label_dropout": 0.1, "hidden": 8, "residual": 8, "layers": 1, "kernel": 3, "dropout": 0.0}
    objective = prior(tmp_path, settings={"train_prior": [TRAIN] * 3, "prior": {"levels": [level] * 3}})
    batch = next(objective.batches(0, 0, 1))
    torch.manual_seed(3)
    objective.loss(objective.model, batch)
    after = torch.random.get_rng_state()
    torch.manual_seed(3)
    objective.model.dropped(batch[1])
    assert torch.equal(torch.random.get_rng_state(), after)


def test_without_classes_no_label_is_given(tmp_path: Path) -> None:
    objective = prior(tmp_path, classes=0)
    given: list[Any] = []
    objective.model.register_forward_pre_hook(lambda _, args: given.append(args[2]))
    objective.loss(objective.model, next(objective.batches(0, 0, 1)))
    assert given == [None]


def test_the_probe_is_fixed_and_spread_over_the_training_pictures(tmp_path: Path) -> None:
    config = tiny()
    big = code_store(tmp_path / "big", config, count=3000, heldout=100)
    probes = [PriorObjective(changed(config, seed=seed), big, level).probe for seed in (0, 1) for level in (0, 1)]  # fmt: skip
    assert all(np.array_equal(probe, probes[0]) for probe in probes)
    assert len(set(probes[0])) == 512
    assert set(probes[0]) <= set(big.train)
    assert np.histogram(probes[0], bins=4, range=(100, 3000))[0].tolist() == [128] * 4
    small = code_store(tmp_path / "small", config)
    assert np.array_equal(PriorObjective(config, small, 0).probe, small.train)


def test_the_probe_is_not_augmented(tmp_path: Path) -> None:
    """The store holds the training pictures as they are first, then their augmented copies."""
    config = tiny(train={"batch": 4}, train_prior=[{**tiny().train_prior[0].model_dump(), "copies": n} for n in (1, 3)])  # fmt: skip
    assert copies(config) == 3
    store = code_store(tmp_path, config, count=4 + 3 * 10)
    for level in (0, 1):
        assert PriorObjective(config, store, level).probe.tolist() == list(range(4, 14))


def test_prior_batches_at_any_split(tmp_path: Path) -> None:
    assert_any_split(prior(tmp_path, level=2))


def test_prior_batches_hold_every_training_picture_once_an_epoch(tmp_path: Path) -> None:
    """With its label and its coarser codes; never a held-out one."""
    objective = prior(tmp_path, level=1, count=16)
    store = objective.store
    for epoch in range(3):
        numbers = []
        for (coarse, fine), labels in itertools.islice(objective.batches(3 * epoch, 0, 1), 3):
            for a, b, label in zip(coarse, fine, labels, strict=True):
                fits = [
                    int(i)
                    for i in store.train
                    if torch.equal(store.codes([i]).levels[0][0], a)
                    and torch.equal(store.codes([i]).levels[1][0], b)
                ]
                assert [int(store.labels[i]) for i in fits] == [int(label)]
                numbers += fits
        assert sorted(numbers) == store.train.tolist()


def test_levels_see_the_pictures_in_different_orders(tmp_path: Path) -> None:
    config = with_classes(tiny(), 3)
    store = code_store(tmp_path, config, classes=3)
    first, second = (next(PriorObjective(config, store, level).batches(0, 0, 1)) for level in (0, 1))
    assert not torch.equal(first[0][0], second[0][0])


def scaled_down(name: str) -> Config:
    """A preset with every switch as it is, but fewer of what the switches count: widths, layers, positions, codes."""
    value = preset(name).model_dump(mode="json")
    value["data"]["size"] = 4 * math.prod(value["autoencoder"]["strides"])
    value["autoencoder"]["codes"] = [16 for _ in value["autoencoder"]["codes"]]
    value["prior"]["classes"] = min(value["prior"]["classes"], 3)
    for level, training in zip(value["prior"]["levels"], value["train_prior"], strict=True):
        level |= {"residual": 16 * level["residual"] // level["hidden"], "hidden": 16}
        for count in ("layers", "attention_every", "output_layers", "condition_blocks"):
            level[count] = math.ceil(level[count] / 5)
        training |= {"steps": 30, "batch": 16, "warmup": 3, "lr": 1e-2, "log_every": 1, "evaluate_every": 30}
    return parse(value)


@pytest.mark.parametrize("name", ["imagenet256", "ffhq1024"])
def test_a_small_copy_of_each_of_the_papers_priors_learns(name: str, tmp_path: Path) -> None:
    """Pictures of one code each: from log K, held-out bits fall by more than half in 30 steps."""
    config = scaled_down(name)
    store = code_store(tmp_path / "codes", config, 80, config.prior.classes, 20, plain=True)
    for level, training in enumerate(config.train_prior):
        objective, folder = PriorObjective(config, store, level), tmp_path / f"level-{level}"
        outcome = run(objective, training, folder)
        losses = [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
        assert losses[0] == pytest.approx(math.log(16), rel=1e-3)
        assert losses[-1] < losses[0] / 2
        assert outcome.figures["heldout_bits"] < outcome.figures["uniform_bits"] / 2


def test_codes_kept_on_the_device_give_the_same_batches(tmp_path: Path) -> None:
    plain, resident = (prior(tmp_path / name) for name in ("a", "b"))
    assert resident.keep_on(torch.device("cpu"), 100) == 0
    assert resident.resident is None
    assert resident.keep_on(torch.device("cpu"), 10**6) == 14 * (2 * (2 * 2 + 4 * 4) + 8)
    for start, rank, world in ((0, 0, 1), (3, 1, 2)):
        ours, theirs = plain.batches(start, rank, world), resident.batches(start, rank, world)
        for expected, indices in itertools.islice(zip(ours, theirs, strict=False), 6):
            losses = []
            for objective, batch in ((plain, expected), (resident, indices)):
                torch.manual_seed(start)
                losses.append(objective.loss(objective.model, batch)[0])
            assert torch.equal(*losses)


def test_codes_travel_as_16_bits_and_mean_what_they_meant(tmp_path: Path) -> None:
    """Also those above 32,767, which 16 bits with a sign would take for negative ones."""
    config = changed(tiny(autoencoder={"codes": [8, 65536]}), train_prior=[TRAIN] * 2)
    objective = PriorObjective(config, code_store(tmp_path, config), 1)
    assert objective.store.codes(objective.store.train).levels[1].max() > 2**15
    seen: list[Tensor] = []
    objective.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    indices = next(TrainingOrder(objective.store.train, 4, config.seed + 1).steps())[1]
    batch = next(objective.batches(0, 0, 1))
    assert {level.dtype for level in batch[0]} == {torch.int16}
    objective.loss(objective.model, batch)
    assert torch.equal(seen[0], objective.store.codes(indices).levels[1])


# --- both ---


def test_initial_weights_are_a_function_of_the_seed_alone(tmp_path: Path) -> None:
    """And the global random state is left alone."""
    config = tiny()
    images, store = image_set(tmp_path, config), code_store(tmp_path / "codes", config)
    for make in (
        lambda seed: AutoencoderObjective(changed(config, seed=seed), images),
        lambda seed: PriorObjective(changed(config, seed=seed), store, 1),
    ):
        weights = []
        for number, seed in enumerate((3, 3, 4)):
            torch.manual_seed(number)
            before = torch.random.get_rng_state()
            model: VQVAE | LevelPrior = make(seed).model
            assert torch.equal(torch.random.get_rng_state(), before)
            weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])


def test_embeddings_start_from_the_codebooks_that_are_given(tmp_path: Path) -> None:
    """Those of equal codes would be equal but for their own half of the variance."""
    config = tiny()
    store = code_store(tmp_path, config)
    codebooks = [torch.zeros(k, 4) for k in config.autoencoder.codes]
    plain, given = PriorObjective(config, store, 1), PriorObjective(config, store, 1, codebooks)
    assert given.model.embedding.weight.std() < 0.9 < plain.model.embedding.weight.std()
    assert not torch.equal(plain.model.embedding.weight, given.model.embedding.weight)


@pytest.mark.parametrize("variance", [1.0, 0.25])
def test_the_error_is_divided_by_the_variance(tmp_path: Path, variance: float) -> None:
    config = tiny(autoencoder={"variance": variance})
    objective = AutoencoderObjective(config, image_set(tmp_path, config))
    loss, logs = objective.loss(objective.model, next(objective.batches(0, 0, 1)))
    assert loss.item() == pytest.approx((logs["mse"] / variance + logs["commitment"]).item(), rel=1e-6)


# --- what an evaluation looks at ---


@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_evaluation_holds_at_most_what_a_part_of_a_step_holds(
    kind: str, accumulate: int, tmp_path: Path
) -> None:
    """Of a card's share, not of the whole batch: with 32 cards it ran out of memory. The figures stay the same."""
    config = tiny(train={"batch": 8, "accumulate": accumulate}, data={"holdout": 0.6})
    objective = stage(kind, tmp_path, config)
    objective.model.eval()
    seen: list[int] = []
    objective.model.register_forward_hook(lambda model, args, out: seen.append(len(args[0])))
    sums: list[list[np.ndarray]] = [[], []]
    for processes, total in zip((1, 2), sums, strict=True):
        for rank in range(processes):
            reduce = lambda value, how, total=total: total.append(value.numpy().copy()) or value  # noqa: E731
            group: Any = SimpleNamespace(
                num_processes=processes, process_index=rank, device=torch.device("cpu"), reduce=reduce
            )
            seen.clear()
            figures = objective.evaluate(objective.model, group)
            assert max(seen) <= 8 // processes // accumulate
        if processes == 1:
            key = "heldout_mse" if kind == "autoencoder" else "heldout_nats"
            one, count = figures[key], len(objective.judged.images)
    both = [value[0] for value in sums[1] if value.dtype == np.float64 and len(value) in (2, 5)]
    heldout = both if kind == "autoencoder" else both[::2]  # then those of the training images
    assert sum(heldout) / count == pytest.approx(one, rel=1e-5)


def test_an_evaluation_may_look_at_some_of_the_images(tmp_path: Path) -> None:
    """Always the same ones during the training, evenly spread; the figures at the end are of all."""
    config = tiny(train={"evaluate_on": 2, "evaluate_every": 2, "steps": 4})
    objective = stage("autoencoder", tmp_path, config)
    looked: list[list[int]] = []
    usual = objective.evaluate

    def evaluate(model: Any, accelerator: Any) -> dict[str, Any]:
        looked.append(objective.judged.chosen.tolist())
        return usual(model, accelerator)

    objective.evaluate = evaluate  # type: ignore[method-assign]
    outcome = run(objective, config.train_autoencoder, tmp_path / "run")
    every = objective.judged.images.tolist()
    assert looked == [spread(objective.judged.images, 2).tolist()] * 2 + [every]
    assert len(every) > 2
    whole = changed(config, train_autoencoder={"evaluate_on": 0})
    other = AutoencoderObjective(whole, image_set(tmp_path, whole))
    other.model.load_state_dict(objective.model.state_dict())
    assert outcome.figures == other.evaluate(other.model.eval(), make_accelerator())
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "heldout_mse" in line]
    assert outcome.best_score == min(line["heldout_mse"] for line in lines)


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_every_process_is_asked_as_often(batches: int) -> None:
    """A process with fewer images than another one would leave it waiting."""
    asked: list[int] = []
    judged = HeldOut(np.arange(13), TrainConfig(batch=4))
    with judged.asking(lambda: asked.append(1)):
        assert list(judged.polled(range(batches), 13, 2)) == list(range(batches))  # 7 of a process, by 2
    assert len(asked) == 4
