"""Images that several test files use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from data_helpers import LIVELY, folder_of, opened

from vqvae2.data.images import ImageSet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 30 images in 3 classes."""
    return folder_of(tmp_path_factory.mktemp("images"), 30, ("a", "b", "c"), size=(14, 12))


@pytest.fixture(scope="module")
def images(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageSet]:
    """The images of the folder, opened with a margin to crop from."""
    image_set = opened(folder, tmp_path_factory.mktemp("run"), **LIVELY)
    yield image_set
    image_set.close()
