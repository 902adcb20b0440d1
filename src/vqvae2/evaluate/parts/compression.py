"""How small the run's compressed files are, and how large those of other formats are that look as good.

    held-out images --codec--> files --> bytes, PSNR, perceptual distance
    the same images --JPEG, WebP, AVIF, JPEG XL at 24 qualities--> the smallest file of each image that is at least as near to it

Shapes: n images.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.autoencoder.perceptual import PerceptualDistance
from vqvae2.codec.codec import Codec, Decompressed
from vqvae2.data.pixels import psnr, to_float, to_uint8
from vqvae2.evaluate.context import Context
from vqvae2.evaluate.image_metrics import multiscale_similarity
from vqvae2.evaluate.other_codecs import OtherCodec, other_codecs
from vqvae2.evaluate.parts.base import Part, PartResult, Picture, Plot
from vqvae2.evaluate.parts.drawing import SHOWN, sheet
from vqvae2.evaluate.report import Curve
from vqvae2.files.run_folder import RunFolder

_IMAGES = 96  # held-out images, at most
_CHUNK = 4  # files that are measured at a time

Measured = dict[str, NDArray[np.float64]]
"""Of each of some files: "bytes", "psnr" and, if there are weights, "perceptual"."""


def measure(context: Context) -> PartResult:
    """The first held-out images, `_IMAGES` at most or `n` if that is less; files are written with the class of each image."""
    run = context.run
    assert run is not None
    images = context.heldout.first(min(_IMAGES, context.options.n))
    originals = images.images()
    labels = None if images.labels is None or not run.prior.classes else images.labels.tolist()
    weights = context.options.perceptual
    distance = None if weights is None else PerceptualDistance.read(weights)
    codec = Codec(run.autoencoder, run.config.data.shape, run.prior)
    result = PartResult()
    with context.reporter.track("compression", len(originals), unit="images") as tracker:
        rows, aims, shown = _own(context, codec, originals, labels, distance)
        curves: dict[str, Curve] = {}
        for name, own in aims.items():
            curves[name] = [(float(own["bytes"].mean()), float(own["psnr"].mean()))]
        best = aims["vqvae2"]
        for other in other_codecs():
            row, curves[other.name] = _compared(other, originals, best, distance)
            rows.append(row)
            tracker.update(len(originals), other.name)
    pixels = originals.shape[2] * originals.shape[3]
    for row in rows:
        if "bytes" in row:
            row["bits_per_pixel"] = 8 * row["bytes"] / pixels
    folder = RunFolder(run.folder)
    stages = folder.networks(codec.levels).values()
    model = sum(stage.model.stat().st_size for stage in stages if stage.done())
    result.figures = {
        "rows": rows,
        "n": len(originals),
        "shape": list(originals.shape[2:]),
        "model_bytes": model,
    }
    result.plots.append(
        Plot(
            "what files show over their size, means over the images", curves, "bytes of a file", "PSNR in dB"
        )
    )
    caption = "originals, and below them what the files show: the coarsest level alone, then one level more in each row"
    pictures = sheet(torch.cat([originals[:SHOWN], *shown]), min(SHOWN, len(originals)))
    result.pictures.append(Picture(caption, pictures, ("originals", *aims)))
    return result


def _own(
    context: Context,
    codec: Codec,
    originals: Tensor,
    labels: list[int | None] | None,
    distance: PerceptualDistance | None,
) -> tuple[list[dict[str, Any]], dict[str, Measured], list[Tensor]]:
    """Rows of the run's own files, what was measured of each by its name on the plot, and images to look at."""
    assert context.run is not None
    encoded = codec.encode(list(originals))
    begun = time.perf_counter()
    files = codec.compress_codes(encoded, labels)
    coded = time.perf_counter()
    found = codec.decompress(files)
    seconds = time.perf_counter() - coded
    packed = codec.compress_codes(encoded, mode="packed")
    rows, measured, shown = [], {}, []
    for held in range(1, codec.levels + 1):
        name = "vqvae2" if held == codec.levels else f"vqvae2, {held} of {codec.levels} levels"
        sizes = [codec.prefixes(data)[held - 1] for data in files]
        part = [
            Decompressed(one.layout, one.label, one.mode, one.grids[:held], one.tiles[:held]) for one in found
        ]
        decoded = torch.stack(codec.decode(part))
        shown.append(decoded[:SHOWN])
        measured[name] = _figures(sizes, decoded, originals, distance)
        rows.append({"codec": name, **_means(measured[name], decoded, originals)})
    rows[-1] |= {"images_per_second_compressed": len(files) / (coded - begun)}
    rows[-1] |= {"images_per_second_decompressed": len(files) / seconds}
    if context.run.decoder_name() == "sharp":
        decoded = torch.stack(codec.decode(found, context.run.decoder("sharp")))
        shown.append(decoded[:SHOWN])
        name = "vqvae2, sharp decoder"
        measured[name] = _figures([len(data) for data in files], decoded, originals, distance)
        rows.append({"codec": name, **_means(measured[name], decoded, originals)})
    rows.append({"codec": "vqvae2, packed", "bytes": float(np.mean([len(data) for data in packed]))})
    return rows, measured, shown


def _figures(
    sizes: list[int], decoded: Tensor, originals: Tensor, distance: PerceptualDistance | None
) -> Measured:
    """What is measured of one file per image, or of several of one original."""
    pixels = to_float(to_uint8(decoded))
    figures = {"bytes": np.array(sizes, np.float64), "psnr": psnr(pixels, originals).numpy()}
    if distance is not None and min(originals.shape[2:]) >= 16:
        with torch.no_grad():
            if len(originals) == 1:
                figures["perceptual"] = distance(pixels, originals).double().numpy()
            else:
                parts = zip(pixels.split(32), originals.split(32), strict=True)
                figures["perceptual"] = torch.cat([distance(a, b) for a, b in parts]).double().numpy()
    return figures


def _means(figures: Measured, decoded: Tensor, originals: Tensor) -> dict[str, float]:
    """The means of some figures, and the mean MS-SSIM where it is defined."""
    similarity = multiscale_similarity(to_float(to_uint8(decoded)), originals)
    means = {name: float(values.mean()) for name, values in figures.items()}
    return means if similarity is None else means | {"ms_ssim": float(similarity.mean())}


def _compared(
    other: OtherCodec, originals: Tensor, own: Measured, distance: PerceptualDistance | None
) -> tuple[dict[str, Any], Curve]:
    """A row on another format, and the mean PSNR over the mean bytes of its settings.

    Of each image the smallest file counts that is at least as near to the original as our own; if none is, its largest one.
    Qualities are tried from the lowest, until the files are as near by every measure and large enough for the curve.
    """
    measures = [name for name in own if name != "bytes"]
    most = 4 * float(own["bytes"].mean())
    fewest: list[float] = []
    smallest: dict[str, list[float]] = {name: [] for name in measures}
    points: dict[int, list[tuple[float, float]]] = {}
    for image, original in enumerate(originals):
        found: list[tuple[int, Measured]] = []
        for variant in range(len(other.settings)):
            done = False
            for number, part in enumerate(_parts(other.files(original, variant))):
                decoded = torch.stack([shown for _, shown in part])
                figures = _figures([size for size, _ in part], decoded, original[None], distance)
                for index in range(len(part)):
                    one = {name: values[index] for name, values in figures.items()}
                    setting = variant * 1000 + number * _CHUNK + index
                    found.append((setting, one))
                    points.setdefault(setting, []).append((float(one["bytes"]), float(one["psnr"])))
                done = all(
                    any(_as_near(one, own, name, image) for _, one in found[-len(part) :])
                    for name in measures
                )
                if done and figures["bytes"].max() > most:
                    break
        sizes = [float(one["bytes"]) for _, one in found]
        fewest.append(min(sizes))
        for name in measures:
            reached = [float(one["bytes"]) for _, one in found if _as_near(one, own, name, image)]
            smallest[name].append(min(reached, default=max(sizes)))
    row: dict[str, Any] = {"codec": other.name, "fewest_bytes": float(np.mean(fewest))}
    for name in measures:
        row[f"bytes_at_equal_{name}"] = float(np.mean(smallest[name]))
        row[f"larger_than_ours_at_equal_{name}"] = float((np.array(smallest[name]) > own["bytes"]).mean())
    return row, _curve([values for values in points.values() if len(values) == len(originals)], most)


def _as_near(one: Measured, own: Measured, name: str, image: int) -> bool:
    """Whether a file is at least as near to the original as ours of the image."""
    better = one[name] >= own[name][image] if name == "psnr" else one[name] <= own[name][image]
    return bool(better)


def _parts(files: Iterator[tuple[int, Tensor]]) -> Iterator[list[tuple[int, Tensor]]]:
    """The files, some at a time."""
    while part := list(itertools.islice(files, _CHUNK)):
        yield part


def _curve(settings: list[list[tuple[float, float]]], most: float) -> Curve:
    """Mean PSNR over mean bytes of each setting, up to `most` bytes."""
    means = sorted(tuple(np.mean(values, 0).tolist()) for values in settings)
    best, curve = -np.inf, []
    for size, decibels in means:
        if decibels > best and size <= most:
            curve.append((size, decibels))
            best = decibels
    return curve


PART = Part("compression", "Compression", measure, needs=("run", "priors"), on_request=True)
