"""The quantisers that a configuration can name, and how to add one."""

from __future__ import annotations

from collections.abc import Callable

from vqvae2.autoencoder.base import Quantizer
from vqvae2.autoencoder.fsq import FiniteScalarQuantizer
from vqvae2.autoencoder.quantizer import VectorQuantizer
from vqvae2.config.models import AutoencoderConfig, quantizer_names
from vqvae2.errors import UserError

Builder = Callable[[AutoencoderConfig, int], Quantizer]
"""Makes the quantiser of one level from the autoencoder's configuration and the level's number of codes K."""

_BUILDERS: dict[str, Builder] = {
    "vq": VectorQuantizer.from_config,
    "fsq": FiniteScalarQuantizer.from_config,
}
_BUILT_IN = {*_BUILDERS}


def register_quantizer(name: str, build: Builder) -> None:
    """Let `autoencoder.quantizer: name` of a configuration stand for a quantiser of one's own, in this process.

    Args:
        name: new, or a name of one's own, which then stands for the new quantiser, so that the cell of a notebook can be
            run again.
        build: called once for each level, with the configuration and the level's number of codes K.

    Raises:
        UserError: the name stands for a quantiser of the package.
    """
    if name in _BUILT_IN and _BUILDERS[name] != build:  # a method is another object each time it is named
        raise UserError(f"the quantiser {name!r} exists already")
    _BUILDERS[name] = build
    quantizer_names.add(name)


def make_quantizer(config: AutoencoderConfig, size: int) -> Quantizer:
    """The quantiser of a level with `size` codes, of the kind that the configuration names.

    Raises:
        UserError: the builder gave something else than a `Quantizer` with these sizes.
    """
    made = _BUILDERS[config.quantizer](config, size)
    if not isinstance(made, Quantizer):
        raise UserError(
            f"the quantiser {config.quantizer!r}: expected a Quantizer, found {type(made).__name__}"
        )
    if (made.num_embeddings, made.embedding_dim) != (size, config.code_dim):
        raise UserError(
            f"the quantiser {config.quantizer!r}: expected {size} codes of {config.code_dim} dimensions, "
            f"found {made.num_embeddings} of {made.embedding_dim}"
        )
    return made
