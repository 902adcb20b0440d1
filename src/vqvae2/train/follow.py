"""A training seen from beside it: the new lines of its metrics.jsonl files and the new pictures of its stages.

Whoever follows reads files that the training writes anyway, so that the training is the same with and without: a tracker of
experiments (`train/trackers.py`) in a thread, or `vqvae2 inspect --watch` in another process.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqvae2.files.run_folder import RunFolder
from vqvae2.train.state import parse_metrics

_LINE = 2**20  # bytes of a first line, at most
_STEP = re.compile(r"step-(\d+)\.png")


@dataclass(frozen=True)
class News:
    """What is new of one stage.

    Attributes:
        stage: "autoencoder", "sharpen", "prior level 0", ...
        lines: of metrics.jsonl, each with its "step".
        pictures: step and file of each sheet.
        anew: whether another training has begun in the place of the one that was told of before.
    """

    stage: str
    lines: list[dict[str, Any]]
    pictures: list[tuple[int, Path]]
    anew: bool = False


class Follower:
    """Reads what a run's trainings write, each line and each picture once, also while a finished stage is trained further.

    Args:
        run: RUN.
        levels: of the autoencoder.
        steps: by stage, the last step that was read at an earlier time; it and what came before are left out. So is what a
            resumed training writes again.
        begins: by stage, `begins` of that time. A training that begins in another way is read from its start; a stage that
            is missing here is taken for the same training.
    """

    def __init__(
        self,
        run: Path,
        levels: int,
        steps: Mapping[str, int] | None = None,
        begins: Mapping[str, str] | None = None,
    ) -> None:
        self.stages = RunFolder(run).networks(levels)
        self._before = dict(steps or {})
        self._steps, self._pictures = dict(self._before), dict(self._before)
        self._begins = dict(begins or {})
        self._places: dict[str, tuple[int, int]] = {}  # the file's number and how many bytes of it were read

    @property
    def steps(self) -> dict[str, int]:
        """By stage, the last step that was read."""
        return dict(self._steps)

    @property
    def begins(self) -> dict[str, str]:
        """By stage, a digest of the first line of its metrics, by which another training is known."""
        return dict(self._begins)

    def news(self) -> list[News]:
        """What was written since the last call, stages in order; stages without news are left out."""
        found = []
        for name in self.stages:
            lines, anew = self._lines(name)  # first, because sheets of another training are told of again
            found.append(News(name, lines, self._sheets(name), anew))
        return [news for news in found if news.lines or news.pictures]

    def _lines(self, name: str) -> tuple[list[dict[str, Any]], bool]:
        """The new lines, and whether another training has begun."""
        stage, lines = self.stages[name], list[dict[str, Any]]()
        file = stage.longer.metrics if stage.longer.metrics.exists() else stage.metrics
        try:
            with file.open("rb") as opened:
                first = opened.readline(_LINE)
                if not first.endswith(b"\n"):
                    return [], False
                anew, place = self._find(name, first, os.fstat(opened.fileno()))
                opened.seek(place)
                text = opened.read()
        except FileNotFoundError:
            return [], False
        for part in text[: text.rfind(b"\n") + 1].splitlines(keepends=True):  # the last may be half written
            if (line := parse_metrics(part, file)) is None:
                break
            place += len(part)
            lines.append(line)
        self._places[name] = self._places[name][0], place
        lines = [line for line in lines if line["step"] > self._before.get(name, -1)]
        if lines:
            self._steps[name] = max(self._steps.get(name, -1), lines[-1]["step"])
        return lines, anew

    def _find(self, name: str, first: bytes, about: os.stat_result) -> tuple[bool, int]:
        """Whether another training has begun than was read before, and the place in the file from which to read on."""
        number, place = self._places.get(name, (about.st_ino, 0))
        digest = hashlib.sha256(first).hexdigest()[:16]
        anew = self._begins.setdefault(name, digest) != digest
        if anew:
            self._begins[name], place = digest, 0
            for known in (self._before, self._steps, self._pictures):
                known.pop(name, None)
        elif about.st_ino != number or about.st_size < place:  # written anew by a training that was resumed
            self._before[name], place = self._steps.get(name, -1), 0
        self._places[name] = about.st_ino, place
        return anew, place

    def _sheets(self, name: str) -> list[tuple[int, Path]]:
        before, stage = self._pictures.get(name, -1), self.stages[name]
        files: list[Path] = []
        for folder in (stage.pictures, stage.longer.pictures):
            with suppress(FileNotFoundError):
                files += folder.iterdir()
        steps = ((_STEP.fullmatch(file.name), file) for file in files)
        sheets = sorted((int(match[1]), file) for match, file in steps if match and int(match[1]) > before)
        if sheets:
            self._pictures[name] = sheets[-1][0]
        return sheets
