"""The parts of a report: each measures sets of pictures and returns figures (JSON), pictures and curves.

Whatever they return is a function of what they are given, times aside; the figures of `speed` are all times.

Shapes: n pictures, L levels, K codes or classes, D features.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.autoencoder.perceptual import PerceptualDistance
from vqvae2.config.models import DataConfig
from vqvae2.data.grid import grid
from vqvae2.data.images import ImageSet
from vqvae2.data.pixels import psnr
from vqvae2.evaluate.classifier import ClassifierConfig, predict, train_classifier
from vqvae2.evaluate.code_metrics import code_counts, likelihood, usage
from vqvae2.evaluate.features import FeatureNetwork, Features
from vqvae2.evaluate.manifolds import manifolds, nearest
from vqvae2.evaluate.metrics import (
    Moments,
    accuracy,
    class_score,
    frechet_distance,
    kernel_distance,
    too_few,
    two_sample,
)
from vqvae2.evaluate.neighbours import nearest_pictures
from vqvae2.evaluate.picture_metrics import (
    mean_squared_error,
    mirror_error,
    multiscale_similarity,
    scales,
    structural_similarity,
)
from vqvae2.evaluate.report import Curve
from vqvae2.evaluate.sets import PictureSet
from vqvae2.generate.reject import keep_best
from vqvae2.prior.hierarchy import HierarchicalPrior

SHOWN = 16  # pictures of a set on a sheet
_QUANTILES = 64  # points of a drawn distribution
_PIXELS = 1000  # pictures whose nearest neighbour in pixels is looked for, at most


@dataclass
class Found:
    """What a part found.

    Attributes:
        figures: JSON-ready.
        pictures: caption and picture.
        plots: caption, curves, and what the horizontal axis is.
        warnings: lines to be printed beside the figures.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    pictures: list[tuple[str, Image.Image]] = field(default_factory=list)
    plots: list[tuple[str, dict[str, Curve]]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@torch.no_grad()
def likelihoods(
    autoencoder: VQVAE, prior: HierarchicalPrior, sets: Sequence[PictureSet], labelled: bool
) -> Found:
    """The negative log-likelihood of each set's codes, per level given the coarser ones (paper, table 1).

    Args:
        sets: training and held-out pictures.
        labelled: each picture with its class; otherwise with none.
    """
    device = next(autoencoder.parameters()).device
    figures: dict[str, Any] = {}
    for pictures in sets:
        found, at = [], 0
        for images in pictures.batches():
            labels = (
                pictures.labels[at : at + len(images)].to(device)
                if labelled and pictures.labels is not None
                else None
            )
            found.append(prior.log_prob(autoencoder.encode(images.to(device)), labels).cpu())
            at += len(images)
        channels, height, width = images.shape[1:]
        figures[pictures.name] = {
            "n": len(pictures),
            **asdict(likelihood(torch.cat(found), prior.geometry, (channels, height, width))),
        }
    names = [pictures.name for pictures in sets]
    if len(names) == 2:
        first, second = (figures[name]["nats_per_code"] for name in names)
        figures["gap"] = [b / a - 1 for a, b in zip(first, second, strict=True)]
    return Found({**figures, "uniform_nats_per_code": [math.log(k) for k in prior.geometry.vocabulary]})


@torch.no_grad()
def reconstruction(
    autoencoder: VQVAE, sets: Sequence[PictureSet], distance: PerceptualDistance | None
) -> Found:
    """How near reconstructions are to their originals, over each set.

    Args:
        distance: the perceptual one, where its weights are at hand.
    """
    found, device = Found(), next(autoencoder.parameters()).device
    for pictures in sets:
        totals: dict[str, float] = {}
        side = 0
        for images in pictures.batches():
            made = autoencoder.decode(autoencoder.encode(images.to(device))).cpu()
            rows: dict[str, Tensor | None] = {
                "mse": mean_squared_error(made, images),
                "mse_unit_range": mean_squared_error(made, images, span=1.0),
                "psnr": psnr(made, images).double(),
                "ssim": structural_similarity(made, images),
                "ms_ssim": multiscale_similarity(made, images),
                "perceptual": None if distance is None else distance(made, images).double(),
            }
            for name, row in rows.items():
                if row is not None:
                    totals[name] = totals.get(name, 0.0) + float(row.double().sum())
            side = images.shape[2]
        figures = {name: total / len(pictures) for name, total in totals.items()}
        figures["psnr_of_mean"] = -10 * math.log10(max(figures["mse_unit_range"], 1e-12))
        found.figures[pictures.name] = {"n": len(pictures), **figures, "ms_ssim_scales": scales(side, side)}
    shown = sets[-1].pictures(0, SHOWN // 2)
    codes = autoencoder.encode(shown.to(device))
    steps = [autoencoder.decode(codes, levels).cpu() for levels in range(1, len(codes.levels) + 1)]
    rows_shown = torch.cat([shown, *steps])
    found.pictures.append(
        (
            f"{sets[-1].name}: originals, then decoded from the coarsest level, adding one a row",
            _sheet(rows_shown, len(shown)),
        )
    )
    return found


@torch.no_grad()
def code_usage(autoencoder: VQVAE, pictures: PictureSet) -> Found:
    """How evenly each level's codes are used over a set, and what the most and the least used ones stand for.

    The pictures show, per code, the mean of what lies in its cells: what the code says by itself.
    """
    device = next(autoencoder.parameters()).device
    vocabulary = tuple(quantizer.num_embeddings for quantizer in autoencoder.quantizers)
    counts = [torch.zeros(k, dtype=torch.int64) for k in vocabulary]
    cells: list[Tensor] = []
    for images in pictures.batches():
        codes = autoencoder.encode(images.to(device)).to("cpu")
        for level, grid_codes in enumerate(codes.levels):
            counts[level] += code_counts(grid_codes, vocabulary[level])
            patches = _patches(images, grid_codes.shape[1], grid_codes.shape[2])
            if level == len(cells):
                cells.append(torch.zeros(vocabulary[level], *patches.shape[1:], dtype=torch.float64))
            cells[level].index_add_(0, grid_codes.flatten(), patches.double())
    found = Found({"set": pictures.name, "n": len(pictures), "levels": []})
    for level, (count, cell) in enumerate(zip(counts, cells, strict=True)):
        figures = usage(count)
        used = figures.order[count[figures.order] > 0]
        found.figures["levels"].append(
            {
                "used": figures.used,
                "perplexity": figures.perplexity,
                "codes": len(count),
                "most_used": [[int(code), int(count[code])] for code in figures.order[:8]],
                "least_used": [[int(code), int(count[code])] for code in figures.order[-8:]],
            }
        )
        chosen = torch.cat([used[:SHOWN], used[-SHOWN:]])
        means = (cell[chosen] / count[chosen].view(-1, 1, 1, 1)).float()
        found.pictures.append(
            (
                f"level {level}: mean content of the {SHOWN} most used codes, then of the {SHOWN} least used that are used at all",
                _sheet(means, SHOWN),
            )
        )
        share = count.sort(descending=True).values.double() / count.sum()
        found.plots.append(
            (
                f"level {level}: share of each code, by rank",
                {"share": [(float(i), float(v)) for i, v in enumerate(share)]},
            )
        )
    return found


def distances(
    network: FeatureNetwork,
    reference: Features,
    sets: Mapping[str, Features],
    stars: Mapping[str, str] = {},
    reconstructed: Features | None = None,
    seed: int = 0,
) -> Found:
    """Frechet and kernel distance of each set from the reference, and its score, in one network's features.

    Args:
        reference: of training pictures.
        sets: of the floor (held-out pictures), of reconstructions, of samples.
        stars: titles of sets, by name, that are also compared with `reconstructed`.
        reconstructed: of reconstructed training pictures (FID*).
    """
    base = Moments.of(reference.pooled)
    found = Found(
        {"network": network.name, "reference_n": len(reference), "dimension": network.dimension, "sets": {}}
    )
    size = min(1000, len(reference), *(len(features) for features in sets.values()))
    found.figures["kernel_subset_size"] = size
    moments = {name: Moments.of(features.pooled) for name, features in sets.items()}
    few: dict[str, list[str]] = {}
    for name, features in sets.items():
        kernel = kernel_distance(reference.pooled, features.pooled, size=size, seed=seed)
        figures: dict[str, Any] = {
            "n": len(features),
            "frechet": frechet_distance(base, moments[name]),
            "kernel": kernel.mean,
            "kernel_deviation": kernel.deviation,
        }
        if features.logits is not None:
            score = class_score(features.logits.double().softmax(1), splits=min(10, len(features)), seed=seed)
            figures |= {"score": score.mean, "score_deviation": score.deviation}
        found.figures["sets"][name] = figures
        if warning := too_few(min(len(features), len(reference)), network.dimension):
            few.setdefault(warning, []).append(name)
    found.warnings += [f"{', '.join(names)}: {warning}" for warning, names in few.items()]
    if reconstructed is not None:
        base = Moments.of(reconstructed.pooled)
        for name, title in stars.items():
            distance = frechet_distance(base, moments[name])
            found.figures["sets"][title] = {"n": len(sets[name]), "frechet": distance}
    return found


def rows(sets: Sequence[PictureSet]) -> tuple[str, Image.Image]:
    """The first pictures of each set, a row each, with a caption."""
    n = min(SHOWN, *map(len, sets))
    images = torch.cat([pictures.pictures(0, n) for pictures in sets])
    return "the first of each set, a row each: " + ", ".join(p.name for p in sets), _sheet(images, n)


def precision_recall(
    reference: Features, sets: Mapping[str, Features], k: int = 3, k_coverage: int = 5
) -> Found:
    """Improved precision and recall, density and coverage of each set against as many reference pictures."""
    found = Found({"k": k, "k_coverage": k_coverage, "sets": {}})
    known: dict[int, Tensor] = {}
    for name, features in sets.items():
        n = min(len(features), len(reference))
        real = reference.pooled[:n]
        if n not in known:
            known[n] = nearest(real, real, max(k, k_coverage), itself=True)[0]
        result = manifolds(real, features.pooled[:n], k, k_coverage, known[n])
        found.figures["sets"][name] = {"n": n, **result._asdict()}
    return found


def classification(
    trained_on: Sequence[PictureSet],
    tested_on: Sequence[PictureSet],
    pairs: Sequence[tuple[str, str]],
    classes: int,
    config: ClassifierConfig,
    device: torch.device | str,
) -> Found:
    """Classification accuracy score (Ravuri and Vinyals 2019, arXiv 1905.10887): train on samples, test on real pictures.

    Args:
        trained_on, tested_on: sets with labels.
        pairs: names of a set of the first and one of the second, each pair a row.
    """
    found = Found({"classifier": config.model_dump(), "rows": []})
    tests = {pictures.name: pictures for pictures in tested_on}
    for pictures in trained_on:
        assert pictures.labels is not None
        net = train_classifier(pictures.batches(), pictures.labels, classes, config, device)
        for other in (test for train, test in pairs if train == pictures.name):
            labels = tests[other].labels
            assert labels is not None
            logits = predict(net, tests[other].batches())
            row = {"trained_on": pictures.name, "n": len(pictures), "tested_on": other, "test_n": len(labels)}
            row |= {"top_1": accuracy(logits, labels), "top_5": accuracy(logits, labels, min(5, classes))}
            found.figures["rows"].append(row)
    return found


def memorisation(
    samples: PictureSet,
    heldout: PictureSet,
    images: ImageSet,
    config: DataConfig,
    features: tuple[Features, Features, Features],
    training: PictureSet,
) -> Found:
    """Are samples nearer to training pictures than held-out real pictures are? In pixels and in features.

    Args:
        images: its training part is what is searched in pixels, mirrored too if training mirrored.
        features: of the samples, of the held-out pictures, of `training`, some of the training pictures.
    """
    n = min(len(samples), len(heldout))
    few = min(n, _PIXELS)
    shown, real = samples.pictures(0, few), heldout.pictures(0, few)
    neighbours, drawn = nearest_pictures(shown, images, config)
    _, usual = nearest_pictures(real, images, config)
    found = Found({"pixels": _compare(drawn.double(), usual.double(), few)})
    ours, theirs, base = (part.pooled for part in features)
    near, place = nearest(ours[:n], base)
    far, _ = nearest(theirs[:n], base)
    found.figures["features"] = {"training_n": len(base), **_compare(near[:, 0], far[:, 0], n)}
    half = SHOWN // 2
    found.pictures.append(
        (
            "samples, and below them the training pictures nearest in pixels",
            _sheet(torch.cat([shown[:half], neighbours[:half]]), half),
        )
    )
    order = near[:, 0].argsort()[:half]
    rows = [samples.pictures(int(i), int(i) + 1) for i in order]
    rows += [training.pictures(int(place[i, 0]), int(place[i, 0]) + 1) for i in order]
    found.pictures.append(
        (
            "the samples nearest to a training picture in features, and below them that picture",
            _sheet(torch.cat(rows), half),
        )
    )
    found.plots.append(
        (
            "distance to the nearest training picture in pixels (root mean square, range 2): share of pictures below",
            {"samples": _distribution(drawn), "held out": _distribution(usual)},
        )
    )
    found.plots.append(
        (
            "distance to the nearest training picture in features: share of pictures below",
            {"samples": _distribution(near[:, 0]), "held out": _distribution(far[:, 0])},
        )
    )
    return found


def symmetry(sets: Sequence[PictureSet], against: PictureSet, classes: Sequence[str]) -> Found:
    """Left-right mirror error (relative: 0 symmetric, 0.71 noise) of each set beside real pictures, also per class.

    The paper's claim about long range is that its samples keep what real pictures have across hundreds of pixels; where real
    pictures are symmetric, samples should be as much.
    """
    every = [against, *(pictures for pictures in sets if pictures.name != against.name)]
    errors = {
        pictures.name: torch.cat([mirror_error(images, relative=True) for images in pictures.batches()])
        for pictures in every
    }
    found = Found({"against": against.name, "sets": {}})
    for pictures in every:
        own = errors[pictures.name]
        figures: dict[str, Any] = {"n": len(own), "median": float(own.median()), "mean": float(own.mean())}
        if pictures is not against:
            figures |= two_sample(own, errors[against.name])._asdict()
        if pictures.labels is not None and against.labels is not None:
            figures["classes"] = {
                name: _class_symmetry(
                    own[pictures.labels == label], errors[against.name][against.labels == label]
                )
                for label, name in enumerate(classes)
                if bool((pictures.labels == label).any()) and bool((against.labels == label).any())
            }
        found.figures["sets"][pictures.name] = figures
    found.plots.append(
        (
            "relative mirror error: share of pictures below",
            {name: _distribution(own) for name, own in errors.items()},
        )
    )
    return found


def speed(autoencoder: VQVAE, prior: HierarchicalPrior, pictures: PictureSet, batch: int) -> Found:
    """Pictures per second of encoding, decoding and sampling on this machine, after a warm-up; seconds per position."""
    device = next(autoencoder.parameters()).device
    images = pictures.pictures(0, batch).to(device)
    labels = torch.zeros(batch, dtype=torch.int64) if prior.classes else None
    codes = autoencoder.encode(images)
    positions = sum(level[0].numel() for level in codes.levels)

    def seconds(call: Any) -> float:
        call()
        begun = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    sampling = seconds(lambda: prior.sample(batch, labels))
    decoding = seconds(lambda: autoencoder.decode(codes))
    return Found(
        {
            "batch": len(images),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "encode_images_per_second": len(images) / seconds(lambda: autoencoder.encode(images)),
            "decode_images_per_second": len(images) / decoding,
            "sample_images_per_second": batch / (sampling + decoding),
            "sample_seconds_per_position": sampling / positions,
            "positions": positions,
        }
    )


def critic_sweep(
    rates: Sequence[float],
    scores: Tensor,
    labels: Tensor,
    wanted: int,
    features: Features,
    network: FeatureNetwork,
    reference: Features,
    seed: int = 0,
) -> Found:
    """The paper's curves: distances and precision against recall as the critic keeps less.

    At each rate the first wanted / rate candidates are scored and the best of each class kept.

    Args:
        rates: shares kept.
        scores, labels: [M] of the candidates.
        features: [M] of the candidates, in a network on which the critic does not rest.
    """
    rows: dict[str, Features] = {}
    kept: dict[str, dict[str, Any]] = {}
    for rate in rates:
        count = min(len(scores), round(wanted / rate))
        chosen = keep_best(scores[:count], labels[:count], rate)
        logits = None if features.logits is None else features.logits[chosen]
        name = f"critic's {rate:g}"
        rows[name] = Features(features.pooled[chosen], logits, 0.0)
        kept[name] = {
            "rate": float(rate),
            "candidates": count,
            "kept": len(chosen),
            "least_score": float(scores[chosen].min()),
        }
    far = distances(network, reference, rows, seed=seed)
    near = precision_recall(reference, rows)
    table = [{**kept[name], **far.figures["sets"][name], **near.figures["sets"][name]} for name in rows]
    found = Found({"network": network.name, "rows": table}, warnings=far.warnings)
    points = sorted(table, key=lambda row: row["rate"])
    found.plots.append(
        (
            "Frechet distance against the share that the critic keeps",
            {"samples": [(row["rate"], row["frechet"]) for row in points]},
        )
    )
    if "score" in table[0]:
        found.plots.append(
            (
                f"{network.score_name} against the share that the critic keeps",
                {"samples": [(row["rate"], row["score"]) for row in points]},
            )
        )
    found.plots.append(
        (
            "precision against recall, one point a rate",
            {"samples": [(row["recall"], row["precision"]) for row in points]},
        )
    )
    return found


def _class_symmetry(own: Tensor, real: Tensor) -> dict[str, Any]:
    return {
        "n": len(own),
        "median": float(own.median()),
        "real_median": float(real.median()),
        **two_sample(own, real)._asdict(),
    }


def _compare(samples: Tensor, heldout: Tensor, n: int) -> dict[str, Any]:
    """Medians and a test of two sets of distances."""
    return {
        "n": n,
        "samples_median": float(samples.median()),
        "heldout_median": float(heldout.median()),
        "nearer_than_any_heldout": float((samples < heldout.min()).double().mean()),
        **two_sample(samples, heldout)._asdict(),
    }


def _distribution(values: Tensor) -> Curve:
    """The share of values below a number, as a curve."""
    shares = torch.linspace(0, 1, _QUANTILES, dtype=torch.float64)
    return list(zip(values.double().quantile(shares).tolist(), shares.tolist(), strict=True))


def _patches(images: Tensor, rows: int, columns: int) -> Tensor:
    """Pictures [B, C, H, W] cut along a grid: [B * rows * columns, C, H / rows, W / columns], in raster order."""
    batch, channels, height, width = images.shape
    cut = images.reshape(batch, channels, rows, height // rows, columns, width // columns)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height // rows, width // columns)


def _sheet(images: Tensor, columns: int) -> Image.Image:
    return grid(images, columns, zoom=max(1, 64 // images.shape[-1]))
