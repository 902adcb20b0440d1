"""Train on a folder of images, draw samples and measure the run, from Python.

python examples/train_from_python.py DATA RUN [PRESET [KEY=VALUE ...]]

Each VALUE is YAML, as for `vqvae2 train --set`. The samples are written to drawn.png. The last lines are below a guard, because
processes that decode images import the script anew.
"""

import sys
from pathlib import Path

import yaml

import vqvae2
from vqvae2.data.grid import save_grid


def main(data: str, folder: str, preset: str | None = None, *settings: str) -> None:
    pairs = [pair.split("=", 1) for pair in settings]
    changes = {key: yaml.safe_load(value) for key, value in pairs}
    run = vqvae2.fit(data, folder, preset=preset, settings=changes)
    print(f"held-out reconstructions: {run.figures()['heldout_psnr']:.2f} dB")
    save_grid(run.sample(16, seed=0), Path("drawn.png"), 4)
    report = vqvae2.measure(run, only=["nll", "reconstruction"])
    print(f"a held-out image costs {report['parts']['nll']['held out']['bits_per_image']:.0f} bits")


if __name__ == "__main__":
    main(*sys.argv[1:])
