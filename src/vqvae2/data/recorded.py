"""Where the images of a run are: what its record says of them, and how they are found again from any folder.

A run records the absolute path of its data and the path from the run folder, so that both may be moved together. What
is found is the run's own data only if its fingerprint is that of the run, whatever the path.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vqvae2.config.data import at_home
from vqvae2.config.models import DataConfig
from vqvae2.data.embedded import EMBEDDED
from vqvae2.data.errors import DataError, LabelsError
from vqvae2.data.images import ImageSet, open_images, open_kept
from vqvae2.errors import listed, printable

_OF_OWN_IMAGES = (
    ("labels", "label_column"),
    ("split",),
    ("image_column",),
)  # groups of options that go together


def source_record(data: str, run: Path) -> dict[str, str]:
    """What a run records of DATA: `source`, and for local data `source_from_run`, its path from the run folder."""
    if not _there(data):
        return {"source": data}
    absolute = os.path.abspath(at_home(data))  # noqa: PTH100 - links stay links
    return {"source": absolute, "source_from_run": os.path.relpath(absolute, run.absolute())}


def same_source(data: str, record: Mapping[str, Any], run: Path) -> bool:
    """Whether DATA is spelled for the place that the record names."""
    if data == record.get("source") or data == EMBEDDED:
        return data == record.get("source")
    return os.path.realpath(at_home(data)) in {os.path.realpath(place) for place in _places(record, run)}


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


class _ChangedError(DataError):
    """The images are not those that the run was trained on."""


def open_own(
    data: str,
    record: Mapping[str, Any],
    config: DataConfig,
    decoded: Path,
    elsewhere: Path,
    seed: int,
    say: Callable[[str], None],
    check: Callable[[str], None] | None = None,
) -> ImageSet:
    """The images in the place of those that a run was trained on; if they have changed, the run keeps its decoded copies.

    Args:
        record: of the run.
        decoded: RUN/data, for the decoded copies of the run's own images.
        elsewhere: the folder for those of other images.
        data, config, seed, say, check: see `open_images`.

    Raises:
        DataError: as `open_images`.
    """
    own = record.get("fingerprint")

    def unchanged(fingerprint: str) -> None:
        if own not in (None, fingerprint):
            raise _ChangedError(f"the images in {data} have changed since the training")
        if check is not None:
            check(fingerprint)

    try:
        return open_images(data, config, decoded, seed=seed, say=say, check=unchanged)
    except _ChangedError as error:
        say(str(error))
        return open_images(data, config, elsewhere, seed=seed, say=say, check=check)


def open_source(
    record: Mapping[str, Any],
    run: Path,
    config: DataConfig,
    decoded: Path,
    elsewhere: Path,
    seed: int,
    say: Callable[[str], None],
    check: Callable[[str], None] | None = None,
) -> ImageSet:
    """The images that a run was trained on: from where they are, else the decoded copies in the run folder.

    Args:
        record: of the run.
        run: the run folder.
        config: its options of the data.
        decoded, elsewhere: see `open_own`.
        seed: of the run.
        say, check: see `open_images`.

    Raises:
        DataError: they are gone, or as `open_images`.
    """
    source = find_source(record, run)
    gone = record.get("source") if source is None else None
    if config.labels is not None and not _there(config.labels):
        gone = gone or config.labels
    named = source is not None and "/" in source and not _there(source)  # on the Hub, or behind a protocol
    if (gone or named) and (kept := open_kept(decoded, config, str(record.get("fingerprint")))) is not None:
        say(f"{f'no folder or file {gone}: ' if gone else ''}the decoded images in {decoded} are used")
        return kept
    if source is None:
        raise DataError(
            f"the images that {run} was trained on are not in {record.get('source')} any more: name them with --data"
        )
    return open_own(source, record, config, decoded, elsewhere, seed, say, check)


def open_other(
    data: str,
    config: DataConfig,
    decoded: Path,
    *,
    seed: int,
    say: Callable[[str], None],
    both: bool = True,
    own: str | None = None,
    check: Callable[[str], None] | None = None,
) -> ImageSet:
    """Images that a run was not trained on.

    The run's limit does not count. Its split, its columns and its file of labels count only where these images have such
    a thing; which of them do not count is said.

    Args:
        data: see `open_images`.
        config: the run's options of the data.
        decoded, seed, say, both, check: see `open_images`.
        own: fingerprint of the images that the run was trained on, in case these are they, from another place; then all
            its options count.

    Raises:
        DataError: as `open_images`.
    """
    errors: list[DataError] = []
    for left in _left_out(config, own is not None):
        if "labels" in left and not any(isinstance(error, LabelsError) for error in errors):
            continue  # the file may be for these images
        known: list[str] = []
        only = None if "limit" in left or config.limit is None else str(own)
        fitting = config.model_copy(update=dict.fromkeys(left))
        try:
            images = open_images(
                data,
                fitting,
                decoded,
                seed=seed,
                say=say,
                both=both,
                check=partial(_checked, only, known, check),
            )
        except DataError as error:
            if known:  # the images themselves are to blame
                raise
            errors.append(error)
            continue
        if dropped := [f"data.{name}={getattr(config, name)}" for name in left if name != "limit"]:
            say(
                printable(
                    f"of the run, {listed(dropped)} does not count, because these images have no such thing"
                )
            )
        return images
    raise errors[0]


def _left_out(config: DataConfig, maybe_own: bool) -> Iterator[tuple[str, ...]]:
    """The options that are left out when images are opened that may be others, in one attempt after the other."""
    if config.limit is not None and maybe_own:
        yield ()
    groups = [
        [name for name in group if getattr(config, name) not in (None, "none")] for group in _OF_OWN_IMAGES
    ]
    limit = () if config.limit is None else ("limit",)
    for count in range(len(groups) + 1):
        for chosen in itertools.combinations(filter(None, groups), count):
            yield (*limit, *itertools.chain.from_iterable(chosen))


def _checked(
    only: str | None, known: list[str], check: Callable[[str], None] | None, fingerprint: str
) -> None:
    """Refuse other images than those of a run, if `only` is their fingerprint; others are noted and checked."""
    if only is not None and fingerprint != only:
        raise DataError("these are not the images of the run")
    known.append(fingerprint)
    if check is not None:
        check(fingerprint)


def _places(record: Mapping[str, Any], run: Path) -> list[str]:
    source, beside = record.get("source"), record.get("source_from_run")
    places = [source] if isinstance(source, str) else []
    if isinstance(beside, str) and places and Path(places[0]).is_absolute():  # a name has no place
        places.append(os.path.normpath(run.absolute() / beside))
    return places


def _there(data: str) -> bool:
    """Whether DATA is a path, or a pattern of paths, that exists, and not the name of a data set."""
    if data == EMBEDDED:  # even beside a folder of this name, as for `locate`
        return False
    path = at_home(data)
    if os.path.exists(path):  # noqa: PTH110 - False for every error, such as a name that is too long
        return True
    return bool(re.search(r"[*?\[{]", data)) and bool(glob.glob(re.sub(r"\{[^{}]*\}", "*", path)))  # noqa: PTH207
