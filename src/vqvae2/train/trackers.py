"""Trackers of experiments: what a training measures, in tensorboard, trackio or Weights & Biases, through accelerate.

A thread follows the run's files (`train/follow.py`), so a tracker that is slow or fails changes nothing in the training.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image
from pydantic import Field

from vqvae2.config.models import Config
from vqvae2.errors import UserError
from vqvae2.files.atomic import FileError, read_json, write_json
from vqvae2.files.progress import Reporter
from vqvae2.files.records import Record
from vqvae2.train.follow import Follower, News

TrackerName = Literal["tensorboard", "trackio", "wandb"]

_SECONDS = 2.0  # between two looks at the files


def check_tracker(name: str) -> None:
    """Check that a tracker can be used.

    Raises:
        UserError: an unknown name, or its package is not installed.
    """
    if name not in get_args(TrackerName):
        raise UserError(f"expected a tracker of {', '.join(get_args(TrackerName))}, found {name!r}")
    if importlib.util.find_spec(name) is None:
        how = "pip install 'vqvae2[track]'" if name == "tensorboard" else f"pip install {name}"
        raise UserError(f"{name} is not installed: {how}")


@contextmanager
def tracked(name: str, run: Path, config: Config, reporter: Reporter) -> Iterator[None]:
    """Send what is trained inside the block to a tracker; figures are called "STAGE/FIGURE", pictures "STAGE/pictures".

    Steps count within a stage. What was sent before is remembered in RUN/tracking/NAME.json and not sent again, so a resumed training
    goes on where it was. A stage that is trained anew is sent from its start.

    Args:
        name: a `TrackerName`; tensorboard writes to RUN/tracking, wandb and trackio have a project "vqvae2" and a run
            with the name of the folder.
        run: RUN; may not exist yet.
        config: every setting, which is sent too.
        reporter: says if the tracker fails.

    Raises:
        UserError: as `check_tracker`.
    """
    check_tracker(name)
    sender, ended = _Sender(name, run, config, reporter), threading.Event()
    thread = threading.Thread(target=sender.follow, args=(ended,), name="vqvae2-tracker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(60)


class _Memory(Record):
    """RUN/tracking/NAME.json: what was sent, as `Follower` has it."""

    steps: dict[str, int] = Field(default_factory=dict)
    begins: dict[str, str] = Field(default_factory=dict)


def _named(value: Any) -> Any:
    """What the file of a memory holds; those of former versions hold the steps alone."""
    return value if isinstance(value, dict) and "steps" in value else {"steps": value}


class _Sender:
    """Follows a run and sends what is new."""

    def __init__(self, name: str, run: Path, config: Config, reporter: Reporter) -> None:
        self.name, self.run, self.config, self.reporter = name, run, config, reporter
        self.memory = run / "tracking" / f"{name}.json"
        memory = _Memory()
        if self.memory.exists():
            try:
                memory = _Memory.of(_named(read_json(self.memory)), self.memory)
            except FileError as error:
                reporter.say(f"{error}; everything is sent to {name} again")
        self.follower = Follower(run, config.autoencoder.levels, memory.steps, memory.begins)
        self.tracker: GeneralTracker | None = None

    def follow(self, ended: threading.Event) -> None:
        """Send what is new until the event is set, and the rest then."""
        try:
            last = False
            while not last:
                last = ended.wait(_SECONDS)
                if not last and not PartialState._shared_state:
                    continue  # accelerate's trackers need its state, which the training makes as it needs it
                news = self.follower.news()
                if news and self.tracker is None:
                    self.tracker = self._started()
                for item in news:
                    self._send(item)
                if news:
                    write_json(self.memory, {"steps": self.follower.steps, "begins": self.follower.begins})
            if self.tracker is not None:
                self.tracker.finish()
        except Exception as error:  # of a library; the training must go on
            logging.getLogger(__name__).debug("the tracker failed", exc_info=True)
            self.reporter.say(
                f"{self.name} failed and is not used any more: {' '.join(str(error).split())[:200]}"
            )

    def _started(self) -> GeneralTracker:
        PartialState()
        folder = self.run / "tracking"
        folder.mkdir(parents=True, exist_ok=True)
        kind: Any = LOGGER_TYPE_TO_CLASS[self.name]
        if kind.requires_logging_directory:
            tracker: GeneralTracker = kind(self.name, str(folder))
        elif self.name == "wandb":
            number = hashlib.sha256(str(self.run.resolve()).encode()).hexdigest()[:12]
            tracker = kind("vqvae2", name=self.run.name, id=number, resume="allow", dir=str(folder))
        else:
            tracker = kind("vqvae2", name=self.run.name, resume="allow")
        if hasattr(tracker, "start"):  # before accelerate 1.10 it started by itself
            tracker.start()
        tracker.store_init_configuration(flat(self.config.model_dump(mode="json")))
        return tracker

    def _send(self, news: News) -> None:
        assert self.tracker is not None
        own = self.name == "tensorboard"  # the others count steps over all figures, and refuse to go back
        stage = news.stage.replace(" ", "-")
        for line in news.lines:
            step = line["step"]
            values = {
                f"{stage}/{key}": value
                for key, value in flat(line).items()
                if key != "step" and _number(value)
            }
            if values:
                self.tracker.log(
                    values if own else {**values, f"{stage}/step": step}, step=step if own else None
                )
        if hasattr(self.tracker, "log_images"):
            for step, file in news.pictures:
                try:
                    with Image.open(file) as picture:
                        array = np.asarray(picture.convert("RGB"))[None]
                except FileNotFoundError:  # moved when a longer training was published
                    continue
                more = {"dataformats": "NHWC"} if own else {}
                self.tracker.log_images({f"{stage}/pictures": array}, step=step if own else None, **more)


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary as one of dotted keys, whose values are numbers, texts and truth values."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict):
            found |= flat(item, f"{name}.")
        elif isinstance(item, list | tuple):
            found |= flat(dict(enumerate(item)), f"{name}.")  # type: ignore[arg-type]
        else:
            found[name] = item if isinstance(item, bool | int | float | str) else str(item)
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
