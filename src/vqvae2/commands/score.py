"""`vqvae2 score`: how likely the codes of images are, and how typical that is of the run's held-out images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqvae2.commands.options import ImagePaths, Json, RunName, per_level, print_json, say
from vqvae2.files.progress import Reporter

if TYPE_CHECKING:
    from torch import Tensor

    from vqvae2.processes import Group
    from vqvae2.run import Run

_UNLIKE = 0.05  # an image of at most this typicality is marked


def score(
    run: Run,
    paths: Sequence[Path],
    label: str | None = None,
    out: Path | None = None,
    group: Group | None = None,
) -> dict[str, Any]:
    """Bits of the codes of images and, if the run has held-out codes, their typicality; the least typical first.

    Args:
        paths: image files, or folders with image files.
        label: the class of all of them; None for "no label".
        out: a file for the result as JSON. What several processes, or a killed command, have scored is kept beside it
            until it is written.
        group: the processes that share the work, all of which call this and get the result; None is this one alone.

    Returns:
        `label`; `heldout`: the number of held-out images of the run, None if it has none; `pictures`: per image `source`,
        `bits` (per level), `bits_per_dimension` (bits over C x H x W, per level) and, if the run has held-out images,
        `score`, `typicality` and `unlike` (see `Typical`). Without held-out images they are in the given order.

    Raises:
        UserError: a missing file, or `out` is one of the images; DataError: a file that cannot be used.
    """
    from vqvae2.commands.images import image_files
    from vqvae2.files.atomic import write_json
    from vqvae2.files.output import refuse_to_overwrite
    from vqvae2.processes import Group

    files, group = image_files(paths), group or Group()
    refuse_to_overwrite(files, [out] if out else [])
    data, log_prob = run.config.data, _log_prob(run, files, label, out, group).double()
    dimensions = data.channels * data.size**2
    bits = -log_prob / math.log(2)
    items: list[dict[str, Any]] = [
        {"source": str(file), "bits": row.tolist(), "bits_per_dimension": (row / dimensions).tolist()}
        for file, row in zip(files, bits, strict=True)
    ]
    typical = run.typical(label is not None)
    if typical is not None:
        scores = zip(typical.score(log_prob).tolist(), typical.typicality(log_prob).tolist(), strict=True)
        for item, (value, typicality) in zip(items, scores, strict=True):
            item |= {"score": value, "typicality": typicality, "unlike": typicality <= _UNLIKE}
        items.sort(key=lambda item: -item["score"])
    result = {"label": label, "heldout": None if typical is None else len(typical), "pictures": items}
    if out is not None and group.main:
        write_json(out, result)
    return result


def _log_prob(run: Run, files: Sequence[Path], label: str | None, out: Path | None, group: Group) -> Tensor:
    """[n, L], by all processes, batch by batch; with `out`, what is done is kept in files until all are."""
    import torch

    from vqvae2.commands.images import load_images
    from vqvae2.files.parts import Parts, cut
    from vqvae2.files.tensor_file import digest

    ranges = cut(len(files), run.sampling.batch)

    def some(rows: range) -> Tensor:
        return run.log_prob(load_images(run, files[rows.start : rows.stop]), label)

    if out is None:
        own = [(rows.start, some(rows)) for rows in group.share(ranges)]
        done = sorted((item for part in group.gathered(own) for item in part), key=lambda item: item[0])
        return torch.cat([log_prob for _, log_prob in done])
    read = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    parts = Parts(
        out.with_name(f".{out.name}.parts"), digest({}, f"{read} {label} {run.digests()}"), ranges, group
    )
    parts.begin()
    parts.compute(lambda rows: {"log_prob": some(rows)})
    log_prob = parts.joined()["log_prob"]
    parts.remove()
    return log_prob


def command(
    run: RunName,
    images: ImagePaths,
    label: Annotated[
        str | None, typer.Option(help="class of all of them, by name or number; no class if not given")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="a file for the result as JSON")] = None,
    as_json: Json = False,
) -> None:
    """How likely the codes of images are, in bits per level, and how typical of the run's held-out images.

    The least typical come first. Typicality is the share of held-out images whose number of bits is at least as far from
    the usual one, above or below. Images with a typicality of at most 5 % are marked "unlike".
    `torchrun --nproc-per-node P -m -- vqvae2 score ...` shares the images between P processes.
    """
    from vqvae2.processes import joined
    from vqvae2.run import load

    group = joined()
    result = score(load(run), images, label, out, group)
    if not group.main:
        return
    if result["heldout"] is None:
        Reporter().say(
            f"{run} holds codes of fewer than two held-out images: bits only, in the order of the command"
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
        say(text)
