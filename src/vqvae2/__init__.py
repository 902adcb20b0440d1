"""VQ-VAE-2 (Razavi, van den Oord, Vinyals 2019): hierarchical image codes, priors over them, sampling.

The names below are the public surface; they are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqvae2.autoencoder.model import VQVAE
    from vqvae2.autoencoder.quantizer import VectorQuantizer
    from vqvae2.codes import Codes, Geometry
    from vqvae2.config.models import AutoencoderConfig, Config, PriorConfig
    from vqvae2.config.presets import preset, presets
    from vqvae2.config.sampling import Sampling
    from vqvae2.prior.hierarchy import HierarchicalPrior
    from vqvae2.run import Run, load, zoo

_HOME = {
    "VQVAE": "autoencoder.model",
    "VectorQuantizer": "autoencoder.quantizer",
    "Codes": "codes",
    "Geometry": "codes",
    "AutoencoderConfig": "config.models",
    "Config": "config.models",
    "PriorConfig": "config.models",
    "Sampling": "config.sampling",
    "preset": "config.presets",
    "presets": "config.presets",
    "HierarchicalPrior": "prior.hierarchy",
    "Run": "run",
    "load": "run",
    "zoo": "run",
}

try:
    __version__ = version("vqvae2")
except PackageNotFoundError:  # read from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [  # noqa: RUF022 - in the order of the pipeline
    "AutoencoderConfig",
    "Codes",
    "Config",
    "Geometry",
    "HierarchicalPrior",
    "PriorConfig",
    "Run",
    "Sampling",
    "VQVAE",
    "VectorQuantizer",
    "load",
    "preset",
    "presets",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"vqvae2.{_HOME[name]}"), name)
    raise AttributeError(f"module 'vqvae2' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
