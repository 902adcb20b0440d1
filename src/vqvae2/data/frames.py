"""Files that hold several images, such as the slices of a volume: one rule for their names, in every command.

    scan.nii.gz --frames_of--> scan.nii.gz#0, scan.nii.gz#1, ...

Which files those are, and in which order their images come, says `medical`.
"""

from __future__ import annotations

import re
from pathlib import Path

from vqvae2.data.medical import NIFTI_SUFFIXES, count_frames

_ADDRESS = re.compile(r"(?P<file>.+)#(?P<number>\d{1,9})", re.DOTALL)


def split_frame(path: Path) -> tuple[Path, int | None]:
    """The file in which an image is, and its number there; None is a file as a whole.

    A file that really has such a name is meant before the image of another file.
    """
    match = _ADDRESS.fullmatch(path.name)
    if match is None or path.exists():
        return path, None
    return path.with_name(match["file"]), int(match["number"])


def file_of(name: str) -> str:
    """The name of the file in the name of an image: `a/scan.nii` of `a/scan.nii#12`, and all other names as they are."""
    match = _ADDRESS.fullmatch(name)
    return match["file"] if match else name


def frames_of(file: Path) -> list[Path]:
    """The images in a file, by name: the file itself if it holds one, or if it cannot be told."""
    count = count_frames(file)
    return [file] if count == 1 else [file.with_name(f"{file.name}#{number}") for number in range(count)]


def plain_stem(path: Path) -> str:
    """The name of an image without the ending of its file: `scan-12` of `scan.nii.gz#12`."""
    file, number = split_frame(path)
    ending = next((ending for ending in NIFTI_SUFFIXES if file.name.lower().endswith(ending)), file.suffix)
    stem = file.name.removesuffix(file.name[len(file.name) - len(ending) :]) if ending else file.name
    return stem if number is None else f"{stem}-{number}"
