"""The image files that a verb is called with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vqvae2.codec.codec import MAX_PIXELS
from vqvae2.codec.prior_coding import LANES
from vqvae2.data.augmentation import centre
from vqvae2.data.decoding import load_image
from vqvae2.data.deep import save_values
from vqvae2.data.errors import DataError, ImageError
from vqvae2.data.folder_files import list_folder
from vqvae2.data.frames import frames_of, split_frame
from vqvae2.data.grid import save_picture
from vqvae2.data.pixels import Pixels, to_pil, viewable
from vqvae2.data.skipped import listed_line
from vqvae2.errors import UserError, printable
from vqvae2.files.parts import cut
from vqvae2.processes import Group
from vqvae2.run import Run

ENDINGS = (".png", ".tif", ".npy")
"""Of the files that `save_image` writes; all but the first of images with a `data.range`."""
_SHOWN = 20  # skipped files that are named one by one

Skipped = list[tuple[str, str]]
"""Files that are not used, each with the reason."""


def image_files(paths: Sequence[Path], skipped: Skipped | None = None) -> list[Path]:
    """The files among `paths`, and the image files in the folders among them, sorted per folder.

    A folder is listed by the rule of `data.folder_files`, as for training. A file of several images stands for all of them.

    Args:
        skipped: the other files of the folders are appended, with their reasons.

    Raises:
        UserError: a path does not exist, or a folder holds no image.
    """
    missing = [printable(str(path)) for path in paths if not split_frame(path)[0].exists()]
    if missing:
        raise UserError(f"no such file: {', '.join(missing)}")
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files += [path] if split_frame(path)[1] is not None else frames_of(path)
            continue
        found = list_folder(path)
        unread = found.unread()
        if not found.images:
            why = f" (the first of {len(unread)} files, {listed_line(*unread[0], ': ')})" if unread else ""
            raise UserError(f"no images in {printable(str(path))}{why}")
        files += found.images
        if skipped is not None:
            skipped += [(str(path / name), reason) for name, reason in unread]
    if not files:
        raise UserError("expected at least one image")
    return files


@dataclass(frozen=True)
class SharedImages:
    """The images of a verb, of which this process has decoded its share.

    Attributes:
        files: all that can be used, in order.
        own: blocks of this process: the positions in `files`, and the images, resized and cut to the centre: uint8
            [b, H, W, C], or int16 where `data.range` is set. They stay integers, so that many of them fit in memory.
    """

    files: list[Path]
    own: list[tuple[list[int], Tensor]]


def shared_images(
    run: Run,
    paths: Sequence[Path],
    block: int,
    group: Group,
    say: Callable[[str], None] = lambda text: None,
) -> SharedImages:
    """The images among `paths` and in the folders among them, without the files of folders that cannot be used.

    Args:
        paths: image files, or folders with image files.
        block: files that one process decodes at a time; the cuts do not depend on the number of processes.
        group: the processes, all of which call this.
        say: called with one line of text that counts what was skipped, and one for each of the first 20 such files.

    Raises:
        UserError: as `image_files`, or no file of the folders can be used.
        DataError: a file that is named itself cannot be used, or a file cannot be read for a reason that is not its own.
    """
    data, skipped = run.config.data, Skipped()
    named = {path for path in paths if not path.is_dir()}
    listed = image_files(paths, skipped)
    decoded: list[tuple[list[int], list[Pixels]]] = []
    broken: dict[int, str] = {}
    for rows in group.share(cut(len(listed), block)):
        decoded.append(([], []))
        for number in rows:
            file = listed[number]
            try:
                decoded[-1][1].append(load_image(file, data))
                decoded[-1][0].append(number)
            except ImageError as error:
                if file in named:
                    raise
                broken[number] = reason_alone(file, error)
    every = {number: reason for part in group.gathered(broken) for number, reason in part.items()}
    skipped += [(str(listed[number]), every[number]) for number in sorted(every)]
    say_skipped(skipped, say)
    usable = [number for number in range(len(listed)) if number not in every]
    if not usable:
        raise DataError(f"no usable image: {len(skipped)} files were skipped")
    place = {number: position for position, number in enumerate(usable)}
    own = [
        ([place[number] for number in numbers], torch.from_numpy(centre(np.stack(pixels), data.shape)))
        for numbers, pixels in decoded
        if numbers
    ]
    return SharedImages([listed[number] for number in usable], own)


def say_skipped(skipped: Skipped, say: Callable[[str], None]) -> None:
    """One line that counts the files, and one for each of the first 20; nothing if there are none."""
    if skipped:
        say(f"skipped {len(skipped)} file{'s' * (len(skipped) != 1)} that cannot be used:")
    for item in skipped[:_SHOWN]:
        say(f"  {listed_line(*item, ': ')}")


def reason_alone(file: Path, error: UserError) -> str:
    """What an error says about a file, without the file's name."""
    return str(error).removeprefix(f"{printable(str(file))}: ")


def batches_of(pixels: Sequence[int]) -> Iterator[slice]:
    """Which images are worked on together, in order: at most 64, and at most `MAX_PIXELS` pixels or one image.

    Args:
        pixels: H x W of each.
    """
    begin = together = 0
    for end, count in enumerate(pixels):
        if end > begin and (end - begin == LANES or together + count > MAX_PIXELS):
            yield slice(begin, end)
            begin, together = end, 0
        together += count
    if pixels:
        yield slice(begin, len(pixels))


def image_files_of(stem: Path, run: Run) -> list[Path]:
    """The files that `save_image` may write."""
    endings = ENDINGS[:1] if run.config.data.range is None else ENDINGS
    return [stem.with_name(f"{stem.name}{ending}") for ending in endings]


def save_image(image: Tensor, stem: Path, run: Run) -> Path:
    """Write an image [1, C, H, W] as STEM.png, and where the run has a range also in that range; returns the file to use.

    The PNG is written last: where it is there, everything is.
    """
    whole, data = stem.with_name(f"{stem.name}.png"), run.config.data
    best = whole if data.range is None else save_values(image[0], stem, data)
    save_picture(to_pil(viewable(image))[0], whole)
    return best
