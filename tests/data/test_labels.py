"""Classes: the names that folders and columns use for them, and names that are too alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_helpers import folder_of, opened

from vqvae2.data.errors import DataError
from vqvae2.data.labels import check_classes, resolve_labels


def test_labels() -> None:
    classes, labels = resolve_labels([3, 1, None, 3], None)
    assert classes == ("1", "3")
    assert labels is not None
    assert labels.tolist() == [1, 0, -1, 1]
    classes, labels = resolve_labels([-1, 0, 10, 2], None)
    assert classes == ("0", "2", "10")
    assert labels is not None
    assert labels.tolist() == [-1, 0, 2, 1]
    assert resolve_labels([None, ""], None) == ((), None)
    assert resolve_labels([-1, -1], ["a", "b"]) == ((), None)
    with pytest.raises(DataError, match=r"found 1\.5"):
        resolve_labels([1.5], None)


def test_same_class_twice(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 4, ("Cat", "cat "))
    with pytest.raises(DataError, match="two classes have the same name: 'Cat' and 'cat '"):
        opened(root, tmp_path)
    with pytest.raises(DataError, match="same name"):
        check_classes(["caf\u00e9", "cafe\u0301"])
    check_classes(["a", "b"])
