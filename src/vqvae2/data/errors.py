"""The error of pictures that cannot be used."""

from __future__ import annotations

from vqvae2.errors import UserError


class DataError(UserError):
    """Data that cannot be used, in one clear line."""
