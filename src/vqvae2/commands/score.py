"""`vqvae2 score`: how likely the codes of images are, and how typical that is of the run's held-out images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqvae2.commands.options import ImagePaths, Json, RunName, per_level, print_json, print_text
from vqvae2.files.progress import Reporter

if TYPE_CHECKING:
    from torch import Tensor

    from vqvae2.commands.images import SharedImages
    from vqvae2.evaluate.typicality import Typical
    from vqvae2.files.parts import Kept
    from vqvae2.processes import Group
    from vqvae2.run import Run


def score(
    run: Run,
    paths: Sequence[Path],
    label: str | None = None,
    out: Path | None = None,
    reporter: Reporter | None = None,
    group: Group | None = None,
    bits_map: Path | None = None,
) -> dict[str, Any]:
    """Bits of the codes of images and, if the run has held-out codes, their typicality; the least typical first.

    Args:
        paths: image files, or folders with image files.
        label: the class of all of them; None for "no label".
        out: a file for the result as JSON; one that is there is replaced only if it is such a result. `OUT.parts` keeps what is done.
        reporter: shows the progress and which files of folders are skipped; None shows nothing.
        group: the processes that share the images, all of which call this and get the result; None is this one alone.
        bits_map: a folder for NAME-bits-L.png of each image and level L: where its bits are, from black for 0 to white for
            log2 K, the bits of a code that nothing is known about; as large as the image.

    Returns:
        `label`; `heldout`: the number of held-out images of the run, None if it has fewer than 19; `pictures`: per image `source`,
        `bits` (per level), `bits_per_dimension` (bits over C x H x W, per level) and, if the run has so many held-out images,
        `score`, `typicality` and `unlike` (see `Typical`), and `maps`, the
        files in `bits_map`. Without these they are in the given order.

    Raises:
        UserError: a missing file, `out` is a folder or a file of something else, a map would replace a file of others or be among the run's images, or no label
            for a prior that never learned to do without.
        DataError: a file that cannot be used.
    """
    from vqvae2.commands.images import shared_images
    from vqvae2.files.atomic import write_json
    from vqvae2.processes import Group

    if out is not None:
        _check_result(out)  # before hours of scoring
    if bits_map is not None:
        run.check_out(bits_map)
    if label is None:
        run.config.prior.check_unlabelled()
    group, data, reporter = group or Group(), run.config.data, reporter or Reporter(quiet=True)
    shared = shared_images(run, paths, run.sampling.batch, group, reporter.say)
    files, typical = shared.files, run.typical(label is not None)  # its errors come before hours of scoring
    targets = [] if bits_map is None else _map_files(run, files, bits_map, group)
    log_prob, kept = _scored(run, shared, label, group, out, targets, reporter)
    dimensions = data.channels * data.area
    bits = -log_prob / math.log(2)
    items: list[dict[str, Any]] = [
        {"source": str(file), "bits": row.tolist(), "bits_per_dimension": (row / dimensions).tolist()}
        for file, row in zip(files, bits, strict=True)
    ]
    for item, maps in zip(items, targets, strict=False):  # there are none without `bits_map`
        item["maps"] = [str(path) for path in maps]
    result = {"label": label, "heldout": _add_typicality(typical, items, log_prob), "pictures": items}
    if out is not None and group.main:
        write_json(out, result)
    kept.remove()
    return result


def _check_result(out: Path) -> None:
    """Raise `UserError` if OUT is a folder, or a file that is no earlier result."""
    from vqvae2.errors import UserError
    from vqvae2.files.output import refuse_to_replace_others

    if out.is_dir():
        raise UserError(f"{out} is a folder: expected a file for the result")
    refuse_to_replace_others(out, ("label", "heldout", "pictures"))


def _scored(
    run: Run,
    shared: SharedImages,
    label: str | None,
    group: Group,
    out: Path | None,
    targets: list[list[Path]],
    reporter: Reporter,
) -> tuple[Tensor, Kept]:
    """`Run.log_prob` of all images in their order, float64 [n, L], by all processes, which also write the maps.

    Args:
        targets: files for the maps of each image; [] writes none.
    """
    import torch

    from vqvae2.data.pixels import to_float
    from vqvae2.files.parts import Kept
    from vqvae2.files.tensor_file import digest

    def make(pixels: Tensor, maps: list[list[Path]]) -> tuple[dict[str, list[float]], list[Path]]:
        levels = run.log_prob(to_float(pixels), label).double().T.tolist()
        if maps:
            _write_maps(run, to_float(pixels), label, maps)
        return {f"level {level}": values for level, values in enumerate(levels)}, [
            p for some in maps for p in some
        ]

    own = [
        (numbers, pixels, [targets[n] for n in numbers] if targets else []) for numbers, pixels in shared.own
    ]
    about = f"{run.digests()} {label}"
    keys = [
        digest({"pixels": pixels}, f"{about} {[[*map(str, m)] for m in maps]}") for _, pixels, maps in own
    ]
    kept = Kept(out and out.parent / f"{out.name}.parts", keys, group)
    done, count = [], 0
    with reporter.track("score", sum(len(numbers) for numbers, _ in shared.own), unit="images") as tracker:
        for (numbers, pixels, maps), key in zip(own, keys, strict=True):
            figures, _ = kept.result(key, partial(make, pixels, maps))
            done.append((numbers, torch.tensor([*figures.values()], dtype=torch.float64).T))
            count += len(numbers)
            tracker.update(count)
    every = sorted((item for part in group.gathered(done) for item in part), key=lambda item: item[0])
    return torch.cat([values for _, values in every]), kept


def _add_typicality(typical: Typical | None, items: list[dict[str, Any]], log_prob: Tensor) -> int | None:
    """Score and sort the items if the run has enough held-out images; their number, or None."""
    from vqvae2.evaluate.typicality import UNLIKE

    if typical is None:
        return None
    scores = zip(typical.score(log_prob).tolist(), typical.typicality(log_prob).tolist(), strict=True)
    for item, (value, typicality) in zip(items, scores, strict=True):
        item |= {"score": value, "typicality": typicality, "unlike": typicality <= UNLIKE}
    items.sort(key=lambda item: (item["typicality"], -item["score"]))
    return len(typical)


def _map_files(run: Run, files: Sequence[Path], folder: Path, group: Group) -> list[list[Path]]:
    """The files for the maps of each image, one per level; their folder is made, and lists in bits-maps.json which maps it gets."""
    from vqvae2.data.frames import plain_stem
    from vqvae2.files.names import free_name, names_in
    from vqvae2.files.output import claim_files, make_folder

    make_folder(folder)
    endings = [f"-bits-{level}.png" for level in range(run.config.autoencoder.levels)]
    taken = names_in(folder, files)
    stems = [free_name(plain_stem(file), endings, taken) for file in files]
    maps = [[folder / f"{stem}{ending}" for ending in endings] for stem in stems]
    with group.main_first():
        claim_files(folder / "bits-maps.json", (file for some in maps for file in some), "--bits-map")
    return maps


def _write_maps(run: Run, images: Tensor, label: str | None, targets: list[list[Path]]) -> None:
    """Write the maps of images [b, C, H, W], one file per image and level."""
    import torch

    from vqvae2.data.grid import save_picture
    from vqvae2.data.pixels import to_pil

    for level, bits in enumerate(run.bits_map(images, label)):
        white = math.log2(run.config.geometry.vocabulary[level])
        sheets = to_pil(torch.nn.functional.interpolate(2 * bits[:, None] / white - 1, run.config.data.shape))
        for paths, sheet in zip(targets, sheets, strict=True):
            save_picture(sheet, paths[level])


def command(
    run: RunName,
    images: ImagePaths,
    label: Annotated[
        str | None, typer.Option(help="class of all of them, by name or number; no class if not given")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="a file for the result as JSON")] = None,
    bits_map: Annotated[
        Path | None,
        typer.Option(
            help="a folder for a map of each image and level: where its bits are, white for the most"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """How likely the codes of images are, in bits per level, and how typical of the run's held-out images.

    The least typical come first. Typicality is the share of held-out images whose number of bits is at least as far from
    the usual one, above or below. Images with a typicality of at most 5 % are marked "unlike".
    `torchrun --nproc-per-node P -m -- vqvae2 score ...` shares the images between P processes.
    """
    from vqvae2.evaluate.typicality import LEAST
    from vqvae2.processes import joined
    from vqvae2.run import load

    group = joined()
    reporter = Reporter.of_process(group.main)
    result = score(load(run), images, label, out, reporter, group, bits_map)
    if result["heldout"] is None:
        reporter.say(
            f"bits only, in the order of the command: typicality needs the codes of {LEAST} held-out images, and {run} holds fewer"
        )
    if as_json:
        print_json(result)
        return
    for item in result["pictures"]:
        dimension = sum(item["bits_per_dimension"])
        text = f"{item['source']}: {per_level(item['bits'])} bits, {dimension:.4f} per dimension"
        if "score" in item:
            text += f", score {item['score']:.2f}, typicality {item['typicality']:.1%}"
            text += "  unlike" if item["unlike"] else ""
        print_text(text)
