"""Where the images of a run are: what its record says of them, and how they are found again from any folder.

A run records the absolute path of its data and the path from the run folder, so that both may be moved together. What
is found is the run's own data only if its fingerprint is that of the run, whatever the path.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError, LabelsError
from vqvae2.data.images import ImageSet, open_images, open_kept
from vqvae2.errors import printable


def source_record(data: str, run: Path) -> dict[str, str]:
    """What a run records of DATA: `source`, and for local data `source_from_run`, its path from the run folder."""
    if not _there(data):
        return {"source": data}
    absolute = os.path.abspath(Path(data).expanduser())  # noqa: PTH100 - links stay links
    return {"source": absolute, "source_from_run": os.path.relpath(absolute, run.absolute())}


def same_source(data: str, record: Mapping[str, Any], run: Path) -> bool:
    """Whether DATA is spelled for the place that the record names."""
    return data == record.get("source") or os.path.realpath(Path(data).expanduser()) in {
        os.path.realpath(place) for place in _places(record, run)
    }


def find_source(record: Mapping[str, Any], run: Path) -> str | None:
    """Where the images of a run are now: a path that exists, or the name of a data set; None = they are gone.

    Args:
        record: of the run.
        run: the run folder.
    """
    source = record.get("source")
    if not isinstance(source, str):
        return None
    for place in _places(record, run):
        if _there(place):
            return place
    return None if Path(source).is_absolute() or source.startswith((".", "~")) else source


def open_source(
    record: Mapping[str, Any],
    run: Path,
    config: DataConfig,
    decoded: Path,
    seed: int,
    say: Callable[[str], None],
) -> ImageSet:
    """The images that a run was trained on: from where they are, else the decoded copies in the run folder.

    Args:
        record: of the run.
        run: the run folder.
        config: its options of the data.
        decoded: RUN/data.
        seed: of the run.
        say: see `open_images`.

    Raises:
        DataError: they are gone, or as `open_images`.
    """
    source = find_source(record, run)
    missing = source is None or ("/" in source and not _there(source))
    missing |= config.labels is not None and not _there(config.labels)
    if missing and (kept := open_kept(decoded, config, str(record.get("fingerprint")))) is not None:
        say(f"no folder or file {record.get('source')}: the decoded images in {decoded} are used")
        return kept
    if source is None:
        raise DataError(
            f"the images that {run} was trained on are not in {record.get('source')} any more: name them with --data"
        )
    return open_images(source, config, decoded, seed=seed, say=say)


def open_other(
    data: str,
    config: DataConfig,
    decoded: Path,
    *,
    seed: int,
    say: Callable[[str], None],
    both: bool = True,
    check: Callable[[str], None] | None = None,
) -> ImageSet:
    """Images that a run was not trained on; its file of labels counts only if it names some of them.

    Args:
        data: see `open_images`.
        config: the run's options of the data.
        decoded, seed, say, both, check: see `open_images`.

    Raises:
        DataError: as `open_images`.
    """
    try:
        return open_images(data, config, decoded, seed=seed, say=say, both=both, check=check)
    except LabelsError:
        if config.labels is None:
            raise
        say(f"the run's file of labels, {printable(config.labels)}, is not for these images: it is not read")
        own = config.model_copy(update={"labels": None, "label_column": None})
        return open_images(data, own, decoded, seed=seed, say=say, both=both, check=check)


def _places(record: Mapping[str, Any], run: Path) -> list[str]:
    source, beside = record.get("source"), record.get("source_from_run")
    places = [str(source)] if isinstance(source, str) else []
    if isinstance(beside, str):
        places.append(os.path.normpath(run.absolute() / beside))
    return places


def _there(data: str) -> bool:
    """Whether DATA is a path, or a pattern of paths, that exists."""
    path = str(Path(data).expanduser())
    if os.path.exists(path):  # noqa: PTH110 - False for every error, such as a name that is too long
        return True
    return bool(re.search(r"[*?\[{]", data)) and bool(glob.glob(re.sub(r"\{[^{}]*\}", "*", path)))  # noqa: PTH207
