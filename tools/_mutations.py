"""Ways to damage a file of a run folder: blind ones for any file, and ones that know its format and keep its checksums right.

A mutation is a function of a path and a `random.Random`; it changes the file in place. Those that know a format are what an
attacker would write; the blind ones are what a disk or a careless copy does.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from vqvae2.files import tensor_file

Mutation = Callable[[Path, random.Random], None]
VICTIM = "victim.txt"  # a file beside the run folder, which nothing may touch


def _wrong_values(path: Path) -> list[Any]:
    deep: Any = 0
    for _ in range(200):
        deep = [deep]
    victim = path
    while not (victim / VICTIM).exists():
        victim = victim.parent
    return [
        *(None, True, False, 0, 1, -1, 2, 3, 255, 65536, 10**9, 2**63, 10**30, 0.5, -0.5, 1e-300, 1e300),
        *(float("nan"), float("inf"), "", "x", "7", "1e9", "no such thing", "\x1b[2J\x07name", "\u202eabc"),
        *("../" * 6 + VICTIM, str(victim / VICTIM), "/etc/passwd", "/dev/zero", "a" * 100_000, "\ud800"),
        *([], [[]], [None], [1, 2], ["a"] * 1000, {}, {"a": {}}, {"": 0}, deep),
    ]  # fmt: skip


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a nested value, as keys and numbers from the outside to the inside."""
    places = [at]
    if isinstance(value, dict):
        places += [place for key, item in value.items() for place in _places(item, (*at, key))]
    elif isinstance(value, list):
        places += [place for index, item in enumerate(value[:20]) for place in _places(item, (*at, index))]
    return places


def changed(value: Any, path: Path, chance: random.Random) -> Any:
    """A copy of a nested value in which one to three items are wrong, missing, moved or repeated."""
    result = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        place = chance.choice(_places(result))
        if not place:
            if chance.random() < 0.1:
                return chance.choice(_wrong_values(path))
            continue
        holder = result
        for key in place[:-1]:
            holder = holder[key]
        what = chance.random()
        if what < 0.15:
            del holder[place[-1]]
        elif what < 0.25 and isinstance(holder, list):
            holder += [holder[place[-1]]] * chance.choice((1, 2, 100))
        elif what < 0.35 and isinstance(holder, dict):
            holder[chance.choice(("extra", "\x1b]0;title", 5, "n" * 1000))] = holder.pop(place[-1])
        elif what < 0.45 and isinstance(holder[place[-1]], int | float):
            holder[place[-1]] *= chance.choice((-1, 2, 3, 10, 1000, 10**12))
        else:
            holder[place[-1]] = chance.choice(_wrong_values(path))
    return result


def _json_text(value: Any) -> bytes:
    return json.dumps(value, default=str).encode()


# --- blind ---------------------------------------------------------------------------------------------------------------


def flip(path: Path, chance: random.Random) -> None:
    """Some bits are inverted."""
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 2, 8, 64)) if data else 0):
        # headers are at the beginning and matter most
        end = min(len(data), chance.choice((16, 200, 2000, len(data))))
        data[chance.randrange(end)] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def cut(path: Path, chance: random.Random) -> None:
    """The end is missing, or the beginning, or everything."""
    data = path.read_bytes()
    at = chance.choice((0, 1, 7, len(data) // 2, max(0, len(data) - 1), chance.randrange(len(data) + 1)))
    path.write_bytes(data[:at] if chance.random() < 0.8 else data[at:])


def splice(path: Path, chance: random.Random) -> None:
    """Bytes are inserted, removed, repeated or set to zero."""
    data = path.read_bytes()
    a, b = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    part = chance.choice(
        (b"", b"\0" * 64, chance.randbytes(32), data[a:b] * 2, b"\xff\xfe", b"[" * 50_000, b"\0" * 2**20)
    )
    path.write_bytes(data[:a] + part + data[b if chance.random() < 0.5 else a :])


def replace(path: Path, chance: random.Random) -> None:
    """Another file, a link, a folder or a pipe is there instead."""
    others = [other for other in sorted(path.parent.parent.rglob("*")) if other.is_file() and other != path]
    data = chance.choice(others).read_bytes()
    path.unlink()
    what = chance.random()
    if what < 0.6:
        path.write_bytes(data)
    elif what < 0.7:
        path.mkdir()
    elif what < 0.8:
        path.symlink_to(chance.choice(("/dev/zero", "/etc/passwd", "nowhere", path.name)))
    elif what < 0.9:
        os.mkfifo(path)


# --- by format -----------------------------------------------------------------------------------------------------------


def json_values(path: Path, chance: random.Random) -> None:
    """A JSON file with wrong values."""
    path.write_bytes(_json_text(changed(json.loads(path.read_text()), path, chance)))


def json_text(path: Path, chance: random.Random) -> None:
    """A JSON file that is nested deeply, repeats a key, or holds a number of many digits."""
    deep = chance.choice((b"[", b'{"a":')) * chance.choice((100, 5000, 200_000))
    text = path.read_bytes()
    path.write_bytes(
        chance.choice((deep, text.replace(b": ", b": " + deep, 1), b'{"format": ' + b"9" * 5000 + b"}"))
    )


def json_lines(path: Path, chance: random.Random) -> None:
    """A file of JSON lines of which one has wrong values."""
    lines = path.read_text().splitlines()
    number = chance.randrange(len(lines))
    lines[number] = _json_text(changed(json.loads(lines[number]), path, chance)).decode()
    path.write_text("\n".join(lines) + "\n")


def yaml_values(path: Path, chance: random.Random) -> None:
    """A YAML file with wrong values."""
    value = changed(yaml.safe_load(path.read_text()), path, chance)
    path.write_bytes(yaml.safe_dump(value, sort_keys=False).encode("utf-8", "backslashreplace"))


def yaml_text(path: Path, chance: random.Random) -> None:
    """A YAML file with aliases that repeat themselves, deep nesting, tags, or long numbers."""
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    merged = "a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
    )
    odd = ("data: " + "[" * 3000, "data: &a [*a]\n", "run: !!python/object/apply:os.system [id]\n", "? [a]\n: 1\n",
           "seed: " + "1:" * 2000 + "1\n", "seed: 0x" + "f" * 100_000 + "\n", "data: 2001-13-45\n", "--- 1\n--- 2\n",
           "data: !!binary x\n", "a: " + "- " * 3000)  # fmt: skip
    text = path.read_text()
    path.write_text(
        chance.choice((bomb, text + bomb, merged, text + merged, *odd, *(text + part for part in odd)))
    )


def tensors(path: Path, chance: random.Random) -> None:
    """A weight file with a right digest and wrong names, shapes, types, numbers or metadata."""
    values, metadata = tensor_file.load_tensors(path)
    for _ in range(chance.choice((0, 1, 1, 2))):
        if not values:  # the only one was removed
            break
        name = chance.choice(sorted(values))
        value = values[name]
        wrong: list[Callable[[], torch.Tensor]] = [
            lambda v=value: v[..., None],
            lambda v=value: v.flatten()[:0],
            lambda v=value: v.reshape(-1),
            lambda v=value: torch.zeros(()),
            lambda v=value: v.to(chance.choice((torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64))),
            lambda v=value: v.float().to(torch.float8_e4m3fn),
            lambda v=value: torch.full_like(v, chance.choice((float("nan"), float("inf"), 3e38, -3e38, 0.0)))
            if v.is_floating_point()
            else torch.full_like(v, chance.choice((-1, 0, 2**31, 2**62))),
            lambda v=value: torch.cat([v.flatten()] * 2),
        ]  # fmt: skip
        what = chance.random()
        if what < 0.1:
            del values[name]
        elif what < 0.2:
            values[chance.choice(("x", "model.x", "best.x", "optimizer.x", "counts.9", "\x1b[31m"))] = (
                values.pop(name)
            )
        else:
            values[name] = chance.choice(wrong)()
    if chance.random() < 0.6:
        metadata = changed(metadata, path, chance)
    text = json.dumps(metadata, default=str)
    check = tensor_file.digest(values, text)
    header = {"vqvae2": json.dumps({"format": 1, "digest": check, "metadata": text})}
    if chance.random() < 0.1:
        header = {"metadata": text, "digest": check, "format": chance.choice(("1", "2", "x", "9" * 30))}
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in values.items()}, path, header)


def array_header(path: Path, chance: random.Random) -> None:
    """A .npy file whose header says something else."""
    data = path.read_bytes()
    end = data.index(b"\n") + 1
    shape = chance.choice(
        ("(3,)", f"({10**18}, {10**9})", "(-1,)", "(" * 2000, "(1e3,)", "()", "None", "(2**70,)", "(0,)")
    )
    kind = chance.choice(("'<u2'", "'|O'", "'<f8'", "'<i8'", "[('a', '<u2')]", "'|V0'", "5"))
    order = chance.choice(("False", "True", "1"))
    text = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"
    if chance.random() < 0.2:
        text = chance.choice(("{", "__import__('os')", "{'descr': '<u2'}", "\0" * 50, "'" * 99))
    header = text.encode().ljust(end - 11) + b"\n"
    size = len(header).to_bytes(2, "little") if chance.random() < 0.8 else chance.randbytes(2)
    version = b"\x01\x00" if chance.random() < 0.8 else chance.choice((b"\x02\x00", b"\x03\x00", b"\x09\x09"))
    path.write_bytes(b"\x93NUMPY" + version + size + header + data[end:])


def array_values(path: Path, chance: random.Random) -> None:
    """A .npy file of the code store with other numbers and the right checksum, or another shape or type."""
    array = np.load(path)
    what = chance.random()
    if what < 0.6 and array.size:
        array.reshape(-1)[chance.randrange(array.size)] = chance.choice((0, 15, 16, 100))
    elif what < 0.8:
        array = array.astype(chance.choice((np.int8, np.int64, np.float32, np.uint16)))
    else:
        array = array[: len(array) // 2]
    np.save(path, array)
    manifest = path.with_name("manifest.json")
    if manifest.exists():
        value = json.loads(manifest.read_text())
        value["checksums"][path.name] = hashlib.sha256(array.tobytes()).hexdigest()
        manifest.write_text(json.dumps(value))


def members(path: Path, chance: random.Random) -> None:
    """An .npz file that is compressed, or whose arrays are missing or of another shape, type or content."""
    with np.load(path) as opened:
        arrays = dict(opened)
    name = chance.choice(sorted(arrays))
    value = arrays[name]
    arrays[name] = chance.choice((value[:0], value[:1], value.astype(np.float64), value[..., None], value.astype(np.int64) + 10**6,
                                  np.array("text"), np.zeros((), np.int64), -value.astype(np.int64)))  # fmt: skip
    if chance.random() < 0.2:
        del arrays[name]
    if chance.random() < 0.2:
        arrays["bomb"] = np.zeros(2**27, np.uint8)
        np.savez_compressed(path, **arrays)
    else:
        np.savez(path, **arrays)
    if chance.random() < 0.1:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("../" * 5 + VICTIM, b"no array")


def renames(path: Path, chance: random.Random) -> None:
    """Beside the manifest of a code store a list of renames that lead anywhere."""
    folder = path.parent
    manifest = json.loads(path.read_text())
    names = [*manifest["checksums"]]
    pairs = {name: f".{name}.{chance.randrange(9999)}.tmp" for name in names}
    for _ in range(chance.choice((0, 1, 1, 2))):
        wrong = [value for value in _wrong_values(path) if isinstance(value, str) and "\ud800" not in value]
        pairs[chance.choice([*names, *wrong])] = chance.choice([*names, *wrong])
    for temporary in list(pairs.values()):
        if chance.random() < 0.7 and temporary.startswith(".") and "/" not in temporary:
            shutil.copy(folder / chance.choice(names), folder / temporary)
    (folder / "next.json").write_text(json.dumps({**manifest, "renames": pairs}))


def mutations_of(name: str) -> list[Mutation]:
    """The mutations that make sense for a file of this name; format-aware ones more often than blind ones."""
    blind: list[Mutation] = [flip, cut, splice, replace]
    known: dict[str, list[Mutation]] = {
        "manifest.json": [json_values, json_values, json_text, renames, renames],
        ".json": [json_values, json_values, json_text],
        ".jsonl": [json_lines, json_text],
        ".yaml": [yaml_values, yaml_values, yaml_values, yaml_text],
        ".safetensors": [tensors, tensors, tensors, tensors],
        ".npy": [array_header, array_header, array_values, array_values],
        ".npz": [members, members, members],
    }
    return blind + (known.get(name) or known.get(Path(name).suffix, []))
