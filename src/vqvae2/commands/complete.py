"""`vqvae2 complete`: a masked area of an image filled in, or variations that keep its coarse levels."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqvae2.commands.options import (
    DecoderOption,
    Guidance,
    ImageFolder,
    Json,
    RunName,
    Seed,
    Temperature,
    TopK,
    TopP,
    changed_sampling,
    check_guidance,
    per_level,
    print_json,
    print_text,
)
from vqvae2.errors import UserError
from vqvae2.files.lock import locks
from vqvae2.files.progress import Reporter

if TYPE_CHECKING:
    from torch import Tensor

    from vqvae2.config.sampling import Sampling
    from vqvae2.files.run_folder import DecoderName
    from vqvae2.generate.complete import Completed, Kept
    from vqvae2.run import Run

_SHEET = 256  # images on the sheet, at most
_ROW = 10  # images in a row of the sheet, at most
_BEGUN = "begun"  # in completions.json until all is written: how many images may be there


@dataclass(frozen=True)
class CompletionRequest:
    """What is kept of an image, and how it is completed.

    Attributes:
        mask: a grey image, white (128 and more) where the image is to be filled in.
        keep_levels: instead of a mask: how many levels are kept, from the coarsest.
        n: how many completions.
        labels: class names or numbers, repeated in turn; None is "no label".
        seed: completion i of a seed is the same whatever n and the batch size.
        passes: 1 draws in raster order; each further pass fits the drawn codes to everything that is kept.
        sampling: temperature and the like; None takes the run's own.
        paste: outside the mask, keep the pixels of the image itself instead of the decoder's.
        decoder: which decoder makes the images; None is the sharpened one if the run has it, else the plain one.
    """

    mask: Path | None = None
    keep_levels: int | None = None
    n: int = 8
    labels: Sequence[str | int] | None = None
    seed: int = 0
    passes: int = 1
    sampling: Sampling | None = None
    paste: bool = True
    decoder: DecoderName | None = None


@locks("out")
def complete(
    run: Run, image: Path, out: Path, request: CompletionRequest, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Write 000.png ..., sheet.png (the image, what is kept of it, the completions) and completions.json.

    Of a run with `data.range`, 000.tif (or .npy, see `data.deep.save_values`) holds the values in that range, too.

    Args:
        image: an image file.
        out: folder for the results; created.
        reporter: shows the progress; None takes a new one.

    Returns:
        The content of completions.json: the request; the share of codes redrawn per level; after each pass, for each
        completion and on average, the bits of each level, those of the kept codes among them, and the share of moves that
        were accepted (see `generate.complete.Completed`).

    Raises:
        LockError: another command writes into `out`.
        RunError: not trained yet.
        UserError: neither or both of mask and keep_levels, an argument out of range, a mask without a white pixel, `image` or
            the mask is one of the files to be written, OUT holds results of something else, or is among the run's images; DataError: a file that
            cannot be used.
    """
    from vqvae2.files.output import make_folder, refuse_to_overwrite
    from vqvae2.generate.complete import Passes

    run.check_out(out)
    refuse_to_overwrite([image, request.mask], _files(out, range(request.n), run))
    sampling = request.sampling or run.sampling
    sampling.level(0, run.config.autoencoder.levels)  # raises before anything is written
    kept = keep(run, image, request.mask, request.keep_levels)
    reporter = reporter or Reporter()
    about = {
        "image": str(image),
        "mask": str(request.mask) if request.mask else None,
        "keep_levels": request.keep_levels,
        "n": request.n,
        "seed": request.seed,
        "passes": request.passes,
        "paste": request.paste,
        "decoder": run.drawn_by(request.decoder)["decoder"],
        "labels": None if request.labels is None else [str(label) for label in request.labels],
        "model": run.drawn_by(request.decoder)["model"],
        **sampling.model_dump(mode="json"),
    }
    batches = -(-request.n // sampling.batch)
    tracker = reporter.track("completions", request.passes * batches, unit="passes")
    passes = Passes(request.passes, lambda: tracker.update(tracker.done + 1))
    drawn = run.complete(kept, request.n, request.labels, request.seed, passes, sampling, request.decoder)
    _claim(out, about, run, reporter)
    make_folder(out)
    with tracker:
        return _write(run, kept, drawn, out, about)


def _claim(out: Path, about: dict[str, Any], run: Run, reporter: Reporter) -> None:
    """Check that a folder holds no results of something else; those of the same request are removed and drawn again.

    Other files of the folder stay, also those whose names are numbers. What is begun is noted at once, so that the same
    command may go on after a kill.

    Raises:
        UserError: OUT holds completions of another request, or files that would be overwritten.
    """
    from vqvae2.files.atomic import FileError, read_json, write_json
    from vqvae2.files.output import refuse_to_replace

    *_, sheet, listing = _files(out, (), run)
    held = 0
    if listing.exists():
        try:
            before = read_json(listing)
        except FileError:
            before = {}
        before = before if isinstance(before, dict) else {}
        if changed := [key for key in about if key not in ("n", "batch") and before.get(key) != about[key]]:
            raise UserError(
                f"{out} holds completions of another request (it differs in {', '.join(changed)}); choose another --out"
            )
        entries, begun = before.get("completions"), before.get(_BEGUN)
        held = begun if type(begun) is int else len(entries) if isinstance(entries, list) else 0
        if begun is None:
            reporter.say(f"{out}: the {held} completions that it holds are of the same request and replaced")
    else:
        refuse_to_replace([sheet])
    refuse_to_replace(_images(out, range(held, about["n"]), run))
    write_json(listing, {**about, _BEGUN: max(held, about["n"])})
    for file in out.glob("[0-9]*"):
        if (
            file.stem.isdecimal()
            and (number := int(file.stem)) < held
            and file in _images(out, [number], run)
        ):
            file.unlink(missing_ok=True)


def keep(run: Run, image: Path, mask: Path | None, levels: int | None) -> Kept:
    """`Run.keep` of files. The mask is prepared like its image: resized and cut to the centre, but to the nearest pixel.

    Raises:
        UserError: as `Run.keep`; DataError: a file that cannot be used.
    """
    import numpy as np
    import torch

    from vqvae2.data.augmentation import centre
    from vqvae2.data.decoding import load_mask

    (pixels,) = run.load_images([image])
    data = run.config.data
    if mask is None:
        return run.keep(pixels, None, levels)
    white = centre(load_mask(mask, data).astype(np.uint8)[None], data.shape)[0]
    if not white.any():
        raise UserError(
            f"{mask} has no white pixel where the model sees the image, so nothing would be filled in; white (128 and more) marks "
            "what is filled in, black and transparent pixels are kept"
        )
    return run.keep(pixels, torch.from_numpy(white) == 1, levels)


def _files(out: Path, numbers: Iterable[int], run: Run) -> list[Path]:
    """What is written: the images of these numbers, the sheet, the list."""
    return [*_images(out, numbers, run), out / "sheet.png", out / "completions.json"]


def _images(out: Path, numbers: Iterable[int], run: Run) -> list[Path]:
    from vqvae2.commands.images import image_files_of

    return [file for number in numbers for file in image_files_of(_stem(out, number), run)]


def _stem(out: Path, number: int) -> Path:
    return out / f"{number:03d}"


def _write(
    run: Run,
    kept: Kept,
    drawn: Iterable[Completed],
    out: Path,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Write the batches, the sheet and the list, which is returned."""
    import torch

    from vqvae2.commands.images import save_image
    from vqvae2.data.grid import save_grid
    from vqvae2.files.atomic import write_json

    *_, sheet, listing = _files(out, (), run)
    entries: list[dict[str, Any]] = []
    shown = [kept.image.cpu(), kept.shown.cpu()]
    bits: list[Tensor] = []
    accepted: list[Tensor] = []
    for part in drawn:
        images = part.images if about["paste"] else part.decoded
        numbered = zip(part.numbers, images, strict=True)
        files = [save_image(image[None], _stem(out, number), run) for number, image in numbered]
        entries += _entries(part, files, run.classes)
        shown += images[: _SHEET - len(shown)].cpu()
        bits.append(part.bits)
        accepted.append(part.accepted)
    zoom = max(1, 128 // shown[0].shape[-1])
    save_grid(torch.stack(shown), sheet, columns=min(len(shown), _ROW), zoom=zoom)
    whole, own = torch.cat(bits, 1).mean(1).unbind(1)
    result = {
        **about,
        "sheet": str(sheet),
        "redrawn": [float(where.cpu().double().mean()) for where in kept.redrawn],
        "bits": whole.tolist(),
        "kept_bits": own.tolist(),
        "accepted": torch.cat(accepted, 1).mean(1).tolist(),
        "completions": entries,
    }
    write_json(listing, result)
    return result


def _entries(part: Completed, files: Sequence[Path], classes: Sequence[str]) -> list[dict[str, Any]]:
    """What completions.json says of each completion of a batch."""
    entries: list[dict[str, Any]] = []
    for index, (number, file) in enumerate(zip(part.numbers, files, strict=True)):
        entry: dict[str, Any] = {"file": file.name, "number": number}
        if part.labels is not None:
            entry["label"] = int(part.labels[index])
            entry["class"] = classes[entry["label"]]
        whole, own = part.bits[:, index].unbind(1)
        entries.append({**entry, "bits": whole.tolist(), "kept_bits": own.tolist()})
    return entries


def _redrawn(level: int, share: float) -> str:
    """What happened to the codes of a level."""
    if share in (0, 1):
        return f"level {level} {'redrawn' if share else 'kept'}"
    return f"{share:.0%} of level {level} redrawn"


def command(
    run: RunName,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="an image file")],
    out: ImageFolder,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="a grey image of any size, white (128 and more) = fill in, black = keep; a code is redrawn if any pixel "
            "of its cell is white, and the encoder does not see the pixels under white"
        ),
    ] = None,
    keep_levels: Annotated[
        int | None,
        typer.Option(help="instead of a mask: keep the N coarsest levels and redraw the finer ones"),
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="number of completions")] = 8,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="class by name or number; repeatable, then repeated in turn; without it there is no class and no guidance"
        ),
    ] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    passes: Annotated[
        int,
        typer.Option(
            min=1,
            help="1 draws in raster order, without regard to what is kept to the right and below; each further pass redraws "
            "segments of codes and accepts or rejects them by the probability of the whole image",
        ),
    ] = 1,
    paste: Annotated[
        bool,
        typer.Option(
            help="outside the mask, keep the pixels of the image itself instead of the decoder's; no effect without a mask"
        ),
    ] = True,
    decoder: DecoderOption = None,
    as_json: Json = False,
) -> None:
    """Fill in a part of an image, or draw variations of it: one PNG each, sheet.png, and completions.json.

    The sheet shows the image, what is kept of it, and the completions.
    """
    from vqvae2.run import load

    if (mask is None) == (keep_levels is None):
        raise UserError("expected either --mask MASK or --keep-levels N")
    loaded = load(run)
    check_guidance(loaded, guidance)
    if guidance and not label:
        raise UserError("--guidance needs --label: without a class there is nothing to guide towards")
    sampling = changed_sampling(loaded.sampling, temperature, top_k, top_p, guidance)
    request = CompletionRequest(
        mask, keep_levels, n, label or None, seed, passes, sampling, paste, decoder.value if decoder else None
    )
    begun = time.perf_counter()
    result = complete(loaded, image, out, request)
    seconds = time.perf_counter() - begun
    if as_json:
        print_json({"seconds": seconds, **result})
        return
    shares = ", ".join(_redrawn(level, share) for level, share in enumerate(result["redrawn"]))
    print_text(f"{n} completions in {seconds:.1f} s; {shares}: {result['sheet']}")
    for number, (bits, own) in enumerate(zip(result["bits"], result["kept_bits"], strict=True), 1):
        moves = f", {result['accepted'][number - 2]:.0%} of the moves accepted" if number > 1 else ""
        print_text(f"pass {number}: {per_level(bits)} bits, {per_level(own)} of them of what is kept{moves}")
