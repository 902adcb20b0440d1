"""What `vqvae2 evaluate` measures, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vqvae2.config.sampling import Sampling
from vqvae2.evaluate.resnet import ClassifierConfig
from vqvae2.files.run_folder import DecoderName


@dataclass(frozen=True)
class EvaluateOptions:
    """What is measured, and how.

    Attributes:
        only: names of parts, () for all that can be measured.
        n: images of each set that are compared, at most; None is 10,000. More than are held out makes large sets
            (`evaluate.large_sets`), if `reference` is as large. The classification accuracy score has `classifier_n` instead.
        reference: training images with which they are compared, at most; n if that is larger.
        network, weights: the feature network, see `feature_network`.
        perceptual: weights of the perceptual distance, a file or a Hub id (`PerceptualDistance.read`), or None to leave it out.
        samples: a folder of images that is measured instead of samples of the run.
        against: further folders that are measured, by name.
        critic_fractions: fractions of the candidates that the critic keeps, one row of figures each; () for none.
        classifier: of the classification accuracy score; it mirrors and moves images at most as the run does
            (`ClassifierConfig.within`).
        classifier_n: number of images on which that classifier is trained, at most. None: as many samples of each class as
            there are training images, as Ravuri and Vinyals do, but no more than 60,000 in all.
        sampling: how samples of the run are drawn; None takes the run's own settings.
        decoder: of reconstructions and samples; None takes the sharpened one if the run has it, else the plain one.
        seed: decides which images are chosen, and which samples are drawn.
        compress: a folder of images that the part `compression` compresses at their own size, instead of held-out images at the
            run's; None for these.
        split: a split of the data, all of whose images are the held-out ones, with a run only; None for the run's own.
        size: px, used without a run only; None takes the size of the samples.
    """

    only: tuple[str, ...] = ()
    n: int | None = None
    reference: int = 10_000
    network: str = "lite0"
    weights: Path | None = None
    perceptual: Path | None = None
    samples: Path | None = None
    against: dict[str, Path] = field(default_factory=dict)
    critic_fractions: tuple[float, ...] = ()
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    classifier_n: int | None = None
    sampling: Sampling | None = None
    decoder: DecoderName | None = None
    seed: int = 0
    compress: Path | None = None
    size: int | None = None
    split: str | None = None

    @property
    def most(self) -> int:
        """`n`, or its default."""
        return 10_000 if self.n is None else self.n
