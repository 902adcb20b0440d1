"""Pictures to batches: the only place where pixels are scaled, both ways.

    data --sources--> encoded pictures --load_image--> uint8 --cache--> ImageSet --batches--> float in [-1, 1]

Shapes: B batch, C channels, H W pixels, S the configured size, P = round(S * scale) the stored side, n pictures.
Every batch is a pure function of (seed, step): nothing here keeps a random state.
"""

from __future__ import annotations

import hashlib
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
from contextlib import contextmanager, suppress
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
from vqvae2.data.sources import Listing, Payload, Stream, list_place, locate

Pixels = NDArray[np.uint8]
Progress = Callable[[int, int | None], None]
"""Called with how many pictures are decoded, and of how many (None = unknown)."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF")
_CHUNK = 16  # pictures per task of a worker process
_TRIAL = 64  # pictures decoded here before worker processes are worth their start
_PATIENCE = 4.0  # seconds of remaining work that are worth it


# --- scaling -------------------------------------------------------------------------------------------------


def to_float(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, C] in 0..255 to float32 [B, C, H, W] in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Float [B, C, H, W] in [-1, 1], clipped and rounded, to uint8 [B, H, W, C]; the inverse of `to_float`."""
    scaled = images.detach().to(torch.float32).add(1).mul_(127.5).round_().clamp_(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


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
        if not (len(source) if isinstance(source, bytes) else os.path.getsize(source)):
            raise DataError("zero bytes")
        with _quiet(), Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > config.max_pixels:
                raise DataError(f"{width}x{height} pixels, more than max_pixels = {config.max_pixels}")
            side = stored_side(config)
            image.draft(None, (2 * side, 2 * side))  # type: ignore[no-untyped-call]  # JPEG: decode smaller
            image.load()
            return _square(_channels(_upright(image), config), side)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError("not a picture (JPEG, PNG, WebP, GIF, BMP or TIFF)") from None
    except Exception as error:  # a broken file may raise anything
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise DataError(f"broken: {reason or type(error).__name__}") from error


def stored_side(config: DataConfig) -> int:
    """P: the side in pixels at which pictures are kept."""
    return max(config.size, round(config.size * config.scale))


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
        raise DataError(f"background: expected a colour name or #rrggbb, found {config.background!r}") from None
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
    array = np.asarray(image)
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
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


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
            return self._without()

    def _result(self, task: Sequence[Payload | None], future: Future[Any] | None) -> tuple[Pixels, list[str | None]]:
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


class ImageSet:
    """Random access to decoded pictures: a memory-mapped array, or a listing that is decoded when asked.

    Attributes:
        classes: class names; () = no labels.
        labels: int64 [n], or None.
        names: where each picture came from: its path in the folder, or its name or row in a table.
        fingerprint: sha256 of the data and of the options that change pixels.
        train, heldout: int64 indices, disjoint, sorted.
        skipped: how many pictures could not be used.
    """

    def __init__(self, config: DataConfig, names: Sequence[str], fingerprint: str, stored: Pixels | Listing) -> None:
        self.config, self.names, self.fingerprint = config, names, fingerprint
        self.classes: tuple[str, ...] = ()
        self.labels: NDArray[np.int64] | None = None
        self.train = self.heldout = np.empty(0, np.int64)
        self.skipped = 0
        self._stored = stored
        self._bad: dict[int, str] = {}
        self._decoder = Decoder(config)

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, indices: Sequence[int] | NDArray[Any] | Tensor) -> Tensor:
        """Pictures as evaluation sees them, uint8 [B, S, S, C]: centre crop, no augmentation."""
        chosen = np.asarray(indices, np.int64).reshape(-1)
        raw, _ = next(self.raw([chosen]))
        return torch.from_numpy(_centre(raw, self.config.size))

    def raw(self, plan: Iterable[NDArray[np.int64]]) -> Iterator[tuple[Pixels, NDArray[np.int64]]]:
        """For each array of indices: pixels uint8 [B, P, P, C] and the indices they are of.

        The indices differ from those asked only where a picture turned out to be broken after the set was opened.
        """
        for chosen in plan:
            assert isinstance(self._stored, np.ndarray)
            yield self._stored[chosen], chosen

    def labels_of(self, indices: NDArray[np.int64]) -> Tensor:
        """int64 [B]; zeros without labels."""
        if self.labels is None:
            return torch.zeros(len(indices), dtype=torch.int64)
        return torch.from_numpy(self.labels[indices])

    def close(self) -> None:
        """Let go of the files and end the worker processes."""
        self._decoder.close()
