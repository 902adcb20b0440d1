"""Commands that the soak starts and kills: each runs in a fork of this process, which has imported everything already.

A fork starts at once, where a new interpreter takes seconds to import torch. `fresh` starts a new one all the same, for what
happens during these imports.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import yaml
from PIL import Image

import vqvae2.commands.demo_report
import vqvae2.evaluate.full_report
import vqvae2.run  # noqa: F401
from vqvae2.__main__ import main
from vqvae2.files import tensor_file
from vqvae2.train import pipeline  # noqa: F401

SETTINGS = (
    *(
        "data.size=16",
        "data.workers=0",
        "data.holdout=0.25",
        "autoencoder.codes=16,16",
        "autoencoder.code_dim=8",
    ),
    *("autoencoder.hidden=16", "autoencoder.residual=8", "train_autoencoder.steps=30"),
    *("train_autoencoder.batch=8", "train_autoencoder.evaluate_every=6", "train_autoencoder.log_every=2"),
    *(
        "sharpen.steps=12",
        "sharpen.batch=4",
        "sharpen.evaluate_every=4",
        "sharpen.width=4",
        "sharpen.depth=1",
    ),
    *("prior.levels.*.hidden=8", "prior.levels.*.residual=8", "prior.levels.*.heads=1"),
    *("prior.levels.*.layers=1", "prior.levels.*.output_layers=0", "prior.levels.1.condition_blocks=0"),
    *("train_prior.*.steps=12", "train_prior.*.batch=8", "train_prior.*.evaluate_every=4"),
)
TRAIN = ["train", "pictures", "--run", "run", "--preset", "tiny"] + [
    part for setting in SETTINGS for part in ("--set", setting)
]
SAMPLE = ["sample", "run", "--out", "out", "--n", "12", "--batch", "2"]
EVALUATE = ["evaluate", "run", "--out", "out", "--n", "8", "--reference", "16", "--only"]
EVALUATE.append("nll,reconstruction,codes,distances")
COMPLETE = ["complete", "run", "pictures/discs/01.png", "--keep-levels", "1", "--out", "out", "--n", "6"]


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code, or minus the number of the signal that killed it.
        text: what it wrote to standard output and to standard error.
    """

    code: int
    text: str

    def one_line(self) -> bool:
        """Whether the last line is the package's own, and there is no traceback."""
        lines = self.text.strip().splitlines()
        return bool(lines) and lines[-1].startswith("vqvae2: ") and "Traceback" not in self.text

    def short(self) -> str:
        """For the report of a fault."""
        return f"exit {self.code}: {' | '.join(self.text.strip().splitlines()[-3:])[-300:]}"


def pictures(folder: Path, count: int = 36) -> None:
    """Small images of two classes."""
    for number in range(count):
        random = np.random.default_rng(number)
        drawn = random.integers(0, 256, (4, 4, 3), np.uint8).repeat(5, 0).repeat(5, 1)
        place = folder / "pictures" / ("discs", "stripes")[number % 2 == 0]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn).save(place / f"{number:02d}.png")


def start(arguments: list[str], folder: Path, before: Callable[[], None] = lambda: None) -> int:
    """Start a command in a fork, in `folder`; returns its process number.

    Args:
        before: called in the fork first.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup make soak` has it ignored
        os.chdir(folder)
        said = os.open(_said(folder, os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.argv = ["vqvae2", *arguments]
        before()
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 70
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, folder: Path, seconds: float = 600.0) -> Ended:
    """Wait for a command that `start` started in `folder`."""
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return Ended(-99, f"did not end within {seconds:.0f} s")
        time.sleep(0.005)
    file = _said(folder, pid)
    text = file.read_text(errors="replace") if file.exists() else ""
    file.unlink(missing_ok=True)
    return Ended(os.waitstatus_to_exitcode(status), text)


def call(arguments: list[str], folder: Path, before: Callable[[], None] = lambda: None) -> Ended:
    """`start` and `wait`."""
    return wait(start(arguments, folder, before), folder)


def fresh(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start a command in a new interpreter, with Ctrl-C as in a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "vqvae2", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - one thread
    )  # fmt: skip


def listens(pid: int) -> bool:
    """Whether a process has a handler of its own for SIGTERM (Linux)."""
    text = Path(f"/proc/{pid}/status").read_text()
    return bool(int(re.findall(r"SigCgt:\s*(\w+)", text)[0], 16) >> (signal.SIGTERM - 1) & 1)


def contents(folder: Path) -> dict[str, Any]:
    """What every file of a folder says, without the time that it took and where its images were.

    A report of a training says both in sentences, so it is left out; what it shows is compared in other files.
    """
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if not file.is_file() or "cache" in file.parts or name.endswith((".html", "report/training.json")):
            continue
        if name.endswith(".safetensors"):
            tensors, about = tensor_file.load_tensors(file)
            found[name] = [tensor_file.digest(tensors), _without_time(about)]
        elif name == "config.yaml":
            settings = yaml.safe_load(file.read_text())
            record = {k: v for k, v in settings.pop("run").items() if k not in ("source", "command")}
            found[name] = [settings, record]
        elif name.endswith(".json"):
            found[name] = _without_time(json.loads(file.read_text()))
        else:
            found[name] = tensor_file.digest({}, file.read_bytes().hex())
    return found


def leftovers(folder: Path, pending: bool = False) -> list[str]:
    """Files that a command should not leave behind.

    Args:
        pending: also those in a code store whose renames are still to be done, which has some.
    """
    paths = [path for path in folder.rglob("*") if pending or not (path.parent / "next.json").exists()]
    names = [path.relative_to(folder).as_posix() for path in paths]
    return [name for name in names if name.endswith((".tmp", "/.lock")) or name == ".lock"]


def resident() -> float:
    """Memory of this process in MiB."""
    return float(psutil.Process().memory_info().rss) / 2**20


def prepare() -> None:
    """Bring the process into the state that forks start from."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _said(folder: Path, pid: int) -> Path:
    return folder / f"said-{pid}.txt"


def _without_time(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_time(item) for key, item in value.items() if key != "seconds"}
    return [_without_time(item) for item in value] if isinstance(value, list) else value
