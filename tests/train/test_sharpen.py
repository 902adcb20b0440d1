"""The sharpening of the decoder: who learns what from which loss, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dispatch_modes import NoSynchronisation
from PIL import Image
from torch import nn
from train_helpers import TRAIN, Halves, Spoken, assert_same, changed, image_set, result, run, signal_at, tiny

from vqvae2.autoencoder.model import VQVAE
from vqvae2.config.models import Config, ConfigError, parse
from vqvae2.data.batches import sequential
from vqvae2.data.pixels import psnr
from vqvae2.files.run_folder import RunFolder
from vqvae2.files.tensor_file import load_tensors, save_tensors
from vqvae2.train.device import make_accelerator
from vqvae2.train.loop import Interrupted
from vqvae2.train.remarks import say_sharpened
from vqvae2.train.sharpen import SharpenObjective
from vqvae2.train.state import read_metrics

SHARPEN: dict[str, Any] = {**TRAIN, "average": 0.5, "begin": 0, "width": 4, "depth": 2}


def settings(levels: int = 2, **patch: Any) -> Config:
    """A tiny configuration with this sharpening."""
    return changed(tiny(levels), sharpen={**SHARPEN, **patch})


def sharpening(place: Path, config: Config, distance: nn.Module | None = None) -> SharpenObjective:
    """The objective, for an autoencoder of random weights whose codes are in use."""
    torch.manual_seed(1)
    plain = VQVAE(config.autoencoder)
    images = image_set(place, config)
    plain.train()(next(sequential(images, images.train, config.data, batch=8))[0])  # first codebooks
    return SharpenObjective(config, images, plain, distance)


def first(objective: SharpenObjective) -> torch.Tensor:
    """The images of the first batch, in [-1, 1]."""
    return objective.training.scaled(next(objective.batches(0, 0, 1)), torch.device("cpu"))


def losses(objective: SharpenObjective, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of the first batch."""
    torch.manual_seed(seed)
    return objective.loss(objective.model, next(objective.batches(0, 0, 1)))


def gradients(objective: SharpenObjective) -> dict[str, torch.Tensor]:
    """The gradients of the loss of the first batch, by name."""
    objective.model.zero_grad()
    losses(objective)[0].backward()
    return {k: p.grad.clone() for k, p in objective.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_it_begins_as_the_plain_decoder(levels: int, tmp_path: Path) -> None:
    objective = sharpening(tmp_path, settings(levels))
    images = first(objective)
    codes = objective.plain.encode(images)
    again = objective.model.decode(objective.vectors(codes)).clamp(-1, 1)
    torch.testing.assert_close(again, objective.plain.decode(codes))
    assert set(objective.weights()) < set(objective.plain.state_dict())


def test_only_the_decoder_changes(tmp_path: Path) -> None:
    """The plain autoencoder stays as it was to the last bit, buffers included; every weight of the copy learns."""
    objective = sharpening(tmp_path, settings())
    before = {k: v.clone() for k, v in objective.plain.state_dict().items()}
    start = {k: v.clone() for k, v in objective.weights().items()}
    run(objective, objective.config.sharpen, tmp_path / "sharpen")
    assert_same(before, objective.plain.state_dict())
    assert all(not torch.equal(value, start[name]) for name, value in objective.weights().items())


def test_each_network_learns_from_its_own_loss(tmp_path: Path) -> None:
    """With an adversarial weight of 0 the decoder has the gradient of the squared error, and the discriminator its own still."""
    with_it = gradients(sharpening(tmp_path, settings(adversarial=1.0)))
    without = gradients(sharpening(tmp_path, settings(adversarial=0.0)))
    objective = sharpening(tmp_path, settings())
    images = first(objective)
    sharp = objective.model.decode(objective.vectors(objective.plain.encode(images)))
    (sharp - images).square().mean().backward()
    for name, parameter in objective.model.named_parameters():
        if name.startswith("discriminator"):
            assert torch.equal(with_it[name], without[name]), name
            assert with_it[name].abs().sum() > 0 or name.endswith("6.bias"), name  # whose two parts cancel
        else:
            assert parameter.grad is not None
            torch.testing.assert_close(without[name], parameter.grad)
            assert not torch.allclose(with_it[name], without[name]), name


@pytest.mark.parametrize("weight", [0.5, 2.0])
@pytest.mark.parametrize("slope", [1e-3, 1e3])
def test_the_weight_is_relative_to_the_squared_error(weight: float, slope: float, tmp_path: Path) -> None:
    """A steep discriminator's gradient at the images is so many times as long as that of the squared error; a flat one's shorter."""
    objective = sharpening(tmp_path, settings(adversarial=weight, loss="hinge"))
    with torch.no_grad():
        for parameter in objective.model.discriminator.layers[-1].parameters():
            parameter.mul_(slope)
    images = first(objective)
    codes = objective.plain.encode(images)
    sharp = objective.model.decode(objective.vectors(codes))
    (of_error,) = torch.autograd.grad((sharp - images).square().mean(), sharp, retain_graph=True)
    adversarial, _ = objective.model._adversarial(sharp, (sharp - images).detach())
    (of_adversary,) = torch.autograd.grad(adversarial, sharp)
    ratio = (of_adversary.norm() / of_error.norm()).item()
    if slope > 1:
        assert ratio == pytest.approx(weight, rel=1e-3)
    else:
        assert 0 < ratio < 0.1 * weight


@pytest.mark.parametrize(("loss", "parts"), [("hinge", 1), ("logistic", 1), ("hinge", 2)])
def test_the_adversarial_loss_begins_late(loss: str, parts: int, tmp_path: Path) -> None:
    """For two steps, of one or more parts, the decoder's gradient is that of the squared error; then it is not."""
    late = sharpening(tmp_path, settings(begin=2, loss=loss, adversarial=1.0, accumulate=parts))
    never = sharpening(tmp_path, settings(adversarial=0.0, loss=loss, accumulate=parts))
    for part in range(4 * parts):
        late.model.before_step(part // parts)
        with_it, without = gradients(late), gradients(never)
        same = [torch.equal(with_it[k], without[k]) for k in without if not k.startswith("discriminator")]
        assert all(same) if part < 2 * parts else not any(same)


@pytest.mark.parametrize("patch", [{"loss": "logistic"}, {"loss": "hinge", "penalty": 0.0, "accumulate": 2}])
def test_resumed_ends_as_uninterrupted(patch: dict[str, Any], tmp_path: Path) -> None:
    """Interrupted after each step in turn: the same weights of both networks, the same metrics."""
    config = settings(begin=2, **patch)
    whole = sharpening(tmp_path, config)
    outcome = run(whole, config.sharpen, tmp_path / "whole")
    expected = result(whole, tmp_path / "whole", outcome)
    for step in range(1, 6):
        objective = sharpening(tmp_path, config)
        signal_at(objective, {step})
        with pytest.raises(Interrupted):
            run(objective, config.sharpen, tmp_path / "resumed")
    objective = sharpening(tmp_path, config)
    outcome = run(objective, config.sharpen, tmp_path / "resumed")
    assert_same(result(objective, tmp_path / "resumed", outcome), expected)


def test_a_steep_discriminator_does_not_slow_the_decoder_down(tmp_path: Path) -> None:
    """Each network is clipped by its own norm: without the adversarial gradient the penalty does not touch the decoder."""
    ends = []
    for penalty in (0.0, 100.0):
        objective = sharpening(tmp_path, settings(adversarial=0.0, penalty=penalty, clip=0.01))
        place = tmp_path / f"penalty-{penalty:g}"
        run(objective, objective.config.sharpen, place)
        norms = [line["gradient_norm"] for line in read_metrics(place / "metrics.jsonl") if "loss" in line]
        ends.append({**objective.weights(), "norms": norms})
    assert_same(*ends)
    assert min(ends[0]["norms"]) > 0.01, "it is clipped"


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("parts", [(1, 4), (4, 1), (2, 4)])
def test_steps_are_counted_and_not_parts(parts: tuple[int, int], old: bool, tmp_path: Path) -> None:
    """Interrupted and resumed with other parts, as another number of processes has: the adversarial loss begins at its step.

    An old state holds a count of parts, and a score by that count; the last weights are kept from it too.
    """
    first, then = (settings(begin=3, accumulate=count, log_every=1) for count in parts)
    objective = sharpening(tmp_path, first)
    signal_at(objective, {2})
    with pytest.raises(Interrupted):
        run(objective, first.sharpen, tmp_path / "sharpen")
    if old:
        state = tmp_path / "sharpen" / "checkpoints" / "last.safetensors"
        tensors, meta = load_tensors(state)
        tensors |= {k: torch.tensor(2 * parts[0]) for k in tensors if k.endswith("seen")}
        meta["outcome"]["best_score"] = -100.0
        save_tensors(state, tensors, meta)
    objective = sharpening(tmp_path, then)
    outcome = run(objective, then.sharpen, tmp_path / "sharpen")
    weights = [
        line["weight"] for line in read_metrics(tmp_path / "sharpen" / "metrics.jsonl") if "loss" in line
    ]
    assert [weight > 0 for weight in weights] == [False] * 3 + [True] * 3
    assert outcome.best_step == 6


@pytest.mark.parametrize("steps", [2, 30])
def test_the_first_weights_are_forgotten(steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the default decay too: weights that are 1 after step 1 and 0 after all others show the share of step 1."""
    value = iter([1.0, *[0.0] * steps])

    @torch.no_grad()
    def put(optimizer: torch.optim.Optimizer) -> None:
        number = next(value)
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.fill_(number)

    monkeypatch.setattr(torch.optim.AdamW, "step", put)
    objective = sharpening(tmp_path, settings(steps=steps, evaluate_every=steps, average=0.999))
    run(objective, objective.config.sharpen, tmp_path / "sharpen")
    share = torch.cat([p.flatten() for p in objective.model.parameters()])
    assert share.max() == share.min()
    assert 0 < share.max() <= 10 / steps


@pytest.mark.parametrize(("steps", "learned"), [(2, False), (3, True)])
def test_a_sharpening_without_the_adversarial_loss_is_told(steps: int, learned: bool, tmp_path: Path) -> None:
    """The loss begins after two steps."""
    objective = sharpening(tmp_path, settings(steps=steps, begin=2, log_every=1))
    outcome = run(objective, objective.config.sharpen, tmp_path / "sharpen")
    lines = read_metrics(tmp_path / "sharpen" / "metrics.jsonl")
    assert any(line.get("weight", 0) > 0 for line in lines) == learned
    about = {"figures": outcome.figures, "step": outcome.best_step}
    save_tensors(RunFolder(tmp_path).sharpen.model, objective.weights(), about)
    spoken = Spoken()
    say_sharpened(tmp_path, 2, spoken)
    (line,) = spoken.lines
    assert ("the decoder is sharpened" in line) == learned
    assert ("learned nothing adversarial" in line) != learned


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_step_reads_nothing_back(penalty: float, tmp_path: Path) -> None:
    objective = sharpening(tmp_path, settings(penalty=penalty))
    batch = next(objective.batches(0, 0, 1))
    with NoSynchronisation():
        objective.loss(objective.model, batch)[0].backward()


def test_the_last_averaged_weights_are_kept(tmp_path: Path) -> None:
    """Whatever the held-out figures say: an adversarial training has no score that tells which weights look best."""
    objective = sharpening(tmp_path, settings(patience=1))
    outcome = run(objective, objective.config.sharpen, tmp_path / "sharpen")
    assert outcome.step == outcome.best_step == objective.config.sharpen.steps
    tensors, _ = load_tensors(tmp_path / "sharpen" / "checkpoints" / "last.safetensors")
    for name, value in objective.model.state_dict().items():
        assert torch.equal(value, tensors[f"average.module.{name}"]), name
    assert not torch.equal(tensors["model.decoder.0.weight"], tensors["average.module.decoder.0.weight"])
    lines = read_metrics(tmp_path / "sharpen" / "metrics.jsonl")
    assert [line["step"] for line in lines if "heldout_psnr" in line] == [3, 6]
    assert (tmp_path / "sharpen" / "pictures" / "step-0000006.png").exists()


def test_the_discriminator_learns_at_its_own_rate(tmp_path: Path) -> None:
    """One step of Adam moves each weight by about the learning rate: here four times as far."""
    objective = sharpening(
        tmp_path, settings(steps=1, warmup=0, lr=1e-3, discriminator_rate=4.0, penalty=0.0)
    )
    before = {k: v.clone() for k, v in objective.model.named_parameters()}
    patch = {"average": 1e-9}  # the averaged weights are the last ones
    run(objective, objective.config.sharpen.model_copy(update=patch), tmp_path / "sharpen")
    for name, value in objective.model.named_parameters():
        moved = (value - before[name]).abs().max().item()
        expected = 4e-3 if name.startswith("discriminator") else 1e-3
        assert moved == pytest.approx(expected, rel=0.05) or name.endswith("6.bias"), name


def test_the_figures_are_of_all_held_out_images(tmp_path: Path) -> None:
    objective = sharpening(tmp_path, settings())
    figures = objective.evaluate(objective.model.eval(), make_accelerator())
    images = torch.cat(
        [x for x, _ in sequential(objective.images, objective.images.heldout, objective.config.data, batch=3)]
    )
    again = objective.plain.decode(objective.plain.encode(images))
    mse = (4 / 10 ** (psnr(again, images) / 10)).mean()
    for kind in ("", "_plain"):  # not trained yet, so both are the same
        assert 4 / 10 ** (figures[f"heldout_psnr{kind}"] / 10) == pytest.approx(float(mse), rel=1e-4)
    assert figures["heldout_sharpness"] == pytest.approx(figures["heldout_sharpness_plain"], rel=1e-4)


def test_a_perceptual_distance_of_weight_0_is_measured_and_not_trained_on(tmp_path: Path) -> None:
    ends = []
    for distance in (None, Halves()):
        objective = sharpening(tmp_path, settings(), distance)
        place = tmp_path / f"measured-{distance is not None}"
        outcome = run(objective, objective.config.sharpen, place)
        lines = [line for line in read_metrics(place / "metrics.jsonl") if "heldout_mse" in line]
        measured = {k for line in lines for k in line if "perceptual" in k}
        assert measured == ({"heldout_perceptual", "heldout_perceptual_plain"} if distance else set())
        ends.append(load_tensors(place / "checkpoints" / "last.safetensors")[0])
    assert_same(*ends)
    images = torch.cat(
        [x for x, _ in sequential(objective.images, objective.images.heldout, objective.config.data, batch=4)]
    )
    codes = objective.plain.encode(images)
    sharp = objective.model.decode(objective.vectors(codes)).detach().clamp(-1, 1)
    for again, name in (
        (sharp, "heldout_perceptual"),
        (objective.plain.decode(codes), "heldout_perceptual_plain"),
    ):
        assert outcome.figures[name] == pytest.approx(float((again - images).abs().mean()) / 2, rel=1e-4)


@pytest.mark.parametrize(("count", "rows"), [(3, 3), (13, 3), (16, 6)])
def test_a_sheet_has_whole_rows(count: int, rows: int, tmp_path: Path) -> None:
    """Of originals, plain and sharpened reconstructions, so that each stands above its own."""
    objective = sharpening(tmp_path, settings())
    objective.images.heldout = np.arange(14).repeat(2)[:count]
    objective.draw(objective.model.eval(), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 + 18 * min(count, 8), 2 + 18 * rows)


def test_the_figures_do_not_need_a_whole_batch_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = sharpening(tmp_path, settings(batch=4, accumulate=2))
    sizes: list[int] = []
    usual = objective.plain.encode
    monkeypatch.setattr(objective.plain, "encode", lambda images: sizes.append(len(images)) or usual(images))
    objective.evaluate(objective.model.eval(), make_accelerator())
    assert max(sizes) == 2


def test_mixed_precision(tmp_path: Path) -> None:
    objective = sharpening(tmp_path, settings())
    outcome = run(objective, objective.config.sharpen, tmp_path / "sharpen", precision="bf16")
    assert outcome.step == 6
    assert all(value.dtype == torch.float32 for value in objective.weights().values())


def test_a_perceptual_term_needs_weights() -> None:
    assert parse({}).sharpen.steps == 0, "off unless asked for"
    with pytest.raises(ConfigError, match="a perceptual term needs perceptual_weights"):
        parse({"sharpen": {"perceptual": 1.0}})
