"""Find the images of a folder that are most similar to an image, by the vectors of their codes.

python examples/search_by_codes.py RUN FOLDER IMAGE [N]

RUN is a run folder or a model of the package, such as emoji64. It prints the N (8) most similar files and writes them, with IMAGE
first, to found.png.
"""

import sys
from pathlib import Path

import torch
from torch.nn import functional

import vqvae2
from vqvae2.commands.images import image_files
from vqvae2.data.grid import save_grid


def embed(model: vqvae2.VQVAE, images: torch.Tensor) -> torch.Tensor:
    """Unit vectors [B, E]: of each level, the code vectors averaged over a 4x4 grid, less the level's mean code."""
    parts = []
    for quantizer, level in zip(model.quantizers, model.encode(images).levels, strict=True):
        vectors = quantizer.lookup(level) - quantizer.mean_code()  # [B, h, w, D]
        pooled = functional.adaptive_avg_pool2d(vectors.permute(0, 3, 1, 2), 4).flatten(1)
        parts.append(functional.normalize(pooled, dim=1))
    return functional.normalize(torch.cat(parts, 1), dim=1)


name, folder, query = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
wanted = int((sys.argv[4:] or [8])[0])
run = vqvae2.load(name, "cpu")
files = image_files([folder])
with torch.no_grad():
    blocks = [files[begin : begin + 256] for begin in range(0, len(files), 256)]
    embedded = torch.cat([embed(run.autoencoder, run.load_images(block)) for block in blocks])
    similarity = embedded @ embed(run.autoencoder, run.load_images([query]))[0]
best = similarity.argsort(descending=True, stable=True)[:wanted].tolist()
for number in best:
    print(f"{similarity[number]:.3f}  {files[number]}")
save_grid(run.load_images([query, *(files[number] for number in best)]), Path("found.png"), wanted + 1)
