"""What the page may ask for, checked: every number has its range, so that no request takes without bound."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vqvae2.config.sampling import Sampling
from vqvae2.errors import UserError

MOST_SAMPLES = 64
MOST_COMPLETIONS = 16

_Values = list[float] | float | None


class Request(BaseModel):
    """What every drawing needs; None keeps the run's own setting.

    Attributes:
        n: how many images.
        label: name or number of a class; None is all classes in turn, or "no label" in a completion.
        seed: 0 .. 2^53 - 1, which is what a page can count to.
        temperature, top_k, top_p, guidance: one value, or one for each level, coarsest first.
        decoder: "plain" or "sharp".
    """

    model_config = ConfigDict(extra="forbid")

    n: int = Field(8, ge=1, le=MOST_SAMPLES)
    label: str | None = Field(None, max_length=1000)
    seed: int = Field(0, ge=0, lt=2**53)
    temperature: _Values = None
    top_k: list[int] | int | None = None
    top_p: _Values = None
    guidance: _Values = None
    decoder: Literal["plain", "sharp"] | None = None

    def sampling(self, own: Sampling, batch: int) -> Sampling:
        """The run's own way of drawing with what was asked for.

        Raises:
            UserError: out of range.
        """
        asked = {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "guidance")}
        changes: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in asked.items()
            if value is not None
        }
        return own.replace(**changes, batch=batch)


class Completion(Request):
    """A completion of an uploaded image.

    Attributes:
        image: the name that the upload returned.
        passes: see `Run.complete`.
    """

    n: int = Field(4, ge=1, le=MOST_COMPLETIONS)
    image: str
    passes: int = Field(1, ge=1, le=50)


class Fill(Completion):
    """A masked area is filled in.

    Attributes:
        mask: a PNG of the image's size in a data URL, white where it is to be filled in.
    """

    mask: str = Field(max_length=20_000_000)


class Vary(Completion):
    """A level and all finer ones are drawn again; finer codes would not fit a level that is drawn anew (docs/decisions.md).

    Attributes:
        level: which, 0 the coarsest; coarser levels are kept.
    """

    level: int = Field(0, ge=0)


_Kind = TypeVar("_Kind", bound=BaseModel)


def checked(kind: type[_Kind], value: Any) -> _Kind:
    """The request in a JSON value.

    Raises:
        UserError: a key that does not exist, or a value out of range; one line.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(name) for name in first["loc"])
        raise UserError(f"{where}: {first['msg']}" if where else first["msg"]) from None
