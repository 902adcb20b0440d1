"""The codes of every image: encoded in parts by all processes, then joined by the main one.

    images --any process--> RUN/codes/parts/ --main process--> code store, in order

The parts, and the batches in them, do not depend on the number of processes, and so neither does the store. After a kill,
extraction goes on with the parts that are missing, with any number of processes. Parts that were joined are removed while
others still wait, so that only a few of the codes are ever on the disk twice.

Shapes: b images of a batch, h w the grid of a level.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes
from vqvae2.config.models import Config
from vqvae2.data.batches import sequential_pixels
from vqvae2.data.images import ImageSet
from vqvae2.data.store import PARTS, CodeStore, StoreError, complete_renames, open_store
from vqvae2.data.store_writer import Joining, StoreWriter
from vqvae2.files.atomic import FileError
from vqvae2.files.parts import Parts, cut
from vqvae2.files.progress import Reporter, Tracker
from vqvae2.files.seen import await_seen, check_same
from vqvae2.files.tensor_file import digest as digest_of
from vqvae2.processes import joined
from vqvae2.train.feed import Batch, Feed
from vqvae2.train.prior import copies
from vqvae2.train.resident import scaled

_BATCH = 64  # images encoded at a time on a CPU
_PIXELS = 2**23  # of the images encoded at a time on a GPU
_PART = 16  # batches of a part
_REMOVED = 16  # parts that are removed at a time


def extract(
    autoencoder: VQVAE,
    images: ImageSet,
    config: Config,
    folder: Path,
    digest: str,
    accelerator: Accelerator,
    reporter: Reporter,
) -> None:
    """Encode every image into the code store `folder`: held-out images once, training images `copies` times.

    The first copy is not augmented; each further one is, as the data configuration says. Codes are computed in float32.
    Every process calls this; only the main one writes the store. The store holds the same codes in the same order for any
    number of processes.

    Args:
        autoencoder: on the device of the process; put into eval mode.
        images: all of them are encoded, with their labels.
        config: the whole configuration.
        folder: of the code store; the parts are in its sub-folder `parts` until it is complete.
        digest: of the autoencoder's weights, which the store names.
        accelerator: names the device of this process.
        reporter: where the progress is shown.

    Raises:
        StoreError: the store cannot be written.
    """
    autoencoder.eval()
    device, group = accelerator.device, joined()
    size = _BATCH if device.type == "cpu" else max(_BATCH, _PIXELS // config.data.area)
    ranges: list[range] = []
    for indices, _ in passes(images, config):
        ranges += cut(len(indices), size * _PART, ranges[-1].stop if ranges else 0)
    key = digest_of({}, f"{digest} {_content(images, config)} {size}")
    joining = group.agreed(Joining.of(folder, key, config.geometry))
    if joining.rows not in [rows.stop for rows in ranges]:
        joining = Joining(key)
    parts = Parts(parts_folder(folder), key, [rows for rows in ranges if rows.start >= joining.rows], group)
    parts.begin()
    try:
        with reporter.track("codes", sum(map(len, parts.mine)), unit="images") as tracker:
            _encode(autoencoder, images, config, parts, size, tracker)
        group.wait()
        if group.main:
            _join(images, config, parts, folder, digest, joining)
    except FileError as error:
        raise StoreError(str(error)) from error
    parts.remove()


def fits(place: Path, config: Config, images: ImageSet, digest: str, main: bool) -> bool:
    """Whether the code store holds the codes of these images by this autoencoder, undamaged.

    Args:
        place: RUN/codes.
        config, images: of the run.
        digest: of the autoencoder's weights.
        main: whether this is the main process, which finishes renames and checks the content for all.
    """
    try:
        if main:
            complete_renames(place)
        store = open_store(place, digest=digest, check=main)
    except (StoreError, OSError):
        return False
    return (
        len(store) == image_count(images, config)
        and store.geometry == config.geometry
        and store.fingerprint == images.fingerprint
        and store.classes == tuple(images.classes)
    )


def open_for_all(place: Path, digest: str) -> CodeStore:
    """The code store that the main process has made or checked; a collective.

    Raises:
        NotSeen: this process does not see it, or another one.
        StoreError: it cannot be opened.
    """
    group = joined()
    group.wait()
    await_seen(place / name for name in group.agreed(sorted(file.name for file in place.glob("[!.]*.*"))))
    store = open_store(place, digest=digest, check=False)
    check_same(f"the codes of {len(store.train):,} and {len(store.heldout):,} images", place)
    return store


def parts_folder(folder: Path) -> Path:
    """Where the parts are until the code store `folder` is complete."""
    return folder / PARTS


def _encode(
    autoencoder: VQVAE, images: ImageSet, config: Config, parts: Parts, size: int, tracker: Tracker
) -> None:
    """Compute this process's parts; the next batch is read and copied while one is encoded."""
    device, begin = next(autoencoder.parameters()).device, 0
    for indices, seed in passes(images, config):
        own = [rows for rows in parts.mine if begin <= rows.start < begin + len(indices)]
        chosen = [indices[rows.start - begin : rows.stop - begin] for rows in own]
        begin += len(indices)
        if not own:
            continue  # a feed without batches would wait for one
        wanted = np.concatenate(chosen)
        batches = sequential_pixels(images, wanted, config.data, batch=size, copies_seed=seed)
        with Feed(batches, device, config.pin_memory) as feed:
            for rows in own:
                done = []
                for _ in range(0, len(rows), size):
                    part = _encoded(autoencoder, next(feed))
                    feed.fetch_ahead()
                    done.append({name: value.cpu() for name, value in part.items()})  # waits for the device
                    tracker.update(tracker.done + len(done[-1]["labels"]))
                parts.write(rows, {name: torch.cat([part[name] for part in done]) for name in done[0]})


def _join(
    images: ImageSet, config: Config, parts: Parts, folder: Path, digest: str, joining: Joining
) -> None:
    """Write the store from all parts, and remove those that are in it."""
    total, levels = image_count(images, config), range(config.autoencoder.levels)
    about: dict[str, Any] = {"classes": images.classes, "fingerprint": images.fingerprint, "joining": joining}
    with StoreWriter(folder, config.geometry, digest, total, **about) as writer:
        for number, (rows, part) in enumerate(zip(parts.ranges, parts, strict=True), 1):
            codes = Codes(tuple(part[f"level_{level}"].long() & 0xFFFF for level in levels))
            split = np.full(len(rows), int(rows.start < len(images.heldout)), np.int8)
            writer.append(codes, part["labels"].numpy(), split)
            if number % _REMOVED == 0:
                writer.keep()
                parts.forget(parts.ranges[number - _REMOVED : number])


def image_count(images: ImageSet, config: Config) -> int:
    """The number of images in the code store, copies included."""
    return len(images.heldout) + copies(config) * len(images.train)


def passes(images: ImageSet, config: Config) -> Iterator[tuple[NDArray[np.int64], int | None]]:
    """The images in the order of the store, held-out ones first: their indices, and the seed of augmentation or None."""
    yield images.heldout, None
    for copy in range(copies(config)):
        yield images.train, None if copy == 0 else config.seed + copy


def _content(images: ImageSet, config: Config) -> str:
    """All that says which pixels `passes` gives; settings that may change at will are none of it."""
    data = config.data
    chosen = [data.holdout, data.shape, data.crop, data.shift, data.flip]
    return f"{images.fingerprint} {chosen} {config.seed} {copies(config)}"


@torch.no_grad()
def _encoded(autoencoder: VQVAE, batch: Batch) -> dict[str, Tensor]:
    """The codes of a batch, the low 16 bits of each, and its labels; on the device, which may still be computing them."""
    pixels, labels = batch
    levels = autoencoder.encode(scaled(pixels)).levels
    codes = {f"level_{index}": level.to(torch.int16) for index, level in enumerate(levels)}
    return {**codes, "labels": labels}
