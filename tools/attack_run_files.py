"""Damage every file of a tiny run folder in every way, and call everything that reads it.

    python tools/attack_run_files.py --count 4000 --seed 1

Allowed are success and a `UserError`. A foreign exception, more memory or time than the bounds, a file that was changed
by a verb that only reads, and a file outside of the run folder that was changed at all, are faults. Mutation i of a seed is
always the same, so a fault can be called again: `--seed 1 --first 1234 --count 1`.

The command runs its mutations in processes of their own, so that a crash is counted and does not end it. Other programs
import `mutate_run_files`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import io
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _mutations import VICTIM, mutations_of
from vqvae2 import Run
from vqvae2.commands import costs
from vqvae2.commands.inspect import describe
from vqvae2.config import overrides
from vqvae2.config.presets import preset
from vqvae2.config.sampling import Sampling
from vqvae2.data.store import open_store
from vqvae2.errors import UserError
from vqvae2.evaluate.classifier_file import save_classifier
from vqvae2.evaluate.features import extract, keep
from vqvae2.evaluate.resnet import ClassifierConfig, ResNet
from vqvae2.evaluate.sets import folder_images
from vqvae2.files import atomic
from vqvae2.files.progress import Reporter
from vqvae2.generate.sample_folder import SampleFolder, listed_samples
from vqvae2.train import pipeline
from vqvae2.train.device import TrainingError
from vqvae2.train.state import read_metrics

SECONDS, MEBIBYTES = (
    30.0,
    1024,
)  # that the readers of one mutated folder may take, beyond what the process has
_STEPS = 4
_AT_ONCE = 200  # mutations of one process
_READING = (
    "run",
    "half",
)  # the folders that are mutated: all done, and a prior of which there is a checkpoint


@dataclass
class Outcomes:
    """What came of the mutations.

    Attributes:
        counts: "accepted", "refused" (with a `UserError`), and the kinds of faults, per mutation.
        faults: a line for each fault, with the number of its mutation.
        seconds, mebibytes: the most that one mutation took, and the growth of the process's largest memory.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    mebibytes: float = 0.0

    def add(self, other: Outcomes) -> None:
        """Take in other mutations."""
        self.counts += other.counts
        self.faults += other.faults
        self.seconds = max(self.seconds, other.seconds)
        self.mebibytes = max(self.mebibytes, other.mebibytes)


class TooLongError(BaseException):
    """The readers took longer than allowed."""


def build(root: Path) -> None:
    """Make ROOT/run, ROOT/half, the images that they were trained on, and a file beside them that nothing may touch."""
    (root / VICTIM).write_text(f"{root / 'pictures'}\n")  # it says where the images are
    for number in range(24):
        file = root / "pictures" / ("a", "b", "c")[number % 3] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(file)
    run = root / "run"
    _train(root, run)
    for level in (None, 0, 1):
        (Run(run, "cpu").paths.stage(level).pictures / "step-0000004.png").unlink(missing_ok=True)
    shutil.copytree(run, root / "half")
    shutil.rmtree(root / "half" / "prior" / "level-1")
    checked = pipeline.check_learned

    def stopped(name: str, *rest: Any) -> None:
        if name == "prior level 1":  # when its checkpoint is written, and its weights are not yet
            raise TrainingError("stopped")
        checked(name, *rest)

    pipeline.check_learned = stopped
    try:
        _train(root, root / "half")
    except TrainingError:
        pass
    finally:
        pipeline.check_learned = checked
    _add_critic(run)
    _add_samples(run)
    _features(run)


def _train(root: Path, run: Path) -> None:
    base = preset("tiny").model_dump(mode="json")
    small = {"steps": _STEPS, "batch": 8, "evaluate_every": _STEPS, "log_every": 1}
    base["data"] |= {"size": 16, "workers": 0, "flip": False, "shift": 0, "holdout": 0.3}
    base["autoencoder"] |= {"codes": [16, 16], "code_dim": 8, "hidden": 16, "residual": 8}
    base["train_autoencoder"] |= small | {"average": 0.5}
    prior = {"hidden": 8, "residual": 8, "heads": 1, "layers": 1, "output_layers": 0, "condition_blocks": 0}
    base["prior"]["levels"] = [level | prior for level in base["prior"]["levels"]]
    base["train_prior"] = [each | small for each in base["train_prior"]]
    config = pipeline.Config.model_validate(base)
    pipeline.train(str(root / "pictures"), run, config, command="attack", reporter=Reporter(quiet=True))


class _Network:
    """A feature network without weights."""

    name, digest, dimension, size, resize, score_name = "toy", "0" * 64, 3, 16, "none", None

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return images.mean((2, 3)), None


def _add_critic(run: Path) -> None:
    classifier = ResNet(3, 16, 3, ClassifierConfig(width=8, stages=1))
    file = run / "critic" / "model.safetensors"
    digest = save_classifier(file, classifier)
    network = {"name": "resnet", "digest": classifier.backbone_digest}
    record = {"kind": "model", "file": file.name, "digest": digest, "network": network}
    record |= {"classes": ["a", "b", "c"], "accuracy": 0.5, "train": 18, "heldout": 6}
    atomic.write_json(run / "critic" / "critic.json", record)


def _add_samples(run: Path) -> None:
    opened = Run(run, "cpu")
    folder = SampleFolder(run / "report" / "cache" / "samples", {"seed": 0}, "npz")
    folder.claim()
    for part in opened.draw(4, sampling=Sampling(batch=2)):
        folder.add(part)
    folder.finish(4, [0, 1, 2, 0], opened.classes)


# --- readers -------------------------------------------------------------------------------------------------------------


def _inspect(run: Path) -> None:
    opened = Run(run, "cpu")
    json.dumps(describe(opened.config, opened))


def _sample(run: Path) -> None:
    opened = Run(run, "cpu")
    images = opened.sample(1)
    opened.reconstruct(images)
    opened.log_prob(images)
    opened.typical(labelled=True)


def _critic(run: Path) -> None:
    critic = Run(run, "cpu").critic
    critic(torch.zeros(2, 3, 16, 16), torch.tensor([0, 1]))


def _codes(run: Path) -> None:
    store = open_store(run / "codes")
    store.geometry.check(store.codes(np.arange(len(store))))


def _metrics(run: Path) -> None:
    for file in run.rglob("metrics.jsonl"):
        read_metrics(file)


def _samples(run: Path) -> None:
    folder = run / "report" / "cache" / "samples"
    if not folder.exists():
        return
    opened = Run(run, "cpu")
    listed_samples(folder)
    named = folder_images(
        "samples", folder, opened.classes, opened.config.data, run / "report" / "cache" / "x"
    )
    named.images()
    stored = SampleFolder(folder, {"seed": 0}, "npz")
    stored.claim()
    if not stored.missing(4):
        opened.autoencoder.decode(stored.codes([0, 3]))
        # a damaged configuration may name fewer classes
        labels = [0, 1, 2, 0] if len(opened.classes) > 2 else None
        stored.finish(4, labels, opened.classes)


def _features(run: Path) -> None:
    network, file = _Network(), run / "report" / "cache" / "features.safetensors"
    keep(file, extract(network, [torch.zeros(6, 3, 16, 16)]), network, "key")


def _resume(run: Path) -> None:
    own = Run(run, "cpu").config
    source = (run.parent / VICTIM).read_text().strip()
    steps = [training.steps for training in (own.train_autoencoder, own.sharpen, *own.train_prior)]
    if own.data.area > 64**2 or max(steps) > _STEPS:
        return  # a longer training is no fault
    pipeline.train(source, run, own, command="attack", reporter=Reporter(quiet=True))


READERS: dict[str, Callable[[Path], None]] = {
    "inspect": _inspect, "sample": _sample, "critic": _critic, "codes": _codes, "metrics": _metrics,
}  # fmt: skip
WRITERS: dict[str, Callable[[Path], None]] = {"samples": _samples, "features": _features, "resume": _resume}
_OPENS = {  # what some readers open besides the configuration: they are called for these files alone
    "critic": ("critic",),
    "samples": ("report/cache/samples", "autoencoder", "sharpen"),
    "features": ("report/cache/features",),
    "sample": ("autoencoder", "codes", "prior"),
    "resume": ("autoencoder", "codes", "data", "prior"),
}
_NEED_ALL = ("sample", "critic", "samples", "features")  # of what is in the folder "run" alone


# --- one mutation --------------------------------------------------------------------------------------------------------


def mutate_run_files(seed: int, count: int, first: int = 0, root: Path | None = None) -> Outcomes:
    """Damage files of a tiny run folder, one at a time, and call every reader each time.

    Args:
        seed, first, count: the mutations `first` .. `first + count - 1` of the seed are made.
        root: a folder that `build` filled; None builds one.
    """
    result = Outcomes()
    gc.collect()
    gc.freeze()  # what is imported need not be looked through again and again
    with tempfile.TemporaryDirectory() as scratch, _quick_costs():
        if root is None:
            root = Path(scratch) / "base"
            root.mkdir()
            build(root)
        for number in range(first, first + count):
            place = Path(scratch) / "place"
            shutil.copytree(root, place, symlinks=True)
            result.add(_one(place, random.Random(f"{seed}-{number}"), number))
            shutil.rmtree(place)
    gc.unfreeze()
    return result


def _one(place: Path, chance: random.Random, number: int) -> Outcomes:
    run = place / chance.choice(_READING)
    files = sorted(file for file in run.rglob("*") if file.is_file() and file.suffix != ".png")
    path = chance.choice(files)
    mutation = chance.choice(mutations_of(path.name))
    title = f"{number}: {mutation.__name__} of {path.relative_to(place)}"
    mutation(path, chance)
    result, refused, before = Outcomes(), 0, _contents(place)
    began, memory = time.process_time(), _peak()
    for name, reader in {**READERS, **WRITERS}.items():
        inside = str(path.relative_to(run))
        if (run.name == "half" and name in _NEED_ALL) or not inside.startswith(
            ("config", *_OPENS.get(name, ("",)))
        ):
            continue
        kind = _call(reader, run)
        refused += kind == "refused"
        if kind not in ("accepted", "refused"):
            result.counts[kind.partition(":")[0]] += 1
            result.faults.append(f"{title}: {name}: {kind}")
        after = _contents(place if name in READERS else place / VICTIM)
        expected = before if name in READERS else {VICTIM: before[VICTIM]}
        if after != expected:
            result.counts["changed"] += 1
            result.faults.append(
                f"{title}: {name} changed {sorted(set(after.items()) ^ set(expected.items()))[:1]}"
            )
    result.seconds, result.mebibytes = time.process_time() - began, _peak() - memory
    if result.mebibytes > MEBIBYTES:
        result.counts["memory"] += 1
        result.faults.append(f"{title}: {result.mebibytes:.0f} MiB")
    if not result.faults:
        result.counts["refused" if refused else "accepted"] += 1
    return result


def _call(reader: Callable[[Path], None], run: Path) -> str:
    """How a reader ended: "accepted", "refused", or a fault."""

    def alarm(number: int, frame: FrameType | None) -> None:
        raise TooLongError

    signals = {
        signal.SIGPROF: signal.ITIMER_PROF,
        signal.SIGALRM: signal.ITIMER_REAL,
    }  # computing, and waiting
    handlers = {number: signal.signal(number, alarm) for number in signals}
    for number, timer in signals.items():
        signal.setitimer(timer, SECONDS if number == signal.SIGPROF else 20 * SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            reader(run)
        return "accepted"
    except UserError as error:
        text = str(error)
        return (
            "refused"
            if "\n" not in text and "\x1b" not in text and len(text) < 2000
            else f"message: {text[:200]!r}"
        )
    except TooLongError:
        return "time"
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        own = [f for f in traceback.extract_tb(error.__traceback__) if "vqvae2" in f.filename]
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else frame.name
        return f"exception: {type(error).__name__} at {where}: {str(error)[:200]!r}"
    finally:
        for number, timer in signals.items():
            signal.setitimer(timer, 0)
            signal.signal(number, handlers[number])


def _contents(place: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of every file."""
    files = [place] if place.is_file() else sorted(place.rglob("*"))
    return {
        file.name if file == place else str(file): _about(file) for file in files if not file.is_dir()
    } | ({} if place.is_file() else {VICTIM: _about(place / VICTIM)})


def _about(file: Path) -> tuple[int, int]:
    about = file.lstat()
    return about.st_size, about.st_mtime_ns


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def _quick_costs() -> Iterator[None]:
    """Count the costs of equal configurations once, and parse equal texts once; they take longer than all else together."""
    measure, known = costs.measure, {}
    parse, texts = overrides.parse_yaml, {}

    def parsed(text: str) -> Any:
        if text not in texts:
            texts[text] = parse(text)
        return copy.deepcopy(texts[text])

    def remembered(config: Any) -> Any:
        key = config.model_dump_json()
        if key not in known:
            known[key] = measure(config)
        return known[key]

    costs.measure, overrides.parse_yaml = remembered, parsed
    try:
        yield
    finally:
        costs.measure, overrides.parse_yaml = measure, parse


def main() -> int:
    """Run the mutations in processes of their own and print what came of them as JSON."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--count", type=int, default=1000, help="number of mutations")
    parser.add_argument("--root", type=Path, help="a folder that was built before")
    parser.add_argument("--alone", action="store_true", help="in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.alone:
        print(json.dumps(vars(mutate_run_files(options.seed, options.count, options.first, options.root))))
        return 0
    total = Outcomes()
    with tempfile.TemporaryDirectory() as folder:
        root = options.root or Path(folder)
        if options.root is None:
            build(root)
        for first in range(options.first, options.first + options.count, _AT_ONCE):
            count = min(_AT_ONCE, options.first + options.count - first)
            command = [sys.executable, __file__, "--alone", "--root", str(root), "--seed", str(options.seed)]
            command += ["--first", str(first), "--count", str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                total.counts["crash"] += 1
                print(done.stderr[-2000:], file=sys.stderr)
                total.faults.append(
                    f"{first}..{first + count - 1}: exit {done.returncode}: {done.stderr[-300:]}"
                )
                continue
            part = json.loads(done.stdout)
            total.add(Outcomes(**{**part, "counts": Counter(part["counts"])}))
            print(f"{first + count}: {dict(total.counts)}", file=sys.stderr)
    print(json.dumps(vars(total), indent=1))
    return 1 if total.faults else 0


if __name__ == "__main__":
    sys.exit(main())
