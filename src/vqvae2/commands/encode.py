"""`vqvae2 encode`: the codes of a data set as a file; the same command continues where it was interrupted.

    DATA --autoencoder.encode--> OUT.parts/part-*.npz, shared by all processes --main process--> OUT

Shapes: b images of a part, h w the grid of a level, D code dimension.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqvae2.commands.options import Json, RunName, print_json
from vqvae2.errors import UserError
from vqvae2.files.progress import Reporter

if TYPE_CHECKING:
    from vqvae2.codec.code_file import Part
    from vqvae2.data.images import ImageSet
    from vqvae2.processes import Group
    from vqvae2.run import Run

_PART_BYTES = 2**26  # of the arrays of one part, about
_PART_IMAGES = 512  # of one part, at most
_BATCH = 64  # images encoded at a time


class _FinishedError(UserError):
    """The codes are there already."""


class Vectors(StrEnum):
    """Which vectors are written beside the codes."""

    none = "none"
    before = "before"
    after = "after"
    both = "both"


def encode(
    run: Run,
    data: str,
    out: Path,
    vectors: Vectors = Vectors.none,
    reporter: Reporter | None = None,
) -> dict[str, Any] | None:
    """Write the codes of all images of a data set, in the order of their names; images that cannot be used are left out.

    Several processes (`torchrun`) share the work: each calls this function with a run on its own device.

    Args:
        data: as for `train`; the images are seen as the run sees them in evaluation, resized and cut to the centre.
        out: a .parquet, .safetensors or .npz file, or a folder; see `codec.code_file`.
        vectors: none, or the vectors before quantisation, after it (the code vectors), or both.
        reporter: shows the progress of the main process; None takes a new one.

    Returns:
        The description of the codes (see `CodeFile.about`); None on all processes but the main one.

    Raises:
        RunError: the autoencoder is not trained yet.
        UserError: `out` holds other codes, or codes of other images, is among the run's images, or cannot be written; DataError: no image can be used.
    """
    from vqvae2.codec.code_file import form_of, open_codes, read_part, write_codes
    from vqvae2.processes import joined
    from vqvae2.train.device import make_accelerator

    make_accelerator()  # joins the processes
    group = joined()
    reporter = (reporter or Reporter()) if group.main else Reporter(quiet=True)
    form = form_of(out)  # raises before anything is written
    if form == "parquet":  # the other forms are no images to those who read the folder
        run.check_out(out)
    work = out.parent / f"{out.name}.parts"
    about = {**_about(run), "data": data, "vectors": vectors.value}
    images = _claim(run, out, work, about, group, reporter)
    if images is None:
        reporter.say(f"{out}: all codes were there already")
        return open_codes(out).about if group.main else None
    parts = _parts(work, len(images), run, vectors)
    _fill(parts, run, images, vectors, group, reporter)
    group.wait()
    images.close()
    if not group.main:
        return None
    about["classes"] = list(images.classes)
    reporter.say(f"writing {out}")
    write_codes(out, about, [partial(read_part, file) for file in parts.values()])
    shutil.rmtree(work, ignore_errors=True)
    return open_codes(out).about


def _about(run: Run) -> dict[str, Any]:
    """What decides the codes of an image."""
    return {
        "digest": run.codes_digest,
        "geometry": run.config.geometry.to_json(),
        "shape": list(run.config.data.shape),
    }


def _claim(
    run: Run, out: Path, work: Path, about: dict[str, Any], group: Group, reporter: Reporter
) -> ImageSet | None:
    """The images, whose fingerprint is added to `about`; None if their codes are in `out` already.

    What is there is compared with what is asked for before an image is decoded.

    Raises:
        UserError: `out` or its parts are of other codes or of other images, or `out` has arrays of the user.
    """
    from vqvae2.codec.code_file import form_of, holds_codes, open_codes
    from vqvae2.config.overrides import differences
    from vqvae2.files.output import claim, make_folder

    stored = open_codes(out).about if holds_codes(out) else None
    arrays = sorted(out.glob("*.npy")) if form_of(out) == "folder" and stored is None else []
    if arrays and not (work / "parts.json").exists():
        raise UserError(f"{arrays[0]} exists, and could be overwritten; choose another --out")

    def check(fingerprint: str) -> None:
        about["fingerprint"] = fingerprint
        if stored is None:
            make_folder(work)
            claim(work / "parts.json", about, "parts of other codes")
        elif changed := differences({name: stored.get(name) for name in about}, about):
            raise UserError(f"{out} holds other codes ({'; '.join(changed)}); use another --out")
        else:
            raise _FinishedError

    try:
        with group.main_first():
            return _open(run, about["data"], work, reporter, check)
    except UserError as error:
        if finished := isinstance(error, _FinishedError):
            group.wait()
        if stored is not None and group.main:
            shutil.rmtree(work, ignore_errors=True)
        if not finished:
            raise
    return None


def _open(run: Run, data: str, work: Path, reporter: Reporter, check: Callable[[str], None]) -> ImageSet:
    """The images, decoded into the work folder unless they are those that the run keeps; `check` as in `open_images`."""
    from vqvae2.data.recorded import open_other, open_own, same_source
    from vqvae2.files.run_folder import leads_out

    config, seed, say, decoded = run.config.data, run.config.seed, reporter.say, work / "data"
    if run.done()["codes"] and same_source(data, run.record, run.folder):
        kept = decoded if leads_out(run.paths.data, run.folder) else run.paths.data
        return open_own(data, run.record, config, kept, decoded, seed, say, check)
    own = run.record.get("fingerprint")
    return open_other(data, config, decoded, seed=seed, say=say, both=False, own=own, check=check)


def _parts(work: Path, count: int, run: Run, vectors: Vectors) -> dict[range, Path]:
    """The numbers of the images of each part, and its file, in order."""
    from vqvae2.files.parts import cut

    kinds = {Vectors.none: 0, Vectors.both: 2}.get(vectors, 1)
    positions = sum(run.config.geometry.positions)
    row = positions * (2 + 4 * run.config.autoencoder.code_dim * kinds)
    size = min(_PART_IMAGES, max(1, _PART_BYTES // row))
    return {part: work / f"part-{part.start:08d}-{part.stop - 1:08d}.npz" for part in cut(count, size)}


def _fill(
    parts: dict[range, Path],
    run: Run,
    images: ImageSet,
    vectors: Vectors,
    group: Group,
    reporter: Reporter,
) -> None:
    """Write this process's share of the parts that are missing."""
    from vqvae2.codec.code_file import write_part

    group.wait()  # until every process has looked
    # a file system of several machines may show each of them something else for a while
    missing = group.agreed([numbers for numbers, file in parts.items() if not file.exists()])
    own = group.share(missing)
    if not own:
        return
    with reporter.track("codes", sum(map(len, own)), unit="images") as tracker:
        for numbers, part in zip(own, _encoded(own, run, images, vectors), strict=True):
            write_part(parts[numbers], part)
            tracker.update(tracker.done + len(numbers))


def _encoded(own: list[range], run: Run, images: ImageSet, vectors: Vectors) -> Iterator[Part]:
    """The rows of each part; an image that cannot be used has none."""
    import numpy as np
    import torch

    from vqvae2.codec.vectors import encode_vectors
    from vqvae2.data.augmentation import centre
    from vqvae2.data.pixels import to_float

    held = set(images.heldout.tolist())
    sizes = run.config.geometry.vocabulary
    types = [np.uint16 if size <= 2**16 else np.uint32 for size in sizes]
    batches = [numbers[at : at + _BATCH] for numbers in own for at in range(0, len(numbers), _BATCH)]
    raws = images.raw(np.array(batch, np.int64) for batch in batches)
    for numbers in own:
        rows: list[Part] = []
        for at in range(0, len(numbers), _BATCH):
            raw, actual = next(raws)
            usable = np.flatnonzero(actual == np.array(numbers[at : at + _BATCH]))
            pixels = to_float(torch.from_numpy(centre(raw[usable], run.config.data.shape)))
            pixels = pixels.to(run.device)
            beside: dict[str, list[torch.Tensor]] = {}
            if vectors is Vectors.none:
                codes = run.autoencoder.encode(pixels)
            else:
                codes, beside["before"], beside["after"] = encode_vectors(run.autoencoder, pixels)
            chosen = actual[usable]
            part: Part = {"name": np.array([images.names[index] for index in chosen], dtype=np.str_)}
            if images.labels is not None:
                part["label"] = images.labels[chosen]
            part["heldout"] = np.array([index in held for index in chosen.tolist()], bool)
            for index, (level, dtype) in enumerate(zip(codes.levels, types, strict=True)):
                part[f"level_{index}"] = level.cpu().numpy().astype(dtype)
            for kind, tensors in beside.items():
                if vectors in (kind, Vectors.both):
                    part |= {f"{kind}_{i}": tensor.cpu().numpy() for i, tensor in enumerate(tensors)}
            rows.append(part)
        yield {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}


def command(
    run: RunName,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="images, as for train: a folder, .parquet or .tar files, a Hub id, emoji64"
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="a .parquet, .safetensors or .npz file, or a folder for .npy arrays")
    ],
    vectors: Annotated[
        Vectors,
        typer.Option(help="also write the vectors before quantisation, after it (the code vectors), or both"),
    ] = Vectors.none,
    as_json: Json = False,
) -> None:
    """Write the codes of a data set as integers, with the name and the label of each image.

    The same command continues where it was interrupted. `torchrun --nproc-per-node P -m -- vqvae2 encode ...` shares the
    work between P processes. `vqvae2 decode` turns the file into images.
    """
    from vqvae2.run import load
    from vqvae2.train.device import make_accelerator

    about = encode(load(run, make_accelerator().device), data, out, vectors, Reporter())
    if about is None:
        return
    if as_json:
        print_json({"out": str(out), **about})
        return
    grids = " + ".join(f"{h}x{w}" for h, w in about["geometry"]["grids"])
    typer.echo(f"{out}: codes of {about['n']} images, {grids} each")
