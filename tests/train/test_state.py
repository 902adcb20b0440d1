"""How a training ended, as a file says it: checked before it is used."""

from __future__ import annotations

import errno
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from train_helpers import Toy, run, signal_at

from vqvae2.config.training import TrainConfig
from vqvae2.files import seen, tensor_file
from vqvae2.files.atomic import FileError, WriteError
from vqvae2.files.progress import Tracker
from vqvae2.files.run_folder import StageFolder
from vqvae2.files.tensor_file import save_tensors
from vqvae2.processes import Group
from vqvae2.train import loop, sharded, sharded_state
from vqvae2.train.device import make_accelerator
from vqvae2.train.longer import keep_state
from vqvae2.train.sharded import restore
from vqvae2.train.sharded_state import ShardedState, load_sharded, remove_previous
from vqvae2.train.state import SavedOutcome, State, keep_previous, saved

GOOD = {
    "step": 3,
    "best_step": 2,
    "best_score": 0.5,
    "stale": 1,
    "seconds": 2.0,
    "figures": {"psnr": 20.5, "used": 7},
}


def test_the_steps_of_a_fused_optimiser_are_where_its_weights_are() -> None:
    """A state saved with `shard` and loaded without: the fused kernel of a card cannot read a number on the host."""
    with torch.device("meta"):
        network = nn.Linear(3, 2)
    named = dict(network.named_parameters())
    tensors = {
        f"{kind}.{name}": value
        for kind in ("model", "exp_avg", "exp_avg_sq")
        for name, value in named.items()
    }
    for fused, expected in ((True, "meta"), (False, "cpu")):
        optimizer = torch.optim.AdamW(network.parameters())
        optimizer.defaults["fused"] = fused
        restore(SimpleNamespace(network=network, optimizer=optimizer, average=None), tensors, 7)
        assert {state["step"].device.type for state in optimizer.state.values()} == {expected}


def test_a_whole_record_is_read() -> None:
    assert SavedOutcome.of(GOOD, "state.safetensors").model_dump() == GOOD


@pytest.mark.parametrize(("field", "value"), [
    ("figures", {"psnr": "high"}),
    ("figures", {"psnr": [20.5]}),
    ("figures", {"psnr": None}),
    ("step", -1),
    ("seconds", "2"),
])  # fmt: skip
def test_a_figure_that_is_no_number_is_damage(field: str, value: Any) -> None:
    with pytest.raises(FileError, match=rf"^state\.safetensors is damaged: {field}"):
        SavedOutcome.of({**GOOD, field: value}, "state.safetensors")


# --- states that cannot be loaded ---


@pytest.mark.parametrize("origin", ["another", "own"])
@pytest.mark.parametrize("kind", ["whole", "whole to sharded", "sharded", "sharded to whole"])
def test_a_state_that_cannot_be_loaded(kind: str, origin: str, tmp_path: Path) -> None:
    """Of another autoencoder, or without its weights: whoever saved it and whoever loads it says what to do."""
    file, accelerator = StageFolder(tmp_path).checkpoint, make_accelerator()
    meta = {"outcome": GOOD, "autoencoder": origin}
    save_tensors(file, {}, meta | ({"shards": "step-3-of-2"} if kind.startswith("sharded") else {}))
    step: Any = SimpleNamespace(network=nn.Linear(2, 2), objective=SimpleNamespace(autoencoder="own"))
    sharded = ShardedState(step, [], accelerator=accelerator)
    load = {
        "whole": lambda: State(step, []).load(file, True),
        "whole to sharded": lambda: sharded.load(file, True),
        "sharded": lambda: sharded.load(file, True),
        "sharded to whole": lambda: load_sharded(State(step, []), file, True, accelerator),
    }[kind]
    told = "belongs to a training with another" if origin == "another" and kind != "whole" else ""
    with pytest.raises(
        FileError, match=rf"{told}.*delete .*last\.safetensors, and the same command.*step 0$"
    ):
        load()


class Other(Group):
    """A process that is not the first one, which sees what `seen` says."""

    seen: Any = True

    def agreed(self, value: Any) -> Any:
        """As the first process has it."""
        return self.seen


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_a_state_that_only_the_first_process_sees_is_not_to_be_deleted(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that shows it late, or to one machine alone: the other process advised to delete a good state."""
    file = StageFolder(tmp_path).checkpoint
    Other.seen = ["shard-0000-of-0001.safetensors"] if kind == "sharded" else True
    for module in (loop, sharded, seen):
        monkeypatch.setattr(module, "joined", lambda: Other(3, 4))
    monkeypatch.setattr(seen, "_PATIENCE", 0.0)
    if kind == "sharded":
        save_tensors(file, {}, {"outcome": GOOD, "shards": "step-3-of-1"})
    step: Any = SimpleNamespace(network=nn.Linear(2, 2), objective=SimpleNamespace())
    load = {
        "whole": lambda: run(Toy(lambda w, step: w.sum()), TrainConfig(steps=2, batch=4), tmp_path),
        "sharded": lambda: load_sharded(State(step, []), file, False, make_accelerator()),
    }[kind]
    with pytest.raises(seen.NotSeen) as caught:
        load()
    assert "process 3 does not see" in str(caught.value)
    assert "delete" not in str(caught.value)


def test_a_state_that_is_seen_late_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, config = StageFolder(tmp_path).checkpoint, TrainConfig(steps=2, batch=4)
    run(Toy(lambda w, step: w.sum()), config, tmp_path)
    hidden = file.rename(tmp_path / "hidden")
    Other.seen = True
    monkeypatch.setattr(loop, "joined", lambda: Other(3, 1))
    monkeypatch.setattr(seen.time, "sleep", lambda seconds: hidden.rename(file))
    more = Toy(lambda w, step: w.sum())
    assert run(more, config.model_copy(update={"steps": 5}), tmp_path).step == 5
    assert sorted(more.weights) == [3, 4, 5]


def test_processes_that_resume_at_different_steps_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that still sees the state before the last one: they would train on different weights, or wait for ever."""
    file, config = StageFolder(tmp_path).checkpoint, TrainConfig(steps=2, batch=4)
    run(Toy(lambda w, step: w.sum()), config, tmp_path)
    before = file.read_bytes()

    class Late(Group):
        def gathered(self, value: Any) -> Any:
            late = value[1].replace("step 2", "step 1")
            return [value, value, ("node-2", late, "/mnt/run")]

    monkeypatch.setattr(seen, "joined", Late)
    more = Toy(lambda w, step: w.sum())
    with pytest.raises(
        seen.NotSeen,
        match=r"process 2 on node-2 sees the state of step 1 in /mnt/run, .* sees the state of step 2 ",
    ):
        run(more, config.model_copy(update={"steps": 5}), tmp_path)
    assert more.weights == {}
    assert file.read_bytes() == before


def test_a_folder_may_have_another_path_in_each_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spelled otherwise, or mounted under another name: the same state there is the same state."""
    config = TrainConfig(steps=2, batch=4)
    run(Toy(lambda w, step: w.sum()), config, tmp_path)

    class Elsewhere(Group):
        def gathered(self, value: Any) -> Any:
            theirs = [str(each).replace(str(tmp_path), "/mnt/run") for each in value]
            return [value, tuple(theirs)]

    monkeypatch.setattr(seen, "joined", Elsewhere)
    more = Toy(lambda w, step: w.sum())
    assert run(more, config.model_copy(update={"steps": 5}), tmp_path).step == 5


@pytest.mark.parametrize("sharded", [False, True])
def test_a_kept_state_is_that_of_the_last_training(sharded: bool, tmp_path: Path) -> None:
    """After a longer training with `shard` there is none, instead of that of the training before."""
    stage = StageFolder(tmp_path)
    save_tensors(stage.state, {}, {"outcome": GOOD})
    save_tensors(
        stage.longer.checkpoint, {}, {"outcome": GOOD | {"step": 6}} | ({"shards": "x"} if sharded else {})
    )
    new = stage.longer.checkpoint.read_bytes()
    keep_state(stage, stage.longer)
    assert (stage.state.read_bytes() if stage.state.exists() else None) == (None if sharded else new)
    assert not stage.longer.checkpoints.exists()


def test_keeping_a_state_twice_leaves_no_other_file(tmp_path: Path) -> None:
    """As when a training is asked to stop before its next state is written: renaming a link to itself removes nothing."""
    checkpoints = tmp_path / "stage" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "last.safetensors").write_bytes(b"state")
    for _ in range(2):
        keep_previous(checkpoints / "last.safetensors")
    assert {item.name for item in checkpoints.iterdir()} == {"last.safetensors", "previous.safetensors"}


# --- how much of the disk they take ---


def state_at(number: int, kind: str = "whole", side: int = 200, **settings: Any) -> State:
    """A state of this step, whose weights are this number, with moments, sums and best weights."""
    network = nn.Linear(side, side)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, side)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        for weight in network.parameters():
            weight.fill_(number)
    sums = {"loss": torch.tensor(2.0)}
    step: Any = SimpleNamespace(
        network=network, optimizer=optimizer, average=None, objective=SimpleNamespace(), taken=0, sums=sums,
        bad=torch.tensor(0), config=TrainConfig(**settings),
    )  # fmt: skip
    best = {name: value.clone() for name, value in network.state_dict().items()}
    outcome = loop.Outcome(number, number, 0.5, 3)
    if kind == "sharded":
        return ShardedState(step, [], outcome, best, accelerator=make_accelerator())
    return State(step, [], outcome, best)


def save(state: State, file: Path) -> None:
    """With its sums and its settings."""
    state.save(file, state.step.sums, [], state.step.config.model_dump())


def used(folder: Path) -> int:
    """Bytes of the files in a folder; names of one file count once."""
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({each.st_ino: each.st_size for each in found}.values())


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_the_disk_holds_two_states_at_most(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while one is written; a quota of three would be full for ever. At the end the last one is left."""
    file = StageFolder(tmp_path).checkpoint
    usual, peak = safetensors.torch.save_file, [0]

    def write(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
        usual(tensors, path, header)
        peak.append(used(file.parent))

    monkeypatch.setattr(safetensors.torch, "save_file", write)
    save(state_at(1, kind), file)
    one = used(file.parent)
    for number in (2, 3, 4):
        save(state_at(number, kind), file)
        assert used(file.parent) < 2.1 * one
    assert 1.9 * one < max(peak) < 2.1 * one
    remove_previous(file)
    assert used(file.parent) < 1.1 * one
    again = state_at(0, kind)
    again.load(file, True)
    assert again.best["weight"].unique().tolist() == [4]


def test_one_process_removes_what_several_have_saved(tmp_path: Path) -> None:
    """Once a state of its own is written; until then it could not go on, and until the next one it may go back."""
    file = StageFolder(tmp_path).checkpoint
    save(state_at(1, "sharded"), file)
    save(state_at(2, "sharded"), file)
    found = []
    for number in (3, 4, 5):
        save(state_at(number), file)
        found.append(sorted(folder.name for folder in file.parent.glob("step-*")))
        shards = saved(StageFolder(tmp_path).previous).shards
        assert found[-1] == ([shards] if shards else [])
    assert list(map(len, found)) == [1, 0, 0]


@pytest.mark.parametrize("readable", [True, False])
def test_a_full_disk_leaves_the_rows_of_the_last_state(
    readable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file system does not say for a moment which they are."""
    file = StageFolder(tmp_path).checkpoint
    for number in (1, 2):
        save(state_at(number, "sharded"), file)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def silent(path: Path) -> None:
        raise FileError(f"{path} is damaged: Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        if not readable:
            patch.setattr(tensor_file, "read_header", silent)
        with pytest.raises(WriteError, match="No space left"):
            save(state_at(3, "sharded"), file)
    again = state_at(0, "sharded")
    again.load(file, True)
    assert (again.outcome.step, again.best["weight"].unique().tolist()) == (2, [2])


def test_no_process_writes_before_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not remove anything waits for the one that does."""
    events: list[str] = []
    state = state_at(1, "sharded")
    state.accelerator = SimpleNamespace(is_main_process=False, process_index=1, num_processes=2)
    monkeypatch.setattr(sharded_state, "joined", lambda: SimpleNamespace(wait=lambda: events.append("wait")))
    monkeypatch.setattr(sharded_state, "save_shards", lambda *_: events.append("write"))
    save(state, StageFolder(tmp_path).checkpoint)
    assert events == ["wait", "write", "wait"]


@pytest.mark.parametrize(
    ("saved", "loaded"), [("whole", "whole"), ("whole", "sharded"), ("sharded", "sharded")]
)
def test_a_state_that_was_loaded_can_be_removed(saved: str, loaded: str, tmp_path: Path) -> None:
    """A tensor that maps its file keeps the place on the disk until the training ends."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not say what is mapped")
    file = StageFolder(tmp_path).checkpoint
    save(state_at(1, saved), file)
    kept, _ = tensor_file.load_tensors(file)
    assert str(tmp_path) in maps.read_text() or saved == "sharded"
    del kept
    again = state_at(0, loaded)
    again.load(file, True)
    assert again.best["weight"].unique().tolist() == [1]
    assert again.step.sums["loss"] == 2
    assert str(tmp_path) not in maps.read_text()


# --- other held-out images ---


@pytest.mark.parametrize("now", [0, 5, 7])
@pytest.mark.parametrize(
    ("saved", "loaded"), [("whole", "whole"), ("whole", "sharded"), ("sharded", "sharded"), ("sharded", "whole")]
)  # fmt: skip
def test_a_score_of_other_images_is_not_compared(saved: str, loaded: str, now: int, tmp_path: Path) -> None:
    """Whoever saved and whoever loads; the best weights stay until the next evaluation."""
    file = StageFolder(tmp_path).checkpoint
    save(state_at(1, saved, evaluate_on=5), file)
    again = state_at(0, loaded, evaluate_on=now)
    if (saved, loaded) == ("sharded", "whole"):
        load_sharded(again, file, True, make_accelerator())
    else:
        again.load(file, True)
    outcome = again.outcome
    assert (outcome.best_score, outcome.stale) == ((0.5, 3) if now == 5 else (float("inf"), 0))
    assert (outcome.step, outcome.best_step) == (1, 1)
    assert again.best["weight"].unique().tolist() == [1]


@pytest.mark.parametrize(("now", "best"), [(0, 1), (4, 4)])
def test_after_other_images_the_next_evaluation_decides(
    now: int, best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the training is interrupted before it. Until then no best score is shown."""
    shown: list[str] = []
    monkeypatch.setattr(Tracker, "update", lambda self, step, text, *_: shown.append(text))
    scores = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5}
    config = TrainConfig(steps=2, batch=4, evaluate_every=1, log_every=1)
    run(Toy(lambda w, step: w.sum(), scores), config, tmp_path)
    asked = Toy(lambda w, step: w.sum(), scores)
    signal_at(asked, {3})
    longer = config.model_copy(update={"steps": 5, "evaluate_every": 4, "evaluate_on": now})
    with pytest.raises(loop.Interrupted):
        run(asked, longer, tmp_path)
    assert saved(StageFolder(tmp_path).checkpoint).outcome.best_step == 1
    more = Toy(lambda w, step: w.sum(), scores)
    assert run(more, longer, tmp_path).best_step == best
    told = [text.partition(", ")[2] for text in shown]
    after = ["", "", "best 0.4000"] if now else ["best 0.1000"] * 3  # steps 3, 4 and 5
    assert told == ["", "best 0.1000", *after]


# --- what a message advises ---


def advised(file: Path) -> str:
    """What is said when a state cannot be loaded."""
    with pytest.raises(FileError) as caught:
        state_at(0, side=4).load(file, True)
    return str(caught.value)


def test_the_advice_of_a_damaged_state_is_followed(tmp_path: Path) -> None:
    """By a shell, with a blank in the path: the state before it is gone on from, and the damaged one is kept aside."""
    file = StageFolder(tmp_path / "a run").checkpoint
    for number in (1, 2):
        save(state_at(number, side=4), file)
    file.write_bytes(file.read_bytes()[:-9])
    damaged = file.read_bytes()
    (commands,) = re.findall(r"the state before it is kept: (mv .* && mv .*), and the same", advised(file))
    for words in map(shlex.split, commands.split("&&")):
        shutil.move(*words[1:])
    again = state_at(0, side=4)
    again.load(file, True)
    assert again.outcome.step == 1
    assert file.with_name(f"{file.name}.bad").read_bytes() == damaged
    keep_previous(file)  # as when the next state could not be written
    file.write_bytes(damaged)
    assert "no earlier state is kept: delete" in advised(file)


@pytest.mark.parametrize("why", ["newer", "another", "unreadable", "shape"])
def test_no_other_state_is_advised_where_nothing_is_damaged(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be of the same training, and what is whole would be moved away."""
    file = StageFolder(tmp_path).checkpoint
    side = 5 if why == "shape" else 4
    save(state_at(1, side=side), file)
    with monkeypatch.context() as patch:
        patch.setattr(tensor_file, "FORMAT", 2 if why == "newer" else 1)
        state = state_at(2, side=side)
        state.step.objective.autoencoder = "another"
        save(state, file)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    if why == "unreadable":
        monkeypatch.setattr(safetensors, "safe_open", refuse)
    said = advised(file)
    assert "mv" not in said
    if why == "unreadable":
        assert said.endswith("Permission denied; when it can be read again, the same command goes on from it")
    else:
        assert said.endswith(f"; delete {file}, and the same command trains this stage again from step 0")
