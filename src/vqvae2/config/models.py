"""The configuration of every stage, as pydantic models with their checks.

The descriptions of the fields are the help texts of `vqvae2 train --help-config`. Lists of levels are coarsest
first; only `strides` counts from the image.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from vqvae2.codes import Geometry
from vqvae2.config.base import ConfigError as ConfigError
from vqvae2.config.base import Settings, one_line
from vqvae2.config.data import DataConfig as DataConfig
from vqvae2.config.hardware import Hardware
from vqvae2.config.numbers import prime_factors
from vqvae2.config.sampling import Sampling
from vqvae2.config.training import LEAST_COMPARED, AutoencoderTrainConfig, PriorTrainConfig, SharpenConfig

quantizer_names = {"vq", "fsq"}
"""The accepted values of `AutoencoderConfig.quantizer`; `autoencoder.quantizers.register_quantizer` adds to them."""

_FORMER_NAMES = {"rate": "entropy_penalty", "drop_finer": "nested_dropout"}  # of settings of the autoencoder


def with_present_names(settings: Any) -> Any:
    """Settings of the autoencoder in which names of former versions are replaced by those of today.

    Raises:
        ValueError: a setting is there under both names.
    """
    if not isinstance(settings, dict):
        return settings
    for former, present in _FORMER_NAMES.items():
        if former in settings and present in settings:
            raise ValueError(f"expected {present} alone, found {former} as well, which is its former name")
    return {_FORMER_NAMES.get(name, name): value for name, value in settings.items()}


class AutoencoderConfig(Settings):
    """Stage 1: the VQ-VAE with 1 to 4 levels. The defaults are the paper's ImageNet model (its appendix A).

    `rate` and `drop_finer`, the names that `entropy_penalty` and `nested_dropout` had in former versions, are still read.
    """

    channels: int = Field(3, ge=1, le=16, description="image channels")
    strides: tuple[int, ...] = Field(
        (4, 2),
        description="factor between successive grids, counted from the image: 4,2 = image/4, then half of that",
    )
    codes: tuple[int, ...] = Field((512, 512), description="codebook size K of each level, coarsest first")
    code_dim: int = Field(64, ge=1, le=4096, description="code dimension D")
    hidden: int = Field(128, ge=2, le=8192, description="hidden units H")
    residual: int = Field(64, ge=1, le=8192, description="residual units R")
    blocks: int = Field(2, ge=0, le=64, description="residual blocks per stack")
    commitment_cost: float = Field(0.25, ge=0, le=1000, description="beta, weight of the commitment loss")
    decay: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="gamma of the moving averages of codebooks (ema only) and of their counts",
    )
    epsilon: float = Field(1e-5, gt=0, le=1, description="Laplace smoothing of the counts (init sonnet)")
    init: Literal["data", "sonnet"] = Field(
        "data", description="first codebook: vectors of the first batch, or Sonnet's uniform distribution"
    )
    revive: bool = Field(
        True, description="move unused codes to vectors with a large quantisation error (ema only)"
    )
    ema: bool = Field(True, description="codebooks by moving averages (paper) rather than by gradient")
    quantizer: str = Field(
        "vq",
        description="vq: a learned codebook (paper); fsq: finite scalar quantization, a fixed lattice of as many codes; "
        "or the name of a quantiser that was registered",
    )
    stem_relu: bool = Field(
        False,
        description="a ReLU between an encoder's last 3x3 convolution and its residual stack (as in Sonnet v2's notebook; "
        "off is Sonnet v1)",
    )
    weights: Literal["torch", "sonnet"] = Field(
        "torch",
        description="initial weights of the convolutions: torch's, or Sonnet's (normal with standard deviation "
        "1/sqrt(fan-in), truncated at two standard deviations, biases 0), which are sqrt(3) times as large",
    )
    variance: float = Field(
        1.0,
        ge=1e-6,
        le=1e6,
        description="the squared error is divided by this in the loss; the pixels' variance in [-1, 1] makes it Sonnet's",
    )
    entropy_penalty: float = Field(
        0.0,
        ge=-1,
        le=10,
        description="weight of a code's bits when codes are chosen (0 = paper); a larger one makes codes of lower entropy, "
        "which priors predict better, a negative one makes codes that are used more evenly",
    )
    nested_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the training images that are decoded without their finer levels (0 = paper), so that the "
        "coarse codes encode the layout",
    )

    @model_validator(mode="before")
    @classmethod
    def _present_names(cls, value: Any) -> Any:
        return with_present_names(value)

    @field_validator("strides", "codes", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return _as_list(value)

    @field_validator("quantizer")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in quantizer_names:
            raise ValueError(
                f"expected a quantiser among {', '.join(sorted(quantizer_names))}, found {value!r}"
            )
        return value

    @model_validator(mode="after")
    def _levels_agree(self) -> AutoencoderConfig:
        if not 1 <= len(self.strides) <= 4 or len(self.strides) != len(self.codes):
            raise ValueError(
                f"expected 1 to 4 levels with one stride and one codebook each, found strides {self.strides} "
                f"and codes {self.codes}; another number of levels needs both, and prior.levels and train_prior too"
            )
        if any(s < 1 or s > 64 for s in self.strides) or any(s < 2 for s in self.strides[1:]):
            raise ValueError(f"expected strides of 1 to 64 (2 to 64 between levels), found {self.strides}")
        if self.entropy_penalty and not (self.ema and self.quantizer == "vq"):
            raise ValueError(
                f"expected entropy_penalty 0 without codebooks of moving averages (ema: false, or a quantizer other "
                f"than vq), found {self.entropy_penalty}"
            )
        if any(k < 2 or k > 65536 for k in self.codes):
            raise ValueError(f"expected codebooks of 2 to 65536 codes, found {self.codes}")
        if self.quantizer == "fsq" and any(max(prime_factors(k)) > 7 for k in self.codes):
            raise ValueError(
                f"expected, for fsq, codebooks whose sizes have no prime factor above 7, found {self.codes}"
            )
        return self

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.strides)

    def geometry(self, height: int, width: int) -> Geometry:
        """The grids of an image of this size.

        Raises:
            ConfigError: the strides do not divide the size.
        """
        grids, total = [], 1
        for stride in self.strides:
            total *= stride
            grids.append((height // total, width // total))
        if height % total or width % total or height < 1 or width < 1:
            raise ConfigError(
                f"an image of {height}x{width} px does not fit the strides {list(self.strides)}: "
                f"height and width must be multiples of {total}"
            )
        return Geometry(tuple(reversed(grids)), self.codes)

    def check_images(self, shape: tuple[int, ...]) -> None:
        """Raise `ConfigError` unless `shape` is [B, channels, H, W] with sizes that the strides divide."""
        if len(shape) != 4 or shape[1] != self.channels:
            raise ConfigError(f"expected images [B, {self.channels}, H, W], found shape {list(shape)}")
        self.geometry(shape[2], shape[3])


prior_kinds = {"pixelcnn", "transformer"}
"""The accepted values of `LevelPriorConfig.kind`; `prior.kinds.register_kind` adds to them."""


class LevelPriorConfig(Settings):
    """Stage 2, one level: gated PixelCNN with attention (paper section 3.2), a transformer, or a registered kind."""

    kind: str = Field(
        "pixelcnn",
        description="pixelcnn: gated convolutions, with or without attention (paper); transformer: attention alone; "
        "or the name of a kind that was registered",
    )
    hidden: int = Field(128, ge=4, le=8192, description="hidden units: channels of the residual stream")
    residual: int = Field(
        128,
        ge=4,
        le=16384,
        description="residual units: channels inside a gated block; of a transformer, width of the MLP",
    )
    layers: int = Field(8, ge=1, le=128, description="gated layers; of a transformer, blocks")
    kernel: int = Field(5, ge=3, le=15, description="convolution filter size, odd (pixelcnn only)")
    attention_every: int = Field(
        0,
        ge=0,
        le=128,
        description="a self-attention layer after every so many gated layers; 0, or more than `layers`, = none (pixelcnn only)",
    )
    heads: int = Field(8, ge=1, le=128, description="attention heads")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout in blocks and on attention")
    output_layers: int = Field(
        2, ge=0, le=128, description="1x1 residual blocks of the output stack (pixelcnn only)"
    )
    label_dropout: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of the labels hidden in training, for guidance and for use without a label, which are refused if "
        "it is 0 (paper) and there are classes",
    )
    condition_blocks: int = Field(
        4, ge=0, le=128, description="residual blocks of the conditioning stack (finer levels)"
    )
    coarser: Literal["all", "next"] = Field(
        "all",
        description="which coarser levels the conditioning stack sees: all (paper), or the next coarser one only",
    )

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in prior_kinds:
            raise ValueError(
                f"expected a kind of prior among {', '.join(sorted(prior_kinds))}, found {value!r}"
            )
        return value

    @model_validator(mode="after")
    def _fits(self) -> LevelPriorConfig:
        if self.kernel % 2 == 0:
            raise ValueError(f"expected an odd kernel, found {self.kernel}")
        attends = self.attention_every or self.kind == "transformer"
        if attends and self.hidden % self.heads:
            raise ValueError(f"expected hidden units divisible by {self.heads} heads, found {self.hidden}")
        return self


class PriorConfig(Settings):
    """Stage 2: one prior per level, coarsest first."""

    levels: tuple[LevelPriorConfig, ...] = Field(
        (LevelPriorConfig(), LevelPriorConfig()), description="one per level, coarsest first"
    )
    conditional: bool = Field(True, description="learn and sample by class, where the data have classes")
    classes: int = Field(
        0, ge=0, le=10**6, description="number of classes; 0 = unconditional (set from the data)"
    )

    def lacks_unlabelled(self, levels: Iterable[int] | None = None) -> str | None:
        """Why priors with classes cannot be used without a label: a label_dropout of 0 never trains "no label".

        Args:
            levels: whose priors are used so, 0 the coarsest; None is all.

        Returns:
            The setting and what follows from it, for a message; None if there are no classes, or every level learns it.
        """
        for level in range(len(self.levels)) if levels is None else levels:
            if self.classes and not self.levels[level].label_dropout:
                return f'prior.levels.{level}.label_dropout is 0, so this prior never learned "no label"'
        return None

    def check_unlabelled(self, levels: Iterable[int] | None = None) -> None:
        """Raise `ConfigError` if the priors of these levels, by default of all, cannot be used without a label."""
        if reason := self.lacks_unlabelled(levels):
            raise ConfigError(
                f"{reason}: name the class (--label), or train it with a label_dropout such as 0.1"
            )

    def lacks_guidance(self, sampling: Sampling) -> str | None:
        """Why these settings cannot be drawn with, as `lacks_unlabelled` says it: guidance compares with "no label"."""
        count = len(self.levels)
        return self.lacks_unlabelled(
            level for level in range(count) if sampling.at("guidance", level, count) != 1
        )

    def check_guidance(self, sampling: Sampling) -> None:
        """Raise `ConfigError` if a level is drawn with guidance although its prior was never trained without labels."""
        if reason := self.lacks_guidance(sampling):
            raise ConfigError(
                f"{reason}, with which guidance compares: set guidance to 1 (sampling.guidance, --guidance), or train it with a "
                "label_dropout such as 0.1"
            )


class Config(Hardware):
    """The whole pipeline."""

    seed: int = Field(0, ge=0, le=2**63 - 1, description="seed of everything random")
    data: DataConfig = Field(default_factory=DataConfig, description="images")
    autoencoder: AutoencoderConfig = Field(default_factory=AutoencoderConfig, description="stage 1 model")
    train_autoencoder: AutoencoderTrainConfig = Field(
        default_factory=AutoencoderTrainConfig, description="stage 1 training"
    )
    sharpen: SharpenConfig = Field(
        default_factory=SharpenConfig, description="adversarial training of the decoder, after stage 1"
    )
    prior: PriorConfig = Field(default_factory=PriorConfig, description="stage 2 models")
    train_prior: tuple[PriorTrainConfig, ...] = Field(
        (PriorTrainConfig(), PriorTrainConfig()),
        description="stage 2 training, one per level, coarsest first",
    )
    sampling: Sampling = Field(default_factory=Sampling, description="defaults of sampling")

    @model_validator(mode="after")
    def _agrees(self) -> Config:
        if self.data.channels != self.autoencoder.channels:
            raise ValueError(
                f"data.channels is {self.data.channels} but autoencoder.channels is {self.autoencoder.channels}"
            )
        levels = self.autoencoder.levels
        if len(self.prior.levels) != levels or len(self.train_prior) != levels:
            raise ValueError(
                f"the autoencoder has {levels} levels but there are {len(self.prior.levels)} priors "
                f"and {len(self.train_prior)} prior trainings"
            )
        self.sampling.level(0, levels)  # raises unless each setting has one value or one per level
        least = 2 ** (self.sharpen.depth + 1)
        if self.sharpen.steps and min(self.data.shape) < least:
            raise ValueError(
                f"sharpen.depth {self.sharpen.depth} needs images of at least {least} px, found {self.data.shape_text}"
            )
        self.autoencoder.geometry(*self.data.shape)
        perceptual = self.train_autoencoder.perceptual_weights or (
            self.sharpen.steps and self.sharpen.perceptual_weights
        )
        if perceptual and min(self.data.shape) < LEAST_COMPARED:
            raise ValueError(
                f"a perceptual distance needs images of at least {LEAST_COMPARED} px, found {self.data.shape_text}"
            )
        if perceptual and self.data.channels not in (1, 3, 4):
            raise ValueError(
                f"a perceptual distance needs images of 1, 3 or 4 channels, found {self.data.channels}"
            )
        return self

    @property
    def geometry(self) -> Geometry:
        """The grids of one image of `data.size`."""
        return self.autoencoder.geometry(*self.data.shape)


def parse(value: dict[str, Any]) -> Config:
    """Check a nested dictionary and build the configuration.

    Raises:
        ConfigError: one line that names every field that is wrong.
    """
    try:
        return Config.model_validate(value)
    except ValidationError as error:
        raise ConfigError(one_line(error)) from None


def _as_list(value: Any) -> Any:
    """Accept `4,2` and 4 where a list is expected, so that `--set autoencoder.strides=4,2` works."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int | float) else value
