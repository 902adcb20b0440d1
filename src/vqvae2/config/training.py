"""The settings of each stage's training.

The descriptions of the fields are the help texts of `vqvae2 train --help-config`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vqvae2.config.base import Settings

LEAST_COMPARED = 16
"""Sides of the images that a perceptual distance compares, in px; it halves them four times."""


class TrainConfig(Settings):
    """One stage's training."""

    steps: int = Field(20_000, ge=1, le=10**9, description="optimiser steps")
    batch: int = Field(32, ge=1, le=10**6, description="images per step, over all processes")
    lr: float = Field(3e-4, gt=0, le=1000, description="peak learning rate")
    warmup: int = Field(200, ge=0, le=10**9, description="steps of linear warm-up")
    schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="learning rate after the warm-up; cosine ends at 1/50"
    )
    weight_decay: float = Field(0.0, ge=0, le=1000, description="AdamW weight decay")
    clip: float = Field(1.0, ge=0, le=1e6, description="largest gradient norm; 0 = no clipping")
    average: float = Field(
        0.0, ge=0, lt=1, description="decay of the averaged weights used for evaluation; 0 = none"
    )
    evaluate_every: int = Field(
        1000,
        ge=1,
        le=10**9,
        description="steps between held-out evaluations, sheets of pictures and checkpoints",
    )
    evaluate_on: int = Field(
        0,
        ge=0,
        le=10**9,
        description="held-out images, evenly spread and always the same, of an evaluation during the training; "
        "the figures at its end are of all of them; 0 = always all",
    )
    save_minutes: float = Field(
        15.0,
        ge=0,
        le=10**7,
        description="save the state after so many minutes even if no evaluation is due; 0 = only then",
    )
    log_every: int = Field(50, ge=1, le=10**9, description="steps between lines of metrics.jsonl")
    patience: int = Field(
        0,
        ge=0,
        le=10**9,
        description="stop after so many held-out evaluations without a better one; 0 = never",
    )
    minutes: float = Field(
        0.0,
        ge=0,
        le=10**7,
        description="end after so many minutes even if steps are left; the learning rate's schedule ends with them; 0 = never. "
        "Where the time runs out first, the result depends on the speed of the machine",
    )
    accumulate: int = Field(
        1,
        ge=1,
        le=10**6,
        description="gradient accumulation: the number of parts into which a batch is cut to save memory",
    )


class AutoencoderTrainConfig(TrainConfig):
    """Stage 1's training."""

    start: str = Field(
        "",
        description="run folder, model of the package or Hub id whose autoencoder is the starting point, codebooks included, "
        "to go on with other images or another image size; its model must be the same",
    )
    perceptual: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="weight of a perceptual distance in the loss (0 = paper): sharper reconstructions, more squared error",
    )
    perceptual_weights: str = Field(
        "",
        description="weights of its VGG16: a safetensors file with torchvision's names, or a Hub repository such as timm/vgg16.tv_in1k; "
        "with perceptual 0 the distance is measured and not trained on",
    )

    @model_validator(mode="after")
    def _has_weights(self) -> AutoencoderTrainConfig:
        if self.perceptual and not self.perceptual_weights:
            raise ValueError("a perceptual term needs perceptual_weights, a file or a Hub repository")
        return self


class SharpenConfig(TrainConfig):
    """The sharpening of the decoder, after stage 1: an adversarial training of the decoder alone.

    Encoder, codebooks and codes stay as they are, so priors and stored codes remain valid.
    """

    steps: int = Field(0, ge=0, le=10**9, description="optimiser steps; 0 = no sharpening (paper)")
    patience: int = Field(
        0, ge=0, le=10**9, description="not used: no held-out score tells which weights look best"
    )
    lr: float = Field(2e-4, gt=0, le=1000, description="peak learning rate of the decoder")
    discriminator_rate: float = Field(
        2.0, gt=0, le=1000, description="learning rate of the discriminator, relative to the decoder's"
    )
    average: float = Field(
        0.999,
        gt=0,
        lt=1,
        description="decay of the averaged weights, which are the ones that are kept; after n steps at most (1 + n) / (10 + n)",
    )
    adversarial: float = Field(
        0.75,
        ge=0,
        le=1000,
        description="strength of the adversarial gradient at the images, relative to that of the squared error; "
        "more makes sharper images with more error",
    )
    begin: int = Field(
        100,
        ge=0,
        le=10**9,
        description="steps in which only the discriminator learns from the adversarial loss",
    )
    loss: Literal["hinge", "logistic"] = Field(
        "logistic", description="adversarial loss: the non-saturating logistic one, or hinge"
    )
    penalty: float = Field(
        0.1,
        ge=0,
        le=1000,
        description="weight of the discriminator's gradient penalty R1 at real images; 0 = none",
    )
    width: int = Field(64, ge=4, le=1024, description="channels of the discriminator's first convolution")
    depth: int = Field(
        3, ge=1, le=6, description="strided convolutions of the discriminator; 3 judge patches of 40 px"
    )
    perceptual: float = Field(
        0.0, ge=0, le=1000, description="weight of a perceptual distance beside the squared error; 0 = none"
    )
    perceptual_weights: str = Field("", description="its VGG16, as train_autoencoder.perceptual_weights")

    @model_validator(mode="after")
    def _has_weights(self) -> SharpenConfig:
        if self.perceptual and not self.perceptual_weights:
            raise ValueError("a perceptual term needs perceptual_weights, a file or a Hub repository")
        return self


class PriorTrainConfig(TrainConfig):
    """Stage 2's training of one level."""

    steps: int = Field(
        20_000, ge=0, le=10**9, description="optimiser steps; 0 = the prior of this level is not trained"
    )
    start: str = Field(
        "",
        description="run folder, model of the package or Hub id whose prior of this level is the starting point; "
        "its codes and its prior must be of the same settings",
    )
    copies: int = Field(
        1,
        ge=1,
        le=256,
        description="how often each training image is encoded, each time with another augmentation",
    )
    code_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the codes that the network sees in training, its own before a position and those of coarser levels, "
        "which are replaced by random ones; the codes that it is to predict stay as they are",
    )
    checkpointing: bool = Field(
        False,
        description="recompute activations in the backward pass: less memory, about a third more time",
    )
