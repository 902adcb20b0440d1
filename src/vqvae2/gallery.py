"""What the verbs do with picture files: samples, reconstructions and completions, each with a sheet; scores."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vqvae2.codes import Codes
from vqvae2.config.overrides import differences
from vqvae2.data.augmentation import centre
from vqvae2.data.decoding import load_image, load_mask
from vqvae2.data.grid import save_grid, save_picture
from vqvae2.data.pixels import psnr, to_float, to_pil, to_uint8
from vqvae2.errors import UserError
from vqvae2.files.atomic import read_json, write_atomic, write_json
from vqvae2.files.progress import Tracker
from vqvae2.generate.reject import Chosen, Scored, candidate_plan, place_best
from vqvae2.generate.sample import Drawn
from vqvae2.run import Completed, Kept, Run

_SHEET = 256  # pictures on a sheet of samples, at most
_BATCH = re.compile(r"codes-(\d+)-(\d+)\.npz")  # its first and its last number
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


@dataclass(frozen=True)
class SampleFolder:
    """A folder that fills up with samples, batch by batch, and takes up where it was left.

    Of each batch there is codes-FIRST-LAST.npz: `numbers`, `labels` (with classes), `level_0` ... (integers [n, h, w]), and with
    pictures="npz" also `images` (uint8 [n, H, W, C]). It is written last, so what it names is there in full. Of samples that a
    critic chose there are also `candidates` and `scores`, and in candidates/ the codes and `scores` of all that were drawn.

    Attributes:
        path: OUT.
        about: how the samples are drawn, JSON-ready; a folder holds samples of one kind.
        pictures: "png" for a file each, NUMBER.png; "npz" for all of a batch in its file; "none".
    """

    path: Path
    about: dict[str, Any]
    pictures: Literal["png", "npz", "none"] = "png"

    def claim(self) -> None:
        """Make the folder, or see that it was made for samples of this kind.

        Raises:
            UserError: it cannot be made, or holds samples that were drawn otherwise.
        """
        make_folder(self.path)
        file, mine = self.path / "sampling.json", {"pictures": self.pictures, **self.about}
        if file.exists() and (changed := differences(read_json(file), json.loads(json.dumps(mine)))):
            raise UserError(
                f"{self.path} holds samples that were drawn otherwise ({'; '.join(changed)}); use another --out"
            )
        if not file.exists():
            write_json(file, mine)

    def missing(self, n: int) -> list[range]:
        """The numbers below n that no batch holds, as ranges."""
        there = sorted(self._batches(), key=lambda item: item[0].start)
        gaps, begin = [], 0
        for numbers, _ in there:
            if begin < min(n, numbers.start):
                gaps.append(range(begin, min(n, numbers.start)))
            begin = max(begin, numbers.stop)
        return [*gaps, range(begin, n)] if begin < n else gaps

    def fill(self, drawn: Iterable[Drawn], tracker: Tracker) -> None:
        """Write batches."""
        for part in drawn:
            self.write(part)
            tracker.update(tracker.done + len(part.numbers))

    def write(self, part: Drawn) -> None:
        """Write one batch."""
        arrays = {f"level_{i}": level.cpu().numpy() for i, level in enumerate(part.codes.levels)}
        arrays = {k: v.astype(np.uint16 if v.max() < 2**16 else np.int64) for k, v in arrays.items()}
        arrays["numbers"] = np.array(part.numbers)
        if part.labels is not None:
            arrays["labels"] = part.labels.numpy()
        if isinstance(part, Scored):
            arrays["scores"] = part.scores.numpy()
        if isinstance(part, Chosen):
            arrays["candidates"] = part.candidates.numpy()
        if self.pictures == "npz":
            arrays["images"] = to_uint8(part.images).cpu().numpy()
        elif self.pictures == "png":
            for number, picture in zip(part.numbers, to_pil(part.images), strict=True):
                save_picture(picture, self.path / f"{number:05d}.png")

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]

        write_atomic(self.path / f"codes-{part.numbers[0]:05d}-{part.numbers[-1]:05d}.npz", write)

    def read(self, name: str, numbers: Iterable[int]) -> NDArray[Any]:
        """An array of the batches, such as `level_0`: the rows of these numbers, which are there, in their order."""
        wanted = np.fromiter(numbers, np.int64)
        places, rows = [], []
        for there, file in self._batches():
            own = np.flatnonzero((wanted >= there.start) & (wanted < there.stop))
            if len(own):
                places.append(own)
                with np.load(file) as arrays:
                    rows.append(arrays[name][wanted[own] - there.start])
        return np.concatenate(rows)[np.concatenate(places).argsort()]

    def finish(self, n: int, plan: Sequence[int] | None, classes: Sequence[str]) -> dict[str, Any]:
        """When the first n are there: grid.png of the first 256, and samples.json, whose content is returned.

        Args:
            plan: class number of each, None without classes.
            classes: names of the classes.
        """
        entries: list[dict[str, Any]] = []
        files = {number: file.name for numbers, file in self._batches() for number in numbers}
        for number in range(n):
            codes = files[number]
            entry = {"file": f"{number:05d}.png" if self.pictures == "png" else codes, "number": number}
            entry |= {"codes": codes}
            if plan is not None:
                entry |= {"label": plan[number], "class": classes[plan[number]]}
            entries.append(entry)
        if "critic" in self.about:
            chosen = zip(self.read("candidates", range(n)), self.read("scores", range(n)), strict=True)
            for entry, (candidate, score) in zip(entries, chosen, strict=True):
                entry |= {"candidate": int(candidate), "score": float(score)}
        shown = self._shown(min(n, _SHEET))
        zoom = max(1, 128 // shown.shape[-1]) if len(shown) <= 16 else 1
        save_grid(shown, self.path / "grid.png", columns=max(1, round(len(shown) ** 0.5)), zoom=zoom)
        result = {"n": n, **self.about, "grid": str(self.path / "grid.png"), "samples": entries}
        write_json(self.path / "samples.json", result)
        return result

    def _batches(self) -> list[tuple[range, Path]]:
        names = ((_BATCH.fullmatch(file.name), file) for file in self.path.glob("codes-*.npz"))
        return [(range(int(name[1]), int(name[2]) + 1), file) for name, file in names if name]

    def _shown(self, count: int) -> Tensor:
        """The first `count` pictures, float [count, C, H, W] in [-1, 1]."""
        if self.pictures == "png":
            arrays = [np.array(Image.open(self.path / f"{i:05d}.png")) for i in range(count)]
            pixels = np.stack([a if a.ndim == 3 else a[..., None] for a in arrays])
        else:
            pixels = self.read("images", range(count))
        return to_float(torch.from_numpy(pixels))


def chosen_from(
    candidates: SampleFolder, run: Run, plan: Sequence[int], fraction: float, parts: Iterable[range]
) -> Iterator[Chosen]:
    """The samples of a plan that are the best of a folder of scored candidates, decoded anew.

    Args:
        candidates: holds all of `candidate_plan(plan, fraction)`, each batch with `scores`.
        plan: class number of each sample.
        parts: numbers of the samples, each range one batch.
    """
    count = len(candidate_plan(plan, fraction))
    scores = torch.from_numpy(candidates.read("scores", range(count)))
    places = place_best(scores, plan, fraction)
    for numbers in parts:
        own = places[numbers.start : numbers.stop]
        levels = (candidates.read(f"level_{i}", own) for i in range(run.config.autoencoder.levels))
        codes = Codes(tuple(torch.from_numpy(level.astype(np.int64)).to(run.device) for level in levels))
        labels, images = torch.tensor(plan)[list(numbers)], run.autoencoder.decode(codes)
        yield Chosen(numbers, labels, codes, images, scores[own], torch.tensor(own))


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
