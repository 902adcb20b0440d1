"""The folder of a training, watched: when it vanishes the training must end, instead of writing into a new one."""

from __future__ import annotations

from pathlib import Path

from vqvae2.files.output import make_folder
from vqvae2.train.device import TrainingError


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
