"""The pictures on which the tests of training train."""

from __future__ import annotations

from pathlib import Path

import pytest
from train_helpers import CLASSES, pictures


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen pictures in two classes."""
    return pictures(tmp_path_factory.mktemp("data") / "pictures", classes=CLASSES)
