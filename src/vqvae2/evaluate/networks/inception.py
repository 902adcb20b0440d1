"""The feature network `inception`: the one of FID, KID and Inception score, as torch-fidelity has it. Shapes: B batch, H W px."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from vqvae2.evaluate.features import FeatureError
from vqvae2.evaluate.networks.base import Network, one_line, read_state
from vqvae2.files.tensor_file import digest


class Inception(Network):
    """torch-fidelity's `inception-v3-compat`, which resizes images itself."""

    name = "inception"
    dimension = 2048
    size = 299
    resize = "bilinear of TensorFlow 1, corners not aligned, not antialiased"
    score_name = "Inception score"

    def __init__(self, weights: Path | None) -> None:
        if weights is None:
            raise FeatureError("the feature network inception needs a weights file: none is shipped")
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision was built for another torch
            raise FeatureError(
                "the feature network inception needs torch-fidelity, pip install 'vqvae2[inception]', and the torchvision "
                f"that belongs to this torch: {one_line(error)}"
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
            raise FeatureError(f"{weights} holds no Inception: {one_line(error)}") from None
        self.net = net

    def features_of(self, colours: Tensor) -> tuple[Tensor, Tensor | None]:
        pooled, logits = self.net(colours)
        return pooled, logits
