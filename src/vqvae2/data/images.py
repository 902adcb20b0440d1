"""Pictures by number: decoded once and kept, or decoded when asked, and which of them are held out.

    data --sources--> encoded pictures --decoding--> uint8 --cache--> ImageSet

Shapes: B batch, C channels, S the configured size, P = round(S * scale) the stored side, n pictures.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.config.models import DataConfig
from vqvae2.data.augmentation import centre
from vqvae2.data.decoding import background, decode_many, stored_side
from vqvae2.data.errors import DataError
from vqvae2.data.listing import Listing, Payload, Row, Stream
from vqvae2.data.pixels import Pixels
from vqvae2.data.sources import list_place, locate
from vqvae2.data.store import ArrayWriter, sweep
from vqvae2.data.workers import Decoder
from vqvae2.files import atomic

Progress = Callable[[int, int | None], None]
"""Called with how many pictures are decoded, and of how many (None = unknown)."""

_PIXEL_OPTIONS = (
    *("size", "scale", "channels", "background", "crop", "max_pixels"),
    *("limit", "split", "image_column", "label_column"),
)
_CHUNK = 16  # pictures per task of a worker process
_TRIAL = 64  # pictures decoded here before worker processes are worth their start
_PATIENCE = 10.0  # seconds of remaining work that are worth it


@dataclass
class _Index:
    """What is known about the pictures besides their pixels; `index.json` of the cache."""

    key: str
    fingerprint: str
    names: list[str] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    labels: list[int] | None = None
    held: list[int] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    pixels: str = ""


class ImageSet:
    """Random access to decoded pictures: a memory-mapped array, or a listing that is decoded when asked.

    Attributes:
        classes: class names; () = no labels.
        labels: int64 [n], or None.
        names: where each picture came from: its path in the folder, or its name or row in a table.
        fingerprint: sha256 of the data and of the options that change pixels; 64 hexadecimal digits.
        train, heldout: int64 indices, disjoint, sorted.
        skipped: how many pictures could not be used; `skipped.txt` beside the cache lists them with the reasons.
    """

    def __init__(self, index: _Index, stored: Pixels | Listing, config: DataConfig, note: _Skips) -> None:
        self.names, self.classes, self.fingerprint = index.names, index.classes, index.fingerprint
        self.labels = None if index.labels is None else np.array(index.labels, np.int64)
        self.train, self.heldout = _split(index, self.labels, config)
        self.skipped = len(index.skipped)
        self._stored, self._size, self._note = stored, config.size, note
        self._decoder = Decoder(config)
        self._bad: set[int] = set()

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, indices: Sequence[int] | NDArray[Any] | Tensor) -> Tensor:
        """Pictures as evaluation sees them, uint8 [B, S, S, C]: centre crop, no augmentation."""
        raw, _ = next(self.raw([np.asarray(indices, np.int64).reshape(-1)]))
        return torch.from_numpy(centre(raw, self._size))

    def raw(self, plan: Iterable[NDArray[np.int64]]) -> Iterator[tuple[Pixels, NDArray[np.int64]]]:
        """For each array of indices: pixels uint8 [B, P, P, C] and the indices they are of.

        The indices differ from those asked only where a picture that is decoded late turned out to be broken.
        """
        if isinstance(self._stored, np.ndarray):
            for chosen in plan:
                yield np.asarray(self._stored[chosen]), chosen
            return
        if len(self) >= _TRIAL:
            self._decoder.start()
        asked: deque[NDArray[np.int64]] = deque()
        for pixels, reasons in self._decoder.map(self._tasks(self._stored, plan, asked)):
            chosen = asked.popleft()
            yield self._mend(self._stored, chosen, reasons) if any(reasons) else (pixels, chosen)

    def labels_of(self, indices: NDArray[np.int64]) -> Tensor:
        """int64 [B]; zeros without labels."""
        if self.labels is None:
            return torch.zeros(len(indices), dtype=torch.int64)
        return torch.from_numpy(self.labels[indices])

    def close(self) -> None:
        """Let go of the pictures and end the worker processes."""
        self._decoder.close()
        self._stored = np.empty((0, 0, 0, 0), np.uint8)

    def _tasks(
        self, listing: Listing, plan: Iterable[NDArray[np.int64]], asked: deque[NDArray[np.int64]]
    ) -> Iterator[list[Payload | None]]:
        for chosen in plan:
            asked.append(self._replace(chosen))
            yield listing.payloads(asked[-1].tolist())

    def _mend(
        self, listing: Listing, chosen: NDArray[np.int64], reasons: list[str | None]
    ) -> tuple[Pixels, NDArray[np.int64]]:
        """Decode a batch again with each broken picture replaced by the next usable one of its side."""
        while True:
            for index, reason in zip(chosen.tolist(), reasons, strict=True):
                if reason and index not in self._bad:
                    self._bad.add(index)
                    self.skipped += 1
                    self._note.add(self.names[index], reason)
            chosen = self._replace(chosen)  # goes on from where the last attempt ended
            pixels, reasons = decode_many(listing.payloads(chosen.tolist()), self._decoder.config)
            if not any(reasons):
                return pixels, chosen

    def _replace(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self._bad:
            return chosen
        return np.array([self._next_usable(index) for index in chosen.tolist()], np.int64)

    def _next_usable(self, index: int) -> int:
        if index not in self._bad:
            return index
        place = int(np.searchsorted(self.train, index))
        inside = place < len(self.train) and self.train[place] == index
        side = self.train if inside else self.heldout
        place = int(np.searchsorted(side, index))
        for step in range(1, len(side)):
            candidate = int(side[(place + step) % len(side)])
            if candidate not in self._bad:
                return candidate
        raise DataError(f"no usable picture is left: see {self._note.path}")


# --- opening -------------------------------------------------------------------------------------------------


def open_images(
    data: str,
    config: DataConfig,
    folder: Path,
    *,
    seed: int = 0,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> ImageSet:
    """Read a data set, decoding it once into `folder` while it fits in `config.cache_gb`.

    A larger one is decoded anew each time, by worker processes that work ahead; batches are the same either way.
    Of several processes that share `folder`, let one call this first: the others then find the cache.

    Args:
        data: a folder, .parquet or .tar files (a file, a folder or a pattern), a Hub id, or "emoji64".
        config: every option of the data.
        folder: RUN/data: the cache (pixels-*.npy, index.json) and skipped.txt; created.
        seed: chooses which pictures are used when config.limit is smaller than their number; which ones are
            held out does not depend on it.
        say: told in one line each: how fast pictures were decoded, and what was skipped.
        progress: see `Progress`.

    Raises:
        DataError: nothing usable, nothing to hold out, or the data cannot be read; one line.
    """
    background(config)
    run = folder.parent.resolve()
    place = locate(data, folder if run == Path(data).resolve() else run)
    key = _key(place.identity, config, seed)
    kept = _reuse(folder, key, config)
    if kept is not None:
        return kept
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}") from error
    listed = list_place(place, config, folder, seed)
    index = _Index(key, hashlib.sha256(f"{key} {listed.revision}".encode()).hexdigest())
    size = stored_side(config) ** 2 * config.channels
    if isinstance(listed, Listing) and len(listed) * size > config.cache_gb * 1e9:
        return _open_lazily(listed, index, config, folder, say)
    began = time.perf_counter()
    try:
        _fill(listed, index, config, folder, progress)
    except (OSError, atomic.FileError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot write the decoded pictures to {folder}: {reason}") from error
    finally:
        shutil.rmtree(folder / "table", ignore_errors=True)
    images = _open_cached(folder, index, config)
    seconds = time.perf_counter() - began
    say(f"decoded {len(images)} pictures in {seconds:.1f} s ({len(images) / seconds:.0f} images/s)")
    _mention(index.skipped, folder, say)
    return images


def _mention(skipped: Sequence[tuple[str, str]], folder: Path, say: Callable[[str], None]) -> None:
    if skipped:
        first = _line(*skipped[0], ": ")
        say(
            f"skipped {len(skipped)} that cannot be used ({first}); all are listed in {folder / 'skipped.txt'}"
        )


def _key(identity: str, config: DataConfig, seed: int) -> str:
    """sha256 of the data and of every option that changes which pixels are kept."""
    chosen: dict[str, Any] = {name: getattr(config, name) for name in _PIXEL_OPTIONS}
    chosen |= {"seed": seed if config.limit else 0, "format": 1}
    return hashlib.sha256((identity + json.dumps(chosen)).encode()).hexdigest()


def _reuse(folder: Path, key: str, config: DataConfig) -> ImageSet | None:
    """The set in the cache, if it is of this data and these options."""
    try:
        index = _Index(**json.loads((folder / "index.json").read_text(encoding="utf-8")))
        index.classes = tuple(index.classes)
        return _open_cached(folder, index, config) if index.key == key else None
    except DataError:
        raise
    except (OSError, EOFError, ValueError, TypeError, AttributeError):
        return None


def _open_cached(folder: Path, index: _Index, config: DataConfig) -> ImageSet:
    stored = np.load(folder / index.pixels, mmap_mode="r")
    side = stored_side(config)
    if stored.shape != (len(index.names), side, side, config.channels):
        raise ValueError("the cache does not fit its index")
    return ImageSet(index, stored, config, _Skips(folder / "skipped.txt"))


def _open_lazily(
    listed: Listing, index: _Index, config: DataConfig, folder: Path, say: Callable[[str], None]
) -> ImageSet:
    skips = _Skips(folder / "skipped.txt", say)
    _describe(index, listed, [], [None] * len(listed), skips)
    images = ImageSet(index, listed, config, skips)
    for side in (images.train, images.heldout):
        images.pixels(side[:1])  # ends here if no picture is usable
    _mention(index.skipped, folder, say)
    say(f"{len(images)} pictures exceed cache_gb = {config.cache_gb:g}: they are decoded while training")
    return images


def _fill(
    listed: Listing | Stream, index: _Index, config: DataConfig, folder: Path, progress: Progress | None
) -> None:
    """Decode everything into pixels-*.npy, then write index.json that names it; older caches are removed."""
    side = stored_side(config)
    index.pixels = f"pixels-{index.fingerprint[:16]}.npy"
    total = len(listed) if isinstance(listed, Listing) else None
    sweep(folder)
    writer = ArrayWriter(folder / index.pixels, (side, side, config.channels), np.uint8)
    decoder = Decoder(config)
    rows: list[Row] = []
    try:
        outcome = _decode_to(writer, decoder, _chunks(listed, rows), total, config, progress)
        _describe(index, listed, rows, outcome, _Skips(folder / "skipped.txt"))
        writer.finish()
        writer.publish()
    finally:
        writer.abandon()
        decoder.close()
    atomic.write_text(folder / "index.json", json.dumps(asdict(index)))
    for old in folder.glob("pixels-*.npy"):
        if old.name != index.pixels:
            old.unlink(missing_ok=True)


def _chunks(listed: Listing | Stream, rows: list[Row]) -> Iterator[list[Payload | None]]:
    """The encoded pictures in tasks of `_CHUNK`; what a stream says beside them is added to `rows`."""
    if isinstance(listed, Listing):
        for start in range(0, len(listed), _CHUNK):
            yield listed.payloads(range(start, min(start + _CHUNK, len(listed))))
        return
    while chunk := list(itertools.islice(listed.rows, _CHUNK)):
        rows += [row._replace(payload=None) for row in chunk]
        yield [row.payload for row in chunk]


def _decode_to(
    writer: ArrayWriter,
    decoder: Decoder,
    chunks: Iterator[list[Payload | None]],
    total: int | None,
    config: DataConfig,
    progress: Progress | None,
) -> list[str | None]:
    """Write the usable pictures; returns per picture None or why it is not usable."""
    outcome: list[str | None] = []
    began = time.perf_counter()
    if config.workers > 0 and (total is None or total >= _TRIAL):
        decoder.start()
    for pixels, reasons in decoder.map(chunks):
        writer.append(pixels)
        outcome += reasons
        if writer.count * pixels[:1].size > config.cache_gb * 1e9:
            raise DataError(
                f"the stream does not fit in cache_gb = {config.cache_gb:g}: raise it, or set limit"
            )
        if len(outcome) >= _TRIAL and config.workers:
            left = math.inf if total is None else total - len(outcome)
            if left * (time.perf_counter() - began) / len(outcome) > _PATIENCE:
                decoder.start()
        if progress is not None:
            progress(len(outcome), total)
    return outcome


def _describe(
    index: _Index, listed: Listing | Stream, rows: list[Row], outcome: list[str | None], skips: _Skips
) -> None:
    """Fill in names, labels and splits of the usable pictures, and list the others in `skips`."""
    if isinstance(listed, Stream):
        listed = listed.finish(rows)
    good = np.array([reason is None for reason in outcome], bool)
    index.names = list(itertools.compress(listed.names, good))
    index.classes = listed.classes
    index.labels = None if listed.labels is None else listed.labels[good].tolist()
    index.held = None if listed.held is None else listed.held[good].tolist()
    index.skipped = [
        *listed.skipped,
        *((n, r) for n, r in zip(listed.names, outcome, strict=True) if r is not None),
    ]
    index.skipped += [
        (n, "it has no label") for n, v in zip(index.names, index.labels or (), strict=False) if v < 0
    ]
    skips.write(index.skipped)
    if not good.any():
        first = f", the first because: {_line(*index.skipped[0], ': ')}" if index.skipped else ""
        raise DataError(f"no usable picture: {len(index.skipped)} were skipped{first}")


@dataclass
class _Skips:
    """skipped.txt: one line per picture that is not used, its name, a tab and the reason."""

    path: Path
    say: Callable[[str], None] | None = None

    def write(self, skipped: Sequence[tuple[str, str]]) -> None:
        """Replace the list."""
        if skipped:
            atomic.write_text(self.path, "".join(_line(*item) + "\n" for item in skipped))
        else:
            self.path.unlink(missing_ok=True)

    def add(self, name: str, reason: str) -> None:
        """Add one that was found late; the first is mentioned."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(name, reason) + "\n")
        if self.say is not None:
            self.say(
                f"a picture cannot be used ({_line(name, reason, ': ')}); such are listed in {self.path}"
            )
            self.say = None


def _line(name: str, reason: str, between: str = "\t") -> str:
    """One printable line, whatever the name of the file holds."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in name)
    return f"{plain}{between}{reason}".encode("utf-8", "replace").decode()


def _split(
    index: _Index, labels: NDArray[np.int64] | None, config: DataConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted indices of the training and of the held-out pictures; unlabelled ones among labelled are in neither."""
    usable = np.arange(len(index.names)) if labels is None else np.flatnonzero(labels >= 0)
    if len(usable) < 2:
        found = f"found {len(usable)} usable picture{'s' * (len(usable) != 1)}"
        raise DataError(f"{found}: at least 2 are needed, one of them to hold out")
    if index.held is not None:
        held = np.array(index.held, np.int8)[usable] == 1
        if held.all() or not held.any():
            raise DataError(f"the {'training' if held.all() else 'held-out'} split has no usable picture")
    else:
        places = np.array([_place(index.names[i]) for i in usable.tolist()])
        held = places < config.holdout
        held[places.argmin()] = True
        if held.all():
            held[places.argmax()] = False
    return usable[~held].astype(np.int64), usable[held].astype(np.int64)


def _place(name: str) -> float:
    """A stable number in [0, 1) for a name."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:6]) / 2**48
