"""`vqvae2 decompress`: the images of files that `vqvae2 compress` wrote."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqvae2.commands.options import DecoderOption, ImageFolder, Json, RunName, print_json, refuse_unused
from vqvae2.errors import UserError
from vqvae2.files.lock import locks
from vqvae2.files.progress import Reporter

if TYPE_CHECKING:
    from vqvae2.codec.codec import Decompressed
    from vqvae2.commands.images import Skipped
    from vqvae2.files.run_folder import DecoderName
    from vqvae2.run import Run

_BATCH = 64  # files that are read in one batch
_RECORD = "decompressed.json"


@locks("out")
def decompress(
    run: Run,
    paths: Sequence[Path],
    out: Path,
    decoder: DecoderName | None = None,
    fill: bool = False,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Write NAME.png of each file. `OUT/decompressed.json` lists what was written, which may be replaced by the next call.

    Args:
        paths: files of `compress`, or folders with such files (those that end in .vq); files of folders that cannot be
            decoded are skipped and counted.
        out: folder for the images; created.
        decoder: see `Run.decoder_name`.
        fill: draw the levels that a file lacks from the prior; otherwise they are left out. If the priors cannot be used
            without a label, a file that lacks levels and has no label counts as one that cannot be decoded.
        seed: of these draws.
        reporter: shows the progress and says what is skipped; None takes a new one.

    Returns:
        Per file: `source`, `file`, `levels` (how many the file holds), `filled` (how many were drawn).

    Raises:
        LockError: another command writes into `out`.
        UserError: a missing file, or a folder that cannot be made, holds a file in the way, or is among the run's images.
        CodecError: a file that is named itself is damaged or of another model (the images of the files before it have been
            written), or no file of the folders can be decoded.
    """
    from vqvae2.codec.errors import CodecError
    from vqvae2.commands.images import Skipped, batches_of, image_files_of, save_image, say_skipped
    from vqvae2.files.output import claim_files, make_folder

    run.check_out(out)
    files, model, reporter = _files(paths), run.decoder(decoder), reporter or Reporter()
    named, skipped = {path for path in paths if not path.is_dir()}, Skipped()
    stems = _stems(files, out)
    results: list[dict[str, Any]] = []
    with reporter.track("decompress", len(files), unit="images") as tracker:
        for begin in range(0, len(files), _BATCH):
            some = files[begin : begin + _BATCH]
            read = _read(run, some, named, skipped, fill)
            if read and not results:
                make_folder(out)  # only now, so that a refused command leaves nothing
                claim_files(out / _RECORD, (file for stem in stems for file in image_files_of(stem, run)))
            for together in batches_of([one.layout.pixels for _, one in read]):
                found = [one for _, one in read[together]]
                whole = [run.codec.fill(one, seed, run.sampling) for one in found] if fill else found
                images = run.codec.decode(whole, model)
                for (index, one), other, image in zip(read[together], whole, images, strict=True):
                    target = save_image(image[None], stems[begin + index], run)
                    item = {"source": str(some[index]), "file": str(target)}
                    filled = len(other.grids) - len(one.grids)
                    results.append({**item, "levels": len(one.grids), "filled": filled})
            tracker.update(begin + len(some))
    say_skipped(skipped, reporter.say)
    if not results:
        raise CodecError(f"no usable file: {len(skipped)} were skipped")
    return results


def _stems(files: Sequence[Path], out: Path) -> list[Path]:
    """OUT/NAME of each file; a name that is taken gets a number."""
    from vqvae2.commands.images import ENDINGS
    from vqvae2.files.names import free_name

    taken: set[str] = set()
    return [out / free_name(file.stem, ENDINGS, taken) for file in files]


def _read(
    run: Run, files: Sequence[Path], named: Container[Path], skipped: Skipped, fill: bool
) -> list[tuple[int, Decompressed]]:
    """The indices and codes of the files that can be decoded; the others are appended to `skipped`, or raised if they are
    `named`."""
    from vqvae2.codec.errors import CodecError
    from vqvae2.data.errors import ImageError, reading_failed
    from vqvae2.errors import printable

    def refuse(file: Path, error: UserError) -> None:
        if file in named or not isinstance(error, CodecError | ImageError):
            raise type(error)(f"{printable(str(file))}: {error}") from error
        skipped.append((str(file), str(error)))

    contents: list[tuple[int, bytes]] = []
    for index, file in enumerate(files):
        try:
            contents.append((index, file.read_bytes()))
        except OSError as error:
            refuse(file, reading_failed(error))
    try:
        found = _codes(run, [content for _, content in contents], fill)
        return [(index, one) for (index, _), one in zip(contents, found, strict=True)]
    except CodecError:  # of one of them: one by one
        pass
    read: list[tuple[int, Decompressed]] = []
    for index, content in contents:
        try:
            read.append((index, _codes(run, [content], fill)[0]))
        except CodecError as error:
            refuse(files[index], error)
    return read


def _codes(run: Run, contents: Sequence[bytes], fill: bool) -> list[Decompressed]:
    """The codes in the contents of files.

    Raises:
        CodecError: one of them cannot be decoded, or, with `fill`, lacks levels that cannot be drawn.
    """
    from vqvae2.codec.errors import CodecError

    found = run.codec.decompress(contents)
    lack = run.config.prior.lacks_unlabelled() if fill else None
    if lack and any(one.label is None and len(one.grids) < run.codec.levels for one in found):
        raise CodecError(f"{lack}: the levels that it lacks cannot be drawn, because it has no label")
    return found


def _files(paths: Sequence[Path]) -> list[Path]:
    """The files among the paths, and those that end in .vq in the folders among them."""
    from vqvae2.commands.compress import SUFFIX

    files: list[Path] = []
    for path in paths:
        inside = [path]
        if path.is_dir():
            inside = sorted(file for file in path.rglob(f"*{SUFFIX}") if not file.is_dir())
        if not inside:
            raise UserError(f"no compressed images in {path}: expected files that end in {SUFFIX}")
        files += inside
    if missing := [str(path) for path in paths if not path.exists()]:
        raise UserError(f"no such file: {', '.join(missing)}")
    return files


def command(
    run: RunName,
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILES...", help="files of `vqvae2 compress`, or folders with them"),
    ],
    out: ImageFolder,
    decoder: DecoderOption = None,
    fill: Annotated[
        bool,
        typer.Option(help="draw the levels that a file lacks, because it was cut off, from the run's priors"),
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="seed of the random numbers of --fill [default: 0]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn compressed files into images, NAME.png. The run must be the one that compressed them.

    A file may be cut off after any of its levels; the image then shows the coarser levels alone.
    """
    from vqvae2.run import load

    if not fill:
        refuse_unused({"--seed": seed}, "nothing is drawn without --fill")
    loaded = load(run)
    results = decompress(loaded, files, out, decoder.value if decoder else None, fill, seed or 0)
    if as_json:
        print_json(results)
        return
    levels = loaded.config.autoencoder.levels
    for item in results:
        note = "" if item["levels"] == levels else f"  {item['levels']} of {levels} levels"
        note += f", {item['filled']} drawn" if item["filled"] else ""
        typer.echo(f"{item['source']}: {item['file']}{note}")
