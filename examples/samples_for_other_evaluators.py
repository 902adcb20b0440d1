"""Write a folder of samples as one .npz file, which evaluators of other projects read.

python examples/samples_for_other_evaluators.py SAMPLES FILE.npz

SAMPLES is what `vqvae2 sample` wrote, with --pictures png or npz. FILE.npz holds `arr_0`, uint8 [N, H, W, 3], in the order of the
samples; evaluations/evaluator.py of openai/guided-diffusion, for example, reads this form. The sheet grid.png is left out: a tool
that is pointed at SAMPLES itself would count it as an image. All images are in memory at once.
"""

import json
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

folder, target = Path(sys.argv[1]), Path(sys.argv[2])


@lru_cache(maxsize=1)
def batch(name: str) -> dict[int, np.ndarray]:
    """The images of one batch by the numbers of their samples."""
    with np.load(folder / name) as arrays:
        return dict(zip(arrays["numbers"].tolist(), arrays["images"], strict=True))


def picture(sample: dict) -> Image.Image:
    """One of the samples that samples.json lists."""
    file = folder / f"{sample['number']:05d}.png"
    if file.exists():
        return Image.open(file)
    pixels = batch(sample["codes"])[sample["number"]]
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


listed = json.loads((folder / "samples.json").read_text())["samples"]
images = np.stack([np.asarray(picture(sample).convert("RGB")) for sample in listed])
np.savez(target, arr_0=images)
print(f"{target}: arr_0 of {images.dtype} {list(images.shape)}")
