"""`vqvae2 reconstruct`: images through the codes and back, with all levels and with the coarsest ones alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqvae2.commands.options import (
    DecoderOption,
    ImageFolder,
    ImagePaths,
    Json,
    RunName,
    print_json,
    print_text,
)
from vqvae2.files.names import free_name, names_in
from vqvae2.files.progress import Reporter

if TYPE_CHECKING:
    from torch import Tensor

    from vqvae2.files.run_folder import DecoderName
    from vqvae2.processes import Group
    from vqvae2.run import Run


_OTHERS = "reconstructions of another model or decoder"


def reconstruct(
    run: Run,
    paths: Sequence[Path],
    out: Path,
    decoder: DecoderName | None = None,
    reporter: Reporter | None = None,
    group: Group | None = None,
) -> list[dict[str, Any]]:
    """Write NAME.png and NAME-levels.png (the original, the coarsest level alone, ... all levels) of each image.

    Where the run has a `data.range`, NAME.tif holds the values in that range, and NAME.png is for looking at. With the
    sharpened decoder, NAME.png is its image, which NAME-levels.png shows after those of the plain one. `OUT/.parts` keeps what is done until all is, so that a command that was killed goes on from there.

    No image that is read is overwritten, nor another file of a folder that holds no reconstructions yet, and nothing is written if an image that is named itself cannot be used.

    Args:
        paths: image files, or folders with image files.
        out: folder for the results; created.
        decoder: see `Run.decoder_name`.
        reporter: shows the progress and which files of folders are skipped; None shows nothing.
        group: the processes that share the images, all of which call this and get the result; None is this one alone.

    Returns:
        Per image: `source`; `file`; `levels` (the sheet); `decoder`, the name of the one that made `file`; `psnr` in dB
        with 1, 2, ... levels, of the plain decoder always; and `psnr_sharp`, of `file`, if the sharpened one made it.

    Raises:
        RunError: the sharpened decoder is asked for and not trained.
        UserError: a missing file; a folder that cannot be made or used: of another model or decoder, or the run's images.
        DataError: a file that cannot be used.
    """
    from vqvae2.commands.images import ENDINGS, image_files_of, shared_images
    from vqvae2.data.frames import plain_stem
    from vqvae2.files.output import claim, make_folder
    from vqvae2.files.parts import Kept
    from vqvae2.files.tensor_file import digest
    from vqvae2.processes import Group

    run.check_out(out)
    group, name, reporter = group or Group(), run.decoder_name(decoder), reporter or Reporter(quiet=True)
    shared = shared_images(run, paths, 1, group, reporter.say)
    make_folder(out)
    taken = names_in(out, shared.files)
    endings = (*ENDINGS, "-levels.png")
    stems = [out / free_name(plain_stem(file), endings, taken) for file in shared.files]
    written = (file for stem in stems for file in [*image_files_of(stem, run), _sheet(stem)])
    with group.main_first():
        claim(out / "reconstructions.json", run.drawn_by(decoder), _OTHERS, written)
    about = str(run.drawn_by(decoder))
    keys = [digest({"pixels": pixels}, f"{about} {stems[numbers[0]]}") for numbers, pixels in shared.own]
    kept = Kept(out / ".parts", keys, group)
    own = {}
    with reporter.track("reconstruct", len(keys), unit="images") as tracker:
        for ([number], pixels), key in zip(shared.own, keys, strict=True):
            result = kept.result(key, partial(_reconstruct, run, pixels, stems[number], name))
            own[number] = {"source": str(shared.files[number]), **_described(*result, name)}
            tracker.update(len(own))
    every = {number: item for part in group.gathered(own) for number, item in part.items()}
    kept.remove()
    return [every[number] for number in range(len(shared.files))]


def _reconstruct(
    run: Run, pixels: Tensor, stem: Path, name: DecoderName
) -> tuple[dict[str, list[float]], list[Path]]:
    """Write what belongs to one image, uint8 or int16 [1, H, W, C]; returns its figures, and the image and the sheet."""
    import torch

    from vqvae2.commands.images import save_image
    from vqvae2.data.grid import save_grid
    from vqvae2.data.pixels import psnr, to_float

    size = max(run.config.data.shape)
    plain, sharp = run.autoencoder, run.decoder("sharp") if name == "sharp" else None
    original = to_float(pixels)
    codes = plain.encode(original.to(run.device))
    counts = range(1, run.config.autoencoder.levels + 1)
    decoded = [plain.decode(codes, count).cpu() for count in counts]
    figures = {"psnr": [float(psnr(some, original)[0]) for some in decoded]}
    if sharp is not None:
        decoded.append(sharp.decode(codes).cpu())
        figures["psnr_sharp"] = [float(psnr(decoded[-1], original)[0])]
    whole, sheet = save_image(decoded[-1], stem, run), _sheet(stem)
    save_grid(torch.cat([original, *decoded]), sheet, columns=1 + len(decoded), zoom=max(1, 128 // size))
    return figures, [whole, sheet, stem.with_name(f"{stem.name}.png")]


def _sheet(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}-levels.png")


def _described(figures: dict[str, list[float]], files: list[Path], name: DecoderName) -> dict[str, Any]:
    """What `_reconstruct` returned, in words of `reconstruct`."""
    item = {"file": str(files[0]), "levels": str(files[1]), "decoder": name, "psnr": figures["psnr"]}
    return item | {key: figures[key][0] for key in ("psnr_sharp",) if key in figures}


def command(
    run: RunName,
    images: ImagePaths,
    out: ImageFolder,
    decoder: DecoderOption = None,
    as_json: Json = False,
) -> None:
    """Encode images and decode them: NAME.png, and NAME-levels.png (original, coarsest level alone, ... all levels).

    The sharpened decoder has only learned to decode all levels, so the plain one shows the coarsest ones alone.
    `torchrun --nproc-per-node P -m -- vqvae2 reconstruct ...` shares the images between P processes.
    """
    from vqvae2.processes import joined
    from vqvae2.run import load

    group, loaded = joined(), load(run)
    reporter = Reporter.of_process(group.main)
    results = reconstruct(loaded, images, out, decoder.value if decoder else None, reporter, group)
    if as_json:
        print_json(results)
        return
    for item in results:
        where = f"{item['source']}: {item['file']}"
        decibels = f"PSNR {item['psnr'][-1]:.2f} dB"
        if "psnr_sharp" in item:
            decibels += f" with the plain decoder, {item['psnr_sharp']:.2f} dB with the sharp one,"
        print_text(f"{where}  {decibels} at {loaded.config.data.shape_text} px")
