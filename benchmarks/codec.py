"""How fast images are compressed and decompressed on one core, in seconds of the processor.

python benchmarks/codec.py [--run emoji64]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import keep

from vqvae2.run import load


def seconds(job: Callable[[], Any]) -> float:
    """Of the processor, which other programs on the machine change less than those of the clock."""
    begun = time.process_time()
    job()
    return time.process_time() - begun


def main() -> int:
    """Measure samples of the run, alone and side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="emoji64")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = load(options.run, "cpu")
    images = list(run.sample(64, seed=0))
    rows = []
    run.codec.compress(images[:1])
    for mode in ("prior", "packed"):
        for batch in (1, 16, 64):
            some = images[:batch]
            files = run.codec.compress(some, mode=mode)  # type: ignore[arg-type]
            compressing = seconds(lambda: run.codec.compress(some, mode=mode))  # type: ignore[arg-type] # noqa: B023
            decompressing = seconds(lambda: run.codec.decode(run.codec.decompress(files)))  # noqa: B023
            row = {"mode": mode, "side by side": batch}
            row |= {"compressed per second": batch / compressing}
            row |= {"decompressed per second": batch / decompressing}
            rows.append(row)
    keep("codec", {"run": Path(options.run).name, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
