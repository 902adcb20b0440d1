"""Codes to bytes and back under a prior, many tiles of many images in one batch, by the same raster loop that samples.

    encoding: scan asks for the code of a position -> the known one is encoded and returned
    decoding: scan asks for the code of a position -> the range decoder is asked

So both compute the same logits in the same order, in float64. A position whose logits are too near to a rounding edge
(`frequencies.EDGE`) is coded without the prior, and the file lists it. Where nothing is stored (`Layout.wanted`) both take the
most frequent code, which costs nothing.

Shapes: B lanes (tiles of some images), T tiles of an image, N positions of a tile, K codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.codec.errors import CodecError
from vqvae2.codec.frequencies import frequencies, on_grid, uniform
from vqvae2.codec.layout import Layout
from vqvae2.codec.range_coder import Decoder, Encoder
from vqvae2.prior.hierarchy import HierarchicalPrior
from vqvae2.prior.scan import scan

LANES = 64
"""Tiles that are coded in one batch, at most; the order of the codes in a stream of a larger image depends on it."""


class Side(Protocol):
    """One image's stream of one level, while it is written or read."""

    def listed(self, tiles: slice, position: int, near: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of these tiles code this position without the prior; `near` [m]: the logits are near to an edge."""

    def codes(
        self, tiles: NDArray[np.int64], position: int, weights: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """The codes [m] of these tiles at this position, given the frequencies [m, K]."""


class Writer:
    """Encodes known codes.

    Args:
        known: [T, N], -1 where nothing is stored.
    """

    def __init__(self, known: NDArray[np.int64]) -> None:
        self.known, self.coder = known, Encoder()
        self._near = np.zeros(known.shape, bool)

    def listed(self, tiles: slice, position: int, near: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """As `Side.listed`: notes the positions that are near to an edge."""
        self._near[tiles, position] = near
        return near

    def codes(
        self, tiles: NDArray[np.int64], position: int, weights: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """As `Side.codes`."""
        known: NDArray[np.int64] = self.known[tiles, position]
        self.coder.encode(known, weights)
        return known

    def positions(self) -> tuple[int, ...]:
        """What is to be listed in the file: tile x N + position, ascending."""
        return tuple(np.flatnonzero(self._near).tolist())


class Reader:
    """Decodes a stream.

    Args:
        data: the stream.
        shape: (T, N).
        positions: as `Writer.positions`.

    Raises:
        CodecError: positions that do not exist.
    """

    def __init__(self, data: bytes, shape: tuple[int, int], positions: Sequence[int]) -> None:
        self.coder = Decoder(data)
        self._near = np.zeros(shape[0] * shape[1], bool)
        if positions and max(positions) >= len(self._near):
            raise CodecError("its header is damaged: it lists a position that does not exist")
        self._near[list(positions)] = True
        self._near = self._near.reshape(shape)

    def listed(self, tiles: slice, position: int, near: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """As `Side.listed`: what the file lists."""
        listed: NDArray[np.bool_] = self._near[tiles, position]
        return listed

    def codes(
        self, tiles: NDArray[np.int64], position: int, weights: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """As `Side.codes`."""
        return self.coder.decode(weights)


def known_labels(labels: Sequence[int | None] | None, n: int, classes: int) -> list[int | None]:
    """The class of each of n images, None for "no label", whose number is `classes`; all None without classes.

    Raises:
        CodecError: not as many labels as images.
    """
    if labels is None or not classes:
        return [None] * n
    if len(labels) != n:
        raise CodecError(f"expected a label for each of {n} images, found {len(labels)}")
    return [None if label == classes else label for label in labels]


def code_level(
    prior: HierarchicalPrior,
    level: int,
    layouts: Sequence[Layout],
    sides: Sequence[Side],
    coarser: Sequence[Sequence[NDArray[np.int64]]],
    labels: Sequence[int | None],
) -> list[NDArray[np.int64]]:
    """Write or read one level of several images.

    Args:
        prior: in float64, in eval mode.
        level: 0 is the coarsest.
        layouts, sides, labels: of each image; a label of None is "no label".
        coarser: of each image, the tiles [T, N] of every coarser level, as this function returned them.

    Returns:
        Of each image the tiles [T, N], with a code at every position.
    """
    own = prior.level(level)
    device = own.place_rows.device
    result = [np.zeros((layout.count, own.positions), np.int64) for layout in layouts]
    wanted = [layout.wanted(level) for layout in layouts]
    for lanes in _batches(layouts):
        above = tuple(
            torch.from_numpy(np.concatenate([coarser[image][index][tiles] for image, tiles in lanes]))
            .reshape(-1, *prior.geometry.grids[index])
            .to(device)
            for index in range(level)
        )
        counts = [tiles.stop - tiles.start for _, tiles in lanes]
        classes = [
            prior.classes if (label := labels[image]) is None else label
            for (image, _), count in zip(lanes, counts, strict=True)
            for _ in range(count)
        ]
        known = prior.check_labels(torch.tensor(classes), sum(counts)) if prior.classes else None
        batch = _Batch(lanes, [sides[image] for image, _ in lanes], [wanted[image] for image, _ in lanes])
        with torch.no_grad():
            codes = scan(own, sum(counts), own.context(above, known), batch).flatten(1).cpu().numpy()
        for (image, tiles), begin in zip(lanes, np.cumsum([0, *counts]), strict=False):
            result[image][tiles] = codes[begin : begin + tiles.stop - tiles.start]
    return result


class _Batch:
    """What `scan` asks for the codes of a position, for the tiles of several images.

    Args:
        lanes: the images and the range of tiles of each.
        sides: of each of these images.
        wanted: of each of these images, bool [T, N].
    """

    def __init__(
        self,
        lanes: Sequence[tuple[int, slice]],
        sides: Sequence[Side],
        wanted: Sequence[NDArray[np.bool_]],
    ) -> None:
        self.parts: list[tuple[slice, slice, Side, NDArray[np.bool_]]] = []
        begin = 0
        for (_, tiles), side, inside in zip(lanes, sides, wanted, strict=True):
            end = begin + tiles.stop - tiles.start
            self.parts.append((slice(begin, end), tiles, side, inside))
            begin = end

    def __call__(self, position: int, logits: Tensor) -> Tensor:
        """As `scan.Choose`."""
        below, near = on_grid(logits)
        weights = frequencies(below)
        listed = np.concatenate(
            [side.listed(tiles, position, near[own]) for own, tiles, side, _ in self.parts]
        )
        if listed.any():
            weights[listed] = uniform(weights.shape[1])
        codes = weights.argmax(1)
        for own, tiles, side, wanted in self.parts:
            inside = np.flatnonzero(wanted[tiles, position])
            if len(inside):
                chosen = side.codes(inside + tiles.start, position, weights[own][inside])
                codes[own.start + inside] = chosen
        return torch.from_numpy(codes).to(logits.device)


def _batches(layouts: Sequence[Layout]) -> Iterator[list[tuple[int, slice]]]:
    """All tiles of all images in batches of at most `LANES`; 64 of a larger image at a time, in order."""
    batch: list[tuple[int, slice]] = []
    room = LANES
    for image, layout in enumerate(layouts):
        for begin in range(0, layout.count, LANES):
            tiles = slice(begin, min(begin + LANES, layout.count))
            count = tiles.stop - tiles.start
            if count > room:
                yield batch
                batch, room = [], LANES
            batch.append((image, tiles))
            room -= count
    if batch:
        yield batch
