"""`vqvae2 reconstruct`: images through the codes and back, with all levels and with the coarsest ones alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqvae2.commands.options import DecoderOption, ImageFolder, ImagePaths, Json, RunName, print_json, say

if TYPE_CHECKING:
    from torch import Tensor

    from vqvae2.files.run_folder import DecoderName
    from vqvae2.processes import Group
    from vqvae2.run import Run


def reconstruct(
    run: Run,
    paths: Sequence[Path],
    out: Path,
    decoder: DecoderName | None = None,
    group: Group | None = None,
) -> list[dict[str, Any]]:
    """Write NAME.png and NAME-levels.png (the original, the coarsest level alone, ... all levels) of each image.

    With the sharpened decoder, NAME.png is its image, which NAME-levels.png shows after those of the plain one.

    No image that is read is overwritten, and nothing is written if one of them cannot be read.

    Args:
        paths: image files, or folders with image files.
        out: folder for the results; created.
        decoder: see `Run.decoder_name`.
        group: the processes that share the images, all of which call this and get the result; None is this one alone.

    Returns:
        Per image: `source`; `file`; `levels` (the sheet); `decoder`, the name of the one that made `file`; `psnr` in dB
        with 1, 2, ... levels, of the plain decoder always; and `psnr_sharp`, of `file`, if the sharpened one made it.

    Raises:
        RunError: the sharpened decoder is asked for and not trained.
        UserError: a missing file, or a folder that cannot be made.
        DataError: a file that cannot be used.
    """
    from vqvae2.commands.images import image_files, load_images
    from vqvae2.files.output import make_folder
    from vqvae2.processes import Group

    group, name = group or Group(), run.decoder_name(decoder)
    files = image_files(paths)
    taken = {file.name.casefold() for file in files if file.resolve().parent == out.resolve()}
    stems = [_free_name(file.stem, taken) for file in files]
    own = group.share(list(zip(files, stems, strict=True)))
    originals: Iterable[Tensor] = load_images(run, [file for file, _ in own]) if own else ()
    group.wait()  # no process writes before all have read
    make_folder(out)
    results = _write(run, own, originals, out, name)
    shares = group.gathered(results)
    return [shares[number % group.count][number // group.count] for number in range(len(files))]


def _write(
    run: Run, own: Sequence[tuple[Path, str]], originals: Iterable[Tensor], out: Path, name: DecoderName
) -> list[dict[str, Any]]:
    """Reconstruct some images, each of which has a file and a name for what is written."""
    import torch

    from vqvae2.data.grid import save_grid, save_picture
    from vqvae2.data.pixels import psnr, to_pil

    plain, sharp = run.autoencoder, run.decoder("sharp") if name == "sharp" else None
    size = run.config.data.size
    results: list[dict[str, Any]] = []
    for (file, stem), image in zip(own, originals, strict=True):
        original = image[None]
        codes = plain.encode(original.to(run.device))
        counts = range(1, run.config.autoencoder.levels + 1)
        decoded = [plain.decode(codes, count).cpu() for count in counts]
        decibels = [float(psnr(some, original)[0]) for some in decoded]
        figures: dict[str, Any] = {"psnr": decibels}
        if sharp is not None:
            decoded.append(sharp.decode(codes).cpu())
            figures["psnr_sharp"] = float(psnr(decoded[-1], original)[0])
        whole, sheet = out / f"{stem}.png", out / f"{stem}-levels.png"
        save_picture(to_pil(decoded[-1])[0], whole)
        save_grid(torch.cat([original, *decoded]), sheet, columns=1 + len(decoded), zoom=max(1, 128 // size))
        item = {"source": str(file), "file": str(whole), "levels": str(sheet)}
        results.append({**item, "decoder": name, **figures})
    return results


def _free_name(stem: str, taken: set[str]) -> str:
    """`stem`, or `stem` with a number, such that neither NAME.png nor NAME-levels.png is in `taken`; both are added."""
    for name in itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2))):
        files = {f"{name}.png".casefold(), f"{name}-levels.png".casefold()}
        if not files & taken:
            taken |= files
            return name
    raise AssertionError("the numbers never end")


def command(
    run: RunName,
    images: ImagePaths,
    out: ImageFolder,
    decoder: DecoderOption = None,
    as_json: Json = False,
) -> None:
    """Encode images and decode them: NAME.png, and NAME-levels.png (original, coarsest level alone, ... all levels).

    The sharpened decoder has only learnt to decode all levels, so the plain one shows the coarsest ones alone.
    `torchrun --nproc-per-node P -m -- vqvae2 reconstruct ...` shares the images between P processes.
    """
    from vqvae2.processes import joined
    from vqvae2.run import load

    loaded = load(run)
    results = reconstruct(loaded, images, out, decoder.value if decoder else None, joined())
    if as_json:
        print_json(results)
        return
    for item in results:
        where = f"{item['source']}: {item['file']}"
        decibels = f"PSNR {item['psnr'][-1]:.2f} dB"
        if "psnr_sharp" in item:
            decibels += f" with the plain decoder, {item['psnr_sharp']:.2f} dB with the sharp one,"
        say(f"{where}  {decibels} at {loaded.config.data.size} px")
