"""A finished stage is trained further: as one that had more steps from the start, with nothing lost on the way."""

from __future__ import annotations

import shutil
import signal
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import same_tensors
from train_helpers import CLASSES, Killed, changed, go, pictures, signal_at, tiny

from vqvae2.config.models import Config
from vqvae2.files import tensor_file
from vqvae2.files.atomic import FileError, read_json, write_json
from vqvae2.files.run_folder import RunError, RunFolder
from vqvae2.files.tensor_file import load_tensors, save_tensors
from vqvae2.prior.hierarchy import make_level
from vqvae2.run import load
from vqvae2.train import longer, pipeline
from vqvae2.train.beginning import begin_prior, check_processes, check_starts, due
from vqvae2.train.device import TrainingError
from vqvae2.train.folder import read_run, write_config
from vqvae2.train.longer import may_change, prepare
from vqvae2.train.loop import Interrupted
from vqvae2.train.place import tidy
from vqvae2.train.state import read_metrics, saved

CONSTANT = {"steps": 3, "evaluate_every": 3, "log_every": 1, "schedule": "constant"}


@pytest.fixture(scope="module")
def short() -> Config:
    """Three steps of every stage, at a rate that does not depend on their number."""
    return tiny(train={**CONSTANT, "average": 0.5})


@pytest.fixture(scope="module")
def whole(data: Path, short: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of them; read only."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    go(data, folder, short)
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of that run to work on."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def steps(config: Config, **stages: int) -> Config:
    """The configuration with other numbers of steps: `autoencoder`, `level_0`, `level_1`."""
    priors = [training.model_dump() for training in config.train_prior]
    for level, prior in enumerate(priors):
        prior["steps"] = stages.get(f"level_{level}", prior["steps"])
    first = {"steps": stages.get("autoencoder", config.train_autoencoder.steps)}
    return changed(config, train_autoencoder=first, train_prior=priors)


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """All weights of a run, by file."""
    files = sorted(folder.rglob("model.safetensors"))
    return {str(file.relative_to(folder)): load_tensors(file)[0] for file in files}


def test_more_steps_later_are_more_steps_from_the_start(
    run: Path, data: Path, short: Config, tmp_path: Path
) -> None:
    """Of all stages: the weights, the metrics and the codes; the state that is kept serves a third time."""
    longer = steps(short, autoencoder=6, level_0=6, level_1=6)
    said = go(data, run, longer)
    go(data, tmp_path / "once", longer)
    ours, theirs = weights(run), weights(tmp_path / "once")
    assert ours.keys() == theirs.keys()
    assert all(same_tensors(ours[name], theirs[name]) for name in ours)
    for part in ("autoencoder", "prior/level-0"):
        found = [line["step"] for line in read_metrics(run / part / "metrics.jsonl")]
        assert sorted({*found}) == [1, 2, 3, 4, 5, 6]
    (first,) = [line for line in said if "trained further" in line]
    assert first.startswith("autoencoder: ")
    assert "from step 3 towards 6" in first
    assert "codes, prior/level-0, prior/level-1 are removed and made anew" in first
    assert not [*run.rglob("longer")]
    last = steps(short, autoencoder=6, level_0=6, level_1=9)
    go(data, run, last)
    go(data, tmp_path / "nine", last)
    assert same_tensors(weights(run)["prior/level-1/model.safetensors"], weights(tmp_path / "nine")["prior/level-1/model.safetensors"])  # fmt: skip


def test_a_longer_training_that_has_made_no_step_is_not_taken_for_a_finished_one(run: Path) -> None:
    """Its state is as that of the finished one; a killed command left it, and its settings may change as long as it is there."""
    stage = RunFolder(run).prior(1)
    prepare(stage, "prior level 1")
    tidy(run, 2)
    assert stage.longer.checkpoint.exists()


@pytest.mark.parametrize("further", [False, True])
def test_a_damaged_state_of_a_prior_names_the_one_before_it(
    further: bool, run: Path, data: Path, short: Config
) -> None:
    """Its header is read before anything is trained, to see what it was derived from."""
    stage = RunFolder(run).prior(1)
    place = stage.longer if further else stage
    place.checkpoint.parent.mkdir(parents=True)
    shutil.copy(stage.state, place.previous)
    place.checkpoint.write_bytes(stage.state.read_bytes()[:-9])
    if not further:
        stage.model.unlink()
    with pytest.raises(
        FileError, match=r"damaged.*the state before it is kept: mv .*last\.safetensors\.bad && mv"
    ):
        go(data, run, steps(short, level_1=6))


def test_one_prior_alone(run: Path, data: Path, short: Config, tmp_path: Path) -> None:
    """The other weights are not touched; samples of this level and finer ones are drawn again."""
    before = weights(run)
    sheets = {path: path.read_bytes() for path in run.rglob("samples.png")}
    wanted = steps(short, level_1=6)
    assert not any("trained further" in line for line in go(data, run, wanted, until="autoencoder"))
    said = go(data, run, wanted)
    assert [line for line in said if "trained further" in line] == [
        f"prior level 1: trained further, from step 3 towards 6; until it is done, {run} can be used as it is"
    ]
    assert any(line == "prior level 1: going on from step 3 of 6" for line in said)
    after = weights(run)
    assert {name for name in before if not same_tensors(before[name], after[name])} == {
        "prior/level-1/model.safetensors"
    }
    assert {path.parent.name for path, data in sheets.items() if path.read_bytes() != data} == {"level-1"}
    assert go(data, run, wanted) == [f"{run}: all is done; nothing to train"]


def test_until_it_is_done_the_run_stays_as_it_was(
    run: Path, data: Path, short: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted at each step: weights, codes and priors are the old ones, and the same command goes on."""
    longer = steps(short, autoencoder=6)
    before, drawn = weights(run), load(run, "cpu").sample(2)
    usual = pipeline.AutoencoderObjective
    for step in (4, 5):

        def make(*arguments: Any, step: int = step) -> Any:
            objective = usual(*arguments)
            signal_at(objective, {step}, signal.SIGTERM)
            return objective

        monkeypatch.setattr(pipeline, "AutoencoderObjective", make)
        with pytest.raises(Interrupted, match=f"saved at step {step} of 6"):
            go(data, run, longer)
        found = weights(run)
        assert all(same_tensors(before[name], found[name]) for name in before)
        assert torch.equal(load(run, "cpu").sample(2), drawn)
    monkeypatch.setattr(pipeline, "AutoencoderObjective", usual)
    go(data, run, longer)
    go(data, tmp_path / "once", longer)
    ours, theirs = weights(run), weights(tmp_path / "once")
    assert all(same_tensors(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("saved", [True, False])
def test_a_longer_training_may_go_on_with_another_rate(
    saved: bool, run: Path, data: Path, short: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the message of a divergence advises, whether or not a state was saved before it; not before and not after."""

    def rate(config: Config, lr: float) -> Config:
        first, second = (training.model_dump() for training in config.train_prior)
        return changed(config, train_prior=[first, second | {"lr": lr}])

    refused = r"train_prior\.1\.lr: 0\.003 -> 0\.001"
    with pytest.raises(RunError, match=refused):
        go(data, run, rate(short, 0.001))
    wanted, usual = steps(short, level_1=6), pipeline.PriorObjective

    def make(*arguments: Any) -> Any:
        objective = usual(*arguments)
        loss = objective.loss
        objective.loss = lambda *given: (loss(*given)[0] * float("nan"), {})
        if saved:
            objective.loss = loss
            signal_at(objective, {4}, signal.SIGTERM)
        return objective

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "PriorObjective", make)
        with pytest.raises(Interrupted if saved else TrainingError):
            go(data, run, wanted)
    with pytest.raises(RunError, match=r"train_prior\.0\.lr"):
        go(data, run, changed(wanted, train_prior=[training.model_dump() | {"lr": 0.001} for training in wanted.train_prior]))  # fmt: skip
    said = go(data, run, rate(wanted, 0.001))
    assert f"prior level 1: going on from step {4 if saved else 3} of 6" in said
    assert read_json(RunFolder(run).prior(1).record)["config"]["train_prior"][1]["lr"] == 0.001
    assert "all is done" in go(data, run, rate(wanted, 0.001))[-1]
    with pytest.raises(RunError, match=r"train_prior\.1\.lr: 0\.001 -> 0\.003"):
        go(data, run, wanted)


def test_what_goes_on_from_weights_alone_knows_what_they_were_judged_on(run: Path, short: Config) -> None:
    """So that scores of other held-out images are told from them."""
    for name, stage in RunFolder(run).networks(2).items():
        if not stage.done():
            continue
        stage.state.unlink()
        meta = load_tensors(longer.prepare(stage, name).checkpoint)[1]
        assert meta["config"] == longer.settings_of(short)[name][1].model_dump()


def test_the_result_needs_no_place_beside_two_states(
    data: Path, short: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state before the last one is gone when the weights are written; a disk that was large enough so far still is."""
    kept: list[list[str]] = []
    usual = save_tensors

    def save(path: Path, *arguments: Any) -> str:
        if path.name == "model.safetensors":
            kept.append([each.name for each in (path.parent / "checkpoints").iterdir()])
        return usual(path, *arguments)

    monkeypatch.setattr(tensor_file, "save_tensors", save)
    go(data, tmp_path / "run", changed(short, train_autoencoder={"evaluate_every": 1}), until="autoencoder")
    assert kept == [["last.safetensors"]]


def test_killed_while_the_files_of_a_longer_training_are_moved(
    run: Path, data: Path, short: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each of its operations in turn: the next command leaves the files of one that was not killed."""
    wanted = steps(short, level_1=6)
    whole = Path(shutil.copytree(run, tmp_path / "whole"))
    go(data, whole, wanted)

    def content(folder: Path) -> dict[str, Any]:
        stage = RunFolder(folder).prior(1)
        files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        logged = [line["step"] for line in read_metrics(stage.metrics)]
        return {"files": files, "logged": logged, "step": saved(stage.state).outcome.step}

    operations = 0
    for number in range(1, 9):
        killed = Path(shutil.copytree(run, tmp_path / f"killed-{number}"))
        usual = longer.publish

        def dying(stage: Any, further: Any, left: int = number, usual: Any = usual) -> None:
            nonlocal operations
            count = 0

            def counted(call: Any) -> Any:
                def one(*arguments: Any, **options: Any) -> Any:
                    nonlocal count
                    count += 1
                    if count == left:
                        raise Killed
                    return call(*arguments, **options)

                return one

            with monkeypatch.context() as patch:
                patch.setattr(Path, "replace", counted(Path.replace))
                patch.setattr(longer.shutil, "rmtree", counted(shutil.rmtree))
                usual(stage, further)
            operations = count

        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "publish", dying)
            with suppress(Killed):
                go(data, killed, wanted)
        assert not any("trained further" in line for line in go(data, killed, wanted))
        assert content(killed) == content(whole), number
        if operations:
            break
    assert operations > 3


def test_without_the_kept_state_it_goes_on_from_the_weights(run: Path, data: Path, short: Config) -> None:
    """And says so. A record that is missing, as in a copied model of the package, is made up."""
    stage = RunFolder(run).prior(0)
    (stage.path / "state.safetensors").unlink()
    stage.record.unlink()
    said = go(data, run, steps(short, level_0=5))
    assert any("its optimiser's state was not kept" in line for line in said)
    assert any(
        line.startswith("prior level 0: going on from step 3 of 5; the next evaluation") for line in said
    )
    assert read_json(stage.record)["outcome"]["step"] == 5


def test_the_sharpened_decoder_goes_on_too(data: Path, short: Config, tmp_path: Path) -> None:
    """From its state; without it, it is trained anew, which is said."""
    sharpen = {**CONSTANT, "average": 0.5, "begin": 0, "width": 4, "depth": 2}
    config = changed(tiny(1, train=CONSTANT), sharpen=sharpen)
    run = tmp_path / "run"
    go(data, run, config)
    before = weights(run)
    longer = changed(config, sharpen={"steps": 6})
    go(data, run, longer)
    go(data, tmp_path / "once", longer)
    after = weights(run)
    assert {name for name in before if not same_tensors(before[name], after[name])} == {
        "sharpen/model.safetensors"
    }
    assert all(same_tensors(after[name], own) for name, own in weights(tmp_path / "once").items())
    (run / "sharpen" / "state.safetensors").unlink()
    said = go(data, run, changed(config, sharpen={"steps": 9}))
    assert any("its state was not kept, so it is trained anew" in line for line in said)


def test_patience_is_counted_anew(data: Path, tmp_path: Path) -> None:
    """A prior that stopped for want of progress goes on when more steps are asked for, and stops again; with more patience too."""
    config = tiny(1, train={"steps": 6, "evaluate_every": 1, "patience": 1, "lr": 1e-12, "warmup": 0})
    config = changed(config, autoencoder={"decay": 0.999999, "revive": False})
    said = go(data, tmp_path / "run", config)
    assert any("brought no better result" in line for line in said)
    stage = RunFolder(tmp_path / "run").prior(0)
    before = read_json(stage.record)["outcome"]["step"]
    if before == 6:
        pytest.skip("it improved by chance")
    longer = steps(config, level_0=12)
    go(data, tmp_path / "run", longer)
    again = read_json(stage.record)["outcome"]["step"]
    assert before < again < 12
    patient = changed(longer, train_prior=[{**longer.train_prior[0].model_dump(), "patience": 0}])
    said = go(data, tmp_path / "run", patient)
    assert any(f"prior level 0: trained further, from step {again} towards 12" in line for line in said)
    assert read_json(stage.record)["outcome"]["step"] == 12
    assert "all is done" in go(data, tmp_path / "run", longer)[-1]


def test_minutes_that_are_over_must_be_raised(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(1, train={**CONSTANT, "steps": 300, "minutes": 0.001, "evaluate_every": 300})
    run = tmp_path / "run"
    said = go(data, run, config)
    assert any("because its 0.001 minutes are over" in line for line in said)
    done = read_json(RunFolder(run).autoencoder.record)["outcome"]["step"]
    with pytest.raises(RunError, match=r"raise train_autoencoder\.minutes too"):
        go(data, run, changed(config, train_autoencoder={"steps": 2000}))
    assert "all is done" in go(data, run, changed(config, train_autoencoder={"log_every": 7}))[-1]
    go(data, run, changed(config, train_autoencoder={"minutes": 0}))
    assert read_json(RunFolder(run).autoencoder.record)["outcome"]["step"] == 300 > done


@pytest.mark.parametrize(
    ("line", "may"),
    [
        ("train_autoencoder.steps: 6 -> 7", True),
        ("train_autoencoder.steps: 6 -> 5", False),
        ("sharpen.steps: 0 -> 5", False),  # this is a new stage
        ("train_prior.1.steps: 0 -> 5", True),  # trained in a copy of the run
        ("train_prior.1.minutes: 2.0 -> 3.5", True),
        ("train_prior.1.minutes: 2.0 -> 0.0", True),
        ("train_prior.1.minutes: 0.0 -> 2.0", False),
        ("train_prior.0.patience: 6 -> 0", True),
        ("sharpen.evaluate_on: 0 -> 1000", True),
        ("train_prior.0.lr: 0.001 -> 0.002", False),
        ("autoencoder.codes: [8, 10] -> [8, 16]", False),
    ],
)
def test_what_makes_a_training_longer(line: str, may: bool) -> None:
    assert may_change(line) == may


# --- another prior in the place of one ---


def test_a_prior_is_replaced_on_request(run: Path, data: Path, short: Config) -> None:
    """The old one is moved aside; the same command again trains nothing; the other level stays as it is."""
    level = short.prior.levels[0].model_dump()
    wider = [level | {"hidden": 12}, short.prior.levels[1].model_dump()]
    wanted = changed(short, prior={"levels": wider})
    before = weights(run)
    with pytest.raises(RunError, match=r"prior\.levels\.0\.hidden: 8 -> 12.*--redo-prior LEVEL"):
        go(data, run, wanted)
    with pytest.raises(RunError, match=r"prior\.levels\.0\.hidden"):
        go(data, run, wanted, redo=[1])
    said = go(data, run, wanted, redo=[0])
    aside = run / "prior" / "level-0.before-1"
    assert any(f"moved to {aside}" in line for line in said)
    after = weights(run)
    assert same_tensors(
        after["prior/level-0.before-1/model.safetensors"], before["prior/level-0/model.safetensors"]
    )
    assert same_tensors(after["prior/level-1/model.safetensors"], before["prior/level-1/model.safetensors"])
    assert load(run, "cpu").sample(2).shape == (2, 3, 16, 16)
    assert go(data, run, wanted, redo=[0]) == [f"{run}: all is done; nothing to train"]


# --- from another run ---


def fine_tuned(short: Config, whole: Path, **patch: Any) -> Config:
    """Settings that begin with the weights of a run and hardly move them."""
    start = {"start": str(whole), "lr": 1e-12, "warmup": 0}
    priors = [training.model_dump() | start for training in short.train_prior]
    more = {"train_autoencoder": {**start, "steps": 1}, "train_prior": priors}
    return changed(short, **more, autoencoder={"revive": False}, **patch)


def test_priors_begin_with_those_of_another_run(
    whole: Path, data: Path, short: Config, tmp_path: Path
) -> None:
    """With the same classes all weights are taken over; a class of the same name keeps its embedding, another one is new."""
    theirs = weights(whole)
    go(data, tmp_path / "same", fine_tuned(short, whole))
    other = pictures(tmp_path / "pictures", classes=("birds", "cats", "dogs"))
    said = go(other, tmp_path / "other", fine_tuned(short, whole, seed=5))
    assert any("1 of 3 classes are new" in line for line in said)
    for level in (0, 1):
        name = f"prior/level-{level}/model.safetensors"
        ours = weights(tmp_path / "same")[name]
        assert all(torch.allclose(ours[key], value, atol=1e-6) for key, value in theirs[name].items())
        table, before = weights(tmp_path / "other")[name]["label.weight"], theirs[name]["label.weight"]
        assert torch.allclose(table[1:], before, atol=1e-6), "cats, dogs, no label"
        assert not torch.allclose(table[0], before[0], atol=1e-3)


def test_no_class_is_new_to_a_prior_without_classes(whole: Path, data: Path, short: Config) -> None:
    table = make_level(short.prior.levels[1], short.geometry, 1, 0)
    assert begin_prior(table, str(whole), 1, ["birds", "cats"]) == 0


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"prior": {"levels": [{"hidden": 12}, {}]}}, r"expected the priors of .*\(hidden: 8 -> 12\)"),
        ({"prior": {"levels": [{"kernel": 5}, {}]}}, r"train_prior\.0\.start: .*\(kernel: 3 -> 5\)"),
        (
            {"prior": {"levels": [{}, {"condition_blocks": 2}]}},
            r"train_prior\.1\.start: .*\(condition_blocks: 1 -> 2\)",
        ),
        ({"data": {"size": 32}}, r"expected the priors of .*\(data\.size: 16 -> 32\)"),
        ({"autoencoder": {"codes": [8, 11]}}, "expected the codes of"),
    ],
)
def test_another_run_must_have_the_same_networks(
    patch: dict[str, Any], said: str, whole: Path, short: Config, tmp_path: Path
) -> None:
    """Refused before an image is read."""
    if "prior" in patch:
        own = [level.model_dump() for level in short.prior.levels]
        patch = {"prior": {"levels": [a | b for a, b in zip(own, patch["prior"]["levels"], strict=True)]}}
    config = fine_tuned(changed(short, **patch), whole)
    config = changed(config, train_autoencoder={"start": ""})
    with pytest.raises(RunError, match=said):
        go(Path("no pictures"), tmp_path / "run", config)


def priors_alone(folder: Path, config: Config, classes: tuple[str, ...] = ()) -> Path:
    """A run folder with nothing but untrained priors."""
    write_config(folder, {"classes": [*classes]}, changed(config, prior={"classes": len(classes)}))
    for level, settings in enumerate(config.prior.levels):
        model = make_level(settings, config.geometry, level, len(classes))
        save_tensors(RunFolder(folder).prior(level).model, model.state_dict())
    return folder


@pytest.mark.parametrize(
    ("level", "other", "refused"),
    [
        ({"kind": "transformer"}, {"heads": 4}, r"\(heads: 2 -> 4\)"),
        ({"kind": "transformer"}, {"attention_every": 1}, ""),
        ({"attention_every": 1}, {"heads": 4}, r"\(heads: 2 -> 4\)"),
        ({"attention_every": 2, "layers": 3}, {"attention_every": 3}, r"\(attention_every: 2 -> 3\)"),
        ({}, {"heads": 4, "dropout": 0.5}, ""),
    ],
)
def test_what_no_shape_shows_must_be_the_same(
    level: dict[str, Any], other: dict[str, Any], refused: str, short: Config, tmp_path: Path
) -> None:
    """Weights of two heads mean something else in a network of four; without attention they mean the same."""
    own = [settings.model_dump() | level for settings in short.prior.levels]
    theirs = changed(short, prior={"levels": own})
    start = priors_alone(tmp_path / "start", theirs)
    ours = changed(fine_tuned(theirs, start), prior={"levels": [settings | other for settings in own]})
    with pytest.raises(RunError, match=refused) if refused else nullcontext():
        check_starts(ours, {"prior level 0": True})


@pytest.mark.parametrize(("theirs", "ours"), [(CLASSES, ()), ((), CLASSES)])
def test_only_one_of_the_runs_has_classes(
    theirs: tuple[str, ...], ours: tuple[str, ...], short: Config, tmp_path: Path
) -> None:
    """Both directions: what both networks have is taken over, and the rest of ours stays as it is."""
    start = priors_alone(tmp_path / "start", short, theirs)
    config = changed(fine_tuned(short, start), prior={"classes": len(ours)})
    check_starts(config, {"prior level 0": True, "prior level 1": True})
    for level, settings in enumerate(config.prior.levels):
        model = make_level(settings, config.geometry, level, len(ours))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        assert begin_prior(model, str(start), level, [*ours]) == len(ours)
        there = load_tensors(RunFolder(start).prior(level).model)[0]
        expected = {name: there.get(name, value) for name, value in before.items()}
        assert same_tensors(dict(model.state_dict()), expected)


def stages_of(folder: Path, config: Config, longer: tuple[str, ...] = (), **options: Any) -> dict[str, bool]:
    """`due`, of these stages that are trained further."""
    return due(folder, config, longer, options.get("anew", ()), options.get("until", "prior"))


def test_what_is_due(short: Config, tmp_path: Path) -> None:
    """And whether it begins at its starting point: not with a state of its own, nor if it is trained further."""
    everything = dict.fromkeys(("autoencoder", "prior level 0", "prior level 1"), True)
    assert stages_of(tmp_path, short) == everything
    assert stages_of(tmp_path, short, until="autoencoder") == {"autoencoder": True}
    sharpened = changed(short, sharpen={"steps": 3})
    assert [*stages_of(tmp_path, sharpened, until="sharpen")] == ["autoencoder", "sharpen"]
    assert [*stages_of(tmp_path, sharpened)] == ["autoencoder", "sharpen", "prior level 0", "prior level 1"]
    paths = RunFolder(tmp_path)
    for file in (paths.autoencoder.model, paths.prior(0).model, paths.prior(1).checkpoint):
        file.parent.mkdir(parents=True)
        file.touch()
    assert stages_of(tmp_path, short) == {"prior level 1": False}
    assert stages_of(tmp_path, short, until="autoencoder") == {}
    assert stages_of(tmp_path, short, ("prior level 0",)) == {"prior level 0": False, "prior level 1": False}
    assert stages_of(tmp_path, short, anew=(0,)) == {"prior level 0": True, "prior level 1": False}
    assert stages_of(tmp_path, short, ("autoencoder", "prior level 0")) == everything | {"autoencoder": False}
    with pytest.raises(RunError, match=r"train_prior\.0\.batch: 4 images cannot be shared out evenly to 3"):
        check_processes(short, ["prior level 0"], 3)


def test_a_starting_point_that_is_gone(run: Path, data: Path, short: Config, tmp_path: Path) -> None:
    """It is not missed by what is trained further; where priors would have to begin there again, nothing is touched."""
    config = fine_tuned(short, tmp_path / "gone")
    record, old = read_run(run)
    write_config(run, record, changed(config, prior=old.prior.model_dump()))
    for stage in RunFolder(run).networks(2).values():
        if stage.done():
            about = read_json(stage.record)
            write_json(stage.record, about | {"config": config.model_dump(mode="json")})
    before = weights(run)
    with pytest.raises(RunError, match=r"no run .*gone"):
        go(data, run, steps(config, autoencoder=4))
    assert weights(run).keys() == before.keys()
    assert (run / "codes" / "manifest.json").exists()
    go(data, run, steps(config, level_1=4))
    assert read_json(RunFolder(run).prior(1).record)["outcome"]["step"] == 4
    said = go(data, run, steps(config, autoencoder=4, level_1=4), until="autoencoder")
    assert read_json(RunFolder(run).autoencoder.record)["outcome"]["step"] == 4
    assert sum("trained further" in line for line in said) == 1


def test_the_run_from_which_a_prior_starts_may_be_made_after_the_autoencoder(
    data: Path, short: Config, tmp_path: Path
) -> None:
    """As in recipes/emoji64.yaml; for the priors it has to be there."""
    config = fine_tuned(short, tmp_path / "later")
    config = changed(config, train_autoencoder={"start": ""})
    go(data, tmp_path / "run", config, until="autoencoder")
    with pytest.raises(RunError, match="no run"):
        go(data, tmp_path / "run", config)
