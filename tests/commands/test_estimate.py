"""The estimate before a training: what it follows from, what it leaves out, and when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vqvae2.commands import estimate as module
from vqvae2.commands.costs import Cost, measure
from vqvae2.commands.estimate import estimate, free_memory, say_estimate
from vqvae2.config.models import Config, parse
from vqvae2.config.overrides import merge, override
from vqvae2.config.presets import preset
from vqvae2.files.progress import Reporter
from vqvae2.files.run_folder import RunFolder, StageFolder
from vqvae2.files.tensor_file import save_tensors
from vqvae2.run import load
from vqvae2.train.state import Outcome

CPU = torch.device("cpu")


class Said(Reporter):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """One line."""
        self.lines.append(text)


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Config:
    """A small configuration of many steps, on a machine of a billion FLOP/s."""
    monkeypatch.setattr(module, "_rate", lambda *arguments: 1e9)
    more = {"train_autoencoder": {"steps": 1000, "minutes": 0.0}, "sharpen": {"steps": 0}}
    return parse(merge(preset("tiny").model_dump(mode="json"), more))


def test_time_is_work_over_speed_and_memory_is_that_of_the_largest_stage(
    config: Config, tmp_path: Path
) -> None:
    stages = estimate(config, tmp_path / "run", CPU)
    costs = measure(config)
    assert [stage.name for stage in stages] == ["autoencoder", "prior level 0", "prior level 1"]
    for stage, cost in zip(stages, costs.networks, strict=True):
        assert stage.steps == cost.settings.steps
        assert stage.seconds == pytest.approx(cost.total / 1e9)
        assert stage.memory == cost.state + cost.settings.batch * cost.kept


def test_on_a_card_the_batch_is_timed_if_half_of_the_free_memory_holds_it(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The speed of one image on a card said ten times the time that a training took."""
    cost, card = measure(config).networks[0], torch.device("cuda")
    batch, memory = cost.settings.batch, module._memory(measure(config).networks[0], config)
    for free, expected in ((10 * memory, batch), (memory, max(1, batch // 2)), (1, 1)):
        monkeypatch.setattr(module, "free_memory", lambda device, free=free: free)
        assert module._timed_images(config, cost, card) == expected
    assert module._timed_images(config, cost, CPU) >= 1


def test_minutes_bound_the_time_and_accumulation_the_memory(config: Config, tmp_path: Path) -> None:
    settings = {"minutes": 0.01, "accumulate": 4}
    value = merge(config.model_dump(mode="json"), {"train_autoencoder": settings})
    (stage, *_), (before, *_) = (estimate(each, tmp_path / "run", CPU) for each in (parse(value), config))
    assert stage.seconds == pytest.approx(0.6)
    assert stage.memory < before.memory


def test_what_is_done_is_not_counted(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_rate", lambda *arguments: 1e9)
    assert [stage.name for stage in estimate(load(half, "cpu").config, half, CPU)] == ["prior level 1"]


def test_what_is_trained_further_is_counted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps that are added; after a longer training of the autoencoder, all priors anew."""
    monkeypatch.setattr(module, "_rate", lambda *arguments: 1e9)
    settings = load(run, "cpu").config.model_dump(mode="json")

    def steps(*assignments: str) -> dict[str, int]:
        stages = estimate(parse(override(settings, assignments)), run, CPU)
        return {stage.name: stage.steps for stage in stages}

    assert steps() == {}
    assert steps("train_prior.1.steps=1000") == {"prior level 1": 992}
    assert steps("train_autoencoder.steps=1000") == {
        "autoencoder": 940,
        "prior level 0": 8,
        "prior level 1": 8,
    }
    interrupted(RunFolder(run).prior(1).longer, step=500, seconds=9.0)
    assert steps("train_prior.1.steps=1000") == {"prior level 1": 500}


def interrupted(stage: StageFolder, step: int, seconds: float) -> None:
    """Leave the state of a training that was interrupted there."""
    state = {"outcome": vars(Outcome(step=step, seconds=seconds)), "summed": 0, "config": {}, "due": False}
    stage.checkpoint.parent.mkdir(parents=True)
    save_tensors(stage.checkpoint, {"x": torch.zeros(1)}, state)


def test_the_minutes_that_were_used_are_not_left(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed training said the whole of its minutes again. A damaged state counts as none."""
    monkeypatch.setattr(module, "_rate", lambda *arguments: 1.0)
    config = parse(merge(config.model_dump(mode="json"), {"train_autoencoder": {"minutes": 1.0}}))
    stage = RunFolder(tmp_path / "run").autoencoder
    interrupted(stage, step=3, seconds=45.0)
    assert estimate(config, tmp_path / "run", CPU)[0].seconds == 15.0
    stage.checkpoint.write_bytes(b"damaged")
    assert estimate(config, tmp_path / "run", CPU)[0].seconds == 60.0


def test_what_is_said(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, a second one if the memory will not do, and none for a training of few steps."""
    said = Said()
    say_estimate(config, tmp_path / "run", CPU, said)
    (line,) = said.lines
    assert line.startswith("estimate for this machine (cpu")
    assert "autoencoder" in line
    assert "(1,000 steps)" in line
    monkeypatch.setattr(module, "free_memory", lambda device: 1000)
    say_estimate(config, tmp_path / "run", CPU, said, until="autoencoder")
    assert "prior" not in said.lines[1]
    assert said.lines[2].startswith("warning: only 0 MB are free")
    say_estimate(preset("tiny"), tmp_path / "run", CPU, said)
    assert len(said.lines) == 3


def test_copies_of_the_weights_and_data_on_a_card_need_memory_too(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warning left them out, so that a training which was said to fit might not."""
    card, cost = torch.device("cuda"), measure(config).networks[0]
    plain = module._memory(cost, config)
    mixed = config.model_copy(update={"precision": "bf16"})
    images = cost.settings.batch * (cost.kept - cost.kept_bf16)
    assert module._memory(cost, mixed) == plain - images + 2 * cost.parameters
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    largest = max(stage.memory for stage in estimate(config, tmp_path / "run", CPU))

    def warnings(device: torch.device, free: int, gigabytes: float) -> list[str]:
        monkeypatch.setattr(module, "free_memory", lambda device: free)
        said = Said()
        say_estimate(config.model_copy(update={"resident_gb": gigabytes}), tmp_path / "run", device, said)
        return said.lines[1:]

    (line,) = warnings(card, largest + 1000, 2.0)
    assert "the training data may take up to" in line
    assert "resident_gb=0" in line
    assert warnings(card, largest + 1000, 0.0) == warnings(CPU, largest + 1000, 2.0) == []
    assert warnings(card, 2 * largest, 2.0) == [], "they take half of what is free at most"
    assert warnings(card, largest + 2000, 1e-6) == []
    (line,) = warnings(card, largest - 1, 2.0)
    assert line.startswith("warning: only")


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_the_free_memory_does_not_depend_on_what_was_timed_before(
    kind: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch keeps what it had for a network that was timed, and the next one was timed with fewer images."""
    held, seen = [0], []

    def rate(config: Config, cost: Cost, device: torch.device) -> float:
        seen.append(held[0])
        held[0] += 1
        return 1e9

    monkeypatch.setattr(module, "_rate", rate)
    monkeypatch.setattr(getattr(torch, kind), "empty_cache", lambda: held.__setitem__(0, 0))
    monkeypatch.setattr(module, "free_memory", lambda device: seen.append(held[0]) or 1e12)
    say_estimate(config, tmp_path / "run", torch.device(kind), Said())
    assert seen == [0, 0, 0, 0]  # three networks, and the memory that is compared with what is needed


def test_the_speed_of_every_network_is_measured(tmp_path: Path) -> None:
    stages = estimate(preset("tiny"), tmp_path / "run", CPU)
    assert all(stage.seconds and stage.seconds > 0 for stage in stages)


def test_a_network_too_large_to_try_has_memory_and_no_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_TOO_MUCH", 1.0)
    said = Said()
    more = {"train_autoencoder": {"steps": 1000}}
    say_estimate(parse(merge(preset("tiny").model_dump(mode="json"), more)), tmp_path / "run", CPU, said)
    assert "about unknown and" in said.lines[0]


def test_free_memory_is_told_by_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was read from a file that only Linux has, so that no other system was warned."""
    assert free_memory(CPU) > 1e6
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 5)
    assert free_memory(torch.device("mps")) == 5
