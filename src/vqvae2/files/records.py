"""The fields of a JSON or YAML file, checked against a pydantic model before anything uses them.

A file of a run folder may be damaged or come from a stranger, so a number may be a list, and a name may be missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from vqvae2.files.atomic import FileError, read_json


class Record(BaseModel):
    """The fields of a file. Types must be right as they are; fields that later versions add are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=True)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The record in a JSON file.

        Raises:
            FileError: the file is missing or damaged, or a field is missing or of another type.
        """
        return cls.of(read_json(path), path)

    @classmethod
    def of(cls, value: Any, source: str | Path) -> Self:
        """The record that a value holds.

        Args:
            value: as JSON or YAML gives it.
            source: the file that it is from, for the message.

        Raises:
            FileError: a field is missing or of another type.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise FileError(f"{source} is damaged: {first_error(error)}") from None
        except RecursionError:
            raise FileError(f"{source} is damaged: it is nested too deeply") from None


def first_error(error: ValidationError) -> str:
    """The first of the errors that pydantic found: where, what was expected, and the beginning of what was found."""
    first, *_ = error.errors(include_url=False)
    where = ".".join(str(part)[:80] for part in first["loc"])
    found = type(first.get("input")).__name__
    message = first["msg"].removeprefix("Value error, ")[:200]
    kind = "" if first["type"] in ("missing", "value_error") else f", found {found}"
    return f"{where}: {message}{kind}" if where else f"{message}{kind}"
