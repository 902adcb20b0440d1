"""How codes are drawn: temperature, top-k, top-p and guidance, for all levels or for each of them.

    Sampling(temperature=0.9)                 # the same for every level
    Sampling(top_p=(0.95, 1.0), guidance=3)   # top-p of the coarser level, then of the finer one

The same type is the section `sampling` of a run's configuration, what the `sample` functions take, and what the options
of the command are turned into.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vqvae2.config.numbers import plain
from vqvae2.errors import UserError

_PER_LEVEL = ("temperature", "top_k", "top_p", "guidance")
_MOST = {"temperature": 1e4, "top_k": 10**6, "guidance": 1e4}  # and at least 0


class Sampling(BaseModel):
    """How to draw. Each setting but `batch` and `dtype` is one number for all levels, or one for each level, coarsest first.

    Raises:
        UserError: a setting is out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float | tuple[float, ...] = Field(
        1.0,
        description="divides the logits: 1 is the model's own distribution (paper), 0 takes the most likely code; "
        "like top_k, top_p and guidance, one number for all levels or one per level, coarsest first",
    )
    top_k: int | tuple[int, ...] = Field(0, description="draw from the k most likely codes; 0 = all")
    top_p: float | tuple[float, ...] = Field(
        1.0, description="draw from the fewest codes whose probabilities add up to p, 0 < p <= 1; 1 = all"
    )
    guidance: float | tuple[float, ...] = Field(
        1.0,
        description="classifier-free guidance: 1 = off, 1.5 to 3 = closer to the class and less diverse",
    )
    batch: int = Field(
        64,
        le=10**6,
        description="images drawn at the same time; changes speed and memory, but not the images (on a card, up to float32 rounding)",
    )

    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of the priors' weights while a CUDA card draws by captured steps; bfloat16 is faster and draws other images for the "
        "same seed. Everything else (CPUs, small grids, completion, compression, likelihoods) computes in float32 or wider",
    )

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**plain(settings))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(name) for name in first["loc"][:1])
            message = first["msg"].removeprefix("Value error, ")
            raise UserError(f"{where}: {message}" if where else message) from None

    @field_validator(*_PER_LEVEL, mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        """Accept `0.9,1` as `--set` passes it; one value in a list is that value."""
        if isinstance(value, str):
            value = [item.strip() for item in value.split(",")]
        if isinstance(value, Sequence) and len(value) == 1:
            return value[0]
        return value

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        for name in _PER_LEVEL:
            values = getattr(self, name)
            if isinstance(values, tuple) and not values:
                raise ValueError(f"expected at least one {name}, found none")
            for value in values if isinstance(values, tuple) else (values,):
                self._check(name, value)
        if self.batch < 1:
            raise ValueError(f"expected batch >= 1, found {self.batch}")
        return self

    @staticmethod
    def _check(name: str, value: float) -> None:
        if name == "top_p":
            if not 0 < value <= 1:
                raise ValueError(f"expected 0 < top_p <= 1, found top_p {value}")
        elif not 0 <= value < math.inf:
            raise ValueError(f"expected {name} >= 0, found {name} {value}")
        elif value > _MOST[name]:
            raise ValueError(f"expected {name} of at most {_MOST[name]:g}, found {name} {value}")

    def replace(self, **changes: Any) -> Sampling:
        """The same settings with some of them changed.

        Raises:
            UserError: out of range.
        """
        return Sampling(**{**self.model_dump(), **changes})

    def level(self, index: int, levels: int) -> tuple[float, int, float, float]:
        """(temperature, top_k, top_p, guidance) of level `index` of `levels`, 0 the coarsest.

        Raises:
            UserError: a setting has neither one value nor `levels` values.
        """
        temperature, top_k, top_p, guidance = (self.at(name, index, levels) for name in _PER_LEVEL)
        return temperature, int(top_k), top_p, guidance

    def at(self, name: str, index: int, levels: int) -> float:
        """One setting of level `index` of `levels`, 0 the coarsest.

        Raises:
            UserError: it has neither one value nor `levels` values.
        """
        value: float | tuple[float, ...] = getattr(self, name)
        if not isinstance(value, tuple):
            return value
        if len(value) != levels:
            raise UserError(f"expected one {name}, or one for each of {levels} levels, found {len(value)}")
        return value[index]

    def coarsest(self, levels: int) -> Sampling:
        """The settings of the `levels` coarsest levels alone."""
        values = {name: getattr(self, name) for name in _PER_LEVEL}
        cut = {name: value[:levels] for name, value in values.items() if isinstance(value, tuple)}
        return self.replace(**cut)

    def about(self) -> dict[str, Any]:
        """What decides which codes are drawn, as plain values for a record: all settings but `batch`, and `dtype` unless it is float32."""
        values = self.model_dump(mode="json")
        names = _PER_LEVEL if self.dtype == "float32" else (*_PER_LEVEL, "dtype")
        return {name: values[name] for name in names}


def sampling_of(
    sampling: Sampling | None, settings: dict[str, Any], default: Sampling | None = None
) -> Sampling:
    """The settings that a `sample` function was called with.

    Args:
        sampling: given as one object, or None.
        settings: given as keywords instead (temperature, top_k, top_p, guidance); they change the default.
        default: what holds where nothing is given; None is `Sampling()`.

    Raises:
        TypeError: a keyword of another name, or both ways at once.
        UserError: out of range.
    """
    if unknown := settings.keys() - {*_PER_LEVEL}:
        raise TypeError(f"unexpected keyword {min(unknown)!r}: expected some of {', '.join(_PER_LEVEL)}")
    if sampling is not None:
        if not isinstance(sampling, Sampling):
            raise TypeError(
                f"expected a vqvae2.Sampling, found {type(sampling).__name__}; or give its settings as keywords"
            )
        if settings:
            raise TypeError(f"expected either sampling or {', '.join(settings)}, found both")
        return sampling
    return (default or Sampling()).replace(**settings) if settings else default or Sampling()
