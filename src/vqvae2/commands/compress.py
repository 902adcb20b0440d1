"""`vqvae2 compress`: images as small files, by the codes of a run and its prior."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqvae2.commands.options import ImagePaths, Json, RunName, print_json
from vqvae2.files.progress import Reporter

if TYPE_CHECKING:
    from torch import Tensor

    from vqvae2.run import Run

SUFFIX = ".vq"
_BATCH = 64  # images that are coded side by side


class Coding(StrEnum):
    """How codes become bytes."""

    prior = "prior"
    packed = "packed"


def compress(
    run: Run,
    paths: Sequence[Path],
    out: Path,
    mode: Coding = Coding.prior,
    label: str | None = None,
    resize: bool = False,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Write NAME.vq of each image. Every file is decoded again as a check before it is written.

    Args:
        paths: image files, or folders with image files.
        out: folder for the files; created.
        mode: see `Run.compress`.
        label: the class of all of them; None for no class.
        resize: resize and cut the images to the model's own square first, as in training; otherwise they keep their size.
        reporter: shows the progress; None takes a new one.

    Returns:
        Per image: `source`, `file`, `bytes`, `width`, `height`, `bits_per_pixel`.

    Raises:
        UserError: a missing file, or a folder that cannot be made; DataError: a file that is no image.
        RunError, CodecError: not trained yet, or an image that is too large.
    """
    from vqvae2.commands.images import free_name, image_files
    from vqvae2.data.frames import plain_stem
    from vqvae2.files.atomic import write_atomic
    from vqvae2.files.output import make_folder
    from vqvae2.generate.sample import class_number

    files = image_files(paths)
    number = None if label is None else class_number(label, run.classes)
    run.codec.digest(mode.value)  # raises before the folder is made if the priors are not trained yet
    for file in files:
        _load(run, file, resize)  # so that nothing is written if one of them cannot be read
    make_folder(out)
    taken = {file.name.casefold() for file in files if file.resolve().parent == out.resolve()}
    results: list[dict[str, Any]] = []
    with (reporter or Reporter()).track("compress", len(files), unit="images") as tracker:
        for begin in range(0, len(files), _BATCH):
            some = files[begin : begin + _BATCH]
            images = [_load(run, file, resize) for file in some]
            contents = run.codec.compress(images, [number] * len(images), mode.value)
            for file, image, content in zip(some, images, contents, strict=True):
                target = out / f"{free_name(plain_stem(file), [SUFFIX], taken)}{SUFFIX}"
                write_atomic(target, partial(_write, content=content))
                _, height, width = image.shape
                item = {"source": str(file), "file": str(target), "bytes": len(content)}
                item |= {"width": width, "height": height}
                results.append(item | {"bits_per_pixel": 8 * len(content) / (width * height)})
            tracker.update(len(results))
    return results


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _load(run: Run, file: Path, resize: bool) -> Tensor:
    """An image as float [C, H, W] in [-1, 1]."""
    import torch

    from vqvae2.commands.images import load_images
    from vqvae2.data.decoding import image_size, load_image
    from vqvae2.data.errors import DataError
    from vqvae2.data.pixels import to_float
    from vqvae2.errors import printable

    if resize:
        return load_images(run, [file])[0]
    try:
        own = {"size": image_size(file), "scale": 1.0}
    except DataError as error:
        raise DataError(f"{printable(str(file))}: {error}") from error
    return to_float(torch.from_numpy(load_image(file, run.config.data.model_copy(update=own))[None]))[0]


def command(
    run: RunName,
    images: ImagePaths,
    out: Annotated[Path, typer.Option(help="folder for the files; made if it does not exist")],
    mode: Annotated[
        Coding,
        typer.Option(
            help="prior: as few bits as the run's priors expect; packed: log2 K bits for each code, which is fast and needs no prior"
        ),
    ] = Coding.prior,
    label: Annotated[
        str | None, typer.Option(help="class of all of them, by name or number, which the prior is told")
    ] = None,
    resize: Annotated[
        bool,
        typer.Option(
            help="resize and cut the images to the model's own square; otherwise they keep their size"
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compress images to NAME.vq. `vqvae2 decompress` with the same run makes images of them.

    The run is needed to decompress, and images unlike those it was trained on become unlike themselves.
    """
    from vqvae2.run import load

    results = compress(load(run), images, out, mode, label, resize)
    if as_json:
        print_json(results)
        return
    for item in results:
        size = f"{item['width']}x{item['height']} px"
        typer.echo(
            f"{item['source']}: {item['file']}  {item['bytes']} bytes, {item['bits_per_pixel']:.3f} bits/px, {size}"
        )
