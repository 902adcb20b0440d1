"""Two processes with half the batch each do what one does with the whole batch, stop together and fail together."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch_versions import needs_torch
from train_helpers import Spoken, changed, exactly, pictures, sharded, tiny

from vqvae2.config.models import Config
from vqvae2.data.store import open_store
from vqvae2.files.tensor_file import digest, load_tensors
from vqvae2.prior.hierarchy import make_level
from vqvae2.train.folder import model_file
from vqvae2.train.pipeline import train
from vqvae2.train.sharded import bytes_per_process
from vqvae2.train.state import read_metrics

PARTS = ("autoencoder", "prior/level-0", "prior/level-1")
pytestmark = needs_torch(2, 8)  # `shard` needs it

# Eight jobs: a whole run; one with sharded priors; one with a damaged code; one that rank 1 is asked to stop; one whose loss
# spoils on rank 1 alone; an uneven batch; other images on rank 1; float64.
_WORKER = """
import json, math, os, shutil, signal, sys, warnings
from pathlib import Path
import torch
from vqvae2.config.models import parse
from vqvae2.errors import UserError
from vqvae2.files.progress import Reporter
from vqvae2.files.tensor_file import digest
from vqvae2.train import loop, pipeline

warnings.simplefilter("error")
torch.set_num_threads(1)
data, place = sys.argv[1], Path(sys.argv[2])
rank = int(os.environ["RANK"])
configs = json.loads((place / "configs.json").read_text())
notes = {"trained": [], "extracted": 0, "encoded": [], "said": []}
usual_fit, usual_extract, usual_loss = pipeline.fit, pipeline.extract, pipeline.AutoencoderObjective.loss

class Notes(Reporter):
    def say(self, text):
        notes["said"].append(text) if not self.quiet else None

def fit(objective, *arguments):
    outcome = usual_fit(objective, *arguments)
    notes["trained"].append(digest(objective.model.state_dict()))
    return outcome

def extract(model, *arguments):
    notes["extracted"] += 1
    usual_encode = model.encode
    model.encode = lambda images: notes["encoded"].append(len(images)) or usual_encode(images)
    usual_extract(model, *arguments)

spelled = os.path.relpath if rank else str  # a folder may have another path in each process

def train(name, config="whole"):
    pipeline.train(spelled(data), spelled(place / name), parse(configs[config]), reporter=Notes())

pipeline.fit, pipeline.extract = fit, extract
train("whole")
pipeline.fit, pipeline.extract = usual_fit, usual_extract
train("cut up", "sharded")
if rank == 0:
    shutil.copytree(place / "whole", place / "damaged")
    shutil.rmtree(place / "damaged/prior/level-1")
    codes = place / "damaged/codes/level-0.npy"
    content = codes.read_bytes()
    codes.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
torch.distributed.barrier()
train("damaged")

calls = 0
def asked(self, model, batch):
    global calls
    calls += 1
    if rank == 1 and calls == 2:
        signal.raise_signal(signal.SIGTERM)
    return usual_loss(self, model, batch)

pipeline.AutoencoderObjective.loss = asked
try:
    train("stopped")
except loop.Interrupted as error:
    notes["interrupted"] = str(error)
pipeline.AutoencoderObjective.loss = usual_loss
train("stopped")

calls = 0
def spoilt(self, model, batch):
    global calls
    calls += 1
    loss, logs = usual_loss(self, model, batch)
    return loss * (math.nan if rank == 1 and calls == 3 else 1), logs

pipeline.AutoencoderObjective.loss = spoilt
for name, config in (("spoilt", "whole"), ("uneven", "uneven")):
    try:
        train(name, config)
    except UserError as error:
        notes[name] = str(error)

pipeline.AutoencoderObjective.loss = usual_loss
if rank == 1:
    data = shutil.copytree(data, place / "fewer")
    next(data.rglob("*.png")).unlink()
try:
    pipeline.train(str(data), place / "unlike", parse(configs["whole"]), reporter=Notes())
except UserError as error:
    notes["unlike"] = str(error)

sys.path.insert(0, sys.argv[3])
from train_helpers import exactly, sharded
from safetensors.torch import save_file
for kind in ("autoencoder", "prior"):
    made = {k: v.contiguous() for k, v in exactly(place / f"exact-{rank}", kind).items()}
    save_file(made, place / f"exact-{kind}-{rank}.safetensors")

from vqvae2.train import sharded_state as states
from vqvae2.train.state import State
usual_rows = states.rows_of_state
def rows_of_state(network, *more):
    rows = usual_rows(network, *more)
    notes["bytes"] = sum(r.nbytes for key, r in rows.items() if not key.startswith("best."))
    notes["bytes"] += sum(w.to_local().nbytes for w in network.parameters())  # of the gradients
    return rows
states.rows_of_state = rows_of_state
weights = sharded(place, "sharded", True)
sharded(place, "parted", True, stop=4)
if rank == 0:
    shutil.copytree(place / "parted", place / "joined")
    shutil.copytree(place / "parted", place / "both")
again = sharded(place, "parted", True)
both = sharded(place, "both", False)
from vqvae2.train.judging import HeldOut
usual_polled = HeldOut.polled
def polled(self, batches, *more):
    if rank == 1:
        signal.raise_signal(signal.SIGTERM)
    return usual_polled(self, batches, *more)
HeldOut.polled = polled
notes["judged"] = len(sharded(place, "judged", False))  # none, because it was interrupted
HeldOut.polled = usual_polled
judged = sharded(place, "judged", False)
if rank == 0:
    made = {"whole": weights, "again": again, "both": both, "judged": judged}
    save_file({f"{name}.{k}": v.contiguous() for name, each in made.items() for k, v in each.items()}, place / "sharded.safetensors")
notes["best"] = []
usual_best = State.keep_best
def keep_best(self, model, main):
    usual_best(self, model, main)
    notes["best"].append(len(self.best))
State.keep_best = keep_best
sharded(place, "kept", False, stop=4)
sharded(place, "kept", False)
(place / f"notes-{rank}.json").write_text(json.dumps(notes))
"""


def settings() -> Config:
    """With noise of every kind, averages, parts, classes and an evaluation in between."""
    train = {"lr": 1e-3, "steps": 6, "evaluate_every": 3, "average": 0.5, "accumulate": 1}
    config = tiny(train=train)
    level = config.prior.levels[0].model_dump() | {"dropout": 0.1, "label_dropout": 0.3}
    return changed(config, prior={"levels": [level, level]})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes did their jobs, and one process the first of them."""
    place = tmp_path_factory.mktemp("processes")
    data = pictures(place / "pictures", classes=("cats", "dogs"))
    config = settings()
    uneven = changed(config, train_autoencoder={"batch": 5})
    configs = {"whole": config, "uneven": uneven, "sharded": changed(config, shard=True)}
    value = {name: each.model_dump(mode="json") for name, each in configs.items()}
    (place / "configs.json").write_text(json.dumps(value))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(data), str(place), str(Path(__file__).parent)],
            env=os.environ | group | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    try:
        train(str(data), place / "one", config, reporter=Spoken())
        for worker in workers:
            _, said = worker.communicate(timeout=400)
            assert worker.returncode == 0, said
        # rounding may decide between two codes that are equally near, so priors are compared on the same codes
        shutil.copytree(
            place / "whole", place / "one with the codes of two", ignore=shutil.ignore_patterns("prior")
        )
        train(str(data), place / "one with the codes of two", config, reporter=Spoken())
    finally:
        for worker in workers:
            worker.kill()
    return place


def alone(place: Path, part: str) -> Path:
    """The run of one process with which a part of the run of two is compared."""
    return place / ("one" if part == "autoencoder" else "one with the codes of two") / part


def notes(place: Path) -> list[dict[str, Any]]:
    """What each process noted."""
    return [json.loads((place / f"notes-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("run", ["whole", "cut up"])
@pytest.mark.parametrize("part", PARTS)
def test_the_weights_are_those_of_one_process(part: str, run: str, place: Path) -> None:
    """Codebooks and their statistics included; with `shard` too."""
    one, two = (
        load_tensors(each / "model.safetensors")[0] for each in (alone(place, part), place / run / part)
    )
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.allclose(two[name].double(), tensor.double(), rtol=0, atol=1e-4), name


@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
def test_in_double_precision_they_stay_together(kind: str, place: Path) -> None:
    """After 12 steps with dropout, nested dropout and hidden labels: what differs in float32 is rounding, and nothing else."""
    one = exactly(place / "exact", kind)
    for rank in (0, 1):
        two = load_file(place / f"exact-{kind}-{rank}.safetensors")
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            assert torch.allclose(two[name].double(), tensor.double(), rtol=0, atol=1e-8), name


def test_sharded_weights_are_those_of_one_process(place: Path) -> None:
    """Whether the training ran through, or was continued by two processes, sharded or not, or by one, from what two had saved.

    One was asked to stop within an evaluation, by a signal to one process.
    """
    assert [note["judged"] for note in notes(place)] == [0, 0]
    found = load_file(place / "sharded.safetensors")
    one = sharded(place, "unsharded", False)
    joined = sharded(place, "joined", False)
    for name, tensor in one.items():
        for other in (
            *(found[f"{each}.{name}"] for each in ("whole", "again", "both", "judged")),
            joined[name],
        ):
            assert torch.allclose(other, tensor, rtol=0, atol=1e-5), name


def test_the_best_weights_are_in_the_memory_of_one_process(place: Path) -> None:
    """And all end with them (`test_both_processes_end_with_the_same_weights`)."""
    first, second = notes(place)
    assert all(first["best"])
    assert second["best"] == [0] * len(first["best"])


def test_the_memory_of_a_sharded_prior_is_what_inspect_counts(place: Path) -> None:
    """Weights, gradients, moments and averages of the process that has the most of them."""
    config = tiny(prior={"levels": [{"layers": 2}] * 2})
    level = make_level(config.prior.levels[1], config.geometry, 1, 3)
    assert max(note["bytes"] for note in notes(place)) == bytes_per_process(level, 2, average=True)[0]


@pytest.mark.parametrize("part", PARTS)
def test_the_record_is_that_of_one_process(part: str, place: Path) -> None:
    """Losses, epoch statistics and held-out figures are of all processes together, not of the writing one."""
    one, two = (read_metrics(each / "metrics.jsonl") for each in (alone(place, part), place / "whole" / part))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        shared = {key: value for key, value in a.items() if not key.startswith("batch_perplexity")}
        assert {key: b[key] for key in shared} == pytest.approx(shared, rel=2e-3, abs=1e-6)
        assert a.keys() == b.keys()
    assert sum("epoch" in line for line in one) == (2 if part == "autoencoder" else 0)


def test_both_processes_end_with_the_same_weights(place: Path) -> None:
    first, second = notes(place)
    assert first["trained"] == second["trained"]
    published = [digest(load_tensors(model_file(place / "whole", level))[0]) for level in (None, 0, 1)]
    assert first["trained"] == published


def test_codes_are_extracted_by_both_and_once(place: Path) -> None:
    """Each process encodes its share; the store is in the order that one process gives it."""
    first, second = notes(place)
    assert (first["extracted"], second["extracted"]) == (1, 1)
    assert first["encoded"]
    assert second["encoded"]
    assert sum(first["encoded"] + second["encoded"]) == 14
    one, two = (open_store(place / run / "codes") for run in ("one", "whole"))
    assert (one.labels == two.labels).all()
    assert (one.split == two.split).all()
    for a, b in zip(one.codes(range(14)).levels, two.codes(range(14)).levels, strict=True):
        assert (a == b).double().mean() > 0.95, "equal but for ties that rounding decides"


def test_a_code_that_only_the_main_process_finds_damaged_is_made_anew_by_both(place: Path) -> None:
    """The checksums are the main process's alone; the others must not wait for it with the store as it is."""
    assert any("extracting anew" in line for line in notes(place)[0]["said"])
    for file in ("codes/level-0.npy", "codes/manifest.json"):
        assert (place / "damaged" / file).read_bytes() == (place / "whole" / file).read_bytes()
    whole, again = (load_tensors(model_file(place / run, 1))[0] for run in ("whole", "damaged"))
    assert digest(again) == digest(whole)


def test_only_one_process_speaks(place: Path) -> None:
    first, second = notes(place)
    assert sum("is the best of" in line for line in first["said"]) == 10, (
        "three stages, of three runs, and a prior"
    )
    assert second["said"] == []


def test_one_that_is_asked_to_stop_stops_both(place: Path) -> None:
    """At the same step, with the state saved; and the resumed run is the uninterrupted one, bit for bit."""
    for note in notes(place):
        assert note["interrupted"] == "autoencoder: saved at step 2 of 6"
    for part in PARTS:
        whole, stopped = (load_tensors(place / run / part / "model.safetensors")[0] for run in ("whole", "stopped"))  # fmt: skip
        assert digest(stopped) == digest(whole)
        assert read_metrics(place / "stopped" / part / "metrics.jsonl") == read_metrics(place / "whole" / part / "metrics.jsonl")  # fmt: skip


def test_a_loss_that_spoils_on_one_process_ends_both(place: Path) -> None:
    """With the same word, instead of one that waits for the other."""
    first, second = notes(place)
    assert "the loss is not finite at step 3 " in first["spoilt"]
    assert first["spoilt"] == second["spoilt"]


def test_a_batch_that_cannot_be_shared_out(place: Path) -> None:
    for note in notes(place):
        assert note["uneven"] == (
            "train_autoencoder.batch: 5 images cannot be shared out evenly to 2 processes; take a multiple of 2"
        )
    assert not (place / "uneven/data").exists(), "it is refused before images are read"


def test_processes_that_see_other_images_end(place: Path) -> None:
    """A machine to which one shard was not copied: the processes would wait for each other, or train on other images."""
    first, second = notes(place)
    assert first["unlike"] == second["unlike"]
    assert "process 1 on " in first["unlike"]
    assert "sees 9 images to train and 4 held out (" in first["unlike"]
    assert not (place / "unlike" / "autoencoder").exists()
