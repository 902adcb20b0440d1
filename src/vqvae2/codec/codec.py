"""`Codec`: images to bytes and back, with one trained model.

    images --autoencoder--> Codes --packed or under the prior--> streams, with a header
    bytes --header--> streams --> Codes --check--> autoencoder --> images

Shapes: C channels, H W image size, h w the grid of a level, T tiles, N positions of a tile.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codec.container import DIGEST, Header, Mode, agree, code_checks, least_bytes, read_header
from vqvae2.codec.errors import CodecError
from vqvae2.codec.halo import decode_large, encode_large
from vqvae2.codec.layout import Layout, alike, pad
from vqvae2.codec.packed import pack, packed_size, unpack
from vqvae2.codec.prior_coding import LANES, Reader, Writer, code_level, known_labels
from vqvae2.codes import Codes, Geometry
from vqvae2.config.sampling import Sampling
from vqvae2.data.pixels import as_tensor, finite
from vqvae2.files.tensor_file import digest
from vqvae2.prior.captured import StepGraphs
from vqvae2.prior.hierarchy import HierarchicalPrior

MAX_PIXELS = 2**25
"""Pixels of an image, at most, unless a caller allows more."""
_PIXELS = 2**22  # that the autoencoder encodes or decodes at a time, at least one image

Grids = list[NDArray[np.int64]]
"""The codes of one image, [h, w] per level, coarsest first."""


@dataclass(frozen=True)
class Decompressed:
    """The codes of a file.

    Attributes:
        layout: size, grids and tiles.
        label: the class number, None without one.
        mode: how it was compressed.
        grids: the codes of the levels that the file holds, coarsest first; fewer than the model has if the file is cut off.
        tiles: the same per level as tiles [T, N], of a file coded by the prior; [] of a packed one.
    """

    layout: Layout
    label: int | None
    mode: Mode
    grids: Grids
    tiles: Grids


class Codec:
    """Compresses with one trained model.

    Args:
        autoencoder: in eval mode.
        shape: height and width in px of the images that it was trained on.
        prior: in eval mode; None can only pack.
    """

    def __init__(
        self, autoencoder: VQVAE, shape: tuple[int, int], prior: HierarchicalPrior | None = None
    ) -> None:
        self.autoencoder, self.shape = autoencoder, shape
        self._prior = prior
        self.geometry: Geometry = autoencoder.geometry(*shape)

    @property
    def levels(self) -> int:
        """L."""
        return self.geometry.levels

    @cached_property
    def prior(self) -> HierarchicalPrior:
        """The prior in float64, on the CPU if its device has no float64.

        Raises:
            CodecError: there is none.
        """
        if self._prior is None:
            raise CodecError(
                "the priors are not trained yet: only the mode packed (--mode packed) is possible"
            )
        exact = copy.deepcopy(self._prior).requires_grad_(False)
        if next(exact.parameters()).device.type == "mps":
            exact = exact.to("cpu")
        return exact.double().eval()

    def digest(self, mode: Mode) -> bytes:
        """The first bytes of the digest of the weights that a file of this mode depends on.

        Raises:
            CodecError: the mode is "prior", and there is none.
        """
        return self._whole_digest if mode == "prior" else self._packed_digest

    @cached_property
    def _packed_digest(self) -> bytes:
        return self._shortened(digest(self.autoencoder.state_dict()))

    @cached_property
    def _whole_digest(self) -> bytes:
        if self._prior is None:
            raise CodecError("it was compressed under the priors, which are not trained yet")
        return self._shortened(digest(self.autoencoder.state_dict()), digest(self._prior.state_dict()))

    def _shortened(self, *digests: str) -> bytes:
        return hashlib.sha256(f"{self.shape} {' '.join(digests)}".encode()).digest()[:DIGEST]

    # --- images to bytes -----------------------------------------------------------------------------------------

    def encode(self, images: Sequence[Tensor]) -> list[tuple[Layout, Grids]]:
        """The layout and the codes of images, each [C, H, W] in [-1, 1] and of any size.

        Raises:
            CodecError: other channels, or more than `MAX_PIXELS` pixels.
            DataError: no tensors or arrays, or a value that is not finite, or clearly outside [-1, 1].
        """
        channels, images = self.autoencoder.config.channels, [as_tensor(image) for image in images]
        for image in images:
            if image.ndim != 3 or image.shape[0] != channels or not image.numel():
                raise CodecError(f"expected images [{channels}, H, W], found shape {tuple(image.shape)}")
            finite(image)
        device = next(self.autoencoder.parameters()).device
        layouts = [self.layout((int(image.shape[1]), int(image.shape[2])), MAX_PIXELS) for image in images]
        result: list[tuple[Layout, Grids]] = []
        for some in _together([(layout, self.levels) for layout in layouts]):
            layout = layouts[some.start]
            batch = torch.stack([pad(image, layout) for image in images[some]]).to(device)
            levels = [
                level.cpu().numpy().astype(np.int64) for level in encode_large(self.autoencoder, batch).levels
            ]
            result += [(layout, [level[index] for level in levels]) for index in range(len(batch))]
        return result

    def compress(
        self,
        images: Sequence[Tensor],
        labels: Sequence[int | None] | None = None,
        mode: Mode = "prior",
    ) -> list[bytes]:
        """Compress images, many in one batch, and decode the files as a check.

        Args:
            images: each [C, H, W] in [-1, 1], of any size.
            labels: the class number of each, on which the prior is conditioned and which the file holds; None, or the number of classes, is
                "no label". Without a prior, and without classes, they are not used.
            mode: "prior", or "packed", which needs none.

        Raises:
            CodecError: see `encode` and `write`; or a file does not decode to its codes, which would be an error of this program.
        """
        encoded = self.encode(images)
        files = self.write(encoded, labels, mode)
        self.read_back(files, encoded)
        return files

    def write(
        self,
        encoded: Sequence[tuple[Layout, Grids]],
        labels: Sequence[int | None] | None = None,
        mode: Mode = "prior",
    ) -> list[bytes]:
        """The files of `compress` before they are checked, of codes that `encode` returned; `read_back` checks them.

        Args:
            labels, mode: see `compress`.

        Raises:
            CodecError: no prior; another mode; not as many labels as images.
            ConfigError: no label for a prior that never learned to do without; such files of former versions are still read.
        """
        if mode not in get_args(Mode):
            raise CodecError(f"expected the mode {' or '.join(get_args(Mode))}, found {mode!r}")
        known: list[int | None] = [None] * len(encoded)
        if mode == "prior":
            known = known_labels(labels, len(encoded), self.prior.classes)
            if None in known:
                self.prior.config.check_unlabelled()
            streams, listed = self._under_the_prior(encoded, known)
        else:
            streams = [
                [pack(grid.reshape(-1), k) for grid, k in zip(grids, self.geometry.vocabulary, strict=True)]
                for _, grids in encoded
            ]
            listed = [()] * len(encoded)
        files = []
        for (layout, grids), label, own, positions in zip(encoded, known, streams, listed, strict=True):
            size = (layout.height, layout.width)
            header = Header(
                mode=mode,
                digest=self.digest(mode),
                size=None if size == self.shape else size,
                label=label,
                lengths=tuple(map(len, own)) if mode == "prior" else (),
                listed=positions,
                checks=code_checks(grids, mode, size, label),
            )
            files.append(header.pack() + b"".join(own))
        return files

    def read_back(
        self, files: Sequence[bytes], encoded: Sequence[tuple[Layout, Grids]]
    ) -> list[Decompressed]:
        """What `decompress` returns of the files, after a check that these are the codes that were written.

        Raises:
            CodecError: a file does not decode to its codes, which would be an error of this program.
        """
        found = self.decompress(files)
        for (_, grids), one in zip(encoded, found, strict=True):
            if len(one.grids) != self.levels or not all(map(np.array_equal, grids, one.grids)):
                raise CodecError("a file does not decode to its codes; please report this")
        return found

    def _under_the_prior(
        self, encoded: Sequence[tuple[Layout, Grids]], labels: Sequence[int | None]
    ) -> tuple[list[list[bytes]], list[tuple[tuple[int, ...], ...]]]:
        """The streams and the listed positions of each image, per level."""
        layouts = [layout for layout, _ in encoded]
        streams: list[list[bytes]] = [[] for _ in encoded]
        listed: list[tuple[tuple[int, ...], ...]] = [()] * len(encoded)
        coarser: list[list[NDArray[np.int64]]] = [[] for _ in encoded]
        for level in range(self.levels):
            writers = [Writer(layout.split(grids[level], level)) for layout, grids in encoded]
            tiles = code_level(self.prior, level, layouts, writers, coarser, labels)
            for image, (writer, layout) in enumerate(zip(writers, layouts, strict=True)):
                streams[image].append(writer.coder.finish().ljust(least_bytes(layout.stored(level)), b"\0"))
                listed[image] = (*listed[image], writer.positions())
                coarser[image].append(tiles[image])
        return streams, listed

    # --- bytes to images -----------------------------------------------------------------------------------------

    def decompress(self, files: Sequence[bytes], max_pixels: int = MAX_PIXELS) -> list[Decompressed]:
        """The codes of compressed images, many in one batch; of a file that is cut off, those of the levels that it holds.

        Raises:
            CodecError: a file that is no compressed image, damaged, of another model, or larger than `max_pixels`.
        """
        opened = [self._open(data, max_pixels) for data in files]
        found = [Decompressed(layout, header.label, header.mode, [], []) for header, layout, _ in opened]
        for level in range(self.levels):
            held = [image for image, (_, _, streams) in enumerate(opened) if level < len(streams)]
            ours = [image for image in held if found[image].mode == "prior"]
            for image in held:
                if found[image].mode == "packed":
                    _, layout, streams = opened[image]
                    codes = unpack(streams[level], layout.stored(level), self.geometry.vocabulary[level])
                    found[image].grids.append(codes.reshape(layout.grid(level)))
            if ours:
                self._read_level(level, [opened[image] for image in ours], [found[image] for image in ours])
        for (header, layout, _), one in zip(opened, found, strict=True):
            checks = code_checks(one.grids, header.mode, (layout.height, layout.width), header.label)
            if not agree(checks, header):
                raise CodecError(
                    "its codes do not match their check: it is damaged, or this machine computes with too little precision"
                )
        return found

    def _read_level(
        self, level: int, opened: Sequence[tuple[Header, Layout, list[bytes]]], found: Sequence[Decompressed]
    ) -> None:
        """Decode one level of files of the prior; its codes are appended to `found`."""
        readers = [
            Reader(
                streams[level],
                (layout.count, self.geometry.positions[level]),
                header.listed[level] if header.listed else (),
            )
            for header, layout, streams in opened
        ]
        layouts, labels = [one.layout for one in found], [one.label for one in found]
        tiles = code_level(self.prior, level, layouts, readers, [one.tiles for one in found], labels)
        for one, own in zip(found, tiles, strict=True):
            one.tiles.append(own)
            one.grids.append(one.layout.join(own, level))

    def _open(self, data: bytes, max_pixels: int) -> tuple[Header, Layout, list[bytes]]:
        """The header, the layout, and the streams of the levels that are there in full."""
        header, begin = read_header(data, self.levels, self.digest)
        layout = self.layout(header.size or self.shape, max_pixels)
        if header.mode == "prior":
            classes = self.prior.classes
            if header.label is not None and not header.label < classes:
                raise CodecError(f"its header is damaged: class {header.label} of {classes}")
            lengths = header.lengths
            if any(length < least_bytes(layout.stored(level)) for level, length in enumerate(lengths)):
                raise CodecError("its header is damaged: its streams are too short for its size")
        else:
            sizes = zip(range(self.levels), self.geometry.vocabulary, strict=True)
            lengths = tuple(packed_size(layout.stored(level), k) for level, k in sizes)
        if len(data) > begin + sum(lengths):
            raise CodecError("it is damaged: there are bytes after its end")
        streams = []
        for length in lengths:
            stream = data[begin : begin + length]
            if len(stream) < length:
                break
            streams.append(stream)
            begin += length
        if not streams:
            raise CodecError("it is cut off within its coarsest level")
        return header, layout, streams

    def prefixes(self, data: bytes) -> list[int]:
        """The bytes up to the end of each level, of a file that is not cut off: where it may be cut.

        Raises:
            CodecError: as `decompress`.
        """
        _, _, streams = self._open(data, MAX_PIXELS)
        ends = np.cumsum([len(data) - sum(map(len, streams)), *map(len, streams)])
        return [int(end) for end in ends[1:]]

    def fill(self, found: Decompressed, seed: int = 0, sampling: Sampling | None = None) -> Decompressed:
        """Draw the levels that a file that is cut off lacks from the prior, given those that it holds.

        Args:
            seed: of the draw; tile i of a seed is the same whatever the file's other tiles.
            sampling: None is the model's own distribution.

        Raises:
            CodecError: no prior.
        """
        if self._prior is None:
            raise CodecError("the priors are not trained yet, so nothing can be drawn")
        if len(found.grids) == self.levels:
            return found
        layout = found.layout
        known = found.tiles or [layout.split(grid, level) for level, grid in enumerate(found.grids)]
        parts, graphs = [], StepGraphs()
        for begin in range(0, layout.count, LANES):
            numbers = list(range(begin, min(begin + LANES, layout.count)))
            given = Codes(
                tuple(
                    torch.from_numpy(tiles[numbers]).reshape(-1, *grid)
                    for tiles, grid in zip(known, self.geometry.grids, strict=False)
                )
            )
            labels = None if found.label is None else torch.full((len(numbers),), found.label)
            parts.append(self._prior.sample(numbers, labels, sampling, seed=seed, given=given, graphs=graphs))
        drawn = [level.flatten(1).cpu().numpy() for level in Codes.cat(parts).levels]
        more = [layout.join(drawn[level], level) for level in range(len(found.grids), self.levels)]
        return Decompressed(layout, found.label, found.mode, [*found.grids, *more], drawn)

    def decode(self, found: Sequence[Decompressed], decoder: VQVAE | None = None) -> list[Tensor]:
        """The images [C, H, W] in [-1, 1] of codes, on the CPU.

        Levels that are missing are replaced by their mean code, which is what the plain decoder has learned.

        Args:
            decoder: decodes images with all levels; None is the autoencoder itself.
        """
        device = next(self.autoencoder.parameters()).device
        images: list[Tensor] = []
        for some in _together([(one.layout, len(one.grids)) for one in found]):
            layout, held = found[some.start].layout, len(found[some.start].grids)
            levels = [
                torch.from_numpy(np.stack([one.grids[level] for one in found[some]]))
                if level < held
                else torch.zeros(len(found[some]), *layout.grid(level), dtype=torch.int64)
                for level in range(self.levels)
            ]
            model = decoder if decoder is not None and held == self.levels else self.autoencoder
            decoded = decode_large(model, Codes(tuple(levels)).to(device), held).cpu()
            images += [image[:, : layout.height, : layout.width] for image in decoded]
        return images

    def layout(self, size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> Layout:
        """The layout of an image of (height, width) px.

        Raises:
            CodecError: it has more than `max_pixels` pixels, or its tiles, if it has several, cover more than four times as many.
        """
        layout, text = Layout(*size, self.shape, self.geometry), f"{size[1]}x{size[0]} pixels"
        if layout.pixels > max_pixels:
            raise CodecError(f"{text} are more than the {max_pixels} that are allowed")
        if layout.count > 1 and layout.covered > 4 * max_pixels:
            raise CodecError(f"{text} need {layout.count} tiles, more than {max_pixels} pixels may need")
        return layout


def _together(keys: Sequence[tuple[Layout, int]]) -> Iterator[slice]:
    """Runs of equal layouts and numbers of levels, at most `LANES` long, and of at most `_PIXELS` pixels or one image."""
    return alike(keys, lambda key: min(LANES, _PIXELS // key[0].pixels))
