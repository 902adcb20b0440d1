"""The soak: attack the package as an unlucky user, a full disk and a stranger would, and print one table.

    make soak             everything, three to five hours; most of it are the damaged run files
    make soak SLICE=1     a slice of a few minutes, which CI runs
    python tools/soak.py --only "disk full" --json results/soak.json      one attack; the file keeps those of earlier calls

Every attack has a seed and a count, so that it can be repeated. The exit code is 1 if anything happened that must not; each such
thing is listed below the table. `docs/reliability.md` says what is promised and has the table of the last whole run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

from _soak_commands import TRAIN, call, pictures, prepare
from _soak_kills import Row, kills, signals_at_start
from _soak_limits import (
    disk_full,
    forked,
    inside,
    low_memory,
    steady_memory,
    two_commands,
    two_processes,
)

_MUTATIONS = {  # the file in this folder, its function, and the attack; counts of the whole soak and of the slice
    "mutated images": ("attack_images", "mutate_images", 20_000, 300),
    "mutated run files": ("attack_run_files", "mutate_run_files", 20_000, 60),
    "mutated compressed files": ("attack_compressed", "mutate_compressed", 10_000, 200),
}
_CHUNK = 2000  # mutations in one process


def main() -> int:
    """Run the attacks and print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--slice", action="store_true", help="a few minutes of it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="only attacks whose name contains this")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the counts")
    parser.add_argument(
        "--json", type=Path, help="a file in which the rows replace those of the same attacks"
    )
    parser.add_argument("--inside", nargs="+", help=argparse.SUPPRESS)  # started by disk_full
    options = parser.parse_args()
    prepare()
    if options.inside:
        place, *sizes = options.inside
        print(json.dumps(inside(Path(place), [int(size) for size in sizes])))
        return 0
    rows: list[Row] = []
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        place = Path(folder)
        base = place / "base"
        base.mkdir()
        pictures(base)
        ended = call(TRAIN, base)
        if ended.code:
            print(f"the training without any attack failed: {ended.short()}")
            return 1
        attacks = _attacks(place, options.seed, options.slice, options.scale)
        if options.only and not any(options.only in name for name in attacks):
            parser.error(f"no attack {options.only!r}: expected a part of {', '.join(attacks)}")
        for name, attack in attacks.items():
            if options.only and options.only not in name:
                continue
            started = time.monotonic()
            new = attack()
            rows += new
            seconds = round(time.monotonic() - started)
            if options.json:
                _keep(options.json, name, seconds, new)
            done = f"{name}: {seconds} s, {sum(len(row.faults) for row in new)} faults"
            print(done, *_lines(new), *_faults(new), sep="\n", file=sys.stderr, flush=True)
    if options.json and options.json.exists():
        rows = [Row(**row) for part in json.loads(options.json.read_text()).values() for row in part["rows"]]
    faults = _faults(rows)
    print(
        "| attack | seed | count | what came of it | faults |",
        "| --- | --- | --- | --- | --- |",
        *_lines(rows),
        sep="\n",
    )
    print(f"\n{time.monotonic() - begun:.0f} s, {len(faults)} faults", *faults, sep="\n")
    return 1 if faults else 0


def _attacks(place: Path, seed: int, small: bool, scale: float) -> dict[str, Callable[[], list[Row]]]:
    def size(whole: int, part: int) -> int:
        return max(1, round(scale * (part if small else whole)))

    attacks: dict[str, Callable[[], list[Row]]] = {
        "kills": lambda: kills(place, seed, size(100, 8)),
        "signals at the start": lambda: [signals_at_start(place, seed, size(20, 2))],
        "two commands": lambda: [two_commands(place, seed, size(20, 2))],
        "two processes": lambda: [two_processes(place, seed, size(5, 1))],
        "disk full": lambda: [disk_full(place, size(10, 2))],
        "low memory": lambda: [low_memory(place, size(10, 2))],
        "steady memory": lambda: [forked(lambda: steady_memory(place, max(40, size(20_000, 400))), place)],
    }
    for name, (file, function, whole, part) in _MUTATIONS.items():
        if (Path(__file__).parent / f"{file}.py").exists():
            attacks[name] = _mutations(place, name, (file, function), seed, size(whole, part))
    return attacks


def _mutations(
    place: Path, name: str, where: tuple[str, str], seed: int, count: int
) -> Callable[[], list[Row]]:
    """An attack of a file of its own, at most 2,000 mutations in a process at a time, so that a crash is counted."""

    def attack() -> list[Row]:
        row, counts = Row(name, seed, count), Counter[str]()
        for number, first in enumerate(range(0, count, _CHUNK)):
            part = forked(
                lambda n=number, f=first: _mutated(where, name, 1000 * seed + n, min(_CHUNK, count - f)),  # type: ignore[misc]
                place,
            )
            row.faults += part.faults
            counts.update(json.loads(part.outcome or "{}"))
            done = f"{name}: {min(first + _CHUNK, count)} of {count}, {len(row.faults)} faults"
            print(done, *part.faults, sep="\n", file=sys.stderr, flush=True)
        row.outcome = ", ".join(f"{number:,} {what}" for what, number in sorted(counts.items()))
        return [row]

    return attack


def _mutated(where: tuple[str, str], name: str, seed: int, count: int) -> Row:
    """The outcome of one call, as JSON in the row; a fault that it raises ends its process, which counts as one."""
    result: Any = getattr(importlib.import_module(where[0]), where[1])(seed, count)
    value = result if isinstance(result, dict) else vars(result)
    counts = dict(value.get("counts") or {})
    for what in ("decoded", "skipped", "error", "coarse", "whole"):
        if found := value.get(what):
            counts[what] = sum(found.values()) if isinstance(found, dict) else found
    return Row(name, seed, count, json.dumps(counts), [str(item) for item in value.get("faults", [])])


def _keep(file: Path, name: str, seconds: int, rows: list[Row]) -> None:
    """Put what came of an attack into a JSON file, in place of what an earlier call put there."""
    kept = json.loads(file.read_text()) if file.exists() else {}
    kept[name] = {"seconds": seconds, "rows": [vars(row) for row in rows]}
    file.write_text(json.dumps(kept, indent=1) + "\n")


def _lines(rows: list[Row]) -> list[str]:
    """The rows as lines of a table."""
    return [f"| {r.attack} | {r.seed} | {r.count:,} | {r.outcome} | {len(r.faults)} |" for r in rows]


def _faults(rows: list[Row]) -> list[str]:
    """A line for each fault."""
    return [f"{row.attack}: {fault}" for row in rows for fault in row.faults]


if __name__ == "__main__":
    sys.exit(main())
