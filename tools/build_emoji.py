"""Build emoji data sets with 9 classes: the small one inside the package and a larger one with six styles.

    python tools/build_emoji.py embedded
    python tools/build_emoji.py styles --size 256 --out emoji_styles256.parquet

The images and labels come from npm packages of pinned version and checksum; `npm pack` downloads them and
runs nothing. Both sets share one split, which depends on the label table only: an emoji on the test side of
one set is on the test side of the other, in every style and skin tone.

Needs npm, pillow and pyarrow; `styles` needs resvg-py too.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import math
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageStat

from _emoji_labels import CLASSES, TONE, Label
from _emoji_sources import FLUENT_3D, LABELS, STYLES, Sources, default_cache, load_labels, style_sources
from _parquet import BadInput, Kind, Row, image_value, run, write_parquet

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = ROOT / "src" / "vqvae2" / "data" / "emoji64.parquet"
EMBEDDED_SIZE = 64
SOURCE_SIZE = 256
"""Side of the Fluent 3D images; the only raster style."""


@dataclass(frozen=True)
class Task:
    """One image to make; it goes to a worker process."""

    label: Label
    style: str
    source: bytes | str  # an encoded image, or an SVG
    size: int
    exact: bool  # False: near-lossless, see `encode`
    effort: int  # of the WebP encoder, 0 (fast) to 6 (small)


@dataclass(frozen=True)
class Picture:
    """A finished image: WebP bytes, a digest of its pixels and the squared error that the encoding cost."""

    task: Task
    data: bytes
    digest: bytes
    squared_error: float


def on_white(picture: Image.Image) -> Image.Image:
    """Without transparency. Done before any resizing, so that hidden colours cannot bleed into the edges."""
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def raster(data: bytes, size: int) -> Image.Image:
    """A Fluent 3D image; four have eight spare rows, which are cut where the image does not reach."""
    with Image.open(io.BytesIO(data)) as picture:
        rgba = picture.convert("RGBA")
    box = rgba.getchannel("A").getbbox() or (0, 0, 0, 0)
    side = min(rgba.size)
    top = min(max(0, (box[1] + box[3] - side) // 2), rgba.height - side)
    square = on_white(rgba.crop((0, top, side, top + side)))
    return square if side == size else square.resize((size, size), Image.Resampling.LANCZOS)


def vector(svg: str, size: int) -> Image.Image:
    """An SVG drawn at `size` px; system fonts are left out, so that every machine draws the same."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as picture:
        rgb = on_white(picture)
    if rgb.size == (size, size):
        return rgb
    square = Image.new("RGB", (size, size), "white")
    square.paste(rgb, ((size - rgb.width) // 2, (size - rgb.height) // 2))
    return square


def encode(picture: Image.Image, exact: bool, effort: int) -> tuple[bytes, float]:
    """WebP bytes and the summed squared error.

    Near-lossless sets the lowest bit of every value before a lossless encoding: no value moves by more than 1
    of 255, white stays white, and the file shrinks by a fifth.
    """
    kept = picture if exact else picture.point(lambda value: value | 1)
    buffer = io.BytesIO()
    kept.save(buffer, "WEBP", lossless=True, quality=100 if effort == 6 else 50, method=effort)
    return buffer.getvalue(), sum(ImageStat.Stat(ImageChops.difference(picture, kept)).sum2)


def make_picture(task: Task) -> Picture:
    """Draw and encode one task; runs in a worker process."""
    source = task.source
    drawn = vector(source, task.size) if isinstance(source, str) else raster(source, task.size)
    data, squared_error = encode(drawn, task.exact, task.effort)
    return Picture(task, data, hashlib.sha256(drawn.tobytes()).digest(), squared_error)


def make_pictures(tasks: list[Task], jobs: int) -> Iterator[Picture]:
    """All images in the order of `tasks`, without a style's exact doubles (one file under two names)."""
    seen: set[tuple[str, bytes]] = set()
    with multiprocessing.Pool(jobs) as pool:
        for done, picture in enumerate(pool.imap(make_picture, tasks, chunksize=16), 1):
            key = (picture.task.style, picture.digest)
            if key not in seen:
                seen.add(key)
                yield picture
            if done % 500 == 0 or done == len(tasks):
                print(f"{done} of {len(tasks)} images", file=sys.stderr, flush=True)


COLUMNS: dict[str, Kind] = {
    "image": "image",
    "label": CLASSES,
    "name": "string",
    "codepoint": "string",
    "base": "string",
    "skin_tone": "bool",
    "split": "string",
}


class Tally:
    """Counts what passes through on its way to the file, and adds up the error of the encoding."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.squared_error = 0.0

    def rows(self, pictures: Iterable[Picture]) -> Iterator[Row]:
        """The rows of `COLUMNS`, and the name of the style."""
        for picture in pictures:
            label, style = picture.task.label, picture.task.style
            self.counts[style, label.group, label.split] += 1
            self.squared_error += picture.squared_error
            yield {
                "image": image_value(picture.data, f"{label.codepoint}.webp"),
                "label": CLASSES.index(label.group),
                "name": label.name,
                "codepoint": label.codepoint,
                "base": label.base,
                "skin_tone": TONE.search(label.codepoint) is not None,
                "split": label.split,
                "style": style,
            }

    def count(self, style: str | None = None, group: str | None = None, split: str | None = None) -> int:
        """How many images match everything that is given."""
        wanted = (style, group, split)
        return sum(
            number
            for key, number in self.counts.items()
            if all(want in (None, have) for want, have in zip(wanted, key, strict=True))
        )

    def psnr(self, size: int) -> float:
        """Of the encoding, over all images, in dB; infinite when it is exact."""
        values = sum(self.counts.values()) * size * size * 3
        return math.inf if not self.squared_error else 10 * math.log10(255**2 * values / self.squared_error)

    def print(self) -> None:
        """A table of classes and splits."""
        print(f"{'class':20}{'train':>8}{'test':>8}")
        for group in (*CLASSES, None):
            train, test = self.count(group=group, split="train"), self.count(group=group, split="test")
            print(f"{group or 'all':20}{train:8}{test:8}")


def make_tasks(style: str, sources: Sources, size: int, exact: bool, effort: int) -> list[Task]:
    """The work for one style."""
    return [Task(label, style, source, size, exact, effort) for label, source in sources.values()]


def build_embedded(args: argparse.Namespace) -> None:
    """Write the set that the package carries, and the notice beside it."""
    labels, licence = load_labels(args.cache)
    tasks = make_tasks(
        "fluent-3d", style_sources("fluent-3d", labels, args.cache), EMBEDDED_SIZE, args.exact, 6
    )
    tasks.sort(key=lambda task: task.label.codepoint)
    tally = Tally()
    count = write_parquet(args.out, tally.rows(make_pictures(tasks, args.jobs)), COLUMNS)
    notice = args.out.with_name(f"{args.out.stem}.LICENSE.txt")
    notice.write_text(embedded_notice(licence), encoding="utf-8")
    tally.print()
    psnr = tally.psnr(EMBEDDED_SIZE)
    print(f"{args.out}: {count} images, {args.out.stat().st_size / 1e6:.2f} MB, PSNR {psnr:.1f} dB")


def embedded_notice(labels_licence: str) -> str:
    """The notice for the images and labels; the MIT text itself is the one of the label package."""
    terms = labels_licence[labels_licence.index("Permission is hereby granted") :].strip()
    return f"""The file emoji64.parquet holds work of others under the MIT License.

Pictures: Fluent Emoji, 3D style (https://github.com/microsoft/fluentui-emoji), from the npm package
{FLUENT_3D} (https://github.com/lobehub/fluent-emoji).
Changes: put on white, reduced to 64x64 pixels, encoded again.

    Copyright (c) Microsoft Corporation
    Copyright (c) 2023 LobeHub

Names and classes: the npm package {LABELS}
(https://github.com/muan/unicode-emoji-json), which takes them from the emoji-test.txt of the Unicode
Consortium (https://www.unicode.org/license.txt).

    Copyright (c) 2019 Mu-An Chiou

The MIT License (MIT)

{terms}
"""


def build_styles(args: argparse.Namespace) -> None:
    """Write the larger set with a style column."""
    if importlib.util.find_spec("resvg_py") is None:
        raise BadInput("resvg-py is missing; it draws the vector styles: pip install resvg-py==0.5.0")
    styles = [style for style in STYLES if style in args.styles]
    warn_licences(styles)
    if "fluent-3d" in styles and args.size > SOURCE_SIZE:
        print(f"note: fluent-3d has {SOURCE_SIZE} px, at {args.size} px it is enlarged", file=sys.stderr)
    labels, _ = load_labels(args.cache)
    effort = 4 if args.size <= 128 else 1
    tasks: list[Task] = []
    for style in styles:
        tasks += make_tasks(style, style_sources(style, labels, args.cache), args.size, True, effort)
    tasks.sort(key=lambda task: (task.label.codepoint, styles.index(task.style)))
    tasks = tasks[:: args.every]
    tally = Tally()
    columns: dict[str, Kind] = {**COLUMNS, "style": styles}
    rows = (
        {**row, "style": styles.index(row["style"])} for row in tally.rows(make_pictures(tasks, args.jobs))
    )
    count = write_parquet(args.out, rows, columns)
    tally.print()
    for style in styles:
        licence, author = STYLES[style].licence, STYLES[style].author
        print(f"{style}: {tally.count(style=style)} images, {licence}, {author}")
    print(f"{args.out}: {count} images, {args.out.stat().st_size / 1e6:.2f} MB")


def warn_licences(styles: list[str]) -> None:
    """Share-alike images must not get into the project, nor into weights that it publishes."""
    alike = [style for style in styles if "BY-SA" in STYLES[style].licence]
    if alike:
        print(
            f"warning: CC BY-SA, keep out of this project and its weights: {', '.join(alike)}",
            file=sys.stderr,
        )


def style_list(text: str) -> list[str]:
    """Parse `--styles`."""
    chosen = [part.strip() for part in text.split(",")]
    unknown = sorted(set(chosen) - set(STYLES))
    if unknown:
        raise argparse.ArgumentTypeError(f"no style {unknown[0]!r}; there are {', '.join(STYLES)}")
    return chosen


def bounded(low: int, high: int) -> Any:
    """A parser for whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--cache", type=Path, default=default_cache(), help="folder for downloads (default: %(default)s)"
    )
    jobs = os.cpu_count() or 1
    common.add_argument(
        "--jobs", type=bounded(1, 256), default=jobs, help="worker processes (default: one per core)"
    )
    parser = argparse.ArgumentParser(description="Build emoji data sets as parquet files.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    small = commands.add_parser(
        "embedded", parents=[common], help="the set inside the package: Fluent 3D, 64 px"
    )
    small.add_argument("--out", type=Path, default=EMBEDDED, help="output file (default: inside the package)")
    small.add_argument(
        "--exact", action="store_true", help="keep the lowest bit of every value (12 MB, not under 10)"
    )
    small.set_defaults(build=build_embedded)
    large = commands.add_parser("styles", parents=[common], help="up to six styles, any size")
    large.add_argument("--out", type=Path, required=True, help="output file")
    large.add_argument(
        "--size", type=bounded(16, 1024), default=64, help="side in pixels, 16 to 1024 (default: %(default)s)"
    )
    names = ",".join(STYLES)
    large.add_argument(
        "--styles", type=style_list, default=list(STYLES), help=f"comma-separated (default: {names})"
    )
    large.add_argument(
        "--every",
        type=bounded(1, 1000),
        default=1,
        help="use only every N-th image (default: %(default)s)",
    )
    large.set_defaults(build=build_styles)
    return parser.parse_args()


def main() -> None:
    """Run the chosen command."""
    args = parse_args()
    args.build(args)


if __name__ == "__main__":
    run(main)
