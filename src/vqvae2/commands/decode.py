"""`vqvae2 decode`: the images of codes that `vqvae2 encode` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqvae2.commands.options import DecoderOption, ImageFolder, Json, RunName, print_json
from vqvae2.files.progress import Reporter

if TYPE_CHECKING:
    from vqvae2.codec.code_file import CodeFile
    from vqvae2.codes import Codes
    from vqvae2.files.run_folder import DecoderName
    from vqvae2.run import Run

_BATCH = 64  # images decoded at a time
_ABOUT = "decoding.json"


def decode(
    run: Run, path: Path, out: Path, decoder: DecoderName | None = None, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Write the image of each row as a PNG that is named after its original, with the folders in its name.

    These are the images that `vqvae2 reconstruct` makes. Called again, it writes only those that are missing.

    Args:
        path: a file or folder of `encode`.
        out: folder for the images; created.
        decoder: see `Run.decoder_name`.
        reporter: shows the progress; None takes a new one.

    Returns:
        `n`, the number of images; `new`, how many of them were not there; `decoder`, the name of the one that made them.

    Raises:
        UserError: the codes are of another model, or `out` holds images of other codes, or others that would be overwritten, or is
            among the run's images;
            FileError: `path` is damaged.
        RunError: not trained yet, or no such decoder.
    """
    from vqvae2.codec.code_file import open_codes
    from vqvae2.commands.images import image_files_of, save_image
    from vqvae2.errors import UserError
    from vqvae2.files.output import claim, make_folder

    run.check_out(out)
    codes, name = open_codes(path), run.decoder_name(decoder)
    if codes.about["digest"] != run.codes_digest:
        raise UserError(
            f"the codes in {path} are of another model: expected the digest {run.codes_digest[:16]}, "
            f"found {str(codes.about['digest'])[:16]}"
        )
    model = run.decoder(name)
    make_folder(out)
    written = (
        file
        for files, _ in _batches(codes, out)
        for path in files
        for file in image_files_of(path.with_suffix(""), run)
    )
    claim(out / _ABOUT, {"codes": codes.about, "decoder": name}, "images of other codes", written)
    new = 0
    with (reporter or Reporter()).track("images", codes.n, unit="images") as tracker:
        for files, batch in _batches(codes, out):
            missing = [index for index, file in enumerate(files) if not file.exists()]
            if missing:
                images = model.decode(batch[missing].to(run.device)).cpu()
                for index, image in zip(missing, images, strict=True):
                    save_image(image[None], files[index].with_suffix(""), run)
                new += len(missing)
            tracker.update(tracker.done + len(files))
    return {"n": codes.n, "new": new, "decoder": name}


def _batches(codes: CodeFile, out: Path) -> Iterator[tuple[list[Path], Codes]]:
    """The files for the images, and their codes, batch by batch."""
    taken = {_ABOUT}
    for names, batch in codes.batches(_BATCH):
        yield [out / _file_name(text, taken) for text in names], batch


def _file_name(name: str, taken: set[str]) -> str:
    """A path below the folder for an image of this name, with the suffix .png; a name that is taken gets a number.

    Parts that would leave the folder, and characters that a file system may refuse, are replaced.
    """
    from vqvae2.data.frames import plain_stem
    from vqvae2.files.names import free_name

    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", ".", "..")]
    clean = ["".join(c if c.isprintable() and c not in '<>:"|?*' else "_" for c in part) for part in parts]
    whole = PurePosixPath(*clean) if clean else PurePosixPath("image")
    stem = whole.with_name(plain_stem(Path(whole.name)))
    return f"{free_name(str(stem), ['.png'], taken)}.png"


def command(
    run: RunName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="codes that `vqvae2 encode` wrote")],
    out: ImageFolder,
    decoder: DecoderOption = None,
    as_json: Json = False,
) -> None:
    """Turn codes into images again, one PNG for each, named after the original. The codes must be of the same model."""
    from vqvae2.run import load

    result = decode(load(run), file, out, decoder.value if decoder else None)
    if as_json:
        print_json(result)
        return
    typer.echo(f"{result['n']} images, {result['new']} new, with the {result['decoder']} decoder: {out}")
