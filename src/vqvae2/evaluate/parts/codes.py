"""How evenly the codes of each level are used, and what the most and the least used ones look like.

Shapes: B images, C channels, H W px, K codes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae2.autoencoder.codebook_usage import CodebookUsage, code_counts, codebook_usage
from vqvae2.evaluate.context import Context
from vqvae2.evaluate.encoding import Encoder
from vqvae2.evaluate.parts.base import Part, PartResult, Picture, Plot
from vqvae2.evaluate.parts.drawing import SHOWN, sheet
from vqvae2.evaluate.sets import NamedImages

_LISTED = 8  # codes in the lists of the most and of the least used


@torch.no_grad()
def code_usage(encoder: Encoder, images: NamedImages) -> PartResult:
    """Codebook usage of each level over a set, and for some codes the mean content of the cells where they stand."""
    vocabulary = tuple(quantizer.num_embeddings for quantizer in encoder.autoencoder.quantizers)
    counts = [torch.zeros(k, dtype=torch.int64) for k in vocabulary]
    cells: list[Tensor] = []  # per level [K, C, h, w]: the sum of the image patches at each code
    for originals, codes in encoder.with_images(images):
        for level, grid in enumerate(codes.to("cpu").levels):
            counts[level] += code_counts(grid, vocabulary[level])
            patches = _patches(originals, grid.shape[1], grid.shape[2])
            if level == len(cells):
                cells.append(torch.zeros(vocabulary[level], *patches.shape[1:], dtype=torch.float64))
            cells[level].index_add_(0, grid.flatten(), patches.double())
    result = PartResult({"set": images.name, "n": len(images), "levels": []})
    for level, (count, cell) in enumerate(zip(counts, cells, strict=True)):
        usage = codebook_usage(count)
        result.figures["levels"].append(_figures(usage))
        used = usage.order[count[usage.order] > 0]
        chosen = torch.cat([used[:SHOWN], used[-SHOWN:]])
        means = (cell[chosen] / count[chosen].view(-1, 1, 1, 1)).float()
        caption = f"level {level}: mean content of the cells where a code stands, {SHOWN} codes in a row"
        names = ("most used", "least used")
        rows = names if len(chosen) == 2 * SHOWN else ()
        result.pictures.append(Picture(caption, sheet(means, SHOWN), rows))
        share = count.sort(descending=True).values.double() / count.sum()
        curve = [(float(rank), float(value)) for rank, value in enumerate(share)]
        caption = f"level {level}: how often each code occurs; a flat line means that all are used equally"
        plot = Plot(caption, {"share of all codes": curve}, "rank of the code, most used first", "share")
        result.plots.append(plot)
    return result


def _figures(usage: CodebookUsage) -> dict[str, Any]:
    count = usage.counts
    return {
        "used": usage.used,
        "perplexity": usage.perplexity,
        "codes": len(count),
        "most_used": [[int(code), int(count[code])] for code in usage.order[:_LISTED]],
        "least_used": [[int(code), int(count[code])] for code in usage.order[-_LISTED:]],
    }


def _patches(images: Tensor, rows: int, columns: int) -> Tensor:
    """Images [B, C, H, W] cut along a grid: [B * rows * columns, C, H / rows, W / columns], in raster order."""
    batch, channels, height, width = images.shape
    cut = images.reshape(batch, channels, rows, height // rows, columns, width // columns)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height // rows, width // columns)


def measure(context: Context) -> PartResult:
    """Over all training images."""
    return code_usage(context.encoder, context.training)


PART = Part("codes", "Codebook usage", measure, needs=("run",))
