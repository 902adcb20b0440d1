"""What the evaluation uses of a run.

`vqvae2.Run` is in a higher layer, which this package may not import; it has these attributes and methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from vqvae2.autoencoder.model import VQVAE
from vqvae2.config.models import Config
from vqvae2.config.sampling import Sampling
from vqvae2.files.run_folder import DecoderName
from vqvae2.generate.sample import Drawn
from vqvae2.prior.hierarchy import HierarchicalPrior


class TrainedRun(Protocol):
    """See `vqvae2.Run`."""

    folder: Path
    record: dict[str, Any]
    config: Config
    sampling: Sampling
    device: torch.device

    @property
    def autoencoder(self) -> VQVAE:
        """With the plain decoder, in eval mode."""

    def decoder(self, name: DecoderName | None = None) -> VQVAE:
        """The autoencoder that decodes with one of the run's decoders, in eval mode."""

    def decoder_name(self, name: DecoderName | None = None) -> DecoderName:
        """The decoder that is meant: None is the sharpened one if it is trained, else the plain one."""

    def drawn_by(self, decoder: DecoderName | None = None) -> dict[str, Any]:
        """Which networks draw samples: the digests of the `model`, and name and digest of the `decoder`."""

    @property
    def prior(self) -> HierarchicalPrior:
        """In eval mode."""

    def draw(
        self,
        n: int,
        labels: Sequence[str | int] | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
        ranges: Iterable[range] | None = None,
        decoder: DecoderName | None = None,
    ) -> Iterator[Drawn]:
        """Samples of the given numbers, batch by batch."""

    def digests(self) -> dict[str, str]:
        """The digest of each trained network's weights, by name."""

    def done(self) -> dict[str, bool]:
        """Whether each stage is trained, by name."""
