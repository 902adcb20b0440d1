"""What all settings have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Settings are checked when they are made, unknown names are refused, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)
