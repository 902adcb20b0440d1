"""How small the run's compressed files are, and how large those of other formats are that look as good.

    held-out images --codec--> files --> bytes, PSNR, perceptual distance
    the same images --JPEG, WebP, AVIF, JPEG XL at 24 qualities--> the smallest file of each image that is at least as near to it

Shapes: n images, C channels, H W the size of an image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.autoencoder.perceptual import PerceptualDistance
from vqvae2.codec.codec import Codec, Decompressed
from vqvae2.codec.layout import alike
from vqvae2.config.models import DataConfig
from vqvae2.config.training import LEAST_COMPARED
from vqvae2.data.decoding import load_whole
from vqvae2.data.folder_files import list_folder
from vqvae2.data.pixels import psnr, to_float, to_uint8
from vqvae2.errors import UserError
from vqvae2.evaluate.context import Context
from vqvae2.evaluate.image_metrics import (
    distance_to_aims,
    multiscale_similarity,
    perceptual_aims,
    perceptual_distance,
)
from vqvae2.evaluate.other_codecs import OtherCodec, other_codecs
from vqvae2.evaluate.parts.base import Part, PartResult, Picture, Plot
from vqvae2.evaluate.parts.drawing import SHOWN, sheet
from vqvae2.evaluate.plot import Curve
from vqvae2.files.run_folder import RunFolder

_IMAGES = 96  # held-out images, at most
_CUT = 256  # px of the middle of a large image that is shown, and of which a perceptual distance is computed
_LARGE = (
    2**18
)  # pixels of an image from which that is done, and from which other formats take faster settings
_PIXELS = 2**17  # that are encoded, decoded and measured at a time, at least one image

Measured = dict[str, NDArray[np.float64]]
"""Of each of some files: "bytes", "psnr" and, if there are weights, "perceptual"."""


class _Files(Sequence[Tensor]):
    """The images [C, H, W] of some files, each read whenever it is needed: large ones would not fit into memory together."""

    def __init__(self, files: Sequence[Path], data: DataConfig) -> None:
        self._files, self._data = files, data

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, at: int) -> Tensor: ...
    @overload
    def __getitem__(self, at: slice) -> list[Tensor]: ...
    def __getitem__(self, at: int | slice) -> Tensor | list[Tensor]:
        if isinstance(at, slice):
            return [self[image] for image in range(len(self))[at]]
        return to_float(torch.from_numpy(load_whole(self._files[at], self._data)[None]))[0]


def measure(context: Context) -> PartResult:
    """The first held-out images, `_IMAGES` at most or `n` if that is less, with the class of each; or the images of a folder."""
    run = context.run
    assert run is not None
    originals, labels = _originals(context)
    distance = context.perceptual
    codec = Codec(run.autoencoder, run.config.data.shape, run.prior)
    result = PartResult()
    sizes = [(int(image.shape[1]), int(image.shape[2])) for image in originals]
    least = min(side for size in sizes for side in size)
    if distance is not None and (least < LEAST_COMPARED or run.config.data.channels not in (1, 3, 4)):
        distance = None
        result.warnings.append(
            f"no perceptual distance: it needs sides of {LEAST_COMPARED} px and 1, 3 or 4 channels"
        )
    with context.reporter.track("compression", len(originals), unit="images") as tracker:
        rows, aims, shown = _own(context, codec, originals, sizes, labels, distance)
        curves: dict[str, Curve] = {}
        for name, own in aims.items():
            curves[name] = [(float(own["bytes"].mean()), float(own["psnr"].mean()))]
        best = aims["vqvae2"]
        for other in other_codecs(originals[0][0].numel() >= _LARGE):
            if run.config.data.channels not in other.channels:
                result.warnings.append(
                    f"no {other.name}: it has no images of {run.config.data.channels} channels"
                )
                continue
            row, curves[other.name] = _compared(other, originals, best, distance, tracker.tick)
            rows.append(row)
            tracker.update(len(originals), other.name)
    pixels = float(np.mean([height * width for height, width in sizes]))
    for row in rows:
        if "bytes" in row:
            row["bits_per_pixel"] = 8 * row["bytes"] / pixels
    folder = RunFolder(run.folder)
    stages = folder.networks(codec.levels).values()
    result.figures = {
        "rows": rows,
        "n": len(originals),
        "shape": list(sizes[0]) if len(set(sizes)) == 1 else None,
        "pixels": pixels,
        "model_bytes": sum(stage.model.stat().st_size for stage in stages if stage.done()),
    }
    result.plots.append(
        Plot(
            "what files show over their size, means over the images", curves, "bytes of a file", "PSNR in dB"
        )
    )
    caption = "originals, and below them what the files show: the coarsest level alone, then one level more in each row"
    pictures = sheet(_cut([*originals[:SHOWN], *shown]), min(SHOWN, len(originals)))
    result.pictures.append(Picture(caption, pictures, ("originals", *aims)))
    return result


def _originals(context: Context) -> tuple[Sequence[Tensor], list[int | None] | None]:
    """The images [C, H, W], and the class number of each or None."""
    run, folder = context.run, context.options.compress
    assert run is not None
    if folder is None:
        images = context.heldout.first(min(_IMAGES, context.options.most))
        known = images.labels is not None and run.prior.classes
        return list(images.images()), images.labels.tolist() if known and images.labels is not None else None
    files = list_folder(folder).images[: context.options.most]
    if not files:
        raise UserError(f"no images in {folder}")
    return _Files(files, run.config.data), None


def _own(
    context: Context,
    codec: Codec,
    originals: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    labels: list[int | None] | None,
    distance: PerceptualDistance | None,
) -> tuple[list[dict[str, Any]], dict[str, Measured], list[Tensor]]:
    """Rows of the run's own files, what was measured of each by its name on the plot, and images to look at."""
    assert context.run is not None
    runs = list(alike(sizes, lambda size: _PIXELS // (size[0] * size[1])))
    encoded = [pair for some in runs for pair in codec.encode(originals[some])]
    begun = time.perf_counter()
    files = codec.write(encoded, labels)
    written = time.perf_counter()
    found = codec.read_back(files, encoded)
    checked = time.perf_counter()
    packed = codec.write(encoded, mode="packed")
    rows, measured, shown = [], {}, []

    def add(name: str, lengths: list[int], codes: list[Decompressed], decoder: VQVAE | None = None) -> None:
        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            for some in runs:
                decoded = codec.decode(codes[some], decoder)
                shown.extend(decoded[: max(0, SHOWN - some.start)])
                yield torch.stack(list(originals[some])), torch.stack(decoded)

        measured[name], row = _figures(lengths, pairs(), distance)
        rows.append({"codec": name, **row})

    for held in range(1, codec.levels + 1):
        name = "vqvae2" if held == codec.levels else f"vqvae2, {held} of {codec.levels} levels"
        lengths = [codec.prefixes(data)[held - 1] for data in files]
        part = [
            Decompressed(one.layout, one.label, one.mode, one.grids[:held], one.tiles[:held]) for one in found
        ]
        add(name, lengths, part)
    rows[-1] |= {"images_per_second_compressed": len(files) / (checked - begun)}
    rows[-1] |= {"images_per_second_decompressed": len(files) / (checked - written)}
    if context.run.decoder_name(context.options.decoder) == "sharp":
        add("vqvae2, sharp decoder", [len(data) for data in files], found, context.run.decoder("sharp"))
    rows.append({"codec": "vqvae2, packed", "bytes": float(np.mean([len(data) for data in packed]))})
    return rows, measured, shown


def _figures(
    sizes: list[int], pairs: Iterator[tuple[Tensor, Tensor]], distance: PerceptualDistance | None
) -> tuple[Measured, dict[str, float]]:
    """What is measured of one file per image; and the means, with the mean MS-SSIM where it is defined.

    Args:
        sizes: bytes of each file.
        pairs: the images of these files in order, originals and decoded ones, each [B, C, H, W].
    """
    figures: dict[str, list[float]] = {"bytes": list(map(float, sizes))}
    for originals, decoded in pairs:
        pixels = to_float(to_uint8(decoded))
        figures.setdefault("psnr", []).extend(psnr(pixels, originals).tolist())
        if distance is not None:
            found = perceptual_distance(_middle(pixels), _middle(originals), distance)
            figures.setdefault("perceptual", []).extend(found.tolist())
        similarity = multiscale_similarity(pixels, originals)
        if similarity is not None:
            figures.setdefault("ms_ssim", []).extend(similarity.tolist())
    means = {name: float(np.mean(values)) for name, values in figures.items()}
    figures.pop("ms_ssim", None)
    return {name: np.array(values, np.float64) for name, values in figures.items()}, means


def _middle(images: Tensor, side: int | None = None) -> Tensor:
    """The middle of images [B, C, H, W]: of large ones, or, with `side`, of all."""
    if side is None and images.shape[2] * images.shape[3] < _LARGE:
        return images
    height, width = (min(side or _CUT, length) for length in images.shape[2:])
    top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    return images[:, :, top : top + height, left : left + width]


def _cut(images: list[Tensor]) -> Tensor:
    """The images, or if they differ in size or are large the middle of each, in one tensor."""
    if len({image.shape for image in images}) == 1 and images[0][0].numel() < _LARGE:
        return torch.stack(images)
    side = min(_CUT, *(min(image.shape[1:]) for image in images))
    return torch.cat([_middle(image[None], side) for image in images])


def _compared(
    other: OtherCodec,
    originals: Sequence[Tensor],
    own: Measured,
    distance: PerceptualDistance | None,
    tick: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, Any], Curve]:
    """A row on another format, and the mean PSNR over the mean bytes of its settings.

    Of each image the smallest file counts that is at least as near to the original as our own; if none is, its largest one.
    Qualities are tried from the lowest, until a file is as near by every measure and large enough for the curve.
    """
    measures = [name for name in own if name != "bytes"]
    most = 4 * float(own["bytes"].mean())
    fewest: list[float] = []
    smallest: dict[str, list[float]] = {name: [] for name in measures}
    points: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for image, original in enumerate(originals):
        tick(image)
        seen = distance is not None and "perceptual" in own
        aims = perceptual_aims(_middle(original[None]), distance) if distance is not None and seen else None
        reached: dict[str, list[float]] = {name: [] for name in measures}
        sizes: list[float] = []
        for variant in range(len(other.settings)):
            tried = _Tried(original, own, image, distance, aims)
            for size, shown in other.files(original, variant):
                tried.add(size, shown)
                setting = (variant, len(tried.sizes) - 1)
                points.setdefault(setting, []).append((float(size), tried.decibels[-1]))
                if size > most and all(tried.near(name, setting[1]) for name in measures):
                    break
            sizes += tried.sizes
            for name in measures:
                reached[name] += tried.smallest(name)
        fewest.append(min(sizes))
        for name in measures:
            smallest[name].append(min(reached[name], default=max(sizes)))
    row: dict[str, Any] = {"codec": other.name, "fewest_bytes": float(np.mean(fewest))}
    for name in measures:
        row[f"bytes_at_equal_{name}"] = float(np.mean(smallest[name]))
        row[f"larger_than_ours_at_equal_{name}"] = float((np.array(smallest[name]) > own["bytes"]).mean())
    return row, _curve([values for values in points.values() if len(values) == len(originals)], most)


class _Tried:
    """The files of one image in one format, from the lowest quality; a perceptual distance is computed where it is asked for.

    Args:
        original: [C, H, W].
        own: what was measured of our own files.
        image: the number of this one.
        distance, aims: None without weights.
    """

    def __init__(
        self,
        original: Tensor,
        own: Measured,
        image: int,
        distance: PerceptualDistance | None,
        aims: list[Tensor] | None,
    ) -> None:
        self._original, self._distance, self._aims = original, distance, aims
        self._wanted = {name: float(values[image]) for name, values in own.items()}
        self._shown: list[Tensor] = []
        self._distances: dict[int, float] = {}
        self.sizes: list[float] = []
        self.decibels: list[float] = []

    def add(self, size: int, shown: Tensor) -> None:
        """The next file, and the image [C, H, W] that it shows."""
        self.sizes.append(float(size))
        self._shown.append(shown)
        self.decibels.append(float(psnr(shown[None], self._original[None])[0]))

    def near(self, name: str, index: int) -> bool:
        """Whether a file is at least as near to the original as ours."""
        if name == "psnr":
            return self.decibels[index] >= self._wanted[name]
        if index not in self._distances:
            assert self._distance is not None
            assert self._aims is not None
            shown = _middle(self._shown[index][None])
            self._distances[index] = float(distance_to_aims(shown, self._aims, self._distance))
        return self._distances[index] <= self._wanted[name]

    def smallest(self, name: str) -> list[float]:
        """The bytes of the smallest file that is as near; [] if none is. Distances fall with quality, so that one is bisected."""
        if name == "psnr":
            enough = [size for index, size in enumerate(self.sizes) if self.near(name, index)]
            return [min(enough)] if enough else []
        low, high = 0, len(self.sizes) - 1
        if not self.near(name, high):
            return []
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.near(name, middle) else (middle + 1, high)
        return [self.sizes[high]]


def _curve(settings: list[list[tuple[float, float]]], most: float) -> Curve:
    """Mean PSNR over mean bytes of each setting, up to `most` bytes."""
    means = sorted(tuple(np.mean(values, 0).tolist()) for values in settings)
    best, curve = -np.inf, []
    for size, decibels in means:
        if decibels > best and size <= most:
            curve.append((size, decibels))
            best = decibels
    return curve


def _hindered(context: Context) -> str | None:
    """The images have no classes, and a prior never learned "no label"."""
    assert context.run is not None
    labelled = context.options.compress is None and context.heldout.labels is not None
    return None if labelled else context.run.config.prior.lacks_unlabelled()


PART = Part(
    "compression", "Compression", measure, needs=("run", "priors"), on_request=True, hindered=_hindered
)
