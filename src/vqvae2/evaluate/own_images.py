"""The images that a run was trained on, found again: where they were, elsewhere, or as they were decoded for the training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vqvae2.data.errors import DataError
from vqvae2.data.images import ImageSet, open_decoded, open_images
from vqvae2.evaluate.trained_run import TrainedRun
from vqvae2.files.run_folder import RunFolder


def open_own_images(
    run: TrainedRun, data: str, elsewhere: Path, say: Callable[[str], None] = print
) -> ImageSet:
    """Open the images of a run, or others for it.

    If `data` is what the run was trained on and cannot be seen from here, because it was moved, or because the command was
    typed in another folder, the images that the training decoded are used.

    Args:
        run: whose settings apply.
        data: see `open_images`.
        elsewhere: folder for decoded images that are not the run's own, which must not replace those.
        say: called with a line of text.

    Raises:
        DataError: as `open_images`; the message names --data if the images are the run's own.
    """
    config, seed, decoded = run.config.data, run.config.seed, RunFolder(run.folder).data
    own = data == run.record.get("source")
    if own and not Path(data).exists():
        images = open_decoded(decoded, config)
        if images is not None and images.fingerprint == run.record.get("fingerprint"):
            if "/" in data:
                say(f"{data} is not read again: the images decoded in {decoded} are used")
            return images
    own_folder = own and run.done()["codes"]
    try:
        return open_images(data, config, decoded if own_folder else elsewhere, seed=seed, say=say)
    except DataError as error:
        if own:
            raise DataError(
                f"{error}; if the images of {run.folder} are elsewhere, name them with --data"
            ) from None
        raise
