"""What the verbs write into a folder of pictures: samples and reconstructions, with a sheet and a list of what they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae2.checkpoint import write_json
from vqvae2.data.decoding import load_image
from vqvae2.data.grid import save_grid, save_picture
from vqvae2.data.pixels import psnr, to_float, to_pil
from vqvae2.errors import UserError
from vqvae2.generate.sample import Drawn
from vqvae2.run import Run
from vqvae2.train.progress import Tracker

_SHEET = 256  # pictures on a sheet of samples, at most


def make_folder(path: Path) -> None:
    """Make a folder for pictures.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}") from None


def write_samples(
    drawn: Iterable[Drawn], classes: Sequence[str], out: Path, about: dict[str, Any], tracker: Tracker
) -> dict[str, Any]:
    """Write 00000.png ..., grid.png of the first 256, and samples.json, whose content is returned.

    Args:
        drawn: the batches.
        classes: names of the classes, () without.
        about: how they were drawn; put at the head of samples.json.
    """
    entries: list[dict[str, Any]] = []
    shown: list[Tensor] = []
    for part in drawn:
        for place, (number, picture) in enumerate(zip(part.numbers, to_pil(part.images), strict=True)):
            entry: dict[str, Any] = {"file": f"{number:05d}.png", "number": number}
            save_picture(picture, out / entry["file"])
            if part.labels is not None:
                entry["label"] = int(part.labels[place])
                entry["class"] = classes[entry["label"]]
            entries.append(entry)
        shown += part.images[: _SHEET - len(shown)].cpu()
        tracker.update(part.numbers.stop)
    zoom = max(1, 128 // shown[0].shape[-1]) if len(shown) <= 16 else 1
    save_grid(torch.stack(shown), out / "grid.png", columns=max(1, round(len(shown) ** 0.5)), zoom=zoom)
    result = {**about, "grid": str(out / "grid.png"), "samples": entries}
    write_json(out / "samples.json", result)
    return result


def write_reconstructions(run: Run, paths: Sequence[Path], out: Path) -> list[dict[str, Any]]:
    """Write NAME.png and NAME-levels.png (the original, the coarsest level alone, ... all) of each picture.

    No source picture is overwritten, and nothing is written if one of them cannot be read.

    Args:
        paths: picture files, or folders of them.

    Returns:
        Per picture: source, file, levels (the sheet), and psnr in dB with 1, 2, ... levels.
    """
    autoencoder, size = run.autoencoder, run.config.data.size
    files = _files(paths)
    pictures = [to_float(torch.from_numpy(load_image(file, run.config.data))[None]) for file in files]
    make_folder(out)
    taken = {file.name.casefold() for file in files if file.resolve().parent == out.resolve()}
    results: list[dict[str, Any]] = []
    for file, original in zip(files, pictures, strict=True):
        codes = autoencoder.encode(original.to(run.device))
        steps = [
            autoencoder.decode(codes, count).cpu() for count in range(1, run.config.autoencoder.levels + 1)
        ]
        stem = _free_name(file.stem, taken)
        whole, sheet = out / f"{stem}.png", out / f"{stem}-levels.png"
        save_picture(to_pil(steps[-1])[0], whole)
        save_grid(torch.cat([original, *steps]), sheet, columns=1 + len(steps), zoom=max(1, 128 // size))
        found = [float(psnr(step, original)[0]) for step in steps]
        results.append({"source": str(file), "file": str(whole), "levels": str(sheet), "psnr": found})
    return results


def _files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        inside = path.rglob("*") if path.is_dir() else ()
        files += sorted(p for p in inside if p.is_file() and not p.name.startswith(".")) or [path]
    missing = [str(path) for path in files if not path.exists()]
    if missing:
        raise UserError(f"no such file: {', '.join(missing)}")
    empty = [str(path) for path in files if path.is_dir()]
    if empty or not files:
        raise UserError(f"no pictures in {', '.join(empty)}")
    return files


def _free_name(stem: str, taken: set[str]) -> str:
    """`stem`, or with a number such that neither STEM.png nor STEM-levels.png is `taken`; both are from now on."""
    for name in itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2))):
        files = {f"{name}.png".casefold(), f"{name}-levels.png".casefold()}
        if not files & taken:
            taken |= files
            return name
    raise AssertionError("the numbers never end")
