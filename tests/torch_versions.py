"""Which tests need a newer torch than the oldest that the package accepts."""

import pytest
import torch

VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])


def needs_torch(major: int, minor: int) -> pytest.MarkDecorator:
    """Skip where torch is older."""
    return pytest.mark.skipif((major, minor) > VERSION, reason=f"needs torch {major}.{minor}")
