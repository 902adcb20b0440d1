"""The error of compressed images."""

from vqvae2.errors import UserError


class CodecError(UserError):
    """A compressed image that is damaged, cut off, of another model or of a newer version, or an image that cannot be compressed."""
