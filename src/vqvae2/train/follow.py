"""A training seen from beside it: the new lines of its metrics.jsonl files and the new pictures of its stages.

Whoever follows reads files that the training writes anyway, so that the training is the same with and without: a tracker of
experiments (`train/trackers.py`) in a thread, or `vqvae2 inspect --watch` in another process.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqvae2.files.run_folder import RunFolder

_STEP = re.compile(r"step-(\d+)\.png")


@dataclass(frozen=True)
class News:
    """What is new of one stage.

    Attributes:
        stage: "autoencoder", "sharpen", "prior level 0", ...
        lines: of metrics.jsonl, each with its "step".
        pictures: step and file of each sheet.
    """

    stage: str
    lines: list[dict[str, Any]]
    pictures: list[tuple[int, Path]]


class Follower:
    """Reads what a run's trainings write, each line and each picture once.

    Args:
        run: RUN.
        levels: of the autoencoder.
        steps: by stage, the last step that was read at an earlier time; it and what came before are left out. So is what a
            resumed training writes again.
    """

    def __init__(self, run: Path, levels: int, steps: dict[str, int] | None = None) -> None:
        self.stages = RunFolder(run).networks(levels)
        self._before = dict(steps or {})
        self._steps = dict(self._before)
        self._places: dict[str, int] = {}
        self._pictures: dict[str, int] = dict(self._before)

    @property
    def steps(self) -> dict[str, int]:
        """By stage, the last step that was read."""
        return dict(self._steps)

    def news(self) -> list[News]:
        """What was written since the last call, stages in order; stages without news are left out."""
        found = [News(name, self._lines(name), self._sheets(name)) for name in self.stages]
        return [news for news in found if news.lines or news.pictures]

    def _lines(self, name: str) -> list[dict[str, Any]]:
        stage, place = self.stages[name], self._places.get(name, 0)
        further = (
            stage.longer.metrics
        )  # begins with what is in the stage's own, and takes its place at the end
        file = further if further.exists() else stage.metrics
        text, size = b"", 0
        with suppress(FileNotFoundError), file.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(place if size >= place else 0)
            text = opened.read()
        if size < place:  # written anew by a training that was resumed or begun again
            self._before[name], place = self._steps.get(name, -1), 0
        whole = text[: text.rfind(b"\n") + 1]  # the last line may be only half written
        self._places[name] = place + len(whole)
        found: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
        lines = [line for line in found if line["step"] > self._before.get(name, -1)]
        if lines:
            self._steps[name] = max(self._steps.get(name, -1), lines[-1]["step"])
        return lines

    def _sheets(self, name: str) -> list[tuple[int, Path]]:
        folder, before = self.stages[name].pictures, self._pictures.get(name, -1)
        steps = ((_STEP.fullmatch(file.name), file) for file in (folder.iterdir() if folder.is_dir() else ()))
        sheets = sorted((int(match[1]), file) for match, file in steps if match and int(match[1]) > before)
        if sheets:
            self._pictures[name] = sheets[-1][0]
        return sheets
