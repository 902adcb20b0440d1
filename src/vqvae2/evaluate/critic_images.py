"""Reading the images from which a critic is fitted, and computing on them in parts that several processes share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.config.models import DataConfig
from vqvae2.data.batches import sequential
from vqvae2.data.images import ImageSet, open_images
from vqvae2.data.recorded import open_source, same_source
from vqvae2.evaluate.sets import batch_size, digest
from vqvae2.evaluate.trained_run import TrainedRun
from vqvae2.files.parts import Parts, cut
from vqvae2.files.progress import Reporter, Tracker
from vqvae2.files.run_folder import RunError, RunFolder
from vqvae2.processes import Group

PART = 1024  # images of which one process computes the features at a time
BATCH = 16  # images read at a time, more on a card, after each of which the progress is told


def own_images(run: TrainedRun, data: str | None, elsewhere: Path, say: Callable[[str], None]) -> ImageSet:
    """The images that a run was trained on.

    Args:
        data: where they are now; None takes them from where they were.
        elsewhere: a folder for decoded images of which nothing tells that they are the run's.
        say: called with lines of text.

    Raises:
        RunError: these are others, which is noticed before they are decoded.
        DataError: see `open_images`.
    """
    decoded, config, known = RunFolder(run.folder).data, run.config, run.record.get("fingerprint")
    source, own = run.record.get("source"), data is None or same_source(data, run.record, run.folder)

    def check(found: str) -> None:
        if known in (None, found):
            return
        if own:
            raise RunError(
                f"the images in {source} changed since the training of {run.folder} began; restore them, or name a copy of "
                "them as they were with --data"
            )
        raise RunError(
            f"{run.folder} was trained on the images in {source}, and found others in {data}; use those"
        )

    if own:
        return open_source(run.record, run.folder, config.data, decoded, elsewhere, config.seed, say, check)
    place = elsewhere if known is None else decoded
    return open_images(str(data), config.data, place, seed=config.seed, say=say, check=check)


class ImageReader:
    """Reads images in order, with the labels of those that are really read: a broken one is replaced by another of the data set.

    Args:
        device: of the networks that are shown the images.
    """

    def __init__(
        self,
        folder: Path,
        images: ImageSet,
        data: DataConfig,
        reporter: Reporter,
        group: Group,
        device: torch.device | str = "cpu",
    ) -> None:
        self.batch = batch_size(data, torch.device(device), BATCH)
        self.images, self.data, self.reporter, self.group = images, data, reporter, group
        self.folder = RunFolder(folder).critic.with_name("parts")
        self._tracker: Tracker | None = None
        self._labels: list[Tensor] = []

    def rows(
        self,
        title: str,
        work: str,
        indices: NDArray[np.int64],
        some: Callable[[Iterator[Tensor]], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """What `some` makes of batches of images, of all these images, with their `labels`; computed by all processes in parts.

        Args:
            title: under which the progress is shown.
            work: identifies what is made.
        """
        key = digest(work, self.images.fingerprint, len(indices))
        parts = Parts(self.folder / key[:16], key, cut(len(indices), PART), self.group)

        def of(part: range) -> dict[str, Tensor]:
            made = some(self(indices[part.start : part.stop]))
            return {**made, "labels": torch.cat(self._labels)}

        parts.begin()
        with self.reporter.track(title, len(indices), unit="images") as self._tracker:
            parts.compute(of)
        return parts.joined()

    def __call__(self, indices: NDArray[np.int64]) -> Iterator[Tensor]:
        self._labels = []
        for pixels, labels in sequential(self.images, indices, self.data, batch=self.batch):
            self._labels.append(labels)
            yield pixels
            if self._tracker is not None:
                self._tracker.update(self._tracker.done + len(labels))

    def done(self) -> None:
        """Remove the parts; a collective."""
        self.group.wait()
        if self.group.main:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.group.wait()
