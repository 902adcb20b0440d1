"""Pictures to batches: the only place where pixels are scaled, both ways.

    data --sources--> encoded pictures --load_image--> uint8 --cache--> ImageSet --batches--> float in [-1, 1]

Shapes: B batch, C channels, H W pixels, S the configured size, P = round(S * scale) the stored side, n pictures.
Every batch is a pure function of (seed, step): nothing here keeps a random state.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor

from vqvae2 import checkpoint
from vqvae2.config import DataConfig
from vqvae2.data.sources import DataError as DataError
from vqvae2.data.sources import Listing, Payload, Row, Stream, list_place, locate
from vqvae2.data.store import ArrayWriter, sweep

Pixels = NDArray[np.uint8]
Progress = Callable[[int, int | None], None]
"""Called with how many pictures are decoded, and of how many (None = unknown)."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF")
_PIXEL_OPTIONS = (
    *("size", "scale", "channels", "background", "crop", "max_pixels"),
    *("limit", "split", "image_column", "label_column"),
)
_CHUNK = 16  # pictures per task of a worker process
_TRIAL = 64  # pictures decoded here before worker processes are worth their start
_PATIENCE = 10.0  # seconds of remaining work that are worth it


# --- scaling -------------------------------------------------------------------------------------------------


def to_float(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, C] in 0..255 to float32 [B, C, H, W] in [-1, 1]."""
    return (
        pixels.permute(0, 3, 1, 2)
        .to(torch.float32, memory_format=torch.contiguous_format)
        .div_(127.5)
        .sub_(1)
    )


def to_uint8(images: Tensor) -> Tensor:
    """Float [B, C, H, W] in [-1, 1], clipped and rounded, to uint8 [B, H, W, C]; the inverse of `to_float`."""
    scaled = images.detach().to(torch.float32).add(1).mul_(127.5).round_().clamp_(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, [B]; both [B, C, H, W] in [-1, 1], so the peak is 2."""
    error = (images.double().clamp(-1, 1) - originals.double()).square().mean((1, 2, 3))
    return 10 * torch.log10(4 / error.clamp_min(1e-10))


def to_pil(images: Tensor) -> list[Image.Image]:
    """Float [B, C, H, W] in [-1, 1] to Pillow pictures: grey, RGB or RGBA for C = 1, 3 or 4.

    Raises:
        DataError: another shape.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3, 4):
        raise DataError(f"expected images [B, 1 or 3 or 4, H, W], found shape {list(images.shape)}")
    arrays = to_uint8(images).cpu().numpy()
    return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]


# --- decoding ------------------------------------------------------------------------------------------------


def load_image(source: bytes | str | Path, config: DataConfig) -> Pixels:
    """Decode one picture: colour, orientation, resize of the short side, centre crop.

    Args:
        source: a file, or the encoded bytes.
        config: size, scale, channels, background and max_pixels are used.

    Returns:
        uint8 [P, P, C] with P = round(size * scale).

    Raises:
        DataError: it is missing, broken, truncated, empty, no picture, or larger than max_pixels; says why.
    """
    try:
        return _decode(source, config)
    except DataError as error:
        raise error if isinstance(source, bytes) else DataError(f"{source}: {error}") from error


def _decode(source: bytes | str | Path, config: DataConfig) -> Pixels:
    """`load_image` whose error is the reason alone."""
    try:
        if not (len(source) if isinstance(source, bytes) else Path(source).stat().st_size):
            raise DataError("zero bytes")
        with (
            _quiet(),
            Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image,
        ):
            width, height = image.size
            if width * height > config.max_pixels:
                raise DataError(f"{width}x{height} pixels, more than max_pixels = {config.max_pixels}")
            side = stored_side(config)
            image.draft(None, (2 * side, 2 * side))  # JPEG: decode smaller
            image.load()
            return _square(_channels(_upright(image), config), side)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError("not a picture (JPEG, PNG, WebP, GIF, BMP or TIFF)") from None
    except Exception as error:  # a broken file may raise anything
        if isinstance(error, OSError) and error.strerror:
            raise DataError(error.strerror) from error
        raise DataError(f"broken: {' '.join(str(error).split()) or type(error).__name__}") from error


def stored_side(config: DataConfig) -> int:
    """P: the side in pixels at which pictures are kept."""
    return round(config.size * config.scale)


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of Pillow, and its own limit of pixels off: ours is checked right after the header."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Image.MAX_IMAGE_PIXELS = None
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data says nothing about the pixels
        return image


def _channels(image: Image.Image, config: DataConfig) -> Image.Image:
    """Any Pillow mode to L, RGB or RGBA; transparent pixels on the background unless alpha is kept."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _deep_grey(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
    if config.channels == 4:
        return image if image.mode == "RGBA" else image.convert("RGB").convert("RGBA")
    if image.mode == "RGBA":
        behind = Image.new("RGBA", image.size, background(config))
        image = Image.alpha_composite(behind, image)
    if config.channels == 1:
        return image if image.mode == "L" else image.convert("RGB").convert("L")
    return image.convert("RGB")


def background(config: DataConfig) -> tuple[int, int, int, int]:
    """The background as RGBA, opaque.

    Raises:
        DataError: no such colour.
    """
    try:
        red, green, blue, *_ = ImageColor.getrgb(config.background)
    except ValueError:
        raise DataError(
            f"background: expected a colour name or #rrggbb, found {config.background!r}"
        ) from None
    return red, green, blue, 255


def _deep_grey(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit or floating-point grey to 8 bits: 65535, or 1.0, becomes 255."""
    values = np.asarray(image).astype(np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    if not np.isfinite(values).all() or values.max() > top:
        raise DataError(f"grey values beyond {top:g} (mode {image.mode}) have no agreed range")
    grey = Image.fromarray(np.rint(values.clip(0, top) * (255 / top)).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
        return Image.merge("LA", (grey, alpha))
    return grey


def _square(image: Image.Image, side: int) -> Pixels:
    """The centre square, resized with antialiasing: uint8 [side, side, C]."""
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    box = (left, top, left + short, top + short)
    image = image.resize((side, side), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    array = np.array(image)  # a copy, writable
    return array[..., None] if array.ndim == 2 else array


def _decode_many(payloads: Sequence[Payload | None], config: DataConfig) -> tuple[Pixels, list[str | None]]:
    """The usable ones, uint8 [k, P, P, C], and per payload None or the reason why it is not usable."""
    found: list[Pixels] = []
    reasons: list[str | None] = []
    for payload in payloads:
        try:
            if payload is None:
                raise DataError("the row holds no picture")
            found.append(_decode(payload, config))
            reasons.append(None)
        except DataError as error:
            reasons.append(str(error))
    side = stored_side(config)
    return np.stack(found) if found else np.empty((0, side, side, config.channels), np.uint8), reasons


# --- worker processes ----------------------------------------------------------------------------------------


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: Any) -> None:
    parent.join()
    os._exit(1)


class Decoder:
    """Decodes lists of payloads in order, in worker processes where that pays, ahead of who reads."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.count = self.count if config.workers < 0 else config.workers
        self.pool: ProcessPoolExecutor | None = None

    def map(self, tasks: Iterable[Sequence[Payload | None]]) -> Iterator[tuple[Pixels, list[str | None]]]:
        """`_decode_many` of each task, in order; up to two tasks per worker are under way."""
        waiting: deque[tuple[Sequence[Payload | None], Future[Any] | None]] = deque()
        for task in tasks:
            waiting.append((task, self._submit(task)))
            while waiting and (waiting[-1][1] is None or len(waiting) > 2 * self.count):
                yield self._result(*waiting.popleft())
        while waiting:
            yield self._result(*waiting.popleft())

    def start(self) -> None:
        """Use worker processes from now on (none when config.workers is 0)."""
        if self.pool is None and self.count:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_start_worker)

    def close(self) -> None:
        """End the worker processes."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
            self.pool = None

    def _submit(self, task: Sequence[Payload | None]) -> Future[Any] | None:
        if self.pool is None:
            return None
        try:
            return self.pool.submit(_decode_many, task, self.config)
        except BrokenProcessPool:
            self._without()
            return None

    def _result(
        self, task: Sequence[Payload | None], future: Future[Any] | None
    ) -> tuple[Pixels, list[str | None]]:
        if future is not None:
            try:
                pixels, reasons = future.result()
                return pixels, reasons
            except BrokenProcessPool:
                self._without()
        return _decode_many(task, self.config)

    def _without(self) -> None:
        """The processes died (a script without a main guard, too little memory): go on in this one."""
        self.close()
        self.count = 0


# --- the set -------------------------------------------------------------------------------------------------


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
        return torch.from_numpy(_centre(raw, self._size))

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
            pixels, reasons = _decode_many(listing.payloads(chosen.tolist()), self._decoder.config)
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
    except (OSError, checkpoint.CheckpointError) as error:
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
    checkpoint.write_text(folder / "index.json", json.dumps(asdict(index)))
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
            checkpoint.write_text(self.path, "".join(_line(*item) + "\n" for item in skipped))
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


# --- batches -------------------------------------------------------------------------------------------------


def batches(  # noqa: PLR0913 - what a step is, in one place
    images: ImageSet,
    indices: Sequence[int] | NDArray[Any],
    config: DataConfig,
    *,
    batch: int,
    seed: int,
    start: int = 0,
    stop: int | None = None,
    augment: bool = True,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches of steps start, start + 1, ... (to stop - 1, or without end).

    Step s is a pure function of (seed, s): the epochs, each a permutation of `indices`, are laid end to end and
    cut into batches, and what augmentation does depends on the seed and the place in that sequence. So a
    training that resumes at step s sees what it would have seen.

    Args:
        batch: pictures per step over all processes; process `rank` of `world` gets its share of each.
        augment: flip, shift and random crop as `config` says; otherwise the centre crop.

    Yields:
        float32 [b, C, S, S] in [-1, 1] and int64 labels [b] (zeros without classes).

    Raises:
        DataError: no indices, or fewer pictures per step than processes.
    """
    chosen = np.asarray(indices, np.int64).reshape(-1)
    if not len(chosen) or not 0 <= rank < world or batch < world:
        raise DataError(
            f"cannot make batches of {batch} from {len(chosen)} pictures for process {rank} of {world}"
        )
    low, high = rank * batch // world, (rank + 1) * batch // world

    def places() -> Iterator[NDArray[np.int64]]:
        for step in itertools.count(start) if stop is None else range(start, stop):
            yield np.arange(step * batch + low, step * batch + high)

    shuffle = Shuffle(chosen, seed)
    raws = images.raw(shuffle(place) for place in places())
    for place, (raw, actual) in zip(places(), raws, strict=False):
        pixels = _augment(raw, place, seed, config) if augment else _centre(raw, config.size)
        yield to_float(torch.from_numpy(pixels)), images.labels_of(actual)


def sequential(
    images: ImageSet,
    indices: Sequence[int] | NDArray[Any],
    config: DataConfig,
    *,
    batch: int,
    copies_seed: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The pictures in order, in batches of `batch` (the last may be smaller), once.

    Args:
        copies_seed: None = no augmentation; a number augments each picture as a function of it and the index.

    Yields:
        As `batches`.
    """
    chosen = np.asarray(indices, np.int64).reshape(-1)
    for raw, actual in images.raw(chosen[at : at + batch] for at in range(0, len(chosen), batch)):
        pixels = (
            _centre(raw, config.size) if copies_seed is None else _augment(raw, actual, copies_seed, config)
        )
        yield to_float(torch.from_numpy(pixels)), images.labels_of(actual)


class Shuffle:
    """The endless sequence of seeded permutations of some indices, by place."""

    def __init__(self, indices: NDArray[np.int64], seed: int) -> None:
        self.indices, self.seed = indices, seed
        self.epochs: dict[int, NDArray[np.int64]] = {}

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        epochs, within = np.divmod(places, len(self.indices))
        found = np.empty(len(places), np.int64)
        for epoch in np.unique(epochs).tolist():
            found[epochs == epoch] = self._epoch(epoch)[within[epochs == epoch]]
        return found

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self.epochs:
            self.epochs = {key: value for key, value in self.epochs.items() if key == epoch - 1}
            self.epochs[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.indices)
        return self.epochs[epoch]


_Shuffle = Shuffle  # the name under which others import it until they use the new one


def _centre(raw: Pixels, size: int) -> Pixels:
    """The centre of [b, P, P, C] as a copy [b, S, S, C]."""
    margin = (raw.shape[1] - size) // 2
    return raw[:, margin : margin + size, margin : margin + size].copy()


def _augment(raw: Pixels, keys: NDArray[np.int64], seed: int, config: DataConfig) -> Pixels:
    """Random crop, shift (edges repeated) and flip of [b, P, P, C], each picture's by (seed, its key)."""
    margin = raw.shape[1] - config.size
    draws = _uniform(seed, keys, 5)
    mirrored = draws[:, 4] < (0.5 if config.flip else 0)
    if not config.shift and not (margin and config.crop == "random"):
        pixels = _centre(raw, config.size)
        pixels[mirrored] = pixels[mirrored, :, ::-1]
        return pixels
    corner = np.full((len(raw), 2), margin // 2)
    if config.crop == "random":
        corner = (draws[:, 0:2] * (margin + 1)).astype(np.int64)
    corner = corner + (draws[:, 2:4] * (2 * config.shift + 1)).astype(np.int64) - config.shift
    reach = (corner[:, :, None] + np.arange(config.size)).clip(0, raw.shape[1] - 1)  # [b, 2, S]
    rows, columns = reach[:, 0], reach[:, 1]
    return _take(raw, rows, np.where(mirrored[:, None], columns[:, ::-1], columns))


def _take(raw: Pixels, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Pixels:
    """Pixels at rows [b, S] and columns [b, S] of each picture [b, P, P, C]: [b, S, S, C]."""
    count, side, _, channels = raw.shape
    flat = (
        np.ascontiguousarray(raw).reshape(-1).view(np.dtype((np.void, channels)))
    )  # whole pixels: 2.5 times faster
    places = ((np.arange(count)[:, None] * side + rows) * side)[:, :, None] + columns[:, None, :]
    taken: Pixels = np.take(flat, places).view(np.uint8)
    return taken.reshape(*places.shape, channels)


def _uniform(seed: int, keys: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """[b, count] numbers in [0, 1), each a function of the seed, the key and the column (splitmix64)."""
    state = _mix(_mix(np.array([seed], np.uint64)) + keys.astype(np.uint64))
    bits: NDArray[np.uint64] = _mix(state[:, None] + np.arange(count, dtype=np.uint64)) >> np.uint64(11)
    return bits / 2.0**53


def _mix(value: Any) -> Any:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
