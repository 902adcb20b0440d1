"""The error of data that cannot be used."""

from __future__ import annotations

from vqvae2.errors import UserError


class DataError(UserError):
    """Data that cannot be used; the message is one line that says why."""
