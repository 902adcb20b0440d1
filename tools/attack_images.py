"""Damage image files of every format that is read, and count what the decoder and the listing of folders make of them.

    python tools/attack_images.py --seed 0 --count 4000

A mutant is decoded or skipped with a reason; anything else is a fault. Each is decoded in a process of its own kind, with a
limit of memory and of seconds, so that a crash, an endless loop or an allocation without bounds is counted too. The same
seed makes the same mutants.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import struct
import tempfile
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from vqvae2.config.models import DataConfig
from vqvae2.data.decoding import decode, stored_type
from vqvae2.data.errors import DataError, ImageError
from vqvae2.data.images import open_images
from vqvae2.data.sources import list_images, locate

_MEMORY = (
    1_800_000_000  # bytes of address space that the process that decodes may add to what its libraries take
)
_SECONDS = 30.0  # for one mutant
_FOLDER = 50  # mutants that are written to one folder
_NAMES = ("a", "\x1b[31mred", "line\nbreak", "\udcff", "ü ö", "..", "x" * 200)  # parts of names of files
_LIES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)
_CONFIG = {"size": 16, "workers": 0, "flip": False}


@dataclass
class Outcomes:
    """What became of the mutants.

    Attributes:
        decoded: how many gave pixels.
        skipped: how many were skipped, per kind of reason.
        faults: one line for each of all others; none is expected.
        folders: how many folders of mutants were listed and read.
        seconds: of the whole attack.
        peak_mb: largest resident memory of the process that decoded, in MB.
    """

    decoded: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    folders: int = 0
    seconds: float = 0.0
    peak_mb: float = 0.0

    @property
    def count(self) -> int:
        """All mutants."""
        return self.decoded + self.skipped.total() + len(self.faults)


def mutate_images(seed: int, count: int) -> Outcomes:
    """Decode `count` mutants, one by one and from folders, and count what becomes of them.

    Args:
        seed: mutant i of a seed is always the same.
        count: number of mutants.
    """
    began, outcomes = time.monotonic(), Outcomes()
    whole = originals()
    decoder = _Decoder()
    batch: list[bytes] = []
    try:
        for number in range(count):
            rng = np.random.default_rng((seed, number))
            name, data = mutant(whole, rng)
            batch.append(data)
            _count(
                outcomes, decoder.ask(data, deep=number % 4 == 3), f"seed {seed}, mutant {number} ({name})"
            )
            if len(batch) == _FOLDER or number == count - 1:
                fault = decoder.ask_folder(batch, seed)
                outcomes.folders += 1
                if fault:
                    outcomes.faults.append(f"seed {seed}, folder that ends with mutant {number}: {fault}")
                batch = []
        outcomes.peak_mb = decoder.peak_mb
    finally:
        decoder.close()
    outcomes.seconds = time.monotonic() - began
    return outcomes


def originals() -> dict[str, bytes]:
    """One small undamaged file per format and kind."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((5, 5, 1))).astype(np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (24, 24)).astype(np.uint16))
    floats = Image.fromarray(rng.random((24, 24), np.float32))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[str, Image.Image, str, dict[str, Any]]] = [
        ("jpeg", colours, "JPEG", {"exif": exif}),
        ("jpeg progressive", colours, "JPEG", {"progressive": True}),
        ("jpeg cmyk", colours.convert("CMYK"), "JPEG", {}),
        ("png", colours, "PNG", {}),
        ("png rgba", colours.convert("RGBA"), "PNG", {}),
        ("png palette", colours.convert("P"), "PNG", {"transparency": 3}),
        ("png 16", deep, "PNG", {}),
        ("webp", colours, "WEBP", {}),
        ("webp lossless", colours.convert("RGBA"), "WEBP", {"lossless": True}),
        ("gif", colours.convert("P"), "GIF", {"save_all": True, "append_images": [colours.convert("P")]}),
        ("bmp", colours, "BMP", {}),
        ("bmp palette", colours.convert("P"), "BMP", {}),
        ("tiff", colours, "TIFF", {}),
        ("tiff lzw", colours, "TIFF", {"compression": "tiff_lzw"}),
        ("tiff deflate", colours.convert("RGBA"), "TIFF", {"compression": "tiff_deflate"}),
        ("tiff jpeg", colours, "TIFF", {"compression": "jpeg"}),
        ("tiff 16", deep, "TIFF", {}),
        ("tiff float", floats, "TIFF", {}),
        ("avif", colours, "AVIF", {}),
        ("jpeg 2000", colours, "JPEG2000", {}),
        ("ppm", colours, "PPM", {}),
        ("tga", colours, "TGA", {"compression": "tga_rle"}),
        ("qoi", colours, "QOI", {}),
        ("sgi", colours, "SGI", {}),
        ("dds", colours, "DDS", {}),
    ]
    Image.init()
    made: dict[str, bytes] = {}
    for name, image, kind, options in kinds:
        if kind in Image.SAVE:
            buffer = BytesIO()
            image.save(buffer, kind, **options)
            made[name] = buffer.getvalue() + (b"TRUEVISION-XFILE.\0" if kind == "TGA" else b"")
    buffer = BytesIO()
    np.save(buffer, rng.integers(0, 4096, (12, 10, 3)))
    return {**made, "npy": buffer.getvalue()}


def mutant(whole: dict[str, bytes], rng: np.random.Generator) -> tuple[str, bytes]:
    """A damaged file, and in a few words what it is."""
    name = str(rng.choice(list(whole)))
    data = whole[name]
    kinds = (_flip, _randomise, _cut, _lie, _splice, _repeat, _bomb)
    kind = kinds[rng.choice(len(kinds), p=(0.25, 0.2, 0.15, 0.2, 0.1, 0.05, 0.05))]
    if kind is _splice:
        other = str(rng.choice(list(whole)))
        return f"{name} and {other}", _splice(data, rng, whole[other])
    if kind is _bomb:
        return _bomb(rng)
    return f"{name}, {kind.__name__[1:]}", kind(data, rng)  # type: ignore[operator]


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    broken = bytearray(data)
    for position in rng.integers(0, len(data), rng.integers(1, 9)):
        broken[position] ^= 1 << int(rng.integers(8))
    return bytes(broken)


def _randomise(data: bytes, rng: np.random.Generator) -> bytes:
    """Other bytes, most of them near the beginning, where the headers are."""
    broken = bytearray(data)
    reach = min(len(data), int(rng.choice([64, 256, len(data)])))
    for position in rng.integers(0, reach, rng.integers(1, 13)):
        broken[position] = int(rng.integers(256))
    return bytes(broken)


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(0, len(data))]


def _lie(data: bytes, rng: np.random.Generator) -> bytes:
    """A number of 2 or 4 bytes in the header is replaced by another, such as a size that is not true."""
    broken = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        code = str(rng.choice(["<H", ">H", "<I", ">I"]))
        value = int(rng.choice(_LIES)) & (0xFFFF if code[1] == "H" else 0xFFFFFFFF)
        struct.pack_into(code, broken, int(rng.integers(0, min(200, len(data) - 4))), value)
    return _with_checksums(bytes(broken))


def _with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have right checksums again, so that it is not refused for these."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + length]
        if at + 12 + length > len(data):
            break
        parts.append(struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + length
    return b"".join([*parts, data[at:]])


def _splice(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    return data[: rng.integers(0, len(data))] + other[rng.integers(0, len(other)) :]


def _repeat(data: bytes, rng: np.random.Generator) -> bytes:
    """A part of the file many times over."""
    first, last = sorted(rng.integers(0, len(data), 2).tolist())
    return data[:last] + data[first:last] * int(rng.integers(2, 200)) + data[last:]


def _bomb(rng: np.random.Generator) -> tuple[str, bytes]:
    """A small file that asks for much memory or time."""
    side = int(rng.choice([3000, 13_000, 60_000, 2**31 - 1]))
    depth, kind = ((8, 2), (16, 2), (16, 6), (8, 3), (16, 0), (1, 0))[rng.integers(6)]
    choice = rng.integers(5)
    if choice == 0:
        return f"png bomb {side}", _png(side, depth, kind, zlib.compress(bytes(3_000_000), 9))
    if choice == 1:
        text = (b"zTXt", b"a\0\0" + zlib.compress(bytes(20_000_000), 9))
        return "png text bomb", _png(16, 8, 0, zlib.compress(bytes(17 * 16)), text)
    if choice == 2:
        head = b"GIF89a" + struct.pack("<HHBBB", min(side, 65535), min(side, 65535), 0x80, 0, 0) + bytes(6)
        return f"gif bomb {side}", head + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
    if choice == 3:
        frame = Image.new("L", (2000, 2000))
        buffer = BytesIO()
        frame.save(buffer, "JPEG", progressive=True)
        data = buffer.getvalue()
        scan = data.index(b"\xff\xda")
        return "jpeg scans", data[:scan] + data[scan:-2] * int(rng.integers(2, 400)) + data[-2:]
    header = struct.pack(
        "<IiiHHIIiiII", 40, min(side, 2**31 - 1), min(side, 2**31 - 1), 1, 8, 1, 0, 0, 0, 0, 0
    )
    return f"bmp bomb {side}", b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + bytes(100)


def _png(side: int, depth: int, kind: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"PLTE", bytes(6)), (b"IDAT", rows), (b"IEND", b"")]
    parts = (struct.pack(">I", len(body)) + name + body for name, body in chunks)
    return _with_checksums(b"\x89PNG\r\n\x1a\n" + b"".join(part + bytes(4) for part in parts))


class _Decoder:
    """A process that decodes mutants within limits; a new one replaces one that crashed or did not answer."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.process: Any = None
        self.peak_mb = 0.0

    def ask(self, data: bytes, deep: bool) -> str:
        """ "decoded", "skipped: " and a reason, or a fault; `deep` decodes with `data.range` set."""
        return self._ask(("deep" if deep else "decode", data))

    def ask_folder(self, batch: list[bytes], seed: int) -> str:
        """ "" or a fault in listing and reading a folder of mutants."""
        return self._ask(("folder", (batch, seed)))

    def _ask(self, question: tuple[str, Any]) -> str:
        if self.process is None:
            self.pipe, other = self.context.Pipe()
            self.process = self.context.Process(target=_serve, args=(other,), daemon=True)
            self.process.start()
            other.close()
        try:
            self.pipe.send(question)
            if not self.pipe.poll(_SECONDS * (_FOLDER if question[0] == "folder" else 1)):
                self.close()
                return f"fault: no answer within {_SECONDS:.0f} s"
            answer, peak = self.pipe.recv()
            self.peak_mb = max(self.peak_mb, peak)
            return str(answer)
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            self.close()
            return f"fault: the process ended with {code}"

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def _serve(pipe: Connection) -> None:
    limit = psutil.Process().memory_info().vms + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    config = DataConfig(**_CONFIG)  # type: ignore[arg-type]
    deep = DataConfig(**_CONFIG, range=(0, 4095))  # type: ignore[arg-type]
    while True:
        kind, what = pipe.recv()
        answer = (
            _folder(*what, config) if kind == "folder" else _decoded(what, deep if kind == "deep" else config)
        )
        pipe.send((answer, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000))


def _decoded(data: bytes, config: DataConfig) -> str:
    try:
        pixels = decode(data, config)
    except ImageError as error:
        return f"skipped: {error}"
    except DataError as error:
        if "extra" in str(error):  # a fault of the installation: said, and not kept as one of the file
            return "skipped: an extra is missing"
        return f"fault: {type(error).__name__}: {error}"
    except BaseException as error:
        return f"fault: {type(error).__name__}: {error}"
    if pixels.shape != (*config.shape, config.channels) or pixels.dtype != stored_type(config):
        return f"fault: pixels {pixels.shape} {pixels.dtype}"
    return "decoded"


def _folder(batch: list[bytes], seed: int, config: DataConfig) -> str:
    """Write the mutants to a folder, list it and open it; every file must be used or listed as skipped."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place, "in")
        root.mkdir()
        for number, data in enumerate(batch):
            ending = str(rng.choice([".png", ".jpg", "", ".tif", ".dat", ".tga"]))
            (root / f"{number}{rng.choice(_NAMES[:-2])}{ending}").write_bytes(data)
        for number in range(2):
            Image.new("RGB", (9, 9)).save(root / f"good{number}.png")
        try:
            listed = list_images(locate(str(root), Path(place, "run")), config, Path(place, "scratch"), 0)
            images = open_images(str(root), config, Path(place, "run", "data"), say=lambda text: None)
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        counted = len(images) + images.skipped
        text = Path(place, "run", "data", "skipped.txt")
        lines = text.read_text(encoding="utf-8").splitlines() if text.exists() else []
        if counted != len(batch) + 2 or len(lines) != images.skipped or len(listed.names) > counted:  # type: ignore[union-attr]
            return (
                f"{len(batch) + 2} files, {len(images)} used, {images.skipped} skipped, {len(lines)} listed"
            )
        return "" if "\x1b" not in "".join(lines) else "a control character in skipped.txt"


def _count(outcomes: Outcomes, answer: str, what: str) -> None:
    if answer == "decoded":
        outcomes.decoded += 1
    elif answer.startswith("skipped: "):
        outcomes.skipped[_kind(answer.removeprefix("skipped: "))] += 1
    else:
        outcomes.faults.append(f"{what}: {answer.removeprefix('fault: ')}")


def _kind(reason: str) -> str:
    """The reason without its numbers."""
    plain = reason.split(":")[0] if reason.startswith(("broken", "grey values")) else reason
    return re.sub(r"-?(\d[\d.x]*(e[+-]?\d+)?|inf|nan)", "N", plain)[:60]


def main() -> None:
    """Attack, and print what became of the mutants as JSON; exit code 1 if there is a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=4000, help="number of mutants")
    options = parser.parse_args()
    outcomes = mutate_images(options.seed, options.count)
    shown = {**vars(outcomes), "skipped": dict(outcomes.skipped.most_common()), "count": outcomes.count}
    print(json.dumps(shown, indent=1))
    raise SystemExit(bool(outcomes.faults))


if __name__ == "__main__":
    main()
