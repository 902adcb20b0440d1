"""Decoded images kept in the run folder: `pixels-*.npy`, one array, and the `index.json` that names it.

    Listing or Stream --decoding, in worker processes where that pays--> pixels-*.npy, index.json, skipped.txt

Shapes: C channels, PH PW the stored shape (size times scale, rounded), n images.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from vqvae2.config.models import DataConfig
from vqvae2.data.array_writer import ArrayWriter
from vqvae2.data.decoding import stored_shape, stored_type
from vqvae2.data.errors import DataError
from vqvae2.data.index import ImageIndex
from vqvae2.data.listing import Listing, Payload, Row, Stream
from vqvae2.data.pixels import Pixels
from vqvae2.data.skipped import SkippedFile
from vqvae2.data.workers import Decoder
from vqvae2.files.arrays import map_array
from vqvae2.files.temporary import sweep

Progress = Callable[[int, int | None], None]
"""Called with the number of images decoded so far and the number of all images (None = unknown)."""

WORKERS_FROM = 64  # images: fewer are decoded in this process, worker processes take longer to start
_CHUNK = 16  # images per task of a worker process
_WORTHWHILE = 10.0  # seconds of work left from which starting worker processes pays


def load_pixels(folder: Path, index: ImageIndex, config: DataConfig) -> Pixels:
    """The decoded images that an index names, memory-mapped, [n, PH, PW, C].

    Raises:
        FileError: the file is damaged, or does not fit the index or the settings.
        OSError: it cannot be read.
    """
    shape = (len(index.names), *stored_shape(config), config.channels)
    return map_array(folder / index.pixels, shape, stored_type(config))


def fill_cache(
    listed: Listing | Stream,
    index: ImageIndex,
    config: DataConfig,
    folder: Path,
    progress: Progress | None,
    say: Callable[[str], None] | None = None,
) -> Counter[str]:
    """Decode all images into `pixels-*.npy`, then write the `index.json` that names it; older caches are removed.

    Args:
        say: called with a line of text when worker processes died.

    Returns:
        What was done to images besides, such as a converted colour profile, with the number of images.

    Raises:
        DataError: no image is usable, a stream is larger than `config.cache_gb`, or images cannot be read for a reason that
            is not their own.
        OSError, FileError: the folder cannot be written.
    """
    index.pixels = f"pixels-{index.fingerprint[:16]}.npy"
    total = len(listed) if isinstance(listed, Listing) else None
    sweep(folder)
    writer = ArrayWriter(folder / index.pixels, (*stored_shape(config), config.channels), stored_type(config))
    decoder = Decoder(config, say)
    rows: list[Row] = []
    try:
        outcome, remarks = _decode_all(writer, decoder, _chunks(listed, rows), total, config, progress)
        index.fill(listed, rows, outcome, SkippedFile(folder / "skipped.txt"))
        writer.finish()
        writer.publish()
    finally:
        writer.abandon()
        decoder.close()
    index.save(folder / "index.json")
    for old in folder.glob("pixels-*.npy"):
        if old.name != index.pixels:
            old.unlink(missing_ok=True)
    return remarks


def _chunks(listed: Listing | Stream, rows: list[Row]) -> Iterator[list[Payload | None]]:
    """The encoded images in tasks of `_CHUNK`; what a stream says about them besides is added to `rows`."""
    if isinstance(listed, Listing):
        for start in range(0, len(listed), _CHUNK):
            yield listed.payloads(range(start, min(start + _CHUNK, len(listed))))
        return
    while chunk := list(itertools.islice(listed.rows, _CHUNK)):
        rows += [row._replace(payload=None) for row in chunk]
        yield [row.payload for row in chunk]


def _decode_all(
    writer: ArrayWriter,
    decoder: Decoder,
    chunks: Iterator[list[Payload | None]],
    total: int | None,
    config: DataConfig,
    progress: Progress | None,
) -> tuple[list[str | None], Counter[str]]:
    """Write the usable images; returns, per image, None or the reason why it cannot be used, and all remarks."""
    outcome: list[str | None] = []
    remarks: Counter[str] = Counter()
    began = time.perf_counter()
    if config.workers > 0 and (total is None or total >= WORKERS_FROM):
        decoder.start()
    for pixels, reasons, said in decoder.map(chunks):
        writer.append(pixels)
        outcome += reasons
        remarks += said
        if writer.count * pixels[:1].nbytes > config.cache_gb * 1e9:
            raise DataError(
                f"the stream does not fit in cache_gb = {config.cache_gb:g}: raise it, set limit, or copy the data set into tar "
                "shards, which are read where they are; see 'Parquet files as tar shards' on the page On several GPUs and machines"
            )
        if len(outcome) >= WORKERS_FROM and config.workers:
            left = math.inf if total is None else total - len(outcome)
            if left * (time.perf_counter() - began) / len(outcome) > _WORTHWHILE:
                decoder.start()
        if progress is not None:
            progress(len(outcome), total)
    return outcome, remarks
