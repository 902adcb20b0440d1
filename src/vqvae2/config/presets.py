"""Named presets, and the choice of one when the user names none.

Each is a full `Config`. `imagenet256` and `ffhq1024` have the settings of the paper's tables in appendix A; the sizes for
small data sets and few cores are our decisions; docs/own-images.md says what was measured with which of them.
"""

from __future__ import annotations

from typing import Any

from vqvae2.config.models import Config, ConfigError, parse

_SMALL = 20_000  # images; below it the priors are small and strongly regularised
_SIDES = (32, 64, 128, 256)  # px, of the presets that are chosen
_PLAIN = {"sharpen": {"steps": 0}}  # minutes are too short for a discriminator to learn anything


def presets() -> tuple[str, ...]:
    """The names of the presets, the cheapest to train first."""
    return tuple(_PRESETS)


def preset(name: str) -> Config:
    """The full configuration of a preset.

    Raises:
        ConfigError: no such preset; lists them.
    """
    if name not in _PRESETS:
        raise ConfigError(f"no preset {name!r}: expected one of {', '.join(_PRESETS)}")
    return parse(_PRESETS[name])


def choose(images: int, pixels: int) -> str:
    """The name of the preset for a data set.

    Args:
        images: how many there are.
        pixels: the typical length of an image's short side.
    """
    size = max((side for side in _SIDES if side <= pixels), default=_SIDES[0])
    return f"{'small' if images < _SMALL else 'large'}{size}"


def chosen_for(name: str) -> str:
    """For which images `choose` takes a preset, in words: their number and their short side; "" if it is never chosen."""
    ends = (*_SIDES[1:], None)
    for kind, number in (("small", f"fewer than {_SMALL:,} images"), ("large", f"{_SMALL:,} images or more")):
        for side, end in zip(_SIDES, ends, strict=True):
            if name == f"{kind}{side}":
                below = f"below {end} px" if side == _SIDES[0] else f"{side} to {(end or 0) - 1} px"
                return f"{number}, {below if end else f'{side} px or more'}"
    return ""


def _level(hidden: int, layers: int, attention: int, dropout: float, blocks: int = 0) -> dict[str, Any]:
    return {
        "hidden": hidden,
        "residual": hidden,
        "layers": layers,
        "kernel": 3,  # wider ones cost twice as much, and attention covers long distances
        "attention_every": attention,
        "heads": max(1, hidden // 32),
        "dropout": dropout,
        "output_layers": 2,
        "condition_blocks": blocks,
    }


def _prior_training(steps: int, copies: int, every: int) -> dict[str, Any]:
    return {
        "steps": steps,
        "batch": 32,
        "lr": 1e-3,
        "warmup": min(200, steps // 10 + 1),
        "weight_decay": 0.05,
        "average": 0.998 if steps > 1500 else 0.99,
        "evaluate_every": every,
        "patience": 8,
        "copies": copies,
    }


def _preset(
    size: int,
    strides: list[int],
    width: int,
    codes: int,
    steps: tuple[int, int],
    priors: list[dict[str, Any]],
    copies: int,
    every: int,
) -> dict[str, Any]:
    """A preset of our own.

    Args:
        size: height and width of the images in px.
        steps: of the autoencoder, and of each prior. Sharpening takes half of the autoencoder's.
        copies: how often each training image is encoded.
        every: steps between evaluations.
    """
    levels = len(strides)
    return {
        "data": {"size": size, "shift": max(1, size // 32)},
        "autoencoder": {
            "strides": strides,
            "codes": [codes] * levels,
            "hidden": width,
            "residual": width // 2,
            "entropy_penalty": 0.2,
            "nested_dropout": 0.25 if levels > 1 else 0.0,
        },
        "train_autoencoder": {
            "steps": steps[0],
            "batch": 32,
            "lr": 6e-4,
            "warmup": min(200, steps[0] // 10 + 1),
            "evaluate_every": every,
        },
        "sharpen": {"steps": steps[0] // 2, "evaluate_every": every, "depth": 2 if size < 64 else 3},
        "prior": {"levels": priors},
        "train_prior": [_prior_training(steps[1], copies, every) for _ in range(levels)],
    }


def _demo(preset: dict[str, Any]) -> dict[str, Any]:
    """The preset with time limits of nine and a half minutes in all, no sharpening, and guidance towards the class in sampling."""
    coarse, fine = preset["train_prior"]
    fine |= {"batch": 16, "steps": 850}
    for training in (coarse, fine):
        training["lr"] = 3e-3  # better than 1e-3 in as few steps (the experiment prior-size)
    for training, minutes in ((preset["train_autoencoder"], 3.5), (coarse, 2.5), (fine, 3.5)):
        training["minutes"] = minutes
    return preset | _PLAIN | {"sampling": {"guidance": 3.0, "top_p": 0.95}}


def _paper_prior(
    residual: int,
    dropout: float,
    *,
    layers: int = 20,
    attention: int = 0,
    output: int = 0,
    condition: int = 0,
) -> dict[str, Any]:
    return {
        "hidden": 512,
        "residual": residual,
        "layers": layers,
        "kernel": 5,
        "attention_every": layers // attention if attention else 0,
        "heads": 8,
        "dropout": dropout,
        "output_layers": output,
        "condition_blocks": condition,
    }


def _paper(
    size: int,
    strides: list[int],
    steps: int,
    priors: list[dict[str, Any]],
    trainings: list[tuple[int, int]],
    classes: int,
) -> dict[str, Any]:
    """A model of the paper. Settings that its tables do not give keep our defaults.

    Args:
        steps: of the autoencoder.
        trainings: (batch, steps) of each prior.
        classes: 0 = the paper's model is unconditional, whatever the folders of the data.
    """
    return {
        "data": {"size": size},
        "autoencoder": {
            "strides": strides,
            "codes": [512] * len(strides),
            "code_dim": 64,
            "hidden": 128,
            "residual": 64,
            "blocks": 2,
            "commitment_cost": 0.25,
            "decay": 0.99,
        },
        "train_autoencoder": {"steps": steps, "batch": 128, "evaluate_every": 5000},
        "prior": {"levels": priors, "classes": classes, "conditional": classes > 0},
        "train_prior": [{"steps": n, "batch": batch, "evaluate_every": 5000} for batch, n in trainings],
    }


_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": _preset(32, [4, 2], 32, 64, (60, 40), [_level(32, 2, 2, 0.1), _level(32, 2, 0, 0.1, 1)], 1, 20) | _PLAIN,
    "demo": _demo(_preset(64, [4, 2], 64, 512, (2600, 1100), [_level(96, 6, 2, 0.2), _level(96, 5, 3, 0.1, 3)], 6, 200)),
    "small32": _preset(32, [4, 2], 128, 512, (8000, 4000), [_level(128, 8, 2, 0.2), _level(128, 8, 4, 0.1, 4)], 16, 250),
    "small64": _preset(64, [4, 2], 128, 512, (6500, 3000), [_level(128, 8, 2, 0.2), _level(128, 6, 3, 0.1, 4)], 12, 250),
    "small128": _preset(128, [4, 2, 2], 128, 512, (20000, 8000), [_level(192, 8, 2, 0.2), _level(128, 8, 4, 0.1, 4), _level(128, 8, 0, 0.1, 4)], 8, 500),
    "small256": _preset(256, [4, 2, 2], 128, 512, (40000, 16000), [_level(256, 12, 3, 0.2), _level(192, 12, 6, 0.1, 6), _level(128, 12, 0, 0.1, 6)], 8, 1000),
    "large32": _preset(32, [4, 2], 128, 512, (40000, 40000), [_level(256, 10, 2, 0.1), _level(256, 10, 5, 0.1, 4)], 1, 1000),
    "large64": _preset(64, [4, 2], 128, 512, (80000, 80000), [_level(384, 12, 3, 0.1), _level(256, 12, 4, 0.1, 6)], 1, 2000),
    "large128": _preset(128, [4, 2], 128, 512, (150000, 150000), [_level(384, 16, 4, 0.1), _level(256, 16, 0, 0.1, 8)], 1, 2000),
    "large256": _preset(256, [4, 2], 128, 512, (300000, 300000), [_level(512, 20, 5, 0.1), _level(384, 20, 0, 0.1, 10)], 1, 5000),
    "ffhq1024": _paper(
        1024, [8, 2, 2], 304_741,
        [_paper_prior(2048, 0.5, attention=4), _paper_prior(1024, 0.3, attention=1, condition=8),
         _paper_prior(1024, 0.25, layers=10, condition=8)],
        [(1024, 237_000), (512, 57_400), (256, 270_000)],
        classes=0,
    ),
    "imagenet256": _paper(
        256, [4, 2], 2_207_444,
        [_paper_prior(2048, 0.1, attention=4, output=20), _paper_prior(1024, 0.1, condition=20)],
        [(1024, 1_600_000), (512, 754_000)],
        classes=1000,
    ),
}  # fmt: skip
