"""Kills: commands are killed at chosen events and at random moments until they are done, and then compared with one that was not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _soak_commands import (
    COMPLETE,
    EVALUATE,
    SAMPLE,
    TRAIN,
    Ended,
    call,
    contents,
    fresh,
    leftovers,
    listens,
    start,
    wait,
)

_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


@dataclass
class Row:
    """A line of the table.

    Attributes:
        attack: what was done.
        seed, count: how often, and where the random numbers began.
        outcome: what came of it.
        faults: a line for each thing that must not happen.
    """

    attack: str
    seed: int
    count: int
    outcome: str = ""
    faults: list[str] = field(default_factory=list)


def kills(place: Path, seed: int, count: int) -> list[Row]:
    """Kill every verb that writes step by step, about seven times in ten the training, in all of its stages."""
    chance = random.Random(seed)
    shares = {"train": 0.7, "sample": 0.1, "evaluate": 0.1, "complete": 0.1}
    arguments = {"train": TRAIN, "sample": SAMPLE, "evaluate": EVALUATE, "complete": COMPLETE}
    rows = []
    for verb, share in shares.items():
        row = Row(f"kills: {verb}", seed, max(1, round(share * count)))
        where, chains = _chains(place, verb, arguments[verb], chance, row)
        parts = ", ".join(f"{name} {number}" for name, number in sorted(where.items()))
        row.outcome = f"{chains} commands, each killed until it was done: {parts}"
        rows.append(row)
    return rows


def _chains(
    place: Path, verb: str, arguments: list[str], chance: random.Random, row: Row
) -> tuple[Counter[str], int]:
    """Kill a command again and again until `row.count` kills are done; returns where, and how many commands that were."""
    result = "run" if verb == "train" else "out"
    whole = new_folder(place, f"whole-{verb}", verb)
    begun = time.monotonic()
    events = _count_events(arguments, whole)
    lasts = time.monotonic() - begun
    expected = contents(whole / result)
    where: Counter[str] = Counter()
    chains = 0
    while sum(where.values()) < row.count:
        chains += 1
        folder = new_folder(place, "killed", verb)
        for _ in range(200):
            before = leftovers(folder, pending=True)
            if sum(where.values()) >= row.count:
                ended, number = call(arguments, folder), None
            else:
                ended, number = _killed(arguments, folder, chance, events, lasts)
            if ended.code == 0:
                break
            where[_stage(folder / "run") if verb == "train" else verb] += 1
            _judge(ended, number, folder, before, row)
            if number is None:
                break
        if (found := contents(folder / result)) != expected:
            if os.environ.get("SOAK_KEEP"):
                shutil.copytree(folder, Path(os.environ["SOAK_KEEP"]) / f"{verb}-{chains}", symlinks=True)
                shutil.copytree(
                    whole, Path(os.environ["SOAK_KEEP"]) / f"{verb}-{chains}-whole", symlinks=True
                )
            wrong = [name for name in {*found, *expected} if found.get(name) != expected.get(name)]
            row.faults.append(f"{verb}, chain {chains}: other content in {', '.join(sorted(wrong)[:5])}")
        if left := leftovers(folder):
            row.faults.append(f"{verb}, chain {chains}: left behind {', '.join(left[:5])}")
    return where, chains


def new_folder(place: Path, name: str, verb: str) -> Path:
    """An empty folder with the images, and for all verbs but `train` with the run."""
    folder = place / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "pictures").symlink_to(place / "base" / "pictures")
    if verb != "train":
        shutil.copytree(place / "base" / "run", folder / "run")
    return folder


def _killed(
    arguments: list[str], folder: Path, chance: random.Random, events: int, lasts: float
) -> tuple[Ended, int]:
    """Start a command and kill it, at an event or after a time; returns how it ended, and the signal."""
    number = chance.choice(_SIGNALS)
    if chance.random() < 0.5:
        at = chance.randint(1, max(2, events // 4))
        return call(arguments, folder, lambda: _watch(_die_at(at, number))), number
    delay = chance.uniform(0.02, max(0.1, lasts / 3))
    pid = start(arguments, folder)
    while not listens(pid):
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(pid, number)
    return wait(pid, folder), number


def _die_at(event: int, number: int) -> Callable[[], None]:
    """A function that sends this process a signal when it is called for the `event`-th time."""
    calls = 0

    def tick() -> None:
        nonlocal calls
        calls += 1
        if calls == event:
            os.kill(os.getpid(), number)

    return tick


def _watch(tick: Callable[[], None]) -> None:
    """Call `tick` around everything that makes a file whole: before a flush, before and after a rename."""
    flush, rename, unlink = os.fsync, Path.replace, shutil.rmtree

    def fsync(handle: Any) -> None:
        tick()
        flush(handle)

    def replace(self: Path, target: Any) -> Path:
        tick()
        moved = rename(self, target)
        tick()
        return moved

    def rmtree(*args: Any, **kwargs: Any) -> None:
        tick()
        unlink(*args, **kwargs)

    os.fsync, Path.replace, shutil.rmtree = fsync, replace, rmtree  # type: ignore[assignment, method-assign]


def _count_events(arguments: list[str], folder: Path) -> int:
    """Run a command to its end and count the events of `_watch`."""
    log = folder / "events"

    def tick() -> None:
        with log.open("a") as file:
            file.write("x")

    ended = call(arguments, folder, lambda: _watch(tick))
    if ended.code:
        raise RuntimeError(f"the command fails without a kill: {ended.short()}")
    count = log.stat().st_size
    log.unlink()
    return count


def _judge(ended: Ended, number: int | None, folder: Path, before: list[str], row: Row) -> None:
    """Note what must not happen after one kill.

    Args:
        number: of the signal; None is a command that was not killed, and must succeed.
        before: what earlier kills had left behind.
    """
    expected = 0 if number is None else _CODES[signal.Signals(number)]
    if ended.code != expected:
        row.faults.append(f"signal {number}: expected exit {expected}, found {ended.short()}")
    elif number not in (None, signal.SIGKILL):
        if not ended.one_line():
            row.faults.append(f"signal {number}: expected one line, found {ended.short()}")
        if left := sorted({*leftovers(folder)} - {*before}):
            row.faults.append(f"signal {number}: left behind {', '.join(left[:5])}")


def _stage(run: Path) -> str:
    """What a training was doing when it was killed, by the files that it had made."""
    if not (run / "data" / "index.json").exists():
        return "start and images"
    if not (run / "autoencoder" / "model.safetensors").exists():
        return "autoencoder"
    if not (run / "codes" / "manifest.json").exists():
        return "codes"
    if not (run / "sharpen" / "model.safetensors").exists():
        return "sharpening"
    levels = [(run / "prior" / f"level-{level}") for level in (0, 1)]
    return next(
        (f"prior {level.name}" for level in levels if not (level / "samples.png").exists()), "the end"
    )


def signals_at_start(place: Path, seed: int, count: int) -> Row:
    """SIGINT and SIGTERM in the seconds in which a new interpreter imports the package and torch."""
    row, chance = Row("signals during the imports", seed, count), random.Random(seed)
    codes: Counter[int] = Counter()
    for index in range(count):
        folder = new_folder(place, "starting", "train")
        number = (signal.SIGINT, signal.SIGTERM)[index % 2]
        child = fresh(TRAIN, folder)
        while child.poll() is None and not listens(child.pid):
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 4.0))
        child.send_signal(number)
        text, _ = child.communicate(timeout=300)
        ended = Ended(child.returncode, text)
        codes[ended.code] += 1
        if ended.code != _CODES[number] or not ended.one_line():
            row.faults.append(f"{number.name}: {ended.short()}")
    row.outcome = "exit codes: " + ", ".join(
        f"{code} {number} times" for code, number in sorted(codes.items())
    )
    return row
