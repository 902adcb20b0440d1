"""The folder of a training: what a killed process left there is removed, and it must not vanish meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path

from vqvae2.files.output import make_folder
from vqvae2.files.run_folder import RunFolder
from vqvae2.train.device import TrainingError
from vqvae2.train.longer import keep_state, publish, to_publish


class Place:
    """A folder that must stay where it is; it is made if it does not exist.

    Args:
        path: the folder.

    Raises:
        UserError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        make_folder(path)
        self._known = self._identity()

    def check(self, what: str) -> None:
        """Raise unless the folder is still the same one.

        Args:
            what: the name of the training, for the message.

        Raises:
            TrainingError: it was removed, moved, or replaced by another one.
        """
        if self._identity() != self._known:
            raise TrainingError(
                f"{what}: the folder {self.path} was removed or moved during the training, which ends here"
            )

    def _identity(self) -> tuple[int, int] | None:
        try:
            about = self.path.stat()
        except OSError:
            return None
        return about.st_dev, about.st_ino


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
