"""Decompress mutated and cut files: each must give one clear error, or a correct image, without much memory.

    python tools/attack_compressed.py --count 10000 [--seed 0]

The model is tiny and random, so that a file takes milliseconds. `mutate_compressed` is the same as a function; it returns how
often each outcome occurred and raises `AssertionError` with the file, in hexadecimal, at the first wrong one.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codec.codec import Codec, Decompressed
from vqvae2.codec.container import CODES_PER_BYTE, read_header
from vqvae2.codec.errors import CodecError
from vqvae2.config.models import AutoencoderConfig, LevelPriorConfig, PriorConfig
from vqvae2.prior.hierarchy import HierarchicalPrior

SIZES = [(8, 8), (8, 8), (21, 13), (5, 30)]
MEMORY = 512  # MiB that decompressing may add to the process
SLOW = 1.0  # seconds
KINDS = [
    *("bit", "bits", "byte", "cut", "cut and bit", "insert", "delete", "splice", "header", "noise", "forged"),
]


def tiny_codec() -> Codec:
    """Two levels of 2x2 and 4x4 codes, three classes, random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoencoderConfig(strides=(2, 2), codes=(30, 64), code_dim=4, hidden=8, residual=4, blocks=1)
        model = VQVAE(config).eval()
        level = LevelPriorConfig(hidden=8, residual=8, layers=1, heads=1, attention_every=1, output_layers=0)
        prior = HierarchicalPrior(PriorConfig(levels=(level, level), classes=3), config.geometry(8, 8)).eval()
        for parameter in prior.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return Codec(model, (8, 8), prior)


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> tuple[str, bytes]:
    """The kind of a mutation, and the file after it: bits, bytes, cuts, insertions, exchanged parts, or noise."""
    kind = chance.choice(KINDS)
    if kind == "forged":
        return kind, forged(data, chance)
    new = bytearray(data)
    at = chance.randrange(len(new))
    if kind in ("bit", "cut and bit"):
        new[at] ^= 1 << chance.randrange(8)
    if kind == "bits":
        for _ in range(chance.randint(2, 30)):
            new[chance.randrange(len(new))] ^= 1 << chance.randrange(8)
    if kind == "byte":
        new[at] = chance.choice([0, 255, 127, 128, chance.randrange(256)])
    if kind in ("cut", "cut and bit"):
        del new[chance.randrange(len(new) + 1) :]
    if kind == "insert":
        new[at:at] = chance.randbytes(chance.randint(1, 9))
    if kind == "delete":
        del new[at : at + chance.randint(1, 9)]
    if kind == "splice":
        other = chance.choice(others)
        new[at:] = other[chance.randrange(len(other)) :]
    if kind == "header":  # the magic, the version and the digest stay, so that what follows is read
        for place in range(7, min(len(new), 7 + chance.randint(1, 16))):
            new[place] = chance.randrange(256)
    if kind == "noise":
        new[7:] = chance.randbytes(chance.randint(0, 200))
    return kind, bytes(new)


def forged(data: bytes, chance: random.Random) -> bytes:
    """A file with another header whose own check is right, as only a program would write it."""
    header, end = read_header(data, 2, lambda mode: data[3:7])  # of the model that wrote it
    field = chance.choice(["size", "thin", "label", "lengths", "listed", "checks", "digest"])
    value: Any = None
    if field == "size":
        small, large = (chance.randint(1, 40), chance.randint(1, 40)), (chance.randint(1, 2**20), 2**14)
        value = chance.choice([None, small, large])
    if field == "thin" and header.mode == "prior":  # with streams that are long enough
        side = chance.randint(2**24 + 1, 2**25)
        lengths = (side // CODES_PER_BYTE + 1,) * 2
        thin = replace(header, size=chance.choice([(1, side), (side, 1)]), lengths=lengths)
        return thin.pack() + bytes(sum(lengths))
    if field == "label":
        value = chance.choice([None, chance.randint(0, 5), 2**34])
    if field == "lengths" and header.mode == "prior":
        value = tuple(max(0, length + chance.randint(-3, 3)) for length in header.lengths)
    if field == "listed" and header.mode == "prior":
        places = {chance.randint(0, 40) for _ in range(chance.randint(1, 5))}
        value = (tuple(sorted(places)), (chance.choice([3, 10**9]),))
    if field == "checks":
        value = tuple(chance.randrange(2**32) for _ in header.checks)
    if field == "digest":
        value = chance.randbytes(4)
    if value is not None or field in ("size", "label"):
        header = replace(header, **{field: value})
    return header.pack() + data[end:]


def mutate_compressed(seed: int, count: int) -> dict[str, Any]:
    """Decompress `count` mutated files and count what happens.

    Args:
        seed: decides the mutations.
        count: how many.

    Returns:
        `files`; `error`, `coarse` (a correct image of fewer levels, of a file that was cut) and `whole` (a correct image): how often;
        `errors`: how often each message, numbers replaced; `slow`: files that took over a second; `memory`: MiB that were added.

    Raises:
        AssertionError: a wrong image, an error of another kind, or too much memory.
    """
    codec, chance = tiny_codec(), random.Random(seed)
    pictures = [
        torch.rand(3, *size, generator=torch.Generator().manual_seed(n)) * 2 - 1
        for n, size in enumerate(SIZES)
    ]
    files = codec.compress(pictures, [None, 2, 0, None]) + codec.compress(pictures, mode="packed")
    correct = codec.decompress(files)
    outcomes: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    before, slow = _memory(), 0
    for _ in range(count):
        kind, data = mutated(files[chance.randrange(len(files))], files, chance)
        begun = time.perf_counter()
        try:
            found = codec.decompress([data])[0]
            codec.decode([found])
        except CodecError as error:
            outcomes["error"] += 1
            text = str(error)
            assert text.splitlines() == [text], f"{kind}: no one line: {text!r}: {data.hex()}"
            errors["".join("#" if c.isdigit() else c for c in text.split(": expected")[0])] += 1
        except Exception as error:
            raise AssertionError(f"{kind}: {type(error).__name__}: {error}: {data.hex()}") from error
        else:
            assert any(_same(found, one) for one in correct), f"{kind}: a wrong image: {data.hex()}"
            outcomes["whole" if len(found.grids) == codec.levels else "coarse"] += 1
        slow += time.perf_counter() - begun > SLOW
    memory = _memory() - before
    assert memory < MEMORY, f"{memory} MiB"
    return {"files": count, **outcomes, "errors": dict(errors.most_common()), "slow": slow, "memory": memory}


def _same(found: Decompressed, one: Decompressed) -> bool:
    """Whether the codes that were found are those of an original, as far as they go."""
    size = (found.layout.height, found.layout.width) == (one.layout.height, one.layout.width)
    return size and all(map(np.array_equal, found.grids, one.grids))


def _memory() -> int:
    """MiB that this process has used at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (
        2**20 if sys.platform == "darwin" else 2**10
    )


def main() -> int:
    """Attack, and print the counts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(mutate_compressed(options.seed, options.count), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
