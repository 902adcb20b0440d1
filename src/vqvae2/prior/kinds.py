"""The kinds of level prior that a configuration can name, and how to add one."""

from __future__ import annotations

from vqvae2.codes import Geometry
from vqvae2.config.models import LevelPriorConfig, prior_kinds
from vqvae2.errors import UserError
from vqvae2.prior.level import LevelPrior
from vqvae2.prior.pixelcnn import PixelCNN
from vqvae2.prior.static import StaticPrior
from vqvae2.prior.static_pixelcnn import StaticPixelCNN
from vqvae2.prior.static_transformer import StaticTransformer
from vqvae2.prior.transformer import Transformer

_KINDS: dict[str, type[LevelPrior]] = {"pixelcnn": PixelCNN, "transformer": Transformer}
_BUILT_IN = {*_KINDS}
_STATIC: dict[type[LevelPrior], type[StaticPrior]] = {
    PixelCNN: StaticPixelCNN,
    Transformer: StaticTransformer,
}


def register_kind(name: str, kind: type[LevelPrior], static: type[StaticPrior] | None = None) -> None:
    """Let `kind: name` of a configuration stand for a class of one's own.

    Args:
        name: new, or a name of one's own, which then stands for the new class, so that the cell of a notebook can be run
            again.
        kind: built with the arguments of `LevelPrior`.
        static: how a GPU draws it with recorded rows; None: with plain steps.

    Raises:
        UserError: the name stands for a class of the package.
    """
    if name in _BUILT_IN and _KINDS[name] is not kind:
        raise UserError(f"the kind of prior {name!r} exists already, as {_KINDS[name].__name__}")
    _KINDS[name] = kind
    prior_kinds.add(name)
    if static is not None:
        _STATIC[kind] = static


def make_level(config: LevelPriorConfig, geometry: Geometry, level: int, classes: int) -> LevelPrior:
    """The prior of one level, of the kind that its configuration names; arguments as of `LevelPrior`."""
    return _KINDS[config.kind](config, geometry, level, classes)


def static_kind(prior: LevelPrior) -> type[StaticPrior] | None:
    """The class that draws `prior` with recorded rows; None if its kind has none."""
    return _STATIC.get(type(prior))
