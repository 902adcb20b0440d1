"""What all settings have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from vqvae2.config.numbers import plain
from vqvae2.errors import UserError

_NAMED = 8  # wrong settings that an error message names, at most
_SHOWN = 100  # characters of a wrong value


class ConfigError(UserError):
    """A setting that cannot work, with what was expected and what was found."""


class Settings(BaseModel):
    """Settings are checked when they are made, unknown names are refused, and nothing changes afterwards.

    No number may be infinite or NaN. Scalars of NumPy and PyTorch are accepted as numbers.

    Raises:
        ConfigError: one line that names every setting that is wrong.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise ConfigError(one_line(error)) from None

    # Settings within others are then checked without this `__init__`, so that an error names the whole path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="before")
    @classmethod
    def _plain_numbers(cls, value: Any) -> Any:
        return plain(value)


def one_line(error: ValidationError, *within: str) -> str:
    """What is wrong with settings, as one line that names the first of them, below `within`, with what was found."""
    parts = []
    for item in error.errors()[:_NAMED]:
        where = ".".join([*within, *(str(part) for part in item["loc"])])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] not in ("value_error", "missing"):
            found = repr(item.get("input"))
            message += f", found {found if len(found) <= _SHOWN else found[: _SHOWN - 3] + '...'}"
        parts.append(f"{where}: {message}" if where else message)
    more = error.error_count() - _NAMED
    return "; ".join([*parts, f"and {more} more"] if more > 0 else parts)
