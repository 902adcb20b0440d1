"""`vqvae2 compress`: images as small files, by the codes of a run and its prior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqvae2.commands.options import ImagePaths, Json, RunName, print_json, refuse_unused
from vqvae2.files.lock import locks
from vqvae2.files.names import free_name, names_in
from vqvae2.files.progress import Reporter

if TYPE_CHECKING:
    from torch import Tensor

    from vqvae2.run import Run

SUFFIX = ".vq"
_RECORD = "compressed.json"


class Coding(StrEnum):
    """How codes become bytes."""

    prior = "prior"
    packed = "packed"


@locks("out")
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

    `OUT/compressed.json` lists the image, by its path and its content, and the model of each; only a file of the same ones may
    be replaced by the next call.

    Args:
        paths: image files, or folders with image files; files of folders that cannot be used are skipped and counted.
        out: folder for the files; created.
        mode: see `Run.compress`.
        label: the class of all of them; None for no class.
        resize: resize and cut the images to the model's own size first, as in training; otherwise they keep theirs.
        reporter: shows the progress and says what is skipped; None takes a new one.

    Returns:
        Per image: `source`, `file`, `bytes`, `width`, `height`, `bits_per_pixel`.

    Raises:
        LockError: another command writes into `out`.
        UserError: a missing file, a folder that cannot be made, a label in the mode packed, no label for a prior that never
            learned to do without, or a file of another image, of another model or of others that would be overwritten.
        DataError: a file that is named itself is no image, or no file of the folders can be used.
        RunError, CodecError: not trained yet, or an image that is named itself is too large.
    """
    from vqvae2.commands.images import batches_of
    from vqvae2.files.atomic import write_bytes
    from vqvae2.files.output import claim_origins, make_folder
    from vqvae2.generate.sample import class_number

    reporter = reporter or Reporter()
    _check_mode(run, mode, label)  # before the folder is made
    number = None if label is None else class_number(label, run.classes)
    usable = _usable(run, paths, resize, reporter.say)
    files = [file for file, _ in usable]
    make_folder(out)
    targets = _targets(files, out)
    claim_origins(out / _RECORD, dict(zip(targets, _origins(run, files), strict=True)))
    results: list[dict[str, Any]] = []
    with reporter.track("compress", len(files), unit="images") as tracker:
        for together in batches_of([pixels for _, pixels in usable]):
            some = files[together]
            images = [_load(run, file, resize) for file in some]
            contents = run.codec.compress(images, [number] * len(images), mode.value)
            for file, target, image, content in zip(some, targets[together], images, contents, strict=True):
                write_bytes(target, content)
                results.append(_listed(file, target, content, image.shape[1:]))
            tracker.update(len(results))
    return results


def _check_mode(run: Run, mode: Coding, label: str | None) -> None:
    """Raise `UserError` for a label without effect or one that is needed, `CodecError` for priors that are not trained yet."""
    if mode is Coding.packed:
        refuse_unused({"--label": label}, "the mode packed needs no prior")
        return
    if label is None:
        run.config.prior.check_unlabelled()
    run.codec.prior  # noqa: B018 - raises


def _listed(file: Path, target: Path, content: bytes, size: Sequence[int]) -> dict[str, Any]:
    """What `compress` returns of an image of (height, width) px."""
    height, width = size
    return {
        "source": str(file),
        "file": str(target),
        "bytes": len(content),
        "width": width,
        "height": height,
        "bits_per_pixel": 8 * len(content) / (width * height),
    }


def _targets(files: Sequence[Path], out: Path) -> list[Path]:
    """OUT/NAME.vq of each image; a name that is taken gets a number."""
    from vqvae2.data.frames import plain_stem

    taken = names_in(out, files)
    return [out / f"{free_name(plain_stem(file), [SUFFIX], taken)}{SUFFIX}" for file in files]


def _origins(run: Run, files: Sequence[Path]) -> list[dict[str, str]]:
    """What the compressed file of each image is made of: its path, the digest of the bytes of its file, and the model.

    Raises:
        DataError: a file can no longer be read.
    """
    from vqvae2.data.errors import reading_failed
    from vqvae2.data.frames import split_frame
    from vqvae2.errors import printable
    from vqvae2.files.parts import file_digest

    digests: dict[Path, str] = {}  # of each file once, however many images it holds
    for file in files:
        whole, _ = split_frame(file)
        try:
            digests[whole] = digests.get(whole) or file_digest(whole)
        except OSError as error:
            reason = reading_failed(error)
            raise type(reason)(f"{printable(str(whole))}: {reason}") from error
    return [
        {"image": str(file.resolve()), "content": digests[split_frame(file)[0]], "model": run.codes_digest}
        for file in files
    ]


def _usable(
    run: Run, paths: Sequence[Path], resize: bool, say: Callable[[str], None]
) -> list[tuple[Path, int]]:
    """The images among the paths, each with its number of pixels; all are read once, so that nothing is written if one that is
    named cannot be used."""
    from vqvae2.codec.errors import CodecError
    from vqvae2.commands.images import Skipped, image_files, reason_alone, say_skipped
    from vqvae2.data.errors import DataError, ImageError
    from vqvae2.errors import printable

    named, skipped = {path for path in paths if not path.is_dir()}, Skipped()
    files: list[tuple[Path, int]] = []
    for file in image_files(paths, skipped):
        try:
            _, height, width = _load(run, file, resize).shape
            files.append((file, run.codec.layout((height, width)).pixels))
        except (ImageError, CodecError) as error:
            reason = reason_alone(file, error)
            if file in named:
                raise type(error)(f"{printable(str(file))}: {reason}") from error
            skipped.append((str(file), reason))
    say_skipped(skipped, say)
    if not files:
        raise DataError(f"no usable image: {len(skipped)} files were skipped")
    return files


def _load(run: Run, file: Path, resize: bool) -> Tensor:
    """An image as float [C, H, W] in [-1, 1]."""
    import torch

    from vqvae2.data.decoding import load_whole
    from vqvae2.data.pixels import to_float

    if resize:
        return run.load_images([file])[0]
    return to_float(torch.from_numpy(load_whole(file, run.config.data)[None]))[0]


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
        str | None,
        typer.Option(help="class of all of them, by name or number, on which the prior is conditioned"),
    ] = None,
    resize: Annotated[
        bool,
        typer.Option(help="resize and cut the images to the model's own size; otherwise they keep theirs"),
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
