"""VQ-VAE-2 (Razavi, van den Oord, Vinyals 2019): hierarchical image codes, priors over them, sampling.

The names below are the public interface. Each is loaded when it is first used, so importing the package is fast.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqvae2.api import fit, measure
    from vqvae2.autoencoder.base import Quantized, Quantizer
    from vqvae2.autoencoder.fsq import FiniteScalarQuantizer
    from vqvae2.autoencoder.model import VQVAE, Reconstruction
    from vqvae2.autoencoder.quantizer import VectorQuantizer
    from vqvae2.autoencoder.quantizers import register_quantizer
    from vqvae2.codes import Codes, Geometry
    from vqvae2.config.models import AutoencoderConfig, Config, LevelPriorConfig, PriorConfig
    from vqvae2.config.presets import preset, presets
    from vqvae2.config.sampling import Sampling
    from vqvae2.errors import UserError
    from vqvae2.files.locate import zoo
    from vqvae2.files.progress import Reporter
    from vqvae2.generate.complete import Completed, Kept
    from vqvae2.generate.reject import Chosen
    from vqvae2.generate.sample import Drawn
    from vqvae2.modes import without_autocast
    from vqvae2.prior.chooser import UNKNOWN
    from vqvae2.prior.hierarchy import HierarchicalPrior
    from vqvae2.prior.kinds import register_kind
    from vqvae2.prior.level import LevelPrior
    from vqvae2.run import Run, load

_HOME = {
    # settings
    "AutoencoderConfig": "config.models",
    "PriorConfig": "config.models",
    "LevelPriorConfig": "config.models",
    "Config": "config.models",
    "Sampling": "config.sampling",
    "preset": "config.presets",
    "presets": "config.presets",
    # what flows between the stages
    "Codes": "codes",
    "Geometry": "codes",
    # the networks, and what they return
    "VQVAE": "autoencoder.model",
    "Reconstruction": "autoencoder.model",
    "VectorQuantizer": "autoencoder.quantizer",
    "FiniteScalarQuantizer": "autoencoder.fsq",
    "Quantizer": "autoencoder.base",
    "Quantized": "autoencoder.base",
    "HierarchicalPrior": "prior.hierarchy",
    # components of one's own
    "register_quantizer": "autoencoder.quantizers",
    "register_kind": "prior.kinds",
    "LevelPrior": "prior.level",
    "UNKNOWN": "prior.chooser",
    "without_autocast": "modes",
    # trained models, and what they draw
    "Run": "run",
    "load": "run",
    "zoo": "files.locate",
    "Drawn": "generate.sample",
    "Chosen": "generate.reject",
    "Kept": "generate.complete",
    "Completed": "generate.complete",
    # training and measuring
    "fit": "api",
    "measure": "api",
    # errors and progress
    "UserError": "errors",
    "Reporter": "files.progress",
}

try:
    __version__ = version("vqvae2")
except PackageNotFoundError:  # read from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "UNKNOWN",
    "VQVAE",
    "AutoencoderConfig",
    "Chosen",
    "Codes",
    "Completed",
    "Config",
    "Drawn",
    "FiniteScalarQuantizer",
    "Geometry",
    "HierarchicalPrior",
    "Kept",
    "LevelPrior",
    "LevelPriorConfig",
    "PriorConfig",
    "Quantized",
    "Quantizer",
    "Reconstruction",
    "Reporter",
    "Run",
    "Sampling",
    "UserError",
    "VectorQuantizer",
    "fit",
    "load",
    "measure",
    "preset",
    "presets",
    "register_kind",
    "register_quantizer",
    "without_autocast",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"vqvae2.{_HOME[name]}"), name)
    raise AttributeError(f"module 'vqvae2' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*(name for name in globals() if name.startswith("__")), *_HOME])
