"""What a command does when the disk is full or the memory short, when another one is in its folder, and after many steps."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from _soak_commands import TRAIN, Ended, call, contents, leftovers, listens, resident, start, wait
from _soak_kills import Row, new_folder
from vqvae2.config.models import parse
from vqvae2.config.overrides import override
from vqvae2.config.presets import preset
from vqvae2.data.images import open_images
from vqvae2.files.process import host
from vqvae2.files.progress import Reporter
from vqvae2.train.autoencoder import AutoencoderObjective
from vqvae2.train.device import make_accelerator
from vqvae2.train.loop import fit

_MIB = 2**20
_GROWTH = 16.0  # MiB by which the memory of a training may grow after its first quarter


def disk_full(place: Path, count: int) -> Row:
    """Train on a file system of `count` sizes, all too small; then give it space, and run the same command again.

    The file system is a tmpfs in a mount namespace of its own, which Linux allows ordinary users where user namespaces are
    not switched off. Elsewhere the size of a file is limited instead (`ulimit -f`).
    """
    row = Row("disk full", 0, count)
    used = sum(file.stat().st_size for file in (place / "base" / "run").rglob("*") if file.is_file())
    sizes = [int(used * (index + 0.5) / count) for index in range(count)]
    mounts = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--user", "--map-root-user"])
    script = [
        sys.executable,
        str(Path(__file__).with_name("soak.py")),
        "--inside",
        str(place),
        *map(str, sizes),
    ]
    for prefix in (mounts, ["unshare", "--user", "--map-root-user", "--mount"]):
        if (
            shutil.which("unshare")
            and subprocess.run([*prefix, *_try_mount()], capture_output=True, check=False).returncode == 0
        ):
            done = subprocess.run([*prefix, *script], capture_output=True, text=True, check=False)
            if done.returncode:
                row.faults.append(f"the attack itself failed: {done.stderr[-300:]}")
                return row
            report = json.loads(done.stdout.strip().splitlines()[-1])
            row.outcome, row.faults = report["outcome"], report["faults"]
            return row
    row.attack = "files too large (no mount allowed here: `ulimit -f`)"
    largest = max(file.stat().st_size for file in (place / "base" / "run").rglob("*") if file.is_file())
    limits = [int(largest * (index + 0.5) / count) for index in range(count)]

    def limited(size: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    _short_of(place, row, [(limited(size), lambda: None) for size in limits])
    return _told(row)


def inside(place: Path, sizes: list[int]) -> dict[str, Any]:
    """In a mount namespace: the part of `disk_full` that mounts; returns outcome and faults."""
    row = Row("disk full", 0, len(sizes))
    target = place / "short"
    target.mkdir(exist_ok=True)

    def mount(*options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(target)], check=True)

    for size in sizes:
        mount(f"size={max(size, 4096)}")
        _short_of(place, row, [(lambda: None, lambda: mount("remount", "size=1g"))], target)
        subprocess.run(["umount", str(target)], check=True)
    return vars(_told(row))


def low_memory(place: Path, count: int) -> Row:
    """Train with `count` limits of the address space, from 4 to 400 MiB above what a started process has.

    With the least of them Python itself cannot go on, so how the command ends is counted and not judged; that the same
    command goes on afterwards is.
    """
    row = Row("low memory", 0, count)
    extra = [int((4 + 396 * (index / max(1, count - 1)) ** 2) * _MIB) for index in range(count)]

    def limited(more: int) -> Callable[[], None]:
        def limit() -> None:
            size = psutil.Process().memory_info().vms + more
            resource.setrlimit(resource.RLIMIT_AS, (size, size))

        return limit

    _short_of(place, row, [(limited(more), lambda: None) for more in extra], strict=False)
    return _told(row)


def _short_of(
    place: Path,
    row: Row,
    attempts: list[tuple[Callable[[], None], Callable[[], None]]],
    target: Path | None = None,
    strict: bool = True,
) -> None:
    """Train under each limit: success, or exit code 2 and one line; then without it, to the same end.

    Args:
        attempts: for each one, what sets the limit in the command's process, and what lifts it afterwards.
        target: where to train; None makes a folder.
        strict: whether any other end under the limit is a fault.
    """
    expected = contents(place / "base" / "run")
    codes: Counter[str] = Counter(json.loads(row.outcome or "{}"))
    for limit, lift in attempts:
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            folder = target or Path(scratch)
            arguments = ["train", str(place / "base" / "pictures"), *TRAIN[2:]]
            said = Path(scratch)
            arguments[arguments.index("run")] = str(folder / "run")
            ended = call(arguments, said, limit)
            lined = ended.code == 2 and ended.one_line()
            how = "succeeded" if ended.code == 0 else "ended in one line" if lined else "ended otherwise"
            codes[how] += 1
            if strict and ended.code and not lined:
                row.faults.append(ended.short())
            lift()
            again = call(arguments, said)
            found = contents(folder / "run")
            different = {name for name in {*found, *expected} if found.get(name) != expected.get(name)}
            if again.code or different - {"config.yaml", "data/index.json"}:
                row.faults.append(f"afterwards: {again.short()}; different: {sorted(different)[:5]}")
            if left := leftovers(folder):
                row.faults.append(f"left behind: {', '.join(left[:5])}")
    row.outcome = json.dumps(codes)


def _told(row: Row) -> Row:
    """The counts of `_short_of` in words."""
    counts = sorted(json.loads(row.outcome).items())
    row.outcome = ", ".join(f"{number} {what}" for what, number in counts)
    row.outcome += "; then all went on to the same run" if not row.faults else ""
    return row


def two_commands(place: Path, seed: int, count: int) -> Row:
    """Start the same training twice in one folder: one works, the other is refused and names it."""
    row, chance = Row("two commands in one folder", seed, count), random.Random(seed)
    refused = 0
    for _ in range(count):
        folder = new_folder(place, "twice", "train")
        pids = [start(TRAIN, folder)]
        time.sleep(chance.uniform(0.0, 0.2))
        pids.append(start(TRAIN, folder))
        ended = [wait(pid, folder) for pid in pids]
        codes = sorted(item.code for item in ended)
        losers = [(pids[1 - index], item) for index, item in enumerate(ended) if item.code == 2]
        refused += len(losers)
        named = all(f"in use by process {pid} on {host()}" in item.text for pid, item in losers)
        if codes != [0, 2] or not named:
            row.faults.append(" and ".join(item.short() for item in ended))
        elif contents(folder / "run") != contents(place / "base" / "run"):
            row.faults.append("the run differs from one that was trained alone")
    row.outcome = f"{refused} refused with host and process of the other"
    return row


def two_processes(place: Path, seed: int, count: int) -> Row:
    """Train with two processes, ask both to stop at a random moment, and go on with one."""
    row, chance = Row("two processes, resumed as one", seed, count), random.Random(seed)
    saved = 0
    for _ in range(count):
        folder = new_folder(place, "two", "train")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

        def join(rank: int, group: dict[str, str] = group) -> Callable[[], None]:
            return lambda: os.environ.update({**group, "RANK": str(rank), "LOCAL_RANK": str(rank)})

        pids = [start(TRAIN, folder, join(rank)) for rank in (0, 1)]
        while not all(map(listens, pids)):
            time.sleep(0.005)
        metrics = folder / "run" / "autoencoder" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not metrics.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 1))
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        ended = [wait(pid, folder, 60) for pid in pids]
        saved += "saved at step" in ended[0].text
        if any(item.code not in (143, 0) for item in ended):
            row.faults.append(" and ".join(item.short() for item in ended))
        again = call(TRAIN, folder)
        if again.code or leftovers(folder):
            row.faults.append(f"as one process: {again.short()}, left {leftovers(folder)}")
    row.outcome = f"{saved} of {count} stopped within a stage and saved, all finished by one process"
    return row


def steady_memory(place: Path, count: int) -> Row:
    """Train for `count` steps in this process and watch its memory."""
    row = Row("memory of a long training", 0, count)
    settings = [
        *("data.size=16", "data.workers=0", "autoencoder.codes=16,16", "autoencoder.code_dim=8"),
        *("autoencoder.hidden=8", "autoencoder.residual=4", f"train_autoencoder.steps={count}"),
        *("train_autoencoder.batch=4", f"train_autoencoder.evaluate_every={max(1, count // 40)}"),
    ]
    config = parse(override(preset("tiny").model_dump(mode="json"), settings))
    seen: list[float] = []
    with tempfile.TemporaryDirectory(dir=place) as folder:
        images = open_images(
            str(place / "base" / "pictures"), config.data, Path(folder) / "data", say=lambda _: None
        )
        objective = AutoencoderObjective(config, images)
        usual = objective.after_step

        def after_step(step: int, accelerator: Any) -> dict[str, Any]:
            if not step % max(1, count // 20):
                seen.append(resident())
            return usual(step, accelerator)

        objective.after_step = after_step  # type: ignore[method-assign]
        fit(
            objective,
            config.train_autoencoder,
            Path(folder) / "run",
            make_accelerator(),
            Reporter(quiet=True),
            0,
        )
    quarter, most = seen[len(seen) // 4], max(seen[len(seen) // 4 :])
    row.outcome = f"{quarter:.0f} MiB after a quarter of the steps, {most:.0f} MiB at most after it"
    if most - quarter > _GROWTH:
        row.faults.append(f"grew by {most - quarter:.0f} MiB: {[round(value) for value in seen]}")
    return row


def forked(function: Callable[[], Row], place: Path) -> Row:
    """Call a function in a fork, so that what it needs is not left in this process."""
    report = place / "row.json"

    def work() -> None:
        report.write_text(json.dumps(vars(function())))
        os._exit(0)

    ended: Ended = wait(start([], place, work), place, 7200)
    if ended.code:
        return Row("?", 0, 0, faults=[ended.short()])
    row = Row(**json.loads(report.read_text()))
    report.unlink()
    return row


def _try_mount() -> list[str]:
    return ["mount", "-t", "tmpfs", "-o", "size=4096", "tmpfs", tempfile.gettempdir()]
