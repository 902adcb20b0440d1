"""The feature network `inception`: the one of FID, KID and Inception score, as torch-fidelity has it. Shapes: B batch, H W px."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from vqvae2.evaluate.features import FeatureError
from vqvae2.evaluate.networks.base import Network, read_state
from vqvae2.files.atomic import reason
from vqvae2.files.tensor_file import digest

WEIGHTS = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
"""Where torch-fidelity takes its weights from: `URL_INCEPTION_V3` in feature_extractor_inceptionv3.py of torch-fidelity 0.4.0."""
BEGINNING = "6726825d"
"""The first digits of the file's sha-256, which end its name, as is usual for files that torch.hub reads."""


class Inception(Network):
    """torch-fidelity's `inception-v3-compat`, which resizes images itself."""

    name = "inception"
    dimension = 2048
    size = 299
    resize = "bilinear of TensorFlow 1, corners not aligned, not antialiased"
    score_name = "Inception score"

    def __init__(self, weights: Path | None) -> None:
        if weights is None:
            raise FeatureError(
                f"the feature network inception needs a weights file, which is not shipped: download {WEIGHTS} "
                f"(its sha-256 begins with {BEGINNING}) and name it with --weights"
            )
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision was built for another torch
            raise FeatureError(
                "the feature network inception needs torch-fidelity, pip install 'vqvae2[inception]', and the torchvision "
                f"that belongs to this torch: {reason(error)}"
            ) from None
        state = read_state(weights)
        super().__init__(digest(state))
        file = BytesIO()  # torch-fidelity unpickles whatever the file holds; this copy holds tensors alone
        torch.save(state, file)
        file.seek(0)
        try:
            with torch.random.fork_rng(devices=[]):
                net = FeatureExtractorInceptionV3(
                    "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=file
                )
        except RuntimeError as error:
            raise FeatureError(f"{weights} holds no Inception: {reason(error)}") from None
        self.net = net

    def features_of(self, colours: Tensor) -> tuple[Tensor, Tensor | None]:
        pooled, logits = self.net(colours)
        return pooled, logits


def other_weights(path: Path) -> str | None:
    """Why figures of this weights file may not be those of the literature, as text; None if it is torch-fidelity's own file.

    torch-fidelity itself does not compare the digest. 8 digits tell a damaged or another file, not a forged one.

    Raises:
        FeatureError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FeatureError(f"cannot read {path}: {reason(error)}") from None
    if found.startswith(BEGINNING):
        return None
    return (
        f"the sha-256 of {path} begins with {found[: len(BEGINNING)]} and that of torch-fidelity's own file with {BEGINNING}, "
        "so these figures may not be the FID, KID and Inception score of the literature"
    )
