"""The folder of a training: what a killed process left there is removed, it must not vanish, and its log is written there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqvae2.errors import shortage
from vqvae2.files.atomic import WriteError, reason
from vqvae2.files.output import make_folder
from vqvae2.files.run_folder import RunFolder, StageFolder
from vqvae2.train.device import TrainingError
from vqvae2.train.longer import keep_state, publish, to_publish
from vqvae2.train.state import write_metrics

_LOOKS = 4  # at a folder that a file system does not answer for
_PAUSE = 1.0  # seconds between two of them


class Place:
    """A folder that must stay where it is; it is made if it does not exist.

    Args:
        path: the folder.
        what: the name of the training, for messages.
        say: prints one line.

    Raises:
        UserError: it cannot be made.
    """

    def __init__(self, path: Path, what: str, say: Callable[[str], None]) -> None:
        self.path, self.what, self.say = path, what, say
        make_folder(path)
        self._known = self._identity()
        self._unwritten: list[tuple[int, Mapping[str, Any]]] = []  # lines of metrics
        self._said = False

    def check(self) -> None:
        """Raise unless the folder is still the same one, or the file system does not say; then whoever writes there finds out.

        Raises:
            TrainingError: it was removed, moved, or replaced by another one.
        """
        try:
            found = self._identity()
        except OSError:
            return
        if found != self._known:
            raise TrainingError(
                f"{self.what}: the folder {self.path} was removed or moved during the training, which ends here"
            )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a line of metrics, after those that could not be written before.

        Raises:
            TrainingError: see `check`.
        """
        self.check()
        self._unwritten.append((step, values))
        with self.going_on():
            while self._unwritten:
                write_metrics(StageFolder(self.path).metrics, *self._unwritten[0])
                del self._unwritten[0]

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """What is only to be looked at does not end a training when it cannot be written; the first time this is said.

        A full disk ends it all the same, because the state would not be written either.
        """
        try:
            yield
        except (OSError, WriteError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, OSError) and shortage(cause):
                raise
            if not self._said:
                self._said = True
                why = reason(error) if isinstance(error, OSError) else error
                self.say(
                    f"{self.what}: a line of metrics or a picture was not written ({why}); the training goes on"
                )

    def _identity(self) -> tuple[int, int] | None:
        """Which folder it is, None if there is none.

        Raises:
            OSError: the file system does not say, also a little later.
        """
        for look in range(_LOOKS):
            try:
                about = self.path.stat()
                return about.st_dev, about.st_ino
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError:
                if look == _LOOKS - 1:
                    raise
                time.sleep(_PAUSE)
        return None


def tidy(folder: Path, levels: int) -> None:
    """Finish what killed trainings left undone in a run folder that this process has locked.

    What a training whose result was written, but which was killed before it could put its log, its pictures and its state in
    their place, left behind is put there.

    Args:
        folder: RUN.
        levels: of the autoencoder.
    """
    for stage in RunFolder(folder).networks(levels).values():
        if stage.done() and stage.checkpoint.exists():
            keep_state(stage, stage)
        if to_publish(stage):
            publish(stage, stage.longer)
        elif not (stage.longer.checkpoint.exists() or stage.longer.metrics.exists()):  # nothing begun or left
            shutil.rmtree(stage.longer.path, ignore_errors=True)
