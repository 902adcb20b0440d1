"""A classifier from somebody else, as a TorchScript file with a declaration inside.

Shapes: B batch, C channels, H W px, S the size that the classifier expects, K classes.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqvae2.data.pixels import as_rgb
from vqvae2.evaluate.classifier import ClassifierError
from vqvae2.files.atomic import reason

DECLARATION = "vqvae2.json"
"""Name of the extra file in the TorchScript archive that says what images the classifier expects."""


class TorchScriptClassifier(nn.Module):
    """A TorchScript module that maps [B, 3, S, S] in [-1, 1] to logits.

    Images are resized to S (bilinear, antialiased). Grey images are expanded to RGB, and of RGBA the colours are taken. A
    module that expects another range than [-1, 1] has to scale its input itself.
    """

    def __init__(self, module: nn.Module, size: int, classes: int, backbone_digest: str) -> None:
        super().__init__()
        self.module, self.size, self.classes, self.backbone_digest = module, size, classes, backbone_digest

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C, H, W] in [-1, 1]."""
        colours = as_rgb(images)
        if colours.shape[2:] != (self.size, self.size):
            sides = (self.size, self.size)
            colours = functional.interpolate(colours, sides, mode="bilinear", antialias=True)
        return self.module(colours)


def read_torchscript(path: Path, device: str | torch.device = "cpu") -> TorchScriptClassifier:
    """A classifier that `torch.jit.save(module, path, _extra_files={"vqvae2.json": '{"size": 224}'})` wrote.

    `size` is S. The declaration may also hold `backbone_digest` (older files: `rests_on`), the digest of the feature network
    that the classifier was made from. Without it the digest is the file's own sha-256. The module must accept batches of any
    size.

    Pickles are refused, and so are the .pt2 files of torch.export, because reading one unpickles and evaluates its contents.
    A TorchScript file is a program too, although one of tensor operations only: use files from people you trust.

    Raises:
        ClassifierError: no such file, another kind of file, a missing or wrong declaration, or a module that fails on two and
            three black images.
    """
    _check_archive(path)
    declared = {DECLARATION: b""}
    try:
        with warnings.catch_warnings():
            # torch deprecates TorchScript, but offers no other format that is no pickle
            warnings.simplefilter("ignore")
            module = torch.jit.load(path, map_location=device, _extra_files=declared).eval()
    except RuntimeError as error:
        raise ClassifierError(f"cannot read {path}: {reason(error)}") from None
    about = _declaration(path, declared[DECLARATION])
    classes = _class_count(module, about["size"], path, device)
    own = hashlib.sha256(path.read_bytes()).hexdigest()
    digest = about.get("backbone_digest", about.get("rests_on", own))
    return TorchScriptClassifier(module, about["size"], classes, digest)


def _check_archive(path: Path) -> None:
    if not path.is_file():
        raise ClassifierError(f"no classifier at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        raise ClassifierError(f"{path} is no TorchScript file") from None
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" not in inside or not any(name.startswith("code/") for name in inside):
        exported = "archive_format" in inside or "serialized_exported_program.json" in names  # of torch 2.6
        kind = "torch.export's" if exported else "a pickle or another archive"
        raise ClassifierError(
            f"{path} is no TorchScript file but {kind}, which could run code: save the model with torch.jit.save"
        )


def _declaration(path: Path, text: bytes) -> dict[str, Any]:
    try:
        about = json.loads(text or "null")
    except ValueError:
        about = None
    sized = isinstance(about, dict) and type(about.get("size")) is int and 1 <= about["size"] <= 8192
    digests = [about.get(key, "") for key in ("backbone_digest", "rests_on")] if sized else []
    if not sized or not all(isinstance(digest, str) for digest in digests):
        raise ClassifierError(
            f'{path} does not say the size of its images: expected an extra file {DECLARATION} like {{"size": 224}}'
        )
    return about


def _class_count(module: nn.Module, size: int, path: Path, device: str | torch.device) -> int:
    """K, from the logits of two and of three black images."""
    try:
        with torch.no_grad():
            shapes = [module(torch.zeros(count, 3, size, size, device=device)).shape for count in (2, 3)]
    except Exception as error:  # the program of somebody else may raise anything
        raise ClassifierError(
            f"{path} fails on images [B, 3, {size}, {size}]: {' '.join(str(error).split())[-200:]}"
        ) from None
    if [tuple(shape[:-1]) for shape in shapes] != [(2,), (3,)] or shapes[0] != (2, shapes[1][-1]):
        raise ClassifierError(
            f"{path} returns {[list(shape) for shape in shapes]} for 2 and 3 images: expected [B, K]"
        )
    return int(shapes[0][1])
