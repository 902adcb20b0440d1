"""Why draw from a fixed codebook instead of generating the encoder's vectors: the same hierarchy with and without one.

    python experiments/vectors.py --out RUNS [--data emoji64] [--set KEY=VALUE ...] [--components 10] [--noise 0.05] [--n 72]

Both arms use the settings of recipes/vectors.yaml: networks, steps, batches and the architecture of the priors. RUNS/codes is
an ordinary run. In RUNS/vectors nothing is quantized: the vectors are bounded by tanh and get normal noise (without it their
density would be unbounded). The priors are the same PixelCNN, which reads the standardised vectors through a projection and
predicts a mixture of diagonal normal distributions. The same command again does not repeat finished trainings. The figures are
written to RUNS/vectors.json, the samples to RUNS/samples-codes and RUNS/samples-vectors (a folder per class, for
`vqvae2 evaluate --samples`), and a sheet of both to RUNS/vectors.png.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from _vector_prior import Bounded, VectorPixelCNN
from vqvae2.autoencoder.model import VQVAE
from vqvae2.config.models import Config, parse
from vqvae2.config.overrides import complete, merge, override, read_yaml
from vqvae2.config.presets import preset
from vqvae2.config.sampling import Sampling
from vqvae2.data.batches import Shuffle, sequential
from vqvae2.data.grid import save_grid, save_picture
from vqvae2.data.images import ImageSet, open_images
from vqvae2.data.pixels import to_pil
from vqvae2.files import atomic, tensor_file
from vqvae2.files.progress import Reporter
from vqvae2.run import Run, load
from vqvae2.train.autoencoder import AutoencoderObjective
from vqvae2.train.device import make_accelerator
from vqvae2.train.loop import fit
from vqvae2.train.pipeline import train
from vqvae2.train.prior import copies

ROOT = Path(__file__).parents[1]


def without_codebook(objective: AutoencoderObjective, noise: float) -> AutoencoderObjective:
    """The same first stage with its quantizers replaced."""
    for level, size in zip(objective.model.levels, objective.config.autoencoder.codes, strict=True):
        level.quantizer = Bounded(size, objective.config.autoencoder.code_dim, noise)
    return objective


class VectorStore:
    """The vectors of every image and level, with noise, standardised per dimension by those of the training images.

    Attributes:
        levels: [n, h, w, D], coarsest first; labels [n]; train, heldout: indices, each training image `copies` times.
        mean, scale: per level [D]; bounds: the range of drawn vectors, per level.
    """

    def __init__(self, autoencoder: VQVAE, images: ImageSet, config: Config, noise: float) -> None:
        parts: list[list[Tensor]] = [[] for _ in autoencoder.levels]
        labels = []
        passes = [(images.heldout, None)]
        passes += [(images.train, config.seed + i if i else None) for i in range(copies(config))]
        for indices, seed in passes:
            for pictures, own in sequential(images, indices, config.data, batch=64, copies_seed=seed):
                for part, vectors in zip(parts, encoded(autoencoder, pictures), strict=True):
                    part.append(vectors)
                labels.append(own)
        generator = torch.Generator().manual_seed(config.seed)
        clean = [torch.cat(part) for part in parts]
        raw = [level + noise * torch.randn(level.shape, generator=generator) for level in clean]
        held = len(images.heldout)
        self.labels = torch.cat(labels)
        self.heldout, self.train = np.arange(held), np.arange(held, len(self.labels))
        self.mean = [level[held:].flatten(0, 2).mean(0) for level in raw]
        self.scale = [level[held:].flatten(0, 2).std(0).clamp_min(1e-3) for level in raw]
        self.levels = self.standardised(raw)
        most = 1 + 3 * noise
        self.bounds = [((-most - m) / s, (most - m) / s) for m, s in zip(self.mean, self.scale, strict=True)]

    def standardised(self, raw: list[Tensor]) -> list[Tensor]:
        """The encoder's vectors, standardised for the priors."""
        return [(level - m) / s for level, m, s in zip(raw, self.mean, self.scale, strict=True)]

    def raw(self, levels: list[Tensor]) -> list[Tensor]:
        """The inverse of `standardised`."""
        return [level * s + m for level, m, s in zip(levels, self.mean, self.scale, strict=True)]


@torch.no_grad()
def encoded(autoencoder: VQVAE, images: Tensor) -> list[Tensor]:
    """The input of the decoder from each level, [B, h, w, D]."""
    return [level.quantize for level in autoencoder(images).levels]


@torch.no_grad()
def decoded(autoencoder: VQVAE, vectors: list[Tensor]) -> Tensor:
    """Images [B, C, H, W] in [-1, 1], decoded from vectors instead of codes."""
    finest = [
        level.to_finest(part.permute(0, 3, 1, 2))
        for level, part in zip(autoencoder.levels, vectors, strict=True)
    ]
    images: Tensor = autoencoder.decoder(torch.cat(finest, 1))
    return images.clamp(-1, 1)


class VectorObjective:
    """One level's prior over vectors, for the training loop; the loss is the mean nats per vector."""

    def __init__(self, config: Config, store: VectorStore, level: int, components: int) -> None:
        self.config, self.store, self.level = config, store, level
        self.name = f"prior of vectors, level {level}"
        self.settings = config.train_prior[level]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed + 1 + level)
            self.model = VectorPixelCNN(
                *(config.prior.levels[level], config.geometry, level, config.prior.classes),
                dim=config.autoencoder.code_dim,
                components=components,
            )

    def batches(self, start: int, rank: int, world: int) -> Iterator[Tensor]:
        """Indices into the store, in the same order as for the priors over codes."""
        shuffle, size = Shuffle(self.store.train, self.config.seed + self.level), self.settings.batch
        while True:
            yield torch.from_numpy(shuffle(np.arange(start * size, (start + 1) * size)))
            start += 1

    def loss(self, model: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As for the priors over codes, with the same label dropout."""
        labels, classes = self.store.labels[batch], self.config.prior.classes
        hidden = torch.rand(labels.shape) < self.config.prior.levels[self.level].label_dropout
        return self.nll(batch, torch.where(hidden, classes, labels)).mean(), {}

    def nll(self, indices: Tensor, labels: Tensor, model: nn.Module | None = None) -> Tensor:
        """[B, H, W] nats."""
        model = model or self.model
        assert isinstance(model, VectorPixelCNN)
        levels = [level[indices] for level in self.store.levels[: self.level + 1]]
        return model.nll(levels[-1], tuple(levels[:-1]), labels if self.config.prior.classes else None)

    def after_step(self, step: int, accelerator: Accelerator) -> dict[str, Any]:
        """Nothing to do."""
        return {}

    def counts(self) -> list[Tensor]:
        """No statistics."""
        return []

    @torch.no_grad()
    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, Any]:
        """Held-out nats per vector."""
        parts = torch.from_numpy(self.store.heldout).split(self.settings.batch)
        nats = float(torch.cat([self.nll(part, self.store.labels[part], model) for part in parts]).mean())
        return {"score": nats, "heldout_nats": nats}

    def draw(self, model: nn.Module, path: Path) -> None:
        """Draws nothing."""


def trained(objective: Any, settings: Any, folder: Path, seed: int) -> Any:
    """The model of the objective in eval mode, trained now or read from its folder; and its figures."""
    file = folder / "model.safetensors"
    if not file.exists():
        outcome = fit(objective, settings, folder, make_accelerator(), Reporter(), seed)
        figures = {"seconds": outcome.seconds, **outcome.figures}
        tensor_file.save_tensors(file, objective.model.state_dict(), {"figures": figures})
    tensors, metadata = tensor_file.load_tensors(file)
    tensor_file.load_weights(objective.model, tensors, file)
    return objective.model.eval(), metadata["figures"]


def patches(level: Tensor, rows: slice) -> Tensor:
    """Every 2x2 neighbourhood of vectors [n, h, w, D] whose upper row is among `rows`: [m, 4 D]."""
    stacked = torch.cat([level[:, :-1, :-1], level[:, :-1, 1:], level[:, 1:, :-1], level[:, 1:, 1:]], 3)
    return stacked[:, rows].flatten(0, 2)


def drift(samples: Tensor, heldout: Tensor, real: Tensor) -> list[float]:
    """Per row: the distance of 2x2 neighbourhoods of samples to the nearest real one, divided by that of held-out images.

    1 means as near as in held-out images; an increase from row to row is drift. Real neighbourhoods are those of the training
    images at the same row.
    """
    ratios = []
    for row in range(real.shape[1] - 1):
        own = patches(real, slice(row, row + 1))
        near = [
            float(torch.cdist(patches(x, slice(row, row + 1)), own).amin(1).mean())
            for x in (samples, heldout)
        ]
        ratios.append(near[0] / max(near[1], 1e-9))
    return ratios


def round_trip(autoencoder: VQVAE, levels: list[Tensor], scales: list[Tensor]) -> list[float]:
    """Per level: the mean squared change of the vectors by decoding and encoding, in units of their variance."""
    again = encoded(autoencoder, decoded(autoencoder, levels))
    pairs = zip(again, levels, scales, strict=True)
    return [float(((a - b) / s).square().mean()) for a, b, s in pairs]


def measured(
    autoencoder: VQVAE, samples: list[Tensor], heldout: list[Tensor], train: list[Tensor]
) -> dict[str, Any]:
    """The measures that both arms share, on the vectors that the decoder receives."""
    scales = [level.flatten(0, 2).std(0).clamp_min(1e-3) for level in train]
    few = [[level[:most] for level in part] for part, most in ((samples, 100), (heldout, 100), (train, 500))]
    return {
        "drift per row": [drift(*level) for level in zip(*few, strict=True)],
        "round trip, samples": round_trip(autoencoder, samples, scales),
        "round trip, held out": round_trip(autoencoder, heldout, scales),
    }


def by_row(nll: Tensor) -> list[float]:
    """The mean of each row of [B, H, W]."""
    return nll.double().mean((0, 2)).tolist()


@torch.no_grad()
def codes_arm(run: Run, images: ImageSet, n: int) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Figures, samples and labels of the ordinary run."""
    began = time.perf_counter()
    drawn = next(run.draw(n, None, 0, Sampling(batch=n)))
    seconds = (time.perf_counter() - began) / n
    autoencoder, config = run.autoencoder, run.config
    heldout, labels = next(sequential(images, images.heldout, config.data, batch=len(images.heldout)))
    held = autoencoder.encode(heldout)
    known = labels if run.classes else None
    real = [
        torch.cat(parts)
        for parts in zip(
            *(encoded(autoencoder, p) for p, _ in sequential(images, images.train, config.data, batch=64)),
            strict=True,
        )
    ]
    looked = [
        [q.lookup(level) for q, level in zip(autoencoder.quantizers, codes.levels, strict=True)]
        for codes in (drawn.codes, held)
    ]
    figures = {
        "nats by row, held out": [by_row(-x) for x in run.prior.log_prob_map(held, known)],
        "nats by row, own samples": [by_row(-x) for x in run.prior.log_prob_map(drawn.codes, drawn.labels)],
        **measured(autoencoder, *looked, real),
        "seconds a sample": seconds,
        "held-out psnr": run.figures()["heldout_psnr"],
        "parameters": sum(p.numel() for p in run.prior.parameters()),
    }
    labels = drawn.labels if drawn.labels is not None else torch.zeros(n, dtype=torch.int64)
    return figures, drawn.images, labels


@torch.no_grad()
def vectors_arm(
    run: Run, images: ImageSet, folder: Path, options: argparse.Namespace, labels: Tensor
) -> tuple[dict[str, Any], Tensor]:
    """Figures and samples of the arm without a codebook; trains what is not yet trained."""
    config = run.config
    with torch.enable_grad():
        first = without_codebook(AutoencoderObjective(config, images), options.noise)
        autoencoder, stage1 = trained(first, config.train_autoencoder, folder / "autoencoder", config.seed)
        store = VectorStore(autoencoder, images, config, options.noise)
        objectives = [
            VectorObjective(config, store, level, options.components)
            for level in range(config.autoencoder.levels)
        ]
        for level, objective in enumerate(objectives):
            settings, seed = config.train_prior[level], config.seed + 1 + level
            trained(objective, settings, folder / "prior" / f"level-{level}", seed)
    known = labels if run.classes else None
    began, drawn = time.perf_counter(), []
    for level, objective in enumerate(objectives):
        bounds = store.bounds[level]
        drawn.append(objective.model.draw(tuple(drawn), known, len(labels), bounds, seed=level))
    pictures = decoded(autoencoder, store.raw(drawn))
    seconds = (time.perf_counter() - began) / len(labels)
    own = [
        objective.model.nll(drawn[level], tuple(drawn[:level]), known)
        for level, objective in enumerate(objectives)
    ]
    held = torch.from_numpy(store.heldout)
    heldout = [level[held] for level in store.levels]
    real = [level[len(held) : len(held) + len(images.train)] for level in store.levels]
    return {
        "nats by row, held out": [by_row(o.nll(held, store.labels[held])) for o in objectives],
        "nats by row, own samples": [by_row(nll) for nll in own],
        **measured(autoencoder, *(store.raw(x) for x in (drawn, heldout, real))),
        "seconds a sample": seconds,
        "held-out psnr": stage1["heldout_psnr"],
        "parameters": sum(p.numel() for o in objectives for p in o.model.parameters()),
    }, pictures


def write(folder: Path, pictures: Tensor, labels: Tensor, classes: tuple[str, ...]) -> None:
    """Write one PNG per sample, in a folder per class."""
    for number, (picture, label) in enumerate(zip(to_pil(pictures), labels.tolist(), strict=True)):
        own = folder / classes[label] if classes else folder
        own.mkdir(parents=True, exist_ok=True)
        save_picture(picture, own / f"{number:05d}.png")


def main() -> None:
    """Train both arms, measure them and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="RUNS")
    parser.add_argument("--data", default="emoji64")
    parser.add_argument("--set", action="append", default=[], help="change a setting of both arms, KEY=VALUE")
    parser.add_argument("--components", type=int, default=10, help="components of the mixture (10)")
    parser.add_argument(
        "--noise", type=float, default=0.05, help="standard deviation of the noise in training (.05)"
    )
    parser.add_argument("--n", type=int, default=72, help="samples of each arm, classes in turn (72)")
    options = parser.parse_args()
    base = merge(preset("small64").model_dump(mode="json"), read_yaml(ROOT / "recipes" / "vectors.yaml"))
    config = parse(override(complete(base), options.set))
    train(options.data, options.out / "codes", config)
    run = load(options.out / "codes", "cpu")
    images = open_images(options.data, run.config.data, run.folder / "data", seed=run.config.seed, say=print)
    codes, ours, labels = codes_arm(run, images, options.n)
    vectors, theirs = vectors_arm(run, images, options.out / "vectors", options, labels)
    images.close()
    about = {"components": options.components, "noise": options.noise, "n": options.n, "set": options.set}
    result = {"protocol": about, "codes": codes, "vectors": vectors}
    atomic.write_json(options.out / "vectors.json", result)
    for name, pictures in (("codes", ours), ("vectors", theirs)):
        write(options.out / f"samples-{name}", pictures.cpu(), labels, run.classes)
    save_grid(torch.cat([ours[:32].cpu(), theirs[:32].cpu()]), options.out / "vectors.png", columns=16)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
