"""What the verbs do with picture files: samples, reconstructions and completions, each with a sheet; scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae2.checkpoint import write_json
from vqvae2.data.augmentation import centre
from vqvae2.data.decoding import load_image, load_mask
from vqvae2.data.grid import save_grid, save_picture
from vqvae2.data.pixels import psnr, to_float, to_pil
from vqvae2.errors import UserError
from vqvae2.generate.sample import Drawn
from vqvae2.run import Completed, Kept, Run
from vqvae2.train.progress import Tracker

_SHEET = 256  # pictures on a sheet of samples, at most
_ROW = 10  # pictures in a row of a sheet of completions, at most
_UNLIKE = 0.05  # a picture whose typicality is at most this is flagged


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
    pictures = [picture[None] for picture in load_pictures(run, files)]
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


def load_pictures(run: Run, files: Sequence[Path]) -> Tensor:
    """Picture files as the run sees them: [B, C, S, S] in [-1, 1].

    Raises:
        DataError: one that cannot be used.
    """
    data = run.config.data
    return to_float(torch.from_numpy(centre(np.stack([load_image(file, data) for file in files]), data.size)))


def refuse_to_overwrite(sources: Iterable[Path | None], written: Iterable[Path]) -> None:
    """Raise a UserError if a file that was read is one of those to be written."""
    targets = {path.resolve() for path in written}
    for source in sources:
        if source is not None and source.resolve() in targets:
            raise UserError(f"{source} would be overwritten; choose another --out")


def completion_files(out: Path, n: int) -> list[Path]:
    """What `write_completions` writes: the pictures by number, the sheet, the list."""
    return [*(out / f"{number:03d}.png" for number in range(n)), out / "sheet.png", out / "completions.json"]


def keep(run: Run, picture: Path, mask: Path | None, levels: int | None) -> Kept:
    """`Run.keep` of files. The mask goes the way of its picture: centre square, resized, the nearest pixel.

    Raises:
        UserError: as there; DataError: a file that cannot be used.
    """
    (image,) = load_pictures(run, [picture])
    data = run.config.data
    if mask is None:
        return run.keep(image, None, levels)
    white = centre(load_mask(mask, data).astype(np.uint8)[None], data.size)[0]
    return run.keep(image, torch.from_numpy(white) == 1, levels)


def write_completions(
    run: Run, kept: Kept, drawn: Iterable[Completed], out: Path, about: dict[str, Any], tracker: Tracker
) -> dict[str, Any]:
    """Write 000.png ..., sheet.png (the picture, what is kept of it, completions) and completions.json, which is returned.

    The list says the share of codes redrawn per level and, after each pass, of each completion and on average: the bits
    of each level, those of the kept codes among them, and the share of moves that were accepted.

    Args:
        drawn: the batches.
        about: how they were drawn; put at the head of completions.json. With its `paste` the pictures have their own
            pixels outside the mask, else they are what the decoder makes of all codes.
    """
    *files, sheet, listing = completion_files(out, about["n"])
    entries: list[dict[str, Any]] = []
    shown = [kept.image.cpu(), kept.shown.cpu()]
    bits: list[Tensor] = []
    accepted: list[Tensor] = []
    for part in drawn:
        pictures = part.images if about["paste"] else part.decoded
        for place, (number, picture) in enumerate(zip(part.numbers, to_pil(pictures), strict=True)):
            entry: dict[str, Any] = {"file": files[number].name, "number": number}
            save_picture(picture, files[number])
            if part.labels is not None:
                entry["label"] = int(part.labels[place])
                entry["class"] = run.classes[entry["label"]]
            whole, own = part.bits[:, place].unbind(1)
            entries.append({**entry, "bits": whole.tolist(), "kept_bits": own.tolist()})
        shown += pictures[: _SHEET - len(shown)].cpu()
        bits.append(part.bits)
        accepted.append(part.accepted)
        tracker.update(part.numbers.stop)
    zoom = max(1, 128 // shown[0].shape[-1])
    save_grid(torch.stack(shown), sheet, columns=min(len(shown), _ROW), zoom=zoom)
    whole, own = torch.cat(bits, 1).mean(1).unbind(1)
    result = {
        **about,
        "sheet": str(sheet),
        "redrawn": [float(where.double().mean()) for where in kept.redrawn],
        "bits": whole.tolist(),
        "kept_bits": own.tolist(),
        "accepted": torch.cat(accepted, 1).mean(1).tolist(),
        "completions": entries,
    }
    write_json(listing, result)
    return result


def score_pictures(run: Run, paths: Sequence[Path], label: str | None, out: Path | None) -> dict[str, Any]:
    """How likely the codes of pictures are, and how typical that is of held-out pictures; the least typical first.

    Args:
        paths: picture files, or folders of them.
        label: the class of all of them; None for "no label".
        out: a file for the result as JSON.

    Returns:
        heldout: the number of held-out pictures of the run, None if it has none; pictures: per picture source, bits (per
        level), bits_per_dimension (bits over C x H x W, per level) and, beside held-out pictures, score, typicality and
        unlike (see `Typical`). In the order given if there are none.
    """
    files = _files(paths)
    refuse_to_overwrite(files, [out] if out else [])
    batch, data = run.sampling.batch, run.config.data
    parts = (files[at : at + batch] for at in range(0, len(files), batch))
    log_prob = torch.cat([run.log_prob(load_pictures(run, part), label) for part in parts]).double()
    dimensions = data.channels * data.size**2
    bits = -log_prob / math.log(2)
    items: list[dict[str, Any]] = [
        {"source": str(file), "bits": row.tolist(), "bits_per_dimension": (row / dimensions).tolist()}
        for file, row in zip(files, bits, strict=True)
    ]
    typical = run.typical(label is not None)
    if typical is not None:
        found = zip(typical.score(log_prob).tolist(), typical.typicality(log_prob).tolist(), strict=True)
        for item, (score, typicality) in zip(items, found, strict=True):
            item |= {"score": score, "typicality": typicality, "unlike": typicality <= _UNLIKE}
        items.sort(key=lambda item: -item["score"])
    result = {"label": label, "heldout": None if typical is None else len(typical), "pictures": items}
    if out is not None:
        write_json(out, result)
    return result


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
