"""Draw samples of BigGAN-deep, the paper's baseline, into folders that `vqvae2 evaluate --samples` takes.

    python experiments/baselines/biggan.py --weights biggan-deep-256 --out OUT [--classes all] [--per-class 50]
                                       [--truncation 0.2,0.5,1] [--names FILE] [--seed 0] [--batch 8] [--device cpu]

It needs `pytorch-pretrained-biggan` in an environment of its own; see README.md in this folder. OUT/truncation-T/CLASS/NUMBER.png
are the images, equally many of each class, and OUT/truncation-T/samples.json lists them. Image NUMBER of a class depends only on the
seed, the class and the number: the same command again draws what is missing, and a larger --per-class or more classes add images.

The network, the truncated noise and the pixels are the package's; its weights too (downloaded where it keeps them), or a folder's.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch_pretrained_biggan import (
    BigGAN,
    BigGANConfig,
    cached_path,
    convert_to_images,
    one_hot_from_names,
    truncated_noise_sample,
)
from pytorch_pretrained_biggan.model import (
    CONFIG_NAME,
    PRETRAINED_CONFIG_ARCHIVE_MAP,
    PRETRAINED_MODEL_ARCHIVE_MAP,
    WEIGHTS_NAME,
    BigGANBatchNorm,
)
from pytorch_pretrained_biggan.utils import IMAGENET

from vqvae2.errors import UserError
from vqvae2.files.atomic import write_atomic
from vqvae2.files.progress import Reporter
from vqvae2.generate.sample import class_number
from vqvae2.generate.sample_folder import claim, write_list

_WORDNET = re.compile(r"(n\d{8})\b\s*(.*)")  # a line of ImageNet's own lists: "n01440764 tench, Tinca tinca"


def load(weights: str, device: str = "cpu") -> tuple[BigGAN, list[torch.Tensor], str]:
    """The generator in eval mode, its batch statistics [2, rows, C] for `truncate`, and the sha-256 of its weights file.

    Not the package's `from_pretrained`, because that passes over weights that are missing.

    Args:
        weights: a model of the package (biggan-deep-128, -256, -512), or a folder with config.json and pytorch_model.bin.

    Raises:
        UserError: a file that is missing, cannot be downloaded, holds more than tensors, or does not fit the network.
    """
    model = PRETRAINED_MODEL_ARCHIVE_MAP.get(weights, str(Path(weights) / WEIGHTS_NAME))
    config = PRETRAINED_CONFIG_ARCHIVE_MAP.get(weights, str(Path(weights) / CONFIG_NAME))
    try:
        file, settings = cached_path(model), cached_path(config)
    except OSError as error:
        known = ", ".join(PRETRAINED_MODEL_ARCHIVE_MAP)
        raise UserError(
            f"no weights {weights!r}: expected one of {known}, or a folder with {CONFIG_NAME} and {WEIGHTS_NAME} ({error})"
        ) from error
    network = BigGAN(BigGANConfig.from_json_file(settings))
    try:
        found = network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True), strict=False)
    except Exception as error:  # torch raises whatever the unpickler met
        raise UserError(f"cannot load {model}: {str(error).splitlines()[0]}") from error
    if found.missing_keys:
        raise UserError(f"{model} lacks {len(found.missing_keys)} weights, the first {found.missing_keys[0]}")
    network.to(device).eval()
    statistics = [torch.stack([norm.running_means, norm.running_vars]) for norm in _norms(network)]
    with Path(file).open("rb") as opened:
        return network, statistics, hashlib.file_digest(opened, "sha256").hexdigest()


def truncate(network: BigGAN, statistics: Sequence[torch.Tensor], truncation: float) -> None:
    """Let the network, called with truncation 1, normalise by the batch statistics of another one.

    The package keeps them for truncations 0, 0.02, ... 1. Between two rows it swaps their weights. At 0.28, where
    0.28 / 0.02 is slightly more than 14, it therefore uses those of 0.30. Here each row has its correct weight.

    Args:
        statistics: of `load`, as the weights have them.
        truncation: above 0, up to 1.
    """
    for module, (means, variances) in zip(_norms(network), statistics, strict=True):
        place = truncation * (len(means) - 1)
        row = min(int(place), len(means) - 2)
        module.running_means = torch.lerp(means[row], means[row + 1], place - row).expand(2, -1)
        module.running_vars = torch.lerp(variances[row], variances[row + 1], place - row).expand(2, -1)
        module.step_size = 1.0


def _norms(network: BigGAN) -> list[BigGANBatchNorm]:
    return [module for module in network.modules() if isinstance(module, BigGANBatchNorm)]


def class_names(count: int, listed: Path | None) -> tuple[list[str], list[str]]:
    """The folder of each class, and a name by which it may be asked for.

    Of ImageNet's 1000 classes the folder is the WordNet id, as in ImageNet itself.

    Args:
        count: classes of the network.
        listed: a file with a line per class, in order: NAMES, or ID NAMES as ImageNet has it (LOC_synset_mapping.txt).

    Raises:
        UserError: another number of lines than of classes, two classes of one name.
    """
    offsets = {number: f"n{offset:08d}" for offset, number in IMAGENET.items()} if count == 1000 else {}
    folders = [offsets.get(number, f"class-{number:04d}") for number in range(count)]
    if listed is None:
        return folders, folders
    names = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
    parts = [_WORDNET.match(name) for name in names]
    if all(parts):
        folders = [str(part[1]) for part in parts if part]
        names = [str(part[2]) or str(part[1]) for part in parts if part]
    elif not offsets:
        folders = [re.sub(r"[^\w.-]+", "_", name) for name in names]
    if len(names) != count or len(set(folders)) != count:
        raise UserError(
            f"expected {count} different classes in {listed}, found {len(set(folders))} in {len(names)} lines"
        )
    return folders, names


def class_list(asked: str, folders: Sequence[str], names: Sequence[str]) -> list[int]:
    """Class numbers of "all", of a comma-separated list, or of a file with one class a line.

    A class is a number, a folder's name, a name, or, of ImageNet, any word that the package finds in WordNet.

    Raises:
        UserError: an unknown class.
    """
    if asked == "all":
        return list(range(len(folders)))
    words = (
        Path(asked).read_text(encoding="utf-8").splitlines() if Path(asked).is_file() else asked.split(",")
    )
    return list(dict.fromkeys(_class_number(word.strip(), folders, names) for word in words if word.strip()))


def _class_number(word: str, folders: Sequence[str], names: Sequence[str]) -> int:
    if word in folders:
        return folders.index(word)
    synonyms = [[name.strip().casefold() for name in line.split(",")] for line in names]
    hits = [number for number, line in enumerate(synonyms) if word.casefold() in line]
    if len(hits) == 1:
        return hits[0]
    if not word.isdecimal() and folders is names and len(folders) == 1000:
        try:
            found = one_hot_from_names(word)
        except (ImportError, LookupError):
            raise UserError(
                f"class {word!r}: names need --names FILE, or nltk with its wordnet corpus; numbers and WordNet ids do not"
            ) from None
        if found is not None:
            return int(found.argmax())
    return class_number(word, names)


def noise(network: BigGAN, truncation: float, seed: int, label: int, number: int) -> torch.Tensor:
    """[1, Z] of one image: normal within [-2, 2] by the package, times the truncation."""
    drawn = truncated_noise_sample(1, network.config.z_dim, truncation, seed=[seed, label, number])
    return torch.from_numpy(np.asarray(drawn, np.float32))


@torch.no_grad()
def draw(
    network: BigGAN, truncation: float, seed: int, wanted: Sequence[tuple[int, int]]
) -> list[Image.Image]:
    """The images (class, number) of a seed, as one batch, of a network that is truncated alike."""
    device = network.embeddings.weight.device
    z = torch.cat([noise(network, truncation, seed, *item) for item in wanted]).to(device)
    labels = torch.tensor([label for label, _ in wanted], device=device)
    hot = torch.nn.functional.one_hot(labels, network.config.num_classes).float()
    images: list[Image.Image] = convert_to_images(network(z, hot, 1.0).cpu())
    return images


def fill(folder: Path, network: BigGAN, about: dict[str, Any], plan: dict[int, str], options: Any) -> None:
    """Draw what is missing of one truncation, then write samples.json.

    Args:
        about: what all images of the folder have in common.
        plan: the folder of each class that is asked for.
    """
    claim(folder, about)
    files = {
        (label, number): f"{name}/{number:05d}.png"
        for number in range(options.per_class)
        for label, name in plan.items()
    }
    missing = [item for item, file in files.items() if not (folder / file).exists()]
    with Reporter().track(folder.name, len(files), len(files) - len(missing), "images") as tracker:
        for start in range(0, len(missing), options.batch):
            part = missing[start : start + options.batch]
            pictures = draw(network, about["truncation"], about["seed"], part)
            for item, picture in zip(part, pictures, strict=True):
                write_atomic(folder / files[item], lambda path, picture=picture: picture.save(path, "PNG"))
            tracker.update(len(files) - len(missing) + start + len(part))
    entries = [
        {"file": file, "number": number, "label": label, "class": plan[label]}
        for (label, number), file in files.items()
    ]
    write_list(folder, {"n": len(entries), **about, "samples": entries})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="biggan-deep-128, -256, -512, or a folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--classes", default="all", help="all, a comma-separated list, or a file (all)")
    parser.add_argument("--per-class", type=int, default=50, help="images of each class (50)")
    parser.add_argument("--truncation", default="1", help="one or several, comma-separated (1)")
    parser.add_argument("--names", type=Path, help="file with the names of all classes, a line each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8, help="images at once; changes memory and speed (8)")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    try:
        if options.per_class < 1 or options.batch < 1 or not 0 <= options.seed < 2**32:
            raise UserError("expected --per-class and --batch of at least 1, and a seed of 0 to 2^32 - 1")
        truncations = [float(word) for word in options.truncation.split(",")]
        if not all(0 < truncation <= 1 for truncation in truncations):
            raise UserError(f"expected truncations above 0 and up to 1, found {options.truncation}")
        network, statistics, digest = load(options.weights, options.device)
        folders, names = class_names(network.config.num_classes, options.names)
        plan = {number: folders[number] for number in class_list(options.classes, folders, names)}
        for truncation in truncations:
            truncate(network, statistics, truncation)
            about = {
                "model": "BigGAN-deep",
                "weights": digest,
                "truncation": truncation,
                "seed": options.seed,
            }
            fill(options.out / f"truncation-{truncation:g}", network, about, plan, options)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
