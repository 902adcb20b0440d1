"""The folder that `vqvae2 sample` fills: its files are written and read here.

    OUT/sampling.json          how the samples are drawn; a folder holds samples of one kind
    OUT/codes-FIRST-LAST.npz   one batch: `numbers`, `labels` (with classes), `level_0` ... (integers [n, h, w]); with the
                               form "npz" also `images` (uint8 [n, H, W, C]); of samples that a critic chose also
                               `candidates` and `scores`
    OUT/NUMBER.png             with the form "png", one file per sample; of a run with `data.range` also NUMBER.tif or
                               NUMBER.npy with its values (see `save_values`), which is then the file of the sample
    OUT/grid.png               the first 256 samples
    OUT/samples.json           how the samples were drawn, and the file, number, codes and class of each
    OUT/candidates/            with a critic: sampling.json, and the codes and `scores` of all candidates

A codes file is written after the images of its batch, so everything that it names is there in full.

Shapes: n samples, h w grid of a level, C channels, H W image size.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vqvae2.codes import Codes
from vqvae2.config.models import DataConfig
from vqvae2.data.deep import save_values
from vqvae2.data.grid import save_grid, save_picture
from vqvae2.data.pixels import to_float, to_pil, to_uint8, viewable
from vqvae2.errors import UserError
from vqvae2.files import arrays, output
from vqvae2.files.atomic import FileError, read_object, read_text, write_atomic, write_json
from vqvae2.files.progress import Tracker
from vqvae2.generate.reject import Chosen, Scored
from vqvae2.generate.sample import Drawn

Form = Literal["png", "npz", "none"]
"""How images are stored: a PNG each, one array per batch beside its codes, or not at all."""

_SHOWN = 256  # samples in grid.png, at most
_BATCH = re.compile(r"codes-(\d+)-(\d+)\.npz")  # the first and the last number of a batch
_LIST_LIMIT = 2**28  # bytes of samples.json that are read, at most
_WRITTEN = re.compile(r"codes-.*\.npz|grid\.png|samples\.json|\d{5,}\.(png|tif|npy)")
_PATTERN, _GRID, _ABOUT, _LIST = "codes-*.npz", "grid.png", "sampling.json", "samples.json"


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The arrays of a codes file.

    Raises:
        FileError: it is damaged.
    """
    try:
        with arrays.open_members(file) as members:
            yield members
    except (IndexError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise FileError(
            f"{file} is damaged ({type(error).__name__}): delete it, and the same command draws its samples again"
        ) from error


@dataclass(frozen=True)
class SampleFolder:
    """A folder that is filled batch by batch, and can be continued after an interruption. It is also a `reject.Pool`.

    Attributes:
        path: OUT.
        about: how the samples are drawn, JSON-ready.
        form: see `Form`.
        values: settings of the data with a `range`: with the form "png", NUMBER.tif or NUMBER.npy holds the values in that range,
            too.
    """

    path: Path
    about: dict[str, Any]
    form: Form = "png"
    values: DataConfig | None = None

    def claim(self) -> None:
        """Make the folder, or check that it was made for samples of this kind.

        Raises:
            UserError: it cannot be made, or as `claim`.
        """
        output.make_folder(self.path)
        claim(self.path, {"pictures": self.form, **self.about})

    def missing(self, n: int) -> list[range]:
        """The numbers below n that no batch holds, as ranges."""
        stored = sorted(self._complete_batches(), key=lambda item: item[0].start)
        gaps, begin = [], 0
        for numbers, _ in stored:
            if begin < min(n, numbers.start):
                gaps.append(range(begin, min(n, numbers.start)))
            begin = max(begin, numbers.stop)
        return [*gaps, range(begin, n)] if begin < n else gaps

    def fill(self, drawn: Iterable[Drawn], tracker: Tracker) -> None:
        """Write batches as they are drawn."""
        for part in drawn:
            self.add(part)
            tracker.update(tracker.done + len(part.numbers))

    def add(self, part: Drawn) -> None:
        """Write one batch: its images, then its codes file."""
        if self.form == "png":
            for number, image in zip(part.numbers, to_pil(viewable(part.images)), strict=True):
                save_picture(image, self.path / f"{number:05d}.png")
        if self.form == "png" and self.values is not None:
            for number, image in zip(part.numbers, part.images, strict=True):
                save_values(image, self.path / f"{number:05d}", self.values)
        own = self._arrays(part)
        file = self.path / f"codes-{part.numbers[0]:05d}-{part.numbers[-1]:05d}.npz"
        write_atomic(file, lambda temporary: arrays.write_members(temporary, own))

    def scores(self, count: int) -> Tensor:
        """Scores of the samples 0 .. count - 1, float64 [count]; all are there."""
        return torch.from_numpy(self.read("scores", range(count)))

    def codes(self, numbers: Sequence[int]) -> Codes:
        """Codes of these samples, which are there, in the order of `numbers`."""
        (_, file), *_ = self._batches()
        with _opened(file) as members:
            names = sorted(name for name in members if name.startswith("level_"))
        levels = (self.read(name, numbers).astype(np.int64) for name in names)
        return Codes(tuple(torch.from_numpy(level) for level in levels))

    def read(self, name: str, numbers: Iterable[int]) -> NDArray[Any]:
        """One array of the batches, such as `labels`: the rows of these numbers, which are there, in their order.

        Batches overlap where images that were missing were drawn again in batches of another size.
        """
        wanted = np.fromiter(numbers, np.int64)
        found = np.zeros(len(wanted), bool)
        positions, rows = [], []
        for stored, file in self._batches():
            own = np.flatnonzero((wanted >= stored.start) & (wanted < stored.stop) & ~found)
            if len(own):
                found[own] = True
                positions.append(own)
                with _opened(file) as members:
                    rows.append(members[name][wanted[own] - stored.start])
                    if rows[-1].shape[1:] != rows[0].shape[1:]:
                        raise ValueError("arrays of another shape")
        return np.concatenate(rows)[np.concatenate(positions).argsort()]

    def finish(self, n: int, labels: Sequence[int] | None, classes: Sequence[str]) -> dict[str, Any]:
        """When the samples 0 .. n - 1 are there: write grid.png and samples.json, whose content is returned.

        Args:
            labels: class number of each, None without classes.
            classes: names of the classes.
        """
        shown = self._first(min(n, _SHOWN))
        zoom = max(1, 128 // shown.shape[-1]) if len(shown) <= 16 else 1
        sheet = self.path / _GRID
        save_grid(shown, sheet, columns=max(1, round(len(shown) ** 0.5)), zoom=zoom)
        entries = self._entries(n, labels, classes)
        result = {"n": n, **self.about, "grid": str(sheet), "samples": entries}
        write_list(self.path, result)
        return result

    def _arrays(self, part: Drawn) -> dict[str, NDArray[Any]]:
        own = {
            f"level_{i}": level.cpu().numpy().astype(np.uint16) for i, level in enumerate(part.codes.levels)
        }
        own["numbers"] = np.array(part.numbers)
        if part.labels is not None:
            own["labels"] = part.labels.cpu().numpy()
        if isinstance(part, Scored):
            own["scores"] = part.scores.numpy()
        if isinstance(part, Chosen):
            own["candidates"] = part.candidates.numpy()
        if self.form == "npz":
            own["images"] = to_uint8(part.images).cpu().numpy()
        return own

    def _entries(self, n: int, labels: Sequence[int] | None, classes: Sequence[str]) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        files = {number: file.name for numbers, file in self._batches() for number in numbers}
        present = _present(self.path) if self.form == "png" else frozenset()
        for number in range(n):
            codes = files[number]
            file = self._files(number, present)[-1] if self.form == "png" else codes
            entry: dict[str, Any] = {"file": file, "number": number, "codes": codes}
            if labels is not None:
                entry |= {"label": labels[number], "class": classes[labels[number]]}
            entries.append(entry)
        if "critic" in self.about:
            chosen = zip(self.read("candidates", range(n)), self.read("scores", range(n)), strict=True)
            for entry, (candidate, score) in zip(entries, chosen, strict=True):
                entry |= {"candidate": int(candidate), "score": float(score)}
        return entries

    def _complete_batches(self) -> list[tuple[range, Path]]:
        """The batches whose images are all there too."""
        if self.form != "png":
            return self._batches()
        present = _present(self.path)
        return [item for item in self._batches() if all(self._files(number, present) for number in item[0])]

    def _files(self, number: int, present: frozenset[str]) -> list[str]:
        """The image files of a sample among those that are present, of which the last holds it in its full depth; none unless all
        are there."""
        pictures, values = (
            [name for ending in endings if (name := f"{number:05d}{ending}") in present]
            for endings in ((".png",), (".tif", ".npy"))
        )
        if self.values is None:
            return pictures
        return [*pictures, values[0]] if pictures and values else []

    def _batches(self) -> list[tuple[range, Path]]:
        names = ((_BATCH.fullmatch(file.name), file) for file in self.path.glob(_PATTERN))
        return [(range(int(name[1]), int(name[2]) + 1), file) for name, file in names if name]

    def _first(self, count: int) -> Tensor:
        """The first `count` images, float [count, C, H, W] in [-1, 1]."""
        if self.form == "png":
            files = [self.path / f"{i:05d}.png" for i in range(count)]
            images = [_pixels(file) for file in files]
            usual, _ = Counter(image.shape for image in images).most_common(1)[0]
            for file, image in zip(files, images, strict=True):
                if image.shape != usual:
                    raise _damaged(file)
            pixels = np.stack(images)
        else:
            pixels = self.read("images", range(count))
        return to_float(torch.from_numpy(pixels))


def _pixels(file: Path) -> NDArray[np.uint8]:
    """The pixels of a sample [H, W, C]."""
    try:
        with Image.open(file) as image:
            if image.mode not in ("L", "RGB", "RGBA"):
                raise ValueError("another image than a sample")
            pixels = np.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _damaged(file) from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _damaged(file: Path) -> FileError:
    return FileError(f"{file} is damaged or no sample: delete it, and the same command draws it again")


def _present(folder: Path) -> frozenset[str]:
    """The names of the files in a folder that are not empty, in one pass over it."""
    with os.scandir(folder) as entries:
        return frozenset(entry.name for entry in entries if _holds_something(entry))


def _holds_something(file: os.DirEntry[str]) -> bool:
    try:
        return file.stat().st_size > 0
    except OSError:
        return False


@dataclass(frozen=True)
class StoredSamples:
    """The samples of a folder of the form "npz", from number 0 up to the first one that is missing.

    Attributes:
        n: how many.
        labels: int64 [n]; None if one of them has no class.
        about: the text of sampling.json.
        batches: the numbers in each file, and the file; ascending.
    """

    n: int
    labels: Tensor | None
    about: str
    batches: tuple[tuple[range, Path], ...]

    def images(self, start: int, stop: int) -> Iterator[Tensor]:
        """The images `start` .. min(stop, n) - 1 in order, float [b, C, H, W] in [-1, 1], as many at a time as a file holds."""
        at, stop = start, min(stop, self.n)
        for numbers, file in self.batches:
            if at < stop and numbers.start <= at < numbers.stop:
                with _opened(file) as members:
                    own = members["images"][at - numbers.start : stop - numbers.start]
                    if own.ndim != 4 or own.dtype != np.uint8 or not len(own):
                        raise ValueError("no images")
                at += len(own)
                yield to_float(torch.from_numpy(own))


def claim(folder: Path, about: dict[str, Any]) -> None:
    """Write sampling.json, or check that it says the same already.

    Args:
        about: how the samples are drawn, JSON-ready.

    Raises:
        UserError: the folder holds samples that were drawn differently, and the message lists the differences; or it has no
            sampling.json, and files that samples have.
    """
    model = about.get("model", {})
    former = {"decoder": {"name": "plain", "digest": model.get("autoencoder")}} if "decoder" in about else {}
    taken = (file for file in folder.glob("*") if _WRITTEN.fullmatch(file.name))
    output.claim(folder / _ABOUT, about, "samples that were drawn differently", taken, former)


def write_list(folder: Path, result: dict[str, Any]) -> None:
    """Write samples.json.

    Args:
        result: `samples` lists an entry per sample, with its `file` and, with classes, `class`; further keys say how they
            were drawn.
    """
    write_json(folder / _LIST, result)


def read_samples(folder: Path) -> StoredSamples:
    """The samples with images that `vqvae2 sample --pictures npz` left in a folder.

    Raises:
        UserError: there are none.
    """
    batches: list[tuple[range, Path]] = []
    for file in sorted(folder.glob(_PATTERN)):
        with _opened(file) as members:
            numbers = members["numbers"]
            if "images" in members and len(numbers):
                first, last = int(numbers[0]), int(numbers[-1])
                if first < 0 or last - first + 1 != len(numbers):
                    raise ValueError("numbers that do not follow each other")
                batches.append((range(first, last + 1), file))
    batches.sort(key=lambda item: item[0].start)
    n = 0
    for stored, _ in batches:
        n = max(n, stored.stop) if stored.start <= n else n
    if not n:
        raise UserError(f"no samples in {folder}: expected {_PATTERN} with the images in them")
    labels = torch.full((n,), -1)
    for stored, file in batches:
        with _opened(file) as members:
            if "labels" in members:
                own = torch.from_numpy(members["labels"])[: max(0, n - stored.start)]
                labels[stored.start : stored.start + len(own)] = own
    about = read_text(folder / _ABOUT)
    return StoredSamples(n, labels if bool((labels >= 0).all()) else None, about, tuple(batches))


def holds_arrays(folder: Path) -> bool:
    """Whether the images of a folder are in the arrays of its batches rather than in PNG files."""
    single = (file for file in folder.glob("*.png") if _WRITTEN.fullmatch(file.name) and file.name != _GRID)
    return any(folder.glob(_PATTERN)) and not any(single)


def listed_samples(folder: Path) -> list[tuple[str, str]]:
    """The file and the class name ("" without classes) of each sample that samples.json lists; [] if there is no such file.

    Raises:
        FileError: samples.json is damaged.
    """
    file = folder / _LIST
    if not file.is_file():
        return []
    entries = read_object(file, _LIST_LIMIT).get("samples", [])
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "file" in e for e in entries):
        raise FileError(f"{file} is damaged: expected an entry with a file for each sample")
    return [(str(entry["file"]), str(entry.get("class", ""))) for entry in entries]
